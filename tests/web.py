"""A web server on this machine that gives files, and behaves as servers do."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """`files` by path, and how some paths behave: cut, whole, page, other, slow, busy, or an HTTP status."""

    def __init__(self, server):
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.files, self.kinds, self.asked = {}, {}, Counter()

    def answer(self, request):
        path = request.path.partition("?")[0]
        self.asked[path] += 1
        kind, content = self.kinds.get(path), self.files.get(path)
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        if content is None or isinstance(kind, int) or (kind == "busy" and self.asked[path] == 1):
            request.send_response(kind if isinstance(kind, int) else 429 if content else 404)
            request.send_header("Retry-After", str(int(kind == "busy")))
            request.send_header("Content-Length", "0")
            return request.end_headers()
        begin = int(request.headers.get("Range", "bytes=0-")[6:-1]) * (kind != "whole")
        content = {"page": b"<html>sign in", "other": content[::-1]}.get(kind, content)
        request.send_response(206 if begin else 200)
        request.send_header("Content-Type", "text/html" if kind == "page" else "application/octet-stream")
        request.send_header("Content-Length", str(len(content) - begin))
        request.end_headers()
        end = begin + 100_000 if kind in ("cut", "whole") and self.asked[path] < 3 else len(content)
        for start in range(begin, end, 50_000):
            request.wfile.write(content[start : min(start + 50_000, end)])
            time.sleep(0.02 * (kind == "slow"))
        if end < len(content):
            request.close_connection = True
        return None


@contextmanager
def serving():
    """A `Web` during the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            web.answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        web = Web(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield web
        server.shutdown()
