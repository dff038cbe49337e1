"""Many prompts at once, beside one after the other and mlx-lm's batch_generate: `python -m bench --only batches`.

All sides get the same token ids, decode greedily, and give text. In the full set alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.measure import make_part, seconds
from bench.speed import few_layers
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.cli.bench.measure import ROUNDS, random_ids
from mlxkv.cli.bench.report import Goal, Part, Row, Unit
from mlxkv.events import ReplyFinished, RequestFailed, TurnEvent
from mlxkv.inference.generation import Generation
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.memory import Budget
from mlxkv.models import load_model
from mlxkv.scheduler import Request, Scheduler

Side = Callable[[], list[list[int]]]  # the token ids of all replies, without an end-of-text id
_RATE = Unit.TOKENS_PER_SECOND


class Work:
    """Prompts for one model, and how each side answers them.

    Args:
        shared: ids that all prompts begin with; our batch has them in a prompt cache.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompts: Sequence[list[int]], reply: int, shared: Sequence[int] = ()
    ) -> None:
        self.model, self.tokenizer, self.reply = model, tokenizer, reply
        self.prompts = [[*shared, *ids] for ids in prompts]
        self.runner, self.params = ModelRunner(model), SamplingParams(temperature=0.0, max_tokens=reply)
        longest = max(map(len, self.prompts))
        self.cache = PromptCache(plan_cache(model, CacheConfig(window=longest + reply)), model)
        for _ in self.runner.prefill(self.cache, shared):
            pass

    def batch(self) -> list[list[int]]:
        """All at once, through the scheduler."""
        ends: dict[int, ReplyFinished] = {}
        scheduler = Scheduler(self.runner, self.tokenizer, Budget(self.model, 0))
        for i, ids in enumerate(self.prompts):

            def sink(event: TurnEvent | RequestFailed, i: int = i) -> None:
                if isinstance(event, ReplyFinished):
                    ends[i] = event

            scheduler.submit(Request(i, ids, self.params, self.cache), sink)
        scheduler.run()
        return [self._without_end(ends[i].tokens) for i in range(len(self.prompts))]

    def one_by_one(self) -> list[list[int]]:
        """One after the other, each on a fork."""
        out = []
        for ids in self.prompts:
            generation = Generation(self.runner, self.tokenizer, self.cache.fork(), ids, self.params)
            for _ in generation.events():
                pass
            out.append(self._without_end(generation.generated))
        return out

    def theirs(self) -> list[list[int]]:
        """mlx-lm's batch_generate on the whole prompts."""
        from mlx_lm.generate import batch_generate

        found = batch_generate(
            self.model, self.tokenizer, self.prompts, max_tokens=self.reply, return_token_ids=True
        ).token_ids
        return found or []

    def _without_end(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token not in self.tokenizer.eos_token_ids]


def medians(sides: Sequence[Side], rounds: int) -> list[float]:
    """The median seconds of each side; all run in every round, after one warm-up, each first in its turn."""
    for side in sides:
        side()
    times: list[list[float]] = [[] for _ in sides]
    for i in range(rounds):
        for at in range(len(sides)):
            n = (i + at) % len(sides)
            times[n].append(seconds(sides[n]))
    return [statistics.median(found) for found in times]


def row(what: str, work: Work, goal: float, rounds: int) -> Row:
    """Tokens per second of all replies together, and how many replies have other tokens than alone."""
    alone, replies = work.one_by_one(), {"mlxkv": work.batch(), "mlx-lm": work.theirs()}
    tokens = sum(map(len, alone))
    ours, single, theirs = medians((work.batch, work.one_by_one, work.theirs), rounds)
    differing = {side: sum(a != b for a, b in zip(found, alone, strict=True)) for side, found in replies.items()}
    values = {
        "mlxkv": tokens / ours, "one by one": tokens / single, "batch_generate": tokens / theirs,
        "ratio": theirs / ours, "to one by one": single / ours, "differing": differing["mlxkv"],
        "batch_generate differing": differing["mlx-lm"],
    }  # fmt: skip
    return Row(what, values, Goal("ratio", at_least=goal))


def batches(
    model: Any, tokenizer: Any, name: str, vocab: int, *, count: int = 8, prompt: int = 64, reply: int = 64,
    shared: int = 2000, question: int = 16, answer: int = 32, rounds: int = ROUNDS, wide: Any = None,
) -> Part:  # fmt: skip
    """A batch of prompts, on `wide` if it is given, and of questions to one prompt cache."""
    ids = random_ids(count * max(prompt, question) + shared, vocab)
    prompts = [ids[i * prompt : (i + 1) * prompt] for i in range(count)]
    questions = [ids[i * question : (i + 1) * question] for i in range(count)]
    rows = [
        row(f"{count} prompts of {prompt} tokens, replies of {reply}",
            Work(wide or model, tokenizer, prompts, reply), 0.99, rounds),
        row(f"{count} questions of {question} tokens to a cache of {shared:,}, replies of {answer}",
            Work(model, tokenizer, questions, answer, ids[-shared:]), 3.0, rounds),
    ]  # fmt: skip
    columns = {
        "mlxkv": _RATE, "one by one": _RATE, "batch_generate": _RATE, "ratio": Unit.RATIO, "to one by one": Unit.RATIO,
        "differing": Unit.COUNT, "batch_generate differing": Unit.COUNT,
    }  # fmt: skip
    return make_part(
        "batches", "Many prompts at once, beside mlx-lm's batch_generate", name,
        f"tokens of all replies per second, prefill included, greedy; medians of {rounds}, the sides in turns", columns,
        rows, "The ratio is to batch_generate, which has no prompt cache here. Differing: replies whose tokens are not "
        "those of the prompt alone.",
    )  # fmt: skip


def parts(full: bool) -> Iterator[Part]:
    if full:
        tutor = load_model("tutor")
        vocab = int(tutor.config["vocab_size"])
        # In a narrow model a step takes as long as making text of its tokens; in a wide one 16,000 tokens take minutes.
        name = f"2 layers of SmolLM2-135M's width; the questions: of width 192; random, bfloat16, vocabulary {vocab:,}"
        narrow, wide = few_layers(192, 512, vocab=vocab, heads=3), few_layers(vocab=vocab)
        yield batches(narrow, tutor.tokenizer, name, vocab, wide=wide)
