"""How a task finds its parameters."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

ATTEMPTS_MAX = 4


def parameters() -> dict:
    """Where it is deployed, its part of what the execution was given; elsewhere `--name value` of the command line."""
    address = os.environ.get("BL_EXECUTION_DATA_URL")
    if address is None:
        return command_line(sys.argv[1:])
    index = int(os.environ.get(os.environ.get("BL_TASK_KEY", "TASK_INDEX"), "0"))
    tasks = json.loads(read(address))["tasks"]
    return tasks[index] if index < len(tasks) else {}


def command_line(arguments: list[str]) -> dict:
    found: dict = {}
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("--"):
            found[argument[2:]] = next(rest, "true")
    return found


def read(address: str) -> bytes:
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == ATTEMPTS_MAX:
                raise
        except OSError:
            if attempt == ATTEMPTS_MAX:
                raise
        time.sleep(attempt)
    raise RuntimeError("unreachable")
