"""Makes foreign text safe for the screen, the clipboard, titles and exports. Pure.

Each character is checked with the few before it, so a stream that splits an escape sequence needs only its last
characters. Characters that a terminal would obey, or a reader could not see, become visible marks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MARK = "\ufffd"
CONTEXT = 10  # characters before a piece of text that affect it
FLOOD = 8  # combining marks on one letter; no script needs more; a flood would cover the lines around it

# The scripts that are spelled with joiners (Persian, Hindi, ...), and the emoji of sequences.
_LETTERS = "\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\ufb50-\ufdff\ufe70-\ufefc"
_EMOJI = "\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2934-\u2b55\ufe0f\U0001f000-\U0001faff"
# Combining marks used in floods.
_COMBINING = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4"
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
    "\u302a-\u302d\ua66f-\ua672\ufe20-\ufe2f"
)
# C0 but tab and newline, DEL, C1, soft hyphen, then everything that is invisible, reorders text or carries hidden
# data: bidi controls, zero-width and filler characters, variation selectors (emoji's own two stay), annotation and
# tag characters, lone surrogates.
_ALWAYS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U00013430-\U0001343f\U000e0000-\U000e0fff\ud800-\udfff"
)
# Emoji that a terminal may draw as one: Unicode's Extended_Pictographic, its symbols only if sequences use them.
_PICTURE = (
    "[\u2194\u2195\u2620\u2640\u2642\u2695\u2696\u26a7\u26d3\u26f9\u2708\u2764\u27a1\u2b1b\u2b1c\U0001f300-\U0001f3fa"
    "\U0001f400-\U0001f53d\U0001f546-\U0001f64f\U0001f680-\U0001f6ff\U0001f90c-\U0001f93a\U0001f93c-\U0001f945"
    "\U0001f947-\U0001faff]"
)
_EMOJI_ALONE = f"{_PICTURE}\ufe0f?[\U0001f3fb-\U0001f3ff]?"
_MOST_JOINED = 4  # emoji: a family; no sequence in use has more
_JOINTS = re.compile(f"{_EMOJI_ALONE}(?:\u200d{_EMOJI_ALONE}){{1,{_MOST_JOINED - 1}}}(?!\u200d)|(?<=[{_EMOJI}])\u200d")
_TONE = "[\ufe0f\U0001f3fb-\U0001f3ff]"
_JOINED = re.compile(f"(?!{_TONE})[{_EMOJI}]{_TONE}*(?:\u200d(?:(?!{_TONE})[{_EMOJI}]{_TONE}*)?)+")
_SUSPECT = re.compile(f"[{_ALWAYS}\u200c\u200d]|[{_COMBINING}]{{{FLOOD + 1}}}")  # rare in real text
_UNSAFE = re.compile(
    f"(?P<joint>(?<=[{_EMOJI}])\u200d)|(?<![{_LETTERS}])[\u200c\u200d]|[{_ALWAYS}]"
    f"|(?<=[{_COMBINING}]{{{FLOOD}}})[{_COMBINING}]"
)


def clean(text: str, before: str = "", *, joined: bool = False) -> str:
    """Replace every character that could control a terminal or be invisible to a reader by a visible one.

    C0 controls and DEL become their control pictures (`␛` for escape), the rest U+FFFD. Newline and tab stay. Terminals
    disagree about the width of emoji that are joined into one, so the joiner after an emoji is removed and its parts
    are shown side by side; `joined` keeps it, for files and the clipboard. `before`: the text just before `text` in a
    stream; only its last `CONTEXT` characters matter.
    """
    known = before[-CONTEXT:]
    if _SUSPECT.search(known + text) is None:
        return text
    mark = _visible_joined if joined else _visible
    return _UNSAFE.sub(mark, known + text)[len(_UNSAFE.sub(mark, known)) :]  # nothing depends on what follows


def clean_joined(text: str) -> str:
    """`clean` for a terminal that draws joined emoji as one, two cells wide: keeps only their joiners."""
    text = clean(text, joined=True)
    return _JOINTS.sub(_whole, text) if "\u200d" in text else text


def _whole(match: re.Match[str]) -> str:
    """The joined sequence if its first emoji is wide by itself; else without its joiners."""
    found = match[0]
    if len(found) > 1 and (found[1] == "\ufe0f" or unicodedata.east_asian_width(found[0]) == "W"):
        return found
    return found.replace("\u200d", "")


def rejoined(shown: str, before: str, source: str) -> str:
    """`shown`, a part of `clean(source)` after the text `before`, with the joiners that `clean` removed.

    Which of several alike was joined is told by their order, as long as both have the same.
    """
    if not (whole := set(_JOINED.findall(source))):
        return shown
    forms = {form.replace("\u200d", ""): form for form in whole}
    parts = re.compile("|".join(sorted(map(re.escape, forms), key=len, reverse=True)))
    either = re.compile("|".join(sorted(map(re.escape, {*forms, *whole}), key=len, reverse=True)))
    there = either.findall(source)
    here = parts.findall(before + shown)
    if here != [form.replace("\u200d", "") for form in there[: len(here)]]:
        return parts.sub(lambda match: forms[match[0]], shown)
    following = iter(there[len(parts.findall(before)) :])
    return parts.sub(lambda _: next(following), shown)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if match["joint"]:
        return ""
    return "\u2421" if code == 0x7F else MARK


def _visible_joined(match: re.Match[str]) -> str:
    return match[0] if match["joint"] else _visible(match)


def marked(text: str, spans: Iterable[tuple[int, int]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The cleaned `text`, with its ascending `spans` [start, end) adjusted: cleaning may drop characters."""
    out, moved, done = "", [], 0
    for start, end in spans:
        out += clean(text[done:start], text[:done])
        begin = len(out)
        out, done = out + clean(text[start:end], text[:start]), end
        moved.append((begin, len(out)))
    return out + clean(text[done:], text[:done]), tuple(moved)
