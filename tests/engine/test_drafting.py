"""The settings of drafting reach the model that a window loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxkv.config import Folders
from mlxkv.engine.context import EngineContext
from mlxkv.events import Notice
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.drafting.model_drafts import ModelDrafts
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.settings.schema import Settings
from tests.engine.test_engine_chats import Said
from tests.inference.drafting.helpers import OpenGate
from tests.tokenizers import tiny_folder


@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("names_model", [True, False])
def test_a_window_drafts_as_the_settings_say(tiny_path: Path, draft: bool, names_model: bool) -> None:
    settings = Settings(draft=draft, draft_model=str(tiny_path) if names_model else None)
    emitted: list[Any] = []
    context = EngineContext(Folders.from_env(), settings, emitted.append, save=False, load=None)
    model = context.load_model(str(tiny_path))
    drafting = model.runner.drafting
    assert (drafting is not None) is draft
    assert isinstance(drafting and drafting.model, ModelDrafts) is (draft and names_model)
    model.close()


def test_a_draft_model_of_another_family_is_left_out(tiny_path: Path, tmp_path: Path) -> None:
    """`/model` changes the model and not the setting, which must not lock the user in."""
    emitted: list[Any] = []
    settings = Settings(draft_model=str(tiny_folder(tmp_path / "other", reverse=True)))
    context = EngineContext(Folders.from_env(), settings, emitted.append, save=False, load=None)
    model = context.load_model(str(tiny_path))
    assert model.runner.drafting is not None
    assert model.runner.drafting.model is None
    (notice,) = [event for event in emitted if isinstance(event, Notice)]
    assert "other cannot draft for" in notice.text
    assert notice.text.endswith("or none. Continuing without it.")
    model.close()


def test_the_totals_of_a_chat_say_what_drafting_won(tiny_path: Path) -> None:
    said = Said()
    said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    said.context.ready_model.runner.drafting = None
    first = said.one(cmd.Send("one", 0.0), ev.TurnFinished).stats
    assert said.one(cmd.ShowStats(), ev.SessionStats).tokens_per_step == 0
    said.context.ready_model.runner.drafting = Drafting(OpenGate())
    second = said.one(cmd.Send("one", 0.0), ev.TurnFinished).stats
    assert second.drafted_tokens
    tokens, steps = (getattr(first, n) + getattr(second, n) for n in ("generated_tokens", "decode_steps"))
    assert said.one(cmd.ShowStats(), ev.SessionStats).tokens_per_step == tokens / steps
    said.context.close()
