import type { PlatformError } from '../../errors.ts'
import { ownPage } from '../page.ts'

/** What a person sees in a browser where a program gets an error as JSON. */

const retrySeconds = 2

export interface Message {
  title: string
  /** HTML. */
  lines: string[]
  waits?: boolean
  /** HTML below the lines. */
  form?: string
}

/** Whether a person asks, by a browser. */
export function wantsPage(request: Request): boolean {
  return request.method === 'GET' && (request.headers.get('accept') ?? '').includes('text/html')
}

/** Of a preview; `port`: of the server it leads to. Null for a failure that says more as it is. */
export function gatewayPage(error: PlatformError, port: number | null): Response | null {
  return pageOf(error, messageOf(error, port))
}

/** Of an application at a host of its own. Null for a failure that says more as it is. */
export function applicationPage(error: PlatformError): Response | null {
  return pageOf(error, applicationMessageOf(error))
}

function pageOf(error: PlatformError, message: Message | null): Response | null {
  if (message === null) return null
  const headers: Record<string, string> = {
    'cache-control': 'no-store',
    'x-blaxel-source': 'platform',
    'x-blaxel-error-code': error.code.toUpperCase(),
  }
  if (message.waits) headers['retry-after'] = String(retrySeconds)
  return ownPage(documentOf(message), { status: error.status, headers })
}

/** A message as a document that brings everything along. */
export function documentOf({ title, lines, waits = false, form = '' }: Message): string {
  const refresh = waits ? `<meta http-equiv="refresh" content="${retrySeconds}">` : ''
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
${refresh}<title>${title}</title>
<style>${styles}</style>
</head>
<body>
<main>
${waits ? waiting : still}
<h1>${title}</h1>
${lines.map((line) => `<p>${line}</p>`).join('\n')}
${form}
${waits ? `<p class="quiet">Looks again every ${retrySeconds} seconds.</p>` : ''}
</main>
</body>
</html>
`
}

function messageOf(error: PlatformError, port: number | null): Message | null {
  switch (error.code) {
    case 'bad_gateway':
      if (error.details?.reason === 'port_closed') {
        return {
          title: `Waiting for port ${port}`,
          lines: [
            'The sandbox runs, but no server in it answers on this port yet.',
            `Start one that listens on <code>0.0.0.0</code> or <code>localhost</code>, for example
<code class="line">npm run dev -- --port ${port}</code>`,
          ],
          waits: true,
        }
      }
      return {
        title: `Port ${port} hung up`,
        lines: [
          'The server in the sandbox closed the connection before its answer was complete.',
          'Its output may say why.',
        ],
        waits: true,
      }
    case 'authentication_required':
    case 'authentication_failed':
      return {
        title: 'This preview is private',
        lines: [
          error.code === 'authentication_required'
            ? 'It opens with a token in its address:'
            : 'The token in this address is wrong, was deleted or has expired. Ask for a new one:',
          '<code class="line">?bl_preview_token=...</code>',
        ],
      }
    case 'route_not_found':
      return { title: 'No such preview', lines: ['It was deleted, has ended or never was.'] }
    case 'workload_not_found':
      return {
        title: 'The sandbox is gone',
        lines: ['It was deleted or has ended, and this preview with it.'],
      }
    case 'workload_unavailable':
      // What has advice of its own waits for somebody to follow it.
      if (error.advice !== undefined) {
        return {
          title: 'The sandbox is archived',
          lines: ['Its files are packed away, and nothing of it runs. Whoever owns it can unarchive it.'],
        }
      }
      return { title: 'The sandbox does not run', lines: ['It may be starting.'], waits: true }
    default:
      return null
  }
}

function applicationMessageOf(error: PlatformError): Message | null {
  switch (error.code) {
    case 'workload_not_found':
      return { title: 'No such application', lines: ['It was deleted or never was.'] }
    case 'workload_unavailable':
      // What has advice waits for somebody to follow it.
      if (error.advice === undefined)
        return { title: 'The application does not run', lines: ['It may be starting.'], waits: true }
      return {
        title: 'The application is not served',
        lines: ['It is switched off, or its last deployment failed. Whoever owns it is told why by'],
        form: '<code class="line">hutch get application NAME</code>',
      }
    case 'bad_gateway':
      return {
        title: 'The application hung up',
        lines: ['Its program closed the connection before its answer was complete. Its log may say why.'],
        waits: true,
      }
    case 'gateway_timeout':
      return { title: 'The application did not answer', lines: ['Its program took too long.'] }
    default:
      return null
  }
}

const mark = '<rect x="1" y="1" width="18" height="18" rx="5"/><path d="M5.5 7l3 3-3 3M10.5 13.5h4"/>'
const still = `<svg class="mark" viewBox="0 0 20 20" aria-hidden="true">${mark}</svg>`
const waiting = `<div class="wait"><svg class="mark" viewBox="0 0 20 20" aria-hidden="true">${mark}</svg><i></i></div>`

const styles = `
:root { --ground: #fbfaf8; --card: #fff; --line: #e6e2db; --text: #25231f; --quiet: #7b766c; --accent: #2f6f62; --code: #f1efeb }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14161a; --card: #1b1e24; --line: #2b2f38; --text: #e4e6ea; --quiet: #8b92a0; --accent: #7fd1bd; --code: #262a32 }
}
* { box-sizing: border-box; margin: 0 }
body {
  min-height: 100vh; display: grid; place-items: center; padding: 24px; background: var(--ground); color: var(--text);
  font: 15px/1.6 ui-sans-serif, system-ui, "Segoe UI", "Noto Sans", sans-serif;
}
main {
  width: 100%; max-width: 460px; padding: 32px 36px 30px; background: var(--card); border: 1px solid var(--line);
  border-radius: 16px; box-shadow: 0 1px 2px rgb(0 0 0 / 4%), 0 16px 40px rgb(0 0 0 / 6%);
}
h1 { margin: 18px 0 10px; font-size: 20px; line-height: 1.3; font-weight: 650; letter-spacing: -.01em }
p + p { margin-top: 10px }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; background: var(--code); padding: .1em .35em; border-radius: 5px }
code.line { display: block; margin-top: 10px; padding: 9px 12px; border-radius: 8px; overflow-wrap: anywhere }
label { display: block; margin-top: 16px; font-size: 13px; color: var(--quiet) }
input, button { display: block; width: 100%; font: inherit; border-radius: 8px; padding: 9px 12px; color: inherit }
input { margin-top: 4px; background: var(--code); border: 1px solid var(--line) }
button { margin-top: 20px; background: var(--accent); color: var(--card); border: 0; font-weight: 600; cursor: pointer }
.quiet { margin-top: 18px !important; color: var(--quiet); font-size: 13px }
.mark { display: block; width: 36px; height: 36px }
.mark rect { fill: var(--accent) }
.mark path { fill: none; stroke: var(--card); stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round }
.wait { display: flex; align-items: center; gap: 16px }
.wait i { flex: 1; height: 3px; border-radius: 3px; background: var(--code); overflow: hidden }
.wait i::after { content: ""; display: block; width: 40%; height: 100%; border-radius: 3px; background: var(--accent); animation: pass 1.6s ease-in-out infinite }
@keyframes pass { from { transform: translateX(-110%) } to { transform: translateX(270%) } }
@media (prefers-reduced-motion: reduce) { .wait i::after { animation: none; width: 100%; opacity: .5 } }
`
