"""What stands in the text is found, however it is written: in all chats, and in the window's own search."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.config import Folders
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from mlxkv.text.folding import Wanted, folded, origins
from mlxkv.tui.state.lists.choices import Listing, PutPrompt, Row
from mlxkv.tui.state.transcript.blocks import Block, Kind
from mlxkv.tui.widgets.search import Finder
from tests.store.fake import model
from tests.tui.test_finding import layout, settle_all

CASES = [  # a text, what is looked for, what is found of it
    ("ｶﾞｲﾄﾞﾌﾞｯｸ を読む", "ガイド", "ｶﾞｲﾄﾞ"),  # half width, with marks of their own
    ("ガイドブック", "ｶﾞｲﾄﾞ", "ガイド"),
    ("ＰＹＴＨＯＮ　３．１１", "python 3.11", "ＰＹＴＨＯＮ　３．１１"),  # full width
    ("run Python 3.11", "Ｐｙｔｈｏｎ", "Python"),
    ("用Python编程", "python", "Python"),  # next to Latin letters
    ("東京都庁へ行く", "京都", "京都"),  # inside a compound
    ("東京都庁へ行く", "都", "都"),
    (
        "\u1112\u1161\u11ab\u1100\u116e\u11a8",
        "한국",
        "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    ),  # as macOS writes names
    ("한국어사전", "\u1109\u1161\u110c\u1165\u11ab", "사전"),
    ("ﾡￂ ﾠ", "가", "ﾡￂ"),
    ("cafe\u0301 Zürich", "café", "cafe\u0301"),
    ("CAFÉ au lait", "cafe", "CAFÉ"),
    ("Straße nach Norden", "STRASSE", "Straße"),
    ("ΟΔΥΣΣΕΥΣ", "οδυσσευς", "ΟΔΥΣΣΕΥΣ"),
    ("İstanbul", "istanbul", "İstanbul"),
    ("the ﬁle", "file", "ﬁle"),
    ("Donaudampfschiff", "dampf", "dampf"),  # inside a word
    ("camelCase", "Case", "Case"),
    ("I ate 🦊 soup", "🦊", "🦊"),
    ("family 👨\u200d👩\u200d👧!", "👩", "👩"),
    ("flags 🇩🇪🇫🇷", "🇫🇷", "🇫🇷"),
    ("C++ or C#", "c++", "C++"),
    ("at 100% of", "100%", "100%"),
    ("snake_case here", "snake_case", "snake_case"),
    ("a_b", "_", "_"),
    ('say "hi"', '"', '"'),
    ("f(*args)", "*", "*"),
    ("x -> y", "->", "->"),
    ("wait... what?!", "?!", "?!"),
    ("path\\to", "\\", "\\"),
    ("it's", "'", "'"),
    ("rock AND roll", "AND", "AND"),
    ("far OR near", "NEAR", "near"),
    ("NOT this", "not", "NOT"),
    ("$HOME/.cache", "$home", "$HOME"),
    ("q", "q", "q"),
    ("7", "7", "7"),
    ("好", "好", "好"),
]


@pytest.mark.parametrize(("text", "query", "found"), CASES)
def test_what_stands_in_a_text_is_found_there(text: str, query: str, found: str) -> None:
    wanted = Wanted.of(query)
    assert wanted is not None
    assert wanted.is_in(text)
    for around in ("", "before 前 ", "é\n"):
        (first, *_) = [(around + text)[a:b] for a, b in wanted.places(around + text)]
        assert first == found
    row = Row(text, PutPrompt("x"))
    assert Listing("t", (Row("other", PutPrompt("y")), row)).matching(query)[-1:] == [row]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionStore]:
    home = tmp_path_factory.mktemp("search")
    with SessionStore.open(Folders(*(home / name for name in ("config", "data", "cache", "state")))) as opened:
        for n, (text, _, _) in enumerate(CASES):
            chat = opened.sessions.create("x" if n % 2 else text, model())
            opened.add_turn(chat, TurnRecord("user", "before" if n % 3 else text, (1,)))
            opened.add_turn(chat, TurnRecord("assistant", text, (2,), thinking=text if n % 5 else ""))
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize(("text", "query", "found"), CASES)
def test_and_in_all_chats(store: SessionStore, text: str, query: str, found: str) -> None:
    hits = [hit for hit in store.sessions.search(query, 1000) if text.split()[0] in hit.snippet]
    assert "assistant" in [hit.role for hit in hits]
    marked = {hit.snippet[a:b] for hit in hits for a, b in hit.marks}
    assert set(found.replace("\u3000", " ").split()) <= {word for mark in marked for word in mark.split()}


@pytest.mark.parametrize(("text", "query", "found"), CASES)
def test_and_in_the_window(text: str, query: str, found: str) -> None:
    lines = layout(Block(Kind.USER, text, message=0), Block(Kind.USER, "other", message=1))
    settle_all(lines)
    finder = Finder(lines)
    assert finder.search(query, 0)
    assert finder.numbers()[0] == 1


ODD = "aé e\u0301\u0308ﬁ½①㎏Ａ１ｱｶﾞﾊﾟ漢ガ한ㄱㅏﾡￂᄀ\u1161\u11a8กิที่\u0958ـלא\u05b8ẛ\u0323\ufdfa\n🦊\ufe0f\u200dßİς"


@given(st.text(alphabet=ODD), st.booleans())
def test_each_character_comes_from_somewhere(text: str, accents: bool) -> None:
    spans = origins(text, lambda piece: folded(piece, accents))
    assert len(spans) == len(folded(text, accents))
    assert spans == sorted(spans)


ANY = st.text(alphabet=ODD, max_size=8)


@given(ANY, ANY, ANY)
def test_whatever_stands_between_two_spaces_is_found(before: str, said: str, after: str) -> None:
    if wanted := Wanted.of(said):
        assert wanted.is_in(f"{before} {said.strip()} {after}")
        assert list(wanted.places(f"{before} {said.strip()} {after}"))
