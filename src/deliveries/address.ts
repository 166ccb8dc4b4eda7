import { badRequest, checkText, quoted } from '../lib/checks.ts'

const urlCharactersMax = 2048

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
