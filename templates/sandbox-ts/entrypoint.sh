#!/bin/sh
# The API of the sandbox first, then the server, as a process of the sandbox: so its output is kept and it can be restarted.
/usr/local/bin/sandbox-api &

api=http://127.0.0.1:8080
until wget -q -O /dev/null "$api/health" 2>/dev/null; do sleep 0.1; done
wget -q -O /dev/null --header 'Content-Type: application/json' \
  --post-data '{"name": "app", "command": "node server.mjs", "workingDir": "/app"}' "$api/process"

wait
