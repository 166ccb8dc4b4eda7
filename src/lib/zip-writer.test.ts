import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ZipWriter } from './zip-writer.ts'

const directory = mkdtempSync(join(tmpdir(), 'hutch-zip-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

async function* pieces(bytes: Uint8Array, size: number): AsyncIterable<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

async function write(
  path: string,
  files: [name: string, content: Uint8Array, mode: number][],
): Promise<number> {
  await using zip = await ZipWriter.create(path)
  const time = new Date('2030-05-06T07:08:10Z')
  await zip.addFolder('empty', 0o755, time)
  for (const [name, content, mode] of files) await zip.addFile(name, pieces(content, 70_000), mode, time)
  return await zip.finish()
}

test('another program reads names, contents, modes and times', async () => {
  const python = Bun.which('python3')
  if (python === null) return void console.warn('skipped, since python3 is not installed')
  const path = join(directory, 'a.zip')
  const large = new Uint8Array(300_000).map((_, index) => (index * 7919) % 251)
  const text = new TextEncoder().encode('print(1)\n')
  const bytes = await write(path, [
    ['src/main.py', text, 0o644],
    ['bin/täst run.sh', text, 0o755],
    ['nothing', new Uint8Array(0), 0o600],
    ['large', large, 0o644],
  ])
  expect([statSync(path).size, statSync(path).mode & 0o777]).toEqual([bytes, 0o600])
  const script = `
import hashlib, json, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z:
    assert z.testzip() is None
    print(json.dumps([[i.filename, i.file_size, oct(i.external_attr >> 16), i.date_time,
        hashlib.sha256(z.read(i)).hexdigest()] for i in z.infolist()]))`
  const read = Bun.spawnSync([python, '-c', script, path])
  expect(read.stderr.toString()).toBe('')
  const sha = (content: Uint8Array) => new Bun.CryptoHasher('sha256').update(content).digest('hex')
  const time = [2030, 5, 6, 7, 8, 10]
  expect(JSON.parse(read.stdout.toString())).toEqual([
    ['empty/', 0, '0o40755', time, sha(new Uint8Array(0))],
    ['src/main.py', text.length, '0o100644', time, sha(text)],
    ['bin/täst run.sh', text.length, '0o100755', time, sha(text)],
    ['nothing', 0, '0o100600', time, sha(new Uint8Array(0))],
    ['large', large.length, '0o100644', time, sha(large)],
  ])
})

test('a file that cannot be read ends the writing, and one that is there is not written over', async () => {
  const path = join(directory, 'b.zip')
  const failing = (async function* () {
    yield new Uint8Array(10)
    throw new Error('the disk is gone')
  })()
  await using zip = await ZipWriter.create(path)
  const failure = await zip.addFile('x', failing, 0o644, new Date()).catch((error: Error) => error.message)
  expect(failure).toBe('the disk is gone')
  expect(await ZipWriter.create(path).catch((error: { code?: string }) => error.code)).toBe('EEXIST')
  expect(readFileSync(path).length).toBeGreaterThanOrEqual(0)
})
