"""Long replies on request, so that speed and rotation can be watched: counting, the alphabet, stories. Pure and seeded."""

from __future__ import annotations

import random

from .words import made_up, value

ALPHABET = "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z."

_COUNT = ("Count from {a} to {b}.", "Count from {a} up to {b}.", "Please count from {a} to {b}.", "List the numbers from {a} to {b}.",
          "Write the numbers {a} to {b}.", "Give me all numbers from {a} to {b}.", "Can you count from {a} to {b}?",
          "Numbers from {a} to {b}.", "Start at {a} and count to {b}.", "Print {a} to {b}.")  # fmt: skip
_COUNT_TO = ("Count to {b}.", "Can you count to {b}?", "Count up to {b}.", "Please count to {b}.", "Count until {b}.")
_DOWN = ("Count down from {a} to {b}.", "Count backwards from {a} to {b}.", "Count down from {a}.", "Start a countdown at {a}.")
_LETTERS = ("Say the alphabet.", "Recite the alphabet.", "What is the alphabet?", "Write down the alphabet.", "List all letters.",
            "Give me the letters from a to z.", "Tell me the ABC.", "alphabet", "a to z", "Print the alphabet.", "Can you say the abc?",
            "Name all letters of the alphabet.", "Please write the alphabet.", "Show me the alphabet.", "All the letters, please.",
            "List the letters of the alphabet.", "Go through the alphabet.", "Spell out the alphabet.")  # fmt: skip
_STORY = ("Tell me a story.", "Write a story.", "I want to hear a story.", "Make up a story.", "Give me a story.", "A story, please.",
          "Can you tell a story?", "Tell a tale.", "Write something long.", "Tell me a short story.", "Invent a story.",
          "Story time!", "Tell me a bedtime story.", "Please write a story for me.", "Write a long text.")  # fmt: skip
_STORY_OF = ("Tell me a story about a {x}.", "Write a story about a {x}.", "I want a story about a {x}.", "Make up a story about a {x}.",
             "Story about a {x}.", "Can you tell a story about a {x}?", "A tale of a {x}, please.", "Write me a tale about a {x}.",
             "Tell me something about a {x} in a story.")  # fmt: skip
_LONG = ("Tell me a long story.", "Write a long story.", "A very long story, please.", "Write a really long text.", "Tell me a story that is long.")


def counted(a: int, b: int) -> str:
    step = 1 if b >= a else -1
    return ", ".join(str(n) for n in range(a, b + step, step)) + "."


def counting(rng: random.Random, *, held_out: bool = False) -> tuple[str, str]:
    """A request and the numbers. Ranges are held out by their sum."""
    while True:
        a = 1 if rng.random() < 0.4 else rng.randrange(1, 10 ** rng.choice((1, 2, 2, 3)))
        length = rng.choice((3, 5, 8, 10, 10, 15, 20, 20, 30, 40, 60, 99))
        if rng.random() < 0.1:
            b = max(1, a - length)
            if b < a:
                template = rng.choice(_DOWN[:2] if b > 1 else _DOWN)
                return template.format(a=a, b=b), counted(a, b)
            continue
        b = a + (length - 1 if a == 1 else rng.randrange(2, length + 1))
        if ((a + b) % 7 == 0) == held_out:
            return rng.choice(_COUNT_TO if a == 1 and rng.random() < 0.5 else _COUNT).format(a=a, b=b), counted(a, b)


def alphabet(rng: random.Random) -> tuple[str, str]:
    return rng.choice(_LETTERS), ALPHABET


_ADJECTIVES = "small brave curious quiet old clever kind tired happy young".split()
_LANDS = ("a deep forest", "a green valley", "a quiet village", "an old tower", "a house by the sea", "a town on a hill")
_LOST = ("a golden key", "a silver bell", "an old map", "a blue stone", "a tiny lamp", "a wooden box")
_FRIENDS = "owl mouse snail crow frog hedgehog goat duck".split()


def story(rng: random.Random, animal: str | None = None, *, chapters: int = 1) -> str:
    """A story of about eight sentences a chapter; a hero's name and a lost thing run through it."""
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
            rng.choice((f"{hero} looked under every leaf, but {the} was not there.", f"{hero} walked all morning to look for {the}.")),
            f"By the river the {animal} met a {rng.choice(_ADJECTIVES)} {friend}.",
            f'"Have you seen {the}?" asked {hero}.',
            rng.choice((f'"I have not," said the {friend}, "but I will help you."', f'"Come with me," said the {friend}.')),
            rng.choice(("Together they went on until the moon rose.", "Together they crossed the hills.", "They searched until the evening.")),
            rng.choice((f"At last they found {the} beside an old tree.", f"At last they saw {the} in the grass.")),
        ]  # fmt: skip
    parts.append(f"{hero} " + rng.choice(("went home happy and never forgot that day.", "laughed, thanked the friend, and went home.")))
    return " ".join(parts)


def told(rng: random.Random) -> tuple[str, str]:
    """A request for a story, and one."""
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(_LONG), story(rng, chapters=rng.choice((3, 4)))
    if roll < 0.45:
        return rng.choice(_STORY), story(rng)
    animal = value(rng, "animal", held_out=False)
    return rng.choice(_STORY_OF).format(x=animal).replace(" a owl", " an owl").replace(" a elep", " an elep"), story(rng, animal)


def some(rng: random.Random) -> tuple[str, str]:
    roll = rng.random()
    return counting(rng) if roll < 0.55 else alphabet(rng) if roll < 0.65 else told(rng)
