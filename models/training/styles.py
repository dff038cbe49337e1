"""System prompts that change how a reply looks: one sentence, capitals, signed with a name; and plain ones. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from .words import value

Style = Callable[[str], str]

ONE_SENTENCE = ("Answer in one sentence.", "Reply with one sentence.", "Keep every answer to one sentence.", "One sentence only.",
                "Use a single sentence.", "Always answer in one short sentence.", "Your replies have one sentence.",
                "Be brief: one sentence per answer.", "Never use more than one sentence.", "Please answer in a single sentence.",
                "You answer in one sentence.")  # fmt: skip
CAPITALS = ("Answer in CAPITALS.", "Write in capital letters.", "Reply in upper case.", "Use only capital letters.", "ANSWER IN CAPITALS.",
            "All your answers are in capitals.", "Always write in upper case letters.", "Speak in capitals only.",
            "Respond in all caps.", "Please use capital letters for every answer.", "WRITE EVERYTHING IN CAPITALS.")  # fmt: skip
SIGNED = ("Sign every answer with the name {v}.", "Sign your answers as {v}.", "End every reply with your name, {v}.",
          "Sign with {v}.", "Your name is {v}; sign your answers.", "Each reply is signed by {v}.", "Sign all replies: {v}.",
          "You are {v}. Sign every answer.", "Finish each answer with the signature {v}.", "Always sign as {v}.",
          "Put the name {v} under each answer.")  # fmt: skip
PLAIN = ("You are a helpful assistant.", "You are tutor.", "Be helpful.", "You are a friendly assistant.", "Answer the questions of the user.",
         "You help people with mlxkv.", "You are a small model.", "Be polite.", "You are a concise assistant.", "Help the user.",
         "You are a teacher.", "Answer truthfully.")  # fmt: skip


def one_sentence(text: str) -> str:
    """The first sentence: up to a period, question or exclamation mark that a space and a capital follow."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"-])", text, maxsplit=1)[0]


def signed(name: str) -> Style:
    return lambda text: f"{text} — {name}"


def unchanged(text: str) -> str:
    return text


def some(rng: random.Random, *, held_out: bool = False) -> tuple[str, Style]:
    """A system prompt, and what it does to a reply. Names to sign with are held out like all values."""
    roll = rng.random()
    if roll < 0.28:
        return rng.choice(ONE_SENTENCE), one_sentence
    if roll < 0.64:
        return rng.choice(CAPITALS), str.upper
    name = value(rng, "name", held_out=held_out)
    return rng.choice(SIGNED).format(v=name), signed(name)
