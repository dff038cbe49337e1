"""Facts that users state and ask for later: stating, acknowledging, asking, recalling, and not knowing them.

`mine` is the user's name for a fact, `yours` the reply's. Values come from words.py. Pure and seeded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from mlxkv.models.training.words import phrases, value


@dataclass(frozen=True)
class Attribute:
    """An attribute of the user that has a value: `mine` ("my name"), its kind, and its own phrasings."""

    mine: str
    kind: str
    tell: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()

    @property
    def yours(self) -> str:
        return self.mine.replace("my ", "your ", 1) if self.mine.startswith("my ") else self.mine

    @property
    def theirs(self) -> str:
        return self.mine.replace("my ", "the user's ", 1) if self.mine.startswith("my ") else self.mine


@dataclass(frozen=True)
class Fact:
    attribute: Attribute
    value: str


_SAID = phrases()
_SPECIAL = tuple(Attribute(a["mine"], a["kind"], tuple(a["tell"]), tuple(a["ask"])) for a in _SAID["attribute"])
ATTRIBUTES: tuple[Attribute, ...] = (
    *_SPECIAL,
    *(Attribute(mine, kind) for kind, lines in _SAID["plain"].items() for mine in lines),
)
TELL, ASK, AGAIN, SYSTEM = (_SAID["memory"][key] for key in ("tell", "ask", "again", "system"))


def tell(fact: Fact, rng: random.Random, *, again: bool = False) -> str:
    a = fact.attribute
    if again:
        return _fill(rng.choice(AGAIN), a, fact.value)
    own = a.tell and rng.random() < 0.5
    return _fill(rng.choice(a.tell if own else TELL), a, fact.value)


def tell_two(first: Fact, second: Fact, rng: random.Random) -> str:
    joint = rng.choice((" and ", ", and ", " and "))
    return f"{_up(first.attribute.mine)} is {first.value}{joint}{second.attribute.mine} is {second.value}."


def tell_system(fact: Fact, rng: random.Random) -> str:
    return _fill(rng.choice(SYSTEM), fact.attribute, fact.value)


def ask(attribute: Attribute, rng: random.Random) -> str:
    own = attribute.ask and rng.random() < 0.5
    return _fill(rng.choice(attribute.ask if own else ASK), attribute, "")


def noted(*facts: Fact) -> str:
    """Return the reply to stated facts."""
    if len(facts) == 1 and facts[0].attribute.mine == "my name":
        return f"Nice to meet you, {facts[0].value}."
    return "I will remember that " + " and ".join(f"{f.attribute.yours} is {f.value}" for f in facts) + "."


def recalled(fact: Fact) -> str:
    return f"{_up(fact.attribute.yours)} is {fact.value}."


def not_told(attribute: Attribute) -> str:
    return f"You have not told me {attribute.yours}."


def some_fact(rng: random.Random, *, held_out: bool = False) -> Fact:
    attribute = rng.choice(_SPECIAL if rng.random() < 0.5 else ATTRIBUTES)
    return Fact(attribute, value(rng, attribute.kind, held_out=held_out))


def _fill(template: str, a: Attribute, v: str) -> str:
    return template.format(m=a.mine, M=_up(a.mine), t=a.theirs, T=_up(a.theirs), v=v)


def _up(text: str) -> str:
    return text[:1].upper() + text[1:]
