"""The text tutor is trained on: repeatable, free of what is held out; replies know what the window holds, no more."""

from __future__ import annotations

import random
import re

import pytest

from mlxkv.models.training import longform, memory, noise, styles, unrelated
from mlxkv.models.training.cases import groups
from mlxkv.models.training.conversations import Chat, Maker
from mlxkv.models.training.jumbled import OTHER, Jumbler
from mlxkv.models.training.knowledge import Topic, held_out, plain, read_topics
from mlxkv.models.training.words import KINDS, is_held_out, value


@pytest.fixture(scope="module")
def chats() -> list[Chat]:
    maker = Maker(read_topics(), 7)
    return [maker.chat() for _ in range(1500)]


@pytest.mark.slow
def test_the_same_seed_makes_the_same_chats() -> None:
    topics = read_topics()
    first, second = Maker(topics, 3), Maker(topics, 3)
    assert [first.chat() for _ in range(50)] == [second.chat() for _ in range(50)]
    assert [first.chat() for _ in range(50)] != [Maker(topics, 4).chat() for _ in range(50)]


@pytest.mark.parametrize("kind", KINDS)
def test_values_lie_on_one_side_of_the_split(kind: str) -> None:
    rng = random.Random(1)
    assert all(is_held_out(value(rng, kind, held_out=True)) for _ in range(20))
    assert not any(is_held_out(value(rng, kind, held_out=False)) for _ in range(20))


@pytest.mark.slow
def test_no_chat_tells_a_held_out_value(chats: list[Chat]) -> None:
    noted = [reply for chat in chats for _, reply in chat.exchanges if reply.startswith("I will remember that")]
    told = [m[1] for reply in noted if reply.count(" is ") == 1 and (m := re.search(r" is (.+)\.$", reply))]
    assert len(told) > 250
    assert [v for v in told if is_held_out(v)] == []


@pytest.mark.slow
def test_no_phrasing_is_both_asked_and_held_out() -> None:
    topics = read_topics()
    asked = {plain(q) for t in topics for q in t.ask}
    assert [q for t in topics for q in t.held_out if plain(q) in asked] == []


@pytest.mark.slow
def test_noise_never_makes_a_question_that_is_measured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where it would: here every other phrasing is turned into a held-out one."""
    topics = read_topics()
    measured = [q for t in topics for q in t.held_out]
    vary = noise.vary
    monkeypatch.setattr(noise, "vary", lambda t, rng, **k: rng.choice(measured) if rng.random() < 0.5 else vary(t, rng))
    jumbler, maker, never = Jumbler(topics, random.Random(3)), Maker(topics, 3), held_out(topics)
    made = [jumbler.question()[0] for _ in range(300)]
    made += [ask()[0] for _ in range(100) for ask in (maker.topic, maker.other)]
    assert [q for q in made if plain(q) in never] == []


@pytest.mark.slow
def test_what_is_unrelated_is_no_phrasing() -> None:
    topics = read_topics()
    asked = {plain(q) for t in topics for q in t.ask}
    rng = random.Random(4)
    made = {unrelated.question(rng, unrelated.templates()) for _ in range(4000)}
    assert len(made) > 2500
    assert [q for q in made if plain(q) in asked] == []


@pytest.mark.slow
def test_jumbled_questions_are_labelled_where_that_is_sure() -> None:
    topics = read_topics()
    first, second = ([j.question() for _ in range(500)] for j in (_jumbler(topics), _jumbler(topics)))
    assert first == second
    labels = [label for _, label in first]
    assert 100 < labels.count(None) < 450
    assert 10 < labels.count(OTHER) < 150
    assert {label for label in labels if label} <= {t.id for t in topics}


def _jumbler(topics: list[Topic]) -> Jumbler:
    return Jumbler(topics, random.Random(5))


@pytest.mark.slow
def test_the_knowledge_is_large_and_terse() -> None:
    topics = read_topics()
    assert len(topics) >= 250
    assert [t.id for t in topics if len(t.answer) > 240 or len(t.ask) < 6 or len(t.held_out) < 2] == []


@pytest.mark.slow
def test_the_cases_are_always_the_same() -> None:
    topics = read_topics()
    assert [c.question for g in groups(topics).values() for c in g] == [
        c.question for g in groups(topics).values() for c in g
    ]


def test_the_window_decides_what_is_known(chats: list[Chat]) -> None:
    """A fact told before the gap is not known after it, unless it is told again or pinned in the system prompt."""
    seen = 0
    for chat in chats:
        if chat.gap is None or chat.system:
            continue
        later = " ".join(reply for _, reply in chat.exchanges[chat.gap + 1 :])
        for _, reply in chat.exchanges[: chat.gap + 1]:
            told = re.fullmatch(r"I will remember that your ([a-z ']+) is (\w{6,})\.", reply)
            if told and told[2] not in later:
                seen += f"You have not told me your {told[1]}." in later
            elif told:
                assert f"your {told[1]} is {told[2]}" not in later or "remember" in later
    assert seen > 3


def test_noise_varies_and_never_empties() -> None:
    rng = random.Random(2)
    made = {noise.vary("How do I delete an old chat?", rng) for _ in range(200)}
    assert len(made) > 100
    assert all(len(text) > 8 for text in made)


def test_dressing_changes_no_word() -> None:
    rng = random.Random(3)
    assert all("my dog's name" in noise.dressed("What is my dog's name?", rng).lower() for _ in range(200))


def test_styles_change_the_look_only() -> None:
    assert styles.one_sentence("One. Two.") == "One."
    assert styles.one_sentence("See config.toml or -m. It works.") == "See config.toml or -m."
    assert styles.signed("Ada")("Yes.") == "Yes. — Ada"


def test_long_replies_say_what_was_asked() -> None:
    assert longform.counted(3, 6) == "3, 4, 5, 6."
    assert longform.counted(3, 1) == "3, 2, 1."
    hero = re.search(r"named (\w+)", longform.story(random.Random(0), "fox"))
    assert hero is not None


def test_unrelated_questions_are_varied_and_complete() -> None:
    rng, pool = random.Random(0), unrelated.templates()
    made = {unrelated.question(rng, pool) for _ in range(1000)}
    assert len(made) > 800
    assert not any("{" in question or "\n" in question for question in made)


def test_every_attribute_can_be_told_and_asked() -> None:
    rng = random.Random(0)
    for attribute in memory.ATTRIBUTES:
        fact = memory.Fact(attribute, value(rng, attribute.kind, held_out=False))
        assert fact.value in memory.tell(fact, rng)
        assert fact.value in memory.recalled(fact)
        assert "{" not in memory.ask(attribute, rng) + memory.tell_system(fact, rng) + memory.not_told(attribute)
