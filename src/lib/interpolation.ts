/** A variable's value, or undefined where it is not set. `secret`: asked for as `$secrets.NAME`. */
export type Lookup = (name: string, secret: boolean) => string | undefined

const name = '[A-Za-z_][A-Za-z0-9_]*'
/** `$secrets.X`, `$secrets.X:default`, `$X`. */
const whole = new RegExp(`^\\$(?:(secrets)\\.(${name})(?::(.*))?|(${name}))$`, 's')
/** `${X}`, `${X:default}`, `${secrets.X}`, `${secrets.X:default}`. */
const braced = new RegExp(`\\$\\{\\s*(secrets\\.)?(${name})(?::([^}]*?))?\\s*\\}`, 'g')

/**
 * `$X`, `${X}`, `${X:default}`, `$secrets.X` and `${secrets.X:default}` replaced by what they stand for: without braces
 * only where a value is nothing else, with braces anywhere in it. What is not set and has no default stays as it is
 * written, and is told to `missing`.
 */
export function interpolate(text: string, lookup: Lookup, missing: (name: string) => void): string {
  const resolve = (secret: boolean, variable: string, fallback: string | undefined): string | null => {
    const value = lookup(variable, secret) ?? (fallback || undefined)
    if (value === undefined) missing(variable)
    return value ?? null
  }
  const match = whole.exec(text)
  if (match) return resolve(match[1] !== undefined, match[2] ?? match[4] ?? '', match[3]) ?? text
  return text.replace(
    braced,
    (written: string, secret: string | undefined, variable: string, fallback: string | undefined) =>
      resolve(secret !== undefined, variable, fallback) ?? written,
  )
}
