"""Turns as they were said: order, compare-and-swap, locks, names, search, deletion."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxkv.config import Folders
from mlxkv.errors import CorruptError, SessionChangedError, SessionLockedError, SessionNotFoundError, StoreError
from mlxkv.store.records import Attachment, ToolCall, TurnRecord
from mlxkv.store.session_store import SessionStore
from mlxkv.store.ulid import is_ulid, new_ulid
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model


def test_a_session_comes_back_as_it_was(store: SessionStore, folders: Folders) -> None:
    session = store.sessions.create("sky", model(), system="be brief", params={"window": 64})
    store.add_turn(session, TurnRecord("user", "why is the sky blue?\0 ☃", (1, 2, 3), params={"temperature": 0.5}))
    head = store.add_turn(
        session, TurnRecord("assistant", "scattering", (4, 5), thinking="hm", stats={"decode_tps": 3.5, "n": None})
    )
    with SessionStore.open(folders) as other:
        record = other.load(session)
    assert is_ulid(session)
    assert (record.title, record.system, record.params) == ("sky", "be brief", {"window": 64})
    assert record.model == model()
    assert (record.log, record.head) == ((1, 2, 3, 4, 5), head)
    assert [t.start for t in record.turns] == [0, 3]
    assert record.turns[0].text == "why is the sky blue?\0 ☃"
    assert record.turns[1].stats == {"decode_tps": 3.5, "n": None}
    assert record.turns[1].thinking == "hm"


def test_a_turn_with_a_smaller_start_rewrites_the_log(store: SessionStore) -> None:
    session = store.sessions.create("x", model())
    store.add_turn(session, TurnRecord("user", "a", (1, 2, 3)))
    store.add_turn(session, TurnRecord("user", "b", (8, 9), start=1))
    assert store.load(session).log == (1, 8, 9)
    for start in (4, -1):
        with pytest.raises(StoreError, match="start"):
            store.add_turn(session, TurnRecord("user", "c", (1,), start=start))
    for ids in ((-1,), (1 << 31,)):
        with pytest.raises(StoreError, match="token id"):
            store.add_turn(session, TurnRecord("user", "c", ids))
    assert len(store.load(session).turns) == 2


def test_the_last_turns_can_be_removed_as_if_they_had_never_been(store: SessionStore, folders: Folders) -> None:
    session = store.sessions.create("x", model())
    heads = [
        store.add_turn(session, TurnRecord(role, text, ids))
        for role, text, ids in (("user", "hello", (1, 2)), ("assistant", "there", (3,)), ("user", "zebra", (4, 5)))
    ]
    before = store.load(session)
    with SessionStore.open(folders) as other:
        other.load(session)
        store.remove_last(session, 2)
        with pytest.raises(SessionChangedError):
            other.add_turn(session, TurnRecord("user", "late", (9,)))
        record = other.load(session)
    assert (record.head, record.log, record.turns) == (heads[1], (1, 2, 3), before.turns[:2])
    assert store.sessions.search("zebra") == ()
    assert store.sessions.search("there")
    store.remove_last(session, 5)  # there are no more
    assert store.add_turn(session, TurnRecord("user", "zebra", (4, 5))) == heads[2]
    store.remove_last(session, 0)
    assert store.load(session).turns == ()
    assert store.verify().ok


def test_an_open_reply_grows_in_place(store: SessionStore) -> None:
    session = store.sessions.create("x", model())
    store.add_turn(session, TurnRecord("user", "hello", (1, 2)))
    store.add_turn(session, TurnRecord("assistant", "gre", (3,), state="open"))
    store.update_open_turn(session, TurnRecord("assistant", "greetings", (3, 4), state="open"))
    store.update_open_turn(session, TurnRecord("assistant", "greetings friend", (3, 4, 5)))
    record = store.load(session)
    assert (record.log, record.turns[1].text, record.turns[1].state) == ((1, 2, 3, 4, 5), "greetings friend", "done")
    assert [hit.turn for hit in store.sessions.search("greetings")] == [1]
    with store._database.reading() as db:  # words of before are in the index no more
        assert db.execute("SELECT count(*) FROM turn_fts WHERE turn_fts MATCH 'gre'").fetchone()[0] == 0
    with pytest.raises(StoreError, match="finished"):
        store.update_open_turn(session, TurnRecord("assistant", "x"))


def test_a_reply_is_never_appended_to_another_history(store: SessionStore, folders: Folders) -> None:
    session = store.sessions.create("x", model())
    head = store.add_turn(session, TurnRecord("user", "a", (1,)))
    with SessionStore.open(folders) as other:
        other.load(session)
        other.add_turn(session, TurnRecord("user", "b", (2,)))
    for explicit in (None, head):
        with pytest.raises(SessionChangedError):
            store.add_turn(session, TurnRecord("assistant", "to a", (3,)), head=explicit)
        with pytest.raises(SessionChangedError):
            store.update_open_turn(session, TurnRecord("assistant", "to a", (3,)), head=explicit)
    assert [t.text for t in store.load(session).turns] == ["a", "b"]
    store.add_turn(session, TurnRecord("assistant", "to b", (3,)))  # it was loaded again


@pytest.mark.slow
def test_the_lock_of_another_process_names_it_and_dies_with_it(store: SessionStore, folders: Folders) -> None:
    session = store.sessions.create("x", model())
    code = (
        "import sys; from mlxkv.config import Folders; from mlxkv.store.session_store import SessionStore\n"
        "with SessionStore.open(Folders.from_env()) as store, store.lock(sys.argv[1]):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, session], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        for action in (lambda: store.lock(session).__enter__(), lambda: store.delete(session)):
            with pytest.raises(SessionLockedError, match=f"process {child.pid};"):
                action()
        child.kill()
    with store.lock(session):
        with pytest.raises(SessionLockedError):
            store.lock(session).__enter__()
        store.delete(session)
    assert store.list() == ()
    with pytest.raises(SessionNotFoundError):
        store.lock("../../etc").__enter__()


def test_find_takes_ids_and_titles_and_lists_the_candidates(store: SessionStore) -> None:
    with pytest.raises(SessionNotFoundError, match="none yet"):
        store.sessions.find("sky")
    sky, sea, again = (store.sessions.create(title, model()) for title in ("Blue sky", "Deep sea", "Blue whale"))
    assert store.sessions.find(sky) == sky
    assert store.sessions.find(sea.lower()) == sea
    assert store.sessions.find("Blue sky") == sky
    assert store.sessions.find("SEA") == sea
    for text in ("blue", sky[:4]):
        with pytest.raises(SessionNotFoundError) as caught:
            store.sessions.find(text)
        assert all(chat[:10] in str(caught.value) for chat in (sky, again))
    store.sessions.rename(sea, "Blue\x1b[31m")
    with pytest.raises(SessionNotFoundError) as caught:
        store.sessions.find("blue")
    assert "\x1b" not in str(caught.value)
    assert store.sessions.find("Blue sky") == sky
    with pytest.raises(SessionNotFoundError):
        store.sessions.rename(new_ulid(), "x")


def test_the_list_is_newest_first(talk: Talk) -> None:
    other = talk.store.sessions.create("other", model("second"))
    talk.turn(50)
    first, second = talk.store.list()
    assert (first.id, first.num_turns, first.model, first.kv_bytes) == (talk.id, 2, "fake", talk.bytes_written)
    assert (second.id, second.num_turns, second.model, second.kv_bytes) == (other, 0, "second", 0)
    assert talk.store.sessions.latest() == talk.id
    talk.store.sessions.set_model(other, model("third"))
    assert talk.store.load(other).model.name == "third"


def test_search_takes_anything_a_user_types(store: SessionStore) -> None:
    session = store.sessions.create("sky", model())
    store.add_turn(session, TurnRecord("user", "why is the sky blue", (1,)))
    store.add_turn(session, TurnRecord("assistant", "rayleigh scattering", (2,), thinking="a hidden thought"))
    assert [(h.session_id, h.turn, h.snippet, h.marks) for h in store.sessions.search("Sky bl")] == [
        (session, 0, "why is the sky blue", ((11, 14), (15, 19)))
    ]
    assert [h.turn for h in store.sessions.search("hidden")] == [1]
    for text in ("", '"', "sky AND", "NEAR(", "text:sky*", "-sky", "'; DROP TABLE turn; --", "*", "\0"):
        store.sessions.search(text)
    fork = store.fork(session, 1)
    assert {h.session_id for h in store.sessions.search("sky")} == {session, fork}


def test_deleting_leaves_no_word_behind(store: SessionStore, folders: Folders) -> None:
    keep = Talk(store, FakeCache(), "keep")
    gone = store.sessions.create("gone", model(), system="besystemish")
    fork_of_gone = store.sessions.create("child", model(), parent=gone, forked_at=0)
    store.add_turn(gone, TurnRecord("user", "xylophonic", (1,), thinking="quetzalcoatl"))
    store.delete(gone)
    assert store.load(fork_of_gone).parent is None
    assert store.load(keep.id).turns == ()
    assert store.sessions.search("xylophonic") == ()
    store.close()
    data = b"".join(p.read_bytes() for p in folders.data.rglob("*") if p.is_file())
    for word in (b"xylophonic", b"quetzalcoatl", b"besystemish"):
        assert word not in data
    with SessionStore.open(folders) as again, pytest.raises(SessionNotFoundError):
        again.load(gone)


def test_lone_surrogates_do_not_stop_a_turn(store: SessionStore) -> None:
    session = store.sessions.create("x", model())
    store.add_turn(session, TurnRecord("user", "a\udcffb", (1,)))
    assert store.load(session).turns[0].text == "a\ufffdb"


def test_the_database_has_the_settings_of_the_design(real_disk: None, store: SessionStore, folders: Folders) -> None:
    for pragma, value in {
        "journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "secure_delete": 1, "foreign_keys": 1,
        "trusted_schema": 0,
    }.items():  # fmt: skip
        assert store._database.db.execute(f"PRAGMA {pragma}").fetchone()[0] == value
    db = sqlite3.connect(folders.data / "mlxkv.db")
    assert db.execute("PRAGMA application_id").fetchone()[0] == int.from_bytes(b"mlxk", "big")
    assert db.execute("PRAGMA user_version").fetchone()[0] == 3
    db.close()


def test_a_reader_never_sees_half_a_change(store: SessionStore, folders: Folders) -> None:
    """Three separate SELECTs reported false corruption under a concurrent writer."""
    session = store.sessions.create("x", model())
    with SessionStore.open(folders) as other:
        other.load(session)
        for n in range(40):
            with store._database.reading() as db:
                db.execute("SELECT head FROM session").fetchone()  # the snapshot begins here
                other.add_turn(session, TurnRecord("user", str(n), (n,)))
                assert len(store.sessions.history(db, session).turns) == n


CLOCK = "2026-11-29T23:58:12+01:00"


def test_what_a_session_is_made_with_comes_back_and_a_fork_has_it_too(store: SessionStore, folders: Folders) -> None:
    plain = store.sessions.create("plain", model())
    session = store.sessions.create(
        "x", model(), kind="endpoint", clock=CLOCK, settings={"temp": 0.5}, preset="mine", origin="claude:1", seed=7
    )
    call = ToolCall("weather", '{"town": "Porto"}', "call-1")
    turns = [
        TurnRecord("user", "a.txt: hi", (1,), attachments=(Attachment("a.txt", start=7, end=9), Attachment("b.png"))),
        TurnRecord("assistant", "", (2,), tool_calls=(call,)),
        TurnRecord("tool", "sunny", (3,), tool_call_id="call-1"),
    ]
    for turn in turns:
        store.add_turn(session, turn)
    fork = store.fork(session, 3)
    with SessionStore.open(folders) as other:
        record, copy, bare = other.load(session), other.load(fork), other.load(plain)
        assert other.verify().problems == ()
    assert (record.kind, record.clock, record.settings, record.preset) == ("endpoint", CLOCK, {"temp": 0.5}, "mine")
    assert (record.origin, record.seed) == ("claude:1", 7)
    assert [replace(turn, start=None) for turn in record.turns] == turns
    assert copy.turns == record.turns
    kept = ("kind", "clock", "settings", "preset", "seed")
    assert all(getattr(copy, name) == getattr(record, name) for name in kept)
    assert copy.origin is None  # it is not what was imported
    assert (bare.kind, bare.clock, bare.settings, bare.preset, bare.seed) == ("chat", None, {}, None, None)


@pytest.mark.parametrize(
    "wrong",
    [{"clock": "today"}, {"clock": "2026-11-29T23:58:12"}, {"clock": "2026-02-30T23:58:12+01:00"}, {"kind": "x"},
     {"seed": -1}, {"seed": 1 << 63}, {"seed": 1.0}],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused(store: SessionStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="bug"):
        store.sessions.create("x", model(), **wrong)
    assert store.list() == ()


def test_a_title_has_an_end(store: SessionStore) -> None:
    most = 1 << 16
    session = store.sessions.create("x" * (most + 1), model())
    assert store.load(session).title == "x" * (most - 1) + "…"
    assert len(store.load(store.fork(session, 0)).title) <= most
    store.sessions.rename(session, "half \udcff")
    assert store.load(session).title == "half \ufffd"
    assert store.load(store.sessions.create("a", model(), system="half \udcff")).system == "half \ufffd"


def test_chats_are_ordered_whatever_the_clock_says(
    store: SessionStore, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop woke with sixty days too much: the next message with `-c` went into the chat dated in the future."""
    now, at = time.time(), [0.0]
    monkeypatch.setattr("mlxkv.store.db.sessions.time.time", lambda: now + at[0])
    names = {}
    for name, ahead in (("first", 0.0), ("ahead", 60 * 86400.0), ("after", 1.0)):
        at[0] = ahead
        names[store.sessions.create(name, model())] = name

    def listed() -> list[str]:
        return [chat.title for chat in store.list()]

    assert listed() == ["after", "ahead", "first"]
    ids = {name: session for session, name in names.items()}
    assert store.sessions.latest() == ids["after"]
    store.add_turn(ids["first"], TurnRecord("user", "word", (1,)))
    assert listed() == ["first", "after", "ahead"]
    store.sessions.rename(ids["ahead"], "ahead")  # changes nothing that was said
    assert store.sessions.latest() == ids["first"]
    store.delete(ids["first"])
    fork = store.fork(ids["ahead"], 0)
    assert store.sessions.latest() == fork
    store.add_turn(ids["after"], TurnRecord("user", "word", (1,)))
    store.add_turn(fork, TurnRecord("user", "word", (1,)))
    assert [hit.session_id for hit in store.sessions.search("word")] == [fork, ids["after"]]
    assert listed() == ["ahead (2)", "after", "ahead"]
    with SessionStore.open(folders) as other:
        assert [chat.title for chat in other.list()] == listed()


def test_an_imported_chat_stands_where_its_date_belongs(store: SessionStore, tmp_path: Path) -> None:
    """What was said here last stays what `-c` goes on with."""
    old, path = (
        store.sessions.create("old", model(), params={"cache": {}, "sampling": {}, "think": None}),
        tmp_path / "x.mlxkv",
    )
    store.export_chat(old, path)
    store.sessions.create("middle", model())
    newest = store.sessions.create("newest", model())
    imported = store.import_chat(path).session_id
    assert store.sessions.latest() == newest
    assert [chat.title for chat in store.list()] == ["newest", "middle", "old", "old"]
    store.add_turn(imported, TurnRecord("user", "on", (1,)))
    assert store.sessions.latest() == imported


def test_a_damaged_number_leads_no_order_astray(store: SessionStore, folders: Folders) -> None:
    first, second = store.sessions.create("first", model()), store.sessions.create("second", model())
    with closing(sqlite3.connect(folders.data / "mlxkv.db")) as db:
        db.execute(f"UPDATE session SET seq = {(1 << 63) - 1} WHERE id = ?", (second,))
        db.commit()
    store.add_turn(first, TurnRecord("user", "on", (1,)))
    assert [chat.seq for chat in store.list()] == [(1 << 63) - 1, 2]
    store.add_turn(second, TurnRecord("user", "on", (1,)))
    assert [chat.seq for chat in store.list()] == [3, 2]


def test_an_extra_that_was_forged_is_noticed(store: SessionStore, folders: Folders) -> None:
    session = store.sessions.create("x", model())
    store.add_turn(session, TurnRecord("user", "hi", (1,)))
    store.add_turn(session, TurnRecord("user", "hi", (1,), attachments=(Attachment("a.txt"),)))
    for where, value in ((0, '{"tool_call_id":"x"}'), (1, ""), (1, '{"tool_call_id":"x"}')):
        with closing(sqlite3.connect(folders.data / "mlxkv.db")) as db:
            (before,) = db.execute("SELECT extra FROM turn WHERE i = ?", (where,)).fetchone()
            db.execute("UPDATE turn SET extra = ? WHERE i = ?", (value, where))
            db.commit()
            with pytest.raises(CorruptError, match=f"Turn {where + 1}"):
                store.load(session)
            db.execute("UPDATE turn SET extra = ? WHERE i = ?", (before, where))
            db.commit()
    assert len(store.load(session).turns) == 2


def test_the_last_turn_is_replaced_at_once_or_not_at_all(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session = store.sessions.create("a", model())
    for text, ids in (("one", (1, 2)), ("two", (3, 4))):
        store.add_turn(session, TurnRecord("user", text, ids))
    before = store.load(session)
    with monkeypatch.context() as patch:
        patch.setattr(store.sessions, "write_turn", lambda *_: 1 / 0)  # after the old one is gone
        with pytest.raises(ZeroDivisionError):
            store.replace_last(session, TurnRecord("user", "three", (5,)))
    assert store.load(session) == before
    store.replace_last(session, TurnRecord("user", "three", (9, 5), 1))
    store.add_turn(session, TurnRecord("assistant", "four", (6,)))
    after = store.load(session)
    assert ([turn.text for turn in after.turns], after.log) == (["one", "three", "four"], (1, 9, 5, 6))
    assert store.verify().problems == ()
