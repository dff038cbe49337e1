"""Evaluation cases: held-out phrasings, values and requests that training never sees. By hand or from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mlxkv.models.training import longform, memory, noise, styles, unrelated
from mlxkv.models.training.conversations import Exchange
from mlxkv.models.training.knowledge import HERE, Topic

SEED = 20_261


@dataclass(frozen=True)
class Case:
    """One question at the end of a chat. `right` judges the reply; `expected` is the reply that training teaches."""

    question: str
    expected: str
    right: Callable[[str], bool]
    before: tuple[Exchange, ...] = ()
    system: str | None = None


def groups(topics: list[Topic]) -> dict[str, list[Case]]:
    """Return the cases of each figure, by its name."""
    return {
        "questions": questions(topics),
        "memory": remembered(topics),
        "not told": never_told(topics),
        "long output": long_output(),
        "system prompts": styled(topics),
        "everything else": everything_else(),
    }


def exactly(*expected: str) -> Callable[[str], bool]:
    """Accept exactly one of these replies."""
    return lambda reply: reply.strip() in expected


def questions(topics: list[Topic]) -> list[Case]:
    answers = {t.id: t.answer for t in topics}
    right = {t.id: exactly(t.answer, *(answers[other] for other in t.also)) for t in topics}
    asked = [(t, q) for t in topics for q in t.held_out]
    return [Case(_written(q) if i % 2 else q, t.answer, right[t.id]) for i, (t, q) in enumerate(asked)]


def _written(question: str) -> str:
    """Return the question with a capital and a question mark; the files have the form people type into a search box."""
    return noise.as_sentence(question) + ("?" if noise.is_question(question) and question[-1] not in "?.!" else "")


def remembered(topics: list[Topic], count: int = 300) -> list[Case]:
    """Make chats that state facts with held-out values, then other turns, then ask for one of the facts."""
    rng = random.Random(SEED)
    made: list[Case] = []
    while len(made) < count:
        facts = [memory.some_fact(rng, held_out=True) for _ in range(rng.choice((1, 1, 2, 3)))]
        facts = list({f.attribute.mine: f for f in facts}.values())
        turns = [(memory.tell(f, rng), memory.noted(f)) for f in facts]
        turns += [filler(topics, rng) for _ in range(rng.randrange(7))]
        if rng.random() < 0.3:
            rng.shuffle(turns)
        fact = rng.choice(facts)
        made.append(Case(memory.ask(fact.attribute, rng), memory.recalled(fact), _says(fact.value), tuple(turns)))
    return made


def never_told(topics: list[Topic], count: int = 100) -> list[Case]:
    """Make chats that ask for a fact that was never stated, after another one was."""
    rng = random.Random(SEED + 1)
    made: list[Case] = []
    while len(made) < count:
        fact, attribute = memory.some_fact(rng, held_out=True), rng.choice(memory.ATTRIBUTES)
        if fact.attribute == attribute:
            continue
        turns = [(memory.tell(fact, rng), memory.noted(fact))] + [filler(topics, rng) for _ in range(rng.randrange(4))]
        reply = memory.not_told(attribute)
        made.append(Case(memory.ask(attribute, rng), reply, exactly(reply), tuple(turns[rng.randrange(2) :])))
    return made


def long_output(count: int = 60) -> list[Case]:
    """Make requests to count over ranges that training leaves out, and for the alphabet."""
    rng = random.Random(SEED + 2)
    made = [Case(q, a, exactly(a)) for q, a in (longform.counting(rng, held_out=True) for _ in range(count))]
    asked = ("say the abc", "Could you recite the alphabet?", "I want all the letters.", "print a b c to z")
    return made + [Case(q, longform.ALPHABET, exactly(longform.ALPHABET)) for q in asked]


def styled(topics: list[Topic], count: int = 120) -> list[Case]:
    """Make known questions under system prompts that change the style of the reply; names to sign with are held out."""
    rng = random.Random(SEED + 3)
    made: list[Case] = []
    for _ in range(count):
        system, style = styles.some(rng, held_out=True)
        topic = rng.choice(topics)
        reply = style(topic.answer)
        made.append(Case(rng.choice(topic.ask), reply, exactly(reply), system=system))
    return made


def everything_else() -> list[Case]:
    text = (HERE / "unrelated_held_out.txt").read_text(encoding="utf-8")
    asked = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [Case(q, unrelated.REPLY, lambda reply: "mlxkv models" in reply) for q in asked]


def filler(topics: list[Topic], rng: random.Random) -> Exchange:
    topic = rng.choice(topics)
    if rng.random() < 0.2:
        return unrelated.question(rng, unrelated.templates()), unrelated.REPLY
    return rng.choice(topic.ask), topic.answer


def _says(text: str) -> Callable[[str], bool]:
    return lambda reply: text.lower() in reply.lower()
