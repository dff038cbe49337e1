"""`mlxkv doctor --device`: the checks in their order, run on tutor and on the chosen model, and what it prints.

The output may be pasted into a public report: it names no user and no folder. Chats are never touched: all files are in
a temporary home.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxkv.cli.bench.command import public_name, show_progress
from mlxkv.cli.bench.report import Environment, command_line
from mlxkv.cli.device_check import exact, memory, speed
from mlxkv.cli.device_check.check import Check, Outcome, State, outcome_of
from mlxkv.config import Folders
from mlxkv.errors import OutOfMemoryError
from mlxkv.settings.schema import KV_BITS
from mlxkv.stats import bytes_text
from mlxkv.text.clean import clean

if TYPE_CHECKING:
    from mlxkv.device import Device

CHECKS = (
    Check("equal tokens", exact.equal_tokens),
    Check("rewind", exact.rewind),
    Check("resume", exact.resume),
    Check("in place", memory.in_place),
    Check("predicted peak", memory.predicted_peak),
    Check("prefill", speed.prefill),
    Check("decode", speed.decode),
    *(Check(f"decode, {bits} bits", partial(speed.quantized, bits=bits)) for bits in KV_BITS),
    Check("eviction", speed.eviction),
    Check("forwards", speed.forwards),
    Check("prefill chunks", speed.chunks),
    Check("wired memory", memory.wired),
)


@dataclass(frozen=True)
class Machine:
    """What the report says of the machine; no names of users and no paths."""

    machine: str
    system: str
    memory: str
    versions: str
    command: str
    date: str

    @classmethod
    def here(cls, device: Device) -> Machine:
        found = Environment.here(command_line())
        usable = f"{bytes_text(device.memory_limit)} of {bytes_text(device.total_memory)} usable"
        return cls(found.machine, platform.platform(), usable, found.versions, found.command, found.date)


def check_device(names: list[str], as_json: bool) -> int:
    """Check all models, print the results as they come or at the end as JSON; the exit code.

    Raises:
        ModelError: a model cannot be loaded. OutOfMemoryError: it does not fit.
    """
    from mlxkv.device import check_platform, current_device

    check_platform()
    device = current_device()
    machine, found = Machine.here(device), list[dict[str, Any]]()
    if not as_json:
        print(*(f"{name:<9} {text}" for name, text in asdict(machine).items()), sep="\n", flush=True)
    for name in names:
        label = clean(public_name(name))
        if not as_json:
            print(f"\n{label}", flush=True)
        rows = []
        for check, outcome in check_model(name, device):
            rows.append({"name": check.name, **asdict(outcome)})
            if not as_json:
                print(line(check, outcome), flush=True)
        found.append({"model": label, "checks": rows})
    counts = Counter(State(row["state"]) for model in found for row in model["checks"])
    if as_json:
        print(json.dumps({**asdict(machine), "models": found}, indent=1))
    else:
        print("\n" + ", ".join(f"{counts[state]} {state}" for state in State))
    return 1 if counts[State.FAILED] else 0


def check_model(name: str, device: Device) -> Iterator[tuple[Check, Outcome]]:
    """Load a model in a temporary home and run every check on it."""
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cli.device_check.subject import Subject
    from mlxkv.memory.preflight import alternatives, check_fit
    from mlxkv.model import load

    if too_large := check_fit(name, CacheConfig()):
        raise OutOfMemoryError(f"{too_large.text}; {alternatives(too_large)}.")
    with tempfile.TemporaryDirectory() as home:
        model = load(name, folders=Folders.from_env({"MLXKV_HOME": home}))
        try:
            subject = Subject(model, device, Path(home))
            for check in CHECKS:
                show_progress(check.name)
                found = outcome_of(check, subject)
                show_progress("")
                figure, advice = (_public(text, home) for text in (found.figure, found.advice))
                yield check, replace(found, figure=figure, advice=advice)
        finally:
            model.close()


def line(check: Check, outcome: Outcome) -> str:
    """One line of the report."""
    advice = f"; {outcome.advice}" if outcome.advice else ""
    return f"{outcome.state:<9}  {check.name:<16} {outcome.figure}{advice}"


def _public(text: str, home: str) -> str:
    """A text that may hold foreign words, on one line and without folders of this machine."""
    for folder, name in ((home, "(temporary)"), (str(Path.home()), "~")):
        text = text.replace(folder, name)
    return " ".join(clean(text).split())
