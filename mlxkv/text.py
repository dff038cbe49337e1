"""Make text that is not ours safe to show: one function for the screen, the clipboard, titles and exports. Pure.

Every character is judged by itself and the one before it, so a stream that cuts an escape sequence in two needs no more
memory than its last character. What a terminal would act on, or a reader could not see, becomes a visible mark.
"""

from __future__ import annotations

import re

MARK = "\ufffd"

# C0 but tab and newline, DEL, C1, soft hyphen, then everything that is invisible, reorders text or carries hidden
# data: bidi controls, zero-width and filler characters, variation selectors (emoji's own two stay), annotation and
# tag characters, lone surrogates. The joiners U+200C and U+200D stay after letters of the scripts that are spelled with
# them (Persian, Hindi, ...); between emoji they go, since terminals disagree about the width of joined ones.
_UNSAFE = re.compile(
    "(?<![\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\ufb50-\ufdff\ufe70-\ufefc])[\u200c\u200d]"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U00013430-\U0001343f\U000e0000-\U000e0fff\ud800-\udfff]"
)


def clean(text: str, before: str = "") -> str:
    """`text` with every character that could steer a terminal or hide from a reader replaced by a visible one.

    C0 controls and DEL become their control pictures (`␛` for escape), the rest U+FFFD. Newline and tab stay.
    `before` is what a stream said just before `text`; only its last character counts.
    """
    if text.isascii() and text.isprintable():  # most pieces of a stream
        return text
    known = before[-1:]
    return _UNSAFE.sub(_visible, known + text)[len(known) :]


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else MARK
