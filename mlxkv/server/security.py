"""Who may ask: the Host and Origin of a request, a bearer token, and how large its body may be.

A web page must not reach a server on loopback: neither under a name that its owner points to 127.0.0.1 (DNS rebinding,
seen by the Host), nor across origins (seen by the Origin, which browsers send). ASGI middleware; on the event loop.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxkv.errors import ConfigError
from mlxkv.server.errors import ApiError

_log = logging.getLogger("mlxkv.server")
MAX_BODY = 32 << 20
_METHODS, _HEADERS = "GET, POST, OPTIONS", "authorization, content-type"


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        host: the address that the server listens on.
        api_key: the bearer token; None: anyone may, who reaches the server.
        origins: web origins that may, beside those of no page.
        hosts: more names that the server is reached by.
        max_body: bytes.
    """

    host: str = "127.0.0.1"
    api_key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_body: int = MAX_BODY

    def __post_init__(self) -> None:
        if self.api_key is not None and (
            len(self.api_key) < 8 or not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key
        ):
            raise ConfigError(
                "The API key must have 8 characters or more, of ASCII and without blanks; choose another."
            )
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"Others can reach {self.host}, so the server needs a key: set MLXKV_API_KEY or give --api-key, or "
                "leave out --host."
            )

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError: the request may not be answered."""
        host = headers.get("host", "")
        if self.api_key is None and not self._is_own(host):
            raise ApiError(
                403,
                f"The Host {host[:80]!r} is none of this server's names; use 127.0.0.1, or `--allow-host`.",
                None,
                "host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and origin != f"http://{host}":
            raise ApiError(
                403,
                f"The web page {origin[:80]!r} may not ask this server; `--allow-origin` lets it.",
                None,
                "origin_not_allowed",
            )

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError: the key is missing or wrong."""
        if self.api_key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        if not hmac.compare_digest(given, self.api_key.encode()):
            why = "is wrong" if given else "is missing"
            raise ApiError(
                401,
                f"The API key {why}; send it as `Authorization: Bearer KEY`.",
                None,
                "invalid_api_key",
                {"WWW-Authenticate": "Bearer"},
            )

    def cors(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Headers that let an allowed web page read the response."""
        origin = headers.get("origin")
        if origin is None or origin not in self.origins:
            return {}
        return {"access-control-allow-origin": origin, "vary": "Origin"}

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in (self.host, *self.hosts)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address, or a name that always means it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets through what `access` allows, with a request id."""

    def __init__(self, app: ASGIApp, access: Access, new_id: Any) -> None:
        self._app, self._access, self._new_id = app, access, new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, access = Headers(scope=scope), self._access
        request_id = self._new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        more = {"x-request-id": request_id, **access.cors(headers)}

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in more.items())]
            await send(message)

        try:
            access.check(headers)
            if scope["method"] == "OPTIONS":
                allow = {"access-control-allow-methods": _METHODS, "access-control-allow-headers": _HEADERS}
                await JSONResponse(None, 200, allow)(scope, receive, sender)
                return
            if scope["path"] != "/health":
                access.check_key(headers)
        except ApiError as error:
            _log.info("%s %s %d %s", request_id, quote(scope["path"]), error.status, error.code)
            await JSONResponse(error.body(request_id), error.status, dict(error.headers))(scope, receive, sender)
            return
        await self._app(scope, receive, sender)


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: it is larger than `most` bytes, or no JSON is announced.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"The content type is {kind[:60]!r}; it must be application/json.", None, "invalid_content_type"
        )
    error = ApiError(
        413, f"The request is larger than {most:,} bytes, the limit of this server.", None, "request_too_large"
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise error
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise error
        pieces.append(piece)
    return b"".join(pieces)
