/** The wire shapes of previews and their tokens, and what a preview may be. */
import { z } from 'zod'
import { badRequest, quoted } from '../lib/checks.ts'
import { parseDateMs } from '../lib/date.ts'
import { parseDuration } from '../lib/duration.ts'
import { reservedPorts, sandboxApiPort } from './draft.ts'

const previewHeadersMax = 64
const previewHeaderBytesMax = 8 * 1024
const prefixUrlCharsMax = 40

const headerMap = z.lazy(() => z.record(z.string(), z.string()))

export const previewInputSchema = z.lazy(() =>
  z.looseObject({
    metadata: z.looseObject({ name: z.string().nullish(), displayName: z.string().nullish() }),
    spec: z.looseObject({
      port: z.number().int().nullish(),
      public: z.boolean().nullish(),
      prefixUrl: z.string().nullish(),
      customDomain: z.string().nullish(),
      ttl: z.string().nullish(),
      expires: z.string().nullish(),
      requestHeaders: headerMap.nullish(),
      responseHeaders: headerMap.nullish(),
    }),
  }),
)
export type PreviewInput = z.input<typeof previewInputSchema>

export const previewSchema = z.lazy(() =>
  z.object({
    metadata: z.object({
      name: z.string(),
      displayName: z.string().optional(),
      resourceName: z.string(),
      resourceType: z.string(),
      workspace: z.string(),
      createdAt: z.string(),
      updatedAt: z.string(),
      createdBy: z.string(),
      updatedBy: z.string(),
    }),
    spec: z.object({
      port: z.number(),
      public: z.boolean(),
      prefixUrl: z.string().optional(),
      customDomain: z.string().optional(),
      ttl: z.string().optional(),
      expires: z.string().optional(),
      requestHeaders: headerMap.optional(),
      responseHeaders: headerMap.optional(),
      url: z.string(),
    }),
    status: z.string(),
  }),
)
export type PreviewView = z.output<typeof previewSchema>

export const previewTokenInputSchema = z.lazy(() =>
  z.looseObject({
    metadata: z.looseObject({ name: z.string().nullish() }).nullish(),
    spec: z.looseObject({ expiresAt: z.string().nullish() }).nullish(),
  }),
)
export type PreviewTokenInput = z.input<typeof previewTokenInputSchema>

export const previewTokenSchema = z.lazy(() =>
  z.object({
    metadata: z.object({
      name: z.string(),
      previewName: z.string(),
      resourceName: z.string(),
      resourceType: z.string(),
      workspace: z.string(),
    }),
    spec: z.object({ token: z.string(), expiresAt: z.string(), expired: z.boolean() }),
  }),
)
export type PreviewTokenView = z.output<typeof previewTokenSchema>

export interface PreviewDraft {
  name: string | undefined
  displayName?: string
  port: number
  public: boolean
  prefixUrl?: string
  customDomain?: string
  ttl?: string
  expires?: string
  requestHeaders: Record<string, string>
  responseHeaders: Record<string, string>
}

const namePattern = /^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/
const prefixPattern = /^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$/
const domainPattern = /^(?=.{4,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}$/
const headerNamePattern = /^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$/
/** They frame the message or belong to one connection: the gateway's alone. */
const framingHeaders = [
  'connection',
  'content-length',
  'host',
  'keep-alive',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]

/** @throws bad_request that names the field */
export function previewDraft(input: PreviewInput, nowMs: number): PreviewDraft {
  const { metadata, spec } = input
  const name = metadata.name ?? undefined
  if (name !== undefined && !namePattern.test(name)) {
    throw badRequest(
      `metadata.name ${quoted(name)} is not valid: 1 to 63 letters, digits, ".", "_" and "-", beginning and ending with a letter or digit`,
    )
  }
  const prefixUrl = spec.prefixUrl || undefined
  if (prefixUrl !== undefined && !prefixPattern.test(prefixUrl)) {
    throw badRequest(
      `spec.prefixUrl ${quoted(prefixUrl)} is not valid: 1 to ${prefixUrlCharsMax} lower-case letters, digits and hyphens`,
    )
  }
  const customDomain = spec.customDomain?.toLowerCase() || undefined
  if (customDomain !== undefined && !domainPattern.test(customDomain)) {
    throw badRequest(`spec.customDomain ${quoted(customDomain)} is not a domain name like app.example.com`)
  }
  const ttl = spec.ttl || undefined
  if (ttl !== undefined) parseDuration('spec.ttl', ttl)
  const expires = spec.expires || undefined
  if (expires !== undefined) {
    const at = parseDateMs(expires)
    if (at === null)
      throw badRequest(`spec.expires: ${quoted(expires)} is not a date like 2030-12-31T23:59:59Z`)
    if (at <= nowMs) {
      throw badRequest(
        `spec.expires: ${quoted(expires)} is in the past; it is ${new Date(nowMs).toISOString()} now`,
      )
    }
  }
  return {
    name,
    ...(metadata.displayName ? { displayName: metadata.displayName.slice(0, 63) } : {}),
    port: portOf(spec.port),
    public: spec.public ?? false,
    ...(prefixUrl === undefined ? {} : { prefixUrl }),
    ...(customDomain === undefined ? {} : { customDomain }),
    ...(ttl === undefined ? {} : { ttl }),
    ...(expires === undefined ? {} : { expires }),
    requestHeaders: headersOf('spec.requestHeaders', spec.requestHeaders ?? {}),
    responseHeaders: headersOf('spec.responseHeaders', spec.responseHeaders ?? {}),
  }
}

function portOf(port: number | null | undefined): number {
  if (port === null || port === undefined) throw badRequest('spec.port: a preview needs the port it shows')
  if (port < 1 || port > 65535) throw badRequest(`spec.port: ${port} is not a port, allowed are 1 to 65535`)
  if (port !== sandboxApiPort && reservedPorts.includes(port)) {
    throw badRequest(
      `spec.port: ${port} is reserved by the platform, for the sandbox's own API: let the server listen on another port, such as 3000`,
    )
  }
  return port
}

function headersOf(field: string, headers: Record<string, string>): Record<string, string> {
  const entries = Object.entries(headers)
  if (entries.length > previewHeadersMax) {
    throw badRequest(`${field}: ${entries.length} headers, at most ${previewHeadersMax}`)
  }
  for (const [name, value] of entries) {
    if (!headerNamePattern.test(name)) throw badRequest(`${field}: ${quoted(name)} is not a header name`)
    if (framingHeaders.includes(name.toLowerCase()))
      throw badRequest(`${field}: ${quoted(name)} cannot be set`)
    if (!/^[\t\x20-\x7e\x80-\xff]*$/.test(value)) {
      throw badRequest(`${field}: the value of ${quoted(name)} has characters that no header can carry`)
    }
    if (value.length > previewHeaderBytesMax) {
      throw badRequest(`${field}: the value of ${quoted(name)} is longer than ${previewHeaderBytesMax} bytes`)
    }
  }
  return headers
}
