"""/retry with another model or settings: what is asked of the engine, and what each version is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxkv.errors import ConfigError, ModelNotFoundError
from mlxkv.events import Message, Sibling
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.status import ModelTooLarge
from mlxkv.stats import TurnStats
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands.retry import RetryWith, parse_retry, version_labels
from mlxkv.tui.state.commands.slash_actions import run
from mlxkv.tui.state.figures import figures_line
from mlxkv.tui.state.transcript.blocks import Kind

READY = ev.ModelReady("tutor", 7, 0.1, True)
WARM = cmd.Retry(None, (("temperature", 1.0),))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name in ("my model", "a top-p=1"):
        (tmp_path / name).mkdir()
    return str(tmp_path)


@pytest.fixture
def state() -> ChatState:
    state = ChatState(lambda: 0.0)
    state.begin([cmd.LoadModel("tutor"), cmd.NewChat()])
    state.apply(READY)
    state.apply(ev.ChatOpened("c1", "Sky", (Message("user", "Why?"), Message("assistant", "So."))))
    state.outbox.clear()
    state.transcript.take_change()
    return state


def sent(state: ChatState) -> list[cmd.Command]:
    out = list(state.outbox)
    state.outbox.clear()
    return out


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("temp=1 top-p=0.9", RetryWith("", (("temperature", 1.0), ("top_p", 0.9)))),
        ("--temp=1", RetryWith("--temp=1")),
        ("qwen3-4b temp=0", RetryWith("qwen3-4b", (("temperature", 0.0),))),
        ("Temperature=1", RetryWith("", (("temperature", 1.0),))),
        ("think=off seed=none", RetryWith("", (("think", False), ("seed", None)))),
        ("logit-bias=5=-1,6=2", RetryWith("", (("logit_bias", {5: -1.0, 6: 2.0}),))),
        ("org/name", RetryWith("org/name")),
        ("org/name temp=0", RetryWith("org/name", (("temperature", 0.0),))),
        ("{}/my model", RetryWith("{}/my model")),
        ("'{}/my model' temp=1", RetryWith("{}/my model", (("temperature", 1.0),))),
        (r"{}/my\ model", RetryWith("{}/my model")),
        ("./my model max-tokens=5", RetryWith("./my model", (("max_tokens", 5),))),
    ],
)
def test_what_is_asked(folder: str, typed: str, wanted: RetryWith) -> None:
    assert parse_retry(typed.format(folder)) == RetryWith(wanted.model.format(folder), wanted.changes)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("temp=hot", "/retry temp is 'hot'; it must be a number from 0 to 100"),
        ("window=5", "/retry cannot change window for a reply; it can change temp, top-p,"),
        ("temp 1", "A setting for a reply is written with =, as in /retry temp=1."),
        ("/no/such folder temp=1", "There is no folder '/no/such folder'"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(state: ChatState, typed: str, text: str) -> None:
    before = state.settings
    assert run(state, "retry", typed) is None
    (block,) = state.transcript.take_change().settled
    assert (block.kind, block.text.startswith(text), sent(state), state.settings) == (Kind.ERROR, True, [], before)
    with pytest.raises((ConfigError, ModelNotFoundError)):
        parse_retry(typed)


def test_the_model_is_loaded_first_and_stays(state: ChatState) -> None:
    run(state, "retry", "org/other temp=1")
    assert sent(state) == [cmd.LoadModel("org/other", then=WARM)]
    state.apply(ev.ChatOpened("c1", "Sky", tuple(state.transcript.messages)))
    state.apply(ev.ModelReady("org/other", 7, 0.1, True))
    assert sent(state) == [WARM]
    state.transcript.take_change()
    state.apply(ev.ChatOpened("c2", "Sky", ()))
    state.apply(ev.TurnStarted("Why?"))
    assert [b.text for b in state.transcript.take_change().settled] == [
        "Why?", "other is loaded: it answers from here on."
    ]  # fmt: skip
    state.apply(ev.Failed("No."))
    run(state, "retry", "org/other temp=1")  # it is loaded already
    assert sent(state) == [WARM]


@pytest.mark.parametrize("changes_its_mind", [False, True])
def test_a_model_that_is_downloaded_first_answers_then_unless_the_chat_went_on(
    state: ChatState, changes_its_mind: bool
) -> None:
    load = cmd.LoadModel("org/other", then=WARM)
    state.submit(load)
    state.apply(ev.PullProgress("org/other", ev.PullState.ASKING, then_load=True))
    if changes_its_mind:
        state.prompt("Never mind.")
    sent(state)
    state.apply(ev.PullProgress("org/other", ev.PullState.DONE, then_load=True))
    assert sent(state) == [cmd.LoadModel("org/other") if changes_its_mind else load]


def test_a_model_that_is_too_large_answers_where_it_is_loaded_anyway(state: ChatState) -> None:
    state.submit(cmd.LoadModel("org/other", then=WARM))
    state.apply(ModelTooLarge("org/other", 9, 8, 8, kv_bits=8))
    assert state.listing is not None
    chosen = [row.choice for row in state.listing.rows]
    assert chosen[1:] == [
        cmd.LoadModel("org/other", kv_bits=8, then=WARM), cmd.LoadModel("org/other", anyway=True, then=WARM)
    ]  # fmt: skip
    sent(state)
    state.submit(cmd.LoadModel("tutor"))  # another one was chosen
    state.apply(READY)
    assert sent(state) == [cmd.LoadModel("tutor")]


def test_an_empty_chat_loads_no_model() -> None:
    state = ChatState(lambda: 0.0)
    run(state, "retry", "org/other")
    assert sent(state) == []


def made(**params: object) -> Sibling:
    return Sibling("c1", "text", 0.0, False, {"top_p": 1.0, "seed": None, **params})


@pytest.mark.parametrize(
    ("versions", "labels"),
    [
        ([made(temperature=0.7), made(temperature=0.7)], ["", ""]),
        ([made(temperature=0.7), made(temperature=1.0, seed=5)], ["temp 0.7", "temp 1 seed 5"]),
        ([made(model_name="org/A"), made(model_name="/my models/B", think=False)], ["A", "B think off"]),
        ([made(), made(model_name="org/A\x1b[31m")], ["", "A␛[31m"]),  # the first is of an older mlxkv
        ([made(logit_bias={"5": 1.0}), made()], ["logit-bias", ""]),
    ],
)
def test_versions_are_named_by_what_differs(versions: list[Sibling], labels: list[str]) -> None:
    assert version_labels(versions) == labels


def test_the_label_leaves_room_for_the_figures() -> None:
    def line(width: int, version: tuple[int, int], made_with: str) -> str:
        return "".join(
            figures_line(
                TurnStats(generated_tokens=29, decode_tps=40.0, cache_live_bytes=9_700_000),
                width,
                0,
                version,
                made_with,
            )
        )

    assert "‹" not in line(200, (1, 1), "temp 1")
    assert "‹ 2/3 · temp 1 ›" in line(200, (2, 3), "temp 1")
    assert "‹ 2/3 · Qwen3-4B-Instruct-2507-… ›" in line(200, (2, 3), "Qwen3-4B-Instruct-2507-4bit")
    assert line(32, (2, 3), "temp 1") == "40.0 tok/s · KV 9.7 MB · ‹ 2/3 ›"
