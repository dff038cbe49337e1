"""`mlxkv doctor --device`: all of it on a random model, what it says of a device that is broken, and what it prints."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.cache.rings import flushes
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.rows import Rows
from mlxkv.cli.app import main
from mlxkv.cli.device_check import command, exact, memory, speed
from mlxkv.cli.device_check import subject as subject_module
from mlxkv.cli.device_check.check import Check, Outcome, State, outcome_of
from mlxkv.cli.device_check.command import CHECKS, check_model, line
from mlxkv.cli.device_check.subject import Sizes, Subject
from mlxkv.device import Device, current_device
from mlxkv.errors import CacheError, OutOfMemoryError
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import Budget
from tests.tokenizers import tiny_folder

SIZES = Sizes(64, 4, 0.001, 0.01)
METAL = Device("Apple M2 Max", True, 22_906_503_168, 34_400_000_000, True)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose rows can be quantized."""
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "wide", hidden=128))


@pytest.fixture
def subject(wide: str, tmp_path: Path, home: Path) -> Iterator[Subject]:
    model = mlxkv.load(wide)
    subject = Subject(model, current_device(), tmp_path)
    subject.__dict__["sizes"] = SIZES
    yield subject
    model.close()


class Ended(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def doctor(home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: object) -> Ended:
        with pytest.raises(SystemExit) as end:
            main(["doctor", *map(str, args)])
        shown = capsys.readouterr()
        return Ended(end.value.code, shown.out, shown.err)

    return call


def only(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome) -> None:
    """Checks that find this, on tutor."""
    checks = tuple(Check(f"check {i}", lambda _, found=found: found) for i, found in enumerate(outcomes))
    monkeypatch.setattr(command, "CHECKS", checks)


@pytest.mark.slow
def test_the_whole_check_on_this_machine(wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a Mac runs on the CPU backend, too; here as on a very slow machine."""
    monkeypatch.setattr(subject_module, "_PREFILL_S", 0.0)
    monkeypatch.setattr(subject_module, "_DECODE_S", 0.0)
    monkeypatch.setattr(speed, "_CHUNK_S", math.inf)
    found = {check.name: outcome for check, outcome in check_model(wide, current_device())}
    assert list(found) == [check.name for check in CHECKS]
    assert {name: o for name, o in found.items() if o.state in (State.FAILED, State.NOT_RUN)} == {
        "wired memory": Outcome(State.NOT_RUN, "only Metal wires memory")
    }
    assert all(o.figure and "\n" not in o.figure for o in found.values())
    assert "of 32,768 decodes at" in found["in place"].figure
    assert found["decode, 8 bits"].values.keys() == {"to_16_bits", "ratio"}
    assert found["decode, 8/4 bits"].figure.endswith("mlx-lm has no such cache")
    assert list(found["forwards"].values) == ["2", "5", "9", "17"]
    assert list(found["prefill chunks"].values) == ["512", "1024", "2048"]


def test_rows_that_cannot_be_quantized_are_no_failure(tiny_path: Path, tmp_path: Path) -> None:
    model = mlxkv.load(str(tiny_path))
    subject = Subject(model, current_device(), tmp_path)
    subject.__dict__["sizes"] = SIZES
    outcome = outcome_of(next(check for check in CHECKS if check.name == "decode, 4 bits"), subject)
    assert outcome.state is State.NOT_RUN
    assert "groups of 32" in outcome.figure
    model.close()


# -- devices that are broken in one way each ---------------------------------------------------------------------------


def test_other_tokens_than_mlx_lms_fail(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exact.equal_tokens(subject).state is State.OK
    decode = ModelRunner.decode

    def wrong(*args: Any) -> Iterator[int]:
        for i, token in enumerate(decode(*args)):
            yield token if i != 3 else (token + 1) % 64

    monkeypatch.setattr(ModelRunner, "decode", wrong)
    outcome = exact.equal_tokens(subject)
    assert outcome.values["equal"] == 3
    tie = outcome.values["margin"] < exact._TIE
    assert outcome.state is (State.ATTENTION if tie else State.FAILED)
    monkeypatch.setattr(exact, "_TIE", 0.0 if tie else 100.0)
    assert exact.equal_tokens(subject).state is (State.FAILED if tie else State.ATTENTION)


def test_rows_that_a_rewind_does_not_restore_fail(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exact.rewind(subject).state is State.OK
    monkeypatch.setattr(flushes, "rewind", lambda rings, n: [setattr(r, "offset", r.offset - n) for r in rings])
    outcome = exact.rewind(subject)
    assert outcome.state is State.FAILED
    assert "arrays of rows" in outcome.figure


def test_a_rewind_that_is_refused_fails(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RingKVCache, "rewindable", property(lambda ring: 0))
    outcome = exact.rewind(subject)
    assert outcome.state is State.FAILED
    assert "can be rewound" in outcome.figure


def test_other_rows_after_a_restart_fail(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exact.resume(subject).state is State.OK
    finish = RingKVCache.finish_restore

    def lossy(ring: RingKVCache, offset: int, undo_blocks: int) -> None:
        finish(ring, offset, undo_blocks)
        ring._keys.put(9, mx.zeros((1, 2, 1, 32)))

    monkeypatch.setattr(RingKVCache, "finish_restore", lossy)
    outcome = exact.resume(subject)
    assert outcome.state is State.FAILED
    assert outcome.advice.startswith("report it")


def test_steps_that_copy_a_ring_are_noticed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.in_place(subject).state is State.OK
    put = Rows.put
    held: list[Any] = []

    def put_beside_a_reader(rows: Rows, start: int, x: Any) -> None:
        held[:] = [array[..., :1, :] for array in rows.arrays]  # as a running command does on a GPU
        put(rows, start, x)

    monkeypatch.setattr(Rows, "put", put_beside_a_reader)
    outcome = memory.in_place(subject)
    assert outcome.state is State.ATTENTION
    assert "steps copy a ring" in outcome.figure


def test_a_window_that_does_not_fit_is_halved_or_not_run(subject: Subject) -> None:
    whole = subject.plan(8192).nbytes
    room = subject.plan(1024).nbytes + subject.budget.prefill_bytes(subject.plan(8192), 128)
    subject.budget.limit = subject.model.loaded.weight_bytes + whole + room + 1000
    assert memory.in_place(subject).values["window"] == 8192
    subject.budget.limit = subject.model.loaded.weight_bytes + 2 * subject.plan(1024).nbytes
    assert memory.in_place(subject).state is State.NOT_RUN
    subject.budget.limit = subject.model.loaded.weight_bytes + 1000
    outcome = outcome_of(Check("decode", speed.decode), subject)
    assert outcome.state is State.NOT_RUN
    assert "This KV cache needs" in outcome.figure


def test_a_peak_above_the_prediction_is_noticed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.predicted_peak(subject).state is State.OK
    monkeypatch.setattr(Budget, "prefill_bytes", lambda *_: 0)
    monkeypatch.setattr(Budget, "cache_bytes", lambda *_: 10)
    outcome = memory.predicted_peak(subject)
    assert outcome.state is State.ATTENTION
    assert "MLXKV_MEMORY_LIMIT" in outcome.advice


def test_speeds_are_judged_on_a_gpu_alone(subject: Subject) -> None:
    assert speed.judged(subject, 0.5, "slow", {}).state is State.OK
    subject.device = METAL
    assert speed.judged(subject, 0.96, "even", {}).state is State.OK
    slow = speed.judged(subject, 0.94, "slow", {"ratio": 0.94})
    assert (slow.state, slow.values) == (State.ATTENTION, {"ratio": 0.94})
    assert slow.advice.startswith("close other programs")


def test_chunks_that_would_take_minutes_are_not_prefilled(subject: Subject) -> None:
    subject.__dict__["sizes"] = replace(SIZES, token_s=0.1)
    assert speed.chunks(subject) == Outcome(State.NOT_RUN, "it would take 1,229 s at 10 tok/s")


# -- what becomes of a check, and what is printed ----------------------------------------------------------------------


def test_whatever_a_check_raises_becomes_a_line(subject: Subject) -> None:
    def raises(error: BaseException) -> Outcome:
        def run(_: Subject) -> Outcome:
            raise error

        return outcome_of(Check("x", run), subject)

    assert raises(CacheError("It cannot be saved.")) == Outcome(State.NOT_RUN, "It cannot be saved.")
    failed = raises(KeyError("sink\nof"))
    assert (failed.state, "\n" in failed.figure) == (State.FAILED, False)
    assert failed.figure.startswith("KeyError: ")
    with pytest.raises(KeyboardInterrupt):
        raises(KeyboardInterrupt())


def test_the_report_names_no_user_and_no_folder(
    doctor: Any, wide: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"{home}/x and {Path.home()}/y"
    seen: list[Path] = []

    def run(subject: Subject) -> Outcome:
        seen.append(subject.folder)
        return Outcome(State.NOT_RUN, f"{subject.folder}/check.kv cannot be written, nor {Path.home()}/y\x1b[2J")

    monkeypatch.setattr(command, "CHECKS", (Check("resume", run),))
    done = doctor("--device", "-m", wide)
    assert done.code == 0
    assert where not in done.out
    assert str(Path.home()) not in done.out
    assert str(Path(wide).parent) not in done.out
    assert not any(str(folder) in done.out for folder in seen)
    assert len(set(seen)) == 2  # tutor and the chosen model
    assert not any(folder.exists() for folder in seen)
    assert re.findall(r"^(tutor|wide)$", done.out, re.MULTILINE) == ["tutor", "wide"]
    assert "not run    resume           (temporary)/check.kv cannot be written, nor ~/y" in done.out
    assert "\x1b" not in done.out
    assert re.search(r"^machine +\w+ .*\nsystem +.*\nmemory +.* usable\nversions +mlxkv .*mlx-lm", done.out)
    assert not home.exists()  # no chat was touched


@pytest.mark.parametrize(
    ("state", "code"), [(State.OK, 0), (State.ATTENTION, 0), (State.NOT_RUN, 0), (State.FAILED, 1)]
)
def test_the_exit_code_says_whether_one_failed(
    doctor: Any, monkeypatch: pytest.MonkeyPatch, state: State, code: int
) -> None:
    only(monkeypatch, Outcome(State.OK, "good"), Outcome(state, "figure", "do this", {"x": 1.5}))
    done = doctor("--device")
    assert done.code == code
    assert f"\n{state:<9}  check 1          figure; do this\n" in done.out
    printed = doctor("--device", "--json")
    assert printed.code == code
    report = json.loads(printed.out)
    assert report["versions"].startswith("mlxkv ")
    assert report["models"] == [
        {"model": "tutor", "checks": [
            {"name": "check 0", "state": "ok", "figure": "good", "advice": "", "values": {}},
            {"name": "check 1", "state": state, "figure": "figure", "advice": "do this", "values": {"x": 1.5}},
        ]}
    ]  # fmt: skip


def test_ctrl_c_ends_it_without_a_traceback(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(subject: Subject) -> Outcome:
        folders.append(subject.folder)
        raise KeyboardInterrupt

    folders: list[Path] = []
    monkeypatch.setattr(command, "CHECKS", (Check("decode", stop),))
    done = doctor("--device")
    assert done.code == 130
    assert "Traceback" not in done.err
    assert not folders[0].exists()


def test_a_model_that_does_not_fit_is_a_sentence(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "1MB")
    done = doctor("--device")
    assert done.code == 1
    assert done.err.startswith("mlxkv: tutor needs ~")
    with pytest.raises(OutOfMemoryError):
        next(check_model("tutor", current_device()))


def test_a_model_without_the_device_is_refused(doctor: Any) -> None:
    done = doctor("-m", "tutor")
    assert done.code == 2
    assert "--device or --hosts" in done.err


def test_the_installation_as_json(doctor: Any) -> None:
    done = doctor("--json")
    found = {finding["subject"]: finding["ok"] for finding in json.loads(done.out)}
    assert found["mlx"] is True
    assert done.code == (0 if all(found.values()) else 1)


def test_a_line_has_the_advice_behind_the_figure() -> None:
    assert line(Check("decode", speed.decode), Outcome(State.OK, "1.02 x mlx-lm")) == (
        "ok         decode           1.02 x mlx-lm"
    )
