"""One GET request to a hub: with a timeout, cancelled at once, and the user's token is sent to the hub only.

Nothing from the server is trusted. Only huggingface_hub's session and headers are used (proxies, token, offline mode):
its own requests send the token to whatever host the next page of a list is on, and read answers of any size. The
request runs on its own thread, because no socket timeout applies to a name lookup or to headers that arrive a byte at
a time. The caller's thread receives the data; the other one ends with its connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any
from urllib.parse import urljoin, urlsplit

from mlxkv.errors import ModelDownloadError, escaped, shortened
from mlxkv.system.regular_file import check_regular, reason

TIMEOUT = 30.0  # seconds without a byte

_POLL = 0.1  # seconds between two calls of `poll`
_MAX_REDIRECTS = 10
_QUEUED = 64  # pieces of at most 64 KiB
_MAX_TOKEN = 4096  # bytes of its file
_PORTS = {"http": 80, "https": 443}


class HubStatusError(Exception):
    """The hub answered with an HTTP error; `code` is its X-Error-Code, `message` its X-Error-Message."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.code, self.message = status, code, message


class HubTimeoutError(ModelDownloadError):
    def __init__(self) -> None:
        super().__init__(
            f"The hub sent nothing for {TIMEOUT:g} s; check the connection and try again, the download will continue."
        )


@dataclass(frozen=True)
class Answer:
    """A successful response. `parts` yields its body as it arrives; `next_url` is the next page of a list."""

    status: int
    next_url: str | None
    parts: Iterator[bytes]


@contextmanager
def get(url: str, *, endpoint: str, start: int = 0, poll: Callable[[], None] = lambda: None) -> Iterator[Answer]:
    """GET `url` from byte `start` on. `endpoint` is the hub's URL: the token is sent to its host only.

    `poll` is called ten times a second; its exceptions end the request.

    Raises:
        HubStatusError: an HTTP error. HubTimeoutError: no data for `TIMEOUT` seconds.
        ModelDownloadError: a redirect that must not be followed, or an encoding that was not requested.
        Exception: from huggingface_hub or the network.
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
    """Put (status, next page), the parts of the body and None into `queue`, or an exception. On its own thread."""

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
                    told = (response.headers.get(f"X-Error-{name}", "") for name in ("Code", "Message"))
                    raise HubStatusError(response.status_code, *told)
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise ModelDownloadError("The hub compresses answers although asked not to; use another hub.")
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
    except BaseException as error:  # raised on the caller's thread
        put(error)


def redirected(url: str, location: str) -> str:
    """The absolute URL of a redirect from `url`.

    Raises:
        ModelDownloadError: it is not http(s), or goes from https to http.
    """
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in _PORTS or (scheme == "http" and urlsplit(url).scheme == "https"):
        raise ModelDownloadError(f"The hub redirects to {escaped(target)}, which is not allowed; use another hub.")
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
