"""Chats of other programs arrive whole, once, and only if their export is harmless."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxkv.errors import StoreError
from mlxkv.events import ToolCall
from mlxkv.store.db import imports
from mlxkv.store.export.foreign import read
from mlxkv.store.export.foreign.branches import MAX_BRANCHES
from mlxkv.store.records import SessionRecord, TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import model
from tests.store.foreign.exports import chatgpt, claude, gpt_node, lm_studio, write, write_zip


def imported(store: SessionStore, path: Path) -> tuple[str, SessionRecord]:
    """The sentence, and the first chat."""
    done = store.import_foreign(path)
    assert done is not None
    return str(done), store.load(done.session_ids[0])


def test_chatgpt(store: SessionStore, tmp_path: Path) -> None:
    other = chatgpt(conversation_id="c-9", mapping={})
    path = write_zip(tmp_path / "export.zip", {"chat.html": b"<html>", "conversations.json": [chatgpt(), other]})
    said, chat = imported(store, path)
    assert said == (
        "Imported 1 chat of ChatGPT with 6 messages and 2 other branches; skipped 1 without messages; left out 1 file, "
        "1 image."
    )
    assert (chat.title, chat.created, chat.updated, chat.system) == ("The sky", 1.7e9, 1.70001e9, "Be brief.")
    assert (chat.model.name, chat.origin) == ("ChatGPT gpt-5-1", "chatgpt:c-1")
    assert [turn.role for turn in chat.turns] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    asked, reply, result = chat.turns[:3]
    assert asked.text == "Why is it blue?\n\n[image left out: sky.png]\n\n[file left out: notes.pdf]"
    assert [file.name for file in asked.attachments] == ["sky.png", "notes.pdf"]
    assert reply.thinking == "Blue scatters most."
    assert reply.tool_calls == (ToolCall("python", '{"code": "print(450 ** -4)"}', "call00001"),)
    assert (reply.text, result.text, result.tool_call_id) == ("", "2.4e-11", "call00001")
    assert [turn.text for turn in chat.turns[3:]] == ["Rayleigh.", "And red?", "At sunset."]
    assert [len(found) for found in store.siblings(chat.id)] == [1, 3, 1, 1, 1, 1]
    assert [branch.title for branch in store.tree(chat.id)] == ["The sky"] * 3
    assert [c.id for c in store.list() if c.kind == "chat"] == [chat.id]  # the branch that was seen last
    assert str(store.import_foreign(path)).startswith("Imported 0 chats of ChatGPT; skipped 1 already here and 1")
    assert store.verify().problems == ()


@pytest.mark.parametrize("where", ["at the end", "in another branch"])
def test_a_chat_that_has_grown_comes_again_and_is_then_known(store: SessionStore, tmp_path: Path, where: str) -> None:
    """Months later the same export has more messages: none of them is lost, and nothing is merged."""
    before = chatgpt()
    _, chat = imported(store, write(tmp_path / "before.json", [before]))
    store.add_turn(chat.id, TurnRecord("user", "said here", (1,)))
    assert "skipped 1 already here" in imported_again(store, tmp_path / "before.json")
    after, mapping = chatgpt(), before["mapping"]
    tip = before["current_node"] if where == "at the end" else next(k for k, v in mapping.items() if not v["children"])
    after["mapping"]["new"] = gpt_node("new", tip, "user", "And green?")
    said, grown = imported(store, write(tmp_path / "after.json", [after]))
    assert said.startswith("Imported 1 chat")
    assert any("And green?" in turn.text for b in store.tree(grown.id) for turn in store.load(b.session_id).turns)
    assert store.load(chat.id).turns[-1].text == "said here"
    for name in ("before", "after"):
        assert "skipped 1 already here" in imported_again(store, tmp_path / f"{name}.json")
    assert store.verify().problems == ()


def test_claude(store: SessionStore, tmp_path: Path) -> None:
    said, chat = imported(store, write(tmp_path / "data" / "conversations.json", [claude()]).parent)
    assert said == "Imported 1 chat of Claude with 5 messages and 1 other branch; left out 1 image."
    assert [turn.text.split("\n\n")[-1] for turn in chat.turns] == [
        "File `ada.txt`:\n````\nDear ``` Ada\n````", "", "Lovelace", "To Ada Lovelace.", "Thanks",
    ]  # fmt: skip
    photo, letter = chat.turns[0].attachments
    assert (photo.name, photo.end) == ("photo.jpg", 0)
    assert chat.turns[0].text[letter.start : letter.end] == "Dear ``` Ada"
    assert chat.turns[1].thinking == "It is short."
    assert chat.turns[1].tool_calls == (ToolCall("web_search", '{"q": "Ada"}', "call00001"),)
    assert [len(found) for found in store.siblings(chat.id)] == [1, 2, 1, 1, 1]


def test_lm_studio(store: SessionStore, tmp_path: Path) -> None:
    file = write(tmp_path / "chats" / "below" / "17.conversation.json", lm_studio())
    said, chat = imported(store, tmp_path / "chats")
    assert said == "Imported 1 chat of LM Studio with 5 messages and 1 other branch; left out 1 image."
    assert (chat.system, chat.model.name, chat.created) == ("Count.", "LM Studio qwen/qwen3-4b", 1_772_000_000.0)
    assert (chat.turns[1].thinking, chat.turns[1].tool_calls) == (
        "2, 3, 5",
        (ToolCall("add", '{"a": 5}', "call00001"),),
    )
    assert [(turn.role, turn.text) for turn in chat.turns[2:4]] == [("tool", "5"), ("assistant", "Five.")]
    assert [sibling.text for sibling in store.siblings(chat.id)[1]] == ["", "Seven."]
    assert "skipped 1 already here" in imported_again(store, file)


@pytest.mark.parametrize(
    ("blocks", "roles", "text"),
    [
        ("c1 r1 t", "assistant tool assistant", ""),
        ("c1 c2 r2 r1 t", "assistant tool tool assistant", ""),
        ("c1 t", "assistant", "Called `x`:\n```json\n{}\n```\n\nt"),  # no result
        ("r1 t", "assistant", "`x` returned:\n```\n1\n```\n\nt"),  # of no call
        ("c1 r1 r1 t", "assistant tool assistant", ""),  # the second becomes text
        ("c1 r1", "assistant tool", ""),  # a question follows: an empty reply comes before it
    ],
)
def test_only_calls_with_results_are_calls(
    store: SessionStore, tmp_path: Path, blocks: str, roles: str, text: str
) -> None:
    made = {
        "c": lambda n: {"type": "tool_use", "id": n, "name": "x", "input": {}},
        "r": lambda n: {"type": "tool_result", "tool_use_id": n, "name": "x", "content": n},
        "t": lambda n: {"type": "text", "text": "t"},
    }
    found = claude()
    found["chat_messages"][2]["content"] = [made[block[0]](block[1:]) for block in blocks.split()]
    _, chat = imported(store, write(tmp_path / "conversations.json", [found]))
    middle = [turn.role for turn in chat.turns[1:-1]]
    assert middle == roles.split() + ["assistant"] * (middle[-1] != roles.split()[-1])
    assert chat.turns[1].text == text
    calls = [call.id for turn in chat.turns for call in turn.tool_calls]
    assert sorted(calls) == sorted(turn.tool_call_id for turn in chat.turns if turn.role == "tool")
    assert chat.turns[-1].role == "user"


def imported_again(store: SessionStore, path: Path) -> str:
    return str(store.import_foreign(path))


def test_what_is_missing_or_of_another_type_is_skipped(store: SessionStore, tmp_path: Path) -> None:
    """Formats are undocumented: a field that is not what it was costs that field, not the export."""
    odd = {
        "title": None, "create_time": "yesterday", "mapping": {
            "a": gpt_node("a", None, "user", content={"content_type": "text", "parts": [None, 3, {"text": "hi"}]}),
            "b": gpt_node("b", "a", "user", "again", recipient=7, metadata=[], create_time=float(1 << 60)),
            "c": {"message": "x", "parent": "b"}, "d": None,
            "e": gpt_node("e", "b", "assistant", content={"content_type": "new_2027", "blob": "x" * 200}),
        },
    }  # fmt: skip
    _, chat = imported(store, write(tmp_path / "conversations.json", odd))
    assert [(turn.role, turn.text) for turn in chat.turns] == [("user", "hi"), ("assistant", ""), ("user", "again")]
    assert chat.title == "hi"


def test_no_model_is_loaded_that_only_an_imported_chat_names(store: SessionStore, tmp_path: Path) -> None:
    store.import_foreign(write(tmp_path / "c.json", chatgpt(update_time=4e9)))
    assert store.sessions.last_model() is None
    store.sessions.create("own", replace(model(), name="mine"))
    store.import_foreign(write(tmp_path / "1.conversation.json", lm_studio(userLastMessagedAt=5e12)))
    last = store.sessions.last_model()
    assert last is not None
    assert last.name == "mine"


def test_titles_cannot_control_a_terminal(store: SessionStore, tmp_path: Path) -> None:
    title = "a\u202eb\x1b]0;x\x07\n\ud800" + "c" * 70_000
    _, chat = imported(store, write(tmp_path / "c.json", [chatgpt(title=title, default_model_slug="/etc\x1b")]))
    assert chat.title.startswith("a\ufffdb␛]0;x␇ \ufffdccc")
    assert len(chat.title) == 200


CIRCLE = {"a": gpt_node("a", "b", "user", "x"), "b": gpt_node("b", "a", "assistant", "y")}
BUSH = {str(n): gpt_node(str(n), None, "user", "x") for n in range(MAX_BRANCHES + 1)}
COMB = {
    "0": gpt_node("0", None, "user", "x"),
    **{str(n): gpt_node(str(n), str(n - 1), "user", "x") for n in range(1, 1000)},
    **{f"leaf {n}": gpt_node(f"leaf {n}", str(999 - n), "user", "x") for n in range(150)},
}


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", b" " * (3 << 20))
    return path


def deep(path: Path) -> Path:
    path.write_text("[" * 200_000)
    return path


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (
            lambda d: write(d / "c.json", [chatgpt(), chatgpt(id="2", conversation_id="2", mapping=CIRCLE)]),
            "in a circle",
        ),
        (lambda d: write(d / "c.json", [chatgpt(mapping=BUSH)]), "201 branches; at most 200"),
        (lambda d: write(d / "c.json", [chatgpt(mapping=COMB)]), "over 100,000 messages in its branches"),
        (lambda d: write(d / "c.json", [chatgpt(conversation_id="x" * 201)]), "it may have 200 printable characters"),
        (lambda d: write(d / "c.json", [chatgpt(conversation_id="a\u202eb")]), "it may have 200 printable characters"),
        (lambda d: write(d / "c.json", [chatgpt(), {"mapping": []}]), "chat 2 is none of ChatGPT's, Claude's"),
        (lambda d: write(d / "c.json", [chatgpt(), 5]), "chat 2 is none of ChatGPT's"),
        (lambda d: write(d / "c.json", [chatgpt(create_time=float("inf"))]), "Infinity is not a number"),
        (lambda d: write(d / "c.json", [chatgpt(create_time=10**400)]), "a number has hundreds of digits"),
        (lambda d: write(d / "c.json", []), "holds no chats"),
        (lambda d: deep(d / "c.json"), "nested too deeply"),
        (lambda d: bomb(d / "c.zip"), "over 1 MiB of text"),
        (lambda d: write_zip(d / "c.zip", {"../../conversations.json": [chatgpt()]}), "has no conversations.json"),
        (lambda d: write_zip(d / "c.zip", {"conversations.json": b"{\xff"}), "it is not UTF-8 at byte 1"),
        (lambda d: (d / "empty").mkdir() or d / "empty", "has no chats to import"),
    ],
)
def test_a_hostile_export_imports_nothing(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], rule: str
) -> None:
    monkeypatch.setattr(read, "MAX_TEXT", 1 << 20)
    with pytest.raises(StoreError, match=rule) as caught:
        store.import_foreign(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert store.list() == ()


def test_a_failure_in_the_middle_imports_nothing(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = imports._add, 0

    def failing(*args: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(imports, "_add", failing)
    path = write(tmp_path / "c.json", [chatgpt(), claude()])
    with pytest.raises(StoreError):
        store.import_foreign(path)
    assert store.list() == ()


@pytest.mark.parametrize("cut", [1, 40, -3])
def test_a_cut_export_is_refused(store: SessionStore, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps([chatgpt()])[:cut])
    with pytest.raises(StoreError, match=r"it must be JSON in UTF-8, and [^\n]*$"):
        store.import_foreign(path)
    assert store.list() == ()
