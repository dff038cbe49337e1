"""Topics of knowledge/*.toml: one per answer. Pure; noise is added elsewhere."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Topic:
    """One answer, the phrasings training sees (`ask`), and those it never sees (`held_out`).

    `also` names topics whose answer is just as right: "top p" may be answered with the idea or with its option.
    """

    id: str
    answer: str
    ask: tuple[str, ...]
    held_out: tuple[str, ...]
    also: tuple[str, ...] = ()


def read_topics(paths: list[Path] | None = None) -> list[Topic]:
    """Read all topics, sorted by id; a phrasing that is held out in one topic is removed from `ask` of all.

    Raises:
        ValueError: an id is used twice, a topic lacks phrasings, or `also` names no topic.
    """
    topics: dict[str, Topic] = {}
    for path in sorted((HERE / "knowledge").glob("*.toml")) if paths is None else paths:
        for table in tomllib.loads(path.read_text(encoding="utf-8")).get("topic", []):
            topic = Topic(
                table["id"],
                table["answer"].strip(),
                tuple(table["ask"]),
                tuple(table.get("held_out", ())),
                tuple(table.get("also", ())),
            )
            if topic.id in topics:
                raise ValueError(f"{path.name}: topic {topic.id!r} is there twice; give one another id.")
            if not topic.ask or not topic.answer:
                raise ValueError(f"{path.name}: topic {topic.id!r} needs an answer and phrasings.")
            topics[topic.id] = topic
    if unknown := {other for topic in topics.values() for other in topic.also} - topics.keys():
        raise ValueError(f"`also` names {', '.join(sorted(unknown))}, which is no topic; correct the id.")
    kept_back = {plain(q) for t in topics.values() for q in t.held_out}
    for key, topic in topics.items():
        topics[key] = replace(topic, ask=tuple(q for q in topic.ask if plain(q) not in kept_back))
    return [topics[key] for key in sorted(topics)]


def plain(text: str) -> str:
    """Reduce `text` to lower-case letters, digits and single spaces: case and punctuation make no difference."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def held_out(topics: list[Topic]) -> frozenset[str]:
    """Return all held-out questions as `plain` writes them: noise may by chance turn a phrasing into one of these."""
    unrelated = (HERE / "unrelated_held_out.txt").read_text(encoding="utf-8").splitlines()[1:]
    return frozenset(plain(q) for q in (*unrelated, *(q for topic in topics for q in topic.held_out)))
