"""`@` in the prompt: which files are offered, and what is said where there is none."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from mlxkv.tui.state.prompt import attachments as attach
from mlxkv.tui.state.prompt import completion as offers
from mlxkv.tui.state.prompt import file_index as files
from mlxkv.tui.widgets.attached_files import AttachedFiles
from tests.tui.window import Window, window

ACCENT = unicodedata.normalize("NFD", "résumé.txt")  # as some file systems keep it
NAMES = (
    "notes.txt",
    "my notes.txt",
    'say "hi".txt',
    'q"uote',
    "back\\slash two",
    "日本 語.md",
    ACCENT,
    ".env",
    "src/.hid",
    "src/a.py",
)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "here"
    for name in NAMES:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(f"in {name}")
    for folder in ("empty", "hidden"):
        (base / folder).mkdir()
    (base / "hidden" / ".only").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    return base


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_any_letters_is_offered_and_sent(name: str, base: Path) -> None:
    known = files.list_files(base)
    typed = unicodedata.normalize("NFC", name)
    menu = offers.file_menu(typed, known, base)
    assert menu is not None
    assert menu.entries[0].label == name
    written = f"see {menu.entries[0].insert}"
    assert attach.partial_mention(written.removesuffix('"')) == (4, name)
    assert attach.mentioned_files(f"{written} and", base) == [name]
    assert f"\nin {name}\n" in attach.attach(written, base)


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("nothing", "No file in this folder matches nothing: @nothing is sent as plain text."),
        (".zzz", "No file in this folder matches .zzz"),
        ("./empty/", "The folder ./empty/ has no files to attach; paths elsewhere begin with @~/ or @/."),
        ("./empty/x", "The folder ./empty/ has no files to attach"),
        ("./hidden/", "The folder ./hidden/ has hidden files only: @./hidden/. lists them."),
        ("./src/zzz", "No file in the folder ./src/ matches zzz"),
        ("./none/x", "The folder ./none/ does not exist."),
        ("/no/such/", "The folder /no/such/ does not exist."),
        ("~/x", "The folder ~/ does not exist."),
        ("~", "The folder ~/ does not exist."),
        ("~nobody-here/x", "No file in this folder matches ~nobody-here/x"),
        ("./notes.txt/", "The folder ./notes.txt/ cannot be read: Not a directory."),
        ("/\0/", "The folder /\0/ cannot be read: embedded null byte."),
        ("/" + "x" * 300 + "/", "cannot be read: File name too long."),
    ],
)  # fmt: skip
def test_where_there_is_none_it_is_said_why(typed: str, why: str, base: Path) -> None:
    assert offers.file_menu(typed, files.list_files(base), base) is None
    assert why in files.nothing_found(typed, base)


def test_a_folder_that_may_not_be_read(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert files.nothing_found("", base) == "This folder cannot be read: Permission denied."


async def _note(w: Window, text: str, note: str) -> None:
    w.app.prompt.put("")
    w.app.prompt.insert(text)
    await w.until(lambda: note in w.screen(), note)


@pytest.mark.slow
async def test_the_window_says_it_and_enter_sends_the_word(base: Path) -> None:
    async with window() as w:
        w.app.prompt.files.base = base / "empty"
        await _note(w, "@", "This folder has no files to attach")
        await _note(w, "//help with @", "This folder has no files to attach")
        await _note(w, "/usr/bin and @", "This folder has no files to attach")
        w.app.prompt.files.base = base
        w.app.prompt.completer._paths_at = float("-inf")
        await _note(w, "thanks @someone", "No file in this folder matches someone")
        await w.pilot.press("enter")
        await w.until(lambda: bool(w.app.state.transcript.messages))
        assert w.app.state.transcript.messages[-2:][0].text == "thanks @someone"
        await _note(w, "see @notes.txt,", "@notes.txt 1 line")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("see @nothing.md", "nothing.md"),
        ("see @src/none, please", "src/none"),
        ("see @./gone.txt.", "./gone.txt"),
        ("ask @someone", None),
        ("write to @someone@home.example", None),
        ("see @empty/", None),
        ("wait @...", None),
    ],
)
def test_a_file_that_is_not_there_is_sent_as_text_only_when_asked_twice(
    typed: str, name: str | None, base: Path
) -> None:
    attached = AttachedFiles()
    attached.base = base
    assert attach.missing_file(typed, base) == name
    if name:
        with pytest.raises(attach.AttachError, match=f"There is no file {name}. Enter again sends that as text."):
            attached.expand(typed)
    assert attached.expand(typed) == typed


async def test_all_lines_of_a_note_begin_below_its_first(base: Path) -> None:
    (base / "sky.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    async with window(size=(50, 24)) as w:
        w.app.prompt.files.base = base
        await _note(w, "what is @sky.png about?", "✗ sky.png")
        rows = w.screen().splitlines()
        at = next(i for i, row in enumerate(rows) if row.startswith("  ✗ sky.png"))
        assert rows[at + 1].startswith("  ")
        assert rows[at + 1][2:3].strip(), rows[at : at + 2]
