import { posix } from 'node:path'
import type { FileEntry } from '../../../spec/guest.ts'
import { apiHeaders, type SandboxCall } from './call.ts'

const mediaTypes: Record<string, string> = {
  css: 'text/css',
  csv: 'text/csv',
  gif: 'image/gif',
  gz: 'application/gzip',
  html: 'text/html',
  ico: 'image/x-icon',
  jpeg: 'image/jpeg',
  jpg: 'image/jpeg',
  js: 'application/javascript',
  json: 'application/json',
  md: 'text/markdown',
  mp3: 'audio/mpeg',
  mp4: 'video/mp4',
  pdf: 'application/pdf',
  png: 'image/png',
  svg: 'image/svg+xml',
  tar: 'application/x-tar',
  txt: 'text/plain',
  wav: 'audio/wav',
  webm: 'video/webm',
  webp: 'image/webp',
  xml: 'application/xml',
  zip: 'application/zip',
}

/** Bytes instead of JSON: asked for by `?download=true`, or by an Accept that wants them or wants no JSON. */
export function wantsDownload({ request, query }: SandboxCall): boolean {
  if (query.get('download') === 'true') return true
  const accept = request.headers.get('accept') ?? '*/*'
  return /octet-stream/i.test(accept) || !(/json/i.test(accept) || accept.includes('*/*'))
}

export function downloadHeaders(path: string, entry: FileEntry): Headers {
  const extension = posix.extname(path).slice(1).toLowerCase()
  return new Headers({
    ...apiHeaders,
    'content-type':
      (Object.hasOwn(mediaTypes, extension) ? mediaTypes[extension] : null) ?? 'application/octet-stream',
    'content-disposition': attachment(posix.basename(path)),
    'accept-ranges': 'bytes',
    'last-modified': new Date(entry.modifiedMs).toUTCString(),
  })
}

function attachment(name: string): string {
  const ascii = name.replace(/[^\x20-\x7e]/g, '_').replace(/["\\]/g, '\\$&')
  if (ascii === name) return `attachment; filename="${ascii}"`
  const encoded = encodeURIComponent(name.toWellFormed()).replace(
    /['()*]/g,
    (c) => `%${c.charCodeAt(0).toString(16)}`,
  )
  return `attachment; filename="${ascii}"; filename*=UTF-8''${encoded}`
}

/** The one range asked for; null for the whole file, also where several are asked for or the file has changed. */
export function rangeOf(
  headers: Headers,
  entry: FileEntry,
): { offset: number; length: number } | null | 'unsatisfiable' {
  const match = /^bytes=(\d*)-(\d*)$/.exec(headers.get('range')?.trim() ?? '')
  if (!match || (match[1] === '' && match[2] === '')) return null
  const unchanged = headers.get('if-range')
  if (unchanged !== null && Date.parse(unchanged) !== Math.floor(entry.modifiedMs / 1000) * 1000) return null
  const [, first = '', last = ''] = match
  const offset = first === '' ? Math.max(0, entry.size - Number(last)) : Number(first)
  const end = first === '' || last === '' ? entry.size - 1 : Math.min(Number(last), entry.size - 1)
  if (first !== '' && last !== '' && Number(last) < Number(first)) return null
  if (offset >= entry.size || (first === '' && Number(last) === 0)) return 'unsatisfiable'
  return { offset, length: end - offset + 1 }
}
