"""Sampling parameters at their extremes: a token that may come, never an error of mlx-lm or a token of no rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.errors import ConfigError
from mlxkv.inference.sampling import SamplingParams

pytestmark = pytest.mark.usefixtures("uncompiled")

LOGITS = [0.0, 1.0, 8.0, 7.5, -3.0, 2.0, 0.5, -9.0]  # the likeliest is 2, then 3
ALL = range(len(LOGITS))
TINY = 5e-324  # the smallest float

ROWS: list[tuple[dict[str, Any], Sequence[int]]] = [
    ({"top_k": 0}, ALL),
    ({"top_k": 1}, [2]),
    ({"top_k": 2}, [2, 3]),
    ({"top_k": len(LOGITS) - 1}, ALL[:-1]),
    ({"top_k": len(LOGITS)}, ALL),
    ({"top_k": 10_000_000}, ALL),
    ({"top_k": 10_000_000, "temperature": 0.0}, [2]),
    ({"top_p": 0.0}, ALL),
    ({"top_p": 1.0}, ALL),
    ({"top_p": 1}, ALL),
    ({"top_p": TINY}, [2]),
    ({"top_p": 1e-9}, [2]),
    ({"min_p": 0.0}, ALL),
    ({"min_p": 1.0}, [2]),
    ({"min_p": TINY}, ALL),
    ({"temperature": 0}, [2]),
    ({"temperature": TINY}, [2]),
    ({"temperature": 1e-9}, [2]),
    ({"temperature": 1e-5}, [2]),
    ({"temperature": 100.0}, ALL),
    ({"repetition_penalty": 0.0}, ALL),
    ({"repetition_penalty": TINY}, [2]),
    ({"repetition_penalty": 100.0}, ALL),
    ({"presence_penalty": 100.0}, [i for i in ALL if i not in (2, 5)]),
    ({"presence_penalty": -100.0}, [2, 5]),
    ({"frequency_penalty": 100.0}, [i for i in ALL if i not in (2, 5)]),
    ({"frequency_penalty": -100.0}, [2, 5]),
    ({"seed": 0}, ALL),
    ({"seed": 2**64 - 1}, ALL),
]


@pytest.mark.slow
@pytest.mark.parametrize(("chosen", "allowed"), ROWS, ids=[str(chosen) for chosen, _ in ROWS])
def test_extremes(chosen: dict[str, Any], allowed: Sequence[int]) -> None:
    """In float16, which overflows first."""
    params = SamplingParams(**{"temperature": 1.0, "top_p": 1.0, **chosen})
    mx.random.seed(1 if params.seed is None else params.seed)
    logits = mx.array([LOGITS] * 40, dtype=mx.float16)
    for process in params.make_logits_processors():
        logits = process(mx.array([5, 2]), logits)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    assert not mx.isnan(logprobs).any().item()
    found = set(params.make_sampler()(logprobs).tolist())  # type: ignore[arg-type]
    assert found <= set(allowed)
    assert len(found) > 1 or 2 not in allowed or len(allowed) == 1 or "penalty" in str(chosen)


@pytest.mark.parametrize(
    "chosen",
    [
        {"temperature": 1e9},
        {"temperature": -1e-9},
        {"temperature": float("nan")},
        {"top_p": 1.0001},
        {"min_p": -0.1},
        {"top_k": -1},
        {"top_k": 10_000_001},
        {"seed": -1},
        {"seed": 2**64},
        {"max_tokens": 0},
        {"max_tokens": 10_000_001},
        {"repetition_penalty": -1.0},
        {"stop": ""},
        {"stop": ["a", ""]},
    ],
    ids=str,
)
def test_what_is_out_of_range_is_one_sentence(chosen: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(chosen))) as caught:
        SamplingParams(**chosen)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_long_and_many_stop_strings_are_looked_for_once_each() -> None:
    """A stop string of n characters was compared n times per token, each time as a whole."""
    from mlxkv.inference.reply_parser import StopStrings

    class Counted(str):
        slices = 0

        def __getitem__(self, key: Any) -> str:
            type(self).slices += 1
            return super().__getitem__(key)

    stops = StopStrings([])
    stops.stops = (Counted("x" * 100_000), *(f"s{i}" for i in range(1000)))
    assert stops.feed("abc") == "abc"
    assert Counted.slices <= 3
    assert stops.feed("s99 is it") == ""
    assert stops.hit
