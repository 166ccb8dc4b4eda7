import { type Client, ClientError } from '../client/index.ts'

const triesMax = 5
const backoffMs = 1_000

/**
 * Sends an archive. An address is good for one try: after one that failed `again` asks for another.
 * @throws ClientError of the last try
 */
export async function upload(
  client: Client,
  archive: { path: string; contentType: string },
  address: string,
  again: () => Promise<string | null>,
): Promise<void> {
  let url: string | null = address
  for (let attempt = 1; ; attempt++) {
    try {
      if (url === null) throw new ClientError(0, 'the platform named no address for the archive')
      return await client.uploads.send(url, Bun.file(archive.path), archive.contentType)
    } catch (error) {
      if (!(error instanceof ClientError) || !isWorthAnother(error) || attempt >= triesMax) throw error
      await Bun.sleep(backoffMs * 2 ** (attempt - 1))
      url = await again()
    }
  }
}

/** What was wrong with the archive is wrong with it the next time, too. */
function isWorthAnother({ status }: ClientError): boolean {
  return status === 0 || status >= 500 || [404, 408, 410, 429].includes(status)
}
