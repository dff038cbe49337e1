"""Who is let in: the Host, the Origin, the key; the size and the type of a body; and what an error looks like."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mlxkv.errors import ConfigError
from mlxkv.server.app import _LogLine
from mlxkv.server.errors import ApiError
from mlxkv.server.security import Access, Guard, is_loopback, read_body

KEY = "a-secret-key"


def client(access: Access) -> TestClient:
    async def echo(request: Request) -> JSONResponse:
        try:
            return JSONResponse({"size": len(await read_body(request, access.max_body))})
        except ApiError as error:
            return JSONResponse(error.body(request.state.request_id), error.status)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({})

    routes = [Route("/v1/x", echo, methods=["POST"]), Route("/health", health)]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, access=access, new_id=lambda: "req_1")])
    return TestClient(app, base_url="http://127.0.0.1:8321")


def post(access: Access, headers: dict[str, str] | None = None, content: bytes = b"{}") -> Any:
    with client(access) as made:
        return made.post("/v1/x", content=content, headers={"content-type": "application/json", **(headers or {})})


@pytest.mark.parametrize(
    ("access", "headers", "status"),
    [
        (Access(), {}, 200),
        (Access(), {"host": "localhost:8321"}, 200),
        (Access(), {"host": "[::1]:8321"}, 200),
        (Access(), {"host": "evil.example"}, 403),  # DNS rebinding
        (Access(), {"host": "127.0.0.1.evil.example"}, 403),
        (Access(), {"host": ""}, 403),
        (Access(hosts=("mac.local",)), {"host": "mac.local:8321"}, 200),
        (Access(), {"origin": "https://evil.example"}, 403),
        (Access(), {"origin": "null"}, 403),
        (Access(), {"origin": "http://localhost:3000"}, 403),
        (Access(), {"origin": "http://127.0.0.1:8321"}, 200),  # a page of this server's own
        (Access(origins=("http://localhost:3000",)), {"origin": "http://localhost:3000"}, 200),
        (Access(api_key=KEY), {}, 401),
        (Access(api_key=KEY), {"authorization": "Bearer a-secret-kez"}, 401),
        (Access(api_key=KEY), {"authorization": f"Basic {KEY}"}, 401),
        (Access(api_key=KEY), {"authorization": f"Bearer {KEY}"}, 200),
        (Access("0.0.0.0", KEY), {"authorization": f"bearer {KEY}", "host": "mac.local:8321"}, 200),
        (Access("0.0.0.0", KEY), {"host": "mac.local:8321"}, 401),
        (Access(), {"content-type": "text/plain"}, 415),  # what a page may send without asking
        (Access(max_body=1), {}, 413),
    ],
)
def test_who_is_let_in(access: Access, headers: dict[str, str], status: int) -> None:
    found = post(access, headers)
    assert found.status_code == status
    assert found.headers["x-request-id"] == "req_1"
    if status != 200:
        error = found.json()["error"]
        assert set(error) == {"message", "type", "param", "code", "request_id"}
        assert KEY not in found.text


def test_a_body_without_a_length_is_limited_too() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"{"
        yield b" " * 100

    with client(Access(max_body=64)) as made:
        found = made.post("/v1/x", content=pieces(), headers={"content-type": "application/json"})
    assert found.status_code == 413


def test_a_page_of_an_allowed_origin_may_read_the_answer_and_no_other() -> None:
    with client(Access(origins=("app://obsidian.md",))) as made:
        allowed = made.options("/v1/x", headers={"origin": "app://obsidian.md"})
        refused = made.options("/v1/x", headers={"origin": "https://evil.example"})
        health = made.get("/health")
    assert allowed.headers["access-control-allow-origin"] == "app://obsidian.md"
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-origin" not in health.headers


async def test_what_a_client_cost_that_left_is_not_said_to_be_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def pieces() -> AsyncGenerator[str]:
        yield "a"
        yield "b"

    scope = {"type": "http", "path": "/v1/x", "headers": [(b"host", b"x")], "state": {"request_id": "req_1"}}
    stream = _LogLine(Request(scope)).watch_stream(pieces())
    with caplog.at_level("INFO"):
        assert await anext(stream) == "a"
        await stream.aclose()
    assert "req_1 /v1/x left prompt=0 cached=- new=- - tok/s" in caplog.text


def test_beyond_loopback_a_key_is_needed() -> None:
    with pytest.raises(ConfigError, match="needs a key"):
        Access("0.0.0.0")
    with pytest.raises(ConfigError, match="8 characters"):
        Access(api_key="short")
    assert KEY not in repr(Access(api_key=KEY))
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "LOCALHOST", "0.0.0.0", "mac.local", "")] == [
        True
    ] * 3 + [False] * 3
