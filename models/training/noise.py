"""Noise in user messages: case, punctuation, politeness, synonyms, small typos, keywords. Seeded; replies have none."""

from __future__ import annotations

import random
import re
import tomllib
from pathlib import Path

_PARTS = tomllib.loads((Path(__file__).parent / "noise.toml").read_text(encoding="utf-8"))
PREFIXES = [line.strip("|") for line in _PARTS["prefixes"].strip("\n").split("\n")]
SUFFIXES = [line.strip("|") for line in _PARTS["suffixes"].strip("\n").split("\n")]
SYNONYMS = [line.split("/") for line in _PARTS["synonyms"].strip("\n").split("\n")]
STOP_WORDS = frozenset("the a an is are do does of to in it i my for with that there".split())  # noqa: SIM905
QUESTION_WORDS = frozenset(_PARTS["question_words"].split())
_CONTRACTIONS = {
    "what is": "what's", "i am": "i'm", "do not": "don't", "does not": "doesn't", "where is": "where's",
    "is not": "isn't", "cannot": "can't", "how is": "how's", "who is": "who's",
}  # fmt: skip
_REPLACE: dict[str, list[str]] = {}
for _group in SYNONYMS:
    for _word in _group:
        _REPLACE.setdefault(_word.strip(), []).extend(w for w in _group if w != _word)
_WORDS = "|".join(sorted(map(re.escape, _REPLACE), key=len, reverse=True))
_PATTERN = re.compile(rf"(?<![\w-])({_WORDS})(?![\w-])", re.I)


def vary(text: str, rng: random.Random, *, reword: bool = True, typos: bool = True) -> str:
    """Return `text` as someone else might type it. With a value to remember, pass `reword=False, typos=False`."""
    if reword:
        text = _reworded(text, rng)
    if typos and rng.random() < 0.14:
        for _ in range(rng.choice((1, 1, 2))):
            text = typo(text, rng)
    return dressed(text, rng)


def dressed(text: str, rng: random.Random) -> str:
    """Vary case, punctuation and politeness; the words of the text itself do not change.

    All kinds of questions get the same mixture, however they are spelled in the files: otherwise the model would learn
    that capitals and question marks tell topics apart.
    """
    text = _punctuated(text, rng)
    if rng.random() < 0.22:
        prefix = rng.choice(PREFIXES)
        text = (prefix.capitalize() if rng.random() < 0.5 else prefix) + (text[:1].lower() + text[1:])
    if rng.random() < 0.12:
        text = text.rstrip("?.!") + rng.choice(SUFFIXES)
    roll = rng.random()
    return text.lower() if roll < 0.35 else as_sentence(text) if roll < 0.75 else text


def is_question(text: str) -> bool:
    return text.split(maxsplit=1)[0].lower() in QUESTION_WORDS if text.split() else False


def as_sentence(text: str) -> str:
    """Capitalise `text`, unless it begins with an option, a command or a name in code."""
    first = text.split(maxsplit=1)[0] if text.split() else ""
    return text[:1].upper() + text[1:] if first.rstrip("?.!,").isalpha() else text


def _punctuated(text: str, rng: random.Random) -> str:
    bare = text.rstrip("?.!")
    roll = rng.random()
    if is_question(bare):
        return bare + "?" if roll < 0.55 else bare
    if bare != text:
        return text if roll < 0.5 else bare
    return bare + rng.choice("?..") if roll < 0.25 else bare


def typo(text: str, rng: random.Random) -> str:
    """Drop, double or swap one letter inside a word of five letters or more."""
    spots = list(re.finditer(r"[A-Za-z]{5,}", text))
    if not spots:
        return text
    word = rng.choice(spots)
    i = rng.randrange(word.start() + 1, word.end() - 1)
    match rng.randrange(3):
        case 0:
            return text[:i] + text[i + 1 :]
        case 1:
            return text[:i] + text[i] + text[i:]
        case _:
            return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def _reworded(text: str, rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.45:
        share = rng.choice((0.3, 0.6))
        text = _PATTERN.sub(lambda m: rng.choice(_REPLACE[m[0].lower()]) if rng.random() < share else m[0], text)
    if rng.random() < 0.15:
        for long, short in _CONTRACTIONS.items():
            text = re.sub(long, short, text, flags=re.I)
    roll = rng.random()
    if roll < 0.10:  # as typed into a search box
        words = [w for w in re.findall(r"\S+", text) if w.strip("?.,!").lower() not in STOP_WORDS]
        text = " ".join(words) or text
    elif roll < 0.22:
        words = text.split()
        if len(words) > 3:
            del words[rng.randrange(len(words))]
            text = " ".join(words)
    return text
