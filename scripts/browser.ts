import type { Browser } from 'playwright-core'

const launchTimeoutMs = 60_000

/** The browser of this host that tests of pages run in; null when there is none. */
export function findBrowser(): string | null {
  return (
    process.env.CHROMIUM ??
    Bun.which('chromium') ??
    Bun.which('chromium-browser') ??
    Bun.which('google-chrome')
  )
}

export async function openBrowser(path: string): Promise<Browser> {
  const { chromium } = await import('playwright-core')
  // As root, and in containers, Chromium has neither its own sandbox nor room in /dev/shm.
  const args = ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu']
  return await chromium.launch({ executablePath: path, args, timeout: launchTimeoutMs })
}
