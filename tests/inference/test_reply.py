"""ReplyText: reasoning and text are told apart however the reply is cut into tokens; markers are never shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxkv.inference.reply_parser import Reasoning, ReplyText, State, raw_text
from tests.tokenizers import CHATML, THINK, tiny_tokenizer

GPT_OSS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")


class Words:
    """A tokenizer whose ids index a list of pieces; the rest is mlx-lm's wrapper's."""

    def __init__(self, pieces: list[str], base: Any = None) -> None:
        self.pieces, self.base = pieces, base
        self.eos_token_ids: set[int] = {-1}

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(self.pieces[token] for token in ids)


def read(
    pieces: list[str], reasoning: Reasoning | None, state: State = "start", stop: tuple[str, ...] = ()
) -> ReplyText:
    reply = ReplyText(Words(pieces), stop, reasoning, state)
    for i in range(len(pieces)):
        reply.add(i)
    reply.finish()
    return reply


THINKING = Reasoning.of(tiny_tokenizer(CHATML, marks=THINK))
HARMONY = Reasoning.of(tiny_tokenizer(CHATML, marks=GPT_OSS))


def test_markers_come_from_the_tokenizer() -> None:
    assert THINKING is not None
    assert THINKING.opening == "<think>"
    assert HARMONY is not None
    assert Reasoning.of(tiny_tokenizer(CHATML)) is None


@pytest.mark.slow
@settings(max_examples=300)
@given(
    st.text(alphabet="ab<t\n ", max_size=12),
    st.text(alphabet="ab<t>/\n ", max_size=12),
    st.sampled_from(["<think>", "\n<think>\n", " <think>"]),
    st.booleans(),
    st.lists(st.integers(1, 5), min_size=1, max_size=30),
)
def test_any_cut_gives_the_same(thinking: str, text: str, begin: str, opened: bool, cuts: list[int]) -> None:
    whole = ("" if opened else begin) + thinking + "</think>" + text
    pieces, at = [], 0
    while at < len(whole):
        n = cuts[len(pieces) % len(cuts)]
        pieces.append(whole[at : at + n])
        at += n
    reply = read(pieces, THINKING, "thinking" if opened else "start")
    assert (reply.thinking, reply.text) == (thinking.strip(), text.lstrip())
    assert reply.raw == whole.removeprefix(" ")


@pytest.mark.parametrize(
    ("whole", "thinking", "text"),
    [
        ("hello", "", "hello"),
        ("\n hello", "", "\n hello"),
        ("say <think> and </think>", "", "say <think> and </think>"),
        ("<thin", "", "<thin"),
        ("<think>on and on", "on and on", ""),
        ("<think>a </thin", "a </thin", ""),
        ("</think>\n\nhello", "", "hello"),
        ("<think>\n\n</think>\n\nhello", "", "hello"),
        ("", "", ""),
        # several spans of reasoning join
        ("<think>a</think>b<think>c</think>d", "a\n\nc", "bd"),
        ("<think>a\n</think>\n\nb\n<think>\nc\n</think>\n\nd", "a\n\nc", "b\nd"),
        ("<think>a</think>\n<think>c</think>d", "a\n\nc", "d"),
        ("<think>\n<think>\na</think>b", "a", "b"),
        ("<think>a</think>b</think>c", "a", "bc"),
        # reasoning whose beginning was never said
        ("a\n</think>\n\nb", "a", "b"),
        ("so be it.</think>b", "so be it.", "b"),
        ("a</think>b<think>c</think>d", "a\n\nc", "bd"),
        # talked about
        ("a <think> tag", "", "a <think> tag"),
        ("use `<think>` and `</think>`\n", "", "use `<think>` and `</think>`\n"),
        ("so:\n```\n<think>\na\n</think>\n```\n", "", "so:\n```\n<think>\na\n</think>\n```\n"),
        ("say <think>x</think>", "", "say <think>x</think>"),
        ("<think>a <think> tag</think>b", "a <think> tag", "b"),
    ],
)
def test_what_is_reasoning(whole: str, thinking: str, text: str) -> None:
    for pieces in ([whole], list(whole)):
        reply = read(pieces, THINKING)
        assert (reply.thinking, reply.text) == (thinking, text)


@pytest.mark.parametrize(
    ("whole", "thinking", "text"),
    [
        (
            "<|channel|>analysis<|message|>hm, so<|end|><|start|>assistant<|channel|>final<|message|>yes",
            "hm, so",
            "yes",
        ),
        ("<|channel|>final<|message|>yes", "", "yes"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>",
            "a\n\nb",
            "",
        ),
        ("<|channel|>commentary to=me<|message|>yes", "", "yes"),
        ("no header", "", "no header"),
        ("<|chan", "", ""),
    ],
)
def test_channels(whole: str, thinking: str, text: str) -> None:
    assert HARMONY is not None
    for pieces in ([whole], list(whole)):
        reply = read(pieces, HARMONY, HARMONY.state_after("<|start|>assistant"))
        assert (reply.thinking, reply.text) == (thinking, text)


def test_a_prompt_may_have_opened_the_reasoning() -> None:
    assert THINKING is not None
    assert THINKING.state_after("<|im_start|>assistant\n<think>\n") == "thinking"
    assert THINKING.state_after("<|im_start|>assistant\n<think>\n\n</think>\n\n") == "start"
    assert THINKING.state_after("<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n") == "start"


def test_a_stop_string_ends_the_text_and_not_the_reasoning() -> None:
    reply = read(list("<think>a. b</think>c. d"), THINKING, stop=(". ",))
    assert (reply.thinking, reply.text, reply.is_stopped) == ("a. b", "c", True)


def test_raw_text_is_what_was_read() -> None:
    tokenizer = tiny_tokenizer(CHATML, marks=THINK)
    whole = "<think>\nab\n</think>\n\nyes"
    ids = tokenizer.encode(whole, add_special_tokens=False)
    assert raw_text(tokenizer, [*ids, 2]) == raw_text(tokenizer, ids) == whole
