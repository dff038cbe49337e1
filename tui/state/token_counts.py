"""How many tokens the files sent along have, by the tokenizer of the model that is loaded. Pure; UI thread.

The engine counts, between other commands; until it has, nobody knows (None). Each text is asked about once per model.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b


class Counts:
    """`ask` takes a key and the text to count; the answer comes by `take`."""

    def __init__(self, ask: Callable[[str, str], object]) -> None:
        self._ask = ask
        self._known: dict[str, int] = {}
        self._asked: set[str] = set()
        self.is_asking = False  # whether anybody could answer: a model is loaded

    def of(self, text: str) -> int | None:
        """Tokens of a file's text, as it is sent: without line feeds at its end."""
        text = text.rstrip("\n")
        key = blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
        if key not in self._known and key not in self._asked and self.is_asking:
            self._asked.add(key)
            self._ask(key, text)
        return self._known.get(key)

    def take(self, key: str, tokens: int) -> None:
        self._known[key] = tokens

    def forget(self) -> None:
        """Another model, which counts otherwise."""
        self._known.clear()
        self._asked.clear()
        self.is_asking = True
