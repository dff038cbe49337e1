"""The endpoint's routes: bodies to requests, events to responses, errors in OpenAI's shape, one line of log for each.

On the event loop. The log has no text of prompts or replies.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlxkv.errors import MlxkvError
from mlxkv.server.errors import ApiError, invalid, of_error
from mlxkv.server.jobs import Accepted, Ended, Job, JobEvent
from mlxkv.server.merge import merged
from mlxkv.server.openai import chat_completions, completions, responses
from mlxkv.server.openai.fields import Fields
from mlxkv.server.openai.usage import counts
from mlxkv.server.registry import Registry
from mlxkv.server.security import Access, Guard, read_body
from mlxkv.server.served_model import ServedModel
from mlxkv.server.sse import KEEP_ALIVE_SECONDS, ClientLeftError, EventStream, data, unless_client_leaves
from mlxkv.system.keep_awake import KeepAwake

_log = logging.getLogger("mlxkv.server")


def make_app(
    registry: Registry,
    access: Access,
    *,
    keep_alive: float = KEEP_ALIVE_SECONDS,
    keep_awake: KeepAwake | None = None,
) -> Starlette:
    """The ASGI application. It loads the first model when it starts, and closes the model when it ends.

    Args:
        keep_alive: seconds without an event after which a stream sends a comment.
        keep_awake: told of the requests that run.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await registry.start()
        yield
        await registry.close()

    api = _Api(registry, access, keep_alive, keep_awake or KeepAwake(False))
    routes = [
        Route("/health", api.health, methods=["GET"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{name:path}", api.model, methods=["GET"]),
        Route("/v1/chat/completions", api.chat_completions, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/responses", api.responses, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, access=access, new_id=lambda: f"req_{secrets.token_hex(12)}")],
        exception_handlers={HTTPException: _http_error},
    )


class _Api:
    """The handlers."""

    def __init__(self, registry: Registry, access: Access, keep_alive: float, keep_awake: KeepAwake) -> None:
        self._registry, self._access, self._keep_alive, self._awake = registry, access, keep_alive, keep_awake

    async def health(self, request: Request) -> Response:
        """Whether a model is loaded; needs no key."""
        served = self._registry.loaded
        waiting = {} if served is None else {"running": served.num_running, "waiting": served.num_waiting}
        status = "loading" if served is None else "ok"
        return JSONResponse({"status": status, **waiting}, 503 if served is None else 200)

    async def models(self, request: Request) -> Response:
        """All models."""
        return JSONResponse({"object": "list", "data": [self._registry.table(name) for name in self._registry.names]})

    async def model(self, request: Request) -> Response:
        """One model."""
        try:
            return JSONResponse(self._registry.table(self._registry.resolve(request.path_params["name"])))
        except ApiError as error:
            return _failed(request, error)

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, _chat)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, _text)

    async def responses(self, request: Request) -> Response:
        return await self._answer(request, _response)

    async def _answer(self, request: Request, parse: Callable[[Fields], _Answer]) -> Response:
        line = _LogLine(request)
        try:
            answer = parse(Fields(_json(await read_body(request, self._access.max_body))))
            stack = AsyncExitStack()
            try:
                stack.enter_context(self._awake.running())
                served = await stack.enter_async_context(self._registry.use(answer.asked.model))
                events = line.watch(_events(served, answer.jobs, stack))
                return await self._respond(request, answer, events, line)
            except BaseException:
                await stack.aclose()
                raise
        except ClientLeftError:
            line.write("left")
            return Response(status_code=499)
        except Exception as error:
            line.write(of_error(error).status)
            if not isinstance(error, ApiError | MlxkvError):
                _log.exception("request %s failed", line.request_id)
            return _failed(request, error)

    async def _respond(
        self, request: Request, answer: _Answer, events: AsyncGenerator[JobEvent], line: _LogLine
    ) -> Response:
        created, name = int(time.time()), self._registry.loaded_name
        args = answer.asked, f"{answer.prefix}{secrets.token_hex(12)}", created, name
        if not answer.asked.stream:
            try:
                body = await unless_client_leaves(request.receive, answer.whole(events, *args))
            finally:
                await events.aclose()
            line.write(200)
            return JSONResponse(body)
        first = await unless_client_leaves(request.receive, _first(events))  # until here, errors have their own status
        pieces = answer.stream(_after(first, events), *args, self._keep_alive)

        async def end() -> None:
            await events.aclose()
            line.write("left")

        return EventStream(line.watch_stream(pieces), end)


class _Answer:
    """How one request is answered: `whole` makes the response from events, `stream` pieces of text."""

    def __init__(self, prefix: str, jobs: Sequence[Job], asked: Any, whole: Any, stream: Any) -> None:
        self.prefix, self.jobs, self.asked, self.whole, self.stream = prefix, jobs, asked, whole, stream


def _chat(table: Fields) -> _Answer:
    asked = chat_completions.chat_request(table)
    return _Answer("chatcmpl-", [asked.job], asked, chat_completions.chat_response, chat_completions.chat_chunks)


def _text(table: Fields) -> _Answer:
    asked = completions.text_request(table)
    return _Answer("cmpl-", asked.jobs, asked, completions.text_response, completions.text_chunks)


def _response(table: Fields) -> _Answer:
    asked = responses.response_request(table)
    return _Answer("resp_", [asked.job], asked, responses.whole_response, responses.response_events)


async def _events(served: ServedModel, jobs: Sequence[Job], stack: AsyncExitStack) -> AsyncGenerator[JobEvent]:
    """The events of all jobs, one of each job's Accepted first; closes `stack` at the end."""
    async with stack:
        streams = [served.events(job) for job in jobs]
        if len(streams) == 1:
            source: AsyncGenerator[JobEvent] = streams[0]
        else:
            source = merged(streams, lambda event, i: completions.indexed(event, i, jobs[0].n))
        try:
            async for event in source:
                yield event
        finally:
            await source.aclose()


async def _first(events: AsyncGenerator[JobEvent]) -> JobEvent:
    return await anext(events)


async def _after(first: JobEvent, events: AsyncGenerator[JobEvent]) -> AsyncGenerator[JobEvent]:
    try:
        yield first
        async for event in events:
            yield event
    finally:
        await events.aclose()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(None, f"The request is not JSON ({error}); send an object.", "invalid_json") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _failed(request: Request, error: BaseException) -> Response:
    told = of_error(error)
    return JSONResponse(told.body(request.state.request_id), told.status, dict(told.headers))


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown address, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    known = {404: f"There is nothing at {request.url.path}; this server has /v1/chat/completions, /v1/completions, "
                  "/v1/responses, /v1/models and /health.",
             405: f"{request.url.path} has no method {request.method}."}  # fmt: skip
    told = ApiError(
        error.status_code, known.get(error.status_code, error.detail), None, None, dict(error.headers or {})
    )
    return _failed(request, told)


class _LogLine:
    """One line of log for a request: what it cost, and nothing of what it said."""

    def __init__(self, request: Request) -> None:
        self.request_id, self._path = request.state.request_id, request.url.path
        self._started, self._is_written = time.perf_counter(), False
        self._ends: list[Ended] = []
        self._prompt = 0

    async def watch(self, events: AsyncGenerator[JobEvent]) -> AsyncGenerator[JobEvent]:
        """Count what passes."""
        try:
            async for event in events:
                if isinstance(event, Accepted):
                    self._prompt += event.num_tokens
                elif isinstance(event, Ended):
                    self._ends.append(event)
                yield event
        finally:
            await events.aclose()

    async def watch_stream(self, pieces: AsyncGenerator[str]) -> AsyncGenerator[str]:
        """Pass on a stream, and write the line at its end; an error in the midst becomes its last event."""
        outcome: int | str = "left"
        try:
            async for piece in pieces:
                yield piece
            outcome = 200
        except Exception as error:
            told = of_error(error)
            outcome = told.status
            if not isinstance(error, ApiError | MlxkvError):
                _log.exception("request %s failed", self.request_id)
            yield data(told.body(self.request_id))
        finally:
            await pieces.aclose()
            self.write(outcome)

    def write(self, outcome: int | str) -> None:
        if self._is_written:
            return
        self._is_written = True
        _, cached, generated = counts(self._ends)
        speed = next((end.stats.decode_tps for end in self._ends if end.stats.decode_tps), 0.0)
        is_counted = bool(self._ends) or outcome != "left"  # a client that leaves takes the count with it
        cost = f"cached={cached} new={generated} {speed:.1f} tok/s" if is_counted else "cached=- new=- - tok/s"
        reasons = ",".join(dict.fromkeys(end.reason for end in self._ends)) or "-"
        _log.info(
            "%s %s %s prompt=%d %s %.2f s %s", self.request_id, self._path, outcome, self._prompt, cost,
            time.perf_counter() - self._started, reasons,
        )  # fmt: skip
