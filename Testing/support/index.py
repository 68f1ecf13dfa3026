"""A package index and a proxy on this computer alone, which remember what they were asked for."""

import hashlib
import http.server
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers the simple index's addresses from a folder of archives; also when asked as a proxy."""

    def do_GET(self):
        self.server.asked.append(self.path)
        parts = [part for part in urlsplit(self.path).path.split("/") if part]
        if parts[:1] == ["simple"] and len(parts) == 2:
            self._send(self._page(parts[1]), "text/html")
        elif parts[:1] == ["files"]:
            self._send((self.server.folder / unquote(parts[1])).read_bytes(), "application/octet-stream")
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _page(self, name: str) -> bytes:
        links = []
        for path in sorted(self.server.folder.glob(f"{name}-*")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            shown = path.name.replace("+", "%2B")
            links.append(f'<a href="/files/{shown}#sha256={digest}">{path.name}</a>')
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *words):
        pass


@contextmanager
def anIndex(folder: Path):
    """Serve a folder; gives (address, list of what was asked)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.asked = folder, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
