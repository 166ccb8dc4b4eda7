#!/bin/sh
# The API of the sandbox first, then the server, as a process of the sandbox: so its output is kept and it can be restarted.
/usr/local/bin/sandbox-api &

python3 - <<'SCRIPT'
import json
import time
from urllib.request import Request, urlopen

API = "http://127.0.0.1:8080"


def is_there() -> bool:
    try:
        return urlopen(f"{API}/health").status == 200
    except OSError:
        return False


while not is_there():
    time.sleep(0.1)
process = {"name": "app", "command": "python3 server.py", "workingDir": "/app"}
urlopen(Request(f"{API}/process", json.dumps(process).encode(), {"content-type": "application/json"}))
SCRIPT

wait
