"""Recurrent states on disk: which are kept, what damage costs, and that a file never says what shape they have."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.config import Folders
from mlxkv.errors import CacheError, MismatchError
from mlxkv.inference.runner import ModelRunner
from mlxkv.stats import bytes_text
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import EncodedChunk
from mlxkv.store.kv.quota import Quota
from mlxkv.store.kv.state_saves import MAX_STATES, Occasion
from mlxkv.store.prompts.kv_file import describe_prompt_file, read_prompt_file, write_prompt_file
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.cache.architectures import ARCHITECTURES
from tests.hybrids import tiny
from tests.reference import largest, random_ids
from tests.store.fake import model as identity

CONFIG = CacheConfig(window=4096, block=16, slack=512, sinks=4)


class Hybrid:
    """A chat of a hybrid model: `turn` feeds a message and a reply, and commits."""

    def __init__(self, store: SessionStore) -> None:
        self.model = tiny("qwen3_next")
        self.plan = plan_cache(self.model, CONFIG)
        self.runner, self.cache = ModelRunner(self.model), self.empty()
        self.store, self.id = store, store.sessions.create("hybrid", identity())

    def empty(self) -> PromptCache:
        return PromptCache(self.plan, self.model)

    def feed(self, cache: PromptCache, ids: list[int]) -> None:
        for _ in self.runner.prefill(cache, ids):
            pass

    def turn(self, seed: int, num_tokens: int = 10, occasion: Occasion = Occasion.CLOSING) -> None:
        for role in ("user", "assistant"):
            ids = random_ids(num_tokens, seed=seed + 100 * (role == "user"))
            self.cache.checkpoint()
            self.feed(self.cache, ids)
            self.store.add_turn(self.id, TurnRecord(role, role, tuple(ids), len(self.cache.log) - num_tokens))
        self.save(occasion)

    def save(self, occasion: Occasion, resume_at: int | None = None) -> None:
        at = None if resume_at is None else lambda: resume_at
        assert self.store.save_kv(self.id, self.cache, identity(), None, occasion, at).notice is None
        self.store._saver.wait(self.id)

    def back(self) -> int:
        """The tokens that a restore of the chat gets."""
        return self.store.restore_kv(self.id, self.empty(), identity(), self.cache.tokens).tokens

    def states(self, session: str) -> list[int]:
        """Positions of the states that a session refers to."""
        with self.store._database.reading() as db:
            rows = db.execute(
                "SELECT DISTINCT k.b FROM chunk k JOIN kv_ref r ON r.chunk = k.digest JOIN kv_commit c"
                " ON c.id = r.kv_commit WHERE c.session = ? AND k.grp = 'state' ORDER BY k.b",
                (session,),
            )
            return [row[0] for row in rows]

    def files(self, position: int) -> list[Path]:
        with self.store._database.reading() as db:
            rows = db.execute("SELECT digest FROM chunk WHERE grp = 'state' AND b = ?", (position,)).fetchall()
        return [self.store._chunks.path(digest) for (digest,) in rows]


@pytest.fixture
def hybrid(store: SessionStore) -> Hybrid:
    return Hybrid(store)


@pytest.mark.slow
def test_a_state_is_written_when_1024_tokens_are_new_and_only_one(hybrid: Hybrid) -> None:
    written = []
    for n in range(8):
        hybrid.turn(n, 200, Occasion.TURN)
        written.append(hybrid.states(hybrid.id))
    assert written[:6] == [[], [], [1200], [1200], [1200], [1200, 2400]]


@pytest.mark.slow
def test_a_pause_writes_a_state_that_the_next_one_replaces(hybrid: Hybrid) -> None:
    hybrid.turn(0, 100, Occasion.TURN)
    hybrid.save(Occasion.PAUSE)
    assert hybrid.states(hybrid.id) == []  # fewer than 256 tokens
    hybrid.turn(1, 100, Occasion.TURN)
    for _ in range(2):
        hybrid.save(Occasion.PAUSE)
        assert hybrid.states(hybrid.id) == [400]
    (path,) = hybrid.files(400)
    hybrid.turn(2, 100, Occasion.TURN)
    assert hybrid.states(hybrid.id) == [400]
    hybrid.turn(3, 100, Occasion.TURN)
    hybrid.save(Occasion.PAUSE)
    assert hybrid.states(hybrid.id) == [800]
    assert not path.exists()


@pytest.mark.slow
def test_closing_writes_what_going_back_needs_and_the_files_of_others_go(hybrid: Hybrid, folders: Folders) -> None:
    for n in range(12):
        hybrid.turn(n, 40)
    kept = hybrid.states(hybrid.id)
    assert kept[-1] == 960
    for turns in range(1, 6):
        target = 960 - 80 * turns
        back = target - max(p for p in kept if p <= target)
        assert back <= 40 * turns + 128
    fork = hybrid.store.fork(hybrid.id, 12)
    before_fork = hybrid.states(fork)[-1]
    for n in range(12, 30):
        hybrid.turn(n, 40)
    assert before_fork in hybrid.states(hybrid.id)
    assert len(hybrid.states(hybrid.id)) <= MAX_STATES + 1
    on_disk = {path.stem for path in (folders.cache / "kv").glob("??/*.safetensors")}
    with hybrid.store._database.reading() as db:
        assert on_disk == {row[0] for row in db.execute("SELECT chunk FROM kv_ref")}
    back = hybrid.empty()
    assert hybrid.store.restore_kv(fork, back, identity(), hybrid.cache.tokens[:480]).tokens == before_fork


@pytest.mark.slow
def test_the_state_of_the_system_prompt_stays_and_serves_other_chats(hybrid: Hybrid) -> None:
    hybrid.feed(hybrid.cache, random_ids(300))
    hybrid.cache.checkpoint(is_prefix=True)
    hybrid.store.add_turn(hybrid.id, TurnRecord("user", "x", tuple(hybrid.cache.tokens)))
    for n in range(14):
        hybrid.turn(n, 60, Occasion.TURN)
        if n == 0:
            assert hybrid.states(hybrid.id) == [300]
        hybrid.save(Occasion.PAUSE)
    assert hybrid.states(hybrid.id)[0] == 300
    other = hybrid.store.sessions.create("other", identity())
    back, ids = hybrid.empty(), [*random_ids(300), *random_ids(40, seed=77)]
    hybrid.store.add_turn(other, TurnRecord("user", "y", tuple(ids)))
    assert hybrid.store.restore_kv(other, back, identity(), ids).tokens == 300
    with hybrid.store._database.reading() as db:
        kept_for = {
            row[0]
            for row in db.execute(
                "SELECT kept_for FROM kv_ref JOIN chunk ON digest = chunk WHERE grp = 'state' AND b = 300"
            )
        }
    assert kept_for == {"prefix"}


@pytest.mark.slow
def test_after_a_kill_the_chat_continues_from_the_last_state_and_says_so(hybrid: Hybrid) -> None:
    for n in range(4):
        hybrid.turn(n, 200, Occasion.TURN)
    hybrid.store._writer.wait()
    back = hybrid.empty()
    restored = hybrid.store.restore_kv(hybrid.id, back, identity(), hybrid.cache.tokens)
    assert (restored.tokens, back.offset) == (1200, 1200)
    assert restored.notice == (
        "The recurrent layers continue from their last saved state: 1,200 of 1,600 tokens were restored, the rest is "
        "prefilled."
    )


def test_after_a_kill_before_the_first_state_all_is_prefilled(hybrid: Hybrid) -> None:
    hybrid.turn(0, 50, Occasion.TURN)
    assert hybrid.states(hybrid.id) == []
    restored = hybrid.store.restore_kv(hybrid.id, hybrid.empty(), identity(), hybrid.cache.tokens)
    assert (restored.tokens, restored.notice) == (
        0, "No state of the recurrent layers was saved: 0 of 100 tokens were restored, the rest is prefilled.",
    )  # fmt: skip


def test_rows_are_not_saved_where_the_disk_limit_leaves_no_room_for_a_state(folders: Folders) -> None:
    with SessionStore.open(folders, disk_limit=100_000) as store:
        hybrid = Hybrid(store)
        hybrid.feed(hybrid.cache, random_ids(200))
        store.add_turn(hybrid.id, TurnRecord("user", "x", tuple(hybrid.cache.tokens)))
        notice = store.save_kv(hybrid.id, hybrid.cache, identity(), None, Occasion.CLOSING).notice
        store.flush(hybrid.id)
        assert notice == (
            "Nothing of this chat's KV cache fits the disk limit of 100 kB, and a recurrent state takes 31 kB; raise "
            "`disk_limit`."
        )
        assert store.disk_bytes(hybrid.id) == 0


@pytest.mark.slow
def test_a_fork_at_an_earlier_turn_has_the_states_that_closing_wrote_there(hybrid: Hybrid) -> None:
    for n in range(6):
        hybrid.turn(n, 60, Occasion.TURN)
    hybrid.save(Occasion.CLOSING)
    written = hybrid.states(hybrid.id)
    assert len(written) > 2
    for turns in (2, 4, 6, 8, 10):
        fork = hybrid.store.fork(hybrid.id, turns)
        expected = [p for p in written if p <= 60 * turns]
        assert hybrid.states(fork) == expected
        ids, back = hybrid.cache.tokens[: 60 * turns], hybrid.empty()
        assert hybrid.store.restore_kv(fork, back, identity(), ids).tokens == max(expected, default=0)


@pytest.mark.slow
def test_an_archive_takes_the_states_along(hybrid: Hybrid, tmp_path: Path) -> None:
    for n in range(3):
        hybrid.turn(n, 100)
    hybrid.store.export_chat(hybrid.id, tmp_path / "x.mlxkv")
    done = hybrid.store.import_chat(tmp_path / "x.mlxkv", trust_kv=True)
    assert hybrid.states(done.session_id) == hybrid.states(hybrid.id)
    restored = hybrid.store.restore_kv(done.session_id, hybrid.empty(), identity(), hybrid.cache.tokens)
    assert (restored.tokens, restored.notice) == (600, None)


@pytest.mark.slow
def test_a_rewritten_reply_gets_a_state_where_the_next_prompt_continues(hybrid: Hybrid) -> None:
    hybrid.turn(0, 100, Occasion.TURN)
    hybrid.save(Occasion.CLOSING, resume_at=110)
    assert hybrid.states(hybrid.id) == [100, 200]


@pytest.mark.slow
def test_a_state_that_is_kept_for_a_reason_stays_and_goes_to_forks(hybrid: Hybrid) -> None:
    for seed in range(3):
        hybrid.turn(seed)
    reason = hybrid.states(hybrid.id)[0]
    with hybrid.store._database.writing() as db:
        db.execute(
            "UPDATE kv_ref SET kept_for = 'reason' WHERE chunk IN"
            " (SELECT digest FROM chunk WHERE b = ? AND grp = 'state')",
            (reason,),
        )
    for seed in range(3, 30):
        hybrid.turn(seed)
    assert reason in hybrid.states(hybrid.id)
    assert reason in hybrid.states(hybrid.store.fork(hybrid.id, len(hybrid.store.load(hybrid.id).turns)))


@pytest.mark.slow
def test_the_disk_limit_spares_states_that_chats_begin_or_continue_with(folders: Folders) -> None:
    """The limit goes down step by step; the state of the system prompt outlasts its chat's end."""
    with SessionStore.open(folders, disk_limit=None) as store:
        old, new = Hybrid(store), Hybrid(store)
        old.feed(old.cache, random_ids(300))
        old.cache.checkpoint(is_prefix=True)
        store.add_turn(old.id, TurnRecord("user", "x", tuple(old.cache.tokens)))
        for n in range(6):
            old.turn(n, 40)
        for n in range(6, 12):
            new.turn(n, 40)
        used, states = store.disk_usage(), (len(old.states(old.id)), len(new.states(new.id)))
    assert min(states) >= 3
    spared: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for limit in range(used, 0, -16384):
        with SessionStore.open(folders, disk_limit=limit) as store:
            old.store = new.store = store
            left = old.states(old.id), new.states(new.id)
            spared[old.back(), new.back()] = left
    assert list(spared) == [(780, 480), (300, 480), (0, 480), (0, 0)]
    assert spared[780, 480] == ([300, 780], [480])


def test_the_disk_limit_names_states_only_where_they_are_large(hybrid: Hybrid) -> None:
    hybrid.turn(0)
    Hybrid(hybrid.store).turn(1)
    taken = bytes_text(hybrid.store.state_bytes())
    for limit, more in ((400_000, f", of which recurrent states take {taken}"), (4_000_000, "")):
        quota = Quota(limit, hybrid.store.space, set)
        assert quota.description(hybrid.store._database) == f"the disk limit of {bytes_text(limit)}{more}"


@pytest.mark.slow
def test_bytes_of_states_are_counted_apart_and_shared_ones_once(
    hybrid: Hybrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = hybrid.store, Hybrid(hybrid.store)
    assert (store.state_bytes(), store.state_bytes(hybrid.id)) == (0, 0)
    hybrid.turn(0)
    other.turn(1)
    may_write, put = threading.Event(), ChunkFiles.put

    def held(files: ChunkFiles, chunk: EncodedChunk) -> int:
        may_write.wait()
        return put(files, chunk)

    def sizes() -> tuple[int, ...]:
        return store.state_bytes(), store.state_bytes(hybrid.id), store.state_bytes(other.id)

    monkeypatch.setattr(ChunkFiles, "put", held)
    hybrid.feed(hybrid.cache, random_ids(10, seed=7))
    store.add_turn(hybrid.id, TurnRecord("user", "x", tuple(hybrid.cache.tokens[-10:])))
    store.save_kv(hybrid.id, hybrid.cache, identity(), None, Occasion.CLOSING)
    waiting = sizes()
    may_write.set()
    store._saver.wait(hybrid.id)
    assert sizes() == waiting
    fork = store.fork(hybrid.id)
    assert sizes() == waiting
    (size,) = {path.stat().st_size for p in hybrid.states(hybrid.id) for path in hybrid.files(p)}
    mine, others = len(hybrid.states(hybrid.id)), len(other.states(other.id))
    assert waiting == ((mine + others) * size, mine * size, others * size)
    assert 0 < store.state_bytes(fork) == mine * size < store.disk_bytes(fork)


@pytest.mark.slow
def test_a_damaged_state_costs_the_way_to_the_one_before_it_and_nothing_else(hybrid: Hybrid) -> None:
    for n in range(2):
        hybrid.turn(n)
    (path,) = hybrid.files(40)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    back = hybrid.empty()
    restored = hybrid.store.restore_kv(hybrid.id, back, identity(), hybrid.cache.tokens)
    assert restored.tokens == back.offset == 20
    assert "damaged" in str(restored.notice)
    assert back.tokens == hybrid.cache.tokens[:20]
    straight, probe = hybrid.empty(), random_ids(20, seed=9)
    hybrid.feed(straight, hybrid.cache.tokens[:10])
    hybrid.feed(straight, hybrid.cache.tokens[10:20])
    assert largest(hybrid.runner.score(back, probe) - hybrid.runner.score(straight, probe)) == 0.0


def test_without_any_state_everything_is_read_again(hybrid: Hybrid) -> None:
    hybrid.turn(0)
    for position in (10, 20):
        for path in hybrid.files(position):
            path.unlink()
    back = hybrid.empty()
    restored = hybrid.store.restore_kv(hybrid.id, back, identity(), hybrid.cache.tokens)
    assert (restored.tokens, back.offset) == (0, 0)
    assert restored.notice


def test_a_log_that_ends_between_two_states_is_resumed_at_the_first(hybrid: Hybrid) -> None:
    hybrid.feed(hybrid.cache, random_ids(10))
    hybrid.cache.checkpoint()
    hybrid.feed(hybrid.cache, random_ids(10, seed=2))
    hybrid.store.add_turn(hybrid.id, TurnRecord("user", "x", tuple(hybrid.cache.tokens[:15])))
    assert hybrid.store.commit_kv(hybrid.id, hybrid.cache, identity()).pos == 15
    back = hybrid.empty()
    assert hybrid.store.restore_kv(hybrid.id, back, identity(), hybrid.cache.tokens[:15]).tokens == 10


def test_shapes_are_the_models_whatever_the_cache_holds(hybrid: Hybrid, tmp_path: Path) -> None:
    hybrid.turn(0)
    cache: Any = hybrid.cache.layers[0]
    cache[1] = mx.zeros((1, 2, 3))
    with pytest.raises(CacheError, match="layer 0"):
        write_prompt_file(tmp_path / "x.kv", hybrid.cache, identity())


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 40])
def test_a_state_that_is_not_full_yet_keeps_its_length(num_tokens: int, tmp_path: Path) -> None:
    """n-gram embeddings look back a few tokens, and at the beginning there are fewer."""
    model, ids = ARCHITECTURES["longcat_flash_ngram"].build(), random_ids(60)
    plan, runner = plan_cache(model, CONFIG), ModelRunner(model)
    cache, back = PromptCache(plan, model), PromptCache(plan, model)
    for _ in runner.prefill(cache, ids[:num_tokens]):
        pass
    write_prompt_file(tmp_path / "x.kv", cache, identity())
    read_prompt_file(tmp_path / "x.kv", back, identity())
    assert largest(runner.score(back, ids[num_tokens:]) - runner.score(cache, ids[num_tokens:])) == 0.0


def test_a_prompt_cache_knows_the_bytes_of_its_rows_and_of_its_state(hybrid: Hybrid, tmp_path: Path) -> None:
    hybrid.turn(0)
    size = write_prompt_file(tmp_path / "book.kv", hybrid.cache, identity())
    about = describe_prompt_file(tmp_path / "book.kv")
    assert about["state_bytes"] == sum(c.nbytes for c in hybrid.cache.checkpoints.caches)
    assert about["row_bytes"] == sum((b - a) * g.row_bytes for g in hybrid.cache.groups[:-1] for a, b in g.held())
    assert about["row_bytes"] + about["state_bytes"] < size


def test_another_models_state_does_not_fit(hybrid: Hybrid, tmp_path: Path) -> None:
    hybrid.turn(0)
    write_prompt_file(tmp_path / "x.kv", hybrid.cache, identity())
    other = tiny("granitemoehybrid")
    with pytest.raises(MismatchError, match="state"):
        read_prompt_file(tmp_path / "x.kv", PromptCache(plan_cache(other, CONFIG), other), identity())


def test_a_model_whose_state_grows_is_not_saved(hybrid: Hybrid) -> None:
    class Growing(type(hybrid.model)):  # type: ignore[misc]
        def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
            out = super().__call__(inputs, cache)
            seen = getattr(cache[0], "seen", mx.zeros((1, 0)))
            cache[0].seen = mx.concatenate([seen, inputs.astype(mx.float32)], axis=1)
            return out

    make: Any = Growing
    model = make(hybrid.model.args)
    cache = PromptCache(plan_cache(model, CONFIG), model)
    assert not cache.can_save
    assert cache.unsaved == ("ArraysCache",)
    assert hybrid.cache.can_save
