"""`mlxkv.open_async` under asyncio: the same replies as alone, leaving a loop, the line, timeouts, errors, handles."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

import mlxkv
from mlxkv.engine.open_async.event_buffer import EventBuffer, joined
from mlxkv.errors import ClosedError, ConfigError, ModelNotFoundError, PromptError, QueueFullError, SessionNotFoundError
from mlxkv.events import PrefillProgress, TextDelta, TurnFinished
from mlxkv.inference.runner import ModelRunner
from tests.reference import random_ids

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
ENDLESS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1_000_000}  # it repeats itself


@pytest_asyncio.fixture
async def opened(tiny_path: Path) -> AsyncIterator[mlxkv.AsyncModel]:
    async with mlxkv.open_async(tiny_path, max_waiting=64) as model:
        yield model


def holding(model: mlxkv.AsyncModel) -> Callable[[], None]:
    """Keep the MLX thread busy until the result is called."""
    go, started = threading.Event(), threading.Event()
    model._thread.call(lambda _: (started.set(), go.wait(60)))
    assert started.wait(60)
    return go.set


async def idle(model: mlxkv.AsyncModel) -> None:
    """Wait until nothing runs and nothing waits on the MLX thread."""
    for _ in range(1000):  # rounds, in each of which an endless reply gets a token
        if not await model.run(lambda _: bool(model._thread._is_scheduling or len(model._thread._lines) > 1)):
            return
    raise AssertionError("something still runs")


@pytest.mark.slow
async def test_fifty_requests_at_once_equal_each_alone(opened: mlxkv.AsyncModel, model: mlxkv.Model) -> None:
    prompts: list[Any] = [random_ids(5 + i % 40, seed=i) for i in range(48)]
    prompts += ["once upon", [{"role": "user", "content": "hi there"}]]
    found = await asyncio.gather(*(opened.generate(prompt, **GREEDY) for prompt in prompts))
    each = [model.generate_batch([prompt], **GREEDY)[0] for prompt in prompts]
    assert [one.tokens for one in found] == [one.tokens for one in each]
    assert sum(one.stats.batched for one in found) > 40
    assert [one.tokens for one in await opened.generate_batch(prompts[-3:], **GREEDY)] == [o.tokens for o in each[-3:]]


async def test_several_texts_have_seeds_made_from_one(opened: mlxkv.AsyncModel, model: mlxkv.Model) -> None:
    sampled: dict[str, Any] = {"temperature": 2.0, "seed": 7, "max_tokens": 8}
    found = await opened.generate("once", n=3, **sampled)
    assert [one.text for one in found] == [one.text for one in model.generate("once", n=3, **sampled)]


async def test_hooks_and_logprobs_belong_to_a_request(opened: mlxkv.AsyncModel, model: mlxkv.Model) -> None:
    options: dict[str, Any] = {**GREEDY, "logprobs": 2}
    processors = [lambda ids, logits: -logits]
    tasks = [opened.generate("once", **options), opened.generate("once", processors=processors, **options)]
    plain, other = await asyncio.gather(*tasks)
    assert plain.tokens == model.generate("once", **options).tokens
    assert other.tokens == model.generate("once", processors=processors, **options).tokens != plain.tokens
    assert [one.token for one in other.logprobs] == list(other.tokens)
    assert await opened.count("once") == model.count("once")
    score, held = await opened.score(" there", cache=await opened.prefill("once")), model.prefill("once")
    assert score.logprob == pytest.approx(model.score(" there", cache=held).logprob)
    assert (await opened.choose(["ab", "ba"])).option == model.choose(["ab", "ba"]).option


def chunks_of(monkeypatch: pytest.MonkeyPatch, each: Callable[[], object]) -> None:
    """Call `each` on the MLX thread after every chunk of more than one token."""
    feed = ModelRunner._feed

    def fed(self: ModelRunner, cache: Any, ids: Any, done: int, most: int, model: Any) -> Any:
        result = feed(self, cache, ids, done, most, model)
        if result[0] > 1:
            each()
        return result

    monkeypatch.setattr(ModelRunner, "_feed", fed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["score", "choose"])
async def test_replies_go_on_while_texts_are_scored(
    opened: mlxkv.AsyncModel, model: mlxkv.Model, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    text, order = "once upon a time " * 40, list[str]()

    def note(tokens: Any, logits: Any) -> Any:
        order.append("token")
        return logits

    async with opened.stream("once", processors=[note], **ENDLESS) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
        chunks_of(monkeypatch, lambda: order.append("chunk"))
        if kind == "score":
            scores = (await opened.score(text),)
        else:
            scores = (await opened.choose([text, "so " + text])).scores
    monkeypatch.undo()
    assert order.count("chunk") > 1
    joined = " ".join(order)
    assert "chunk chunk" not in joined
    assert "chunk token chunk" in joined  # the other reply has a turn after every one
    assert scores == ((model.score(text),) if kind == "score" else model.choose([text, "so " + text]).scores)


async def test_a_score_that_nobody_waits_for_ends(opened: mlxkv.AsyncModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, chunks = asyncio.Event(), threading.Event(), list[int]()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        chunks.append(1)
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(60)

    chunks_of(monkeypatch, wait)
    task = asyncio.create_task(opened.score("once upon a time " * 40))
    await begun.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    go.set()
    await idle(opened)
    assert len(chunks) == 1


async def test_a_chat_begins_with_messages_and_answers_them(opened: mlxkv.AsyncModel, model: mlxkv.Model) -> None:
    messages = [{"role": "user", "content": "hi there"}]
    chat = opened.chat(messages=messages, **GREEDY)
    found = await chat.ask()
    assert found == dataclasses.replace(model.chat(messages=messages, **GREEDY).ask(), stats=found.stats)
    await chat.add("user", "and now")
    async for _ in chat.reply():
        pass
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2


async def leave_by_break(model: mlxkv.AsyncModel, begun: asyncio.Event) -> None:
    async for event in model.stream("once", **ENDLESS):
        if isinstance(event, TextDelta):
            break


async def leave_by_error(model: mlxkv.AsyncModel, begun: asyncio.Event) -> None:
    with suppress(ZeroDivisionError):
        async for event in model.stream("once", **ENDLESS):
            assert isinstance(event, PrefillProgress) or 1 / 0


async def leave_by_aclose(model: mlxkv.AsyncModel, begun: asyncio.Event) -> None:
    async with model.stream("once", **ENDLESS) as events:
        await anext(events)
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def leave_by_cancelling(model: mlxkv.AsyncModel, begun: asyncio.Event) -> None:
    async def consume() -> None:
        async for _ in model.chat(**ENDLESS).send("hi there"):
            begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_timeout(model: mlxkv.AsyncModel, begun: asyncio.Event) -> None:
    with pytest.raises(TimeoutError, match="longer than 0 s"):
        await model.chat(**ENDLESS).ask("hi there", timeout=0)
    with pytest.raises(TimeoutError):
        await model.generate("once", timeout=0.001, **ENDLESS)
    with pytest.raises(TimeoutError):
        await model.generate_batch(["once"] * 3, timeout=0.001, **ENDLESS)


LEAVE = [leave_by_break, leave_by_error, leave_by_aclose, leave_by_cancelling, leave_by_timeout]


@pytest.mark.parametrize("leave", LEAVE)
async def test_leaving_frees_the_place_of_a_request(
    tiny_path: Path, leave: Callable[[mlxkv.AsyncModel, asyncio.Event], Awaitable[None]]
) -> None:
    """An endless request is gone once its loop is left: the thread has nothing to do."""
    async with mlxkv.open_async(tiny_path) as model:
        await leave(model, asyncio.Event())
        await idle(model)
        assert (await model.generate("upon", **GREEDY)).stats.not_batched_why == "nothing else ran"


async def test_a_timeout_counts_for_a_slow_consumer_too(opened: mlxkv.AsyncModel) -> None:
    async with opened.stream("once", timeout=3600, **ENDLESS) as events:
        await anext(events)
        while not events._buffer._events:
            await asyncio.sleep(0)
        events._until = 0.0  # of the loop's clock
        with pytest.raises(TimeoutError, match="longer than 3600 s"):
            await anext(events)


async def test_a_deadline_ends_a_reply_as_it_is(opened: mlxkv.AsyncModel) -> None:
    found = await opened.generate("once", deadline=0.05, **ENDLESS)
    assert found.stats.finish_reason == "deadline"
    found = await opened.generate_batch(["once", "upon"], deadline=0, **ENDLESS)
    assert [one.stats.finish_reason for one in found] == ["deadline"] * 2


async def test_the_line_is_bounded_and_all_in_it_are_answered(tiny_path: Path) -> None:
    async with mlxkv.open_async(tiny_path, max_waiting=3) as model:
        go, order = holding(model), []

        async def ask(i: int) -> None:
            await model.generate("once", **GREEDY)
            order.append(i)

        tasks = [asyncio.create_task(ask(i)) for i in range(3)]
        await asyncio.gather(*[asyncio.sleep(0)] * 3)
        with pytest.raises(QueueFullError, match="3 requests are waiting"):
            await model.generate("once", **GREEDY)
        with pytest.raises(QueueFullError):
            await model.chat().ask("hi there")
        go()
        await asyncio.gather(*tasks)
        assert sorted(order) == [0, 1, 2]  # they are answered together: which ends first is left open


async def test_errors_are_raised_where_they_belong(opened: mlxkv.AsyncModel) -> None:
    with pytest.raises(PromptError, match="prompt is empty"):
        await opened.generate("")
    with pytest.raises(PromptError, match=r"prompts\[1\]: The prompt is empty"):
        await opened.generate_batch(["once", ""], **ENDLESS)
    with pytest.raises(ConfigError, match="temprature"):
        await opened.generate("once", temprature=1)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="system"):
        await opened.chat(system=3).ask("hi")  # type: ignore[arg-type]
    with pytest.raises(SessionNotFoundError):
        await opened.resume("none")
    with pytest.raises(ModelNotFoundError):
        await mlxkv.open_async("no-such-model")
    with pytest.raises(ZeroDivisionError):
        await opened.run(lambda _: 1 / 0)
    await idle(opened)


async def test_a_chat_is_asked_in_order_saved_and_resumed(opened: mlxkv.AsyncModel, model: mlxkv.Model) -> None:
    chat, same = opened.chat(system="be brief", **GREEDY), model.chat(system="be brief", **GREEDY)
    found = await asyncio.gather(chat.ask("hi there"), chat.ask("and now"))
    for text in ("hi there", "and now"):
        for _ in same.send(text):
            pass
    assert [m.text for m in chat.messages] == [m.text for m in same.messages]
    assert [one.text for one in found] == [m.text for m in chat.messages[1::2]]
    assert chat.stats.cached_tokens == same.stats.cached_tokens > 0
    session = await chat.save("two")
    twin = await chat.fork(2)
    assert (chat.session_id, chat.title, len(twin.messages)) == (session, "two", 2)
    assert await twin.undo() == "hi there"
    await chat.close()
    with pytest.raises(ClosedError, match="closed"):
        await chat.ask("more")
    async with await opened.resume("two") as again:
        assert again.messages == chat.messages
        assert again.restored is not None
        await again.ask("more")


async def test_a_message_after_a_reply_that_was_left_sees_what_it_said(opened: mlxkv.AsyncModel) -> None:
    chat = opened.chat(**ENDLESS)
    async for event in chat.send("hi there"):
        if isinstance(event, TextDelta):
            break
    await chat.ask("and now", max_tokens=2)
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 2


async def test_a_cancelled_chat_ends_with_a_turn_finished(opened: mlxkv.AsyncModel) -> None:
    chat, last = opened.chat(**ENDLESS), None
    async for event in chat.send("hi there"):
        if isinstance(event, TextDelta):
            chat.cancel()
        last = event
    assert isinstance(last, TurnFinished)
    assert (last.reason, chat.messages[-1].text) == ("stopped", last.text)


@pytest.mark.slow
async def test_prompt_caches_are_handles_that_nothing_changes(
    opened: mlxkv.AsyncModel, model: mlxkv.Model, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    text = "once upon a time " * 40
    cache = await opened.prefill(text, progress=lambda done, total: seen.append((done, total)))
    held = model.prefill(text)
    assert (cache.offset, seen[-1]) == (held.offset, (held.offset, held.offset))
    want = model.generate(" there", cache=held.fork(), **GREEDY)
    found = await asyncio.gather(*(opened.generate(" there", cache=cache, **GREEDY) for _ in range(2)))
    assert [one.text for one in found] == [want.text] * 2
    assert [one.stats.cached_tokens for one in found] == [want.stats.cached_tokens] * 2
    await cache.save(tmp_path / "once.kv")
    twin = await cache.fork()
    await cache.close()
    with pytest.raises(ClosedError):
        await opened.generate(" there", cache=cache, **GREEDY)
    for other in (twin, await opened.load_cache(tmp_path / "once.kv")):
        assert (await opened.generate(" there", cache=other, **GREEDY)).text == want.text
        assert other.offset == held.offset
    book = await opened.prefill("once upon", system="be brief")
    assert (await opened.chat(cache=book, **GREEDY).ask("hi")).stats.cached_tokens == book.offset
    assert await book.run(lambda cache: cache.offset) == book.offset


async def test_handles_are_freed_with_their_last_reference(opened: mlxkv.AsyncModel) -> None:
    chat, cache = opened.chat(**GREEDY), await opened.prefill("once")
    await chat.ask("hi")
    assert len(opened._thread.closers) == 2
    del chat, cache
    gc.collect()
    assert await opened.run(lambda _: len(opened._thread.closers)) == 0


@pytest.mark.parametrize("finish", [False, True])
async def test_closing_with_running_requests(tiny_path: Path, finish: bool) -> None:
    model = await mlxkv.open_async(tiny_path)
    go, chat = holding(model), model.chat(**GREEDY)
    tasks = [asyncio.create_task(model.generate("once", **GREEDY)), asyncio.create_task(chat.ask("hi there"))]
    await asyncio.gather(*[asyncio.sleep(0)] * 3)
    closing = asyncio.create_task(model.close(finish=finish))
    await asyncio.sleep(0)
    go()
    await closing
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [mlxkv.Completion if finish else ClosedError] * 2
    with pytest.raises(ClosedError, match="open it again"):
        await model.generate("once")
    await model.close()


async def test_an_error_on_the_thread_reaches_all_who_wait(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mlxkv.open_async(tiny_path) as model:
        go = holding(model)
        tasks = [asyncio.create_task(model.generate("once")), asyncio.create_task(model.chat().ask("hi there"))]
        tasks.append(asyncio.create_task(model.count("once")))  # type: ignore[arg-type]
        await asyncio.gather(*[asyncio.sleep(0)] * 3)
        monkeypatch.setattr(type(model._thread), "_round", lambda self: 1 / 0)
        go()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [ClosedError] * 3


def test_one_loop_after_the_other(tiny_path: Path) -> None:
    """As in notebooks and tests: the model outlives a loop, and so does what a loop left running."""
    loops = [asyncio.new_event_loop(), asyncio.new_event_loop()]
    model = loops[0].run_until_complete(_open(tiny_path))
    chat = model.chat(**GREEDY)
    first = loops[0].run_until_complete(chat.ask("hi there"))
    left = model.stream("once", **ENDLESS)
    loops[0].run_until_complete(_next(left))
    loops[0].close()
    loops[1].run_until_complete(idle(model))  # its events cannot be delivered: it is cancelled
    second = loops[1].run_until_complete(chat.ask("and now"))
    assert [m.text for m in chat.messages[1::2]] == [first.text, second.text]
    loops[1].run_until_complete(model.close())
    loops[1].close()


async def test_a_client_that_leaves_a_web_app_frees_its_place(opened: mlxkv.AsyncModel, model: mlxkv.Model) -> None:
    """As FastAPI does it, which is starlette: one client leaves after the first piece, another is answered."""

    async def answer(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            options = ENDLESS if request.url.path == "/endless" else GREEDY
            async for event in opened.stream("once upon", **options):
                if isinstance(event, TextDelta):
                    yield event.text

        return StreamingResponse(pieces(), media_type="text/plain")

    app = Starlette(routes=[Route("/{name}", answer)])

    async def ask(path: str, leaves: bool) -> str:
        bodies, leave, has_asked = [], asyncio.Event(), False

        async def receive() -> dict[str, Any]:
            nonlocal has_asked
            if not has_asked:
                has_asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            bodies.append(message.get("body", b""))
            if leaves and bodies[-1]:
                leave.set()

        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "GET", "path": path}
        await app({**scope, "query_string": b"", "headers": []}, receive, send)
        return b"".join(bodies).decode()

    left, text = await asyncio.gather(ask("/endless", leaves=True), ask("/short", leaves=False))
    assert left
    assert text == model.generate("once upon", **GREEDY).text
    await idle(opened)


async def _open(path: Path) -> mlxkv.AsyncModel:
    return await mlxkv.open_async(path)


async def _next(events: Any) -> Any:
    return await anext(events)


async def test_opening_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, seen = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def load(name: str, *, cancel: threading.Event, **_: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        seen.append(cancel.wait(60))
        raise ModelNotFoundError("cancelled")

    monkeypatch.setattr("mlxkv.engine.open_async.async_model.load", load)
    opening = mlxkv.open_async("any")
    task = asyncio.ensure_future(_entered(opening))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    opening._thread.close()
    assert seen == [True]


async def _entered(opening: Any) -> None:
    async with opening:
        pass


def test_a_slow_consumer_gets_longer_pieces() -> None:
    woken: list[bool] = []
    buffer = EventBuffer(lambda: woken.append(True))
    for i in range(3):
        buffer.put(PrefillProgress(i, 3, 0, 1.0))
    for i, text in enumerate("abc"):
        buffer.put(TextDelta(text, i + 1, thinking=True))
    buffer.put(TextDelta("abc", 4, thinking=True, restarts=True))
    for i, text in enumerate("def"):
        buffer.put(TextDelta(text, i + 5))
    assert len(woken) == 1
    taken = [buffer.take() for _ in range(5)]
    assert taken == [
        PrefillProgress(2, 3, 0, 1.0),
        TextDelta("abc", 3, thinking=True),
        TextDelta("abc", 4, thinking=True, restarts=True),
        TextDelta("def", 7),
        None,
    ]
    assert joined(TextDelta("a", 1), PrefillProgress(0, 1, 0, 1.0)) is None
