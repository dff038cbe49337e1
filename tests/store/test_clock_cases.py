"""A clock that jumps: no backup is pruned or left out for it, and the order of the chats stays that of their use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlxkv.cli.doctor import examine
from mlxkv.config import Folders
from mlxkv.store.db import backup
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from mlxkv.tui.state.lists.chat_list import group_text, sidebar_entries
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model

DAY = 86_400.0
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()


@dataclass
class FakeClock:
    now: float = NOON

    def time(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    fake = FakeClock()
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", fake.time)
        patched.setattr(time, "time_ns", fake.time_ns)
        yield fake
    monkeypatch.undo()
    time.tzset()


def use(folders: Folders, title: str) -> str:
    """Open the store as a start does, and say something in this chat."""
    with SessionStore.open(folders) as store:
        chat = next((c.id for c in store.list() if c.title == title), None) or store.sessions.create(title, model())
        store.load(chat)
        store.add_turn(chat, TurnRecord("user", f"at {time.time()}", (1,)))
        return chat


def titles(folders: Folders) -> list[str]:
    with SessionStore.open(folders) as store:
        return [c.title for c in store.list()]


def backups(folders: Folders) -> list[str]:
    SessionStore.open(folders).close()  # a start, and it waits for the backup
    return [b.name.removeprefix("mlxkv-") for b in backup.list_backups(folders.data)]


def name(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y%m%d}"


CASES = {  # where the clock jumps to, and where it is afterwards
    "60 days ahead, then right": (NOON + 60 * DAY, NOON + DAY),
    "a year ahead, then right": (NOON + 365 * DAY, NOON + DAY),
    "to the year 2500, then right": (NOON + 474 * 365.25 * DAY, NOON + DAY),
    "ahead, and the right time comes to there": (NOON + 60 * DAY, NOON + 61 * DAY),
    "back to 1970, then right": (0.0, NOON + DAY),
    "back to 1970, and it stays there": (0.0, DAY),
    "before the epoch, then right": (-30 * DAY, NOON + DAY),
    "back to a day that has a backup": (NOON - 2 * DAY, NOON - DAY),
    "a day on, twice": (NOON + DAY, NOON + 2 * DAY),
}


@pytest.mark.slow
@pytest.mark.parametrize(("jump", "after"), CASES.values(), ids=CASES)
def test_backups_whatever_the_clock_says(folders: Folders, clock: FakeClock, jump: float, after: float) -> None:
    days = [NOON - n * DAY for n in range(6, -1, -1)]
    for clock.now in days:
        use(folders, "every day")
        SessionStore.open(folders).close()
    made = backups(folders)
    assert made == [name(day) for day in reversed(days)]

    clock.now = jump
    use(folders, "while the clock was wrong")
    once = backups(folders)
    assert once[0].startswith(name(jump))  # made, and one has gone for it: the oldest
    assert once[1:] == made[:-1]
    assert backups(folders) == once  # nothing was said since

    clock.now = after
    use(folders, "every day")
    again = backups(folders)
    assert again[0].startswith(name(after))
    assert again[1:] == once[:-1]
    assert len(set(again)) == backup.KEEP
    copies = [c.num_chats for c in backup.list_backups(folders.data)]
    assert copies == [2, 2, 1, 1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("jump", "after"), CASES.values(), ids=CASES)
def test_the_order_of_the_chats_whatever_the_clock_says(
    folders: Folders, clock: FakeClock, jump: float, after: float
) -> None:
    use(folders, "first")
    use(folders, "second")
    clock.now = jump
    wrong = use(folders, "while the clock was wrong")
    clock.now = after
    last = use(folders, "second")
    with SessionStore.open(folders) as store:
        assert [c.title for c in store.list()] == ["second", "while the clock was wrong", "first"]
        assert store.sessions.latest() == last
        assert [hit.title for hit in store.sessions.search("at")][:1] == ["second"]
        forks = [store.fork(wrong) for _ in range(2)]
        clock.now = jump - DAY
        forks.append(store.fork(wrong))
        assert [b.session_id for b in store.tree(wrong)] == [wrong, *forks]
        assert [c.id for c in sorted(store.list(), key=lambda c: c.made)][-3:] == forks
        clock.now = after
        headings = [e.text for e in sidebar_entries(store.list(), "", None, after, 40) if not e.session_id]
    assert len(headings) == len(set(headings))  # no day twice
    assert headings[0] == group_text(after, after)


@pytest.mark.slow
@pytest.mark.parametrize(("jump", "after"), CASES.values(), ids=CASES)
def test_rows_go_in_the_order_of_use(folders: Folders, clock: FakeClock, jump: float, after: float) -> None:
    with SessionStore.open(folders) as store:
        talks = {}
        for title, clock.now in (("old", NOON), ("wrong", jump), ("new", after)):
            talks[title] = Talk(store, FakeCache(run=len(talks)), title)
            talks[title].cache.feed([len(talks)] * 3)  # rows of its own
            store.add_turn(talks[title].id, TurnRecord("user", "x", tuple(talks[title].cache.log)))
            talks[title].turn(90)
        used = store.disk_usage()
    gone = []
    for share in (0.9, 0.4):
        with SessionStore.open(folders, disk_limit=int(used * share)) as store:
            sizes = {c.title: store.disk_bytes(c.id) for c in store.list()}
            gone.append([title for title, size in sizes.items() if size < max(sizes.values())])
    assert gone == [["old"], ["wrong", "old"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("now", "order"),
    [
        (NOON, ["last", "imported", "first"]),
        (0.0, ["last", "imported", "first"]),
        (NOON + 90 * DAY, ["imported", "last", "first"]),
    ],
    ids=["of a clock ahead", "where the clock is behind", "truly newer"],
)
def test_an_imported_chat_of_the_future_is_not_the_last_one(
    folders: Folders, clock: FakeClock, tmp_path: Path, now: float, order: list[str]
) -> None:
    clock.now = NOON + 60 * DAY
    with SessionStore.open(Folders(*(tmp_path / name for name in "abcd"))) as other:
        chat = other.sessions.create("imported", model())
        other.add_turn(chat, TurnRecord("user", "x", (1,)))
        other.export_chat(chat, tmp_path / "chat.mlxkv")
    clock.now = min(now, NOON)
    for title in ("first", "last"):
        use(folders, title)
    clock.now = now
    with SessionStore.open(folders) as store:
        store.import_chat(tmp_path / "chat.mlxkv")
        assert [c.title for c in store.list()] == order
        assert store.load(str(store.sessions.latest())).title == order[0]


AHEAD = {
    "a chat": ("chat", NOON + 60 * DAY, "‘wrong’ is dated 2027-01-28, 60 days from today"),
    "a backup": ("backup", NOON + 60 * DAY, "the backup mlxkv-20270128 is dated 2027-01-28"),
    "a chat of tomorrow, east of here": ("chat", NOON + 0.9 * DAY, None),
    "a chat of the year 9999": ("chat", 253_402_214_399.0, "is dated 9999-12-30"),
    "none": ("chat", NOON - 60 * DAY, None),
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "then", "said"), AHEAD.values(), ids=AHEAD)
def test_doctor_says_that_the_clock_was_ahead(
    folders: Folders, clock: FakeClock, what: str, then: float, said: str | None
) -> None:
    if what == "backup":
        use(folders, "wrong")
    clock.now = then
    use(folders, "right") if what == "backup" else use(folders, "wrong")
    backups(folders)
    if what == "backup":
        with SessionStore.open(folders) as store, store._database.writing() as db:
            db.execute("UPDATE session SET updated = ?, created = ?", (NOON, NOON))
    clock.now = NOON
    found = [f for f in examine(folders) if f.subject == "clock"]
    assert [f.ok for f in found] == ([] if said is None else [True])
    for finding in found:
        assert "The clock was ahead" in finding.text
        assert said is not None
        assert said.replace("‘", "'").replace("’", "'") in finding.text


def test_doctor_says_that_the_clock_is_behind(folders: Folders, clock: FakeClock) -> None:
    use(folders, "right")
    clock.now = 1000.0
    found = [f for f in examine(folders) if f.subject == "clock"]
    assert [f.ok for f in found] == [False, True]
    assert "1970-01-01" in found[0].text
    assert "behind now" in found[1].text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("America/New_York", datetime(2026, 11, 1, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC)),
        ("Pacific/Kiritimati", datetime(2026, 10, 25, tzinfo=UTC)),
    ],
)
def test_one_backup_a_local_day_across_a_change_of_the_clocks(
    folders: Folders, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, zone: str, change: datetime
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    days = set()
    for hour in range(-12, 40, 4):
        clock.now = change.timestamp() + hour * 3600
        days.add(name(clock.now))
        use(folders, "chat")
        backups(folders)
    assert {b.name.removeprefix("mlxkv-") for b in backup.list_backups(folders.data)} == days


def test_a_file_dated_in_the_future_hides_no_change(folders: Folders, clock: FakeClock) -> None:
    use(folders, "chat")
    backups(folders)
    for path in folders.data.rglob("*"):
        os.utime(path, (NOON + 400 * DAY, NOON + 400 * DAY))
    clock.now = NOON + DAY
    assert backups(folders) == [name(NOON)]  # nothing was said
    use(folders, "chat")
    assert backups(folders) == [name(NOON + DAY), name(NOON)]


def test_what_a_crash_left_while_the_clock_was_ahead_is_swept(folders: Folders, clock: FakeClock) -> None:
    SessionStore.open(folders).close()
    left = [folders.cache / "kv" / "tmp" / ".mlxkv-1", folders.cache / "prompts" / ".mlxkv-2"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (NOON + 60 * DAY, NOON + 60 * DAY))
    SessionStore.open(folders).close()
    assert not any(map(Path.exists, left))
