"""Hostile chats in what commands print to a terminal and write to files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.safetensors.writer import encode_header
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import model
from tests.thorough import THOROUGH
from tests.tui.hostile import NAMES, bomb, faults, piece, shown
from tests.tui.hostile_tour import RAW, SIZES
from tests.tui.terminal import Terminal

pytestmark = pytest.mark.slow

SHOWN = range(len(NAMES)) if THOROUGH else (0, RAW)


def text(lead: int, label: str = "") -> str:
    """What a database can keep: no halves of characters."""
    return bomb(lead, label).encode("utf-8", "replace").decode()


@pytest.fixture
def chats(home: Path) -> str:
    """A chat for each payload, with a fork; the id of the last."""
    session = ""
    with SessionStore.open(Folders.from_env()) as store:
        for lead in range(len(NAMES)):
            session = store.sessions.create(
                piece(lead, "title").encode("utf-8", "replace").decode(), model(), system=text(lead)
            )
            store.add_turn(session, TurnRecord("user", f"needle {text(lead)}", (1, 2, 3)))
            store.add_turn(session, TurnRecord("assistant", text(lead), (4, 5), thinking=text(lead)))
        store.fork(session, 1)
    return session


@pytest.mark.parametrize(("columns", "rows"), SIZES if THOROUGH else SIZES[:1])
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


@pytest.fixture
def caches(home: Path) -> None:
    """Prompt caches that say the worst about themselves, and one that is none."""
    folder = home / "cache" / "prompts"
    folder.mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    ours = {"mlxkv": "prompt-cache 1", "num_tokens": "3", "layout": "{}", "config": "null", "parts": "[]"}
    for lead in range(len(NAMES)):
        model = {"name": text(lead, "model").replace("/", "|"), "model_id": "m", "template_id": "t", "parts": {}}
        head = {"system": text(lead + 1, "system"), "text": text(lead, "head")}
        about = {"model": json.dumps(model), "head": json.dumps(head)}
        (folder / f"book{lead}.kv").write_bytes(encode_header([], ours | about))
    (folder / "not.kv").write_bytes(encode_header([], {"mlxkv": text(RAW)}))


@pytest.mark.parametrize(("columns", "rows"), SIZES if THOROUGH else SIZES[:1])
def test_what_prompt_caches_say_of_themselves_is_harmless(caches: None, columns: int, rows: int) -> None:
    for args, wanted in (
        (["cache", "ls"], "model PAY"),
        *((["cache", "show", f"book{lead}"], "head PAY") for lead in SHOWN),
        (["cache", "show", "not"], "PAYA"),
        (["cache", "verify"], "PAYA"),
    ):
        terminal = Terminal(args, columns=columns, rows=rows)
        terminal.end()
        said = terminal.output.replace(b"\r\n", b" ")
        assert list(faults(said, columns, rows)) == [], args
        assert wanted in shown(said), args


def test_a_folder_that_no_repository_can_be_called_is_no_model(home: Path, tmp_path: Path) -> None:
    """Among the downloads a folder of any name may lie: `models ls` once printed it as it was."""
    names = [piece(lead, "id").replace("/", "|").replace("\0", "") for lead in range(len(NAMES))]
    for name in ("good", *(name.encode("utf-8", "replace").decode()[:80] for name in names)):
        snapshot = tmp_path / "hub" / f"models--org--{name}" / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text('{"model_type": "llama"}')
        (snapshot / "model.safetensors").write_bytes(b"x")
    for args in (["models", "ls"], ["doctor"]):
        terminal = Terminal(args, {"HF_HUB_CACHE": str(tmp_path / "hub")})
        terminal.end()
        said = terminal.output.replace(b"\r\n", b" ")
        assert list(faults(said, 80, 24)) == [], args
        assert "PAY" not in shown(said), args
        assert args == ["doctor"] or "org/good" in shown(said)
