"""Text from outside as valid Unicode: arguments, standard input, files, pastes and strings from Python. Pure.

The rule: bytes are UTF-8 unless a byte order mark says otherwise, and invalid characters become U+FFFD. Paths stay
unchanged, so that files with any name are found.
"""

from __future__ import annotations

import codecs
import re

_HALF = re.compile("[\ud800-\udfff]")
_UNDECODED = re.compile("(?<![\ud800-\udbff])[\udc80-\udcff]+")  # undecodable bytes of an argument
_MARKS = {  # UTF-32's little-endian mark begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
TEXT = "UTF-8, or UTF-16 with a byte order mark"  # for sentences


def well_formed(text: str) -> str:
    """`text` without lone surrogates, which no tokenizer, database or file accepts.

    Surrogate pairs become their character. Bytes that Python could not decode (`surrogateescape`) are
    decoded as UTF-8. The others become U+FFFD.
    """
    if _HALF.search(text) is None:
        return text
    text = _UNDECODED.sub(lambda run: run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), text)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def marked_encoding(data: bytes) -> str | None:
    """The encoding of a byte order mark at the beginning of `data`, or None."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def decode(data: bytes, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file or a pipe, with newlines as line ends. `encoding` applies without a byte order mark.

    Raises:
        ValueError: it contains a NUL, as in UTF-16 without a mark; or it is invalid and `errors` is strict.
    """
    text = data.decode(marked_encoding(data) or encoding, errors)
    if "\0" in text:
        raise ValueError("it contains a NUL")
    return text.replace("\r\n", "\n").replace("\r", "\n")
