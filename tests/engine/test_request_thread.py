"""The thread behind `open_async`: order, cancelling, errors and the end, which no caller may wait for in vain."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.cache.rings import in_place
from mlxkv.cache.rings.in_place import InPlace
from mlxkv.engine.request_thread import RequestThread
from mlxkv.engine.requests import RequestSpec
from mlxkv.errors import ClosedError, MlxkvError, ModelNotFoundError, PromptError, QueueFullError
from mlxkv.events import ReplyFinished, TextDelta, TurnEvent, TurnFinished
from mlxkv.scheduler import Scheduler

LIMIT = 60  # seconds: a test that would wait for ever fails instead
GREEDY = {"temperature": 0.0, "max_tokens": 12}


class Told:
    """A sink that can be waited for."""

    def __init__(self, when: Callable[[TurnEvent], object] = bool) -> None:
        self.events: list[TurnEvent] = []
        self.error: BaseException | None = None
        self._when, self._ended = when, threading.Event()

    def put(self, event: TurnEvent) -> None:
        self.events.append(event)
        self._when(event)

    def end(self, error: BaseException | None) -> None:
        self.error = error
        self._ended.set()

    @property
    def is_ended(self) -> bool:
        return self._ended.is_set()

    def last(self) -> TurnFinished:
        assert self._ended.wait(LIMIT), self.events
        assert self.error is None, self.error
        assert isinstance(self.events[-1], TurnFinished)
        return self.events[-1]

    def failure(self) -> BaseException:
        assert self._ended.wait(LIMIT), self.events
        assert self.error is not None, self.events
        return self.error


@pytest.fixture
def thread(tiny_path: Path) -> Iterator[RequestThread]:
    made = RequestThread(lambda cancel: mlxkv.load(tiny_path, cancel=cancel), max_waiting=64)
    made.start().result(LIMIT)
    yield made
    made.close()


def held(thread: RequestThread) -> Callable[[], None]:
    """Keep the thread busy with one function, until the result is called."""
    started, go = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        started.set()
        assert go.wait(LIMIT)

    thread.call(wait)
    assert started.wait(LIMIT)
    return go.set


def test_requests_of_each_kind_of_prompt_equal_those_of_a_model(thread: RequestThread, model: mlxkv.Model) -> None:
    prompts: list[Any] = ["once upon", [5, 9, 4], ({"role": "user", "content": "hi there"},)]
    sinks = [Told() for _ in prompts]
    for prompt, sink in zip(prompts, sinks, strict=True):
        thread.submit(RequestSpec(prompt, GREEDY), sink)
    found = [sink.last() for sink in sinks]
    assert all(isinstance(end, ReplyFinished) for end in found)
    assert [end.text for end in found] == [one.text for one in model.generate_batch(prompts, **GREEDY)]
    assert "".join(e.text for e in sinks[0].events if isinstance(e, TextDelta)) == found[0].text


def test_a_chat_and_requests_take_turns(thread: RequestThread, model: mlxkv.Model) -> None:
    order: list[str] = []
    go = held(thread)
    chat, request = Told(lambda _: order.append("chat")), Told(lambda _: order.append("request"))
    thread.iterate(lambda model: model.chat(**GREEDY).send("hi there"), chat)
    thread.submit(RequestSpec("once upon", GREEDY), request)
    go()
    assert chat.last().text == list(model.chat(**GREEDY).send("hi there"))[-1].text  # type: ignore[union-attr]
    assert request.last().text == model.generate("once upon", **GREEDY).text
    first = "".join(name[0] for name in order[:16])
    assert first in ("cr" * 8, "rc" * 8)


def test_a_cancelled_request_ends_early_and_one_in_line_proceeds(tiny_path: Path) -> None:
    thread = RequestThread(lambda cancel: mlxkv.load(tiny_path, cancel=cancel), max_rows=1, max_turns=1)
    thread.start().result(LIMIT)
    ids: list[int] = []
    first = Told(lambda event: isinstance(event, TextDelta) and thread.cancel(ids[0]))
    go = held(thread)
    ids.append(thread.submit(RequestSpec("once", {**GREEDY, "max_tokens": 100_000, "stop": None}), first))
    second = Told()
    thread.submit(RequestSpec("upon", GREEDY), second)
    go()
    assert first.last().reason == "stopped"
    assert len([event for event in first.events if isinstance(event, TextDelta)]) == 1
    assert second.last().reason in ("length", "stop")
    thread.close()


def test_the_line_is_bounded_and_a_cancelled_request_leaves_it(thread: RequestThread) -> None:
    go, sinks = held(thread), [Told() for _ in range(64)]
    ids = [thread.submit(RequestSpec("once", GREEDY), sink) for sink in sinks]
    with pytest.raises(QueueFullError, match="64 requests are waiting"):
        thread.submit(RequestSpec("once", GREEDY), Told())
    for job_id in ids[1:]:
        thread.cancel(job_id)
    go()
    assert sinks[0].last().reason in ("length", "stop")
    thread.submit(RequestSpec("once", GREEDY), again := Told())
    assert again.last().text == sinks[0].last().text
    assert {sink.last().reason for sink in sinks[1:] if sink.events} <= {"stopped"}


def test_what_is_in_one_line_is_done_in_order(thread: RequestThread) -> None:
    go, order, chat = held(thread), [], []
    thread.call(lambda model: chat.append(model.chat(**GREEDY)), line="chat")
    first, second = Told(lambda _: order.append(1)), Told(lambda _: order.append(2))
    thread.iterate(lambda _: chat[0].send("hi there"), first, "chat")
    thread.iterate(lambda _: chat[0].send("and now"), second, "chat")
    texts = thread.call(lambda _: [message.text for message in chat[0].messages], "chat")
    go()
    assert texts.result(LIMIT) == ["hi there", first.last().text, "and now", second.last().text]
    assert order == sorted(order)
    thread.call(lambda _: chat.clear()).result(LIMIT)


def test_a_seed_of_one_decides_no_other(thread: RequestThread) -> None:
    sampled = {"max_tokens": 24, "temperature": 5.0, "top_p": 1.0}

    def replies() -> tuple[str, str]:
        seeded, plain = Told(), Told()
        thread.iterate(lambda model: model.chat(seed=1, **sampled).send("hi there"), seeded)
        first = seeded.last().text
        thread.submit(RequestSpec("hi there", sampled), plain)
        return first, plain.last().text

    (one, plain), (two, other) = replies(), replies()
    assert one == two
    assert plain != other


@pytest.mark.slow
def test_the_peak_of_one_is_not_lost_when_another_begins(thread: RequestThread) -> None:
    """Nor is it that of one that begins later."""
    long, short = "a b " * 500, {"temperature": 0.0, "max_tokens": 2}

    def late(event: TurnEvent) -> None:
        if isinstance(event, TextDelta) and not ids:
            ids.append(thread.submit(RequestSpec("once", short), small))

    ids, small, alone, disturbed = [0], Told(), Told(), Told(late)
    thread.iterate(lambda model: model.chat(**GREEDY).send(long), alone)
    peak = alone.last().stats.peak_memory_bytes
    ids.clear()
    thread.iterate(lambda model: model.chat(**GREEDY).send(long), disturbed)
    assert disturbed.last().stats.peak_memory_bytes > 0.9 * peak
    assert small.last().stats.peak_memory_bytes < 0.9 * peak


def test_steps_are_measured_only_where_nothing_else_takes_memory(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drafted: whether that pays is a matter of durations, and it leaves too few steps to measure."""
    measured: list[int] = []
    monkeypatch.setattr(in_place, "_LEAST_BUFFER", 1)
    monkeypatch.setattr(InPlace, "_compare", lambda self, taken: measured.append(taken))
    thread = RequestThread(lambda cancel: mlxkv.load(tiny_path, cancel=cancel, draft=False))
    thread.start().result(LIMIT)
    for num_replies in (2, 1):
        go, sinks = held(thread), [Told() for _ in range(num_replies)]
        for sink in sinks:
            thread.iterate(lambda model: model.chat(**GREEDY).send("hi there"), sink)
        go()
        assert all(sink.last() for sink in sinks)
        assert bool(measured) == (num_replies == 1)
    thread.close()


def test_errors_reach_their_own_caller(thread: RequestThread) -> None:
    thread.submit(RequestSpec("", GREEDY), empty := Told())
    thread.submit(RequestSpec("once", {"temperature": -1}), wrong := Told())
    thread.iterate(lambda model: model.no_such_thing, failed := Told())  # type: ignore[attr-defined]
    assert isinstance(empty.failure(), PromptError)
    assert isinstance(wrong.failure(), mlxkv.errors.ConfigError)
    assert isinstance(failed.failure(), AttributeError)
    with pytest.raises(SystemExit):
        thread.call(lambda _: exit(3)).result(LIMIT)
    thread.submit(RequestSpec("once", GREEDY), after := Told())
    assert after.last()


def test_a_failing_scheduler_ends_its_requests_and_the_next_are_answered(
    thread: RequestThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = held(thread)
    sinks = [Told(), Told()]
    with monkeypatch.context() as patched:
        patched.setattr(Scheduler, "_begin_waiting", lambda self: 1 / 0)
        for sink in sinks:
            thread.submit(RequestSpec("once", GREEDY), sink)
        go()
        errors = [sink.failure() for sink in sinks]
    assert all(isinstance(error, MlxkvError) and isinstance(error.__cause__, ZeroDivisionError) for error in errors)
    thread.submit(RequestSpec("once", GREEDY), after := Told())
    assert after.last()


def test_nobody_waits_when_the_thread_ends(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = RequestThread(lambda cancel: mlxkv.load(tiny_path, cancel=cancel))
    thread.start().result(LIMIT)
    go = held(thread)
    thread.submit(RequestSpec("once", GREEDY), request := Told())
    thread.iterate(lambda model: model.chat(**GREEDY).send("hi there"), chat := Told())
    later = thread.call(lambda model: model.name)
    monkeypatch.setattr(RequestThread, "_round", lambda self: 1 / 0)
    go()
    for error in (request.failure(), chat.failure(), later.exception(LIMIT)):
        assert isinstance(error, ClosedError)
        assert "ZeroDivisionError" in str(error)
    with pytest.raises(ClosedError, match="ZeroDivisionError"):
        thread.submit(RequestSpec("once", GREEDY), Told())
    thread.close()


@pytest.mark.parametrize("finish", [False, True])
def test_closing_ends_or_finishes_what_runs(tiny_path: Path, finish: bool) -> None:
    thread = RequestThread(lambda cancel: mlxkv.load(tiny_path, cancel=cancel))
    thread.start().result(LIMIT)
    go = held(thread)
    thread.submit(RequestSpec("once", GREEDY), request := Told())
    thread.iterate(lambda model: model.chat(**GREEDY).send("hi there"), reply := Told())
    closed = thread.begin_close(finish=finish)
    with pytest.raises(ClosedError, match="open it again"):
        thread.call(bool)
    go()
    closed.result(LIMIT)
    if finish:
        assert {request.last().reason, reply.last().reason} <= {"length", "stop"}
    else:
        assert isinstance(request.failure(), ClosedError)
        assert isinstance(reply.failure(), ClosedError)
    thread.close()
    assert not thread._thread.is_alive()


def test_a_model_that_does_not_load() -> None:
    thread = RequestThread(lambda cancel: mlxkv.load("no-such-model", cancel=cancel))
    with pytest.raises(ModelNotFoundError):
        thread.start().result(LIMIT)
    thread.close()
