"""How a foreign error fits into a sentence of ours. Pure strings."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What `error` says: its first line, at most 200 characters, printable only; its type where it says nothing."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".: ")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
