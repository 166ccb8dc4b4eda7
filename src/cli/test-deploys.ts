import { inflateRawSync } from 'node:zlib'
import { buildEventTypes } from '../lib/build-event-types.ts'
import type { SeenRequest, TestPlatform } from './test-platform.ts'

export interface Script {
  /** Of its revision, one more each time it is looked at. */
  statuses: string[]
  message?: string
  log?: string[]
  /** Answers to uploads, in order; then 200. */
  uploads?: number[]
  exists?: boolean
}

/** Has a platform do one thing after the other, whenever the deployment is looked at. */
export function followScript(platform: TestPlatform, steps: Script): void {
  const { statuses, message = '', log = [], uploads = [], exists = false } = steps
  const created = new Map<string, unknown>()
  let looks = 0
  platform.answer = ({ method, path, body }) => {
    if (path.startsWith('/-/uploads/')) {
      const status = uploads.shift() ?? 200
      return Response.json(status === 200 ? {} : { error: 'not now' }, { status })
    }
    if (path.includes('/observability/logs')) {
      const name = new URLSearchParams(path.split('?')[1]).get('workloadIds') ?? ''
      if (path.includes('follow=true'))
        return new Response('', { headers: { 'content-type': 'application/x-ndjson' } })
      const logs = log.map((text, index) => ({
        timestamp: `2030-01-01T00:00:0${index}Z`,
        message: text,
        severity: 9,
      }))
      return Response.json({ [name]: { logs: logs.reverse(), totalCount: logs.length } })
    }
    const [plain = ''] = path.split('?')
    if (method === 'GET') {
      const found = created.get(plain)
      if (found === undefined) return null
      const seen = statuses.slice(0, Math.min(++looks, statuses.length))
      const events = seen.map((status, index) => ({
        time: `2030-01-01T00:00:0${index}Z`,
        type: status === 'FAILED' && seen.at(-2) === 'BUILDING' ? buildEventTypes.failed : 'deployment',
        status,
        revision: 'rev-2',
        message: status === 'FAILED' ? message : status,
      }))
      const old = { time: '2029-01-01T00:00:00Z', type: 'deployment', status: 'DEPLOYED', revision: 'rev-1' }
      return Response.json({ ...(found as object), status: 'BUILDING', events: [old, ...events] })
    }
    if (method === 'PUT' && !exists && !created.has(plain)) return null
    if (method === 'POST' && exists) return Response.json({ error: 'taken' }, { status: 409 })
    const sent = JSON.parse(body) as { metadata: { name: string } }
    const at = method === 'POST' ? `${plain}/${sent.metadata.name}` : plain
    const url = `${platform.origin}/main${at.slice('/v0'.length)}`
    const resource = { ...sent, metadata: { ...sent.metadata, url, updatedAt: '2030-01-01T00:00:00Z' } }
    created.set(at, resource)
    const headers: Record<string, string> = { 'x-hutch-revision': 'rev-2' }
    if (path.includes('upload=true'))
      headers['x-blaxel-upload-url'] = `${platform.origin}/-/uploads/t${created.size}`
    return Response.json(resource, { headers })
  }
}

/** Files of an archive, read by its local headers. */
export function unzip({ body }: SeenRequest): Map<string, { text: string; mode: number }> {
  const bytes = Buffer.from(body, 'latin1')
  const files = new Map<string, { text: string; mode: number }>()
  const end = bytes.lastIndexOf(Buffer.from('PK\x05\x06'))
  let at = bytes.readUInt32LE(end + 16)
  for (let left = bytes.readUInt16LE(end + 10); left > 0; left--) {
    const nameBytes = bytes.readUInt16LE(at + 28)
    const name = bytes.toString('utf8', at + 46, at + 46 + nameBytes)
    const local = bytes.readUInt32LE(at + 42)
    const start = local + 30 + bytes.readUInt16LE(local + 26)
    const content = bytes.subarray(start, start + bytes.readUInt32LE(at + 20))
    const method = bytes.readUInt16LE(at + 10)
    const text = (method === 8 ? inflateRawSync(content) : content).toString()
    files.set(name, { text, mode: (bytes.readUInt32LE(at + 38) >>> 16) & 0o777 })
    at += 46 + nameBytes
  }
  return files
}
