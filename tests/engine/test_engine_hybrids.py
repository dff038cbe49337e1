"""What the window is told of a model with recurrent layers: states apart from rows, and what a resume prefills."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlxkv.memory.budget import Budget
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from tests.engine.test_engine_chats import SETTINGS, Said
from tests.hybrids import hybrid_folder
from tests.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.slow
LONG = "who is it? " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hybrid_folder(tmp_path_factory.mktemp("models") / "hybrid", "qwen3_next", tiny_tokenizer())


@pytest.fixture
def said(home: Path, folder: Path) -> Iterator[Said]:
    """A chat of two turns, of which a state is on disk after the first."""
    said = Said(replace(SETTINGS, window=1024))
    assert said.one(cmd.LoadModel(str(folder)), ev.ModelReady)
    said.one(cmd.Send(LONG, 0.0), ev.TurnFinished)
    said.context.current_chat.checkpoint()
    said.one(cmd.Send("two", 0.0), ev.TurnFinished)
    yield said
    said.context.close()


def test_context_counts_states_apart_from_rows(said: Said) -> None:
    chat, model = said.context.current_chat, said.context.ready_model
    use = said.one(cmd.ShowContext(), ev.ContextUsage).recurrent
    budget, plan, store = Budget(model.loaded.model, 0), chat.cache.plan, model.store
    assert (use.state, use.limit) == (budget.state_bytes(plan), budget.checkpoint_bytes(plan))
    assert len(use.positions) >= 2
    assert use.checkpoints == len(use.positions) * use.state
    assert max(use.positions) < chat.cache.offset
    session = str(chat.session_id)
    assert 0 < use.disk_states == store.state_bytes(session)
    assert 0 < use.disk_rows == store.disk_bytes(session) - use.disk_states
    listed = said.one(cmd.ListCache(), ev.CacheList)
    assert listed.states == use.disk_states


def test_an_unsaved_chat_has_nothing_on_disk_and_an_empty_one_no_state(home: Path, folder: Path) -> None:
    said = Said(save=False)
    said.one(cmd.LoadModel(str(folder)), ev.ModelReady)
    said.ask(cmd.NewChat())
    assert said.one(cmd.ShowContext(), ev.ContextUsage).recurrent is None
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    use = said.one(cmd.ShowContext(), ev.ContextUsage).recurrent
    assert use.state > 0
    assert (use.disk_rows, use.disk_states) == (None, None)
    said.context.close()


def test_a_chat_that_was_killed_says_how_much_of_it_is_prefilled(
    said: Said, home: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = str(said.context.current_chat.session_id)
    said.context.ready_model.store.flush(session)
    monkeypatch.setenv("MLXKV_HOME", str(shutil.copytree(home, tmp_path / "killed")))
    after = Said(said.context.settings)
    after.one(cmd.LoadModel(str(folder)), ev.ModelReady)
    opened = after.one(cmd.OpenChat(session), ev.ChatOpened)
    (notice,) = [event.text for event in after.events if isinstance(event, ev.Notice)]
    total = len(after.context.current_chat.log)
    assert 0 < opened.restored_tokens < total
    assert opened.left_tokens == total - opened.restored_tokens
    assert notice == (
        "The recurrent layers continue from their last saved state: "
        f"{opened.restored_tokens} of {total} tokens were restored, the rest is prefilled."
    )
    done = after.one(cmd.Send("so?", 0.0), ev.TurnFinished)
    assert done.stats.cached_tokens == opened.restored_tokens
    after.ask(cmd.NewChat())  # closes it, and saves its state
    again = after.one(cmd.OpenChat(session), ev.ChatOpened)
    assert (again.left_tokens, again.restored_tokens > total) == (0, True)
    assert not [event for event in after.events if isinstance(event, ev.Notice)]
    use = after.one(cmd.ShowContext(), ev.ContextUsage).recurrent
    assert (use.positions, use.checkpoints) == ((), 0)  # the only one is the state itself
    after.context.close()
