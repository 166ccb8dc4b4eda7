import { chmodSync, mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { constants, networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildHelper } from '../../../../scripts/build-helper.ts'
import { HelperLayers } from '../../../guest/index.ts'
import { HostImage, type HostImageSource } from '../../../images/index.ts'
import { systemClock } from '../../../lib/clock.ts'
import { randomText } from '../../../lib/ids.ts'
import { silentLogger } from '../../../lib/log.ts'
import type { Instance, RootMount } from '../../../spec/runtime.ts'

/** The host around the sandboxes that try to get out: what they are after, and the same attempts made by its root. */

export const work = mkdtempSync(join(tmpdir(), 'hutch-escape-'))
export const probePath = join(work, 'probe')
export const secretPath = join(work, 'secret')
export const secret = `secret-${randomText(24)}`

export const helperPath = (await buildHelper()).path
export const instancesDir = join(work, 'instances')
export const options = { instancesDir, helperPath, log: silentLogger, clock: systemClock }
/** The same attempt on the host, in a mount namespace of its own where it could change something. */
export function control(...words: string[]): string {
  const wrapped = Bun.spawnSync(['unshare', '--mount', '--propagation', 'private', probePath, ...words], {
    timeout: 20_000,
  })
  return wrapped.stdout.toString().trim()
}

export const hostImage = (source: HostImageSource, usrPath?: string) =>
  new HostImage({
    imageDir: join(work, 'images'),
    dataDir: work,
    source,
    usrLocal: false,
    layers: new HelperLayers(helperPath),
    clock: systemClock,
    log: silentLogger,
    ...(usrPath ? { usrPath } : {}),
  })

/** A /usr of a host with a file and a directory of root's, and one of everybody. */
export const usrPath = join(work, 'usr')
export const usrSecrets = ['share/file', 'share/directory/file', 'share/deep/directory/file', 'local/file']

export function makeUsr(): void {
  for (const name of ['bin', 'local', 'share/directory', 'share/deep/directory'])
    mkdirSync(join(usrPath, name), { recursive: true })
  for (const name of ['share/directory', 'share/deep/directory']) chmodSync(join(usrPath, name), 0o700)
  for (const path of usrSecrets) writeFileSync(join(usrPath, path), secret)
  for (const path of ['bin/tool', 'share/deep/open']) writeFileSync(join(usrPath, path), 'for everybody')
  chmodSync(join(usrPath, 'share/file'), 0o600)
}

/** Where an instance has that /usr as its image would have it: as it is, and as it was frozen. */
export async function mountsOfUsr(): Promise<RootMount[]> {
  const host = hostImage('copy', usrPath)
  const live = (await host.resolve()).mounts[0]!
  await host.freeze()
  const frozen = (await host.resolve()).mounts[0]!
  return [
    { ...live, target: '/srv/live' },
    { ...live, target: '/srv/renamed' },
    { ...frozen, target: '/srv/frozen' },
  ]
}

/** Host pid of process 1 of an instance. */
export function hostPidOf(instance: Instance): number {
  return (instance.handle.state as { guest: { pid: number } }).guest.pid
}

/** Addresses of this host that are not loopback; link-local ones need an interface with them. */
export function hostAddresses(): string[] {
  return Object.values(networkInterfaces())
    .flatMap((list) => list ?? [])
    .filter(({ internal, address }) => !internal && !address.startsWith('fe80:'))
    .map(({ address }) => address)
}

export function osErrno(name: 'EPERM' | 'ENOENT' | 'ESRCH' | 'ECONNREFUSED' | 'ECONNRESET'): number {
  return constants.errno[name]
}
