"""Text from outside as valid Unicode: arguments, standard input, files, pastes and strings from Python. Pure.

The rule: bytes are UTF-8 unless a byte order mark says otherwise, and what is no character becomes U+FFFD. Paths are
left as they come, so that a file with any name is found.
"""

from __future__ import annotations

import codecs
import re

_HALF = re.compile("[\ud800-\udfff]")
_UNDECODED = re.compile("(?<![\ud800-\udbff])[\udc80-\udcff]+")  # bytes of an argument that its locale does not know
_MARKS = {  # UTF-32's little-endian mark begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
TEXT = "UTF-8, or UTF-16 with a byte order mark"  # for sentences


def well_formed(text: str) -> str:
    """`text` without halves of characters, which no tokenizer, database or file takes.

    Two halves that belong together become their character. Bytes that Python could not decode (`surrogateescape`) are
    decoded as UTF-8. Whatever is left over becomes U+FFFD.
    """
    if _HALF.search(text) is None:
        return text
    text = _UNDECODED.sub(lambda run: run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), text)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def marked_encoding(data: bytes) -> str | None:
    """The encoding that a byte order mark at the beginning of `data` names."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def decode(data: bytes, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file or a pipe, its line ends as newlines.

    Args:
        encoding: that of `data` without a byte order mark.

    Raises:
        ValueError: it is no text: a NUL is in it, as in UTF-16 without a mark; or `errors` is strict and it is invalid.
    """
    text = data.decode(marked_encoding(data) or encoding, errors)
    if "\0" in text:
        raise ValueError("a NUL is in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")
