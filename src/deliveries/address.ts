import { badRequest, checkText, quoted } from '../lib/checks.ts'

const urlCharactersMax = 2048
/** Together they fit into what is noted of a delivery, with what came of it. */
const headersMax = 20
const headerCharactersMax = 512
const headerName = /^[\w!#$%&'*+.^`|~-]+$/
const headerValue = /^[\t\x20-\x7e\x80-\xff]*$/

/**
 * An address for callbacks, read as far as that is possible without a look at the network. @throws bad_request that
 * names `field`
 */
export function callbackUrl(field: string, address: string): string {
  checkText(field, address, urlCharactersMax)
  let url: URL
  try {
    url = new URL(address)
  } catch {
    throw badRequest(`${field}: ${quoted(address)} is not an address such as https://example.com/callback`)
  }
  if (url.protocol !== 'https:' && url.protocol !== 'http:')
    throw badRequest(`${field}: ${quoted(url.protocol)} is not http: or https:`)
  // Not repeated: it may be a password.
  if (url.username !== '' || url.password !== '')
    throw badRequest(
      `${field}: an address with a user name or a password in it; callbacks are signed instead`,
    )
  if (url.hash !== '')
    throw badRequest(`${field}: an address with a fragment (${quoted(url.hash)}), which is never sent`)
  return address
}

/** Headers that a client wants sent with callbacks. @throws bad_request that names `field` */
export function checkHeaders(field: string, headers: Record<string, string>): void {
  const entries = Object.entries(headers)
  if (entries.length > headersMax) throw badRequest(`${field}: ${entries.length}, at most ${headersMax}`)
  for (const [name, value] of entries) {
    if (name.length > headerCharactersMax || value.length > headerCharactersMax)
      throw badRequest(`${field}: a name or value of more than ${headerCharactersMax} characters`)
    if (!headerName.test(name)) throw badRequest(`${field}: ${quoted(name)} is not a name of a header`)
    // Not repeated: it may be a password.
    if (!headerValue.test(value))
      throw badRequest(`${field}: the value of ${quoted(name)} has characters that no header can have`)
  }
}
