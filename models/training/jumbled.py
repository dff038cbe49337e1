"""Generated questions: phrasings cut, crossed and mixed. The teacher (teacher.py) says which topic each is about.

Forty phrasings of a topic are few: a network memorises them and confuses a new one with whatever looks similar. People
type much else besides, and mostly the words decide the topic. Pure and seeded.
"""

from __future__ import annotations

import random

from mlxkv.models.training import noise, unrelated
from mlxkv.models.training.knowledge import Topic, held_out, plain

OTHER = ""  # the label of questions tutor cannot answer


class Jumbler:
    """Makes endless questions from one random generator. A label is a topic's id, or None for the teacher."""

    def __init__(self, topics: list[Topic], rng: random.Random, other: float = 0.25) -> None:
        self.topics, self.rng, self.other_share = topics, rng, other
        self.unrelated, self.held_out = unrelated.templates(), held_out(topics)
        self.words = [word for topic in topics for phrase in topic.ask for word in phrase.split()]

    def question(self) -> tuple[str, str | None]:
        """Return a question as typed, and its label if that is certain; never a held-out question."""
        while plain((made := self._question())[0]) in self.held_out:
            continue
        return made

    def _question(self) -> tuple[str, str | None]:
        rng = self.rng
        roll = rng.random()
        phrases, label = self._phrases()
        if roll < 0.40:
            return noise.vary(rng.choice(phrases), rng), label
        if roll < 0.58:
            made = self._thinned(rng.choice(phrases).split())
        elif roll < 0.80:
            made = self._crossed(rng.choice(phrases).split(), rng.choice(phrases).split())
        elif roll < 0.87:
            made = self._crossed(rng.choice(phrases).split(), rng.choice(self._phrases()[0]).split())
        else:
            made = self._mixed(rng.choice(phrases).split())
        return noise.vary(" ".join(made), rng, reword=rng.random() < 0.5), None

    def _phrases(self) -> tuple[list[str] | tuple[str, ...], str]:
        if self.rng.random() < self.other_share:
            return [unrelated.question(self.rng, self.unrelated) for _ in range(2)], OTHER
        topic = self.rng.choice(self.topics)
        return topic.ask, topic.id

    def _thinned(self, words: list[str]) -> list[str]:
        kept = [word for word in words if self.rng.random() > 0.22]
        if len(kept) > 2 and self.rng.random() < 0.3:
            i = self.rng.randrange(len(kept) - 1)
            kept[i], kept[i + 1] = kept[i + 1], kept[i]
        return kept or words

    def _crossed(self, first: list[str], second: list[str]) -> list[str]:
        return first[: self.rng.randrange(1, len(first) + 1)] + second[self.rng.randrange(len(second)) :]

    def _mixed(self, words: list[str]) -> list[str]:
        """Replace one or two words with others, or insert others."""
        words = list(words)
        for _ in range(self.rng.choice((1, 1, 2))):
            i = self.rng.randrange(len(words))
            words[i : i + self.rng.randrange(2)] = [self.rng.choice(self.words)]
        return words
