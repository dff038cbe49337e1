"""`/set` with every setting: too small, too large, no number at all, and what is allowed but rarely meant."""

from __future__ import annotations

from collections import deque

import pytest

from mlxkv.protocol import commands as cmd
from mlxkv.settings.schema import schema
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands.slash_actions import run
from mlxkv.tui.state.commands.ui_request import UiRequest
from mlxkv.tui.state.transcript.blocks import Kind

REFUSED = {
    "unload-after": ("0", "-1", "nan", "inf", "soon", "1e6"),
    "model-dirs": ("models", "/a:b", ":", "../models"),
    "temp": ("-1", "-0.1", "100.1", "1e400", "inf", "nan", "hot", "0,7", "1 2", "true", "0x1"),
    "top-p": ("-0.1", "1.01", "95", "inf", "nan", "high", "95%"),
    "top-k": ("-1", "10000001", "1.5", "nan", "many", "1e3", "9" * 5000),
    "min-p": ("-0.1", "1.1", "nan", "low"),
    "max-tokens": ("0", "-1", "10000001", "12.5", "nan", "all"),
    "seed": ("-1", str(2**64), "1.5", "nan", "dice"),
    "repetition-penalty": ("-1", "101", "nan", "high"),
    "repetition-context-size": ("0", "1.5", "all"),
    "presence-penalty": ("-101", "101", "nan"),
    "presence-context-size": ("0", "1.5"),
    "frequency-penalty": ("-101", "101", "nan"),
    "frequency-context-size": ("0", "1.5"),
    "xtc-probability": ("-0.1", "1.1", "nan"),
    "xtc-threshold": ("-0.1", "0.6", "nan"),
    "logit-bias": ("5", "a=1", "5=x", "-1=2", "5=1001", "5=nan"),
    "think": ("maybe", "2", "nan"),
    "ctx": ("0", "-1", "16777217", "1.5", "nan", "wide", "4k"),
    "sinks": ("-1", "16777217", "1.5", "nan", "systems"),
    "kv-bits": ("0", "2", "16", "-4", "4.5", "nan", "four", "4/8", "8/8", "8/"),
    "checkpoint-limit": ("-1", "1e300", "inf", "nan", "full", "20GB"),
    "disk-limit": ("-1", "1e300", "inf", "nan", "full", "20GB"),
    "plain": ("none", "2", "perhaps"),
    "mouse": ("none", "2", "perhaps"),
    "prefill-chunk": ("31", "2049", "many"),
    "wired": ("2", "perhaps"),
    "keep-awake": ("none", "perhaps"),
    "notify": ("none", "perhaps"),
    "auto-title": ("none", "perhaps"),
    "thinking-budget": ("-1", "1.5", "nan", "much"),
    "joined-emoji": ("2", "perhaps"),
    "draft": ("none", "2", "perhaps"),
    "draft-model": (),  # any text
    "adapter": (),  # any text
    "model": ("no model", "/no/such/folder", "a/b/c"),
    "system": (),  # any text
    "theme": (),  # the window knows them
}  # fmt: skip


def state() -> ChatState:
    return ChatState(lambda: 100.0)


def said(state: ChatState) -> tuple[Kind, str]:
    (block,) = state.transcript.take_change().settled
    return block.kind, block.text


def test_the_table_has_every_setting() -> None:
    assert set(REFUSED) == {s.slash or s.name for s in schema()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values],
                         ids=lambda text: text[:20])  # fmt: skip
def test_what_is_refused_changes_nothing(name: str, value: str) -> None:
    here = state()
    before = here.settings
    assert run(here, "set", f"{name} {value}") is None
    kind, text = said(here)
    assert kind is Kind.ERROR
    assert text.count(". ") <= 1, "one sentence"
    assert len(text) < 300
    assert value[:20] in text
    assert (here.settings, here.outbox) == (before, deque())


@pytest.mark.parametrize(
    ("line", "unusual"),
    [
        ("temp 9", "Above 2"),
        ("temp 2.5", "Above 2"),
        ("temp 2", ""),
        ("temp 0", ""),
        ("temp=0.7", ""),
        ("temp  =  3", "Above 2"),
        ("temp\t0.7", ""),
        ("top-p 0", "disables top-p"),
        ("top-p 1", ""),
        ("top-k 1", "likeliest"),
        ("top-k 0", ""),
        ("min-p 1", "likeliest"),
        ("max-tokens 1", "cut after a few words"),
        ("max-tokens 512", ""),
        ("ctx 1", "attends only to the last token and"),
        ("ctx 4096", ""),
        ("sinks 0", "evicted too"),
        ("sinks system", ""),
        ("disk-limit 0", "Almost no KV fits"),
        ("disk-limit 20", ""),
        ("temp none", ""),
        ("mouse off", ""),
        ("model tutor", ""),
        ("model org/name", ""),
    ],
)
def test_what_is_allowed_and_unusual_is_remarked_on(line: str, unusual: str) -> None:
    here = state()
    wish = run(here, "set", f"{line} --default")
    assert wish is not None
    assert wish.name == "save"
    kind, text = said(here)
    assert kind is Kind.META
    assert text.endswith(" on.") is not bool(unusual)
    assert unusual in text


def test_a_system_prompt_is_the_one_that_is_shown() -> None:
    here = state()
    run(here, "set", "system Be terse.")
    run(here, "system", "")
    assert here.transcript.take_change().settled[-1].text == "System prompt of this chat: Be terse."


def test_a_theme_that_does_not_exist_is_not_the_theme() -> None:
    here = state()
    assert run(here, "set", "theme nope") == UiRequest("theme", "nope")
    assert here.settings.theme == "textual-dark"
    assert not any(isinstance(command, cmd.ChangeSettings) for command in here.outbox)


def test_a_name_that_is_none_is_cut() -> None:
    here = state()
    run(here, "set", "x" * 5000)
    assert len(said(here)[1]) < 600  # with the names of all
