import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { chmod, lstat, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { Layers } from '../spec/layers.ts'
import { makeWhole } from './made-whole.ts'
import { unreadableBelow } from './unreadable.ts'

/** Changes with the rules below, so that an older mask or copy is not taken for a current one. */
export const usrRevision = 2

/** What /usr/local has where the host's own is left out, for programs to install into. */
const localDirectories = [
  'bin',
  'etc',
  'games',
  'include',
  'lib',
  'sbin',
  'share',
  'share/man',
  'src',
] as const
const localLinks = [['man', 'share/man']] as const

const attemptsMax = 3
const unneededAgeMsMax = 24 * 60 * 60 * 1000
const nsPerMs = 1_000_000n

export interface UsrMaskOptions {
  /** /usr of the host. */
  usr: string
  imageDir: string
  layers: Layers
  /** Whether /usr/local of the host is left out. */
  withoutLocal: boolean
}

interface Mask {
  /** Relative, one byte a character, sorted: what is hidden, with everything in it. */
  hidden: string[]
  /** Their parents, which show their own attributes through the mask. */
  parents: { path: string; mode: number; uid: number; gid: number; modifiedNs: bigint }[]
}

/**
 * A layer above the host's /usr that hides what not everybody on the host may read, and /usr/local. Made by one look at
 * /usr; kept under a name for the host's state, so that the next start finds it.
 */
export class UsrMask {
  readonly #options: UsrMaskOptions
  #current: { stamp: string; path: Promise<string> } | null = null
  readonly #closed = new AbortController()
  readonly #making = new Set<Promise<string>>()

  constructor(options: UsrMaskOptions) {
    this.#options = options
  }

  /** What is being made is called off; afterwards nothing is written any more. */
  async close(reason: Error): Promise<void> {
    this.#closed.abort(reason)
    await Promise.allSettled(this.#making)
  }

  /** The mask of the host's state `stamp`: the one made before, or a new one. */
  of(stamp: string): Promise<string> {
    if (this.#current?.stamp === stamp) return this.#current.path
    return this.#make(stamp, async () => (await this.#known(stamp)) ?? (await this.#scanAndWrite(stamp, [])))
  }

  /** Looks again, in the background: modes change without a trace in the stamp. Answers whether the mask is another now. */
  async refresh(stamp: string): Promise<boolean> {
    const before = await this.#known(stamp)
    const after = await this.#scanAndWrite(stamp, ['nice', '-n', '19'])
    this.#current = { stamp, path: Promise.resolve(after) }
    return before !== null && before !== after
  }

  /** Removes masks of other states that are a day old and not among `held`. */
  async dropOld(stamp: string, held: ReadonlySet<string>, now: number): Promise<void> {
    const { imageDir } = this.#options
    const current = await this.#known(stamp)
    for (const name of await readdir(imageDir)) {
      if (!/^host-mask(ed)?-/.test(name)) continue
      const path = join(imageDir, name)
      if (path === current || path === this.#pointer(stamp) || held.has(path)) continue
      const stats = await lstat(path).catch(() => null)
      if (stats && now - stats.ctimeMs > unneededAgeMsMax) await rm(path, { recursive: true, force: true })
    }
  }

  #make(stamp: string, make: () => Promise<string>): Promise<string> {
    const made = { stamp, path: make() }
    this.#current = made
    made.path.catch(() => {
      if (this.#current === made) this.#current = null
    })
    return made.path
  }

  #pointer(stamp: string): string {
    return join(this.#options.imageDir, `host-masked-${stamp}`)
  }

  async #known(stamp: string): Promise<string | null> {
    const name = await readFile(this.#pointer(stamp), 'utf8').catch(() => '')
    if (!/^host-mask-[0-9a-f]{32}$/.test(name)) return null
    const path = join(this.#options.imageDir, name)
    return existsSync(path) ? path : null
  }

  async #scanAndWrite(stamp: string, how: string[]): Promise<string> {
    this.#closed.signal.throwIfAborted()
    const making = this.#tryToMake(stamp, how)
    this.#making.add(making)
    return await making.finally(() => this.#making.delete(making))
  }

  async #tryToMake(stamp: string, how: string[]): Promise<string> {
    for (let attempt = 1; ; attempt++) {
      try {
        const mask = await this.#scan(how)
        const path = await this.#write(mask)
        await writeFile(`${this.#pointer(stamp)}.${process.pid}`, path.slice(path.lastIndexOf('/') + 1))
        await rename(`${this.#pointer(stamp)}.${process.pid}`, this.#pointer(stamp))
        return path
      } catch (error) {
        this.#closed.signal.throwIfAborted()
        // Files that come and go meanwhile, as in an upgrade of the host.
        if (attempt === attemptsMax) throw error
      }
    }
  }

  async #scan(how: string[]): Promise<Mask> {
    const { usr, withoutLocal } = this.#options
    const hidden = await unreadableBelow(usr, {
      how,
      signal: this.#closed.signal,
      ...(withoutLocal ? { without: 'local' } : {}),
    })
    if (hidden.includes('.')) {
      throw new PlatformError('unavailable', `${usr} is no image for sandboxes: not everybody may read it`)
    }
    const paths = hidden.sort()
    const directories = new Set<string>()
    for (const path of paths) {
      for (let slash = path.indexOf('/'); slash > 0; slash = path.indexOf('/', slash + 1)) {
        directories.add(path.slice(0, slash))
      }
    }
    const parents: Mask['parents'] = []
    for (const path of [...directories].sort()) {
      const { mode, uid, gid, mtimeMs } = await lstat(Buffer.from(join(usr, path), 'latin1'))
      const modifiedNs = BigInt(Math.round(mtimeMs)) * nsPerMs
      parents.push({ path, mode: mode & 0o7777, uid, gid, modifiedNs })
    }
    return { hidden: paths, parents }
  }

  async #write({ hidden, parents }: Mask): Promise<string> {
    const { imageDir, layers, withoutLocal } = this.#options
    const hash = createHash('sha256').update(`${usrRevision} ${withoutLocal}\n`)
    for (const parent of parents) hash.update(`${Object.values(parent).join(' ')}\n`)
    for (const path of hidden) hash.update(`${path}\0`, 'latin1')
    const target = join(imageDir, `host-mask-${hash.digest('hex').slice(0, 32)}`)
    if (existsSync(target)) return target
    await makeWhole(target, async (draft) => {
      await using sink = await layers.open(draft)
      for (const parent of parents) sink.entry({ type: 'directory', ...parent })
      if (withoutLocal) {
        const own = { uid: 0, gid: 0, modifiedNs: BigInt(Date.now()) * nsPerMs }
        for (const path of ['local', ...localDirectories.map((name) => `local/${name}`)]) {
          sink.entry({ type: 'directory', path, mode: 0o755, ...own })
        }
        sink.entry({ type: 'opaque', path: 'local' })
        for (const [name, to] of localLinks) {
          sink.entry({ type: 'symlink', path: `local/${name}`, target: to, mode: 0o777, ...own })
        }
      }
      for (const path of hidden) {
        sink.entry({ type: 'whiteout', path })
        await sink.drained()
      }
      for (const { path, modifiedNs } of parents.toReversed()) sink.modified(path, modifiedNs)
      await sink.finish()
    })
    return target
  }
}

/** An empty /usr/local at `path`. */
export async function makeLocal(path: string): Promise<void> {
  for (const name of ['', ...localDirectories]) {
    await mkdir(join(path, name), { recursive: true })
    await chmod(join(path, name), 0o755)
  }
  for (const [name, to] of localLinks) await symlink(to, join(path, name))
}
