"""README's figures from benchmark reports: `python -m bench.readme [--write]`.

The section between its marks is written from bench/results/short.json; sentences elsewhere are only compared with it
and with quality.json. Without --write, what differs is printed, and the exit status is 1. Measures nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.cache_study import FULL, RING, ROTATING_CALLS
from bench.figures import RESULTS, duration, read_parts
from mlxkv.cli.bench.report import Part

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- bench.readme -->\n", "<!-- end of bench.readme -->\n"
Parts = Mapping[str, Part]


def section(parts: Parts) -> str:
    """The section between the marks: the table of ratios, and what SmolLM2 takes in seconds."""
    versions = dict(item.rsplit(" ", 1) for item in parts["speed"].environment.versions.split(", "))
    pieces = [
        f"Beside mlx-lm {versions['mlx-lm']}'s own loop and caches in one process, on two CPU cores (MLX "
        f"{versions['mlx']}, bfloat16): above 1 mlxkv is faster.\nMedians of five, of the large saves three, of decode "
        "by context 21; single pairs of runs differ by up to a third on this machine.\n",
        "| what | model | mlxkv / mlx-lm |\n|---|---|---|",
        *(f"| {what} | {model} | {ratios} |" for what, model, ratios in _rows(parts)),
        "",
        _seconds(parts),
        "",
        _drafting(parts),
    ]
    return "\n".join(pieces) + "\n"


def _rows(parts: Parts) -> Iterator[tuple[str, str, str]]:
    speed, saving = parts["speed"], parts["saving-1024"]
    few = "2 of SmolLM2-135M's 30 layers"
    for kind, verb in (("decode", "decode after"), ("prefill", "prefill of")):
        found = [row for row in speed.rows if row.what.startswith(kind)]
        contexts = " and ".join(f"{row.values['context']:,}" for row in found[-2:])
        contexts = ", ".join([*(f"{row.values['context']:,}" for row in found[:-2]), contexts])
        yield f"{verb} {contexts} tokens", few, ", ".join(ratio(speed, row.what) for row in found)
    whole = parts["smollm2-speed"]
    context = whole.rows[0].values["context"]
    yield (
        f"prefill of {context} tokens, decode after them",
        "SmolLM2-135M",
        ", ".join(ratio(whole, row.what) for row in whole.rows),
    )
    turn, update = parts["window-turn"], parts["window-update"]
    yield f"a turn of {turn.rows[0].what} on a full window of 4,096", few, ratio(turn, turn.rows[0].what)
    median, mean = (ratio(update, row.what) for row in update.rows[:2])
    yield "the cache update of such a turn alone, median and mean", "one layer", f"{median}, {mean}"
    again = "save after 1 % more tokens; save_prompt_cache"
    fewer = f"{saving.row(again).values['bytes ratio']:.0f} times fewer bytes"
    what = "saving a 1 GiB cache after 1 % more tokens, against `save_prompt_cache`"
    yield what, "rows alone", f"{ratio(saving, again)} ({fewer})"
    load = "load and verify; a bare mx.load"
    yield "loading and verifying it, against a bare `mx.load`", "rows alone", ratio(saving, load)
    prompts, questions = parts["batches"].rows
    yield "eight prompts at once, against `batch_generate`", few, ratio(parts["batches"], prompts.what)
    cached = "eight questions to one prompt cache of 2,000 tokens, against `batch_generate`, which has none"
    yield cached, "2 narrow layers", ratio(parts["batches"], questions.what)


def _seconds(parts: Parts) -> str:
    cold, resumed, _, edited = first_tokens(parts)
    recompute = parts["recompute"].rows[-1]
    history = parts["first-token"].rows[-1].values["history"]
    return (
        f"The first token after a chat of {history} tokens takes SmolLM2 {duration(cold)} cold, {duration(resumed)} "
        f"resumed in a new process, and {duration(edited)} after an edit in the\nmiddle. A token after "
        f"{recompute.values['tokens']:,} others takes it {duration(number(recompute.values['with']))}, and "
        f"{duration(number(recompute.values['without']))} without a cache."
    )


def _drafting(parts: Parts) -> str:
    editing, chat = (parts[f"drafting-time-SmolLM2-135M-Instruct-{kind}"] for kind in ("editing", "chat"))
    faster, same = (number(part.rows[0].values["speed"]) for part in (editing, chat))
    questions = chat.settings.partition(" ")[0]
    return (
        f"Drafting makes SmolLM2 {faster:.2f} times as fast at rewriting a file, quoting and filling a table, on a CPU "
        f"where a call of many\ntokens is slow, and {same:.2f} times at {questions} chat questions, which leave little "
        "to draft."
    )


def first_tokens(parts: Parts) -> list[float]:
    """Seconds to the first token after the longest history: cold, resumed, forked, edited."""
    return [number(row.values["first token"]) for row in parts["first-token"].rows[-4:]]


def ratio(part: Part, what: str) -> str:
    """The ratio of a row, with two decimals below 10."""
    value = number(part.row(what).values["ratio"])
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def number(value: object) -> float:
    assert isinstance(value, int | float), value
    return float(value)


def sentences(parts: Parts) -> Iterator[str]:
    """What README says elsewhere; each has to be there, however its lines are wrapped."""
    cold, resumed, *_ = first_tokens(parts)
    history = parts["first-token"].rows[-1].values["history"]
    chat = parts["long-chat"].rows
    if len({row.values["mlxkv held"] for row in chat}) == 1:
        yield f"hold the same bytes after {chat[-1].values['tokens']:,} tokens"
    yield f"the first token comes {cold / resumed:.0f} times sooner after {history} tokens"
    quality = {row.what: row.values for row in parts["perplexity-ratios-smollm2"].rows}

    def value(start: str, end: str = "") -> tuple[float, float]:
        found = next(v for what, v in quality.items() if what.startswith(start) and what.endswith(end))
        return number(found["ratio"]), number(found["±"])

    mean, error = value(f"{RING} to {FULL}", "all past the window")
    yield f"perplexity is {mean:.2f} ± {error:.2f} times that of a cache that keeps everything"
    mean, error = value(f"{RING} to a pure window")
    yield f"{mean:.2f} ± {error:.2f} times the best that a window of this size can do"
    further = next(what for what in quality if what.startswith(f"{RING}, ") and "further on" in what)
    distance = further.removeprefix(f"{RING}, ").partition(" tokens")[0]
    yield f"the same text at positions {distance} further on has {value(further)[0]:.2f} times the perplexity"
    yield f"mlx-lm's rotating cache has {value('mlx-lm rotating, calls of 1, ' + distance)[0]:.0f} times"
    yield f"That cache is at {value(f'{ROTATING_CALLS} to {FULL}', 'all past the window')[0]:.1f} from the start"


def differences(text: str, parts: Parts) -> list[str]:
    """What README, of this text, does not say as measured."""
    flat = re.sub(r"\s+", " ", text)
    found = [f"README.md does not say: {sentence}" for sentence in sentences(parts) if sentence not in flat]
    if text.partition(START)[2].partition(END)[0] != section(parts):
        found.append("The section of figures differs; `python -m bench.readme --write` writes it.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the section of figures")
    args = parser.parse_args()
    text, parts = README.read_text(encoding="utf-8"), all_parts()
    if args.write:
        before, _, rest = text.partition(START)
        text = before + START + section(parts) + END + rest.partition(END)[2]
        README.write_text(text, encoding="utf-8")
    found = differences(text, parts)
    print(*found, sep="\n")
    sys.exit(1 if found else 0)


def all_parts() -> dict[str, Part]:
    """The parts of all committed reports."""
    return read_parts([file for file in RESULTS if file.exists()])


if __name__ == "__main__":
    main()
