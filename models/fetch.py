"""One GET from a hub: silence ends it, a cancel never waits, and the user's token goes to the hub alone.

All that a server says is foreign. huggingface_hub lends its session and headers (proxies, token, offline mode) and no
more: it sends the token to whatever host the next page of a list is on, and reads answers of any size. The request
has a thread of its own, because a name lookup or headers that arrive a byte at a time obey no timeout of the socket.
What arrives is handed over on the caller's thread; the other one ends with its connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any
from urllib.parse import urljoin, urlsplit

from mlxkv.errors import ModelDownloadError, shortened
from mlxkv.system.regular_file import check_regular, reason

TIMEOUT = 30.0  # seconds without a byte

_POLL = 0.1  # seconds between two looks at whether to stop
_MAX_REDIRECTS = 10
_QUEUED = 64  # pieces of at most 64 KiB
_MAX_TOKEN = 4096  # bytes of its file
_PORTS = {"http": 80, "https": 443}


class HubStatusError(Exception):
    """The hub answered with an HTTP error; `code` is its X-Error-Code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.code = status, code


class HubTimeoutError(ModelDownloadError):
    def __init__(self) -> None:
        super().__init__(
            f"The hub sent nothing for {TIMEOUT:g} s; check the connection and try again, what has arrived is kept."
        )


@dataclass(frozen=True)
class Answer:
    """A successful answer. `parts` yields its body as it arrives; `next_url` is the next page of a list."""

    status: int
    next_url: str | None
    parts: Iterator[bytes]


@contextmanager
def get(url: str, *, endpoint: str, start: int = 0, poll: Callable[[], None] = lambda: None) -> Iterator[Answer]:
    """GET `url` from byte `start` on. `endpoint` is the hub's URL: only its host is sent the token.

    `poll` is called ten times a second; what it raises ends the request.

    Raises:
        HubStatusError: the answer is an error. HubTimeoutError: nothing came for `TIMEOUT` seconds.
        ModelDownloadError: redirects that must not be followed, or an encoding that was not asked for.
        Exception: what huggingface_hub or the network raised.
    """
    queue: Queue[Any] = Queue(_QUEUED)
    stop = threading.Event()
    thread = threading.Thread(
        target=_request, args=(url, endpoint, start, queue, stop), name="mlxkv-request", daemon=True
    )
    thread.start()
    try:
        status, next_url = _take(queue, poll)
        yield Answer(status, next_url, _parts(queue, poll))
    finally:
        stop.set()


def _parts(queue: Queue[Any], poll: Callable[[], None]) -> Iterator[bytes]:
    while (part := _take(queue, poll)) is not None:
        yield part


def _take(queue: Queue[Any], poll: Callable[[], None]) -> Any:
    for _ in range(max(1, round(TIMEOUT / _POLL))):
        poll()
        try:
            item = queue.get(timeout=_POLL)
        except Empty:
            continue
        if isinstance(item, BaseException):
            raise item
        return item
    raise HubTimeoutError


def _request(url: str, endpoint: str, start: int, queue: Queue[Any], stop: threading.Event) -> None:
    """On its own thread: (status, next page), then the body's pieces, then None; or the exception instead."""

    def put(item: object) -> None:
        while not stop.is_set():
            with suppress(Full):
                queue.put(item, timeout=_POLL)
                return

    import httpx2
    from huggingface_hub import get_session

    try:
        for _ in range(_MAX_REDIRECTS + 1):
            headers = _headers(url, endpoint, start)
            with get_session().stream("GET", url, headers=headers, follow_redirects=False, timeout=TIMEOUT) as response:
                if response.has_redirect_location:
                    url = redirected(url, response.headers["Location"])
                    continue
                if not 200 <= response.status_code < 300:
                    raise HubStatusError(response.status_code, response.headers.get("X-Error-Code", ""))
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise ModelDownloadError("The hub packs its answers though it was asked not to; use another hub.")
                next_url = response.links.get("next", {}).get("url")
                put((response.status_code, redirected(url, next_url) if next_url else None))
                for part in response.iter_raw():
                    put(part)
                    if stop.is_set():
                        return
            put(None)
            return
        raise ModelDownloadError(f"The hub redirects more than {_MAX_REDIRECTS} times; use another hub.")
    except httpx2.TimeoutException:
        put(HubTimeoutError())
    except BaseException as error:  # whatever it is, the caller's thread says it
        put(error)


def redirected(url: str, location: str) -> str:
    """The address that an answer of `url` sends on to.

    Raises:
        ModelDownloadError: it is not of the web, or leaves encryption.
    """
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in _PORTS or (scheme == "http" and urlsplit(url).scheme == "https"):
        raise ModelDownloadError(f"The hub sends on to {ascii(target)[:80]}, which is not followed; use another hub.")
    return target


def _headers(url: str, endpoint: str, start: int) -> dict[str, str]:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    try:
        check_regular(constants.HF_TOKEN_PATH, _MAX_TOKEN)
    except OSError as error:
        raise ModelDownloadError(
            f"The hub's token {shortened(constants.HF_TOKEN_PATH)} cannot be read ({reason(error)}); check that file."
        ) from error
    token = None if _origin(url) == _origin(endpoint) else False  # None: the user's
    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}
    return {**headers, "Range": f"bytes={start}-"} if start else headers


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
