#!/bin/sh
# The API of the sandbox first, then the server, as a process of the sandbox: so its output is kept and it can be restarted.
/usr/local/bin/sandbox-api &

node --input-type=module <<'SCRIPT'
const api = 'http://127.0.0.1:8080'
const isThere = () => fetch(`${api}/health`).then(({ ok }) => ok, () => false)
while (!(await isThere())) await new Promise((resolve) => setTimeout(resolve, 100))
await fetch(`${api}/process`, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ name: 'app', command: 'node server.mjs', workingDir: '/app' }),
})
SCRIPT

wait
