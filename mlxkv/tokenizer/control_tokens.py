"""ControlTokens: `<|im_end|>` in a message is ordinary text; only the chat template's own control tokens are special.

A file, a question or another model's reply may contain `<|im_end|>`, which would end the message if encoded as usual.
So before rendering, a character that the chat does not contain is inserted into each such literal; the literals that
are still whole afterwards are the template's. These are replaced by unique names and encoded by a copy of the
tokenizer whose control tokens have these names: all other text is ordinary to it. Pure except for the tokenizer.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlxkv.errors import ModelError, as_sentence
from mlxkv.tokenizer.tokens import encode, encode_after

_PRIVATE = range(0xF0000, 0xFFFFE)  # private use area, for names
_MARKS = range(0x100000, 0x10FFFE)  # for marks
_NONCE = 8  # random characters, so that no text can contain a name


@dataclass(frozen=True)
class Rendered:
    """A rendered `text`. If a message contains control tokens, `marked` is the text with `mark` inside each."""

    text: str
    marked: str = ""
    mark: str = ""

    @classmethod
    def of(cls, marked: str, mark: str) -> Rendered:
        return cls(marked.replace(mark, ""), marked, mark) if mark and mark in marked else cls(marked)

    def part(self, start: int, end: int | None = None) -> Rendered:
        """`text[start:end]`."""
        if not self.mark:
            return Rendered(self.text[start:end])
        return Rendered.of(self.marked[self._place(start) : None if end is None else self._place(end)], self.mark)

    def with_prefix(self, text: str) -> Rendered:
        """`text` of the template, then this."""
        return Rendered(text + self.text, self.marked and text + self.marked, self.mark)

    def _place(self, chars: int) -> int:
        """The place in `marked` of character `chars` of `text`."""
        place = 0
        for piece in self.marked.split(self.mark):
            if chars < len(piece):
                break
            chars -= len(piece)
            place += len(piece) + len(self.mark)
        return place + chars


class ControlTokens:
    """The control tokens of a tokenizer and its chat template.

    These are the tokenizer's special tokens, and other added tokens that the template writes, such as `<think>` and
    `<tool_call>`; not the words, whitespace and HTML tags that some tokenizers add.

    Args:
        tokenizer: transformers' tokenizer.
        source: the template's text.
        markers: of reasoning.
    """

    def __init__(self, tokenizer: Any, source: str, markers: Iterable[str] = ()) -> None:
        self._tokenizer, self._source = tokenizer, source
        written = "\0".join((source, *markers))
        listed = set(getattr(tokenizer, "chat_control_tokens", None) or ())
        try:
            added = tokenizer.added_tokens_decoder
        except NotImplementedError:  # mistral-common's, which never takes them from text
            added = {}
        found = {id: token for id, token in added.items() if len(token.content) > 1}
        self._ids = {
            token.content: id
            for id, token in found.items()
            if token.special or token.content in listed or (_is_markup(token.content) and token.content in written)
        }
        self._are_normalized = any(token.normalized for token in found.values() if token.content in self._ids)
        self._pattern = _any_of(self._ids)

    def find_in(self, message: Mapping[str, Any]) -> str | None:
        """The first control token in a message's text, or in its tool calls."""
        hits = (self._pattern.search(text) for key, value in message.items() if key != "role" for text in _texts(value))
        return next((found[0] for found in hits if found), None)

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        """`messages` with a mark inside each control token, and that mark; "" if they contain none."""
        if not any(self.find_in(message) for message in messages):
            return [dict(message) for message in messages], ""
        used = set(self._source).union(*(text for message in messages for text in _texts(message)))
        mark = next(c for c in map(chr, _MARKS) if c not in used)

        def apart(text: str) -> str:
            while self._pattern.search(text):  # tokens may overlap
                text = self._pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text)
            return text

        return [{k: v if k == "role" else _changed(v, apart) for k, v in m.items()} for m in messages], mark

    def encode(self, rendered: Rendered) -> list[int]:
        """Ids of rendered text: the tokenizer's own unless a message contains a control token."""
        if not rendered.mark:
            ids = encode(self._tokenizer, rendered.text)
            if not self._can_arise or self._count(ids) <= len(self._pattern.findall(rendered.text)):
                return ids
        twin, marked = self._twin, rendered.marked or rendered.text
        if twin is None:
            return encode(self._tokenizer, rendered.text)
        named = self._pattern.sub(lambda found: twin.names[found[0]], marked)
        return encode(twin.tokenizer, named.replace(rendered.mark, ""))

    def encode_text(self, text: str, before: Sequence[int] = ()) -> list[int]:
        """Ids of text that follows the ids `before` and in which nothing is special."""

        def ids(tokenizer: Any) -> list[int]:
            if not before:
                return encode(tokenizer, text)
            # The copy can only encode.
            return encode_after(self._tokenizer, before, text, lambda mark: encode(tokenizer, mark + text))

        if not self._pattern.search(text):
            usual = ids(self._tokenizer)
            if not self._can_arise or not self._count(usual):
                return usual
        return ids(self._twin.tokenizer if self._twin else self._tokenizer)

    @property
    def can_escape(self) -> bool:
        """Whether this tokenizer can encode the text of a control token as ordinary text."""
        return self._twin is not None

    def _count(self, ids: Iterable[int]) -> int:
        known = self._known
        return sum(i in known for i in ids)

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self._ids.values()) - {self._tokenizer.unk_token_id}  # any unknown character becomes that

    @cached_property
    def _can_arise(self) -> bool:
        """Whether the normalizer may produce a control token from other text, such as full-width letters."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return False
        return self._are_normalized or any(backend.model.token_to_id(text) is not None for text in self._ids)

    @cached_property
    def _twin(self) -> _Twin | None:
        return _Twin.of(self._tokenizer, self._ids)


@dataclass(frozen=True)
class _Twin:
    """A copy of a tokenizer with other `names` for its control tokens."""

    tokenizer: Any
    names: Mapping[str, str]

    @classmethod
    def of(cls, tokenizer: Any, control: Mapping[str, int]) -> _Twin | None:
        """None if the tokenizer is not a Rust one, or cannot be serialized."""
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer) or len(control) > len(_PRIVATE):
            return None
        nonce = "".join(chr(secrets.choice(_PRIVATE)) for _ in range(_NONCE))
        names = {text: nonce + chr(_PRIVATE[i]) for i, text in enumerate(control)}
        try:
            with as_sentence(ModelError, str):
                made = Tokenizer.from_str(json.dumps(_renamed(json.loads(backend.to_str()), names)))
        except ModelError:  # parts of it may be in Python
            return None
        twin = copy.copy(tokenizer)  # keeps what its class does before and after encoding
        twin._tokenizer = made
        if any(made.token_to_id(name) != control[text] for text, name in names.items()):
            return None
        return cls(twin, names)


def _renamed(made: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer's JSON with some tokens renamed."""
    for token in made["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = made["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): i for text, i in vocab.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if merges := model.get("merges"):  # text must not merge into a control token
        model["merges"] = [m for m in merges if not _touches(m if isinstance(m, list) else m.split(" "), names)]
    return made | {"post_processor": None, "truncation": None, "padding": None}


def _touches(merge: Sequence[str], names: Mapping[str, str]) -> bool:
    a, b = merge
    return a + b in names or a in names or b in names


def _texts(value: Any) -> Iterator[str]:
    """All text in a value that JSON can hold, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in _texts(part))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The value with `change` of all text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_changed(key, change): _changed(part, change) for key, part in value.items()}
    return [_changed(part, change) for part in value] if isinstance(value, list | tuple) else value


def _is_markup(text: str) -> bool:
    """Whether `text` looks like markup: not a word, whitespace or plain punctuation."""
    return not text[0].isalnum() and not text[0].isspace() and any(c.isalnum() for c in text)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches the longest of `words`, as a trie."""
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for char in word:
            node = node.setdefault(char, {})
        node[""] = {}
    return re.compile(_branches(tree) if tree else "(?!)")


def _branches(node: Mapping[str, Any]) -> str:
    ways = [re.escape(char) + _branches(rest) for char, rest in node.items() if char]
    if not ways:
        return ""
    either = ways[0] if len(ways) == 1 and "" not in node else f"(?:{'|'.join(ways)})"
    return f"{either}?" if "" in node else either
