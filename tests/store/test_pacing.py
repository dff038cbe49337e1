"""Never slower than a prefill: the rule by itself, then restores from disks of every speed, on a clock that only
reading moves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mlxkv.config import Folders
from mlxkv.store.files import Files
from mlxkv.store.kv.restorer import ReadRate
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model

TPS = 1000.0  # tokens per second of a prefill
DIM = 64
BPS_EVEN = TPS * 2 * 16 * DIM * 2  # at this speed of the disk both take as long: bytes of a token's rows in two groups


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches of these tests count as large, and are looked at in smaller pieces."""
    monkeypatch.setattr("mlxkv.store.kv.restorer.SMALL", 1 << 15)
    monkeypatch.setattr("mlxkv.store.kv.chunk_reader.FIRST", 1 << 12)


def test_a_small_cache_is_always_restored() -> None:
    assert ReadRate((1 << 15) - 1, 1e-9, iter(range(100)).__next__).is_fast_enough(1)
    assert not ReadRate(1 << 15, 1e-9, iter(range(100)).__next__).is_fast_enough(1)


def test_without_a_measured_prefill_everything_is_restored() -> None:
    assert ReadRate(1 << 40, None, iter(range(100)).__next__).is_fast_enough(1)


def test_a_disk_that_is_slower_than_a_prefill_is_given_up_soon() -> None:
    now = 0.0
    rate = ReadRate(100_000_000, 1.0, lambda: now)
    assert rate.is_fast_enough(10_000)  # nothing is known before some time has passed
    now = 0.04
    assert not rate.is_fast_enough(1_000_000)  # 100 MB would take 4 s
    fast = ReadRate(100_000_000, 1.0, lambda: now)
    now += 0.04
    assert fast.is_fast_enough(10_000_000)


class SlowFiles(Files):
    """A disk that gives `bps` bytes per second, and a clock that nothing else moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.bps = 0.0, BPS_EVEN

    def clock(self) -> float:
        return self.now

    def read(self, fd: int, views: Sequence[memoryview]) -> int:
        done = super().read(fd, views)
        self.now += done / self.bps
        return done


class Trial:
    """A store on such a disk with one session of `num_tokens`."""

    def __init__(self, folders: Folders, num_tokens: int) -> None:
        self.files = SlowFiles()
        self.store = SessionStore.open(folders, files=self.files)
        self.talk = Talk(self.store, FakeCache(dim=DIM))
        self.talk.turn(num_tokens)

    def ttft(self, bps: float) -> tuple[float, int]:
        """Seconds until all tokens are in the cache again, and how many came from disk."""
        self.files.bps = bps
        before, cache = self.files.now, FakeCache(dim=DIM)
        restored = self.store.restore_kv(self.talk.id, cache, model(), self.talk.cache.tokens)
        assert cache.tokens == self.talk.cache.tokens[: restored.tokens]
        return self.files.now - before + (len(self.talk.cache.tokens) - restored.tokens) / TPS, restored.tokens


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [300, 500, 700, 1000])
def test_the_first_token_never_comes_later_than_by_the_better_way(folders: Folders, num_tokens: int) -> None:
    """Disks from ten times too slow to a hundred times faster, in any order."""
    trial = Trial(folders, num_tokens)
    speeds = [BPS_EVEN * f for f in (0.1, 0.5, 1.2, 3, 100)]
    cold = num_tokens / TPS
    restore = {}
    for bps in speeds:
        restore[bps], tokens = trial.ttft(bps)
        assert tokens == num_tokens  # no prefill was measured yet: all of it
    trial.store.set_prefill_speed(model(), TPS)
    worst, from_disk = 0.0, []
    for bps in [*speeds, *reversed(speeds)]:
        seconds, tokens = trial.ttft(bps)
        from_disk.append(tokens)
        worst = max(worst, seconds / min(restore[bps], cold))
    print(f"{num_tokens} tokens on {len(speeds)} disks: worst {worst:.3f} x the better way")
    assert worst <= 1.10
    assert from_disk[: len(speeds)] == [0, 0, num_tokens, num_tokens, num_tokens]
    assert from_disk[len(speeds) :] == from_disk[: len(speeds)][::-1]  # whatever the disk was before
    trial.store.close()


def test_tokens_that_the_cache_holds_are_not_given_up_for_a_disk_that_was_slow(folders: Folders) -> None:
    trial = Trial(folders, 300)
    ids = trial.talk.cache.tokens
    trial.store.set_prefill_speed(model(), TPS)
    trial.ttft(BPS_EVEN / 10)
    cache = FakeCache(dim=DIM)
    cache.feed(ids[:100])
    restored = trial.store.restore_kv(trial.talk.id, cache, model(), ids, 100)
    assert restored.tokens == 0
    assert restored.notice is not None
    assert cache.tokens == ids[:100]
    trial.ttft(100 * BPS_EVEN)
    assert trial.store.restore_kv(trial.talk.id, cache, model(), ids, 100).tokens == 300
    trial.store.close()
