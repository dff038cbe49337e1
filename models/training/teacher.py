"""A linear classifier over words and character n-grams, trained on the same phrasings; it teaches the network.

It finds the topic of a question by its words. That generalises better than a small network alone: its labels of
generated questions teach the network to look at words too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from sklearn.feature_extraction.text import TfidfVectorizer  # pyright: ignore[reportMissingImports]
from sklearn.pipeline import make_union  # pyright: ignore[reportMissingImports]
from sklearn.svm import LinearSVC  # pyright: ignore[reportMissingImports]

from mlxkv.models.training import noise, styles, unrelated
from mlxkv.models.training.conversations import Chat
from mlxkv.models.training.jumbled import OTHER, Jumbler
from mlxkv.models.training.knowledge import Topic

SURE = 0.25  # least margin of the best label's score over the second best
HEAD = 8  # tokens of an answer; in capitals three times as many, since a token holds fewer letters
STYLED = 0.35  # of the lessons have a system prompt that changes the style of the reply


class Teacher:
    def __init__(self, topics: list[Topic], seed: int, others: int = 9_000) -> None:
        rng = random.Random(seed)
        asked = [(q, t.id) for t in topics for phrase in t.ask for q in (phrase, noise.vary(phrase, rng))]
        pool = unrelated.templates()
        asked += [(noise.vary(unrelated.question(rng, pool), rng), OTHER) for _ in range(others)]
        texts, labels = zip(*asked, strict=True)
        self.features = make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+"),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
        )
        self.classifier = LinearSVC().fit(self.features.fit_transform(texts), labels)

    def labels(self, questions: list[str]) -> list[str | None]:
        """Return the label of each question; None if it is not sure."""
        scores = self.classifier.decision_function(self.features.transform(questions))
        best, second = scores.argmax(1), scores.copy()
        rows = range(len(questions))
        second[rows, best] = -9
        sure = scores[rows, best] - second.max(1) > SURE
        return [str(self.classifier.classes_[b]) if s else None for b, s in zip(best, sure, strict=True)]


def lessons(topics: list[Topic], teacher: Teacher, rng: random.Random) -> Iterator[Chat]:
    """Yield endless questions, each with the first tokens of its answer: they decide which answer it is."""
    jumbler, answers = Jumbler(topics, rng), {OTHER: unrelated.REPLY, **{t.id: t.answer for t in topics}}
    while True:
        asked = [jumbler.question() for _ in range(1_000)]
        unsure = [i for i, (_, label) in enumerate(asked) if label is None]
        told = dict(zip(unsure, teacher.labels([asked[i][0] for i in unsure]), strict=True))
        for i, (question, label) in enumerate(asked):
            if (known := told.get(i, label)) is not None:
                system, style = styles.some(rng) if rng.random() < STYLED else (None, styles.unchanged)
                yield Chat([(question, style(answers[known]))], system, head=3 * HEAD if style is str.upper else HEAD)
