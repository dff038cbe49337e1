"""What the search index makes of text: every word in any script is found, and marked where it stands in the text."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxkv.config import Folders
from mlxkv.store.db.search_index import _origins, is_intact, original_spans, words
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import model

ODD = (
    "aé e\u0301\u0308ﬁ½①㎏Ａ１ｱｶﾞﾊﾟｳﾞ漢字かなカナ한국어ㄱㅏㄴﾡￂᄀ\u1161\u11a8กิที่ลูกລາວខ្មែរहिन्दी\u0958ـلא\u05b8"
    "\u1e9b\u0323\ufdfa\n\t 🦊\ufe0f\u200d"
)


@given(st.one_of(st.text(), st.text(alphabet=ODD)))
@example("ｶﾞﾊﾟ ﾡￂ e\u0301")
def test_each_character_of_the_index_comes_from_somewhere(text: str) -> None:
    for line in text.split("\n"):
        origins = _origins(line)
        assert len(origins) == len(words(line))
        assert "".join(dict.fromkeys(line[a:b] for a, b in origins)) or not line
        assert all(0 <= a < b <= len(line) for a, b in origins)
        assert origins == sorted(origins)
    assert words(text) == "\n".join(words(line) for line in text.split("\n"))


@given(st.text(alphabet=ODD, min_size=1), st.data())
def test_any_span_of_the_index_is_traced_back(text: str, data: st.DataObject) -> None:
    held = words(text)
    start = data.draw(st.integers(0, len(held) - 1))
    end = data.draw(st.integers(start + 1, len(held)))
    if "\n" in (held[start], held[end - 1]):
        return  # no word begins or ends so
    ((a, b),) = original_spans(text, [(start, end)])
    assert words(text[a:b]).find(held[start:end]) >= 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionStore]:
    home = tmp_path_factory.mktemp("search")
    with SessionStore.open(Folders(*(home / name for name in ("config", "data", "cache", "state")))) as opened:
        for text, _, _ in CASES:
            session = opened.sessions.create("x", model())
            opened.add_turn(session, TurnRecord("user", "before\n" * 3 + text + "\nafter", (1,)))
        yield opened


CASES = [
    ("用Python编程入门", "Python", ["Python"]),  # next to Latin letters
    ("用Python编程入门", "编程", ["编程"]),
    ("用Python编程入门", "python编程", ["Python编程"]),
    ("GPUの性能", "gpu", ["GPU"]),
    ("GPUの性能", "性能", ["性能"]),
    ("東京都庁へ行く", "都庁", ["都庁"]),  # inside a compound
    ("人民共和国", "共和", ["共和"]),
    ("한국어사전을 샀다", "사전", ["사전"]),
    ("한국어사전을 샀다", "국어사", ["국어사"]),
    ("ｶﾞｲﾄﾞﾌﾞｯｸ を読む", "ガイドブック", ["ｶﾞｲﾄﾞﾌﾞｯｸ"]),  # half width
    ("カタカナ", "ｶﾀｶﾅ", ["カタカナ"]),
    ("ﾊﾟﾘの地図", "パリ", ["ﾊﾟﾘ"]),
    ("ＰＹＴＨＯＮ　入門", "python", ["ＰＹＴＨＯＮ"]),  # full width
    ("２０２６年", "2026", ["２０２６"]),
    ("ﾡￂﾤￂ ﾠ", "가나", ["ﾡￂﾤￂ"]),
    ("\u1112\u1161\u11ab\u1100\u116e\u11a8", "한국", ["\u1112\u1161\u11ab\u1100\u116e\u11a8"]),  # as macOS writes names
    ("人々の〆切", "人々", ["人々"]),
    ("コンピューター室", "ピュー", ["ピュー"]),
    ("ฉันไปที่ตลาดน้ำ", "ตลาด", ["ตลาด"]),
    ("ខ្ញុំទៅផ្សារ", "ផ្សារ", ["ផ្សារ"]),
    ("मैं हिन्दी बोलता हूँ", "हिन्दी", ["हिन्दी"]),
    ("a ﬁle of ①② ㎏", "file", ["ﬁle"]),
    ("cafe\u0301 Zürich", "café", ["cafe\u0301"]),
    ("cafe\u0301 Zürich", "zurich", ["Zürich"]),
    ("𠮷野家で食べる", "𠮷野", ["𠮷野"]),
    ("好，世界", "世界", ["世界"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "query", "expected"), CASES)
def test_whatever_stands_in_the_text_is_found(store: SessionStore, text: str, query: str, expected: list[str]) -> None:
    shown = text.replace("\u3000", " ")
    for quoted in (query, f'"{query}"'):
        hits = {
            tuple(hit.snippet[a:b] for a, b in hit.marks)
            for hit in store.sessions.search(quoted)
            if shown in hit.snippet
        }
        assert hits == {tuple(expected)}


def test_marks_of_another_vowel_are_no_match(store: SessionStore) -> None:
    assert store.sessions.search("ตลิด") == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM turn_fts_data",
        "DELETE FROM turn_fts_config",
        "UPDATE turn_fts_data SET block = x'00' WHERE id = 10",
        "DELETE FROM turn_fts_content WHERE id = 3",
        "UPDATE turn_fts_content SET c0 = 'other' WHERE id = 3",
        "INSERT INTO turn_fts(rowid, text, thinking) VALUES(999, 'word', '')",
        "DROP TABLE turn_fts",
        "DROP TABLE turn_fts_content",
        "DELETE FROM turn WHERE id = 2",
    ],
)
def test_damage_is_found_and_repaired(folders: Folders, damage: str) -> None:
    with SessionStore.open(folders) as store:
        for text, _, _ in CASES:
            session = store.sessions.create("x", model())
            store.add_turn(session, TurnRecord("user", text, (1,), thinking=text))
        before = store._database.db.execute("SELECT rowid, text, thinking FROM turn_fts").fetchall()
        assert is_intact(store._database.db)
    with closing(sqlite3.connect(folders.data / "mlxkv.db", isolation_level=None)) as db:
        db.execute(damage)
    with SessionStore.open(folders) as store:
        assert "search" in {p.kind for p in store.verify().problems}
        store.verify(repair=True)
    with SessionStore.open(folders) as store:
        assert "search" not in {p.kind for p in store.verify().problems}
        rows = store._database.db.execute("SELECT rowid, text, thinking FROM turn_fts").fetchall()
        assert rows == (before if "turn WHERE" not in damage else [row for row in before if row[0] != 2])


def test_a_deleted_word_is_nowhere(folders: Folders) -> None:
    with SessionStore.open(folders) as store:
        gone = store.sessions.create("gone", model())
        store.add_turn(gone, TurnRecord("user", "ｶﾞｲﾄﾞ 東京都庁 xylophonic", (1,)))
        store.add_turn(gone, TurnRecord("assistant", "quetzalcoatl 사전", (2,), state="open"))
        store.update_open_turn(gone, TurnRecord("assistant", "dodo", (3,)))
        store.delete(gone)
        assert store.sessions.search("ガイド") == store.sessions.search("dodo") == ()
        assert store.verify().problems == ()
    data = b"".join(p.read_bytes() for p in folders.data.rglob("*") if p.is_file())
    for word in ("ガ", "ｶﾞ", "東", "庁", "xylophonic", "quetzalcoatl", "사", "dodo"):
        assert word.encode() not in data
