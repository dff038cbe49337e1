"""`mlxkv doctor`: checks of this machine and installation, and what to do about each problem."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING

from mlxkv.cli.versions import version
from mlxkv.config import Folders, private_folder
from mlxkv.device import check_platform, current_device
from mlxkv.errors import MachineError, MlxkvError
from mlxkv.stats import bytes_text, disk_text, plural
from mlxkv.text.clean import clean

if TYPE_CHECKING:
    from mlxkv.store.verify import FutureDate, VerifyReport

_LEAST_FREE = 500_000_000  # bytes
_MOST_SHOWN = 5
_OVER = "an open chat uses it, named prompt caches use it (`mlxkv cache ls`), or files there cannot be removed."
_RELEASED = 1_767_225_600.0  # seconds: the beginning of 2026, the year of mlxkv's release


@dataclass(frozen=True)
class Finding:
    """One line of the report. If not `ok`, `text` says what to do."""

    subject: str
    text: str
    ok: bool = True


def examine_machines(hosts: Path, model: str | None) -> Iterator[Finding]:
    """The machines of a hostfile, and whether they can share this model (None: the built-in one).

    Raises:
        ConfigError: the hostfile is invalid.
    """
    from mlxkv.cli.input_files import as_file
    from mlxkv.distributed.start import examine_hosts
    from mlxkv.models import BUILT_IN

    try:
        with as_file(hosts) as file:
            for ok, subject, text in examine_hosts(file, model or BUILT_IN[0]):
                yield Finding(subject, text, ok)
    except MachineError as error:
        yield Finding("machines", str(error), ok=False)


def examine(folders: Folders) -> Iterator[Finding]:
    """Check everything; a problem becomes a Finding, never an exception."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("mlxkv", "mlx", "mlx-lm", "textual", "huggingface-hub"):
        with suppress(PackageNotFoundError):
            yield Finding(package, version(package))
    yield from _machine()
    yield from _backends()
    for name in ("config", "data", "cache", "state"):
        path = getattr(folders, name)
        try:
            private_folder(path)
            can_write = os.access(path, os.W_OK | os.X_OK)
            text = "" if can_write else " cannot be written to: saved chats can be read, nothing is saved."
            yield Finding(name, f"{path}{text}", ok=can_write)
        except MlxkvError as error:
            yield Finding(name, str(error), ok=False)
    yield from _disk(folders)
    yield from _store(folders)
    yield from _models()
    yield Finding("terminal", f"TERM={os.environ.get('TERM', '')} tty={sys.stdout.isatty()}")


def _machine() -> Iterator[Finding]:
    try:
        check_platform()
    except MlxkvError as error:
        yield Finding("machine", str(error), ok=False)
        return
    from mlxkv.models import suggestions

    device = current_device()
    kind = "Metal" if device.is_metal else "CPU (no Metal here)"
    yield Finding("device", f"{device.name}: {kind}, {bytes_text(device.memory_limit)} usable for models and KV")
    for suggestion in suggestions(device.memory_limit):
        entry = suggestion.entry
        yield Finding("model", f"{suggestion.reason}: {entry.id}, {bytes_text(entry.size_bytes)} to download")


def _backends() -> Iterator[Finding]:
    found = {}
    for package in ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    if len(found) > 1:
        names = " and ".join(found)
        yield Finding("mlx backend", f"{names} overwrite each other; uninstall both, then install one.", ok=False)
    elif "mlx-cpu" in found:
        yield Finding("mlx backend", "CPU; for an NVIDIA GPU: pip uninstall mlx-cpu, then pip install 'mlx[cuda13]'")


def _disk(folders: Folders) -> Iterator[Finding]:
    try:
        _, _, free = shutil.disk_usage(folders.data)
    except OSError as error:
        yield Finding("disk", f"{folders.data} cannot be examined ({error.strerror}).", ok=False)
        return
    text = f"{bytes_text(free)} free on the disk of the chats"
    enough = free >= _LEAST_FREE
    yield Finding("disk", text if enough else f"{text}; free at least {bytes_text(_LEAST_FREE)}.", ok=enough)


def _models() -> Iterator[Finding]:
    from mlxkv.models import list_local

    try:
        models = list_local(with_broken=True)
    except (MlxkvError, OSError, ValueError) as error:
        yield Finding("models", f"The model cache cannot be read ({str(error).splitlines()[0]}).", ok=False)
        return
    ready = [model for model in models if not model.problem]
    yield Finding("models", f"{len(ready)} in the cache, {bytes_text(sum(model.size_bytes for model in ready))}")
    for model in models:
        if model.problem:
            yield Finding("models", f"{model.id} {clean(model.problem)}; `mlxkv models pull {model.id}`.")


def _store(folders: Folders) -> Iterator[Finding]:
    from mlxkv.store.session_store import SessionStore
    from mlxkv.store.verify import find_future_date

    try:
        with SessionStore.open(folders, when_full="read") as store:
            report = store.verify(quick=True)
            yield Finding("sessions", f"{plural(report.num_sessions, 'chat')}, sqlite {sqlite3.sqlite_version}")
            yield Finding("KV on disk", _usage(report, store.disk_limit, store.state_bytes()))
            if store.disk_limit is not None and report.disk_bytes > store.disk_limit:
                yield Finding("disk limit", f"{folders.cache} is over it: {_OVER}", ok=False)
            yield from (Finding("KV", clean(p.text)) for p in report.problems if p.kind == "missing")
            yield from _damage(report)
            yield from _clock(find_future_date(store.sessions.database, time.time()), time.time())
    except MlxkvError as error:
        yield Finding("sessions", str(error), ok=False)


def _clock(future: FutureDate | None, now: float) -> Iterator[Finding]:
    if now < _RELEASED:
        yield Finding("clock", f"It is set to {_day(now)}, which is in the past; set this machine's clock.", ok=False)
    if future is None:
        return
    days = plural(round((future.date - now) / 86_400), "day")
    yield Finding(
        "clock",
        f"The clock was ahead, or is behind now: {clean(future.what)} is dated {_day(future.date)}, {days} from today. "
        "Chats keep the order in which they were used, and backups continue.",
    )


def _day(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d}"


def _usage(report: VerifyReport, limit: int | None, states: int) -> str:
    used = disk_text(report.disk_bytes, limit, report.named_bytes, states)
    return f"{used}; {plural(report.num_chunks, 'chunk')}, `mlxkv cache verify` checks them"


def _damage(report: VerifyReport) -> Iterator[Finding]:
    serious = [problem for problem in report.problems if problem.is_serious]
    if chunks := [problem for problem in serious if problem.kind == "chunk"]:
        text = f"{clean(chunks[0].text)} {len(chunks):,} of {report.num_chunks:,} chunk files are damaged:"
        yield Finding(
            "damage", f"{text} `mlxkv cache verify --repair` removes them; chats are then prefilled again.", ok=False
        )
    others = [problem for problem in serious if problem.kind != "chunk"]
    yield from (Finding("damage", clean(problem.text), ok=False) for problem in others[:_MOST_SHOWN])
    if more := len(others[_MOST_SHOWN:]):
        yield Finding("damage", f"{more:,} more; `mlxkv cache verify` lists all.", ok=False)
