"""What the job does. Make it your own."""

import os


def greet(name: str) -> str:
    return f"{os.environ.get('GREETING', 'Hello')}, {name}!"
