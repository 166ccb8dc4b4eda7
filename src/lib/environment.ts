/** Environment variables as clients send and read them. */
import { badRequest, quoted } from './checks.ts'

const envsMax = 512
const envNameCharsMax = 256
/** Longest single `NAME=value` that Linux lets a program start with. */
const envBytesMax = 128 * 1024 - 1
/** All of them together: they travel to the instance in one message of at most 1 MiB. */
const envTotalBytesMax = 512 * 1024

/** Stands for every value of an environment variable in answers. Sent back, it leaves the value as it is. */
export const maskedValue = '********'

export type EnvInput = { name: string; value?: string | null; secret?: boolean | null }[]

/** What is told of a variable. */
export interface EnvEntry {
  name: string
  secret?: boolean
}

/**
 * Splits what a client sent into what is told and what is kept secret; `field` names it in messages. A value that is
 * masked stays what it is in `previous`. @throws bad_request
 */
export function envsOf(
  field: string,
  given: EnvInput,
  previous: Record<string, string> | null,
): { envs: EnvEntry[]; env: Record<string, string> } {
  if (given.length > envsMax) throw badRequest(`${field}: ${given.length} variables, at most ${envsMax}`)
  const envs = new Map<string, EnvEntry>()
  const env: Record<string, string> = Object.create(null)
  let totalBytes = 0
  for (const { name, value, secret } of given) {
    if (name === '' || name.length > envNameCharsMax || /[=\0]/.test(name)) {
      throw badRequest(
        `${field}: the name ${quoted(name)} is not valid: 1 to ${envNameCharsMax} characters without "="`,
      )
    }
    const masked = value === maskedValue && previous !== null && Object.hasOwn(previous, name)
    const text = masked ? previous[name]! : (value ?? '')
    if (text.includes('\0'))
      throw badRequest(`${field}: the value of ${quoted(name)} has a NUL character in it`)
    const bytes = Buffer.byteLength(name) + Buffer.byteLength(text) + 1
    if (bytes > envBytesMax) {
      throw badRequest(`${field}: ${quoted(name)} takes ${bytes} bytes, at most ${envBytesMax}`)
    }
    totalBytes += bytes
    envs.set(name, secret ? { name, secret } : { name })
    env[name] = text
  }
  if (totalBytes > envTotalBytesMax) {
    throw badRequest(`${field}: ${totalBytes} bytes in all, at most ${envTotalBytesMax}`)
  }
  return { envs: [...envs.values()], env: { ...env } }
}

export function sameEnv(left: Record<string, string>, right: Record<string, string>): boolean {
  const names = Object.keys(left)
  return (
    names.length === Object.keys(right).length &&
    names.every((name) => Object.hasOwn(right, name) && right[name] === left[name])
  )
}
