from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = b"<h1>Hello from {{name}}</h1>\n"
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


print("listening on port 3000", flush=True)
ThreadingHTTPServer(("0.0.0.0", 3000), Page).serve_forever()
