import { PlatformError } from '../errors.ts'
import type { Dialer, DialerAnswer } from '../lib/dialer.ts'
import { MorphProvider } from './morph.ts'
import { RelaceProvider } from './relace.ts'

/** A change to a text, for a model that merges. */
export interface Edit {
  code: string
  /** The new lines, with comments in place of what stays. */
  edit: string
  /** One sentence on what the change is. */
  instructions?: string
  /** Default: the provider's, or what the sandbox's environment names. */
  model?: string
  /** Ask the best model there is, since another failed. */
  best?: boolean
  signal: AbortSignal
}

export interface SourceText {
  path: string
  content: string
}

export interface RankedFile {
  path: string
  /** 0 to 1. */
  score: number
}

/** An outside account that merges edits and ranks files. */
export interface CodegenProvider {
  readonly name: 'Morph' | 'Relace'
  /** The whole new text. @throws unprocessable when the provider refused, failed or answered nonsense */
  apply(edit: Edit): Promise<string>
  /** Best first. @throws as `apply` */
  rank(
    query: string,
    files: SourceText[],
    options: { tokens: number; signal: AbortSignal },
  ): Promise<RankedFile[]>
}

export type Environment = Readonly<Record<string, string | undefined>>

/** A sandbox's environment, and which of it a user gave: their address may be this machine itself. */
export interface ProviderSettings {
  readonly env: Environment
  readonly userVariables: ReadonlySet<string>
}

export type ProviderDialer = Pick<Dialer, 'request'>

/** By the keys in a sandbox's environment; Relace wins. Null when there is none. */
export function configuredProvider(
  { env, userVariables }: ProviderSettings,
  dialer: ProviderDialer,
): CodegenProvider | null {
  const reaching = (variable: string): ProviderDialer => {
    const loopback = userVariables.has(variable)
    return { request: (url, request) => dialer.request(url, { ...request, loopback }) }
  }
  if (env.RELACE_API_KEY) return new RelaceProvider(env.RELACE_API_KEY, env, reaching('RELACE_BASE_URL'))
  if (env.MORPH_API_KEY) return new MorphProvider(env.MORPH_API_KEY, env, reaching('MORPH_BASE_URL'))
  return null
}

export function notConfigured(): PlatformError {
  return new PlatformError(
    'bad_request',
    "codegen tools are not configured: set RELACE_API_KEY or MORPH_API_KEY in the sandbox's environment when it is created",
  )
}

const requestTimeoutMs = 90_000
const answerBytesMax = 32 * 1024 * 1024
const reasonCharsMax = 300

/** One request to a provider, its JSON answer. @throws unprocessable that says who refused and why */
export async function ask(
  dialer: ProviderDialer,
  request: { what: string; variable: string; key: string; url: string; body: object; signal: AbortSignal },
): Promise<Record<string, unknown>> {
  const { what, key, url, body, signal } = request
  let answer: DialerAnswer
  try {
    answer = await dialer.request(url, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${key}`,
        'content-type': 'application/json',
        accept: 'application/json',
      },
      body: JSON.stringify(body),
      signal,
      timeoutMs: requestTimeoutMs,
      bodyBytesMax: answerBytesMax,
      what,
    })
  } catch (error) {
    // Not the sandbox's gateway that failed: a client would only ask again, and pay again.
    if (!PlatformError.is(error) || error.code !== 'bad_gateway') throw error
    throw new PlatformError('unprocessable', error.message, { cause: error.cause })
  }
  if (answer.status < 200 || answer.status > 299) throw refused(request, answer)
  const parsed = parseObject(answer.body)
  if (parsed) return parsed
  throw new PlatformError('unprocessable', `${what} answered something that is not JSON`)
}

function refused(
  { what, variable, key }: { what: string; variable: string; key: string },
  { status, body }: DialerAnswer,
): PlatformError {
  if (status === 401 || status === 403) {
    return new PlatformError('unprocessable', `${what} refused the key in ${variable} (${status})`)
  }
  const said = reasonIn(body).replaceAll(key, '***').slice(0, reasonCharsMax)
  return new PlatformError('unprocessable', `${what} answered ${status}${said === '' ? '' : `: ${said}`}`)
}

function reasonIn(body: string): string {
  const { error, message, detail } = parseObject(body) ?? {}
  const inner = typeof error === 'object' && error !== null ? (error as { message?: unknown }).message : error
  const said = [inner, message, detail].find((text) => typeof text === 'string') as string | undefined
  return (said ?? '').replace(/\s+/g, ' ')
}

function parseObject(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : null
  } catch {
    return null
  }
}

/** The address of an API, without a slash at its end. */
export function baseUrl(configured: string | undefined, fallback: string): string {
  return (configured || fallback).replace(/\/+$/, '')
}

/** A merged text that may take the place of the old one. @throws unprocessable */
export function checkedMerge(what: string, before: string, merged: unknown): string {
  if (typeof merged !== 'string') {
    throw new PlatformError('unprocessable', `${what} answered without a merged text`)
  }
  if (merged.trim() === '' && before.trim() !== '') {
    throw new PlatformError(
      'unprocessable',
      `${what} answered with an empty text: the file is left as it was`,
    )
  }
  // Models tend to lose the last line break.
  return before.endsWith('\n') && !merged.endsWith('\n') ? `${merged}\n` : merged
}
