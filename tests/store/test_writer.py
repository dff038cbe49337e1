"""The writer thread: order, one save at a time for each chat, failures told later, nothing of the live cache held."""

from __future__ import annotations

import subprocess
import sys
import threading

import mlx.core as mx
import pytest

from mlxkv.config import Folders
from mlxkv.errors import SessionLockedError, StoreError
from mlxkv.store.db.database import Database
from mlxkv.store.kv.chunk_format import EncodedChunk
from mlxkv.store.kv.writer import MAX_WAITING, Job
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model


class Gate:
    """Holds the writer thread at a step until it is opened."""

    def __init__(self, step: str) -> None:
        self.step, self.opened, self.reached = step, threading.Event(), threading.Event()
        self.closed = True
        self.fails: OSError | None = None

    def __call__(self, step: str) -> None:
        if threading.current_thread().name == "mlxkv-writer" and step == self.step and self.closed:
            self.reached.set()
            assert self.opened.wait(60)
            if self.fails:
                raise self.fails


def say(talk: Talk, n: int) -> None:
    start = len(talk.cache.tokens)
    ids = tuple(range(start + 1, start + 1 + n))
    talk.store.add_turn(talk.id, TurnRecord("user", f"q{start}", ids))
    talk.cache.feed(ids)


def test_a_chat_goes_on_while_its_rows_are_written(folders: Folders) -> None:
    gate = Gate("fsync")
    with SessionStore.open(folders, gate) as store:
        talk = Talk(store, FakeCache(64))
        say(talk, 100)
        done = store.save_kv(talk.id, talk.cache, model(), rng=b"1")
        assert gate.reached.wait(60)
        assert (done.pos, done.notice) == (100, None)
        assert done.bytes_written == store.disk_bytes(talk.id) > 0
        want = talk.cache.state()
        say(talk, 50)  # a turn is durable, and the ring moves on, while the rows of before wait
        assert len(store.load(talk.id).turns) == 2
        gate.opened.set()
        assert store.flush(talk.id) is None
        assert store.num_bytes_written(talk.id) == done.bytes_written
        fresh = FakeCache(64, run=1)
        assert store.restore_kv(talk.id, fresh, model(), talk.cache.tokens).tokens == 100
        assert fresh.state() == want


class Ticks:
    """A clock on which every look takes a while."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.mark.parametrize(("step", "is_told"), [(0.5, True), (1e-6, False)])
def test_a_save_that_takes_longer_than_a_blink_says_how_far_it_is(folders: Folders, step: float, is_told: bool) -> None:
    with SessionStore.open(folders) as store:
        told: list[tuple[int, int]] = []
        store.progress.tell = lambda done, total: told.append((done, total))
        store.progress._clock = Ticks(step)
        talk = Talk(store, FakeCache())
        say(talk, 2000)
        written = store.commit_kv(talk.id, talk.cache, model()).bytes_written
        store._writer.close()  # the end is told once the save is over
    assert bool(told) is is_told
    if is_told:
        *way, (done, total) = told
        assert done == total
        assert written * 0.8 < total <= written  # without headers
        assert way == sorted(way)
        assert 1 < len(way) < 2000 // 16
        assert all(0 < a < b == total for a, b in way)


def test_the_end_is_told_of_a_save_that_fails_too(folders: Folders) -> None:
    written = 0

    def full(step: str) -> None:
        nonlocal written
        if threading.current_thread().name == "mlxkv-writer" and step == "rename":
            written += 1
            if written > 4:
                raise OSError(28, "No space left on device")

    with SessionStore.open(folders, full) as store:
        told: list[tuple[int, int]] = []
        store.progress.tell = lambda done, total: told.append((done, total))
        store.progress._clock = Ticks(0.5)
        talk = Talk(store, FakeCache())
        say(talk, 2000)
        store.save_kv(talk.id, talk.cache, model())
        assert "No space" in str(store.flush(talk.id))
        store._writer.close()
    *way, (done, total) = told
    assert done == total
    assert way
    assert all(0 < a < b == total for a, b in way)


def test_the_next_save_waits_for_the_one_before_and_writes_no_row_twice(folders: Folders) -> None:
    with SessionStore.open(folders) as store:
        plain, waiting = Talk(store, FakeCache(), "plain"), Talk(store, FakeCache(run=1), "waiting")
        for n in (100, 30, 200, 7):
            say(plain, n)
            store.commit_kv(plain.id, plain.cache, model())
            say(waiting, n)
            store.save_kv(waiting.id, waiting.cache, model())
        store.flush(waiting.id)
        assert store.num_bytes_written(waiting.id) == store.num_bytes_written(plain.id)


def test_saves_of_several_chats_reach_the_disk_in_order(folders: Folders) -> None:
    order: list[str] = []
    gate = Gate("fsync")
    with SessionStore.open(folders, gate) as store:
        refer = store._writer._save

        def noted(job: object, database: object) -> None:
            refer(job, database)  # type: ignore[arg-type]
            order.append(job.plan.session_id)  # type: ignore[attr-defined]

        store._writer._save = noted  # type: ignore[method-assign,assignment]
        talks = [Talk(store, FakeCache(run=n), str(n)) for n in range(5)]
        for talk in talks:
            say(talk, 60)
            store.save_kv(talk.id, talk.cache, model())
        gate.opened.set()
    assert order == [talk.id for talk in talks]


def test_a_failure_is_told_with_the_next_save_which_writes_the_rows_again(folders: Folders) -> None:
    gate = Gate("fsync")
    gate.fails = OSError(28, "No space left on device")
    gate.opened.set()
    with SessionStore.open(folders, gate) as store:
        talk = Talk(store, FakeCache())
        say(talk, 100)
        assert store.save_kv(talk.id, talk.cache, model()).notice is None
        assert store.num_bytes_written(talk.id) == 0
        say(talk, 10)
        notice = store.save_kv(talk.id, talk.cache, model()).notice
        assert notice is not None
        assert "No space left" in notice
        say(talk, 10)
        assert store.save_kv(talk.id, talk.cache, model()).notice is None  # the same sentence once
        gate.closed = False
        say(talk, 10)
        store.save_kv(talk.id, talk.cache, model())
        assert store.flush(talk.id) is None
        assert not list((folders.cache / "kv" / "tmp").iterdir())
        assert store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 130
        assert store.verify().problems == ()


def test_closing_waits_and_tells(folders: Folders) -> None:
    gate = Gate("fsync")
    store = SessionStore.open(folders, gate)
    talk = Talk(store, FakeCache())
    say(talk, 100)
    store.save_kv(talk.id, talk.cache, model())
    assert gate.reached.wait(60)
    closing = threading.Thread(target=store._writer.wait)
    closing.start()
    assert closing.is_alive()
    gate.opened.set()
    closing.join()
    store.close()
    with SessionStore.open(folders) as again:
        assert again.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 100


def test_saves_after_each_other_share_a_thread_and_a_connection_until_one_fails(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate("rename")
    gate.fails = OSError(5, "Input/output error")
    gate.closed = False
    gate.opened.set()
    closed: set[Database] = set()
    close = Database.close
    monkeypatch.setattr(Database, "close", lambda self: closed.add(self) or close(self))
    with SessionStore.open(folders, gate) as store:
        writer, used = store._writer, []
        save = writer._save

        def noted(job: Job, database: Database) -> None:
            used.append((threading.current_thread(), database))
            save(job, database)

        monkeypatch.setattr(writer, "_save", noted)
        talk = Talk(store, FakeCache())
        for fails in (False, False, True, False):
            gate.closed = fails
            say(talk, 100)
            store.save_kv(talk.id, talk.cache, model())
            assert (store.flush(talk.id) is not None) == fails
    threads, databases = zip(*used, strict=True)
    assert len(set(threads)) == 1
    assert databases[0] is databases[1] is databases[2] is not databases[3]
    assert not threads[0].is_alive()
    assert {databases[0], databases[3]} <= closed


def test_the_thread_ends_by_itself_and_the_next_save_starts_another(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxkv.store.kv.writer.KEEP_ALIVE", 0.0)
    with SessionStore.open(folders) as store:
        talk = Talk(store, FakeCache())
        threads = []
        for _ in range(2):
            talk.turn(100)
            thread = store._writer._thread
            assert thread is not None
            thread.join(60)
            assert not thread.is_alive()
            threads.append(thread)
        assert threads[0] is not threads[1]
        assert store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 200


def test_what_needs_the_rows_waits_for_them(folders: Folders) -> None:
    for what in ("fork", "delete", "restore", "lock", "verify"):
        with SessionStore.open(folders) as store:
            talk = Talk(store, FakeCache(), what)
            say(talk, 100)
            with store.lock(talk.id):
                store.save_kv(talk.id, talk.cache, model())
                match what:
                    case "fork":
                        fork = store.fork(talk.id, 1)
                        assert store.restore_kv(fork, FakeCache(), model(), talk.cache.tokens).tokens == 100
                        store.delete(fork)
                    case "delete":
                        store.delete(talk.id)
                        assert not list((folders.cache / "kv").glob("??/*"))
                    case "restore":
                        assert store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 100
                    case "verify":
                        assert store.verify().num_chunks > 0
            if what != "delete":
                with SessionStore.open(folders) as other:
                    assert other.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 100
                store.delete(talk.id)


@pytest.mark.slow
def test_a_program_that_forgets_to_close_still_ends_after_its_last_save(folders: Folders) -> None:
    code = (
        "from tests.store.conftest import Talk; from tests.store.fake import FakeCache, model\n"
        "from mlxkv.config import Folders; from mlxkv.store.records import TurnRecord\n"
        "from mlxkv.store.session_store import SessionStore\n"
        "store = SessionStore.open(Folders.from_env()); talk = Talk(store, FakeCache())\n"
        "ids = tuple(range(100)); store.add_turn(talk.id, TurnRecord('user', 'x', ids)); talk.cache.feed(ids)\n"
        "store.save_kv(talk.id, talk.cache, model()); print(talk.id)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    with SessionStore.open(folders) as store:
        assert store.restore_kv(done.stdout.strip(), FakeCache(), model(), tuple(range(100))).tokens == 100


def test_rows_are_copied_out_of_the_cache(folders: Folders) -> None:
    """A view that is held makes MLX copy the whole buffer at the next token."""
    gate = Gate("fsync")
    seen: list[EncodedChunk] = []
    with SessionStore.open(folders, gate) as store:
        talk = Talk(store, FakeCache())
        say(talk, 100)
        before = mx.get_active_memory()
        store.save_kv(talk.id, talk.cache, model())
        seen += store._writer._jobs[0].chunks
        assert all(type(chunk.data) is bytes for chunk in seen)
        assert mx.get_active_memory() <= before
        gate.opened.set()


def test_a_large_save_waits_for_the_disk_instead_of_filling_the_memory(folders: Folders) -> None:
    gate = Gate("create")
    gate.opened.set()
    with SessionStore.open(folders, gate) as store:
        talk = Talk(store, FakeCache(block=16, dim=512))
        say(talk, 64)
        plan_bytes = 64 * sum(group.row_bytes for group in talk.cache.groups)
        most = 0
        real = store._writer._next

        def watched(job: object) -> EncodedChunk | None:
            nonlocal most
            most = max(most, sum(chunk.size for chunk in job.chunks))  # type: ignore[attr-defined]
            return real(job)  # type: ignore[arg-type]

        store._writer._next = watched  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mlxkv.store.kv.writer.MAX_WAITING", 100_000)
            store.commit_kv(talk.id, talk.cache, model())
        biggest = 16 * sum(group.row_bytes for group in talk.cache.groups)
        assert plan_bytes > 100_000
        assert MAX_WAITING > 100_000
        assert most <= 100_000 + 4 * biggest


@pytest.mark.slow
def test_two_processes_on_one_session_lose_nothing(folders: Folders) -> None:
    """Both write to two chats as fast as they can: one holds each, the other is told who and goes on elsewhere."""
    with SessionStore.open(folders) as store:
        ids = [store.sessions.create(f"s{n}", model()) for n in range(2)]
    code = (
        "import sys\nfrom mlxkv.config import Folders; from mlxkv.store.records import TurnRecord\n"
        "from mlxkv.store.session_store import SessionStore\n"
        "from mlxkv.errors import SessionLockedError; from tests.store.fake import FakeCache, model\n"
        "me, rounds, ids = sys.argv[1], int(sys.argv[2]), sys.argv[3:]; acked = refused = 0\n"
        "with SessionStore.open(Folders.from_env()) as store:\n"
        "  for n in range(rounds):\n"
        "    session = ids[n % 2]\n"
        "    try:\n"
        "      with store.lock(session):\n"
        "        log = store.load(session).log; start = len(log)\n"
        "        store.add_turn(session, TurnRecord('user', f'{me}.{n}', tuple(range(start, start + 5))))\n"
        "        print(session, f'{me}.{n}', flush=True)\n"
        "        cache = FakeCache(); cache.feed(range(start + 5)); store.save_kv(session, cache, model())\n"
        "    except SessionLockedError as error:\n"
        "      assert 'open in process' in str(error); print('refused', flush=True)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, name, "25", *ids], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    acked: list[str] = []
    refused = 0
    for writer in writers:
        out = writer.communicate(timeout=300)[0].split("\n")
        assert writer.returncode == 0
        refused += out.count("refused")
        acked += [line for line in out if " " in line]
    with SessionStore.open(folders) as store:
        found = [f"{session} {turn.text}" for session in ids for turn in store.load(session).turns]
        assert sorted(found) == sorted(acked)
        assert store.verify().problems == ()
        for session in ids:
            log = store.load(session).log
            fresh, straight = FakeCache(run=1), FakeCache()
            restored = store.restore_kv(session, fresh, model(), log)
            straight.feed(log[: restored.tokens])
            assert fresh.state() == straight.state()
            with store.lock(session), pytest.raises(SessionLockedError, match="open in process"):
                store.lock(session).__enter__()
    print(f"two writers, {len(acked)} turns acknowledged, {refused} refused with a name, 0 lost")
    assert len(acked) + refused == 50


def test_an_error_of_the_cache_cancels_the_save_and_leaves_nothing(folders: Folders) -> None:
    with SessionStore.open(folders) as store:
        talk = Talk(store, FakeCache())
        say(talk, 100)

        def fail(a: int, b: int) -> dict[str, mx.array]:
            raise StoreError("broken")

        talk.cache.groups[1].export_rows = fail  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="broken"):
            store.save_kv(talk.id, talk.cache, model())
        assert not list((folders.cache / "kv").glob("??/*.safetensors"))
        assert store.restore_kv(talk.id, FakeCache(), model(), talk.cache.tokens).tokens == 0
