"""Text of a file as part of a message, fenced so that nothing in it ends the fence. Pure."""

from __future__ import annotations

import re


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of Markdown code."""
    fence = "`" * (max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def file_section(path: str, text: str) -> str:
    """The part of a message that holds the file `path`, after the message's own text; the window shows it folded."""
    return f"\n\nFile `{file_heading(path)}`:\n{fenced(text)}"


def file_heading(path: str) -> str:
    """`path` as its section names it."""
    return path.replace("`", "'").replace("\n", " ")
