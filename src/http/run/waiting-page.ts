const retrySeconds = 2

/** For people whose server does not listen yet: says so, and looks again by itself. */
export function waitingPage(port: number): Response {
  const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="${retrySeconds}">
<title>Waiting for port ${port}</title>
<style>
  :root { color-scheme: light dark }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 20vh auto; padding: 0 1.5rem }
  code { font-family: ui-monospace, monospace }
  p { opacity: .75 }
</style>
<h1>Nothing answers on port ${port} yet</h1>
<p>The sandbox runs, but no server inside it answers on this port. Start one that listens on <code>0.0.0.0</code>
or <code>localhost</code>, for example <code>npm run dev -- --port ${port}</code>.</p>
<p>This page looks again every ${retrySeconds} seconds.</p>
</html>
`
  return new Response(page, {
    status: 502,
    headers: {
      'content-type': 'text/html; charset=utf-8',
      'cache-control': 'no-store',
      'retry-after': String(retrySeconds),
      'x-blaxel-source': 'platform',
      'x-blaxel-error-code': 'BAD_GATEWAY',
    },
  })
}
