import { findBrowser } from './browser.ts'
import { capture } from './capture.ts'

/** Installs what the tests of pages need: Debian's Chromium. Without it they are skipped. */

if (findBrowser() !== null) {
  console.log(`there is a browser: ${findBrowser()}`)
} else {
  for (const argv of [
    ['apt-get', 'update'],
    ['apt-get', 'install', '--yes', '--no-install-recommends', 'chromium', 'fonts-dejavu-core'],
  ]) {
    const { code, stderr } = await capture(argv, {
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    })
    if (code !== 0) {
      console.error(`${argv.join(' ')} exited with ${code}: ${stderr.trim()}`)
      process.exit(1)
    }
  }
  console.log(`installed ${findBrowser()}`)
}
