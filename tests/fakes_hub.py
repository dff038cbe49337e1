"""A hub on 127.0.0.1 that speaks as much of the hub's API as a download needs, and fails on request.

Serves one repository: model info, the file tree, and files with ETag, X-Repo-Commit, redirect-free HEAD and Range. It
counts requests and the body bytes it sent, and can break a body off, refuse, or send wrong bytes. `rules` make it say
anything else.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "cafe"


@dataclass
class FakeHub:
    """What it serves and what it saw. Change `files` and the knobs at any time; `sent` counts body bytes by file."""

    repo: str = "org/model"
    files: dict[str, bytes] = field(default_factory=dict)
    info: dict[str, object] = field(default_factory=dict)  # more of what it says of the repository
    large: tuple[str, ...] = (".safetensors",)  # endings of the files kept as LFS blobs
    endpoint: str = ""
    status: int = 200  # of every answer
    file_status: int = 200  # of the files only: a gated repository lists what it does not give
    error_code: str = ""  # X-Error-Code
    error_message: str = ""  # X-Error-Message
    break_after: int | None = None  # body bytes after which a connection is cut, counted over all answers
    ignores_range: bool = False
    flip: bool = False  # send a wrong last byte
    rules: list[Callable[[Handler, str], bool]] = field(default_factory=list)  # asked first: whether it has answered
    over: threading.Event = field(default_factory=threading.Event)  # what a rule waits for that answers nothing
    tokens: list[str] = field(default_factory=list)  # the paths of requests that came with a token
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_large(self, path: str) -> bool:
        return path.endswith(self.large)

    def count(self, method: str, part: str) -> int:
        return sum(m == method and part in path for m, path in self.requests)

    def body(self, path: str) -> bytes:
        data = self.files[path]
        return data[:-1] + bytes([data[-1] ^ 1]) if self.flip and self.is_large(path) else data

    def tree(self) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for path, data in self.files.items():
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _git_id(data)}
            if self.is_large(path):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return entries


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run `hub` until the block ends; `hub.endpoint` is its address."""

    class Served(Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, 40 ms apart otherwise

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        hub, path = self.fake, unquote(urlsplit(self.path).path)
        with hub.lock:
            hub.requests.append((self.command, path))
            hub.tokens += [path] if "Authorization" in self.headers else []
        if any(rule(self, path) for rule in hub.rules):
            return
        if hub.status != 200:
            self.refuse(hub.status, hub.error_code)
        elif path.startswith(f"/api/models/{hub.repo}/tree/"):
            self.send_json(hub.tree())
        elif path in (f"/api/models/{hub.repo}", f"/api/models/{hub.repo}/revision/main"):
            siblings = [{"rfilename": name} for name in hub.files]
            self.send_json({"id": hub.repo, "sha": COMMIT, "siblings": siblings, **hub.info})
        elif path.startswith(f"/api/models/{hub.repo}/revision/"):
            self.refuse(404, "RevisionNotFound")
        elif path.startswith(f"/{hub.repo}/resolve/"):
            name = path.removeprefix(f"/{hub.repo}/resolve/").partition("/")[2]
            if hub.file_status != 200:
                self.refuse(hub.file_status, hub.error_code)
            elif name in hub.files:
                self.send_file(name, with_body=with_body)
            else:
                self.refuse(404, "EntryNotFound")
        else:
            self.refuse(404, "RepoNotFound")

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if self.fake.error_message:
            self.send_header("X-Error-Message", self.fake.error_message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, name: str, *, with_body: bool) -> None:
        hub, body, start = self.fake, self.fake.body(name), 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and not hub.ignores_range:
            start = int(wanted[6:].partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        original = hub.files[name]
        if hub.is_large(name):
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(original).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(body)))
        self.send_header("ETag", f'"{_git_id(original)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if with_body:
            self.send_body(name, body[start:])

    def send_body(self, name: str, body: bytes) -> None:
        hub = self.fake
        with hub.lock:
            if hub.break_after is not None and hub.is_large(name):
                cut = len(body) > hub.break_after
                body = body[: hub.break_after]
                hub.break_after -= len(body)
            else:
                cut = False
            hub.sent[name] = hub.sent.get(name, 0) + len(body)
        with suppress(OSError):  # the other side may have hung up, which is what a cancelled download does
            self.wfile.write(body)
        if cut:
            self.close_connection = True


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
