"""Questions tutor cannot answer (unrelated.toml, unrelated_plain.txt), and the one reply to all. Pure, seeded."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

from mlxkv.models.training.words import ANIMALS, COLOURS, DAYS, FOODS, JOBS, MONTHS, PLACES, THINGS, made_up

REPLY = (
    "I am a small model and only know mlxkv, KV caching and what you tell me. "
    "For anything else load a bigger model: mlxkv models ls lists some, /model switches to one."
)

_PARTS = tomllib.loads((Path(__file__).parent / "unrelated.toml").read_text(encoding="utf-8"))
_PEOPLE, _COUNTRIES, _SUBJECTS, _LANGUAGES, _WORKS, _ACTS, _VERBS, _THINGS = (
    [" ".join(part.split()) for part in _PARTS[key].replace("\n", " ").split(" / ")]
    for key in ("people", "countries", "subjects", "languages", "works", "acts", "verbs", "things")
)


_PLAIN = (Path(__file__).parent / "unrelated_plain.txt").read_text(encoding="utf-8").splitlines()[1:]


def templates() -> list[str]:
    return _PARTS["templates"].strip("\n").split("\n")


def question(rng: random.Random, pool: list[str]) -> str:
    """Return a filled template or, half of the time, a complete question."""
    if rng.random() < 0.5:
        return rng.choice(_PLAIN)
    fill = {
        "s": rng.choice(_SUBJECTS), "s2": rng.choice(_SUBJECTS), "c": rng.choice(_COUNTRIES), "p": rng.choice(_PEOPLE),
        "w": rng.choice(_WORKS), "a": rng.choice(_ACTS), "n": rng.randrange(1, 10 ** rng.choice((1, 2, 3))),
        "m": rng.randrange(1, 10 ** rng.choice((1, 2, 3))), "l": rng.choice(_LANGUAGES), "t": rng.choice(THINGS),
        "t2": rng.choice(THINGS), "city": rng.choice(PLACES), "city2": rng.choice(PLACES), "f": rng.choice(FOODS),
        "f2": rng.choice(FOODS), "an": rng.choice(ANIMALS), "an2": rng.choice(ANIMALS), "j": rng.choice(JOBS),
        "mo": rng.choice(MONTHS), "d": rng.randrange(1, 29), "y": rng.randrange(1200, 2030), "day": rng.choice(DAYS),
        "co": rng.choice(COLOURS), "co2": rng.choice(COLOURS), "v": rng.choice(_VERBS), "things": rng.choice(_THINGS),
        "x": made_up(rng, 2), "x2": made_up(rng, 2), "X": made_up(rng, 2).capitalize(),
    }  # fmt: skip
    return rng.choice(pool).format(**fill)
