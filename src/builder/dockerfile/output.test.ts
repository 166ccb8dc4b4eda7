import { expect, test } from 'bun:test'
import type { BuildMachine } from '../machine.ts'
import { builtImage } from './output.ts'

const hex = 'a'.repeat(64)
const signal = new AbortController().signal

/** A machine whose programs put these files there. */
function machineOf(files: Record<string, string>): BuildMachine {
  const read = async function* (path: string) {
    const name = path.slice('/built/'.length)
    const text = files[name]
    if (text === undefined) throw new Error(`nobody is to read ${path}`)
    yield Buffer.from(text)
  }
  return { read } as unknown as BuildMachine
}

const failureOf = (files: Record<string, string>) =>
  builtImage(machineOf(files), '/built', { withoutEnv: {}, signal }).then(
    () => '',
    (error: Error) => error.message,
  )

test('what is handed out is believed to be an image only if it is one', async () => {
  const manifest = (value: unknown) => ({ 'manifest.json': JSON.stringify(value) })
  for (const files of [
    { 'manifest.json': 'null' },
    { 'manifest.json': '{' },
    manifest({ layers: [] }),
    manifest({ config: { digest: `sha256:${hex}` }, layers: [{ digest: 'sha256:../../etc/passwd' }] }),
    manifest({ config: { digest: '../manifest.json' }, layers: [{ digest: `sha256:${hex}` }] }),
    manifest({ config: {}, layers: Array.from({ length: 1001 }, () => ({ digest: `sha256:${hex}` })) }),
    { 'manifest.json': `"${'x'.repeat(9 * 1024 * 1024)}"` },
  ])
    expect(await failureOf(files)).toBe('what the build handed out is no image')
})

test('its layers are read one by one when somebody wants them, and variables of the build are taken out', async () => {
  const config = {
    config: { Env: ['A=1', 'NPM_CONFIG_REGISTRY=r', 'B=2'] },
    rootfs: { diff_ids: [`sha256:${hex}`] },
  }
  const machine = machineOf({
    'manifest.json': JSON.stringify({
      config: { digest: `sha256:${'b'.repeat(64)}` },
      layers: [{ digest: `sha256:${hex}` }],
    }),
    ['b'.repeat(64)]: JSON.stringify(config),
    [hex]: 'a layer',
  })
  const image = await builtImage(machine, '/built', {
    withoutEnv: { NPM_CONFIG_REGISTRY: 'r', B: 'other' },
    signal,
  })
  expect(image.onHost).toBe(false)
  expect(JSON.parse(Buffer.from(image.config).toString())).toMatchObject({ config: { Env: ['A=1', 'B=2'] } })
  const parts = await Array.fromAsync(image.layers[0]!.content(signal))
  expect(Buffer.concat(parts).toString()).toBe('a layer')
})
