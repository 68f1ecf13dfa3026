"""A small HTTP server that answers as the Hugging Face Hub does for one repository's files."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What it offers, how it misbehaves, and what it was asked.

    ``/<owner>/<repo>/resolve/<revision>/<file>`` redirects to ``/cdn/…``, as the Hub does for large files.
    """

    def __init__(self, content: bytes, file: str = "tiny.pt") -> None:
        self.content = content
        self.file = file
        self.commit = COMMIT
        self.announced_etag = hashlib.sha256(content).hexdigest()
        self.announced_size = len(content)
        self.error: tuple[int, str] | None = None  # status and X-Error-Code of every answer
        self.drop_after: list[int] = []  # bytes after which the next bodies break off
        self.ignores_ranges = False
        self.stall_after: int | None = None  # bytes after which a body stops without ending
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.credentials: list[tuple[str, str | None]] = []  # path, Authorization
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.endpoint = ""
        self.cdn = ""

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        self.cdn = (
            f"http://localhost:{server.server_port}/cdn"  # the Hub's content, too, comes from another host
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.go_on.set()
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def bodies(self) -> list[str | None]:
        """The Range headers of all requests for content."""
        return [
            wanted for method, path, wanted in self.requests if method == "GET" and path.startswith("/cdn")
        ]


class _Handler(BaseHTTPRequestHandler):
    """Answers requests as a hub wants; made for each of them."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._note()
        self._resolve()

    def do_GET(self) -> None:
        self._note()
        if self.path.startswith("/cdn"):
            self._send_content()
        else:
            self._resolve()

    def _note(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        self.hub.credentials.append((self.path, self.headers.get("Authorization")))

    def _resolve(self) -> None:
        if self.hub.error is not None:
            status, code = self.hub.error
            self._answer(status, {"X-Error-Code": code} if code else {})
        elif not self.path.split("?")[0].endswith(f"/{self.hub.file}"):
            self._answer(404, {"X-Error-Code": "EntryNotFound"})
        else:
            headers = {
                "X-Repo-Commit": self.hub.commit,
                "X-Linked-Etag": f'"{self.hub.announced_etag}"',
                "X-Linked-Size": str(self.hub.announced_size),
                "Location": f"{self.hub.cdn}/{self.hub.announced_etag}",
            }
            self._answer(302, {name: value for name, value in headers.items() if value != "None"})

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_content(self) -> None:
        start = 0
        wanted = self.headers.get("Range")
        if wanted and not self.hub.ignores_ranges:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        body = self.hub.content[start:]
        self.send_response(206 if start else 200)
        if start:
            last = len(self.hub.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(self.hub.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.hub.drop_after:
            body = body[: self.hub.drop_after.pop(0)]
            self.close_connection = True
        if self.hub.stall_after is not None:
            self.wfile.write(body[: self.hub.stall_after])
            self.hub.stalled.set()
            self.hub.go_on.wait(30)
            return
        self.wfile.write(body)
