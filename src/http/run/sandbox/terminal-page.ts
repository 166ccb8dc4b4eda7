import { PlatformError } from '../../../errors.ts'
import { escapeHtml, ownPage } from '../../page.ts'
import { apiHeaders } from './call.ts'

/**
 * The page of scripts/build-pages.ts: one document with all its styles and scripts inside. It reads where it is from its
 * own address, and passes on what that has in its query.
 */
export async function terminalPage(sandbox: string): Promise<Response> {
  const page = (await template()).replaceAll('{{sandbox}}', escapeHtml(sandbox))
  return ownPage(page, { headers: apiHeaders, connects: true })
}

async function template(): Promise<string> {
  try {
    const { default: page } = await import('../../../../dist/terminal.html', { with: { type: 'text' } })
    return page as unknown as string
  } catch (cause) {
    throw new PlatformError('unavailable', 'the terminal page was not built: run npm run build', { cause })
  }
}
