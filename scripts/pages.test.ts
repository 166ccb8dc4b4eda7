import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import type { Browser, Page } from 'playwright-core'
import { temporaryDataDir } from '../src/platform.ts'
import { openTestClient, type TestClient } from '../src/test-client.ts'
import { findBrowser, openBrowser } from './browser.ts'
import { buildPages } from './build-pages.ts'

/** The pages of the platform, in a real browser. `bun scripts/install-browser.ts` gets one. */

const browserPath = findBrowser()
if (browserPath === null)
  console.warn('skipped: no browser on this host, bun scripts/install-browser.ts installs one')

describe.skipIf(browserPath === null)('pages', () => {
  let client: TestClient
  let browser: Browser
  let address: string
  let token: string

  beforeAll(async () => {
    await buildPages()
    client = await openTestClient({ dataDir: temporaryDataDir, runtime: 'process' })
    const sandbox = await client.SandboxInstance.create({
      name: 'pages',
      envs: [{ name: 'SHELL', value: '/bin/sh' }],
    })
    address = (sandbox.metadata as { url?: string }).url ?? ''
    token = client.platform.credentials.apiKey
    browser = await openBrowser(browserPath ?? '')
  }, 60_000)

  afterAll(async () => {
    await browser?.close()
    await client?.[Symbol.asyncDispose]()
  }, 60_000)

  /** A page, and what went wrong in it. */
  async function visit(
    url: string,
    options: { dark?: boolean } = {},
  ): Promise<{ page: Page; problems: string[] }> {
    const page = await browser.newPage({
      viewport: { width: 1000, height: 600 },
      colorScheme: options.dark ? 'dark' : 'light',
    })
    const problems: string[] = []
    page.on('pageerror', (error) => problems.push(String(error)))
    page.on('console', (message) => message.type() === 'error' && problems.push(message.text()))
    page.on('request', (request) => {
      if (new URL(request.url()).host !== new URL(url).host) problems.push(`asks ${request.url()}`)
    })
    await page.goto(url)
    return { page, problems }
  }

  const screen = (page: Page) => page.locator('.xterm-rows')

  test('the terminal page is a terminal: typed, sized, reset by a reload, and told of its end', async () => {
    const { page, problems } = await visit(`${address}/terminal?token=${token}&sessionId=page`, {
      dark: true,
    })
    await page.getByRole('status').filter({ hasText: 'Connected' }).waitFor()
    await page.keyboard.type('echo $((40+2)) kept; stty size\n')
    await screen(page).getByText('42 kept', { exact: true }).waitFor()
    const size = (await page.locator('#size').textContent()) ?? ''
    const [cols, rows] = size.split(' x ')
    await screen(page).getByText(`${rows} ${cols}`, { exact: true }).waitFor()
    await page.setViewportSize({ width: 700, height: 400 })
    await page.locator('#size').filter({ hasNotText: size }).waitFor()
    const [smallCols, smallRows] = ((await page.locator('#size').textContent()) ?? '').split(' x ')
    await page.keyboard.type('clear; stty size\n')
    await screen(page).getByText(`${smallRows} ${smallCols}`, { exact: true }).waitFor()
    await page.keyboard.type('echo over-$((1+1))\n')
    await screen(page).getByText('over-2', { exact: true }).waitFor()
    await page.reload()
    await screen(page).getByText('over-2', { exact: true }).waitFor()
    await page.keyboard.type('exit\n')
    await page.getByText('Shell exited.').waitFor()
    await page.getByRole('button', { name: 'Start a new shell' }).click()
    await page.getByRole('status').filter({ hasText: 'Connected' }).waitFor()
    await page.keyboard.type('echo new-$((2+2))\n')
    await screen(page).getByText('new-4', { exact: true }).waitFor()
    expect(problems).toEqual([])
    await page.close()
  }, 60_000)

  test('in light and in dark it has colours of its own', async () => {
    const grounds = []
    for (const dark of [false, true]) {
      const { page } = await visit(`${address}/terminal?token=${token}&sessionId=colours`, { dark })
      await page.getByRole('status').filter({ hasText: 'Connected' }).waitFor()
      grounds.push(await page.evaluate(() => getComputedStyle(document.body).backgroundColor))
      await page.close()
    }
    expect(grounds).toEqual(['rgb(251, 250, 248)', 'rgb(20, 22, 26)'])
  }, 60_000)
})
