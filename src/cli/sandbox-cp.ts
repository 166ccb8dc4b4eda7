import { createWriteStream, existsSync } from 'node:fs'
import { chmod, lstat, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join, posix } from 'node:path'
import { Writable } from 'node:stream'
import { ClientError } from '../client/index.ts'
import { randomText } from '../lib/ids.ts'
import { openSandbox, withHints } from './client.ts'
import { CommandError, command, connectionFlags, UsageError } from './command.ts'
import { failureMessage } from './failure.ts'
import { bytes, note, print, printable, printJson } from './output.ts'
import { shellQuote } from './shell.ts'

export const cp = command({
  name: 'sandbox cp',
  summary: 'Copies a file or a directory into a sandbox, or out of it.',
  usage: 'FROM TO',
  flags: connectionFlags,
  positionals: [2, 2],
  notes: [
    'One side is NAME:/path, the other a path of this machine.',
    'Into a directory that exists the copy goes under its own name, as with cp -r.',
    'Symbolic links are left out, and named.',
  ],
  async run({ flags, positionals }) {
    const [from, to] = positionals.map(parseSide) as [Side, Side]
    if ((from.sandbox === null) === (to.sandbox === null)) {
      throw new UsageError('one of FROM and TO is NAME:/path, the other a path of this machine')
    }
    const name = from.sandbox ?? to.sandbox ?? ''
    const progress = new Progress(process.stderr.isTTY === true && !flags.json)
    await withHints(
      flags,
      async () => {
        const { files } = await openSandbox(flags, name)
        if (to.sandbox !== null) await upload(files, from.path, to.path, progress)
        else await download(files, from.path, to.path, progress)
      },
      { 404: `hutch sandbox exec ${name} -- ls -la ${posix.dirname(from.sandbox ? from.path : to.path)}` },
    )
    progress.end()
    const { files, bytesTotal, skipped } = progress
    if (flags.json) printJson({ files, bytes: bytesTotal, skipped })
    else print(`${files} ${files === 1 ? 'file' : 'files'}, ${bytes(bytesTotal)}`)
    if (!flags.json)
      for (const path of skipped) note(`left out (not a file or directory): ${printable(path)}`)
    return 0
  },
})

interface Side {
  /** Null: this machine. */
  sandbox: string | null
  path: string
}

type Files = Awaited<ReturnType<typeof openSandbox>>['files']

/** `NAME:/path`; a path of this machine with a colon is written ./like:this. */
export function parseSide(text: string): Side {
  if (text === '-') {
    throw new UsageError('- is no path here; for a pipe: hutch sandbox exec NAME -- cat /path')
  }
  const match = /^([a-z0-9][a-z0-9-]*):(.*)$/s.exec(text)
  if (!match) return { sandbox: null, path: text }
  const path = match[2]!
  if (!path.startsWith('/'))
    throw new UsageError(`${text}: the path in a sandbox begins with /, as in ${match[1]}:/tmp`)
  return { sandbox: match[1]!, path: path.length > 1 ? path.replace(/\/+$/, '') : path }
}

async function upload(files: Files, local: string, remote: string, progress: Progress): Promise<void> {
  const source = await stat(local).catch((error: { code?: string }) => {
    throw new CommandError(failureMessage(error))
  })
  const into = await isDirectory(files, remote)
  const target = into ? posix.join(remote, basename(join(process.cwd(), local))) : remote
  if (source.isDirectory()) await uploadDirectory(files, local, target, progress)
  else await uploadFile(files, local, target, source, progress)
}

async function uploadDirectory(
  files: Files,
  local: string,
  remote: string,
  progress: Progress,
): Promise<void> {
  await files.makeDirectory(remote)
  for (const entry of await readdir(local)) {
    const path = join(local, entry)
    const info = await lstat(path)
    if (info.isDirectory()) await uploadDirectory(files, path, posix.join(remote, entry), progress)
    else if (info.isFile()) await uploadFile(files, path, posix.join(remote, entry), info, progress)
    else progress.skipped.push(path)
  }
}

async function uploadFile(
  files: Files,
  local: string,
  remote: string,
  info: { size: number; mode: number },
  progress: Progress,
): Promise<void> {
  const permissions = `0${(info.mode & 0o777).toString(8)}`
  progress.begin(remote, info.size)
  await files.write(remote, progress.count(Bun.file(local).stream()), permissions)
  progress.files++
}

async function download(files: Files, remote: string, local: string, progress: Progress): Promise<void> {
  const listing = await files.list(remote)
  const into = await stat(local).then(
    (info) => info.isDirectory(),
    () => false,
  )
  const target = into && remote !== '/' ? join(local, posix.basename(remote)) : local
  if (!existsSync(dirname(target))) {
    throw new CommandError(
      `there is no directory ${dirname(target)}`,
      `mkdir -p ${shellQuote(dirname(target))}`,
    )
  }
  if (listing === null) await downloadFile(files, remote, target, undefined, progress)
  else await downloadDirectory(files, remote, target, progress)
}

async function downloadDirectory(
  files: Files,
  remote: string,
  local: string,
  progress: Progress,
): Promise<void> {
  const listing = await files.list(remote)
  if (listing === null) throw new CommandError(`${remote} changed while it was read`)
  await mkdir(local, { recursive: true })
  for (const name of listing.directories) {
    await downloadDirectory(files, posix.join(remote, name), join(local, safeName(name)), progress)
  }
  for (const file of listing.files) {
    const path = posix.join(remote, file.name)
    if (isRegular(file.permissions)) {
      await downloadFile(files, path, join(local, safeName(file.name)), file.permissions, progress)
    } else progress.skipped.push(path)
  }
}

/** Written beside its place and moved there whole, so a broken transfer leaves no half file. */
async function downloadFile(
  files: Files,
  remote: string,
  local: string,
  permissions: string | undefined,
  progress: Progress,
): Promise<void> {
  const { body, size } = await files.read(remote)
  const partial = `${local}.${randomText(8)}.partial`
  progress.begin(remote, size)
  try {
    // Made by us alone: an existing file or link of that name is never followed.
    const handle = await open(partial, 'wx')
    const stream = Writable.toWeb(createWriteStream(partial, { fd: handle.fd, autoClose: false }))
    try {
      await progress.count(body).pipeTo(stream as WritableStream<Uint8Array>)
    } finally {
      await handle.close()
    }
    const mode = Number.parseInt(permissions ?? '', 8)
    if (Number.isFinite(mode)) await chmod(partial, mode & 0o777)
    await rename(partial, local)
  } catch (error) {
    await rm(partial, { force: true })
    throw error
  }
  progress.files++
}

async function isDirectory(files: Files, path: string): Promise<boolean> {
  try {
    return (await files.list(path)) !== null
  } catch (error) {
    if (error instanceof ClientError && error.status === 404) return false
    throw error
  }
}

/** A listing of code we do not trust never names a place outside its directory. */
export function safeName(name: string): string {
  if (name === '' || name === '.' || name === '..' || /[/\0]/.test(name)) {
    throw new CommandError(
      `the sandbox lists a file named ${JSON.stringify(name)}; nothing is written for it`,
    )
  }
  return name
}

/** Plain permission bits: a symbolic link, a device or a socket has type bits above them. */
function isRegular(permissions: string | undefined): boolean {
  return permissions === undefined || Number.parseInt(permissions, 8) < 0o1000000
}

/** One line on a terminal, for files worth waiting for. */
class Progress {
  files = 0
  bytesTotal = 0
  readonly skipped: string[] = []
  private path = ''
  private size: number | null = null
  private done = 0
  private shownAt = 0
  private shown = false

  constructor(private readonly visible: boolean) {}

  begin(path: string, size: number | null): void {
    this.path = path
    this.size = size
    this.done = 0
    this.shownAt = performance.now()
  }

  count(body: ReadableStream<Uint8Array>): ReadableStream<Uint8Array> {
    return body.pipeThrough(
      new TransformStream<Uint8Array, Uint8Array>({
        transform: (chunk, controller) => {
          this.done += chunk.length
          this.bytesTotal += chunk.length
          this.show()
          controller.enqueue(chunk)
        },
      }),
    )
  }

  end(): void {
    if (this.shown) process.stderr.write('\r\x1b[K')
  }

  private show(): void {
    if (!this.visible || performance.now() - this.shownAt < 200) return
    this.shownAt = performance.now()
    this.shown = true
    const of = this.size ? ` of ${bytes(this.size)}, ${Math.floor((100 * this.done) / this.size)}%` : ''
    process.stderr.write(`\r\x1b[K${printable(this.path)}  ${bytes(this.done)}${of}`)
  }
}
