"""Text to token ids and back, exactly: a prompt and its continuation decode to the one text followed by the other.

Tokenizers treat every text as a beginning: some add a leading space when encoding, some drop one when decoding. So text
that follows other tokens is encoded and decoded after some of them. Pure except for the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlxkv.errors import ModelError, as_sentence
from mlxkv.token_ids import common_prefix

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # an invalid or incomplete character
_CHARACTER = 4  # bytes, and thus tokens, of a character at most
_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json", "vocab.txt")
_MOST = 16  # tokens of context for decoding a token
_CHECKED = 64  # tokens that are enough to see a wrong beginning


class Detokenizer:
    """Token ids to text, one by one, after the ids `before` them.

    A character of several tokens is returned when it is complete; invalid bytes become U+FFFD.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._waiting: list[int] = []
        self._shown = 0  # characters of the text of `_before`
        self._settle(before)

    def add(self, token: int) -> str:
        """Add a token; returns the text that is complete now."""
        self._waiting.append(token)
        out = ""
        while self._waiting:
            text = decode(self._tokenizer, (*self._before, *self._waiting))
            if not text.endswith(_BROKEN):
                out += text[self._shown :]
                self._before += self._waiting
                self._waiting, self._shown = [], len(text)
                if len(self._before) > _MOST:
                    self._settle(self._before)
            elif len(self._waiting) < _CHARACTER:
                break
            else:  # the first token cannot belong to a character that is still incomplete
                out += decode(self._tokenizer, (self._waiting.pop(0),))
                self._before, self._shown = [], 0
        return out

    def finish(self) -> str:
        """End the text; returns an incomplete character."""
        rest, self._waiting = decode(self._tokenizer, self._waiting), []
        return rest

    def _settle(self, ids: Sequence[int]) -> None:
        self._before = _tail(self._tokenizer, ids)
        self._shown = len(decode(self._tokenizer, self._before))


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of these ids, special tokens included; negative ids (imported tokens) have none.

    Raises:
        ModelError: the tokenizer fails on them.
    """
    known = [i for i in ids if i >= 0]
    if not known:
        return ""

    def failed(why: str) -> str:
        return f"{_named(tokenizer)} cannot turn token ids into text ({why}); download the model again or use another."

    with as_sentence(ModelError, failed):
        return tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encode(tokenizer: Any, text: str, add_special_tokens: bool = False) -> list[int]:
    """Ids of a text by itself. A Rust tokenizer releases the GIL meanwhile.

    Raises:
        ModelError: the tokenizer fails on it.
    """

    def failed(why: str) -> str:
        return f"{_named(tokenizer)} cannot encode this text ({why}); remove unusual characters, or use another model."

    with as_sentence(ModelError, failed):
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def tokenizer_file(folder: Path) -> str:
    """The tokenizer's file in a model's folder, for error messages."""
    return next((name for name in _FILES if (folder / name).is_file()), _FILES[0])


def _named(tokenizer: Any) -> str:
    path = tokenizer.name_or_path
    return f"The tokenizer of {path} ({tokenizer_file(Path(path))})" if path else "The tokenizer of this model"


def encode_start(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text at the beginning: with the BOS token, unless the text has it already, and without an EOS token."""
    if (bos := tokenizer.bos_token) is not None and text.startswith(bos):
        return encode(tokenizer, text)
    ids = encode(tokenizer, text, add_special_tokens=True)
    if ids[-1:] == [tokenizer.eos_token_id]:
        plain = encode(tokenizer, text)
        return ids[:-1] if ids[-1 - len(plain) : -1] == plain else ids
    return ids


def encode_after(
    tokenizer: Any, before: Sequence[int], text: str, encode_marked: Callable[[str], list[int]] | None = None
) -> list[int]:
    """Ids of a text that follows the ids `before`: together they decode to both texts.

    `encode_marked` encodes the characters that it is given and the text after them; None: by `encode`.
    """
    encode_marked = encode_marked or (lambda mark: encode(tokenizer, mark + text))
    tail = _tail(tokenizer, before) or encode(tokenizer, "a")
    head = len(decode(tokenizer, tail))
    best: tuple[int, list[int]] = (-1, [])
    for ids in _encodings(tokenizer, encode_marked):
        piece = decode(tokenizer, (*tail, *ids[:_CHECKED]))[head:]
        if piece == text or (len(ids) > _CHECKED and text.startswith(piece.rstrip(_BROKEN))):
            return ids
        right = common_prefix(piece, text)
        if right > best[0]:  # a tokenizer that normalizes the text: take the longest match
            best = (right, ids)
    return best[1]


def _encodings(tokenizer: Any, encode_marked: Callable[[str], list[int]]) -> Iterator[list[int]]:
    """Candidates: the text by itself, then after characters that it does not merge with."""
    yield encode_marked("")
    for mark in ("\n", "a", "0"):
        alone, both = encode(tokenizer, mark), encode_marked(mark)
        if both[: len(alone)] == alone:
            yield both[len(alone) :]


def _tail(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The last of these ids that decode to whole characters; empty if there are none, or imported tokens come first."""
    for start in range(len(ids) - 1, max(len(ids) - 1 - _MOST, -1), -1):
        if ids[start] < 0:
            break
        text = decode(tokenizer, ids[start:])
        if text and not text.startswith(_BROKEN) and not text.endswith(_BROKEN):
            return list(ids[start:])
    recent = list(ids[-_MOST:])  # a space that the tokenizer strips at the beginning still counts
    return recent if recent and min(recent) >= 0 and not decode(tokenizer, recent) else []
