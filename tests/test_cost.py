"""What a message costs does not grow with the chat, but for one rendering: counted, not timed."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mlxkv
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompts.prompt import PromptFormat
from mlxkv.config import Folders, Settings
from mlxkv.engine import Dispatcher
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import PENALISED, SamplingParams
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.store.db.database import Database
from mlxkv.tokenizer.chat_template import ChatTemplate
from mlxkv.tui.state.chat_state import ChatState
from tests.chats import say
from tests.hybrids import hybrid_folder
from tests.reference import tiny_llama
from tests.tokenizers import CHATML, FORGETFUL, tiny_folder, tiny_tokenizer

CONFIG = mlxkv.CacheConfig(window=64, block=16)
EARLY, LATE, EACH = 16, 80, 8  # messages before each count, and how many are counted
VM_STEPS = 50  # of SQLite between two calls of the counter


class Count:
    """What is done between `__enter__` and `__exit__`, by every thread; what happens inside a rendering is not counted.

    `calls` of functions, `steps` of SQLite's machine (in hundreds or so), turns `verified`, `rendered` messages,
    `renders`, `encoded` characters, `listed` folders.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self._paused = False
        self._patch = monkeypatch
        # Folders are as old as in a chat that takes its time.
        monkeypatch.setattr("mlxkv.store.kv.folder_listing._SETTLED_NS", 0)
        for module in ("history", "sessions"):
            self._tally(f"mlxkv.store.db.{module}.turn_digest", "verified")
        self._tally("mlxkv.store.kv.folder_listing._listed", "listed")
        self._tally("mlxkv.store.kv.commits.is_chunk", "chunks")
        self._tally("mlxkv.store.kv.chunk_files.regular_size", "files")
        encode, render = PromptFormat.encode, ChatTemplate.render

        def counted_encode(prompts: PromptFormat, text: str) -> list[int]:
            self.counts["encoded"] += len(text)
            return encode(prompts, text)

        def counted_render(template: ChatTemplate, messages: Any, **more: Any) -> str:
            self.counts["renders"] += 1
            self.counts["rendered"] += len(messages)
            with self._pause():
                return render(template, messages, **more)

        monkeypatch.setattr(PromptFormat, "encode", counted_encode)
        monkeypatch.setattr(ChatTemplate, "render", counted_render)
        init = Database.__init__

        def counted_init(database: Database, db: Any, *args: Any) -> None:
            init(database, db, *args)
            db.set_progress_handler(self._step, VM_STEPS)

        monkeypatch.setattr(Database, "__init__", counted_init)

    def _step(self) -> None:
        self.counts["steps"] += 1

    def _tally(self, name: str, what: str) -> None:
        module, function = name.rsplit(".", 1)
        original = getattr(sys.modules[module], function)

        def counted(*args: Any, **more: Any) -> Any:
            self.counts[what] += 1
            return original(*args, **more)

        self._patch.setattr(name, counted)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _call(self, frame: FrameType, event: str, arg: object) -> None:
        if event in ("call", "c_call") and not self._paused:
            self.counts["calls"] += 1

    def during(self, what: Callable[[], object]) -> Counter[str]:
        self.counts.clear()
        threading.setprofile(self._call)  # the thread that writes rows starts with a save
        sys.setprofile(self._call)
        try:
            what()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        return Counter(self.counts)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    return Count(monkeypatch)


def most(counts: list[Counter[str]]) -> Counter[str]:
    """Of each count the most of several messages: rows are merged into larger chunks now and then."""
    out: Counter[str] = Counter()
    for found in counts:
        out |= found
    return out


def early_and_late(count: Count, send: Callable[[int], object]) -> tuple[Counter[str], Counter[str]]:
    found, n = [], 0
    for until in (EARLY, LATE):
        while n < until:
            send(n)
            n += 1
        several = []
        for _ in range(EACH):
            several.append(count.during(lambda n=n: send(n)))
            n += 1
        found.append(most(several))
    return found[0], found[1]


def question(n: int) -> str:
    return f"what is number {n:04}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "rewriting", "recurrent"])
def test_a_message_costs_the_same_in_a_long_chat(tmp_path: Path, home: Path, count: Count, kind: str) -> None:
    """With a template that words history otherwise at each turn too, and with recurrent layers."""
    folder = tmp_path / "model"
    if kind == "recurrent":
        hybrid_folder(folder, "granitemoehybrid", tiny_tokenizer())
    else:
        tiny_folder(folder, template=FORGETFUL if kind == "rewriting" else CHATML)
    for n in range(256):  # as any store has sooner or later: each is looked at
        (Folders.from_env().cache / "kv" / f"{n:02x}").mkdir(mode=0o700, parents=True)
    told: list[ev.EngineEvent] = []
    dispatcher = Dispatcher(
        Folders.from_env(), Settings(temperature=0.0, max_tokens=2, window=64), told.append, save=True
    )
    state = ChatState(lambda: 0.0)
    dispatcher.handle(cmd.LoadModel(str(folder)))

    def send(n: int) -> None:
        told.clear()
        dispatcher.handle(cmd.Send(question(n), 0.0))
        chat = dispatcher.context.current_chat
        _ = chat.messages
        dispatcher.context.ready_model.store.flush(str(chat.session_id))  # what its rows cost is counted with it
        for event in told:
            assert not isinstance(event, ev.Failed), event
            state.apply(event)
        state.transcript.take_change()

    try:
        early, late = early_and_late(count, send)
        assert len(state.transcript.messages) == len(dispatcher.context.current_chat.messages) == 2 * (LATE + EACH)
    finally:
        dispatcher.context.close()  # not the dispatcher: this thread goes on using MLX
    assert late["verified"] == early["verified"] == 2  # the question and the reply continue the chain
    assert late["encoded"] == early["encoded"] < 200
    few = 2 if kind == "recurrent" else 0  # of the last message alone
    assert late["renders"] == early["renders"] == 1 + few
    assert late["rendered"] <= 2 * (LATE + EACH) + 8
    for what in ("chunks", "files", "listed", "steps"):
        assert late[what] <= 1.5 * early[what] + 4, (what, early, late)
    calls = [
        found["calls"] - found["rendered"] for found in (early, late)
    ]  # each message is made anew for the template
    assert calls[1] <= 1.5 * calls[0], (early, late)


@pytest.mark.slow
def test_a_history_is_verified_once_per_opening(home: Path, count: Count, tiny_path: Path) -> None:
    model = mlxkv.load(str(tiny_path))
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=2, autosave=True)
    for n in range(5):
        say(chat, question(n))
    session = str(chat.session_id)

    def verified(what: Callable[[], object]) -> int:
        return count.during(what)["verified"]

    assert verified(lambda: say(chat, question(5))) == 2
    assert verified(chat.save) == 0
    twins: list[mlxkv.Chat] = []
    assert verified(lambda: twins.append(chat.fork())) == 12  # what was copied
    assert verified(lambda: say(twins[0], "x")) == 2
    assert verified(twins[0].close) == 0
    chat.close()
    assert verified(lambda: twins.append(model.resume(session))) == 12
    chat = twins.pop()
    assert chat.restored is not None
    assert chat.restored.tokens
    assert verified(lambda: say(chat, "and then")) == 2
    assert verified(chat.undo) == 12
    assert verified(lambda: say(chat, "instead")) == 2
    assert verified(lambda: list(chat.retry())) == 12 + 2
    assert verified(lambda: list(chat.edit(0, "anew"))) == 2
    assert verified(model.store.verify) >= 12  # which trusts nothing
    chat.close()
    model.close()


def test_the_window_verifies_a_chat_once_when_it_opens_it(home: Path, count: Count, tiny_path: Path) -> None:
    told: list[ev.EngineEvent] = []
    dispatcher = Dispatcher(
        Folders.from_env(), Settings(temperature=0.0, max_tokens=2, window=64), told.append, save=True
    )
    dispatcher.handle(cmd.LoadModel(str(tiny_path)))
    for n in range(4):
        dispatcher.handle(cmd.Send(question(n), 0.0))
    first = str(dispatcher.context.current_chat.session_id)
    assert [(len(e.messages), e.first) for e in told if isinstance(e, ev.Versions)][-1] == (2, 6)
    dispatcher.handle(cmd.NewChat())
    assert count.during(lambda: dispatcher.handle(cmd.OpenChat(first)))["verified"] == 8
    assert [len(e.messages) for e in told if isinstance(e, ev.Versions)][-1] == 8
    dispatcher.context.close()


def test_penalties_look_at_the_end_of_a_long_prompt_only() -> None:
    """And no other tokens: the same tokens are sampled however much comes before."""
    model = tiny_llama(seed=3, vocab=64)
    params = SamplingParams(temperature=0.0, max_tokens=30, repetition_penalty=1.3)
    plan = plan_cache(model, CONFIG)
    prompt = [5, 6, 7, 8, 5, 6]
    out = []
    for before in ((), range(64)):
        cache = PromptCache(plan, model)
        seen = (*before, *([9] * PENALISED), *prompt)
        out.append(list(ModelRunner(model).decode(cache, prompt[-1], params, seen)))
    assert out[0] == out[1]
