import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { HelperLayers } from '../../src/guest/index.ts'
import { LayerStore } from '../../src/images/layer-store.ts'
import { digestOf, tar } from '../../src/images/test-image.ts'
import { silentLogger } from '../../src/lib/log.ts'
import { buildHelper } from '../build-helper.ts'
import { temporaryDataDir } from '../platform.ts'
import { milliseconds, type Row, run, samplesMin, timesInTurns } from './measure.ts'

const files = 1_000
const fileBytes = 4_096
const imageBytesMax = 1024 ** 3

/** A layer of small files unpacked, checked and made durable; against tar and sync into the same place. */
export default async function images(): Promise<Row[]> {
  await using directory = await temporaryDataDir()
  const content = crypto.getRandomValues(new Uint8Array(fileBytes))
  const archive = tar(
    Array.from({ length: files }, (_, index) => ({ path: `dir-${index % 20}/file-${index}`, content })),
  )
  const file = join(directory.path, 'layer.tar.gz')
  writeFileSync(file, gzipSync(archive))
  const layers = new HelperLayers((await buildHelper()).path)
  const dir = join(directory.path, 'images')
  const store = new LayerStore({ dir, layers, layerBytesMax: imageBytesMax, log: silentLogger })
  const digest = digestOf(archive)
  const plain = join(directory.path, 'plain')
  const { measured, bare } = await timesInTurns(
    samplesMin,
    async () => {
      await store.add(digest, async () => file)
      await store.remove(digest, () => false)
    },
    async () => {
      mkdirSync(plain)
      await run(['tar', '-xzf', file, '-C', plain])
      await run(['sync', '-f', plain])
      rmSync(plain, { recursive: true })
    },
  )
  return [
    {
      what: `unpack and remove a layer of ${files} files`,
      value: `${milliseconds(measured)}, ${(measured.median / bare.median).toFixed(2)} x`,
      baseline: `${milliseconds(bare)} tar, sync and rm`,
      reach: 'none set',
    },
  ]
}
