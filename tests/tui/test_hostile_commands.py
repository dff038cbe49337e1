"""Hostile chats in what commands print to a terminal and write to files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.store import SessionStore, TurnRecord
from tests.store.fake import model
from tests.tui.hostile import NAMES, bomb, faults, piece, shown
from tests.tui.terminal import Terminal


def text(lead: int) -> str:
    """What a database can keep: no halves of characters."""
    return bomb(lead).encode("utf-8", "replace").decode()


@pytest.fixture
def chats(home: Path) -> str:
    """A chat for each payload, with a fork; the id of the last."""
    session = ""
    with SessionStore.open(Folders.from_env()) as store:
        for lead in range(len(NAMES)):
            session = store.create(piece(lead, "title").encode("utf-8", "replace").decode(), model(), system=text(lead))
            store.add_turn(session, TurnRecord("user", f"needle {text(lead)}", (1, 2, 3)))
            store.add_turn(session, TurnRecord("assistant", text(lead), (4, 5), thinking=text(lead)))
        store.fork(session, 1)
    return session


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 36)])
def test_what_commands_print_is_harmless(chats: str, columns: int, rows: int, tmp_path: Path) -> None:
    file = tmp_path / "chat.md"
    for args, wanted in (
        (["chats", "ls"], "title PAY"),
        (["chats", "search", "needle"], "needle"),
        (["chats", "show", chats], "PAYA"),
        (["chats", "export", chats], "PAYA"),
        (["chats", "export", chats, "--format", "json"], "PAYA"),
        (["chats", "show", "\x1b]0;PWNED\x07\x9bnowhere"], "nowhere"),
        (["chats", "export", chats, "-o", str(file)], "chat.md"),
    ):
        terminal = Terminal(args, columns=columns, rows=rows)
        terminal.end()
        said = terminal.output.replace(b"\r\n", b" ")
        if args[1] in ("show", "export"):
            said = said.replace(b"\t", b" ")  # of a text it is a part
        assert list(faults(said, columns, rows)) == [], args
        assert wanted in shown(said), args
        if args[1] == "ls":
            assert all(f"title {name}" in shown(said) for name in NAMES)
    assert list(faults(file.read_text().replace("\n", " ").replace("\t", " ").encode(), columns, rows)) == []
    assert "PAYA" in file.read_text()
