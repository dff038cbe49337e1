"""Chats to train on, made of exchanges: one to many turns of mixed kinds, facts stated, evicted, asked for.

A chat is a list of messages; `Chat.gap` is the exchange in whose middle the window begins: everything before it, except
the system prompt, is evicted. Replies know only what the window still holds. Pure and seeded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mlxkv.models.training import longform, memory, noise, styles, unrelated
from mlxkv.models.training.knowledge import Topic, held_out, plain
from mlxkv.models.training.words import value

Exchange = tuple[str, str]
Message = dict[str, str]


@dataclass
class Chat:
    exchanges: list[Exchange] = field(default_factory=list)
    system: str | None = None
    gap: int | None = None
    rough: bool = True  # whether odd spellings may be simulated; not where a reply copies the message
    head: int | None = None  # the chat ends after so many tokens of its first reply

    def messages(self) -> list[Message]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + [
            {"role": role, "content": text}
            for exchange in self.exchanges
            for role, text in zip(("user", "assistant"), exchange, strict=True)
        ]


class Maker:
    """Makes endless chats from one seed; a share `echoes` of them only repeats words."""

    def __init__(self, topics: list[Topic], seed: int, echoes: float = 0.04) -> None:
        self.topics = topics
        self.echoes = echoes
        self.rng = random.Random(seed)
        self.unrelated = unrelated.templates()
        self.held_out = held_out(topics)

    def chat(self) -> Chat:
        roll = self.rng.random()
        if roll < self.echoes:
            return Chat([longform.echo(self.rng) for _ in range(self.rng.choice((1, 1, 2)))], rough=False)
        roll = self.rng.random()
        if roll < 0.36:
            return self.asking()
        if roll < 0.51:
            return self.remembering()
        if roll < 0.91:
            return self.styled()
        return self.long()

    # -- one exchange ------------------------------------------------------------------------------------------------

    def topic(self) -> Exchange:
        topic = self.rng.choice(self.topics)
        while plain(question := noise.vary(self.rng.choice(topic.ask), self.rng)) in self.held_out:
            continue
        return question, topic.answer

    def other(self) -> Exchange:
        reword = self.rng.random() < 0.5
        while plain(question := noise.vary(self._unrelated(), self.rng, reword=reword)) in self.held_out:
            continue
        return question, unrelated.REPLY

    def _unrelated(self) -> str:
        return unrelated.question(self.rng, self.unrelated)

    def unknown(self) -> Exchange:
        attribute = self.rng.choice(memory.ATTRIBUTES)
        return noise.dressed(memory.ask(attribute, self.rng), self.rng), memory.not_told(attribute)

    def longer(self) -> Exchange:
        question, answer = longform.some(self.rng)
        return noise.dressed(question, self.rng), answer

    def filler(self) -> Exchange:
        roll = self.rng.random()
        return (
            self.topic()
            if roll < 0.7
            else self.other()
            if roll < 0.9
            else self.unknown()
            if roll < 0.95
            else self.longer()
        )

    # -- chats -------------------------------------------------------------------------------------------------------

    def asking(self) -> Chat:
        """Make a chat of questions, most of them about mlxkv; sometimes with a system prompt that changes nothing."""
        turns = self.rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 6)) if self.rng.random() < 0.98 else self.rng.randrange(7, 16)
        made = [self.topic() if self.rng.random() < 0.71 else self.other() for _ in range(turns)]
        system = self.rng.choice(styles.PLAIN) if self.rng.random() < 0.12 else None
        gap = self.rng.randrange(turns - 1) if turns > 2 and self.rng.random() < 0.25 else None
        return Chat(made, system, gap)

    def long(self) -> Chat:
        turns = [self.longer() for _ in range(self.rng.choice((1, 1, 2)))]
        if self.rng.random() < 0.3:
            turns.insert(self.rng.randrange(len(turns) + 1), self.topic())
        return Chat(turns)

    def styled(self) -> Chat:
        rng = self.rng
        system, style = styles.some(rng)
        fact = None
        if rng.random() < 0.15:
            fact = memory.some_fact(rng)
            system += " " + memory.tell_system(fact, rng)
        made: list[Exchange] = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            roll = rng.random()
            if fact and roll < 0.4:
                made.append((noise.dressed(memory.ask(fact.attribute, rng), rng), memory.recalled(fact)))
            else:
                made.append(self.topic() if roll < 0.75 else self.other() if roll < 0.88 else self.unknown())
        return Chat([(question, style(answer)) for question, answer in made], system)

    def remembering(self) -> Chat:
        """Make a chat that states facts (in messages or the system prompt) and asks for them and for others."""
        rng = self.rng
        known: dict[str, memory.Fact] = {}
        system = None
        if rng.random() < 0.25:
            pinned = [memory.some_fact(rng) for _ in range(rng.choice((1, 1, 2)))]
            system = " ".join(memory.tell_system(f, rng) for f in pinned)
            if rng.random() < 0.3:
                system = rng.choice(styles.PLAIN) + " " + system
            known.update({f.attribute.mine: f for f in pinned})
        pinned_keys = set(known)
        chat = Chat(system=system, rough=False)
        told = [memory.some_fact(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4) if not system else (0, 0, 1, 2)))]
        told = list({f.attribute.mine: f for f in told if f.attribute.mine not in known}.values())
        steps = self._telling(told)
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 4, 6))):
            steps.insert(rng.randrange(len(steps) + 1), self._filler_step)
        questions = [f.attribute for f in (*told, *known.values()) if rng.random() < 0.85]
        rng.shuffle(questions)
        if rng.random() < 0.25 or not questions:
            questions.insert(rng.randrange(len(questions) + 1), rng.choice(memory.ATTRIBUTES))
        before = len(steps)
        for _ in range(rng.choice((0, 0, 0, 1, 2, 3))):
            steps.append(self._filler_step)
            before += 1
        if len(steps) > 1 and rng.random() < 0.2:  # the window begins in the middle of an exchange
            chat.gap = rng.randrange(len(steps))
        for number, step in enumerate(steps):
            step(chat, known)
            if number == chat.gap:
                for key in set(known) - pinned_keys:
                    del known[key]
        for attribute in questions:
            fact = known.get(attribute.mine)
            reply = memory.recalled(fact) if fact else memory.not_told(attribute)
            chat.exchanges.append((noise.dressed(memory.ask(attribute, rng), rng), reply))
            if rng.random() < 0.15:
                chat.exchanges.append(self.filler())
        return chat

    def _telling(self, facts: list[memory.Fact]) -> list[Step]:
        rng, steps, rest = self.rng, [], list(facts)
        while rest:
            if len(rest) > 1 and rng.random() < 0.2:
                steps.append(self._tell_step(rest.pop(0), rest.pop(0)))
                continue
            fact = rest.pop(0)
            steps.append(self._tell_step(fact))
            if rng.random() < 0.07:
                other = memory.Fact(fact.attribute, value(rng, fact.attribute.kind, held_out=False))
                steps.append(self._tell_step(other, again=True))
        return steps

    def _tell_step(self, *facts: memory.Fact, again: bool = False) -> Step:
        def step(chat: Chat, known: dict[str, memory.Fact]) -> None:
            text = (
                memory.tell_two(facts[0], facts[1], self.rng)
                if len(facts) == 2
                else memory.tell(facts[0], self.rng, again=again)
            )
            chat.exchanges.append((self._said(text, facts), memory.noted(*facts)))
            known.update({f.attribute.mine: f for f in facts})

        return step

    def _said(self, text: str, facts: tuple[memory.Fact, ...]) -> str:
        """Add noise that does not change the values, not even their case."""
        if self.rng.random() < 0.3:
            text = text.rstrip(".")
        if self.rng.random() < 0.3 and not any(f.value[:1].isupper() for f in facts):
            return text.lower()
        if self.rng.random() < 0.2:
            return text[:1].lower() + text[1:] if not text.startswith(tuple(f.value for f in facts)) else text
        return text

    def _filler_step(self, chat: Chat, known: dict[str, memory.Fact]) -> None:
        question, reply = self.filler()
        told = next((f for f in known.values() if reply == memory.not_told(f.attribute)), None)
        chat.exchanges.append((question, memory.recalled(told) if told else reply))


Step = Callable[[Chat, dict[str, memory.Fact]], None]
