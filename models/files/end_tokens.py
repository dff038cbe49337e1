"""Finds the tokens that end a reply: all that a model's files name, and the one with which its template ends a turn.

Each source alone is wrong for some published model: generation_config.json omits the end of the text, config.json the
end of the turn, and the tokenizer has only one of them. Pure but for the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxkv.tokenizer.chat_template import ChatTemplate
from mlxkv.tokenizer.tokens import decode

_MARK = "0x0MARK0x0"  # placeholder for a reply
_MOST = 4096  # values in one list


@dataclass(frozen=True)
class EndToken:
    """A token that ends a reply, its text, and the files that name it."""

    id: int
    text: str
    sources: tuple[str, ...]


def end_tokens(tokenizer: Any, config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[EndToken, ...]:
    """All end tokens, ascending. Invalid values (negative, beyond the vocabulary, not a number) are skipped.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper, with the chat template in place.
        config, generation: config.json and generation_config.json.
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else {}
    said: dict[str, list[Any]] = {
        "config.json": [config.get("eos_token_id"), text.get("eos_token_id")],
        "generation_config.json": [generation.get("eos_token_id")],
        "tokenizer_config.json": [tokenizer.eos_token_id],
        "chat template": [_end_of_turn(tokenizer)],
    }
    sizes: list[Any] = [size for size in (config.get("vocab_size"), text.get("vocab_size")) if _is_id(size)]
    size = max(len(tokenizer), *sizes, 0)
    sources: dict[int, list[str]] = {}
    for source, values in said.items():
        for token in sorted({t for t in token_ids(values, tokenizer) if t < size}):
            sources.setdefault(token, []).append(source)
    for token in tokenizer.eos_token_ids:
        if token < size:
            sources.setdefault(token, ["mlx-lm"])
    return tuple(EndToken(token, decode(tokenizer, [token]), tuple(sources[token])) for token in sorted(sources))


def token_ids(value: Any, tokenizer: Any = None) -> Iterator[int]:
    """The token ids in a value of `eos_token_id`: numbers, digits in a string, texts of tokens, also nested."""
    todo = [value]
    for _ in range(_MOST):
        if not todo:
            return
        value = todo.pop()
        if isinstance(value, (list, tuple)):
            todo += value[:_MOST]
        elif isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
            yield int(value)
        elif isinstance(value, str) and tokenizer is not None:
            token = tokenizer.convert_tokens_to_ids(value)
            if isinstance(token, int) and token != tokenizer.unk_token_id:
                yield token
        elif _is_id(value):
            yield int(value)


def _is_id(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < 1 << 31 and value == int(value)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the template puts after the last reply of a chat, or None.

    Of several in a row the last one (Cohere's templates end the text, then the turn). The reply must be the last
    message, since some templates (gpt-oss) use another token before a user's turn, which also occurs within replies. A
    token that opens a reply does not end one, and neither does one that other text follows (Kimi K3).
    """
    if not tokenizer.has_chat_template:
        return None
    render = ChatTemplate(tokenizer).render
    user = [{"role": "user", "content": "x"}]
    try:
        whole = render([*user, {"role": "assistant", "content": _MARK}], for_reply=False)
        asked, begun = render(user, for_reply=False), render(user)
    except Exception:  # an error of the template, reported when it is used
        return None
    opening = begun.removeprefix(asked) if begun != asked else ""
    after = whole.rpartition(_MARK)[2].lstrip() if _MARK in whole else ""
    special = ((n, str(token)) for n, token in tokenizer.added_tokens_decoder.items() if token.special)
    added = {text: n for n, text in special if text.strip()}
    run: list[str] = []
    while found := max((t for t in added if after.startswith(t)), key=len, default=""):
        run.append(found)
        after = after.removeprefix(found)
    rest = after.strip()
    if not run or opening.lstrip().startswith(run[0]) or (rest and not rest.startswith(tuple(added))):
        return None
    return added[run[0] if rest else run[-1]]
