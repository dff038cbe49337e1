"""Log-probabilities by token id to those by text and bytes, as clients read them. On the MLX thread."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from mlxkv.events import TokenLogprobs
from mlxkv.server.jobs import TokenScore
from mlxkv.tokenizer.tokens import decode

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def scores_of(tokenizer: Any, found: Iterable[TokenLogprobs]) -> tuple[TokenScore, ...]:
    """The scores of a reply's tokens, without those that end it."""
    ends = tokenizer.eos_token_ids
    return tuple(
        TokenScore(*_text(tokenizer, one.token), one.logprob, tuple((*_text(tokenizer, i), p) for i, p in one.top))
        for one in found
        if one.token not in ends
    )


def _text(tokenizer: Any, token: int) -> tuple[str, bytes]:
    """A token's text, and its bytes, which need not be a whole character."""
    text = decode(tokenizer, [token])
    if "\N{REPLACEMENT CHARACTER}" in text and (raw := _bytes(tokenizer, token)) is not None:
        return text, raw
    return text, text.encode()


def _bytes(tokenizer: Any, token: int) -> bytes | None:
    piece = tokenizer.convert_ids_to_tokens(token)
    if (match := _BYTE.fullmatch(piece)) is not None:
        return bytes([int(match[1], 16)])
    known = _byte_level()
    return bytes(known[c] for c in piece) if all(c in known for c in piece) else None


def _byte_level() -> dict[str, int]:
    """GPT-2's characters for bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
