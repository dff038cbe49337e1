"""Tokenizer, and chats as token ids: byte-level BPE, single digits, ChatML; the loss covers tutor's replies only.

Also rotated windows: the first tokens stay, a stretch after them is missing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlxkv.models.training.cases import Case
from mlxkv.models.training.conversations import Chat, Maker

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [PAD, START, END]
PAD_ID, START_ID, END_ID = 0, 1, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SINKS = 4  # pinned tokens of a chat without a system prompt


@dataclass(frozen=True)
class Sample:
    """Ids of one chat, and for each whether the loss covers it (replies, their end tokens included)."""

    ids: list[int]
    learn: list[bool]


def train_tokenizer(maker: Maker, vocab: int, chats: int) -> Tokenizer:
    """Train a BPE on texts of `maker`; it sees each text of the knowledge at least once."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=4,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(maker, chats), trainer)
    return tokenizer


def _texts(maker: Maker, chats: int) -> list[str]:
    texts = [text for topic in maker.topics for text in (*topic.ask, topic.answer)] * 3
    texts += [m["content"] for _ in range(chats) for m in maker.chat().messages()]
    return texts + ["system\n", "user\n", "assistant\n"] * 10


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


class Encoder:
    """Turns chats into samples. `dropout` skips merges in some user messages, so that odd spellings look familiar."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random, dropout: float = 0.1) -> None:
        self.tokenizer = tokenizer
        self.rng = rng
        self.rough = Tokenizer.from_str(tokenizer.to_str())
        self.rough.model.dropout = dropout

    def sample(self, chat: Chat) -> Sample:
        ids: list[int] = []
        learn: list[bool] = []
        ends: list[int] = []
        for message in chat.messages():
            reply = message["role"] == "assistant"
            rough = not reply and chat.rough and self.rng.random() < 0.25
            tokenizer = self.rough if rough else self.tokenizer
            head = [START_ID, *self.tokenizer.encode(message["role"] + "\n", add_special_tokens=False).ids]
            body = [*tokenizer.encode(message["content"], add_special_tokens=False).ids, END_ID]
            if reply and chat.head is not None:
                ids += head + body[: chat.head]
                return Sample(ids, learn + [False] * len(head) + [True] * len(body[: chat.head]))
            tail = self.tokenizer.encode("\n", add_special_tokens=False).ids
            ids += head + body + tail
            learn += [False] * len(head) + [reply] * len(body) + [False] * len(tail)
            ends.append(len(ids))
        if chat.gap is None:
            return Sample(ids, learn)
        first = ends[0] if chat.system else SINKS
        before = ends[2 * chat.gap - 1 + bool(chat.system)] if 2 * chat.gap - 1 + bool(chat.system) >= 0 else 0
        begin = self.rng.randrange(max(first, before), max(first, ends[2 * chat.gap + 1 + bool(chat.system)]) + 1)
        return Sample(ids[:first] + ids[begin:], [False] * first + learn[begin:])

    def case(self, case: Case) -> Sample:
        """Encode a held-out case: everything as typed, and only its last reply counts."""
        chat = Chat([*case.before, (case.question, case.expected)], case.system)
        ids: list[int] = []
        for message in chat.messages():
            text = f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
            ids += self.tokenizer.encode(text, add_special_tokens=False).ids
        reply = len(self.tokenizer.encode(case.expected, add_special_tokens=False).ids) + 1
        return Sample(ids, [False] * (len(ids) - 1 - reply) + [True] * reply + [False])
