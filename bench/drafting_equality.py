"""Are the tokens the same with drafting and without? `python -m bench.drafting_equality [--prompts N]`, full set.

Random prompts on the built-in model and the story model, on each kind of cache, greedy and with a seed. The drafts are
the reply itself with mistakes, so that each call accepts some tokens and takes others back. A reply that differs is
compared up to there: what follows is another text.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from bench.measure import STORIES, header, make_part, show
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cli.bench.report import Goal, Part, Row, Unit
from mlxkv.errors import ConfigError
from mlxkv.inference.decoding import DecodeCounts
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.drafting.gate import DraftGate
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.models import load_model

_PROMPTS = 200
_REPLY = 16  # tokens

KINDS = {
    "nothing evicted": CacheConfig(window=512),
    "window of 64, wrapped": CacheConfig(window=64, block=16, sinks=4),
    "wrapped, absolute positions": CacheConfig(window=64, block=16, sinks=4, positions="absolute"),
    "wrapped, 8 bits": CacheConfig(window=64, block=16, sinks=4, bits=8),
    "wrapped, 4 bits": CacheConfig(window=64, block=16, sinks=4, bits=4),
}
SAMPLING = {"greedy": {"temperature": 0.0}, "seeded": {"temperature": 0.8, "top_p": 0.95}}


class OpenGate(DraftGate):
    """Drafts as much as it can."""

    def length(self, match: int, most: int) -> int:
        return most

    def is_worth_waiting(self, match: int, most: int) -> bool:
        return True


class Flawed:
    """Drafts a known text, of a random length, mostly with one wrong token."""

    def __init__(self, text: Sequence[int], vocab: int, seed: int) -> None:
        self._text, self._vocab, self._random = list(text), vocab, random.Random(seed)

    def prepare(self, ids: Sequence[int], cancelled: Callable[[], bool] = bool) -> None:
        pass

    def propose(self, ids: Sequence[int], most: int, draws: object) -> list[int]:
        draft = self._text[len(ids) : len(ids) + self._random.randint(1, most)]
        if draft and self._random.random() < 0.8:
            wrong = self._random.randrange(len(draft))
            draft[wrong] = (draft[wrong] + 1) % self._vocab
        return draft


@dataclass
class Found:
    """Tokens that were compared, and replies that differ; what was drafted."""

    replies: int = 0
    tokens: int = 0
    differing: int = 0
    drafted: int = 0
    accepted: int = 0


def compare(model: Any, vocab: int, config: CacheConfig, sampling: dict[str, Any], prompts: int) -> Found:
    """Each prompt's reply with and without drafting, on forks of one prefilled cache."""
    plan, runner, found = plan_cache(model, config), ModelRunner(model), Found()
    for seed in range(prompts):
        rng = random.Random(seed)
        ids = [rng.randrange(3, vocab) for _ in range(rng.randint(8, 120))]
        filled = PromptCache(plan, model)
        for _ in runner.prefill(filled, ids[:-1]):
            pass
        params, counts = SamplingParams(seed=seed, max_tokens=_REPLY, **sampling), DecodeCounts()
        runner.drafting = None
        expected = list(runner.decode(filled.fork(), ids[-1], params, ids[:-1]))
        runner.drafting = Drafting(OpenGate(), Flawed([*ids, *expected], vocab, seed))
        got = list(runner.decode(filled, ids[-1], params, ids[:-1], counts=counts))
        same = next((i for i, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1]), len(expected))
        found.replies += 1
        found.tokens += min(same + 1, len(expected))
        found.differing += same < len(expected)
        found.drafted += counts.drafted
        found.accepted += counts.accepted
        if seed % 32 == 31:
            mx.clear_cache()
    return found


def equality(model: Any, vocab: int, name: str, prompts: int) -> Part:
    rows = []
    for kind, config in KINDS.items():
        for how, sampling in SAMPLING.items():
            try:
                found = compare(model, vocab, config, sampling, prompts)
            except ConfigError as error:  # rows too short to be quantized
                print(f"{name}, {kind}: left out. {error}")
                break
            values = {
                "replies": found.replies, "tokens": found.tokens, "drafted": found.drafted, "right": found.accepted,
                "differing": found.differing, "share": found.differing / found.tokens,
            }  # fmt: skip
            rows.append(Row(f"{kind}, {how}", values, None if config.bits else Goal("differing", at_most=0)))
            print(f"{name}: {rows[-1].what}: {found.differing} of {found.tokens} tokens differ", flush=True)
    columns = {
        "replies": Unit.COUNT, "tokens": Unit.COUNT, "drafted": Unit.COUNT, "right": Unit.COUNT,
        "differing": Unit.COUNT, "share": Unit.SHARE,
    }  # fmt: skip
    return make_part(
        f"drafting-equality-{name.split()[0].rstrip(chr(44))}", "Tokens with and without drafting", name,
        f"{prompts} random prompts of 8 to 120 tokens, replies of {_REPLY}", columns, rows,
    )  # fmt: skip


def all_parts(prompts: int) -> Iterator[Part]:
    names = [("tutor", "tutor"), *([("story model", str(STORIES))] if STORIES.is_dir() else [])]
    for name, source in names:
        loaded = load_model(source)
        loaded.model.set_dtype(mx.bfloat16)
        yield equality(loaded.model, len(loaded.tokenizer.get_vocab()), f"{name}, bfloat16", prompts)


def parts(full: bool) -> Iterator[Part]:
    if full:
        yield from all_parts(_PROMPTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=_PROMPTS)
    prompts = parser.parse_args().prompts
    header("Drafting: equal tokens")
    for part in all_parts(prompts):
        show(part)


if __name__ == "__main__":
    main()
