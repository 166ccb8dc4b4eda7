export interface SplitUrl {
  /** Undecoded, as everything here; null where there is none. */
  authority: string | null
  /** Begins with a slash. */
  path: string
  /** '', or from the question mark on. */
  search: string
}

/** By hand, for a URL object decodes and tidies what a program inside shall see as it was sent. */
export function splitUrl(url: string): SplitUrl {
  const scheme = url.startsWith('/') ? -1 : url.indexOf('://')
  const start = scheme === -1 ? 0 : scheme + 3
  const hash = url.indexOf('#', start)
  const end = hash === -1 ? url.length : hash
  const question = url.indexOf('?', start)
  const pathEnd = question === -1 || question > end ? end : question
  const slash = url.indexOf('/', start)
  const pathStart = slash === -1 || slash > pathEnd ? pathEnd : slash
  return {
    authority: scheme === -1 ? null : url.slice(start, pathStart),
    path: pathStart === pathEnd ? '/' : url.slice(pathStart, pathEnd),
    search: url.slice(pathEnd, end),
  }
}
