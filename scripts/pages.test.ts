import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import type { Browser, Page } from 'playwright-core'
import { eventually } from '../src/lib/test-eventually.ts'
import { unusedPorts } from '../src/lib/test-ports.ts'
import { temporaryDataDir } from '../src/platform.ts'
import { openTestClient, type TestClient } from '../src/test-client.ts'
import { findBrowser, openBrowser } from './browser.ts'
import { buildPages } from './build-pages.ts'

/** The pages of the platform, in a real browser. `bun scripts/install-browser.ts` gets one. */

const waitMs = 60_000
const browserPath = findBrowser()
const why = await whyNot()
if (why) console.warn(`skipped: ${why}`)

async function whyNot(): Promise<string> {
  if (browserPath === null) return 'no browser on this host, bun scripts/install-browser.ts installs one'
  try {
    // One that is there may lack a library, or only say how it would be installed.
    await (await openBrowser(browserPath)).close()
    return ''
  } catch (error) {
    return `${browserPath} does not start: ${String(error).split('\n', 1)[0]}`
  }
}

describe.skipIf(why !== '')('pages', () => {
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
  }, 120_000)

  afterAll(async () => {
    await browser?.close()
    await client?.[Symbol.asyncDispose]()
  }, 120_000)

  /** A page, and what went wrong in it. */
  async function visit(
    url: string,
    options: { dark?: boolean } = {},
  ): Promise<{ page: Page; problems: string[] }> {
    const page = await browser.newPage({
      viewport: { width: 1000, height: 600 },
      colorScheme: options.dark ? 'dark' : 'light',
    })
    page.setDefaultTimeout(waitMs)
    const problems: string[] = []
    page.on('pageerror', (error) => problems.push(String(error)))
    page.on('console', (message) => message.type() === 'error' && problems.push(message.text()))
    page.on('request', (request) => {
      if (new URL(request.url()).host !== new URL(url).host) problems.push(`asks ${request.url()}`)
    })
    await page.goto(url)
    return { page, problems }
  }

  const noBox = { x: 0, y: 0, width: 0, height: 0 }
  const screen = (page: Page) => page.locator('.xterm-rows')
  const sizeOf = async (page: Page) => (await page.locator('#size').textContent()) ?? ''
  /** Until the program is told the size that the page says: it may change more than once, while a page is laid out. */
  const agreeOnSize = (page: Page) =>
    eventually('the size of the page inside', async () => {
      const [cols, rows] = (await sizeOf(page)).split(' x ')
      await page.keyboard.type('clear; stty size\n')
      const shown = screen(page).getByText(`${rows} ${cols}`, { exact: true })
      return await shown.waitFor({ timeout: 3_000 }).then(
        () => true,
        () => false,
      )
    })

  test('the terminal page is a terminal: typed, sized, reset by a reload, and told of its end', async () => {
    const { page, problems } = await visit(`${address}/terminal?token=${token}&sessionId=page`, {
      dark: true,
    })
    await page.getByRole('status').filter({ hasText: 'Connected' }).waitFor()
    await page.keyboard.type('echo $((40+2)) kept\n')
    await screen(page).getByText('42 kept', { exact: true }).waitFor()
    await agreeOnSize(page)
    const size = await sizeOf(page)
    await page.setViewportSize({ width: 700, height: 400 })
    await page.locator('#size').filter({ hasNotText: size }).waitFor()
    await agreeOnSize(page)
    await eventually('all of it within a smaller window', async () => {
      const { x, y, width, height } = (await page.locator('.xterm-screen').boundingBox()) ?? noBox
      return width > 400 && x + width <= 700 && height > 200 && y + height <= 400
    })
    await agreeOnSize(page)
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
  }, 120_000)

  test('in light and in dark it has colours of its own', async () => {
    const grounds = []
    for (const dark of [false, true]) {
      const { page } = await visit(`${address}/terminal?token=${token}&sessionId=colours`, { dark })
      await page.getByRole('status').filter({ hasText: 'Connected' }).waitFor()
      // Also around the letters, where the terminal has a frame of its own.
      grounds.push(
        ...(await page.evaluate(() =>
          ['body', '.xterm-viewport'].map((part) => {
            const element = document.querySelector(part)
            return element === null ? '' : getComputedStyle(element).backgroundColor
          }),
        )),
      )
      await page.close()
    }
    const [light, dark] = ['rgb(251, 250, 248)', 'rgb(20, 22, 26)']
    expect(grounds).toEqual([light, light, dark, dark])
  }, 120_000)

  test('a login is approved on its page by who types a key, in the form and nowhere else', async () => {
    const { origin } = new URL(address)
    const begun = (await (await fetch(`${origin}/v0/login/device`, { method: 'POST' })).json()) as {
      device_code: string
      verification_uri_complete: string
    }
    const { page, problems } = await visit(begun.verification_uri_complete)
    await page.getByLabel('Your API key').fill('bl_wrong')
    await page.getByRole('button', { name: 'Approve' }).click()
    await page.getByRole('alert').filter({ hasText: 'The API key is not valid' }).waitFor()
    // The browser itself notes an answer of 401.
    expect(problems.filter((problem) => !problem.includes('401'))).toEqual([])
    await page.getByLabel('Your API key').fill(token)
    await page.getByRole('button', { name: 'Approve' }).click()
    await page.getByRole('heading', { name: 'Approved' }).waitFor()
    expect(page.url()).toBe(`${origin}/-/login`)
    const granted = await fetch(`${origin}/oauth/token`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        grant_type: 'urn:ietf:params:oauth:grant-type:device_code',
        device_code: begun.device_code,
      }),
    })
    expect(await granted.json()).toMatchObject({ token_type: 'Bearer' })
    await page.close()
  }, 120_000)

  describe('previews', () => {
    const port = unusedPorts()
    /** A page whose script and socket bring no token of their own. */
    const program = `Bun.serve({ port: ${port}, hostname: '127.0.0.1',
      fetch(request, server) {
        const { pathname } = new URL(request.url)
        if (pathname === '/socket') return server.upgrade(request) ? undefined : new Response('', { status: 400 })
        if (pathname === '/app.js') return new Response(
          "const s = new WebSocket('/socket?token=own'); s.onmessage = (e) => (document.body.textContent = e.data)",
          { headers: { 'content-type': 'text/javascript' } })
        return new Response('<!doctype html><link rel="icon" href="data:,"><body><script src="/app.js"></script>',
          { headers: { 'content-type': 'text/html' } })
      },
      websocket: { open: (socket) => void socket.send('hot'), message() {} } })`

    test('a browser waits for the server, and then has a private page with all that belongs to it', async () => {
      const sandbox = await client.SandboxInstance.get('pages')
      const preview = await sandbox.previews.create({
        metadata: { name: 'app' },
        spec: { port, public: false },
      })
      const { value } = await preview.tokens.create(new Date(Date.now() + 3_600_000))
      const url = preview.spec.url ?? ''
      const { page: refused } = await visit(url)
      await refused.getByRole('heading', { name: 'This preview is private' }).waitFor()
      await refused.close()
      const { page, problems } = await visit(`${url}/?bl_preview_token=${value}`)
      await page.getByRole('heading', { name: `Waiting for port ${port}` }).waitFor()
      await sandbox.process.exec({
        command: `exec ${process.execPath} -e "$PROGRAM"`,
        env: { PROGRAM: program },
        name: 'server',
        waitForPorts: [port],
      })
      await page.getByText('hot', { exact: true }).waitFor()
      await page.goto(`${url}/without-token`)
      await page.getByText('hot', { exact: true }).waitFor()
      // The page that waits is a 502, which the browser notes.
      expect(problems.filter((problem) => !problem.includes('502'))).toEqual([])
      await page.close()
    }, 120_000)

    test('in a frame of somebody else the private page works as well', async () => {
      const sandbox = await client.SandboxInstance.get('pages')
      const preview = await sandbox.previews.get('app')
      const { value } = await preview.tokens.create(new Date(Date.now() + 3_600_000))
      await using other = frameServer(`${preview.spec.url}/?bl_preview_token=${value}`)
      const page = await browser.newPage()
      page.setDefaultTimeout(waitMs)
      await page.goto(`http://localhost:${other.port}/`)
      await page.frameLocator('iframe').getByText('hot', { exact: true }).waitFor()
      await page.close()
    }, 120_000)
  })
})

function frameServer(url: string): { port: number } & AsyncDisposable {
  const server = Bun.serve({
    port: 0,
    fetch: () =>
      new Response(`<!doctype html><iframe src="${url}"></iframe>`, {
        headers: { 'content-type': 'text/html' },
      }),
  })
  return { port: server.port ?? 0, [Symbol.asyncDispose]: () => server.stop(true) }
}
