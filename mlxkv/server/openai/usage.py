"""Usage: the tokens of a job, in OpenAI's words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxkv.server.jobs import Ended


def counts(ends: Sequence[Ended]) -> tuple[int, int, int]:
    """Tokens of the prompts, how many of them were cached, and tokens of the replies; several replies to one prompt
    (`index` 0 is the first) count it once."""
    first = [end for end in ends if end.index == 0] or list(ends[:1])
    prompt, cached = sum(end.stats.prompt_tokens for end in first), sum(end.stats.cached_tokens for end in first)
    return prompt, cached, sum(end.stats.generated_tokens for end in ends)


def usage(ends: Sequence[Ended]) -> dict[str, Any]:
    """`usage` of completions."""
    prompt, cached, generated = counts(ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
