"""Drafting: tokens of one forward, time with and without, what forwards cost. `python -m bench --only drafting`.

Editing tasks, whose inputs are in bench/editing, and chat questions; on SmolLM2 and on the built-in model. The full set
asks everything on both; the short set leaves drafting out. `bench.drafting_equality` compares the tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlxkv
from bench.measure import ROOT, fresh_home, make_part, real_model
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompts.prompt import PromptState, message
from mlxkv.cli.bench.report import Goal, Part, Row, Unit
from mlxkv.config import Folders
from mlxkv.inference.decoding import DecodeCounts
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.drafting.gate import DraftGate
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.model import Model

_EDITING = ROOT / "bench" / "editing"
_SIZES = (1, 2, 3, 5, 9, 17)
_REPLY = 120  # tokens
_ROUNDS = 5

_QUESTIONS = (
    "What is the capital of France?", "Why is the sky blue?", "Give me three ideas for dinner.",
    "What is a prime number?", "Write a short poem about rain.", "How do I boil an egg?", "What does DNA stand for?",
    "Who wrote Hamlet?", "Explain gravity to a child.", "What is the largest ocean?",
    "How many days has a leap year?", "Name five fruits.", "What is the difference between weather and climate?",
    "How do plants make food?", "Tell me a joke.", "What is the boiling point of water?",
    "How do I learn a language?", "What is a noun?", "Why do cats purr?",
    "Summarise the story of Cinderella in two sentences.",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    name: str
    prompt: str


class OpenGate(DraftGate):
    """Drafts wherever there is a match."""

    def length(self, match: int, most: int) -> int:
        return most

    def is_worth_waiting(self, match: int, most: int) -> bool:
        return True


def editing_tasks() -> list[Task]:
    """A file to rewrite with one change, a paragraph to quote, a table to fill."""
    code, text, table = ((_EDITING / name).read_text() for name in ("stock.py", "lighthouse.md", "plants.md"))
    return [
        Task(
            "rewrite a file with one change",
            f"```python\n{code}```\n\nRename the method `take` to `remove_some`. Write the whole file again, otherwise "
            "unchanged.",
        ),
        Task("quote a paragraph", f"{text}\nQuote the second paragraph of this text, word for word."),
        Task(
            "fill a table",
            f"{table}\nWrite this table again with one more column, `in a pot`, that says yes if the plant is at most "
            "50 cm high and no otherwise.",
        ),
    ]


def chat_tasks() -> list[Task]:
    return [Task(question, question) for question in _QUESTIONS]


@dataclass
class Reply:
    """One reply, and what it took after its first token."""

    tokens: int
    seconds: float
    counts: DecodeCounts


def replies(model: Model, task: Task, draftings: Sequence[Drafting | None], tokens: int) -> list[Reply]:
    """The greedy reply to a task with each of these, on forks of one prefilled cache."""
    prompt = model._runtime.prompts.prompt([message("user", task.prompt)], PromptState())
    ids = list(prompt.ids)
    runner, filled = ModelRunner(model.loaded.model), model.make_cache(mlxkv.CacheConfig(window=4096))
    began = time.perf_counter()
    for _ in runner.prefill(filled, ids[:-1]):
        pass
    prefill = time.perf_counter() - began
    params = SamplingParams(temperature=0.0, max_tokens=tokens)
    out = []
    for drafting in draftings:
        runner.drafting, counts = drafting, DecodeCounts()
        if drafting is not None:
            drafting.gate.prefilled(len(ids), prefill)
        out.append(timed(runner, filled.fork(), ids, params, counts, model.tokenizer.eos_token_ids))
    return out


def timed(
    runner: ModelRunner,
    cache: PromptCache,
    ids: list[int],
    params: SamplingParams,
    counts: DecodeCounts,
    ends: set[int],
) -> Reply:
    stream = runner.decode(cache, ids[-1], params, ids[:-1], ends=ends, counts=counts)
    next(stream)
    begun, tokens = time.perf_counter(), 1
    for token in stream:
        tokens += 1
        if token in ends:
            break
    stream.close()
    return Reply(tokens, time.perf_counter() - begun, counts)


def tokens_per_forward(model: Model, name: str, tokens: int) -> Part:
    """With the gate open."""
    rows = []
    for task in editing_tasks():
        (reply,) = replies(model, task, [Drafting(OpenGate())], tokens)
        c = reply.counts
        rate = reply.tokens / max(c.steps, 1)
        values = {
            "tokens": reply.tokens,
            "forwards": c.steps,
            "drafted": c.drafted,
            "right": c.accepted,
            "tokens per forward": rate,
        }
        rows.append(Row(task.name, values))
    best = max(float(row.values["tokens per forward"] or 0) for row in rows)
    rows.append(Row("best", {"tokens per forward": best}, Goal("tokens per forward", at_least=2.5)))
    columns = {
        "tokens": Unit.COUNT, "forwards": Unit.COUNT, "drafted": Unit.COUNT, "right": Unit.COUNT,
        "tokens per forward": Unit.NUMBER,
    }  # fmt: skip
    return make_part(
        f"drafting-tokens-{name}", "Tokens of one forward, editing", name,
        f"gate open, replies of at most {tokens} tokens, greedy", columns, rows,
    )  # fmt: skip


def wall_time(model: Model, name: str, what: str, tasks: Sequence[Task], tokens: int, rounds: int) -> Part:
    """With the gate against without drafting: the whole time of all replies, per round."""
    gated, plain, drafted, right = [], [], 0, 0
    drafting = Drafting()  # what it measures is kept, as a process keeps it
    replies(model, tasks[0], [None, None], 8)
    for _ in range(rounds):
        sums = [0.0, 0.0]
        for i, task in enumerate(tasks):
            order = [None, drafting] if i % 2 else [drafting, None]
            for each, reply in zip(order, replies(model, task, order, tokens), strict=True):
                sums[each is drafting] += reply.seconds
                drafted, right = drafted + reply.counts.drafted, right + reply.counts.accepted
        plain.append(sums[0])
        gated.append(sums[1])
    ratio = statistics.median(a / b for a, b in zip(plain, gated, strict=True))
    values = {
        "without": statistics.median(plain), "with": statistics.median(gated), "speed": ratio, "drafted": drafted,
        "right": right,
    }  # fmt: skip
    columns = {
        "without": Unit.SECONDS,
        "with": Unit.SECONDS,
        "speed": Unit.RATIO,
        "drafted": Unit.COUNT,
        "right": Unit.COUNT,
    }
    return make_part(
        f"drafting-time-{name}-{what.split()[0]}", f"Decode time with drafting, {what}", name,
        f"{len(tasks)} replies of at most {tokens} tokens, greedy; {rounds} rounds", columns,
        [Row(what, values, Goal("speed", at_least=0.97))],
    )  # fmt: skip


def forward_costs(model: Model, name: str, context: int = 512) -> Part:
    """The time of a call of several tokens beside one of one token, on a cache of `context` tokens."""
    import mlx.core as mx

    cache = model.make_cache(mlxkv.CacheConfig(window=4096))
    ids = list(range(3, 503)) * (context // 500 + 1)
    runner = ModelRunner(model.loaded.model)
    for _ in runner.prefill(cache, ids[:context]):
        pass

    def call(size: int) -> float:
        begun = time.perf_counter()
        logits = model.loaded.model(mx.array([ids[:size]]), cache=cache.layers)
        mx.eval(mx.argmax(logits, axis=-1))
        took = time.perf_counter() - begun
        for layer in cache.layers:
            layer.trim(size)
        return took

    times: dict[int, list[float]] = {size: [] for size in _SIZES}
    for size in _SIZES:
        call(size)
    for _ in range(_ROUNDS):
        for size in _SIZES:
            times[size].append(call(size))
    one = statistics.median(times[1])
    rows = [
        Row(f"{size} tokens", {"seconds": (took := statistics.median(times[size])), "of one token": took / one})
        for size in _SIZES
    ]
    columns = {"seconds": Unit.SECONDS, "of one token": Unit.RATIO}
    return make_part(
        f"drafting-cost-{name}", "The cost of a forward", name, f"{context} tokens in the cache; medians of {_ROUNDS}",
        columns, rows,
    )  # fmt: skip


def measured(path: str | Path, name: str, tokens: int, rounds: int, folders: Folders) -> Iterator[Part]:
    model = mlxkv.load(path, folders=folders)
    steps: list[Callable[[], Part]] = [
        lambda: tokens_per_forward(model, name, tokens),
        lambda: wall_time(model, name, "editing tasks", editing_tasks(), tokens, rounds),
        lambda: wall_time(model, name, "chat questions", chat_tasks(), tokens // 3, rounds),
        lambda: forward_costs(model, name),
    ]
    for step in steps:
        yield step()
    model.close()


def parts(full: bool) -> Iterator[Part]:
    if not full:
        print("Drafting is measured in the full set: `python -m bench --set full --only drafting`.")
        return
    with fresh_home() as folders:
        yield from measured("tutor", "tutor", _REPLY, _ROUNDS, folders)
        if path := real_model("smollm2"):
            yield from measured(path, "SmolLM2-135M-Instruct", _REPLY // 2, 1, folders)
