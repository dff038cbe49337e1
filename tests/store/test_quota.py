"""One hard limit over the cache folder: `du` stays under it after every operation; what is missed least goes first, and
what a user made by name never.

10,000 random operations with MLXKV_THOROUGH=1 and `du` itself after each; 600 in CI, and `du` after every tenth.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from mlxkv.config import Folders, private_folder
from mlxkv.errors import StoreError
from mlxkv.store.kv.quota import BLOCK
from mlxkv.store.prompts.folder import PromptFolder
from mlxkv.store.prompts.kv_file import write_prompt_file
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model
from tests.thorough import THOROUGH

OPERATIONS = 10_000 if THOROUGH else 600
LIMIT = 400_000


def du(folders: Folders) -> int:
    """As `du` itself says."""
    out = subprocess.run(["du", "-s", "-B1", str(folders.cache)], capture_output=True, text=True, check=True)
    return int(out.stdout.split()[0])


def saved(store: SessionStore, title: str, num: int, window: int | None = None) -> Talk:
    talk = Talk(store, FakeCache(window), title)
    feed(talk, num)
    return talk


def feed(talk: Talk, num: int) -> str | None:
    """A turn of `num` tokens of the chat's own; the notice of saving it."""
    start = len(talk.cache.tokens) + 1_000_000 * (1 + sum(map(ord, talk.title)))
    ids = tuple(range(start, start + num))
    talk.store.add_turn(talk.id, TurnRecord("user", "x", ids))
    talk.cache.feed(ids)
    return talk.store.commit_kv(talk.id, talk.cache, model()).notice


def back(talk: Talk, window: int | None = None) -> int:
    return talk.store.restore_kv(talk.id, FakeCache(window), model(), talk.cache.tokens).tokens


def save_named(store: SessionStore, folders: Folders, name: str, num: int) -> Path:
    """A prompt cache of `num` tokens, as `PromptCache.save` writes it."""
    cache = FakeCache()
    cache.feed(range(num))
    path = private_folder(folders.cache / "prompts") / f"{name}.kv"
    with store.saving_named(path) as check_size:
        write_prompt_file(path, cache, model(), check_size=check_size)
    return path


def named(folders: Folders) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folders.cache / "prompts").glob("*") if path.is_file()}


@pytest.mark.slow
def test_the_limit_holds_after_every_operation(folders: Folders, tmp_path: Path) -> None:
    rng = random.Random(5)
    talks: list[Talk] = []
    books: dict[str, bytes] = {}  # what was made by name, and is there until it is removed
    kinds = [
        "new",
        "turn",
        "turn",
        "turn",
        "turn",
        "back",
        "fork",
        "delete",
        "junk",
        "damage",
        "reopen",
        "book",
        "unbook",
    ]
    worst, used, restored, refused = 0, 0, 0, 0
    store = SessionStore.open(folders, disk_limit=LIMIT)
    kv = folders.cache / "kv"
    for n in range(OPERATIONS):
        kind = rng.choice(kinds)
        talk = rng.choice(talks) if talks else None
        if kind == "book":
            name, there = f"b{rng.randrange(6)}", {path: path.stat() for path in kv.glob("*/*")}
            try:
                path = save_named(store, folders, name, rng.randrange(1, 800))
                books[path.name] = path.read_bytes()
            except StoreError:
                refused += 1
                assert {path: path.stat() for path in kv.glob("*/*")} == there
        elif kind == "unbook":
            if books:
                name = rng.choice(sorted(books))
                PromptFolder(folders).remove(folders.cache / "prompts" / name)
                del books[name]
        elif kind == "new" or talk is None:
            if len(talks) < 12:
                talks.append(saved(store, f"t{n}", rng.randrange(1, 120), rng.choice([None, 32, 64])))
        elif kind == "turn":
            with store.lock(talk.id):
                feed(talk, rng.randrange(1, 150))
        elif kind == "back":
            fresh = FakeCache(talk.cache.settings["window"], run=1)
            tokens = store.restore_kv(talk.id, fresh, model(), talk.cache.tokens).tokens
            restored += tokens > 0
            straight = FakeCache(talk.cache.settings["window"])
            straight.feed(talk.cache.tokens[:tokens])
            assert fresh.state() == straight.state()
        elif kind == "fork":
            store.delete(store.fork(talk.id, rng.randrange(len(store.load(talk.id).turns) + 1)))
        elif kind == "delete" or len(talk.cache.tokens) > 1500:
            talks.remove(talk)
            store.delete(talk.id)
        elif kind == "junk":
            left = folders.cache / rng.choice(["kv/tmp/left", "prompts/.mlxkv-left"])
            left.parent.mkdir(exist_ok=True)
            left.with_name(f"{left.name}{n}").write_bytes(bytes(rng.randrange(9000)))
        elif kind == "damage":
            if chunks := sorted(kv.glob("??/*.safetensors")):
                rng.choice(chunks).write_bytes(b"bad")
        elif kind == "reopen":
            store.close()
            store = SessionStore.open(folders, disk_limit=LIMIT)
            for other in talks:
                other.store = store
        before, used = used, store.disk_usage()
        if THOROUGH or n % 10 == 0:
            assert used == du(folders)
            assert {name: data for name, data in named(folders).items() if not name.startswith(".")} == books
        if kind != "junk":  # that was not us, and a save for which there is no room leaves it there
            assert used <= max(LIMIT, before), (n, kind, used)
        worst = max(worst, used)
    evicted = store.num_bytes_written() - used
    store.close()
    print(
        f"{OPERATIONS} operations, at most {worst:,} of {LIMIT:,} bytes on disk, {restored} chats came back,"
        f" {refused} prompt caches refused"
    )
    assert evicted > LIMIT
    assert restored > OPERATIONS / 40
    assert refused > OPERATIONS / 200


def test_rows_of_chats_go_for_a_named_cache_but_never_those_of_an_open_one(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=400_000) as store:
        talks = [saved(store, name, 150) for name in ("old", "open", "new")]
        with store.lock(talks[1].id):
            save_named(store, folders, "book", 700)  # 180 kB: one of the three has to go
            assert [back(talk) for talk in talks] == [pytest.approx(0, abs=140), 150, 150]
            assert back(talks[0]) < 150
            save_named(store, folders, "more", 250)
            assert back(talks[1]) == 150
            assert back(talks[2]) < 150
        assert store.disk_usage() == du(folders) <= 400_000
        assert {*named(folders)} == {"book.kv", "more.kv"}


@pytest.mark.parametrize(("num", "others"), [(2000, False), (700, True)])
def test_a_named_cache_that_cannot_fit_is_refused_and_nothing_changes(folders: Folders, num: int, others: bool) -> None:
    """By itself larger than the limit, or beside other named ones and a chat that is open."""
    with SessionStore.open(folders, disk_limit=400_000) as store:
        old, now = saved(store, "old", 100), saved(store, "open", 200)
        if others:
            save_named(store, folders, "other", 400)
        before = {path: path.stat() for path in folders.cache.rglob("*") if path.is_file()}
        with store.lock(now.id), pytest.raises(StoreError, match="`disk_limit`") as caught:
            save_named(store, folders, "book", num)
        said = str(caught.value)
        assert said.startswith("The prompt cache 'book' takes ")
        assert "disk limit of 400 kB" in said
        assert "\n" not in said
        assert ("other named ones" in said) == ("open chats" in said) == ("cache rm" in said) == others
        assert {path: path.stat() for path in folders.cache.rglob("*") if path.is_file()} == before
        assert (back(old), back(now)) == (100, 200)


def test_what_is_refused_at_the_very_limit_has_cost_nothing(folders: Folders) -> None:
    """10,000 operations found it: folders that stay, and files of others', were taken for room that could be made."""
    kv = folders.cache / "kv"
    with SessionStore.open(folders, disk_limit=300_000) as store:
        saved(store, "x", 150)
        (kv / "quarantine").mkdir()
        (kv / "left by the system").write_bytes(bytes(20_000))
        fits = []
        for size in range(220_000, 300_000, BLOCK):
            before = sorted(kv.glob("??/*"))
            assert before
            said = None
            with store.saving_named(private_folder(folders.cache / "prompts") / "book.kv") as check_size:
                try:
                    check_size(size)
                except StoreError as error:
                    said = str(error)
            fits.append(said is None)
            if said is None:
                assert du(folders) + size <= 300_000
                saved(store, f"again {size}", 150)
            else:
                assert "fit the disk limit" in said
                assert sorted(kv.glob("??/*")) == before
    assert fits == sorted(fits, reverse=True)
    assert {*fits} == {True, False}


@pytest.mark.slow
def test_a_named_cache_is_never_evicted_for_a_chat(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=300_000) as store:
        save_named(store, folders, "book", 700)
        book = named(folders)
        talk = Talk(store, FakeCache(), "large")
        notices = [notice for _ in range(5) if (notice := feed(talk, 120))]
        assert len(notices) == 1
        assert "of which named prompt caches take 1" in notices[0]
        assert 0 < back(talk) < 600
        assert named(folders) == book
        assert du(folders) <= 300_000
    with SessionStore.open(folders, disk_limit=100_000) as store:  # it stays, and so nothing else does
        assert named(folders) == book
        assert not list((folders.cache / "kv").glob("??/*"))
        talk.store = store
        assert (feed(talk, 10) or "").startswith("Nothing of this chat's KV cache fits")
        assert len(store.load(talk.id).turns) == 6


def test_what_was_left_beside_the_named_ones_goes_before_rows_do(folders: Folders) -> None:
    prompts = private_folder(folders.cache / "prompts")
    (prompts / "damaged").mkdir()
    with SessionStore.open(folders, disk_limit=200_000) as store:
        talk = saved(store, "x", 150)
        for path in (prompts / "damaged" / "book.kv.1", prompts / ".mlxkv-left"):
            path.write_bytes(bytes(60_000))
        save_named(store, folders, "book", 200)
        assert {*named(folders)} == {"book.kv"}
        assert not list((prompts / "damaged").iterdir())
        assert back(talk) == 150
        for path, age in ((prompts / ".mlxkv-old", 7200), (prompts / ".mlxkv-new", 0)):
            path.write_bytes(b"x")
            os.utime(path, (time.time() - age, time.time() - age))
    SessionStore.open(folders, disk_limit=300_000).close()
    assert {*named(folders)} == {"book.kv", ".mlxkv-new"}


def test_where_a_file_lies_decides_whether_it_counts(folders: Folders, tmp_path: Path) -> None:
    cache = FakeCache()
    cache.feed(range(300))
    prompts = private_folder(folders.cache / "prompts")
    (tmp_path / "link").symlink_to(prompts)
    with SessionStore.open(folders, disk_limit=60_000) as store:
        for path, counts in (
            (tmp_path / "book.kv", False),
            (prompts / ".." / ".." / "book.kv", False),
            (prompts / "book.kv", True),
            (tmp_path / "link" / "book.kv", True),
        ):
            with pytest.raises(StoreError) if counts else nullcontext(), store.saving_named(path) as check_size:
                write_prompt_file(path, cache, model(), check_size=check_size)
            assert path.exists() != counts
        with store.saving_named(tmp_path / "x"), store.saving_named(tmp_path / "y"):
            pass  # who saves elsewhere waits for nobody


@pytest.mark.slow
def test_rows_that_left_the_window_go_first_then_the_chat_that_rests_longest(folders: Folders) -> None:
    """The limit goes down step by step: at each the chats that come back whole are noted."""
    with SessionStore.open(folders, disk_limit=None) as store:
        old = saved(store, "old", 100)
        wrapped = saved(store, "wrapped", 40, window=32)
        for _ in range(6):
            feed(wrapped, 40)
        new = saved(store, "new", 100)
        used = store.disk_usage()
    seen = []
    for limit in range(used, 0, -20_000):
        with SessionStore.open(folders, disk_limit=limit) as store:
            assert store.disk_usage() <= limit
            whole = []
            for talk, window in ((old, None), (wrapped, 32), (new, None)):
                talk.store = store
                whole += [talk.title] if back(talk, window) == len(talk.cache.tokens) else []
            seen.append(whole)
    steps = [whole for whole, before in zip(seen, [[], *seen], strict=False) if whole != before]
    assert steps == [["old", "wrapped", "new"], ["wrapped", "new"], ["new"], []]
    assert seen.count(["old", "wrapped", "new"]) > 2  # what left the window is worth more than a step


def test_of_a_chat_the_end_goes_first_so_that_its_beginning_is_of_use(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=None) as store:
        talk = saved(store, "x", 10)
        for _ in range(6):
            feed(talk, 80)
        used = store.disk_usage()
    with SessionStore.open(folders, disk_limit=used - 60_000) as store:
        talk.store = store
        assert 100 < back(talk) < 490


@pytest.mark.slow
def test_a_chat_that_is_open_anywhere_keeps_its_rows(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=200_000) as store:
        talk = saved(store, "open", 150)
        with store.lock(talk.id), SessionStore.open(folders, disk_limit=200_000) as other:  # as another process would
            for n in range(8):
                saved(other, f"other{n}", 100)
            assert back(talk) == 150
        for n in range(8, 16):
            saved(store, f"other{n}", 100)
        assert back(talk) < 150


@pytest.mark.parametrize("window", [None, 400])
def test_a_chat_larger_than_the_limit_saves_what_fits_and_says_so_once(folders: Folders, window: int | None) -> None:
    with SessionStore.open(folders, disk_limit=150_000) as store:
        talk = Talk(store, FakeCache(window), "large")
        notices = [feed(talk, 200) for _ in range(6)]
        (said,) = [notice for notice in notices if notice]
        assert "disk limit" in said
        assert "`disk_limit`" in said
        assert store.disk_usage() <= 150_000
        fresh = FakeCache(window, run=1)
        restored = store.restore_kv(talk.id, fresh, model(), talk.cache.tokens)
        straight = FakeCache(window)
        straight.feed(talk.cache.tokens[: restored.tokens])
        assert fresh.state() == straight.state()
        assert restored.tokens > 100


def test_a_limit_of_nothing_saves_nothing_and_loses_nothing(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=0) as store:
        talk = Talk(store, FakeCache(), "none")
        assert feed(talk, 50)
        assert feed(talk, 50) is None  # said once
        assert back(talk) == 0
        assert len(store.load(talk.id).turns) == 2
        assert not list((folders.cache / "kv").glob("??/*"))


def test_the_setting_is_gone_by_whoever_opens_the_store(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    with SessionStore.open(folders) as store:
        saved(store, "x", 100)
        assert store.disk_usage() > 50_000
    monkeypatch.setenv("MLXKV_DISK_LIMIT", "0.00005")
    with SessionStore.open(folders) as store:
        assert store.disk_usage() <= 50_000


def test_bytes_written_are_counted_for_each_chat_and_for_ever(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=None) as store:
        first, second = saved(store, "one", 100), saved(store, "two", 60)
        counts = [store.num_bytes_written(talk.id) for talk in (first, second)]
        assert all(counts)
        store.delete(first.id)
        assert store.num_bytes_written(first.id) == 0
    with SessionStore.open(folders) as store:
        assert store.num_bytes_written() == sum(counts)
        assert store.num_bytes_written(second.id) == counts[1]


def test_the_kv_folder_may_vanish_and_the_limit_still_holds(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=300_000) as store:
        talk = saved(store, "x", 100)
        shutil.rmtree(folders.cache / "kv")
        feed(talk, 100)
        assert back(talk) == 200
        assert store.disk_usage() <= 300_000
