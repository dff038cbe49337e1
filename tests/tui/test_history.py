"""Prompt history: private, across runs, and never in the way."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from mlxkv.tui.state.prompt.prompt_history import KEEP, History


def test_walking(tmp_path: Path) -> None:
    history = History(None)
    for text in ("one", "two", "two", "  "):
        history.add(text)
    assert history.entries == ["one", "two"]
    assert [history.older("draft"), history.older("two"), history.older("one")] == ["two", "one", None]
    assert [history.newer(), history.newer(), history.newer()] == ["two", "draft", None]


def test_across_runs(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = History(folder)
    first.add("multi\nline ❯ \u202e")
    assert not folder.exists()  # nothing on disk before it is known that the chat is kept
    first.save()
    assert History(folder).entries == ["multi\nline ❯ \u202e"]
    assert stat.S_IMODE((folder / "prompts.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_spoilt_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "good"}\nnot json\n[1]\n{"text": 3}\n{"text": "also"}\n{"te')
    assert History(tmp_path).entries == ["good", "also"]
    path.write_bytes(b"\xff\xfe")
    assert History(tmp_path).entries == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text('{"text": "secret"}\n')
    (tmp_path / "prompts.jsonl").symlink_to(target)
    history = History(tmp_path)
    assert history.entries == []
    history.add("x")
    history.save()
    assert target.read_text() == '{"text": "secret"}\n'


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(2 * KEEP + 1)))
    assert History(tmp_path).entries[0] == str(KEEP + 1)
    assert len(path.read_text().splitlines()) == KEEP
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file")
    history.add("x")
    history.save()
    assert history.entries == ["x"]
