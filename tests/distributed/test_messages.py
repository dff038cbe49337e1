"""What rank 0 tells the others, recorded in one process and followed by a Worker: its caches end up the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.config import Folders
from mlxkv.distributed import part_store
from mlxkv.distributed.link import Link, Message, Op
from mlxkv.distributed.machines import Machines
from mlxkv.distributed.part_store import PartStore
from mlxkv.distributed.split import Member, Split
from mlxkv.distributed.worker import Worker
from mlxkv.errors import CacheError, MachineError
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.generation import Generation
from mlxkv.inference.sampling import SamplingParams
from mlxkv.memory import Budget
from mlxkv.store.db.open import DATABASE
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.cache.architectures import ARCHITECTURES
from tests.tokenizers import tiny_tokenizer

BOUNDS = CacheConfig(window=64, sinks=4, block=16, slack=32)


class Recorder(Link):
    """Rank 0 of a group of one, in which every sum is what it was; keeps its messages."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.fails = False
        super().__init__(mx.distributed.init())

    def _send(self, op: Op, cache: int, a: int, b: int, ids: Any) -> None:
        self.sent.append(Message(op, cache, a, b, 0, tuple(ids)))

    def send_step(self, cache: int, token: mx.array) -> None:
        self._before()
        self.sent.append(Message(Op.STEP, cache, token=int(token.item())))  # type: ignore[arg-type]


@dataclass
class Tape:
    """The other end: gives those messages back."""

    messages: list[Message]
    is_lost: bool = False
    names: list[str] = field(default_factory=list)

    def receive(self) -> Message:
        return self.messages.pop(0) if self.messages else Message(Op.END)

    def check(self, error: Any) -> None:
        assert error is None

    def texts(self, own: str) -> list[str]:
        return [own]

    def agree(self, number: int) -> list[int]:
        return [number]

    def compare(self, *numbers: int) -> list[list[int]]:
        return [list(numbers)]


@dataclass
class Loaded:
    model: Any
    weight_bytes: int = 0
    name: str = "tiny"


def lead(model: Any) -> tuple[Recorder, Any, Any]:
    """The link, the runner and a function that makes caches."""
    link = Recorder()
    machines, budget = Machines(link, Split(Member(0, 1), "auto", lambda: None)), Budget(model, limit=0)
    runner = machines.make_runner(model, 16, budget)
    runner.drafting = Drafting()
    return link, runner, lambda config: machines.make_cache(config, 0, budget, 0, model, None)  # type: ignore[arg-type]


def reply(runner: Any, cache: PromptCache, ids: list[int], most: int) -> list[int]:
    made = Generation(runner, tiny_tokenizer(), cache, ids, replace(SamplingParams(temperature=0.0), max_tokens=most))
    list(made.events())
    return made.generated


def followed_by(model: Any, sent: list[Message], store: PartStore | None = None) -> Worker:
    """A Worker that has followed these messages."""
    worker = Worker(Tape(list(sent)), lambda *_: None)  # type: ignore[arg-type]
    worker._loaded, worker._budget, worker._store = Loaded(model), Budget(model, limit=0), store  # type: ignore[assignment]
    worker.run()
    return worker


@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_a_worker_that_follows_has_the_same_rows(name: str) -> None:
    model = ARCHITECTURES[name].build()
    link, runner, make = lead(model)
    cache = make(BOUNDS)
    ids = [5 + n * 7 % 50 for n in range(40)]
    ids += reply(runner, cache, ids, 60)  # past the window
    fork = cache.fork()
    reply(runner, fork, [*ids, 7, 8], 5)
    reply(runner, cache, [*ids[:-6], 9, 30], 8)  # rewound
    again = make(CacheConfig())
    reply(runner, again, [9, 30, 12, 41] * 8, 30)  # drafted, and some of it taken back
    held = {shared.peers.number: shared for shared in (cache, fork, again)}
    runner.score(again, [3, 4, 5])
    assert {Op.FEED, Op.STEP, Op.FORK, Op.COMPARE} <= {message.op for message in link.sent}

    worker = followed_by(model, link.sent)
    assert worker._caches.keys() == held.keys()
    for number, shared in held.items():
        followed = worker._caches[number]
        assert followed.log == shared.log
        mx.eval([layer.state for layer in (*followed.layers, *shared.layers)])
        logits = [model(mx.array([[11]]), cache=list(c.layers)) for c in (followed, shared)]
        assert mx.allclose(*logits, atol=1e-4).item()


def test_a_lost_connection_is_not_used_again() -> None:
    link, runner, make = lead(model := ARCHITECTURES["llama"].build())
    cache = make(BOUNDS)
    reply(runner, cache, [5, 6, 7], 2)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("[ring] connection to a peer was lost")

    runner.model._model, sent = broken, len(link.sent)
    with pytest.raises(MachineError, match=r"was lost; what was said before is kept: start mlxkv again\."):
        reply(runner, cache, [5, 6, 7, 8], 2)
    runner.model._model, told = model, len(link.sent)
    for again in (lambda: reply(runner, cache, [5], 2), lambda: make(BOUNDS), cache.reset):
        with pytest.raises(MachineError, match="was lost"):
            again()
    assert [message.op for message in link.sent[sent:told]].count(Op.RECOVER) == 0
    assert len(link.sent) == told


def test_what_has_no_part_in_files_says_so() -> None:
    _, _, make = lead(ARCHITECTURES["llama"].build())
    cache = make(CacheConfig())
    for refused in (lambda: cache.save("x"), lambda: cache.export_mlx_lm("x")):
        with pytest.raises(CacheError, match="in no file"):
            refused()


def test_a_worker_keeps_the_sessions_and_forks_of_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, identity = ARCHITECTURES["llama"].build(), ModelIdentity.of("tiny", {"file.model": "1:ab"})
    monkeypatch.setattr(part_store, "identity_of", lambda *_: identity)
    link, runner, make = lead(model)
    ids, rows = tuple(5 + n * 7 % 50 for n in range(120)), identity.of_part("tensor 0/2")
    with SessionStore.open(Folders.from_env({"MLXKV_HOME": str(tmp_path / "rank-0")})) as store:
        session_id, cache = store.sessions.create("a title", identity), make(CacheConfig())
        for new in (ids[:80], ids[80:]):  # two chunks, which a new session would have as one
            store.add_turn(session_id, TurnRecord("user", "a text", ids=new))
            list(runner.prefill(cache, new))
            store.commit_kv(session_id, cache, rows)
        fork = store.fork(session_id)
        store.add_turn(fork, TurnRecord("user", "another", ids=(7, 8, 9)))
        list(runner.prefill(cache, (7, 8, 9)))
        store.commit_kv(fork, cache, rows)
        restored = store.restore_kv(fork, make(CacheConfig()), rows, (*ids, 7, 8, 9))
        assert restored.tokens == 123
        key = store.sessions.key(fork)
        deleted = json.dumps({"store": store.id, "sessions": [fork]}).encode()
    folders = Folders.from_env({"MLXKV_HOME": str(tmp_path / "rank-1")})

    def part() -> PartStore:
        return PartStore(folders, Loaded(model), Split(Member(1, 2), "tensor", lambda: None))  # type: ignore[arg-type]

    worker = followed_by(model, link.sent, part())
    assert worker._caches[2].log == [*ids, 7, 8, 9]  # it restored as many
    at = replace(folders, data=folders.data / "ranks/1", cache=folders.cache / "ranks/1")
    with SessionStore.open(at) as store:
        assert {*store.sessions.ids()} == {*key.lineage} == {session_id, fork}
        assert [turn.text for turn in store.load(fork).turns] == [""] * 3
        assert store.load(fork).log == (*ids, 7, 8, 9)
        assert store.num_bytes_written(fork) < store.num_bytes_written(session_id) / 10
    followed_by(model, [Message(Op.UNLOAD, ids=tuple(deleted))], part())
    with SessionStore.open(at) as store:
        assert store.sessions.ids() == (fork,)
    (at.data / DATABASE).write_bytes(b"no database" * 1000)
    followed_by(model, link.sent, part())
    with SessionStore.open(at) as store:
        assert {*store.sessions.ids()} == {session_id, fork}
