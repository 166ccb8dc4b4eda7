import { mkdirSync, symlinkSync } from 'node:fs'
import type { RootFilesystem } from '../spec/runtime.ts'

/** For tests of the drivers. HUTCH_TEST_HELPER runs them against another build of the helper. */
export async function testHelperPath(): Promise<string> {
  const given = process.env.HUTCH_TEST_HELPER
  if (given) return given
  const { buildHelper } = await import('../../scripts/build-helper.ts')
  return (await buildHelper()).path
}

/** The smallest root that programs of the host run in: empty but for the host's /usr. Made in `dir`. */
export function testImage(dir: string): RootFilesystem {
  for (const name of ['usr', 'etc', 'proc', 'dev', 'tmp', 'root', 'var', 'run']) {
    mkdirSync(`${dir}/${name}`, { recursive: true })
  }
  for (const name of ['bin', 'lib', 'lib64', 'sbin']) symlinkSync(`usr/${name}`, `${dir}/${name}`)
  return {
    digest: 'sha256:test',
    layers: [dir],
    mounts: [{ source: '/usr', target: '/usr', kind: 'overlay' }],
  }
}
