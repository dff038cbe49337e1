"""`mlxkv bench`: its options, checked before anything is measured, and what it prints.

`parts.py` measures, `report_file.py` keeps the figures. Imports neither mlx nor a model until they are needed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxkv.cli.completion import models as model_names
from mlxkv.cli.setting_options import option_of
from mlxkv.cli.start import chosen_model
from mlxkv.config import Folders, load_settings
from mlxkv.errors import ConfigError, quoted, shortened

if TYPE_CHECKING:
    from mlxkv.cli.bench.report import Part, Row

MOST_TOKENS = 1 << 24  # more than any model or machine can hold
_NEAR = 0.8  # of the median: the ratio of one pair on a quiet machine
_JSON_HELP = (
    "Write the figures to this file too. It adds to a report that is there: rows join the table of that name if model, "
    "settings, machine and versions are the same, and replace it otherwise."
)


def bench(
    model: Annotated[str | None, option_of("model", autocompletion=model_names)] = None,
    adapter: Annotated[str | None, option_of("adapter", show_default=False)] = None,
    prompt: Annotated[
        int | None, typer.Option("--prompt", help="Tokens to prefill: one context.", show_default=False)
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="Several, e.g. 512,4096.", show_default=False)
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens to generate after them.")] = 64,
    window: Annotated[
        int | None, typer.Option("--window", help="Bound the caches of both sides.", show_default=False)
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help=_JSON_HELP, show_default=False)] = None,
) -> None:
    """Measure speed and memory against mlx-lm's own caches, and the use of the memory's bandwidth."""
    from mlxkv.cli.bench.parts import Options, Subject, measure
    from mlxkv.cli.bench.report import Environment, command_line
    from mlxkv.cli.bench.report_file import check_report_file, write_report
    from mlxkv.device import check_platform
    from mlxkv.models import BUILT_IN, load_model

    check_platform()
    for option, count, least in (("--prompt", prompt, 2), ("--tokens", tokens, 1), ("--window", window, 1)):
        if count is not None and not least <= count <= MOST_TOKENS:
            raise ConfigError(f"{option} is {shortened(count)}; it must be a number from {least} to {MOST_TOKENS:,}.")
    options = Options(contexts(prompt, context), tokens, window)
    if json is not None:
        check_report_file(json)
    folders = Folders.from_env()
    settings = load_settings(folders, flags={"model": model, "adapter": adapter})
    name, tuned = chosen_model(folders, settings, None)
    loaded = load_model(name or BUILT_IN[0], adapter=tuned)
    print(*Environment.here(command_line()).lines(), "", sep="\n", flush=True)
    name = public_name(loaded.name) + (f" + {Path(loaded.adapter.name).name}" if loaded.adapter else "")
    subject = Subject(name, loaded.model, loaded.weight_bytes, loaded.tokenizer.vocab_size)
    parts = measure(subject, options, show_progress)
    show_progress("")
    print("\n".join(explained(part).markdown() for part in parts), end="", flush=True)
    if json is not None:
        write_report(json, parts, keep_rows=True)


def contexts(prompt: int | None, context: str | None) -> tuple[int, ...]:
    """Tokens of `--prompt N` or `--context N,N`; none without them.

    Raises:
        ConfigError: both are given, or a number is none.
    """
    if prompt is not None and context is not None:
        raise ConfigError("--prompt names one context and --context several; leave out one of them.")
    if context is None:
        return () if prompt is None else (prompt,)
    numbers = [part.strip() for part in context.split(",")]
    if not all(map(_is_context, numbers)):
        raise ConfigError(
            f"--context is {quoted(context)}; it must be numbers from 2 to {MOST_TOKENS:,}, such as 512,4096."
        )
    return tuple(dict.fromkeys(map(int, numbers)))


def _is_context(number: str) -> bool:
    digits = number.lstrip("0")  # Python converts no more than thousands of them
    return number.isascii() and digits.isdigit() and len(digits) < 10 and 2 <= int(digits) <= MOST_TOKENS


def public_name(model: str) -> str:
    """A model's name for a report, which may be published: of a folder the last part."""
    from mlxkv.models import resolve

    source = resolve(model)
    return source.path.name if source.path else source.name


def show_progress(what: str) -> None:
    """Show on stderr what is being measured: on a terminal on its last line, which "" clears, else a line each."""
    if sys.stderr.isatty():
        print("\r\033[K" + (f"measuring {what} ..." if what else ""), end="", file=sys.stderr, flush=True)
    elif what:
        print(f"measuring {what} ...", file=sys.stderr, flush=True)


def explained(part: Part) -> Part:
    """`part` with notes on how to read its goals and whether to trust its figures. They are printed and not kept:
    rows of a report may be measured again."""
    notes = list(part.notes)
    if goal := next((row.goal for row in part.rows if row.goal), None):
        notes.append(f"goal: at least as fast as mlx-lm ({goal.column} {goal}: 1, less a little for noise).")
    if unsteady := [row.what for row in part.rows if _is_unsteady(row)]:
        notes.append(
            f"The worst pair is more than {1 - _NEAR:.0%} below the median ({'; '.join(unsteady)}): the machine was "
            "busy, so measure again."
        )
    return replace(part, notes=notes)


def _is_unsteady(row: Row) -> bool:
    median, worst = row.values.get("ratio"), row.values.get("worst pair")
    return isinstance(median, int | float) and isinstance(worst, int | float) and worst < _NEAR * median
