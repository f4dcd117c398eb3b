"""A server of files on loopback that can misbehave as real ones do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from zeroshot_d2.datasets.releases import RemoteFile


@dataclass
class Server:
    """What the server does.

    Args:
        files: {path: content}.
        cuts: after how many bytes an answer breaks off, one per request, then none does.
        statuses: of the next requests, then 200.
        ranges: whether it can resume.
        announced: a Content-Length to lie about.
        chunked: without a Content-Length.
        asked: the Range header of each request.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    announced: int | None = None
    chunked: bool = False
    asked: list[str | None] = field(default_factory=list)

    def file(self, name: str, content: bytes, **about: object) -> RemoteFile:
        """Serve ``content``; the file of a release that it is, with what is known ``about`` it."""
        self.files[f"/{name}"] = content
        return RemoteFile(**{"url": f"{self.address}/{name}", "place": "there", **about})  # type: ignore[arg-type]


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on loopback with this handler of requests; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving() -> Iterator[Server]:
    """A server on loopback, until the block ends."""
    behaviour = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.asked.append(self.headers.get("Range"))
            content = behaviour.files.get(self.path)
            status = behaviour.statuses.pop(0) if behaviour.statuses else 200 if content is not None else 404
            if status != 200:
                self.send_error(status)
                return
            start = 0
            if behaviour.ranges and (match := re.fullmatch(r"bytes=(\d+)-", behaviour.asked[-1] or "")):
                start = int(match[1])
                if start >= len(content):
                    self.send_error(416)
                    return
                status = 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if not behaviour.chunked:
                self.send_header("Content-Length", str(behaviour.announced or len(content) - start))
            self.end_headers()
            end = start + behaviour.cuts.pop(0) if behaviour.cuts else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *arguments: object) -> None:
            pass

    with listening(Handler) as behaviour.address:
        yield behaviour
