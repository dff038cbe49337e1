"""Never slower than cold: the decision by itself, then restores from disks of every speed, on a clock that only reading
moves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mlxkv.config import Folders
from mlxkv.store import SessionStore
from mlxkv.store.files import Files
from mlxkv.store.kv.paces import Paces
from mlxkv.store.kv.pacing import PATIENCE, Offer, Pace, Watch, choose, mixed
from tests.store.conftest import Talk
from tests.store.fake import FakeCache, model

TPS = 1000.0  # tokens per second of the model that would read again
DIM = 64
BPS_EVEN = TPS * 2 * 16 * DIM * 2  # at this speed of the disk both take as long: bytes of a token's rows in two groups


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches of these tests count as large."""
    monkeypatch.setattr("mlxkv.store.kv.pacing.SMALL", 1 << 15)


def test_a_small_cache_is_always_restored() -> None:
    pace = Pace(read_bps=1.0, prefill_tps=1e9)
    assert choose([Offer(10, (1 << 15) - 1)], 10, 0, pace) is not None
    assert choose([Offer(10, 1 << 15)], 10, 0, pace) is None
    assert Watch(Offer(10, 1), 0, pace, iter(range(100)).__next__).goes_on(1)


def test_what_is_faster_is_chosen() -> None:
    pace = Pace(read_bps=1e4, prefill_tps=100.0)
    assert choose([Offer(1000, 50_000)], 1000, 0, pace) == Offer(1000, 50_000)  # 5 s against 10 s
    assert choose([Offer(1000, 500_000)], 1000, 0, pace) is None  # 50 s against 10 s, and one look takes more than one
    assert choose([Offer(1000, 50_000)], 1000, 900, pace) is None  # against 1 s: 900 tokens are in memory
    assert choose([Offer(900, 1)], 1000, 900, pace) is None  # no more than there is
    assert choose([], 1000, 0, pace) is None
    assert choose([Offer(1000, 95_000), Offer(500, 1_000)], 1000, 0, pace) == Offer(500, 1_000)  # in part
    assert choose([Offer(1000, 500_000)], 1000, 0, replace(pace, read_bps=4e4)) is None  # 0.4 s
    assert choose([Offer(1000, 5_000_000)], 1000, 0, replace(pace, read_bps=1e5)) is not None  # a look costs 0.17 s


def test_without_a_measurement_everything_is_restored() -> None:
    offers = [Offer(500, 1), Offer(1000, 1 << 40)]
    for pace in (Pace(), Pace(read_bps=1.0), Pace(prefill_tps=1e9)):
        assert choose(offers, 1000, 0, pace) == offers[1]


def test_the_choice_is_never_worse_than_reading_again_by_more_than_a_look() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        n, held = rng.randint(1, 100_000), 0
        offers = [Offer(rng.randint(1, n), rng.randint(1, 1 << 32)) for _ in range(rng.randint(0, 4))]
        pace = Pace(10 ** rng.uniform(4, 10), 10 ** rng.uniform(0, 5))
        assert pace.read_bps is not None
        assert pace.prefill_tps is not None
        chosen = choose(offers, n, held, pace)
        if chosen is None:
            assert all(o.bytes / pace.read_bps + (n - o.tokens) / pace.prefill_tps > n / pace.prefill_tps - 0.005
                       for o in offers)  # fmt: skip


def test_a_disk_that_is_slower_than_remembered_is_given_up_soon() -> None:
    now = 0.0
    watch = Watch(Offer(1000, 100_000_000), 0, Pace(read_bps=1e9, prefill_tps=1000.0), lambda: now)  # 0.1 s or 1 s
    assert watch.goes_on(10_000)  # nothing is known before some time has passed
    now = PATIENCE + 0.01
    assert not watch.goes_on(1_000_000)  # 100 MB would take 6 s
    fast = Watch(Offer(1000, 100_000_000), 0, Pace(prefill_tps=1000.0), lambda: now)
    now += PATIENCE + 0.01
    assert fast.goes_on(10_000_000)
    fast.stop()
    assert not fast.goes_on(1)


def test_the_last_measurement_counts_most() -> None:
    assert mixed(None, 5.0) == 5.0
    assert 0.5 * (1 + 9) < mixed(1.0, 9.0) < 9


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

    def remember(self, bps: float) -> None:
        paces = Paces(self.store._database)
        while abs((paces.get(model().model_id).read_bps or 0) - bps) > 0.1 * bps:
            paces.measured(model().model_id, Pace(read_bps=bps))


@pytest.mark.parametrize("num_tokens", [300, 500, 700, 1000])
def test_the_first_token_never_comes_later_than_by_the_better_way(folders: Folders, num_tokens: int) -> None:
    """Disks from ten times too slow to a hundred times faster; then ones that are not what they were."""
    trial = Trial(folders, num_tokens)
    speeds = [BPS_EVEN * f for f in (0.1, 0.5, 1.2, 3, 100)]
    cold = num_tokens / TPS
    restore = {}
    for bps in speeds:
        restore[bps], tokens = trial.ttft(bps)
        assert tokens == num_tokens  # no prefill was measured yet: all of it
    trial.store.measured_prefill(model(), TPS)
    worst, worst_change, from_disk = 0.0, 0.0, []
    for bps in speeds:
        trial.remember(bps)
        seconds, tokens = trial.ttft(bps)
        from_disk.append(tokens)
        worst = max(worst, seconds / min(restore[bps], cold))
        for remembered in speeds:
            trial.remember(remembered)
            worst_change = max(worst_change, trial.ttft(bps)[0] / cold)
    print(f"{num_tokens} tokens on {len(speeds)} disks: worst {worst:.3f} x the better way;"
          f" {len(speeds) ** 2} changes of the disk: worst {worst_change:.3f} x cold")  # fmt: skip
    assert worst <= 1.10
    assert worst_change <= 1.10
    assert from_disk == [0, 0, num_tokens, num_tokens, num_tokens]
    trial.store.close()


def test_a_disk_that_was_slow_gets_another_chance(folders: Folders) -> None:
    trial = Trial(folders, 300)
    trial.store.measured_prefill(model(), TPS)
    trial.remember(BPS_EVEN / 30)
    tokens = [trial.ttft(100 * BPS_EVEN)[1] for _ in range(10)]
    assert tokens[0] == 0
    assert tokens[-1] == 300
    trial.store.close()
