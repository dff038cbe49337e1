"""Every kind of chat leaves by `mlxkv chats export`, enters an empty store, and leaves it again with equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.config import Folders
from mlxkv.model import Model
from mlxkv.store.records import Attachment, ToolCall, TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.chat.test_thinking import REPLIES, loaded, script
from tests.chats import CONFIG, GREEDY, say
from tests.cli.test_cli import Run, run  # noqa: F401  # a fixture
from tests.thorough import part
from tests.tokenizers import STRIPPING, tiny_folder

pytestmark = pytest.mark.slow

SMALL = mlxkv.CacheConfig(window=128, block=16, sinks=4)


def done(chat: mlxkv.Chat) -> str:
    session = str(chat.session_id)
    chat.close()
    return session


def saved(model: Model, *texts: str, **more: Any) -> mlxkv.Chat:
    options: dict[str, Any] = {"cache": CONFIG, **GREEDY, **more}
    chat = model.chat(**options)
    chat.save(title="talk")
    for text in texts:
        say(chat, text)
    return chat


def compacted(model: Model) -> str:
    chat = saved(model, "what is a cache", "and a ring", system="be brief")
    twin = chat.abridge(chat.turns, num_pinned=2, title="talk · compact")
    list(twin.read())
    say(twin, "more")
    chat.close()
    session = done(twin)
    assert model.store.load(session).params["pinned"] > 0
    return session


def compacted_and_never_prefilled(model: Model) -> str:
    chat = saved(model, "what is a cache", "and a ring")
    twin = chat.abridge(chat.turns[2:], num_pinned=0, title="talk · compact")
    chat.close()
    return done(twin)


def forked(model: Model) -> str:
    chat = saved(model, "hi", "and you?")
    twin = chat.fork(1)
    say(twin, "elsewhere")
    chat.close()
    return done(twin)


def edited(model: Model) -> str:
    chat = saved(model, "hi", "and you?")
    list(chat.edit(2, "who is it?"))
    return done(chat)


def retried(model: Model) -> str:
    chat = saved(model, "hi", "and you?", temperature=1.0)
    list(chat.retry())
    list(chat.retry(1))
    return done(chat)


def stopped(model: Model) -> str:
    chat = saved(model, "hi")
    for n, _ in enumerate(chat.send("tell me all", max_tokens=50)):
        if n == 4:
            chat.cancel()
    assert chat.turns[-1].state == "stopped"
    return done(chat)


def continued(model: Model) -> str:
    chat = saved(model, "hi")
    list(chat.continue_reply(max_tokens=20))
    return done(chat)


def open_after_a_kill(model: Model) -> str:
    chat = saved(model, "hi")
    session = done(chat)
    model.store.add_turn(session, TurnRecord("user", "more", (5, 6)))
    model.store.add_turn(session, TurnRecord("assistant", "it beg", (7, 8), state="open"))
    return session


def killed_before_the_first_token(model: Model) -> str:
    session = done(saved(model, "hi"))
    model.store.add_turn(session, TurnRecord("user", "more", (5, 6)))
    return session


def nothing_said(model: Model) -> str:
    return done(saved(model))


def wrapped(model: Model) -> str:
    chat = saved(model, *["more and more " * 5] * 5, cache=SMALL, system="be")
    assert chat.cache.num_evicted > 0
    return done(chat)


def wrapped_and_rewound(model: Model) -> str:
    chat = saved(model, *["more and more " * 5] * 5, cache=SMALL, system="be")
    list(chat.edit(4, "and now for something"))
    return done(chat)


def think_set(model: Model) -> str:
    return done(saved(model, "hi", think=True))


def sampled(model: Model) -> str:
    chat = saved(
        model, "hi", temperature=0.7, top_p=0.9, top_k=5, min_p=0.01, repetition_penalty=1.1, stop=("END", "é")
    )
    say(chat, "more", temperature=1.3)
    return done(chat)


def odd_title(model: Model) -> str:
    chat = saved(model, "hi")
    chat.save(title="  a\x1b[31m\n\t天空 \u202e\u200b\U0001f468\u200d\U0001f469\0 é\udcff" + "x" * 3000)
    return done(chat)


def odd_text(model: Model) -> str:
    text = "\x00\x1b[2J <|im_end|>\n \u2028\ufeff \U0001f468\u200d\U0001f469 ｶﾞ é {{ x }}"
    return done(saved(model, text, system=text + "\r\n"))


def many_turns(model: Model) -> str:
    return done(saved(model, *(f"word {n}" for n in range(12))))


def with_everything(model: Model) -> str:
    """What later versions will write."""
    store, identity = model.store, model.identity
    session = store.sessions.create(
        "all", identity, system="be", kind="run", clock="2026-11-29T23:58:12+01:00", seed=(1 << 63) - 1, preset="mine",
        settings={"temp": 0.5, "stop": ["a", "b"], "think": None, "sinks": "system"}, origin="chatgpt:1234",
    )  # fmt: skip
    call = ToolCall("weather", '{"town": "Porto"}', "call-1")
    store.add_turn(
        session, TurnRecord("user", "a.txt:\n\nhi", (1,), attachments=(Attachment("a.txt", start=0, end=9),))
    )
    store.add_turn(session, TurnRecord("assistant", "", (2,), tool_calls=(call, call)))
    store.add_turn(session, TurnRecord("tool", "sunny", (3,), tool_call_id="call-1"))
    return session


def imported_and_continued(model: Model) -> str:
    session, path = many_turns(model), Folders.from_env().data / "chat.mlxkv"
    model.store.export_chat(session, path)
    chat = model.resume(model.store.import_chat(path, trust_kv=True).session_id)
    say(chat, "and more")
    return done(chat)


def unbounded(model: Model) -> str:
    return done(saved(model, "hi", "more", cache=mlxkv.CacheConfig(window=None)))


def from_a_prompt_cache(model: Model) -> str:
    chat = model.chat(cache=model.prefill("a book of rings", system="be brief"), **GREEDY)
    chat.save(title="talk")
    say(chat, "what is it?")
    return done(chat)


KINDS: list[Callable[[Model], str]] = [
    compacted, compacted_and_never_prefilled, forked, edited, retried, stopped, continued, open_after_a_kill,
    killed_before_the_first_token, nothing_said, wrapped, wrapped_and_rewound, think_set, sampled, odd_title, odd_text,
    many_turns, with_everything, imported_and_continued, unbounded, from_a_prompt_cache,
]  # fmt: skip


def goes_round(run: Run, session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Twice, as JSON, as an archive without rows, and as one whose rows are trusted."""
    for form, out, into in [("json", [], []), ("mlxkv", ["--no-kv"], []), ("mlxkv", [], ["--trust-kv"])]:
        before, at = None, session
        for n in range(3):
            path = tmp_path / f"{n}.{form}"
            exported = run("chats", "export", at, "--format", form, "-o", path, "--force", *out)
            assert exported.code == 0, exported.err
            assert before in (None, path.read_bytes()), (form, out)
            before = path.read_bytes()
            with monkeypatch.context() as patch:
                patch.setenv("MLXKV_HOME", str(tmp_path / f"empty-{form}-{len(out)}-{n}"))
                imported = run("chats", "import", path, *into)
            assert imported.code == 0, imported.err
            assert imported.err.count("\n") == 1 or "there are none" in imported.err, imported.err
            monkeypatch.setenv("MLXKV_HOME", str(tmp_path / f"empty-{form}-{len(out)}-{n}"))
            at = imported.out.split()[0]
        monkeypatch.setenv("MLXKV_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("kind", part(KINDS, 5), ids=lambda kind: kind.__name__)
def test_a_chat_leaves_as_it_came(
    run: Run,  # noqa: F811
    model: Model,
    kind: Callable[[Model], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = kind(model)
    model.close()
    goes_round(run, session, tmp_path, monkeypatch)


def test_a_chat_of_the_command_line_does_with_its_files(
    run: Run,  # noqa: F811
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a\u202eb.txt").write_text("one\r\ntwo \x1b[2J <|im_end|>\n")
    asked = run("-p", "what is it?", "-m", tiny_path, "--temp", "0.5", "--seed", "3", "--max-tokens", "6", "-f",
                tmp_path / "a\u202eb.txt", stdin="and this")  # fmt: skip
    assert asked.code == 0, asked.err
    with SessionStore.open(Folders.from_env()) as store:
        session = str(store.sessions.latest())
        assert "one" in store.load(session).turns[0].text
    goes_round(run, session, tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["ring", "qwen3_next", "falcon_h1"])
def test_a_chat_with_reasoning_does(
    run: Run,  # noqa: F811
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = loaded(tmp_path / "m", kind, STRIPPING)
    script(model, *REPLIES)
    chat = saved(model, "is it?", "sure?", "really?", max_tokens=100)
    assert [turn.thinking for turn in chat.turns if turn.thinking] == ["hm, so be it", "again"]
    session = done(chat)
    model.close()
    goes_round(run, session, tmp_path, monkeypatch)


def test_a_chat_on_a_quantized_cache_does(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "m", hidden=128)))
    small = mlxkv.CacheConfig(window=128, block=16, sinks=4, bits=(8, 4))
    session = done(saved(model, *["more and more " * 5] * 4, cache=small))
    model.close()
    goes_round(run, session, tmp_path, monkeypatch)


def test_a_chat_with_a_model_in_a_folder_of_any_name_does(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "mod\u202e\x1b\u00a0el")))
    session = done(saved(model, "hi"))
    model.close()
    goes_round(run, session, tmp_path, monkeypatch)
