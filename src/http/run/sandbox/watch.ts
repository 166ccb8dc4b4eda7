import { posix } from 'node:path'
import type { FileChange } from '../../../spec/guest.ts'
import { keptAlive } from '../bodies.ts'
import { apiHeaders, type SandboxAnswer, type SandboxCall } from './call.ts'
import { asCode, fileError } from './entries.ts'
import { requestedPath } from './files.ts'
import { joined } from './paths.ts'
import { flagParameter, listParameter } from './query.ts'

const keepalive = { text: '[keepalive]\n', everyMs: 30_000 }

const operations: Record<FileChange['kind'], string> = {
  created: 'CREATE',
  written: 'WRITE',
  removed: 'REMOVE',
  renamed: 'RENAME',
  attributes: 'CHMOD',
  lost: 'OVERFLOW',
}

/**
 * A line of JSON for each change in a directory; with `/**` behind it, or `recursive=true`, for all below it. The
 * answer's header is sent once nothing that happens from then on is missed.
 */
export async function watchDirectory(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const requested = requestedPath(call, rest).absolute
  const path = requested.replace(/\/\*\*?$/, '') || '/'
  const recursive = requested.endsWith('/**') || flagParameter(call.query, 'recursive', false)
  const ignore = listParameter(call.query, 'ignore') ?? []
  const gone = new AbortController()
  const signal = AbortSignal.any([call.request.signal, gone.signal])
  let changes: AsyncGenerator<FileChange[]>
  try {
    changes = await call.lease.instance.guest.files.watch(path, { recursive, ignore, signal })
  } catch (error) {
    throw asCode(fileError(error, 'watch', path), 'bad_request')
  }
  const body = keptAlive(lines(changes, path), keepalive, () => {
    gone.abort()
    call.onEnd()
  })
  const headers = { ...apiHeaders, 'content-type': 'text/plain; charset=utf-8' }
  return { streaming: new Response(body, { headers }), endsItself: true }
}

async function* lines(changes: AsyncGenerator<FileChange[]>, root: string): AsyncGenerator<string> {
  yield keepalive.text
  for await (const batch of changes) {
    yield batch.map((change) => `${JSON.stringify(event(change, root))}\n`).join('')
  }
}

function event({ kind, path }: FileChange, root: string) {
  const op = operations[kind]
  if (kind === 'lost') {
    return { op, name: '', path: root, error: 'more changed than could be told: read the directory again' }
  }
  const whole = path === '' ? root : joined(root, path)
  return { op, name: posix.basename(whole), path: posix.dirname(whole), error: null }
}
