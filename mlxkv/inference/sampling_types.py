"""Sampling: the keyword arguments for sampling as a type, for those who pass them on. No values, no checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat, SupportsIndex, TypedDict


class Sampling(TypedDict, total=False):
    """The keyword arguments for sampling, for a type checker: ``def ask(text: str, **sampling: Unpack[Sampling])``.

    SamplingParams says what each does, and `Model.generate` the last three. One that is missing or None is the chat's,
    or the model's own. A number may also be numpy's, MLX's or `fractions`'.
    """

    temperature: SupportsFloat | SupportsIndex | None
    top_p: SupportsFloat | SupportsIndex | None
    top_k: SupportsIndex | None
    min_p: SupportsFloat | SupportsIndex | None
    max_tokens: SupportsIndex | None
    thinking_budget: SupportsIndex | None
    seed: SupportsIndex | None
    stop: str | Iterable[str] | None
    repetition_penalty: SupportsFloat | SupportsIndex | None
    presence_penalty: SupportsFloat | SupportsIndex | None
    frequency_penalty: SupportsFloat | SupportsIndex | None
    repetition_context_size: SupportsIndex | None
    presence_context_size: SupportsIndex | None
    frequency_context_size: SupportsIndex | None
    logit_bias: Mapping[int, float] | None
    xtc_probability: SupportsFloat | SupportsIndex | None
    xtc_threshold: SupportsFloat | SupportsIndex | None
    logprobs: SupportsIndex | None
    processors: Iterable[Callable[[Any, Any], Any]] | None
    sampler: Callable[[Any], Any] | None
    schema: Mapping[str, Any] | str | type | re.Pattern[str] | None
