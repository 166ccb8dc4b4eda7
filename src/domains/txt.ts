/** Of a look for a TXT record, which somebody waits for. */
const txtTimeoutMs = 3_000
const txtTries = 2

/** With the resolvers of this host. */
export async function lookUpTxt(name: string): Promise<string[][]> {
  const { Resolver } = await import('node:dns/promises')
  return await new Resolver({ timeout: txtTimeoutMs, tries: txtTries }).resolveTxt(name)
}
