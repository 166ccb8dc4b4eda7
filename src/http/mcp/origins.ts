/**
 * May a page of this origin call a server that asked for no credential? Only the server's own pages, and this
 * machine's: any other could have been led here by a name that resolves to it. Requests without an Origin come from
 * programs, not from pages.
 */
export function originAllowed(request: Request): boolean {
  const origin = request.headers.get('origin')
  if (origin === null) return true
  let url: URL
  try {
    url = new URL(origin)
  } catch {
    return false
  }
  if (loopbackNames.has(url.hostname)) return true
  return url.host === request.headers.get('host')?.toLowerCase() && isAddress(url.hostname)
}

const loopbackNames = new Set(['localhost', '127.0.0.1', '[::1]'])

/** A name proves nothing here: whoever owns it may let it resolve to anywhere. */
function isAddress(hostname: string): boolean {
  return /^\d{1,3}(\.\d{1,3}){3}$/.test(hostname) || hostname.startsWith('[')
}
