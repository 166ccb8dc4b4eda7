"""A Python that keeps its variables: reads {code, env} lines, runs each, and tells its results by the other pipe."""

import ast
import asyncio
import base64
import builtins
import inspect
import json
import linecache
import os
import re
import signal
import sys
import threading
import time
import traceback
import types

TEXT_CHARACTERS_MAX = 1024 * 1024
IMAGE_BYTES_MAX = 8 * 1024 * 1024
# Output without the end of a line is told by then.
FLUSH_SECONDS = 0.1
FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
REPRESENTATIONS = {
    "html": "_repr_html_",
    "markdown": "_repr_markdown_",
    "svg": "_repr_svg_",
    "png": "_repr_png_",
    "jpeg": "_repr_jpeg_",
    "pdf": "_repr_pdf_",
    "latex": "_repr_latex_",
    "json": "_repr_json_",
    "javascript": "_repr_javascript_",
}

requests = os.fdopen(int(sys.argv[1]), "r", encoding="utf-8")
control = os.fdopen(int(sys.argv[2]), "w", encoding="utf-8")
for pipe in (requests, control):
    os.set_inheritable(pipe.fileno(), False)
os.environ.setdefault("MPLBACKEND", "agg")
loop = asyncio.new_event_loop()
main = types.ModuleType("__main__")
scope = main.__dict__
running = threading.Event()


def send(event):
    control.write(json.dumps(event) + "\n")
    control.flush()


def formats(value):
    shown = {"text": bounded(repr(value))}
    for name, method in REPRESENTATIONS.items():
        try:
            data = getattr(value, method)() if hasattr(type(value), method) else None
            if isinstance(data, tuple):
                data = data[0]
            if isinstance(data, bytes):
                data = base64.b64encode(data).decode() if len(data) <= IMAGE_BYTES_MAX else None
            if data is not None:
                shown[name] = bounded(data) if name not in ("png", "jpeg", "pdf") else data
                json.dumps(shown[name])
        except Exception:
            # It cannot show itself in this way.
            shown.pop(name, None)
    return shown


def bounded(text):
    if not isinstance(text, str) or len(text) <= TEXT_CHARACTERS_MAX:
        return text
    return text[:TEXT_CHARACTERS_MAX] + f"... {len(text) - TEXT_CHARACTERS_MAX} more characters"


def display(*values):
    for value in values:
        send({"type": "result", "is_main_result": False, **formats(value)})


def show_figures():
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    import io

    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        image = io.BytesIO()
        figure.savefig(image, format="png", bbox_inches="tight")
        data = image.getvalue()
        if len(data) <= IMAGE_BYTES_MAX:
            send({"type": "result", "is_main_result": False, "text": repr(figure), "png": base64.b64encode(data).decode()})
    pyplot.close("all")


def parsed(code, name):
    try:
        return compile(code, name, "exec", FLAGS | ast.PyCF_ONLY_AST)
    except SyntaxError:
        # Lines for the shell, as notebooks have them. Only where it is no Python as it stands.
        rewritten = re.sub(r"^(\s*)(!|%pip\b|%cd\b)(.*)$", shell_line, code, flags=re.MULTILINE)
        if rewritten == code:
            raise
        return compile(rewritten, name, "exec", FLAGS | ast.PyCF_ONLY_AST)


def shell_line(match):
    indent, kind, rest = match.groups()
    if kind == "%cd":
        return f"{indent}__import__('os').chdir(__import__('os').path.expanduser({rest.strip()!r}))"
    command = f"{sys.executable} -m pip{rest}" if kind == "%pip" else rest
    return f"{indent}__import__('subprocess').run({command!r}, shell=True); None"


def run(code, name):
    tree = parsed(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    evaluate(compile(tree, name, "exec", FLAGS))
    if last is None:
        return
    value = evaluate(compile(ast.Expression(last.value), name, "eval", FLAGS))
    if value is not None and not code.rstrip().endswith(";"):
        scope["_"] = value
        send({"type": "result", "is_main_result": True, **formats(value)})


def evaluate(code):
    value = eval(code, scope)
    return loop.run_until_complete(value) if code.co_flags & inspect.CO_COROUTINE else value


def tell(error, name):
    frames = traceback.extract_tb(error.__traceback__)
    own = next((at for at, frame in enumerate(frames) if frame.filename == name), len(frames))
    shown = "".join(traceback.format_list(frames[own:]) + traceback.format_exception_only(type(error), error))
    head = "Traceback (most recent call last):\n" if own < len(frames) else ""
    send({"type": "error", "name": type(error).__name__, "value": bounded(str(error)), "traceback": bounded(head + shown)})


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            # Code may have closed or replaced it.
            pass


def flush_now_and_then():
    while running.wait():
        time.sleep(FLUSH_SECONDS)
        flush()


def execute(request, name):
    env = request["env"]
    before = {key: os.environ.get(key) for key in env}
    os.environ.update(env)
    code = request["code"]
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    running.set()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run(code, name)
        show_figures()
    except BaseException as error:
        tell(error, name)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
        running.clear()
        flush()
        send({"type": "done"})


sys.modules["__main__"] = main
scope["__builtins__"] = builtins
builtins.display = display
sys.argv = [""]
sys.path[0] = ""
sys.stdout.reconfigure(line_buffering=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
asyncio.set_event_loop(loop)
threading.Thread(target=flush_now_and_then, daemon=True).start()
for number, line in enumerate(requests, 1):
    execute(json.loads(line), f"<cell {number}>")
