"""Runs code as the client's CodeInterpreter asks for it: contexts, each a process that keeps its variables, on port 8888.

POST /contexts {language, cwd} -> {id, language, cwd}; GET /contexts; DELETE /contexts/ID; POST /contexts/ID/restart
POST /execute {code, context_id, language, env_vars} -> one JSON object a line: number_of_executions, stdout, stderr,
result, error. A client that leaves interrupts what it started.
"""

import codecs
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8888
CONTEXTS_MAX = 64
BODY_BYTES_MAX = 16 * 1024 * 1024
READ_BYTES_MAX = 64 * 1024
# One line of a kernel: its results are bounded there, images included.
CONTROL_LINE_BYTES_MAX = 32 * 1024 * 1024
INTERRUPT_SECONDS_MAX = 5
# One that comes before the code has begun is lost.
INTERRUPT_AGAIN_SECONDS = 0.1
HERE = os.path.dirname(os.path.abspath(__file__))

ALIASES = {"py": "python", "python3": "python", "js": "javascript", "node": "javascript", "sh": "bash", "shell": "bash"}
PROGRAMS = {
    "python": [sys.executable, os.path.join(HERE, "kernel.py")],
    "javascript": ["node", os.path.join(HERE, "kernel.mjs")],
    "bash": ["bash", os.path.join(HERE, "kernel.bash")],
}


class Refusal(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Kernel:
    """One process, from its start to its end. Requests go in by one pipe, their results come by another."""

    def __init__(self, language, cwd):
        argv = PROGRAMS[language]
        if shutil.which(argv[0]) is None:
            raise Refusal(422, f"language: {language} needs {argv[0]}, which this sandbox does not have")
        self.language = language
        theirs_in, self.requests = os.pipe()
        self.control, theirs_out = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*argv, str(theirs_in), str(theirs_out)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self.requests)
            os.close(self.control)
            raise Refusal(422, f"cwd: {cwd}: {error.strerror}") from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def send(self, code, env):
        if self.language == "bash":
            pairs = [f"{name}={value}" for name, value in env.items()]
            words = [str(len(pairs)), *pairs, code]
            data = b"".join(word.replace("\0", "").encode() + b"\0" for word in words)
        else:
            data = json.dumps({"code": code, "env": env}).encode() + b"\n"
        view = memoryview(data)
        while view:
            view = view[os.write(self.requests, view) :]

    def interrupt(self):
        self.signal(signal.SIGINT)

    def signal(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def end(self):
        self.signal(signal.SIGKILL)
        status = self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
        os.close(self.requests)
        os.close(self.control)
        return status


class Context:
    """A language and a directory; its kernel starts with the first code, and anew after it ended."""

    def __init__(self, identifier, language, cwd):
        self.id = identifier
        self.language = language
        self.cwd = cwd
        self.lock = threading.Lock()
        self.kernel = None
        self.count = 0

    def view(self):
        return {"id": self.id, "language": self.language, "cwd": self.cwd}

    def end(self):
        kernel, self.kernel = self.kernel, None
        if kernel is not None:
            kernel.end()

    def restart(self):
        with self.lock:
            self.end()
            self.count = 0

    def execute(self, code, env, emit, gone):
        """`emit` takes events as they come; `gone` is a socket that can be read once the client has left."""
        with self.lock:
            if self.kernel is None:
                self.kernel = Kernel(self.language, self.cwd)
            self.count += 1
            emit({"type": "number_of_executions", "execution_count": self.count})
            try:
                self.kernel.send(code, env)
                finished = self._follow(emit, gone)
            except BrokenPipeError:
                finished = False
            if not finished:
                status = self.kernel.end()
                self.kernel = None
                emit({"type": "error", "name": "KernelDied", "value": f"the kernel ended with status {status}", "traceback": ""})

    def _follow(self, emit, gone):
        """True when the code is done, False when its kernel is."""
        kernel = self.kernel
        with selectors.DefaultSelector() as selector:
            outputs = {}
            for name in ("stdout", "stderr"):
                descriptor = getattr(kernel.process, name).fileno()
                os.set_blocking(descriptor, False)
                outputs[descriptor] = (name, codecs.getincrementaldecoder("utf-8")("replace"))
                selector.register(descriptor, selectors.EVENT_READ)
            selector.register(kernel.control, selectors.EVENT_READ)
            selector.register(gone, selectors.EVENT_READ)
            pending = b""
            deadline = None
            while True:
                ready = [key.fd for key, _ in selector.select(None if deadline is None else INTERRUPT_AGAIN_SECONDS)]
                if deadline is not None:
                    if time.monotonic() > deadline:
                        return False
                    if not ready:
                        kernel.interrupt()
                for descriptor in ready:
                    if descriptor in outputs:
                        if self._pass_on(descriptor, outputs[descriptor], emit) is None:
                            selector.unregister(descriptor)
                    elif descriptor == gone.fileno():
                        # Gone, or sending its next request before this is answered: nothing more is learnt here.
                        selector.unregister(gone)
                        if has_left(gone):
                            deadline = time.monotonic() + INTERRUPT_SECONDS_MAX
                if kernel.control not in ready:
                    continue
                data = os.read(kernel.control, READ_BYTES_MAX)
                *lines, pending = (pending + data).split(b"\n")
                # What was written before it comes before it.
                for line in lines:
                    self._drain(outputs, emit)
                    event = json.loads(line)
                    if event["type"] == "done":
                        return True
                    emit(event)
                if not data or len(pending) > CONTROL_LINE_BYTES_MAX:
                    self._drain(outputs, emit)
                    return False

    def _drain(self, outputs, emit):
        for descriptor, output in outputs.items():
            while self._pass_on(descriptor, output, emit):
                pass

    def _pass_on(self, descriptor, output, emit):
        """None at the end of the stream, False when there is nothing now."""
        name, decoder = output
        try:
            data = os.read(descriptor, READ_BYTES_MAX)
        except BlockingIOError:
            return False
        text = decoder.decode(data, final=not data)
        if text:
            emit({"type": name, "text": text, "timestamp": time.time_ns()})
        return True if data else None


def has_left(connection):
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Contexts:
    def __init__(self):
        self._lock = threading.Lock()
        self._by_id = {}
        self._defaults = {}
        self._cwd = os.getcwd()

    def create(self, language, cwd):
        context = Context(os.urandom(16).hex(), language_of(language), cwd or self._cwd)
        if not os.path.isdir(context.cwd):
            raise Refusal(422, f"cwd: {context.cwd} is not a directory")
        with self._lock:
            if len(self._by_id) >= CONTEXTS_MAX:
                raise Refusal(409, f"there are {CONTEXTS_MAX} contexts, the most allowed: delete one first")
            self._by_id[context.id] = context
        return context

    def get(self, identifier):
        with self._lock:
            context = self._by_id.get(identifier)
        if context is None:
            raise Refusal(404, f"context {str(identifier)[:64]} not found")
        return context

    def default(self, language):
        name = language_of(language)
        with self._lock:
            if name not in self._defaults:
                self._defaults[name] = Context(f"default-{name}", name, self._cwd)
            return self._defaults[name]

    def list(self):
        with self._lock:
            return list(self._by_id.values())

    def remove(self, identifier):
        context = self.get(identifier)
        with self._lock:
            self._by_id.pop(identifier, None)
        kernel = context.kernel
        if kernel is not None:
            kernel.signal(signal.SIGKILL)
        with context.lock:
            context.end()


def language_of(asked):
    name = (asked or "python").lower()
    name = ALIASES.get(name, name)
    if name not in PROGRAMS:
        raise Refusal(400, f"language: {str(asked)[:40]} is not known here; known are {', '.join(PROGRAMS)}")
    return name


contexts = Contexts()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"/health": lambda: {"status": "ok"}, "/contexts": lambda: [c.view() for c in contexts.list()]})

    def do_POST(self):
        try:
            body = self.body()
        except Refusal as refusal:
            self.close_connection = True
            return self.refuse(refusal)
        if self.path == "/execute":
            return self.execute(body)
        self.answer(
            {
                "/contexts": lambda: contexts.create(body.get("language"), body.get("cwd")).view(),
                "/contexts/*/restart": lambda: contexts.get(self.part()).restart() or {},
            }
        )

    def do_DELETE(self):
        # It may have a body, which nobody reads.
        self.close_connection = True
        self.answer({"/contexts/*": lambda: contexts.remove(self.part()) or {}})

    def part(self):
        return self.path.split("/")[2]

    def answer(self, routes):
        shape = "/".join("*" if at == 2 else part for at, part in enumerate(self.path.split("/")))
        route = routes.get(self.path) or routes.get(shape)
        try:
            if route is None:
                raise Refusal(404, "not found")
            self.respond(200, route())
        except Refusal as refusal:
            self.refuse(refusal)

    def refuse(self, refusal):
        self.respond(refusal.status, {"error": str(refusal)})

    def execute(self, body):
        try:
            code, env = body.get("code"), body.get("env_vars") or {}
            if not isinstance(code, str) or not all(isinstance(item, str) for pair in env.items() for item in pair):
                raise Refusal(400, "code must be a string and env_vars strings by name")
            identifier = body.get("context_id")
            context = contexts.get(identifier) if identifier else contexts.default(body.get("language"))
        except Refusal as refusal:
            return self.refuse(refusal)
        begun = []

        def emit(event):
            line = json.dumps(event).encode() + b"\n"
            try:
                if not begun:
                    begun.append(True)
                    self.head(200, "application/x-ndjson", {"Transfer-Encoding": "chunked"})
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            except OSError:
                # The client left: what it started is being interrupted, and nobody reads the rest.
                self.close_connection = True

        try:
            context.execute(code, env, emit, self.connection)
            self.wfile.write(b"0\r\n\r\n")
        except Refusal as refusal:
            if not begun:
                self.refuse(refusal)
        except OSError:
            self.close_connection = True

    def body(self):
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") or length > BODY_BYTES_MAX:
            raise Refusal(413, f"the body must say its length, at most {BODY_BYTES_MAX} bytes")
        try:
            body = json.loads(self.rfile.read(length) or b"{}")
        except ValueError as error:
            raise Refusal(400, f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise Refusal(400, "the body must be a JSON object")
        return body

    def respond(self, status, value):
        data = json.dumps(value).encode()
        self.head(status, "application/json", {"Content-Length": str(len(data))})
        self.wfile.write(data)

    def head(self, status, content_type, headers):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    # What started this may ignore interrupts, and kernels would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Server(("0.0.0.0", PORT), Handler).serve_forever()
