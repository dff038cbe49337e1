"""The dispatcher with a real model on this thread: undo, forks, titles, export, settings."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxkv.config import Folders, Settings, private_folder
from mlxkv.device import Device
from mlxkv.engine import Dispatcher
from mlxkv.engine.downloads import Downloads
from mlxkv.errors import MlxkvError, ModelDownloadError, OutOfMemoryError
from mlxkv.models.hub.download import Plan, RemoteFile
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.status import ModelTooLarge
from mlxkv.stats import bytes_text
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import EncodedChunk
from mlxkv.tui.state.lists.choice_lists import chat_row
from mlxkv.tui.state.reports.reports import context_rows, stats_lines
from mlxkv.tui.state.reports.saved_text import saved_text
from tests.tokenizers import CHATML, tiny_folder

SETTINGS = Settings(temperature=0.0, max_tokens=12, window=256)
DEVICE = Device("test", False, 10**10, 10**10, False)


class Said:
    """A dispatcher, and what it said since it was last asked something."""

    def __init__(self, settings: Settings = SETTINGS, save: bool = True) -> None:
        self.events: list[ev.EngineEvent] = []
        self.dispatcher = Dispatcher(Folders.from_env(), settings, lambda event: self.events.append(event), save=save)
        self.context = self.dispatcher.context

    def ask(self, command: cmd.Command) -> list[ev.EngineEvent]:
        self.events.clear()
        self.dispatcher.handle(command)
        return list(self.events)

    def one(self, command: cmd.Command, kind: type[Any]) -> Any:
        events = self.ask(command)
        found = [event for event in events if isinstance(event, kind)]
        assert len(found) == 1, events
        return found[0]


@pytest.fixture
def said(home: Path, tiny_path: Path) -> Iterator[Said]:
    """Two questions and their replies."""
    said = Said()
    assert said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    said.one(cmd.Send("two", 0.0), ev.TurnFinished)
    yield said
    said.context.close()  # not the dispatcher: this thread still uses MLX


def texts(opened: ev.ChatOpened) -> list[str]:
    return [m.text for m in opened.messages if m.role == "user"]


@pytest.mark.slow
def test_rewinding_gives_the_text_back_and_leaves_the_old_branch(said: Said) -> None:
    opened = said.one(cmd.Rewind(2), ev.ChatOpened)
    assert (texts(opened), opened.prompt) == (["one"], "two")
    finished = said.one(cmd.Send("drei", 0.0), ev.TurnFinished)
    assert finished.stats.cached_tokens > 0
    branches = said.one(cmd.ShowTree(), ev.ChatTree).branches
    assert [(b.num_turns, b.forked_at, b.is_current) for b in branches] == [(4, None, False), (4, 2, True)]


def test_the_kv_figures_follow_the_chat_back(home: Path, tiny_path: Path) -> None:
    said = Said()
    said.ask(cmd.LoadModel(str(tiny_path)))

    def figures(events: list[ev.EngineEvent], which: int = -1) -> tuple[int, int, int]:
        """KV as the footer, the panel and /context count it."""
        status = [event for event in events if isinstance(event, ev.SessionStatus)][which]
        ring = status.cache
        assert ring is not None
        assert (ring.live, ring.live_bytes) == (status.cache_tokens, status.kv_bytes)
        return status.kv_bytes, status.cache_tokens, ring.head

    def in_context() -> int:
        return sum(part.live for part in said.one(cmd.ShowContext(), ev.ContextUsage).parts)

    after = [(0, 0, 0), *(figures(said.ask(cmd.Send(text, 0.0))) for text in ("one", "two", "three"))]
    assert after == sorted(set(after))
    assert in_context() == after[3][1]
    whole = said.context.current_chat.session_id
    assert figures(said.ask(cmd.Rewind())) == after[2]
    assert in_context() == after[2][1]
    assert figures(said.ask(cmd.Rewind(2))) == after[1]
    assert said.one(cmd.ShowStats(), ev.SessionStats).kv_bytes == after[1][0]
    said.ask(cmd.OpenChat(str(whole)))
    assert figures(said.events) == after[3]
    assert 0 < figures(said.ask(cmd.Retry(3)), 0)[1] <= after[1][1] + 1  # before its prefill; + 1: an end-of-turn token
    assert figures(said.ask(cmd.Edit(0, "eins", 0.0)), 0) == after[0]
    two = figures(said.ask(cmd.Send("zwei", 0.0)))
    assert 0 < figures(said.ask(cmd.Fork(1)))[1] < two[1]
    assert figures(said.ask(cmd.NewChat())) == after[0]
    said.context.close()


@pytest.mark.slow
def test_a_retry_is_shown_where_it_happens_and_counted_as_a_version(said: Said) -> None:
    events = said.ask(cmd.Retry(1))
    kinds = [type(e) for e in events]
    opened, started = kinds.index(ev.ChatOpened), kinds.index(ev.TurnStarted)
    assert opened < started < kinds.index(ev.TurnFinished)
    assert next(e for e in events if isinstance(e, ev.ChatOpened)).messages == ()
    assert next(e for e in events if isinstance(e, ev.TurnStarted)).text == "one"
    versions = [e for e in events if isinstance(e, ev.Versions)][-1]
    assert kinds.index(ev.Versions, started) < kinds.index(ev.TurnFinished)  # so that its figures can count them
    assert [len(of) for of in versions.messages] == [1, 2]
    assert [s.is_current for s in versions.messages[1]] == [False, True]


def test_an_edit_replaces_the_question(said: Said) -> None:
    events = said.ask(cmd.Edit(0, "uno", 0.0))
    assert [e.text for e in events if isinstance(e, ev.TurnStarted)] == ["uno"]
    versions = [e for e in events if isinstance(e, ev.Versions)][-1]
    assert [s.text for s in versions.messages[0]] == ["one", "uno"]


@pytest.mark.slow
def test_a_fork_before_a_question_and_after_a_reply(said: Said) -> None:
    before = said.one(cmd.Fork(2), ev.ChatOpened)
    assert (texts(before), before.prompt) == (["one"], "two")
    said.one(cmd.OpenChat(said.one(cmd.ListChats(), ev.ChatList).chats[-1].id), ev.ChatOpened)
    after = said.one(cmd.Fork(1), ev.ChatOpened)
    assert (texts(after), after.prompt, len(after.messages)) == (["one"], "", 2)
    assert isinstance(said.ask(cmd.Fork(99))[0], ev.Failed)


def test_a_cut_reply_goes_on_in_place(said: Said) -> None:
    before = said.context.current_chat.messages[-1].text
    events = said.ask(cmd.Continue())
    deltas = "".join(e.text for e in events if isinstance(e, ev.TextDelta))
    finished = next(e for e in events if isinstance(e, ev.TurnFinished))
    assert deltas == finished.text
    assert finished.text.startswith(before)
    assert len(finished.text) > len(before)
    assert len(said.context.current_chat.messages) == 4


@pytest.mark.slow
def test_naming_finding_and_deleting(said: Said) -> None:
    assert said.one(cmd.RenameChat("  Two\n numbers "), ev.ChatRenamed).title == "Two numbers"
    hits = said.one(cmd.SearchChats("two"), ev.ChatHits).hits
    assert [(h.title, h.role) for h in hits] == [("Two numbers", "title"), ("Two numbers", "user")]
    assert [hits[0].snippet[a:b] for a, b in hits[0].marks] == ["Two"]
    session = said.one(cmd.ListChats(), ev.ChatList).chats[0].id
    assert isinstance(said.ask(cmd.RenameChat(" "))[0], ev.Failed)
    events = said.ask(cmd.DeleteChat())
    assert [type(e) for e in events[:3]] == [ev.ChatDeleted, ev.Versions, ev.ChatOpened]
    assert said.one(cmd.ListChats(), ev.ChatList).chats == ()
    assert isinstance(said.ask(cmd.OpenChat(session))[0], ev.Failed)
    assert isinstance(said.ask(cmd.DeleteChat())[0], ev.Failed)


def test_the_footer_says_which_fork_the_chat_in_front_is(said: Said) -> None:
    """In the order they were made, as beside the window; a fork of a fork counts on."""
    first = said.context.current_chat.session_id
    for number, turn in ((1, 1), (2, 1), (3, None)):
        status = next(e for e in reversed(said.ask(cmd.Fork(turn))) if isinstance(e, ev.SessionStatus))
        assert status.fork == number
    back = said.ask(cmd.OpenChat(str(first)))
    assert [e.fork for e in back if isinstance(e, ev.SessionStatus)] == [0]


def test_a_chat_is_written_out_and_never_over_a_file(said: Said, tmp_path: Path) -> None:
    family = "\U0001f468\u200d\U0001f469"
    said.one(cmd.RenameChat(family), ev.ChatRenamed)
    for kind in ("md", "json", "mlxkv"):
        target = tmp_path / f"out.{kind}"
        assert said.one(cmd.ExportChat(kind, str(target)), ev.ChatExported).path == str(target)
        assert b"two" in target.read_bytes()
        failed = said.one(cmd.ExportChat(kind, str(target)), ev.Failed)
        assert "exists already" in failed.text
    assert family in (tmp_path / "out.md").read_text()  # joined, as it was written
    for kind in ("md", "mlxkv"):
        assert "cannot be written" in said.one(cmd.ExportChat(kind, str(tmp_path / "no" / "x")), ev.Failed).text
    with said.context.store() as store:
        done = store.import_chat(tmp_path / "out.mlxkv", trust_kv=True)
    assert done.kv_tokens > 0
    assert "must be md, json or mlxkv" in said.one(cmd.ExportChat("pdf", str(tmp_path / "x")), ev.Failed).text


@pytest.mark.slow
def test_what_fills_the_window_adds_up(said: Said) -> None:
    use = said.one(cmd.ShowContext(), ev.ContextUsage)
    chat = said.context.current_chat
    assert [p.role for p in use.parts] == ["user", "assistant", "user", "assistant"]
    assert sum(p.tokens for p in use.parts) == len(chat.log) - 1  # the last token sampled is not fed yet
    assert sum(p.live for p in use.parts) == chat.cache.num_attended
    for i in range(12):
        said.one(cmd.Send(f"more and more, {i} times more than before", 0.0), ev.TurnFinished)
    use = said.one(cmd.ShowContext(), ev.ContextUsage)
    gone = sum(p.tokens - p.live for p in use.parts)
    assert gone == chat.cache.num_evicted > 0
    assert sum(p.tokens for p in use.parts) == len(chat.log) - 1


@pytest.mark.slow
def test_the_system_prompt_has_its_tokens_also_after_a_resume(said: Said) -> None:
    said.ask(cmd.NewChat("Be good, and brief."))
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    before = said.one(cmd.ShowContext(), ev.ContextUsage)
    assert before.parts[0].role == "system"
    assert before.parts[0].tokens == before.parts[0].live == said.context.current_chat.num_system_tokens > 10
    session = str(said.context.current_chat.session_id)
    said.ask(cmd.NewChat())
    said.one(cmd.OpenChat(session), ev.ChatOpened)
    assert said.one(cmd.ShowContext(), ev.ContextUsage).parts[0] == before.parts[0]


@pytest.mark.slow
@pytest.mark.parametrize("is_lost", [False, True])
def test_footer_context_and_resume_tell_the_same_figures(
    said: Said, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every chat opened again, at each place within a block; with a part of the rows left to prefill too."""
    geometry = said.context.current_chat.cache.plan.geometry
    assert geometry
    places, evicted = set[int](), 0
    for i in range(8):
        said.one(cmd.Send("x" * (60 + i % 3), 0.0), ev.TurnFinished)
        chat = said.context.current_chat
        places.add((chat.cache.offset - geometry.sinks) % geometry.block)
        evicted, session = chat.cache.num_evicted, str(chat.session_id)
        said.ask(cmd.NewChat())
        if is_lost:
            monkeypatch.setattr(type(chat.cache), "can_save", False)
        said.ask(cmd.OpenChat(session))
        monkeypatch.undo()
        (opened,) = [e for e in said.events if isinstance(e, ev.ChatOpened)]
        status = [e for e in said.events if isinstance(e, ev.SessionStatus)][-1]
        use = said.one(cmd.ShowContext(), ev.ContextUsage)
        live, waiting = sum(p.live for p in use.parts), sum(p.waiting for p in use.parts)
        assert live == status.cache_tokens == opened.restored_tokens
        assert status.kv_bytes == opened.restored_bytes
        assert (opened.evicted_tokens, waiting) == ((0, len(chat.log)) if is_lost else (evicted, 0))
    assert len(places) > 1
    assert is_lost or evicted > 0


@pytest.mark.slow
def test_the_templates_own_system_prompt_is_no_part_of_the_first_message(home: Path, tmp_path: Path) -> None:
    """As SmolLM2's and Qwen2.5's; a template that begins with marks alone has none. A letter or mark is a token."""
    own = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML
    for name, template, system, parts in (
        ("own", own, None, [("system", "", 19), ("user", "hello", 23)]),  # to the mark at which a reply would differ
        ("own", own, "Be bad!", [("system", "Be bad!", 17), ("user", "hello", 24)]),
        ("none", CHATML, None, [("user", "hello", 24)]),
    ):
        said = Said()
        said.one(cmd.LoadModel(str(tiny_folder(tmp_path / name, template=template))), ev.ModelReady)
        said.ask(cmd.NewChat(system))
        said.one(cmd.Send("hello", 0.0), ev.TurnFinished)
        use = said.one(cmd.ShowContext(), ev.ContextUsage)
        assert [(p.role, p.text, p.tokens) for p in use.parts[:-1]] == parts
        assert context_rows(use)[0].text == (parts[0][1] or "the chat template's own")
        said.context.close()


def test_tokens_are_counted_by_the_models_own_tokenizer(said: Said, home: Path) -> None:
    assert said.ask(cmd.CountTokens("k", "one two")) == [ev.TokensCounted("k", 7)]  # a letter, a token
    assert Said().ask(cmd.CountTokens("k", "one two")) == []  # nobody to ask, and nobody fails for it


def test_what_lies_on_the_disk_is_listed_cleaned_up_and_kept(said: Said, home: Path) -> None:
    session = said.context.current_chat.session_id
    listed = said.one(cmd.ListCache(), ev.CacheList)
    assert [(c.id, c.kv_bytes > 0) for c in listed.chats] == [(session, True)]
    assert (listed.named, listed.limit) == ((), 20_000_000_000)
    (Folders.from_env().cache / "prompts").mkdir(mode=0o700)
    said.context.ready_model.prefill("once").save(Folders.from_env().cache / "prompts" / "book.kv")
    assert [name for name, _ in said.one(cmd.ListCache(), ev.CacheList).named] == ["book"]
    junk = Folders.from_env().cache / "kv" / "quarantine" / "bad.1"
    junk.parent.mkdir(exist_ok=True)
    junk.write_bytes(b"x" * 20_000)
    done = said.one(cmd.CollectCache(), ev.CacheCollected)
    assert done.freed >= 20_000
    assert not junk.exists()
    status = next(e for e in reversed(said.events) if isinstance(e, ev.SessionStatus))
    assert status.disk_bytes == done.used
    assert said.one(cmd.PinChat(), ev.ChatPinned) == ev.ChatPinned(str(session), True)
    assert said.one(cmd.ListChats(), ev.ChatList).chats[0].pinned
    assert said.one(cmd.PinChat(), ev.ChatPinned) == ev.ChatPinned(str(session), False)
    said.ask(cmd.NewChat())
    assert "not saved" in said.one(cmd.PinChat(), ev.Failed).text


def test_the_footer_and_the_figures(said: Said) -> None:
    status = [e for e in said.ask(cmd.Send("three", 0.0)) if isinstance(e, ev.SessionStatus)][-1]
    assert status.cache is not None
    assert status.cache.live == said.context.current_chat.cache.num_attended
    assert status.cache.allocated_bytes == said.context.current_chat.cache.nbytes
    assert (status.session_id, status.weight_bytes > 0, status.disk_limit) == (
        said.context.current_chat.session_id, True, 20_000_000_000,
    )  # fmt: skip
    said.context.ready_model.store.flush(str(status.session_id))  # rows that are still written come and go
    figures = said.one(cmd.ShowStats(), ev.SessionStats)
    assert (figures.num_turns, figures.num_chats, figures.named_disk_bytes) == (3, 1, 0)
    prompts = private_folder(said.context.folders.cache / "prompts")
    (prompts / "book.kv").write_bytes(bytes(500_000))
    now = said.one(cmd.ShowStats(), ev.SessionStats)
    assert 500_000 < now.named_disk_bytes <= now.all_disk_bytes - figures.all_disk_bytes
    assert figures.generated_tokens == sum(
        m.stats.generated_tokens for m in said.context.current_chat.messages if m.stats
    )


def test_one_chat_has_one_size_on_disk_and_one_count_everywhere(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """588, 631 and 442 kB of one chat, and "8 turns" beside "16 turns": lists left out what was on its way to the disk,
    and called messages turns. Asked while the rows are written, and again when they are there."""
    store, session = said.context.ready_model.store, str(said.context.current_chat.session_id)
    store.flush(session)
    before = store.disk_bytes(session)
    may_write, put = threading.Event(), ChunkFiles.put

    def held(files: ChunkFiles, chunk: EncodedChunk) -> int:
        may_write.wait()
        return put(files, chunk)

    monkeypatch.setattr(ChunkFiles, "put", held)

    def of_the_chat() -> set[int]:
        of_list = said.one(cmd.ListChats(), ev.ChatList).chats[0]
        of_cache = said.one(cmd.ListCache(), ev.CacheList).chats[0]
        figures = said.one(cmd.ShowStats(), ev.SessionStats)
        assert (figures.num_turns, figures.num_messages) == (3, of_list.num_turns)
        return {of_list.kv_bytes, of_cache.kv_bytes, figures.disk_bytes, store.disk_bytes(session)}

    def of_all() -> set[int]:
        figures, cache = said.one(cmd.ShowStats(), ev.SessionStats), said.one(cmd.ListCache(), ev.CacheList)
        return {figures.all_disk_bytes, cache.used, store.disk_usage()}

    try:
        asked = said.ask(cmd.Send("three", 0.0))
        status = next(e for e in reversed(asked) if isinstance(e, ev.SessionStatus))
        waiting, all_waiting = of_the_chat(), of_all()
    finally:
        may_write.set()
    assert said.context.current_chat.stats.disk_bytes in waiting
    store.flush(session)
    assert waiting == of_the_chat()
    assert len(waiting) == 1
    assert min(waiting) > before
    assert all_waiting == of_all() == {status.disk_bytes}
    files = (said.context.folders.cache / "kv").glob("??/*.safetensors")
    assert min(waiting) == sum(file.stat().st_size for file in files)
    lines = stats_lines(said.one(cmd.ShowStats(), ev.SessionStats))
    summary = said.one(cmd.ListChats(), ev.ChatList).chats[0]
    assert "3 turns (6 messages)" in lines[0].text
    row = chat_row(summary, 0.0)
    assert row.facts[:2] == ("6 messages", bytes_text(summary.kv_bytes))
    assert f"{bytes_text(summary.kv_bytes)} on disk" in lines[2].text


def test_settings_hold_from_the_next_reply_and_bounds_make_another_cache(said: Said) -> None:
    said.one(cmd.ChangeSettings({"max_tokens": 3}), ev.SettingsApplied)
    assert said.one(cmd.Send("x", 0.0), ev.TurnFinished).stats.generated_tokens <= 3
    events = said.ask(cmd.ChangeSettings({"window": 512}))
    assert [type(e) for e in events][-1] is ev.SettingsApplied
    assert said.context.current_chat.cache.plan.resolved.window == 512
    assert len(said.context.current_chat.messages) == 6
    applied = said.one(cmd.ChangeSettings({"system": "Be terse."}), ev.SettingsApplied)
    assert re.search(r"your next message prefills \d+ tokens of this chat again", applied.text)
    assert said.context.current_chat.system == "Be terse."
    said.ask(cmd.NewChat())
    assert said.context.current_chat.system is None
    assert (said.context.settings.max_tokens, said.context.settings.window) == (12, 256)


def test_a_model_that_is_not_here_is_asked_for_not_downloaded(home: Path) -> None:
    said = Said()
    assert said.ask(cmd.LoadModel("org/never-heard-of", ask=True)) == [ev.ModelMissing("org/never-heard-of", 0)]


@pytest.mark.slow
def test_a_load_that_is_stopped_leaves_the_old_model_and_the_chat(said: Said, tmp_path: Path) -> None:
    """Esc just when the window says that it loads; the way back to the old model is not stopped with it."""
    other = str(tiny_folder(tmp_path / "other"))

    def tell(event: ev.EngineEvent) -> None:
        said.events.append(event)
        if event == ev.ModelLoading(other, ev.LoadPhase.LOADING):
            said.dispatcher.stop()

    said.dispatcher._emit = said.context.emit = tell
    events = said.ask(cmd.LoadModel(other))
    text = f"Loading {other} was stopped; load it again when you need it."
    assert events[-1] == ev.Failed(text, ev.FailureKind.STOPPED)
    assert texts(next(e for e in events if isinstance(e, ev.ChatOpened))) == ["one", "two"]
    assert said.one(cmd.Send("three", 0.0), ev.TurnFinished).stats.cached_tokens > 0


def test_what_would_not_fit_is_called_so(said: Said) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OutOfMemoryError("It needs more.")

    said.context.current_chat.send = refuse  # type: ignore[method-assign, assignment]
    assert said.one(cmd.Send("x", 0.0), ev.Failed) == ev.Failed("It needs more.", ev.FailureKind.MEMORY, "x")


# -- downloads -------------------------------------------------------------------------------------------------------


class Download:
    """Downloads whose network is this: it waits to be told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[ev.EngineEvent] = []
        self.go = threading.Event()
        self.error: Exception | None = None
        self.downloads = Downloads(self.told.append)
        monkeypatch.setattr(Downloads, "_fetch", staticmethod(self._fetch))

    def _fetch(self, name: str, device: Device, progress: Callable[[int, int], None], cancel: threading.Event) -> None:
        progress(10, 100)
        assert self.go.wait(60)
        if cancel.is_set():
            raise ModelDownloadError("It was stopped.")
        if self.error is not None:
            raise self.error
        progress(100, 100)

    def states(self) -> list[str]:
        return [e.state for e in self.told if isinstance(e, ev.PullProgress)]


def test_a_download_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Download(monkeypatch)
    here.downloads.start("org/m", DEVICE, then_load=True)
    with pytest.raises(MlxkvError, match="org/m is being downloaded"):
        here.downloads.start("org/other", DEVICE)
    here.go.set()
    while "done" not in here.states():
        threading.Event().wait(0.001)
    here.downloads.close()
    assert here.states() == ["asking", "downloading", "downloading", "done"]
    assert all(e.then_load for e in here.told if isinstance(e, ev.PullProgress))


def test_what_would_not_fit_is_asked_about_before_its_first_byte(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A name that was typed, and is in no catalogue: the hub knows its size."""
    plan = Plan("org/large", None, "c", (RemoteFile("model.safetensors", 2 * 10**10, "b" * 40, False),), 0)
    fetched: list[str] = []

    def download(repo: str, *_: object, check: Callable[[Plan], None], **__: object) -> None:
        check(plan)
        fetched.append(repo)

    monkeypatch.setattr("mlxkv.models.download", download)
    for then_load, device, state in (
        (True, DEVICE, "too large"), (False, DEVICE, "failed"), (True, replace(DEVICE, memory_limit=1 << 62), "done")
    ):  # fmt: skip
        told: list[ev.EngineEvent] = []
        downloads = Downloads(told.append)
        downloads.start("org/large", device, then_load=then_load)
        assert downloads._thread is not None
        downloads._thread.join()
        last = told[-1]
        assert isinstance(last, ev.PullProgress)
        assert last.state == state
        assert last.too_large == (
            ModelTooLarge("org/large", 2 * 10**10, 10**10, 10**10) if state == "too large" else None
        )
        assert fetched == (["org/large"] if state == "done" else [])


def test_pausing_a_download_and_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Download(monkeypatch)
    here.downloads.start("org/m", DEVICE)
    here.downloads.pause()
    here.go.set()
    here.downloads.close()
    assert here.states()[-1] == "paused"
    last = here.told[-1]
    assert isinstance(last, ev.PullProgress)
    assert last.done == 10
    here.downloads.start("org/m", DEVICE)
    while "done" not in here.states():
        threading.Event().wait(0.001)
    here.downloads.close()


@pytest.mark.parametrize(
    ("error", "words"), [(ModelDownloadError("Offline."), "Offline."), (KeyError("x"), "failed (KeyError)")]
)
def test_a_download_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    here = Download(monkeypatch)
    here.error = error
    here.go.set()
    here.downloads.start("org/m", DEVICE)
    while here.states()[-1] not in ("failed", "paused"):
        threading.Event().wait(0.001)
    here.downloads.close()
    last = here.told[-1]
    assert isinstance(last, ev.PullProgress)
    assert (last.state, words in last.text) == ("failed", True)


def test_turning_reasoning_on_says_where_that_changes_nothing(said: Said) -> None:
    applied = said.one(cmd.ChangeSettings({"think": True}), ev.SettingsApplied)
    assert "no switch for reasoning" in applied.text
    assert said.one(cmd.ChangeSettings({"think": None}), ev.SettingsApplied).text == ""


@pytest.mark.slow
def test_save_says_where_the_chat_is_or_why_it_is_not(said: Said, tiny_path: Path) -> None:
    saved = said.one(cmd.ShowSaved(), ev.ChatSaved)
    assert saved_text(saved) == "Everything is saved, as “one”; mlxkv -c continues it."
    said.ask(cmd.NewChat())
    assert saved_text(said.one(cmd.ShowSaved(), ev.ChatSaved)).startswith("There is nothing to save yet;")
    unsaved = Said(save=False)
    unsaved.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    unsaved.one(cmd.Send("one", 0.0), ev.TurnFinished)
    assert saved_text(unsaved.one(cmd.ShowSaved(), ev.ChatSaved)).startswith(
        "This chat is not saved: mlxkv was started"
    )
    unsaved.context.close()


def test_what_is_not_saved_comes_first() -> None:
    text = saved_text(ev.ChatSaved("a\x1b", "mlxkv -c", "The rows cannot be saved."))
    assert text == "The rows cannot be saved. The rest is saved, as “a␛”; mlxkv -c continues it."
