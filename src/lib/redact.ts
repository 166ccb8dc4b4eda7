/** Longer text is cut before it is looked at, so that a line costs what a line may cost. */
export const redactTextCharsMax = 8 * 1024
const nameCharsMax = 64

const mark = '[redacted]'

/** Whether what goes by this name (a field, a header, a query parameter) is a secret. */
export function isSecretName(name: string): boolean {
  return name.length <= nameCharsMax && secretName.test(name)
}

const secretName =
  /(?:token|key|secret|password|passwd|signature|authorization|cookie|credentials?|private_?key|passphrase)$/i

/**
 * The text without its secrets: values of secret parameters and fields, headers that carry credentials, API keys,
 * JSON web tokens, passwords in addresses, and whatever follows the second segment of a `/-/` path, where
 * capability addresses live. Costs time linear in the text.
 */
export function redact(text: string): string {
  let safe = text.length <= redactTextCharsMax ? text : cut(text, redactTextCharsMax)
  // Most lines hold none of the characters that every rule needs.
  if (!/[=:/%]|eyJ|bl[sr]?_|bearer|basic/i.test(safe)) return safe
  safe = safe.replace(capabilityPath, `$1/${mark}`)
  safe = safe.replace(userInfo, `://${mark}@`)
  safe = safe.replace(headerLine, `$1${mark}`)
  safe = redactPairs(safe)
  safe = safe.replace(scheme, `$1 ${mark}`)
  return safe.replace(webToken, mark).replace(apiKey, mark)
}

export function cut(text: string, charsMax: number): string {
  if (text.length <= charsMax) return text
  return `${text.slice(0, charsMax).toWellFormed()}... (${text.length - charsMax} more characters)`
}

// A slash, a dash and a question mark may come percent-encoded, as an address within an address does.
const capabilityPath = /((?:\/|%2f)(?:-|%2d)(?:\/|%2f)+[^\s/?#"]*?)(?:[/?]|%2f|%3f)[^\s"]*/gi
const userInfo = /:\/\/[^\s/@"]{1,512}@/g
const headerLine =
  /\b((?:proxy-|x-blaxel-)?authorization["']?\s{0,4}[:=]\s{0,4}|(?:x-api-key|x-blaxel-preview-token|(?:set-)?cookie)["']?\s{0,4}:\s{0,4})[^\r\n]+/gi
const scheme = /\b(bearer|basic)\s{1,4}[^\s"',;]{6,}/gi
const webToken = /eyJ[\w-]{8,}[\w.-]*/g
const apiKey = /bl[sr]?_(?!preview_token\b)[\w-]{6,}/g

/** `name=value`, as in addresses, forms and environments, and `"name": "value"`, as in JSON, escaped or not. */
const pairName =
  /(?:(?<=^|[?&;,\s("'{[]|%3f|%26)([^\s=&?#"';,:(){}[\]]{1,64}?)(?:=|%3d))|(?:(?<![\w-])([^"'\\\s:=&?{}[\],]{1,64})\\?["']?\s{0,4}:\s{0,4}(\\?["']))/gi
const parameterEnd = /[&#\s"]/g
const stringEnds: Record<string, RegExp> = {
  '"': /(?:[^"\\]|\\.)*/sy,
  "'": /(?:[^'\\]|\\.)*/sy,
}
const escapedStringEnd = /\\["']|"/g

function redactPairs(text: string): string {
  let safe = ''
  let copied = 0
  pairName.lastIndex = 0
  for (let match = pairName.exec(text); match; match = pairName.exec(text)) {
    const [whole, parameter, field, quote = ''] = match
    const name = parameter ?? field ?? ''
    if (!isSecretName(decodeName(name))) {
      // A value that is no secret may still hold pairs, an address among them. So may what looks like the name of a
      // field, when it is encoded; as names are short, looking through it again costs little.
      if (field?.includes('%')) pairName.lastIndex = match.index + 1
      else if (field !== undefined) pairName.lastIndex = match.index + whole.length - 1
      continue
    }
    const from = match.index + whole.length
    const to = parameter !== undefined ? endOf(parameterEnd, text, from) : stringEndOf(text, from, quote)
    safe += text.slice(copied, from) + mark
    copied = to
    pairName.lastIndex = to
  }
  return copied === 0 ? text : safe + text.slice(copied)
}

function endOf(pattern: RegExp, text: string, from: number): number {
  pattern.lastIndex = from
  return pattern.exec(text)?.index ?? text.length
}

function stringEndOf(text: string, from: number, quote: string): number {
  const pattern = stringEnds[quote]
  if (!pattern) return endOf(escapedStringEnd, text, from)
  pattern.lastIndex = from
  return from + (pattern.exec(text)?.[0].length ?? 0)
}

/** A server decodes names, so `%74oken` is a token, too. */
function decodeName(name: string): string {
  if (!name.includes('%')) return name
  try {
    return decodeURIComponent(name)
  } catch {
    return name
  }
}
