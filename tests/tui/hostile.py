"""Text that wants to steer a terminal, and the scan that finds whether any of it got there.

The scan reads the bytes that a program wrote to its terminal. It knows the few sequences that the window itself writes,
with the values they may have; what is left must be characters that a reader sees. It asks Unicode what a character is,
not `mlxkv.text.clean`, which is what it checks.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterator

PAYLOADS = (
    "\x1b]52;c;UFdORUQ=\x07",  # write the clipboard
    "\x1b]8;;http://evil.example\x1b\\",  # a link that lies
    "\x1b]0;PWNED\x07\x1b]2;PWNED\x1b\\",  # the window's title
    "\x1b[9;9H\x1b[?1049l\x1b[31337m",  # CSI: move, leave the screen, colour
    "\x1bPq#0;2;31337\x1b\\",  # DCS: a sixel picture
    "\x1b_Ga=T,f=24;AAAA\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\",  # APC: a kitty picture; PM, SOS
    "\x9b31337m\x9d0;x\x9c\x90q\x9c\x85",  # the same in 8-bit C1
    "\r\x08\x0b\x0c\t\x1b[A",  # over what stands there
    "\u202e\u202d\u200f\u2066\u2068\u2069\u061c",  # bidi overrides and isolates
    "\u200b\ufeff\u2060\u00ad\U000e0041\U000e007f\ufe01\u3164",  # zero width, tags, fillers
    "[link=http://evil.example][@click=app.bell]x[/]",  # Textual's markup
    "[bold red]:bomb:[/bold red][/nope]",  # Rich's
    "e" + "\u0301" * 40 + "\u20dd" * 40,  # a flood of combining marks
    "\x1bc\x7f\x1b[8m\x1b[31337h",  # a reset of the terminal, hidden text
    "\x00\x05\x1b[6n\x1b[31337t\x1b]11;?\x07",  # NUL, and questions that it answers as if they were typed
    "\ud83d\udc00 " + "y" * 300,  # lone surrogates, and a line that does not end
)
NAMES = tuple(f"PAY{letter}" for letter in "ABCDEFGHIJKLMNOP")
VISIBLE = (10, 11)  # of these every character may be shown, and must

# What the window writes of its own: styles, the cursor, modes and questions about them, the keyboard, the pointer, the
# clipboard when the user copies, the title, and a new line when it says itself where that begins.
_OURS = re.compile(
    rb"\x1b\[(?P<style>[0-9;]*)m|\x1b\[(?P<row>[0-9]+);(?P<column>[0-9]+)H|\x1b\[\?(?P<mode>[0-9]+)(?:[hl]|\$p)"
    rb"|\x1b\[[<>][0-9]{0,2}u|\x1b\]22;[a-z-]*\x07|\x1b\]52;c;(?P<copied>[A-Za-z0-9+/=]*)\x07"
    rb"|\x1b\[2[23];0t|\x1b\]0;(?P<title>(?:mlxkv[^\x07\x1b]*)?)\x1b\\|\r\n(?=\x1b\[[0-9]+;[0-9]+H)"
)
_STYLES = {0, 1, 2, 3, 4, 7, 9, 39, 49, *range(30, 38), *range(40, 48), *range(90, 98), *range(100, 108)}
_MODES = {7, 25, 1000, 1002, 1003, 1004, 1006, 1015, 1016, 1049, 2004, 2026, 2048}
_FLOOD = 8  # marks on one letter
_HIDDEN = re.compile("[\u034f\u115f\u1160\u3164\uffa0\ufe00-\ufe0d\U000e0000-\U000e0fff]")


def bomb(lead: int = 0, label: str = "") -> str:
    """All of them from number `lead` on, each after a name that must be seen; `label` says whose they are."""
    parts = [name + payload for name, payload in zip(NAMES, PAYLOADS, strict=True)]
    at = lead % len(parts)
    return " ".join([label, *parts[at:], *parts[:at]] if label else [*parts[at:], *parts[:at]])


def piece(lead: int, label: str = "") -> str:
    """One of them, for where there is room for no more."""
    return f"{label} {NAMES[lead % len(NAMES)]}{PAYLOADS[lead % len(NAMES)]}"


def markdown(label: str) -> list[str]:
    """Where Markdown may decode, highlight or link them: passages, each labelled."""
    one = bomb().replace("\r", "").replace("\t", "")
    bare = one.replace(" ", "").replace("/", "|")
    entities = "&#27;[31337m &#x202e; &#x9b; &#155; &ZeroWidthSpace; <http://x/%1b[31337m%e2%80%ae>"
    table = f"| {one} | b |\n|---|---|\n| {one} | {one} |"
    passages = (
        f"# {one}", one, f"- {one}\n  - {one}", f"> {one}", f"```py\nx = '{one}'  # {one}\n```",
        f"~~~{bare}\n{one}\n~~~",
        f"`{one}` **{one}** *{one}* ~~{one}~~", f"[{one}](http://a.example/{bare} \"{one}\")",
        f"[x](<http://b.example/{one}>) http://c.example/{bare}", table, entities, "long" + "x" * 5000,
        "wide" + "世" * 2000, f"    {one}", f"1. {one}", "👨\u200d👩\u200d👧" * 30, f"<b onclick='{one}'>{one}</b>",
    )  # fmt: skip
    return [f"{label}{number:02} {NAMES[0]}\n\n{passage}" for number, passage in enumerate(passages)]


def faults(output: bytes, columns: int, rows: int) -> Iterator[str]:
    """What a terminal of `columns` x `rows` was told that it must not be told."""
    titles = [match["title"] for match in _OURS.finditer(output) if match["title"]]
    text = " ".join([shown(output), *(title.decode("utf-8") for title in titles)])
    for match in _OURS.finditer(output):
        if (style := match["style"]) is not None and not _is_style(style):
            yield f"a style that is not ours: {match[0]!r}"
        if match["row"] and not (1 <= int(match["row"]) <= rows and 1 <= int(match["column"]) <= columns):
            yield f"the cursor is sent off the screen: {match[0]!r}"
        if match["mode"] and int(match["mode"]) not in _MODES:
            yield f"a mode that is not ours: {match[0]!r}"
    for i, char in enumerate(text):
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") or _HIDDEN.match(char):
            yield f"{char!r} after {text[max(0, i - 60) : i]!r}"
    if flood := re.search(f"[\u0300-\u036f\u20d0-\u20ff]{{{_FLOOD + 1},}}", text):
        yield f"a flood of marks after {text[max(0, flood.start() - 60) : flood.start()]!r}"


def _is_style(style: bytes) -> bool:
    """Codes one after the other; 38 and 48 are followed by a colour."""
    codes = [int(code or 0) for code in style.split(b";")]
    while codes:
        code = codes.pop(0)
        if code in (38, 48) and codes[:1] in ([2], [5]):
            width = 4 if codes[0] == 2 else 2
            colour, codes = codes[1:width], codes[width:]
            if len(colour) != width - 1 or max(colour) > 255:
                return False
        elif code not in _STYLES:
            return False
    return True


def shown(output: bytes) -> str:
    """The output without what is ours; strictly UTF-8."""
    return _OURS.sub(b"", output).decode("utf-8")


def copied(output: bytes) -> list[str]:
    """What the terminal was told to put on the clipboard."""
    return [base64.b64decode(match["copied"]).decode() for match in _OURS.finditer(output) if match["copied"]]
