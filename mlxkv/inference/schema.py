"""Grammars: JSON schemas and regular expressions to what a reply may consist of, by llguidance (`mlxkv[schema]`).

A Constraint follows one reply token by token, and masks the logits of all tokens that cannot come next. Reasoning comes
before the answer and is free. On the MLX thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx

from mlxkv.arguments import shown
from mlxkv.errors import ArgumentError, ConfigError, as_sentence, first_line
from mlxkv.inference.reply_parser import ReasoningSplitter
from mlxkv.tokenizer.tokens import Detokenizer

# One blank, or a line end and an indent: a model that prefers blanks to an answer would never end.
_BLANKS = r"( |\n {0,8}|\n\t{0,3})?"
_FLAGS = {re.IGNORECASE: "i", re.DOTALL: "s", re.VERBOSE: "x"}


class Grammars:
    """Compiles schemas for one tokenizer.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def compile(self, schema: Any) -> Grammar:
        """Compile a JSON schema as a mapping, as text or as a pydantic model, or a pattern of `re.compile`.

        Raises:
            ArgumentError: it is none of these. ConfigError: llguidance is missing, or does not accept it.
        """
        if isinstance(schema, Grammar):
            return schema
        tokens = self._tokens  # says first what is missing
        from llguidance import LLMatcher

        if isinstance(schema, re.Pattern):
            source = LLMatcher.grammar_from_regex(_pattern(schema))
        else:
            source = LLMatcher.grammar_from_json_schema(_json_schema(schema), overrides={"whitespace_pattern": _BLANKS})
        matcher = LLMatcher(tokens, source, log_level=0)
        if matcher.is_error():
            raise ConfigError(f"`schema` cannot be followed ({_reason(matcher.get_error())}); change it.")
        return Grammar(matcher)

    @cached_property
    def _tokens(self) -> Any:
        """llguidance's view of the tokenizer; takes up to a second."""
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise ConfigError("A schema needs llguidance; install it with `pip install 'mlxkv[schema]'`.") from error
        sentence = "This model's tokenizer cannot follow a schema ({}); use another model."
        with as_sentence(ConfigError, sentence.format):
            return from_tokenizer(self._tokenizer._tokenizer, eos_token=sorted(self._tokenizer.eos_token_ids))


class Grammar:
    """A compiled schema; each reply gets a matcher of its own."""

    def __init__(self, matcher: Any) -> None:
        self._first = matcher

    def matcher(self) -> Any:
        """An `llguidance.LLMatcher` at the beginning."""
        return self._first.deep_copy()


class Constraint:
    """What may come next in one reply.

    Args:
        splitter: of the reply, before its first token; None: no reasoning comes before the answer.
        reply: the ids that a reply to continue has already.

    Raises:
        ConfigError: they do not fit the schema.
    """

    def __init__(
        self, grammar: Grammar, tokenizer: Any, splitter: ReasoningSplitter | None, reply: Sequence[int] = ()
    ) -> None:
        self._matcher, self._splitter = grammar.matcher(), splitter
        self._ends = sorted(tokenizer.eos_token_ids)
        self._detokenizer = Detokenizer(tokenizer)
        self._vocabulary: Mapping[str, int] = tokenizer.get_vocab() if splitter is not None else {}
        self._num_tried = 0
        self.is_answer = splitter is None
        """Whether the answer has begun, which the schema describes."""
        for token in reply:
            self.follow(token)

    def follow(self, token: int) -> None:
        """The reply has this token next.

        Raises:
            ConfigError: the schema does not allow it.
        """
        splitter = self._splitter
        if not self.is_answer and splitter is not None:
            if splitter.state in ("thinking", "hidden") or token in self._openings:
                for _ in splitter.feed(self._detokenizer.add(token)):
                    pass
                return
            self.is_answer = True
        if not self._matcher.consume_token(token):
            why = "the schema does not allow it" if self._matcher.is_error() else "the answer is complete"
            raise ConfigError(f"Token {token:,} cannot be the next one: {why}; change the sampler, or the schema.")

    def tries(self, token: int) -> bool:
        """Whether the schema allows this token next; it then counts until `take_back`. Only in the answer."""
        if not self._matcher.validate_tokens([token]):
            return False
        self._num_tried += self._matcher.consume_token(token)
        return True

    def take_back(self) -> None:
        """Forget the tokens tried."""
        if self._num_tried:
            self._matcher.rollback(self._num_tried)
            self._num_tried = 0

    def masked(self, logits: mx.array) -> mx.array:
        """Logits (1, vocab) without those of tokens that cannot come next.

        Raises:
            ConfigError: the schema is too complex for llguidance.
        """
        size = logits.shape[-1]
        if not self.is_answer and self._splitter is not None and self._splitter.state in ("thinking", "hidden"):
            logits[:, self._within(self._ends, size)] = -mx.inf  # an answer is to follow
            return logits
        marks: Any = memoryview(self._matcher.compute_logit_bias())  # a byte for each token
        allowed = mx.array(marks)[:size] > 0
        if self._matcher.is_error():
            raise ConfigError(f"`schema` cannot be followed further ({_reason(self._matcher.get_error())}); change it.")
        if allowed.size < size:  # a model may have more than its tokenizer
            allowed = mx.concatenate([allowed, mx.zeros((size - allowed.size,), mx.bool_)])
        if not self.is_answer and (openings := self._openings):
            allowed[self._within(openings, size)] = True
        return mx.where(allowed, logits, -mx.inf)

    @property
    def _openings(self) -> list[int]:
        """The tokens that begin reasoning here."""
        splitter = self._splitter
        markers = () if splitter is None else splitter.openings
        return [self._vocabulary[marker] for marker in markers if marker in self._vocabulary]

    @staticmethod
    def _within(ids: Sequence[int], size: int) -> mx.array:
        return mx.array([i for i in ids if i < size], mx.int32)


def _json_schema(schema: Any) -> str:
    """The schema as JSON."""
    if callable(make := getattr(schema, "model_json_schema", None)):  # a pydantic model
        schema = make()
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"`schema` is text that is not JSON ({first_line(error)}); a regular expression must be compiled "
                "(`re.compile`)."
            ) from error
    if not isinstance(schema, Mapping):
        raise ArgumentError(
            f"`schema` is {shown(schema)}; it must be a JSON schema (an object or its text), a pydantic model or "
            "a pattern of `re.compile`."
        )
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"`schema` cannot be written as JSON ({first_line(error)}); change it.") from error


def _pattern(pattern: re.Pattern[Any]) -> str:
    """The pattern with its flags within."""
    if not isinstance(pattern.pattern, str):
        raise ConfigError("`schema` is a pattern of bytes; give one of text.")
    if pattern.flags & (re.ASCII | re.MULTILINE):
        raise ConfigError("`schema` is a pattern with re.ASCII or re.MULTILINE; compile it without.")
    flags = "".join(letter for flag, letter in _FLAGS.items() if pattern.flags & flag)
    return f"(?{flags}){pattern.pattern}" if flags else pattern.pattern


def _reason(text: str) -> str:
    """llguidance's reason as a clause; of a regular expression the line that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    return said or first_line(ValueError(text))
