"""Long pastes as one word in the prompt: `[Pasted text #1 +40 lines]`. Pure; UI thread."""

from __future__ import annotations

import re
from collections.abc import Mapping

LINES = 8  # a paste of so many lines, or of so many characters, is folded
CHARACTERS = 1000

_MARK = re.compile(r"\[Pasted text #(\d+) (?:\+[\d,]+ lines|[\d,]+ characters)\]")


class Pastes:
    """What the placeholders in the prompt stand for. One that was edited is text like any other."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fold(self, text: str) -> str:
        """`text`, or the placeholder that stands for it from now on."""
        lines = text.count("\n") + (not text.endswith("\n"))
        if lines < LINES and len(text) < CHARACTERS:
            return text
        size = f"+{lines:,} lines" if lines > 1 else f"{len(text):,} characters"
        mark = f"[Pasted text #{len(self._texts) + 1} {size}]"
        self._texts[mark] = text
        return mark

    def expand(self, text: str) -> str:
        """`text` with every placeholder replaced; what a paste contains is not looked at again."""
        return _MARK.sub(lambda match: self._texts.get(match[0], match[0]), text)

    def forget(self) -> dict[str, str]:
        """Sent: the numbers start again. What the placeholders stood for, for `restore`."""
        texts, self._texts = self._texts, {}
        return texts

    def restore(self, text: str, texts: Mapping[str, str]) -> str:
        """`text` as it was before `forget`, its placeholders numbered after those there are now."""
        return _MARK.sub(lambda match: self.fold(texts[match[0]]) if match[0] in texts else match[0], text)
