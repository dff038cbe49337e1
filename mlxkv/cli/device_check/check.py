"""A check of the device and its result, as values, and how one check is run. Measures nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from mlxkv.errors import MlxkvError, first_line

if TYPE_CHECKING:
    from mlxkv.cli.device_check.subject import Subject

REPORT = "report it, with all of this output"


class State(StrEnum):
    """What a check found."""

    OK = "ok"
    ATTENTION = "attention"  # right, and slower or larger than it should be
    FAILED = "failed"  # wrong
    NOT_RUN = "not run"  # the text says why


@dataclass(frozen=True)
class Outcome:
    """What a check found: `figure` in words, `advice` if there is something to do, `values` for programs."""

    state: State
    figure: str
    advice: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One check. `run` may raise an MlxkvError: it then could not be run, for that reason."""

    name: str
    run: Callable[[Subject], Outcome]


def outcome_of(check: Check, subject: Subject) -> Outcome:
    """Run one check; whatever it raises becomes an outcome, except Ctrl+C."""
    try:
        return check.run(subject)
    except MlxkvError as error:
        return Outcome(State.NOT_RUN, str(error))
    except Exception as error:  # a model's own code may raise anything
        return Outcome(State.FAILED, f"{type(error).__name__}: {first_line(error)}", REPORT)
