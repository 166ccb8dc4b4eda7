/** Whether a key is like a pattern, in which `*` stands for any text, also none. Takes time in proportion to both. */
export function matchesPattern(pattern: string, key: string): boolean {
  const parts = pattern.split('*')
  const first = parts[0]!
  if (parts.length === 1) return key === first
  const last = parts.at(-1)!
  if (key.length < first.length + last.length || !key.startsWith(first) || !key.endsWith(last)) return false
  const end = key.length - last.length
  let at = first.length
  for (const part of parts.slice(1, -1)) {
    const found = key.indexOf(part, at)
    if (found < 0 || found + part.length > end) return false
    at = found + part.length
  }
  return true
}
