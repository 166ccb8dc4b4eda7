/** Checks of what clients send. Each answers its value as it is, or throws a bad_request that names the field. */
import { PlatformError } from '../errors.ts'

const shownCharsMax = 80
const labelsMax = 64
const labelNameCharsMax = 128
const labelValueCharsMax = 1024
const displayNameCharsMax = 63
const namePattern = /^[a-z0-9](?:[a-z0-9-]{0,47}[a-z0-9])?$/
const regionPattern = /^[a-z0-9][a-z0-9-]{0,62}$/

/** Of a resource. */
export function checkName(name: string): string {
  if (namePattern.test(name)) return name
  throw badRequest(
    `metadata.name ${quoted(name)} is not valid: 1 to 49 lower-case letters, digits and hyphens, beginning and ending with a letter or digit`,
  )
}

export function checkDisplayName(name: string): string {
  return checkText('metadata.displayName', name, displayNameCharsMax)
}

export function checkRegion(region: string): string {
  return checkPattern('spec.region', region, regionPattern, 'a name like eu-lon-1')
}

/** YAML writes numbers and booleans where text is meant. */
export function checkLabels(given: Record<string, string | number | boolean>): Record<string, string> {
  const entries = Object.entries(given)
  if (entries.length > labelsMax)
    throw badRequest(`metadata.labels: ${entries.length} labels, at most ${labelsMax}`)
  return Object.fromEntries(
    entries.map(([name, value]) => {
      checkText(`metadata.labels: the name ${quoted(name)}`, name, labelNameCharsMax)
      if (name === '') throw badRequest('metadata.labels: a label without a name')
      return [
        name,
        checkText(`metadata.labels.${name.slice(0, shownCharsMax)}`, String(value), labelValueCharsMax),
      ]
    }),
  )
}

export function checkRange(field: string, value: number, min: number, max: number): number {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw badRequest(`${field}: ${value} is out of range, allowed are whole numbers from ${min} to ${max}`)
  }
  return value
}

export function checkText(field: string, text: string, charsMax: number): string {
  if (text.length > charsMax)
    throw badRequest(`${field} is ${text.length} characters long, at most ${charsMax}`)
  if (hasControlCharacter(text)) throw badRequest(`${field} has control characters in it`)
  return text
}

export function checkPattern(field: string, text: string, pattern: RegExp, right: string): string {
  if (!pattern.test(text)) throw badRequest(`${field}: ${quoted(text)} is not ${right}`)
  return text
}

export function badRequest(message: string): PlatformError {
  return new PlatformError('bad_request', message)
}

/** For a message: what somebody sent, cut short. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > shownCharsMax ? `${text.slice(0, shownCharsMax)}...` : text)
}

function hasControlCharacter(text: string): boolean {
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index)
    if (code < 32 || code === 127) return true
  }
  return false
}
