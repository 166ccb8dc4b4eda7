/** Credentials of registries in a project's own settings: a build may use them, no image has them. */
import { isSecretName } from '../lib/redact.ts'

/** Shorter ones are in everything. */
const secretBytesMin = 8
/** Who has a word for a secret would have it painted over in every program that says it. */
const plainWord = /^[a-z]{1,10}$/i
const publicPrefix = /^(?:NEXT_PUBLIC_|VITE_|PUBLIC_|REACT_APP_|EXPO_PUBLIC_|NUXT_PUBLIC_|GATSBY_)/
const npmSecret = /^\s*[^#;=]*(?:_auth|_authToken|_password|:username|:email|_secret)\s*=\s*(.*)$/i
const yarnSecret = /^\s*["']?(?:npmAuthToken|npmAuthIdent)["']?\s*:\s*(.*)$/
const bunSecret = /\b(token|password|username)(\s*=\s*)"(?!\$)[^"]*"/g
const urlSecret = /(\b[a-z][a-z0-9+.-]*:\/\/)[^\s/@"']+@/gi
/** What names a variable says nothing of its value. */
const variable = /^["']?\$\{?\w+(?:[:-][^}]*)?\}?["']?$/

const withUrls =
  /(?:^|\/)(?:\.npmrc|\.yarnrc|\.yarnrc\.yml|bunfig\.toml|pip\.conf|uv\.toml|uv\.lock|pyproject\.toml|setup\.cfg|package\.json|package-lock\.json|npm-shrinkwrap\.json|pnpm-lock\.yaml|yarn\.lock|bun\.lock|[\w.-]*(?:requirements|constraints)[\w.-]*\.(?:txt|in))$/

/** The file without credentials; null when it has none. */
export function withoutCredentials(path: string, content: Uint8Array): Uint8Array | null {
  if (!withUrls.test(path)) return null
  // By bytes, whatever the encoding.
  const text = Buffer.from(content).toString('latin1')
  const name = path.slice(path.lastIndexOf('/') + 1)
  let clean = text
  if (name === '.npmrc' || name === '.yarnrc') clean = withoutLines(clean, npmSecret)
  if (name === '.yarnrc.yml') clean = withoutLines(clean, yarnSecret)
  if (name === 'bunfig.toml') clean = clean.replace(bunSecret, '$1$2""')
  clean = clean.replace(urlSecret, (whole, scheme: string) =>
    whole.includes('${') || isGitUser(whole) ? whole : scheme,
  )
  return clean === text ? null : Buffer.from(clean, 'latin1')
}

/** Secrets that such a file has in it, for the log to leave out. */
export function credentialsIn(path: string, content: Uint8Array): string[] {
  if (!withUrls.test(path)) return []
  const text = Buffer.from(content).toString('latin1')
  const found: string[] = []
  for (const line of text.split('\n')) {
    const value = (npmSecret.exec(line) ?? yarnSecret.exec(line))?.[1]?.trim().replace(/^["']|["']$/g, '')
    if (value && !variable.test(value)) found.push(value)
  }
  for (const [whole] of text.matchAll(urlSecret)) {
    const user = whole.slice(whole.indexOf('://') + 3, -1)
    const password = user.includes(':') ? user.slice(user.indexOf(':') + 1) : user
    if (!isGitUser(whole)) found.push(decoded(password))
  }
  if (path.endsWith('bunfig.toml'))
    for (const [whole] of text.matchAll(bunSecret)) found.push(whole.replace(/^[^"]*"|"$/g, ''))
  return found
}

/**
 * What a program of the build made, without the secrets that it was given: a package may write down whatever it finds.
 * Each is painted over in its length.
 */
export async function* withoutSecrets(
  content: AsyncIterable<Uint8Array>,
  secrets: readonly string[],
  found: () => void,
): AsyncGenerator<Uint8Array> {
  const needles = secrets
    .filter((secret) => !plainWord.test(secret))
    .map((secret) => Buffer.from(secret))
    .filter(({ length }) => length >= secretBytesMin)
  if (needles.length === 0) {
    yield* content
    return
  }
  const overlap = Math.max(...needles.map(({ length }) => length)) - 1
  let rest = Buffer.alloc(0)
  for await (const chunk of content) {
    const bytes = Buffer.concat([rest, chunk])
    for (const needle of needles) {
      for (let at = bytes.indexOf(needle); at >= 0; at = bytes.indexOf(needle, at + needle.length)) {
        bytes.fill('*', at, at + needle.length)
        found()
      }
    }
    const sure = Math.max(0, bytes.length - overlap)
    if (sure > 0) yield bytes.subarray(0, sure)
    rest = bytes.subarray(sure)
  }
  if (rest.length > 0) yield rest
}

/** Of variables of a build those that are to be in no image: what frameworks put into pages is meant to be read. */
export function buildSecretsOf(variables: Record<string, string>): string[] {
  return Object.entries(variables)
    .filter(([name]) => isSecretName(name) && !publicPrefix.test(name))
    .map(([, value]) => value)
}

/** `git+ssh://git@host/` names a user that everybody is. */
function isGitUser(url: string): boolean {
  return /:\/\/git@$/.test(url)
}

function withoutLines(text: string, pattern: RegExp): string {
  return text
    .split('\n')
    .filter((line) => {
      const match = pattern.exec(line)
      return match === null || variable.test(match[1]?.trim() ?? '')
    })
    .join('\n')
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
