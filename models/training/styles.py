"""System prompts that change the style of a reply (one sentence, capitals, signed with a name), or nothing. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from mlxkv.models.training.words import phrases, value

Style = Callable[[str], str]

_PROMPTS = phrases()["style"]
ONE_SENTENCE, CAPITALS, SIGNED, PLAIN = (_PROMPTS[key] for key in ("one_sentence", "capitals", "signed", "plain"))


def one_sentence(text: str) -> str:
    """Return the first sentence: up to a period, question or exclamation mark followed by a space and a capital."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"-])", text, maxsplit=1)[0]


def signed(name: str) -> Style:
    return lambda text: f"{text} — {name}"


def unchanged(text: str) -> str:
    return text


def some(rng: random.Random, *, held_out: bool = False) -> tuple[str, Style]:
    """Return a system prompt, and the change it makes to a reply. Names to sign with are held out like all values."""
    roll = rng.random()
    if roll < 0.28:
        return rng.choice(ONE_SENTENCE), one_sentence
    if roll < 0.64:
        return rng.choice(CAPITALS), str.upper
    name = value(rng, "name", held_out=held_out)
    return rng.choice(SIGNED).format(v=name), signed(name)
