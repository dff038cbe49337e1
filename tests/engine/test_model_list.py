"""What `/model` lists: also the folder that is loaded, and those that chats were had with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.tui.state.lists.choice_lists import models_list
from tests.engine.test_engine_chats import Said
from tests.tokenizers import tiny_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def said(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))  # no LM Studio
    said = Said()
    yield said
    said.context.close()


def folders(said: Said) -> list[tuple[str, bool, str]]:
    cards = said.one(cmd.ListModels(), ev.ModelList).models
    return [(Path(card.id).name, card.is_current, card.note) for card in cards if card.is_folder]


def test_the_loaded_folder_and_those_of_chats_are_listed(said: Said, tmp_path: Path) -> None:
    for name in ("first", "second"):
        tiny_folder(tmp_path / name)
    assert folders(said) == []  # nothing is loaded, no chats
    said.one(cmd.LoadModel(str(tmp_path / "first")), ev.ModelReady)
    assert folders(said) == [("first", True, "")]
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    said.one(cmd.NewChat(), ev.ChatOpened)
    said.one(cmd.LoadModel(f"{tmp_path}/first/../second/"), ev.ModelReady)
    assert folders(said) == [("second", True, ""), ("first", False, "")]

    cards = said.one(cmd.ListModels(), ev.ModelList).models
    rows = models_list(cards, "", False).rows
    (row,) = [row for row in rows if row.text.startswith("▌")]
    assert (row.text, row.facts[0], row.choice) == ("▌second", str(tmp_path), cmd.LoadModel(str(tmp_path / "second")))
    assert [row.text for row in rows if row.choice is None][:2] == ["Used lately", "Built in"]
    assert row.facts[-2:] == ("loaded", "85 kB")

    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name)
    assert folders(said) == [("second", True, "the folder is missing")]


def test_what_is_suggested_here_comes_first_of_what_can_be_downloaded(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "11454MB")  # of a Mac with 16 GB
    cards = [card for card in said.one(cmd.ListModels(), ev.ModelList).models if not card.is_local]
    assert [(card.id.partition("/")[2], card.reason) for card in cards if card.reason] == [
        ("Qwen3.5-9B-4bit", "suggested for 16 GB or more"),
        ("Qwen3.5-4B-MLX-4bit", "quick choice for 16 GB or more"),
    ]
    assert all(card.reason for card in cards[:2])
    facts = [row.facts for row in models_list(cards, "", False).rows if "Qwen3.5-9B" in row.text]
    assert facts == [(cards[0].note, "Apache-2.0", "suggested for 16 GB or more", "6.0 GB")]
