"""What the parts of the suite share: a part with its machine and command, a home of its own, the real models.

`mlxkv.cli.bench.measure` measures speed against mlx-lm, `mlxkv.cli.bench.report` has the values.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.real_weights import folder
from mlxkv.cli.bench.report import Environment, Part, Row, Unit, command_line
from mlxkv.cli.bench.report_file import check_report_file
from mlxkv.config import Folders
from mlxkv.errors import MlxkvError

ROOT = Path(__file__).resolve().parents[1]
STORIES = ROOT.parent / "shared" / "testdata" / "stories260K"


def header(title: str) -> None:
    """Machine, versions and command."""
    print(f"# {title}", *Environment.here(command_line()).lines(), sep="\n", end="\n\n")


def writable_report(name: str) -> Path:
    """The `type` of argparse for a report to add to: refused before hours of measuring if it cannot be written."""
    try:
        check_report_file(path := Path(name))
    except MlxkvError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def make_part(
    name: str, title: str, model: str, settings: str, columns: Mapping[str, Unit], rows: Sequence[Row], *notes: str
) -> Part:
    """A part that was measured here and now, by this command."""
    return Part(name, title, model, settings, columns, rows, Environment.here(command_line()), notes=notes)


def real_model(name: str) -> Path | None:
    """The folder of a real model; where it is missing a line says how to make it."""
    if (path := folder(name)) is None:
        print(f"{name} is not here, so what needs it was left out; `make real-models` makes it.", flush=True)
    return path


@contextmanager
def fresh_home() -> Iterator[Folders]:
    """Empty folders for chats and KV rows, removed afterwards; processes started meanwhile use them too."""
    before = os.environ.get("MLXKV_HOME")
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o700)
        os.environ["MLXKV_HOME"] = root
        try:
            yield Folders.from_env({"MLXKV_HOME": root})
        finally:
            if before is None:
                del os.environ["MLXKV_HOME"]
            else:
                os.environ["MLXKV_HOME"] = before


def seconds(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    """The median of so many rounds."""
    return statistics.median(seconds(work) for _ in range(rounds))


def show(part: Part) -> None:
    """Print a part, at once."""
    print(part.markdown(), f"\n{part.seconds:,.0f} s\n", sep="", file=sys.stdout, flush=True)
