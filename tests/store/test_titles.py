"""Titles of any characters stay what they are on every way: renamed, exported, imported, exported again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxkv.cli.app import main
from mlxkv.config import Folders
from mlxkv.store.export.document import to_document
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from mlxkv.text.clean import clean
from tests.store.fake import model

pytestmark = pytest.mark.slow

TITLES = {
    "escape": "\x1b[31mred\x1b[0m",
    "zero": "a\x00b",
    "delete and C1": "\x7f\x85\x9b",
    "direction": "a\u202egpj.exe",
    "line separators": "a\u2028b\u2029c",
    "joined emoji": "family 👨\u200d👩\u200d👧",
    "joiners of Persian": "می\u200cخواهم",
    "half width": "ﾃｽﾄ ﾊﾞ",
    "decomposed": "Cafe\u0301 \u1112\u1161\u11ab",
    "variation selectors": "❤\ufe0f ❤\ufe0e",
    "tags": "flag 🏴\U000e0067\U000e007f",
    "quotes": """a"b'c\\d%e_f*g""",
    "JSON": '{"title": "x\\u001b"}',
}
SPACED = {"spaces": "  two  spaces ", "tab and lines": "a\tb\nc\r\nd", "empty": ""}


@pytest.mark.parametrize("title", [*TITLES.values(), *SPACED.values()], ids=[*TITLES, *SPACED])
def test_a_title_goes_out_and_comes_in_as_it_is(store: SessionStore, tmp_path: Path, title: str) -> None:
    chat = store.sessions.create(title, model())
    store.add_turn(chat, TurnRecord("user", "hi", (1,)))
    store.export_chat(chat, tmp_path / "1.mlxkv")
    (tmp_path / "1.json").write_text(json.dumps(to_document(store.load(chat))))
    for kind in ("mlxkv", "json"):
        again = store.import_chat(tmp_path / f"1.{kind}").session_id
        assert store.load(again).title == title
        store.export_chat(again, tmp_path / f"2.{kind}.mlxkv")
        assert (tmp_path / f"2.{kind}.mlxkv").read_bytes() == (tmp_path / "1.mlxkv").read_bytes()


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
def test_renaming_keeps_every_character_but_those_between_words(
    folders: Folders, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with SessionStore.open(folders) as store:
        chat = store.sessions.create("before", model())
    for args in (["rename", "before", title], ["ls"]):
        with pytest.raises(SystemExit) as end:
            main(["chats", *args])
        assert not end.value.code
    with SessionStore.open(folders) as store:
        assert store.load(chat).title == " ".join(title.split())
    assert clean(shown := capsys.readouterr().out) == shown  # with marks
