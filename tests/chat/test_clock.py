"""A template that prints the date: a chat and a prompt cache keep the one they began with, whatever day it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mlxkv
from mlxkv.chat.compaction import branch, plan
from mlxkv.chat.prompts import clock
from mlxkv.cli.app import app
from mlxkv.config import Folders
from mlxkv.model import Model
from mlxkv.store.session_store import SessionStore
from tests.chats import CONFIG, GREEDY, new, say
from tests.tokenizers import DATED, tiny_folder

EVENING = datetime.fromisoformat("2026-02-03T23:30:00+05:30")
BOOK = "a long book. " * 20


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "dated", template=DATED)


class Clock:
    def __init__(self) -> None:
        self.time = EVENING

    def __call__(self) -> datetime:
        return self.time

    def tomorrow(self) -> None:
        self.time += timedelta(days=1)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(clock, "now", made)

    class Today(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return made()

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Today)  # what a template asks without ours
    return made


@pytest.fixture
def dated(path: Path, now: Clock) -> Iterator[Model]:
    model = mlxkv.load(str(path))
    yield model
    model.close()


def front(model: Model, chat: mlxkv.Chat) -> str:
    """What the model was fed first."""
    return model.tokenizer.decode(chat.cache.tokens[:40]).split("\n")[1]


def all_reused(chat: mlxkv.Chat, text: str = "and now?") -> bool:
    """Whether the next message has itself to prefill, the last sampled token, and what the template puts around."""
    before = len(chat.log)
    stats = say(chat, text).stats
    return stats.cached_tokens >= before - 1 and stats.prefill_tokens < len(text) + 40


def test_a_chat_over_midnight_keeps_its_date(dated: Model, now: Clock) -> None:
    chat = new(dated, system="be brief")
    say(chat, "hi " * 60)
    say(chat, "and?")
    now.tomorrow()
    assert all_reused(chat)
    assert front(dated, chat) == "today 2026-02-03 23<|im_end|>"
    other = new(dated, system="be brief")
    say(other, "hi")
    assert front(dated, other) == "today 2026-02-04 23<|im_end|>"


@pytest.mark.slow
def test_whatever_a_chat_can_do_keeps_its_date(dated: Model, now: Clock) -> None:
    chat = new(dated, system="be brief", autosave=True)
    for text in ("hi " * 30, "and?", "or?", "so?"):
        say(chat, text)
    now.tomorrow()
    assert chat.num_to_read("what was it?") < 80
    assert all_reused(chat.fork(), "a fork")
    fork = chat.fork(2)
    assert say(fork, "another").stats.cached_tokens > 100
    asked = chat.undo()
    assert say(chat, asked).stats.cached_tokens > 100
    *_, last = chat.retry()
    assert isinstance(last, mlxkv.TurnFinished)
    assert last.stats.cached_tokens > 100
    *_, last = chat.edit(0, "ho")
    assert isinstance(last, mlxkv.TurnFinished)
    assert last.stats.cached_tokens >= len("<|im_start|>system\ntoday 2026-02-03 23") - 12
    assert front(dated, chat) == "today 2026-02-03 23<|im_end|>"
    for text in ("and?", "so?"):
        say(chat, text)
    short = branch(chat, plan(chat, "tiny", can_summarise=False), None)
    list(short.read())
    assert front(dated, short) == "today 2026-02-03 23<|im_end|>"
    assert all_reused(short)


def test_a_chat_that_waited_for_its_first_message_begins_with_it(dated: Model, now: Clock) -> None:
    """The window stood open over night."""
    chat = new(dated)
    now.tomorrow()
    say(chat, "hi")
    assert front(dated, chat) == "today 2026-02-04 23<|im_end|>"


@pytest.mark.slow
def test_a_resume_the_next_day_in_a_new_process_keeps_the_date(
    dated: Model, path: Path, now: Clock, home: Path
) -> None:
    chat = new(dated, system="be brief", autosave=True)
    say(chat, "hi " * 60)
    say(chat, "and?")
    session = str(chat.session_id)
    chat.close()
    script = f"""
import mlxkv
model = mlxkv.load({str(path)!r})
chat = model.resume({session!r})
before = len(chat.log)
*_, last = chat.send("and now?")
print(before, last.stats.cached_tokens, last.stats.prefill_tokens, chat._history.prompts.clock.isoformat())
chat.close()
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, cached, prefilled, began = ran.stdout.split()
    assert int(cached) >= int(before) - 1
    assert int(prefilled) < 60
    assert began == EVENING.isoformat()
    now.tomorrow()
    chat = dated.resume(session)
    assert all_reused(chat, "still?")
    *_, last = chat.edit(0, "ho")  # the front is rendered again
    assert isinstance(last, mlxkv.TurnFinished)
    assert front(dated, chat) == "today 2026-02-03 23<|im_end|>"
    chat.close()


def test_a_chat_of_an_older_version_resumes_with_all_reused(
    dated: Model, now: Clock, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SessionStore.load
    monkeypatch.setattr(SessionStore, "load", lambda self, session: replace(load(self, session), clock=None))
    chat = new(dated, system="be brief", autosave=True)
    say(chat, "hi " * 60)
    session = str(chat.session_id)
    chat.close()
    now.tomorrow()
    chat = dated.resume(session)
    assert all_reused(chat)
    assert chat._history.prompts.clock == clock.from_seconds(
        SessionStore.open(Folders.from_env()).load(session).created
    )
    chat.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_old", [False, True], ids=["with a clock", "of an older version"])
def test_a_prompt_cache_is_asked_the_next_day(dated: Model, now: Clock, tmp_path: Path, is_old: bool) -> None:
    pc = dated.prefill(BOOK, CONFIG, system="be brief")
    assert pc.prompt is not None
    assert pc.prompt.clock == EVENING.isoformat()
    if is_old:
        pc.prompt = replace(pc.prompt, clock=None)
    pc.save(tmp_path / "book.kv")
    now.tomorrow()
    chat = dated.chat(cache=dated.load_cache(tmp_path / "book.kv"), autosave=True, **GREEDY)
    done = say(chat, "who?")
    assert done.stats.cached_tokens == pc.offset
    assert done.stats.prefill_tokens < 60
    session = str(chat.session_id)
    chat.close()
    now.tomorrow()
    chat = dated.resume(session)  # a chat begun from a cache has the cache's clock
    assert all_reused(chat)
    assert chat._history.prompts.clock is not None
    assert chat._history.prompts.clock.date() == EVENING.date()
    chat.close()


def test_a_named_prompt_cache_is_asked_the_next_day(path: Path, now: Clock, home: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    cli = CliRunner()
    made = cli.invoke(app, ["cache", "create", "book", "-f", str(tmp_path / "book.txt"), "-s", "be", "-m", str(path)])
    assert made.exit_code == 0, made.output
    now.tomorrow()
    asked = ["-p", "who?", "--cache", "book", "-m", str(path), "--max-tokens", "4", "--output-format", "json"]
    done = cli.invoke(app, ["chat", *asked])
    assert done.exit_code == 0, done.output
    usage = json.loads(done.stdout)["usage"]
    assert usage["cached_tokens"] > len(BOOK)
    assert usage["prompt_tokens"] - usage["cached_tokens"] < 60


@pytest.mark.parametrize("text", ["2026-02-03T23:30:00", "yesterday", "", None])
def test_what_is_no_clock(text: str | None) -> None:
    assert clock.from_text(text) is None
    assert clock.from_text(EVENING.isoformat()) == EVENING
    assert clock.from_seconds(float("inf")).tzinfo is not None
    assert clock.from_seconds(EVENING.timestamp()) == EVENING
