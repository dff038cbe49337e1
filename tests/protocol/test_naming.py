"""Which chat is meant: one table for every place where a chat is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxkv.cli.app import main
from mlxkv.config import Folders
from mlxkv.errors import SessionNotFoundError
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.chat_names import chat_called
from mlxkv.settings.schema import Settings
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from mlxkv.tui.state.chat_state import ChatState
from tests.store.fake import model

NAMES = {  # by id: the newest first
    "01KAAAAAAAAAAAAAAAAAAAAAA1": "01",
    "01KAAAAAAAAAAAAAAAAAAAAAA2": "Trip to Porto",
    "01KAAAAAAAAAAAAAAAAAAAAAA3": "Trip to Rome",
    "01KBBBBBBBBBBBBBBBBBBBBBB1": "twice",
    "01KBBBBBBBBBBBBBBBBBBBBBB2": "twice",
    "01KBBBBBBBBBBBBBBBBBBBBBB3": "TWICE",
    "01KCCCCCCCCCCCCCCCCCCCCCC1": "01KAAAAAAAAAAAAAAAAAAAAAA3",  # the id of another one
    "01KCCCCCCCCCCCCCCCCCCCCCC2": "Cafe\u0301 100%",
    "01KCCCCCCCCCCCCCCCCCCCCCC3": "ﾃｽﾄ ＡＢＣ",
    "01KCCCCCCCCCCCCCCCCCCCCCC4": "red\x1b[31m\nand  more",
    "01KCCCCCCCCCCCCCCCCCCCCCC5": "Straße",
    "01KCCCCCCCCCCCCCCCCCCCCCC6": "家族 👨\u200d👩\u200d👧",
    "01KCCCCCCCCCCCCCCCCCCCCCC7": "-",
    "01KCCCCCCCCCCCCCCCCCCCCCC8": "",
    "01KCCCCCCCCCCCCCCCCCCCCCC9": "a_b*c?",
}
A, B, C = "01KAAAAAAAAAAAAAAAAAAAAAA", "01KBBBBBBBBBBBBBBBBBBBBBB", "01KCCCCCCCCCCCCCCCCCCCCCC"

WANTED = {  # what is typed: the ends of the ids that fit
    "01": [A + "1"],  # an exact title before ids that begin so
    A + "3": [C + "1"],  # and before an exact id
    A + "2": [A + "2"],
    (A + "2").lower(): [A + "2"],
    "01K": [*NAMES],  # the beginning of all
    "01ka": [A + "1", A + "2", A + "3", C + "1"],  # of ids, and of a title
    "Trip to Porto": [A + "2"],
    "trip TO porto": [A + "2"],
    "trip": [A + "2", A + "3"],
    "Trip to R": [A + "3"],
    "rome": [A + "3"],  # the only one that has it
    "twice": [B + "1", B + "2"],  # exactly
    "TWICE": [B + "3"],
    "Twice": [B + "1", B + "2", B + "3"],
    "Caf\u00e9 100%": [C + "2"],
    "cafe\u0301": [C + "2"],
    "テスト": [C + "3"],
    "テスト abc": [C + "3"],
    "red\x1b[31m\nand  more": [C + "4"],
    "red␛[31m and more": [C + "4"],  # as it is shown
    "STRASSE": [C + "5"],
    "家族 👨\u200d👩\u200d👧": [C + "6"],
    "家族 👨👩👧": [C + "6"],
    "-": [C + "7"],
    "a_b*c?": [C + "9"],
    "a_": [C + "9"],
    "%": [C + "2"],
    "  trip to porto ": [A + "2"],
    "Lisbon": [],
    "a.*": [],
    "x" * 5000: [],
    "": [],
    " \t\n": [],
}


def chats() -> list[ev.ChatSummary]:
    return [ev.ChatSummary(id, title, 1.8e9 - n, 2, 0, "m", seq=99 - n) for n, (id, title) in enumerate(NAMES.items())]


@pytest.mark.parametrize(("wanted", "fits"), WANTED.items(), ids=[ascii(w)[:30] for w in WANTED])
def test_one_rule_here_and_in_the_window(wanted: str, fits: list[str]) -> None:
    state = ChatState(lambda: 0.0, Settings())
    state.resume(wanted)
    state.outbox.clear()
    state.apply(ev.ChatList(tuple(reversed(chats()))))
    if len(fits) == 1:
        assert chat_called(chats(), wanted).id == fits[0]
        assert state.outbox[-1] == cmd.OpenChat(fits[0])
        return
    with pytest.raises(SessionNotFoundError) as caught:
        chat_called(chats(), wanted)
    said = str(caught.value)
    assert len(said) < 1500
    assert said.isprintable()
    if not fits:
        assert not state.outbox
        assert state.listing is None or not wanted
        assert "empty" in said or "No chat has" in said
        return
    assert state.listing is not None  # to choose from
    assert [row.choice for row in state.listing.rows] == [cmd.OpenChat(id) for id in fits]
    assert f"matches {len(fits)} chats" in said
    assert all(id in said and "of 2027-01-1" in said for id in fits[:10])
    assert ("more;" in said) == (len(fits) > 10)


@pytest.fixture
def folders(home: Path) -> Folders:
    folders = Folders.from_env()
    with SessionStore.open(folders) as store:
        for title in ("Trip to Rome", "Trip to Porto", "01"):
            store.add_turn(store.sessions.create(title, model()), TurnRecord("user", f"about {title}", (1,)))
    return folders


def run(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        main(args)
    except SystemExit as end:
        return int(end.code or 0), "".join(capsys.readouterr())
    return 0, "".join(capsys.readouterr())


COMMANDS = (
    ("show",), ("export",), ("rename", "", "x"), ("rm", "-y"),
    ("-r",), ("-p", "hi", "-r"), ("-p", "hi", "--fork", "-r"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "  ", "trip", "Lisbon"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_refuses_what_is_nothing_or_several(
    folders: Folders, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], name: str
) -> None:
    first, *rest = command
    args = [first, *rest, name] if first.startswith("-") else ["chats", first, name, *rest[1:]]
    if first == "rm":
        args.append("-y")
    code, said = run(*args, capsys=capsys)
    assert code == 1
    expected = {"trip": "matches 2 chats: ", "Lisbon": "No chat has"}.get(name, "is empty")
    assert expected in said
    assert "Traceback" not in said
    with SessionStore.open(folders) as store:
        assert [(c.title, c.num_turns) for c in store.list()] == [("01", 1), ("Trip to Porto", 1), ("Trip to Rome", 1)]


@pytest.mark.slow
def test_an_exact_title_is_meant_at_every_command(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("show", "01"), ("export", "01"), ("rename", "01", "02"), ("rm", "02", "-y")):
        code, said = run("chats", *command, capsys=capsys)
        assert code == 0, said
        assert "about 01" in said or command[0] in ("rename", "rm")
    with SessionStore.open(folders) as store:
        assert [c.title for c in store.list()] == ["Trip to Porto", "Trip to Rome"]


def test_the_last_chat_and_another_one_at_once_are_refused(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run("-p", "hi", "-c", "-r", "01", capsys=capsys)
    assert code == 2
    assert "leave out one" in said
