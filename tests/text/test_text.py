"""`clean`: nothing that steers a terminal or hides from a reader gets through, and ordinary text is left alone."""

from __future__ import annotations

import re
import sys
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mlxkv.text.clean import CONTEXT, FLOOD, MARK, clean, clean_joined, marked

ANY = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates included
VISIBLE_FORMAT = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ("\x1b[2J\x1b[H", "␛[2J␛[H"),  # clear the screen
        ("\x1b]52;c;cm0gLXJmIH4=\x07", "␛]52;c;cm0gLXJmIH4=␇"),  # write the clipboard
        ("\x1b]0;title\x1b\\", "␛]0;title␛\\"),  # set the title
        ("\x1b]8;;http://evil\x1b\\bank.com", "␛]8;;http://evil␛\\bank.com"),  # a link that lies
        ("\x9b31m", "\ufffd31m"),  # CSI as one C1 character
        ("\x90q\x9c", "\ufffdq\ufffd"),  # DCS
        ("rm -rf\rls    ", "rm -rf␍ls    "),  # overwrite the line
        ("a\bb\x7f", "a␈b␡"),
        ("a\x00b", "a␀b"),
        ("user\u202egpj.exe", "user\ufffdgpj.exe"),  # right-to-left override
        ("\u2066x\u2069", "\ufffdx\ufffd"),
        ("pass\u200dword", "pass\ufffdword"),  # a joiner where no script needs one
        ("\u0645\u200c\u200c", "\u0645\u200c\ufffd"),
        ("pass\u200bword", "pass\ufffdword"),  # zero-width space
        ("hi\U000e0049\U000e0047", "hi\ufffd\ufffd"),  # text smuggled in tag characters
        ("x\U000e0101", "x\ufffd"),  # or in variation selectors
        ("\ud83d", "\ufffd"),
        ("a\u2028b\x85c", "a\ufffdb\ufffdc"),  # line ends that only some programs see
    ],
)
def test_hostile(payload: str, shown: str) -> None:
    assert clean(payload) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\tb\nc",
        "Grüße, 世界",
        "e\u0301",
        "❤\ufe0f 🙂 👍🏽",
        "می\u200cخواهم",
        "क्\u200dष",
        "[red]x[/red] <think>",
        "␛",
    ],
)
def test_ordinary_text_is_untouched(text: str) -> None:
    assert clean(text) == text


@pytest.mark.slow
def test_every_character_of_unicode() -> None:
    """Against the character database of this Python, not against our own list."""
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if char in "\n\t" or char in VISIBLE_FORMAT:
            continue
        if unicodedata.category(char) in ("Cc", "Cs", "Cf", "Zl", "Zp"):
            assert clean(char) != char, f"U+{code:04X} {unicodedata.name(char, '')} got through"


@given(ANY)
def test_idempotent_and_encodable(text: str) -> None:
    shown = clean(text)
    assert clean(shown) == shown
    shown.encode("utf-8")
    assert len(clean(text, joined=True)) == len(text)
    assert clean(clean(text, joined=True)) == shown


@given(st.lists(ANY))
def test_a_stream_may_cut_anywhere(pieces: list[str]) -> None:
    shown, before = "", ""
    for piece in pieces:
        shown += clean(piece, before)
        before = (before + piece)[-CONTEXT:]
    assert shown == clean("".join(pieces))


ZALGO = st.lists(st.sampled_from("aé👩\u200d\ufe0f\u0301\u0e49ا\x1b"), max_size=40).map("".join)


@pytest.mark.slow
@given(ZALGO, st.lists(st.integers(0, 40)))
def test_marks_and_joiners_may_be_cut_apart(text: str, cuts: list[int]) -> None:
    shown, edges = "", [0, *sorted(cuts), len(text)]
    for start, end in pairwise(edges):
        shown += clean(text[start:end], text[:start])
    assert shown == clean(text)
    assert clean(shown) == shown


def test_joined_emoji_are_shown_in_parts_and_copied_whole() -> None:
    family = "👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥"
    assert clean(family) == "👨👩👧 ❤\ufe0f🔥"
    assert clean(family, joined=True) == family
    assert clean("👨\u200d\u200dx") == f"👨{MARK}x"  # one joiner says nothing, a row of them may
    assert clean("👨\u200d\u200dx", joined=True) == f"👨\u200d{MARK}x"


def test_a_terminal_that_joins_gets_joiners_within_emoji_and_nowhere_else() -> None:
    for whole in ("👨\u200d👩\u200d👧\u200d👦", "❤\ufe0f\u200d🔥", "👩🏽\u200d💻", "🏴\u200d☠\ufe0f", "क्\u200dष"):
        assert clean_joined(f"a{whole}b") == f"a{whole}b"
    for text, shown in (
        ("👨\u200d", "👨"),  # half of one, in a reply that runs
        ("👨\u200dx", "👨x"),
        ("👨\u200d\u200d👩", f"👨{MARK}👩"),
        ("❤\u200d🔥", "❤🔥"),  # narrow by itself: a terminal's guess
        ("←\u200d👧", "←👧"),  # no picture, so no terminal joins it
        ("pass\u200dword", f"pass{MARK}word"),
        ("1\ufe0f\u20e3\u200d👧", f"1\ufe0f\u20e3{MARK}👧"),
        ("👨\u200d" + "👧" * 2 + "\x1b\u202e", "👨\u200d👧👧␛" + MARK),
    ):
        assert clean_joined(text) == shown
    many = clean_joined("👩\u200d" * 500)
    assert many.count("\u200d") <= 3


@given(st.text("aé👩\u200d\ufe0f\u0301\x1b", max_size=40))
def test_what_is_joined_is_as_wide_as_a_terminal_draws_it(text: str) -> None:
    shown = clean_joined(text)
    assert clean_joined(shown) == shown
    assert clean(shown) == clean(text)
    pieces = re.split("(👩\ufe0f?(?:\u200d👩\ufe0f?)+)", shown)
    assert all("\u200d" not in piece for piece in pieces[::2])
    assert all(cell_len(piece) == 2 for piece in pieces[1::2])


@pytest.mark.parametrize("mark", ["\u0301", "\u0489", "\u20dd", "\u0e49", "\u064b"])
def test_a_flood_of_combining_marks_stands_beside_its_letter(mark: str) -> None:
    assert clean("e" + mark * (FLOOD + 3)) == "e" + mark * FLOOD + MARK * 3
    assert clean("e" + mark * FLOOD) == "e" + mark * FLOOD


def test_marks_stay_on_their_words_when_the_text_is_cleaned() -> None:
    text = "a\x1b[1mb \N{WOMAN}\u200d\N{ROCKET} needle \u202eend"
    at = text.index("needle")
    shown, marks = marked(text, [(0, 1), (at, at + 6), (at + 7, len(text))])
    assert shown == clean(text)
    assert [shown[a:b] for a, b in marks] == ["a", "needle", clean("\u202eend")]
    assert marked("plain", []) == ("plain", ())
