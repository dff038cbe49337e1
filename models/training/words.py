"""Values to remember: real words, invented words, numbers, lists; a tenth of them is held out from training.

They are held out by hash, so the same value is held out everywhere. Invented words force the model to copy: it cannot
memorise them.
"""

from __future__ import annotations

import random
import tomllib
import zlib
from pathlib import Path
from typing import Any

_WORDS = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
NAMES, PLACES, COLOURS, THINGS, FOODS, ANIMALS, JOBS, DAYS, MONTHS, ONSETS, VOWELS = (
    _WORDS[key].split()
    for key in (
        "names",
        "places",
        "colours",
        "things",
        "foods",
        "animals",
        "jobs",
        "days",
        "months",
        "onsets",
        "vowels",
    )
)
CODAS = ["", "", "", "", "n", "r", "l", "s", "x", "m", "k", "nd", "th"]

KINDS = ("name", "place", "colour", "word", "number", "food", "job", "day", "date", "list", "animal")


def phrases() -> dict[str, Any]:
    """Tables of phrases.toml, each block of phrasings as a list."""
    return _lines(tomllib.loads((Path(__file__).parent / "phrases.toml").read_text(encoding="utf-8")))


def _lines(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _lines(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_lines(value) for value in node]
    return node.strip("\n").split("\n") if "\n" in node else node


def is_held_out(value: str) -> bool:
    """Whether training must not see this value: one in ten, by hash."""
    return zlib.crc32(value.lower().encode()) % 10 == 0


def made_up(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))


def value(rng: random.Random, kind: str, *, held_out: bool) -> str:
    """Return a value of this kind, held out or not."""
    for _ in range(10_000):
        candidate = _candidate(rng, kind)
        if is_held_out(candidate) == held_out:
            return candidate
    raise ValueError(f"No value of kind {kind!r} with held_out={held_out}; add words to its pool.")


def _candidate(rng: random.Random, kind: str) -> str:
    match kind:
        case "name":
            first = rng.choice(NAMES) if rng.random() < 0.35 else made_up(rng, rng.choice((1, 2, 2, 3))).capitalize()
            return first if rng.random() < 0.9 else f"{first} {made_up(rng, 2).capitalize()}"
        case "place":
            return rng.choice(PLACES) if rng.random() < 0.4 else made_up(rng, rng.choice((2, 2, 3))).capitalize()
        case "word":
            return rng.choice(THINGS) if rng.random() < 0.5 else made_up(rng, rng.choice((1, 2, 2, 3)))
        case "colour":
            shade = rng.random()
            return ("dark " if shade < 0.1 else "light " if shade < 0.2 else "") + rng.choice(COLOURS)
        case "number":
            return str(rng.randrange(10 ** rng.choice((1, 2, 2, 3, 4, 4, 5, 6))))
        case "food":
            return rng.choice(FOODS)
        case "job":
            return rng.choice(JOBS)
        case "animal":
            return rng.choice(ANIMALS)
        case "day":
            day = rng.choice(DAYS)
            hour = rng.choice(("", "", " morning", " evening", " at noon", f" at {rng.randrange(1, 13)}"))
            return day + hour
        case "date":
            return f"{rng.choice(MONTHS)} {rng.randrange(1, 31)}"
        case "list":
            pool = rng.choice((FOODS, THINGS, COLOURS, THINGS))
            items = rng.sample(pool, rng.choice((2, 3, 3, 4)))
            return ", ".join(items[:-1]) + rng.choice((" and ", ", ")) + items[-1]
    raise ValueError(f"{kind!r} is no kind; they are {', '.join(KINDS)}.")
