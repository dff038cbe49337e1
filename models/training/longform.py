"""Long replies on request, to watch speed and eviction with: counting, the alphabet, stories. Seeded."""

from __future__ import annotations

import random

from mlxkv.models.training.words import made_up, phrases, value

ALPHABET = "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z."

_ASKED = phrases()["long"]


def counted(a: int, b: int) -> str:
    step = 1 if b >= a else -1
    return ", ".join(str(n) for n in range(a, b + step, step)) + "."


def counting(rng: random.Random, *, held_out: bool = False) -> tuple[str, str]:
    """Return a request to count, and the numbers. Ranges are held out by their sum."""
    while True:
        a = 1 if rng.random() < 0.4 else rng.randrange(1, 10 ** rng.choice((1, 2, 2, 3)))
        length = rng.choice((2, 3, 4, 5, 6, 8, 10, 10, 12, 15, 20, 20, 30, 50))  # short ones teach when to stop
        if rng.random() < 0.25:
            b = max(1, a - length)
            if b < a and ((a + b) % 7 == 0) == held_out:
                template = rng.choice(_ASKED["down"][:2] if b > 1 else _ASKED["down"])
                return template.format(a=a, b=b), counted(a, b)
            continue
        b = a + (length - 1 if a == 1 else rng.randrange(2, length + 1))
        if ((a + b) % 7 == 0) == held_out:
            return rng.choice(_ASKED["count_to"] if a == 1 and rng.random() < 0.5 else _ASKED["count"]).format(
                a=a, b=b
            ), counted(a, b)


def alphabet(rng: random.Random) -> tuple[str, str]:
    return rng.choice(_ASKED["letters"]), ALPHABET


_ADJECTIVES = ["small", "brave", "curious", "quiet", "old", "clever", "kind", "tired", "happy", "young"]
_LANDS = (
    "a deep forest",
    "a green valley",
    "a quiet village",
    "an old tower",
    "a house by the sea",
    "a town on a hill",
)
_LOST = ("a golden key", "a silver bell", "an old map", "a blue stone", "a tiny lamp", "a wooden box")
_LOOKED = ("looked under every leaf, but {the} was not there.", "walked all morning to look for {the}.")
_SAID = ('"I have not," said the {f}, "but I will help you."', '"Come with me," said the {f}.')
_TOGETHER = (
    "Together they went on until the moon rose.",
    "Together they crossed the hills.",
    "They searched until the evening.",
)
_FRIENDS = ["owl", "mouse", "snail", "crow", "frog", "hedgehog", "goat", "duck"]


def story(rng: random.Random, animal: str | None = None, *, chapters: int = 1) -> str:
    """Make a story of about eight sentences a chapter, with the same hero and lost object throughout."""
    hero = made_up(rng, 2).capitalize() if rng.random() < 0.7 else value(rng, "name", held_out=False).split()[0]
    animal = animal or value(rng, "animal", held_out=False)
    land, lost = rng.choice(_LANDS), rng.choice(_LOST)
    the = "the " + lost.split(" ", 1)[1]
    parts = [f"Once upon a time there was a {rng.choice(_ADJECTIVES)} {animal} named {hero}, who lived in {land}."]
    for day in range(chapters):
        when = "One day" if day == 0 else f"On day {day + 1}"
        friend = rng.choice(_FRIENDS)
        parts += [
            f"{when} {hero} " + rng.choice((f"lost {lost}", f"heard of {lost}", f"dreamt of {lost}")) + ".",
            f"{hero} {rng.choice(_LOOKED).format(the=the)}",
            f"By the river the {animal} met a {rng.choice(_ADJECTIVES)} {friend}.",
            f'"Have you seen {the}?" asked {hero}.',
            rng.choice(_SAID).format(f=friend),
            rng.choice(_TOGETHER),
            rng.choice((f"At last they found {the} beside an old tree.", f"At last they saw {the} in the grass.")),
        ]  # fmt: skip
    parts.append(
        f"{hero} "
        + rng.choice(("went home happy and never forgot that day.", "laughed, thanked the friend, and went home."))
    )
    return " ".join(parts)


def echo(rng: random.Random) -> tuple[str, str]:
    """Make words to repeat: nothing teaches copying faster, and recalling is copying from further back."""
    kinds = rng.choice((("word",), ("name",), ("word", "name", "number", "place")))
    words = [value(rng, rng.choice(kinds), held_out=False) for _ in range(rng.randrange(2, 15))]
    text = rng.choice((" ", " ", ", ")).join(words)
    return rng.choice(_ASKED["echo"]).format(x=text), text


def told(rng: random.Random) -> tuple[str, str]:
    """Return a request for a story, and a story."""
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(_ASKED["long"]), story(rng, chapters=rng.choice((3, 4)))
    if roll < 0.45:
        return rng.choice(_ASKED["story"]), story(rng)
    animal = value(rng, "animal", held_out=False)
    return rng.choice(_ASKED["story_of"]).format(x=animal).replace(" a owl", " an owl").replace(
        " a elep", " an elep"
    ), story(rng, animal)


def some(rng: random.Random) -> tuple[str, str]:
    roll = rng.random()
    return counting(rng) if roll < 0.75 else alphabet(rng) if roll < 0.83 else told(rng)
