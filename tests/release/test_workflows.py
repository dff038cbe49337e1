"""The GitHub workflows: each command in them exists here, and no job may do more than it must.

Nothing on this machine runs them; what they call is run by `.ci/run` and the tests of `packaging/`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from mlxkv.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WRITES = {  # what each job may write; every other job reads
    ("docs.yml", "deploy"): {"pages", "id-token"},
    ("publish.yml", "pypi"): {"id-token"},
    ("publish.yml", "github"): {"contents"},
    ("models.yml", "report"): {"issues"},
}


def workflow(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in FILES:
        for name, job in workflow(path)["jobs"].items():
            yield path.name, name, job


def commands() -> Iterator[str]:
    """Each line of each `run:`, with continued lines joined."""
    for _, _, job in jobs():
        for step in job.get("steps", ()):
            yield from filter(None, step.get("run", "").replace("\\\n", " ").splitlines())


def problems(line: str) -> list[str]:
    """What a command line names that this repository lacks."""
    found = [path for path in re.findall(r"(?<![\w./-])(?:\.ci|packaging)/[\w./]+", line) if not (ROOT / path).exists()]
    if target := re.match(r"make ([\w./-]+)", line):
        stamp = target[1].removeprefix(".venv/ready-")
        pattern = rf"^groups_{stamp} :=" if stamp != target[1] else rf"^{stamp}:"
        found += [] if re.search(pattern, MAKEFILE, re.MULTILINE) else [f"make {target[1]}"]
    if called := re.search(r"\.venv/bin/mlxkv ([^|>&]*)", line):
        command: Any = typer.main.get_command(app)
        for word in shlex.split(called[1].strip(" 12")):
            if (subcommands := getattr(command, "commands", None)) is not None and not word.startswith("-"):
                if word not in subcommands:
                    return [*found, f"mlxkv {called[1]}"]
                command = subcommands[word]
            elif word.startswith("-") and not any(word in option.opts for option in command.params):
                found.append(f"{word} of mlxkv {called[1]}")
    return found


def test_there_are_workflows_for_checks_site_release_and_models() -> None:
    assert [path.name for path in FILES] == ["ci.yml", "docs.yml", "models.yml", "publish.yml"]


def test_every_command_in_them_exists() -> None:
    lines = list(commands())
    assert {".ci/run", "make docs", "make dist"} <= set(lines)
    assert [problem for line in lines for problem in problems(line)] == []


def test_a_device_that_fails_its_check_fails_the_job() -> None:
    """A pipe hides the exit code of its first program, except where the shell is named."""
    (job,) = (job for file, name, job in jobs() if (file, name) == ("ci.yml", "check"))
    assert "macos-latest" in job["strategy"]["matrix"]["os"]
    (step,) = (step for step in job["steps"] if "doctor --device" in step.get("run", ""))
    assert step["shell"] == "bash"


@pytest.mark.parametrize(
    "line",
    [
        "make dits", "make .venv/ready-relaese", ".ci/rnu", "python3 packaging/changelogs.py v1",
        ".venv/bin/mlxkv benhc", ".venv/bin/mlxkv models chek > x", ".venv/bin/mlxkv bench --jsno x",
    ],
)  # fmt: skip
def test_a_misspelt_command_would_be_found(line: str) -> None:
    assert problems(line)


def test_actions_are_pinned_by_commit_with_the_version_beside_it() -> None:
    for path in FILES:
        used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
        assert used
        foreign = [line for line in used if not line.startswith("$/")]
        assert not [line for line in foreign if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", line)]


def test_an_action_has_one_version_in_all_workflows() -> None:
    used = {line for path in FILES for line in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))}
    assert len({line.split("@")[0] for line in used}) == len(used)


def test_no_job_may_write_more_than_it_must_or_run_without_end() -> None:
    for path in FILES:
        assert workflow(path)["permissions"] == {}
        assert "group" in workflow(path)["concurrency"]
    for file, name, job in jobs():
        may = {scope for scope, access in job["permissions"].items() if access == "write"}
        assert may == WRITES.get((file, name), set()), f"{file}: {name}"
        assert "uses" in job or job["timeout-minutes"] <= 60  # a called workflow has limits of its own


def test_a_job_that_writes_runs_nothing_of_the_repository() -> None:
    """No checkout where a token could do harm: such jobs take files that other jobs made."""
    for file, name, job in jobs():
        checks_out = any("actions/checkout@" in step.get("uses", "") for step in job.get("steps", ()))
        assert not (checks_out and (file, name) in WRITES), f"{file}: {name}"


def test_nothing_is_published_before_it_is_checked() -> None:
    publish = workflow(ROOT / ".github/workflows/publish.yml")
    assert {name: job.get("needs") for name, job in publish["jobs"].items()} == {
        "test": None, "build": None, "install": "build", "formula": "build",
        "pypi": ["test", "install", "formula"], "github": "pypi",
    }  # fmt: skip
    assert publish["jobs"]["test"]["uses"] == "$/.github/workflows/ci.yml"
    assert "workflow_call" in workflow(ROOT / ".github/workflows/ci.yml")[True]  # YAML reads `on` as True


def test_a_tag_publishes_and_a_start_by_hand_does_not() -> None:
    publish = workflow(ROOT / ".github/workflows/publish.yml")
    assert publish[True] == {"push": {"tags": ["v*"]}, "workflow_dispatch": None}
    assert {name: job["if"] for name, job in publish["jobs"].items() if "if" in job} == {
        "pypi": "github.event_name == 'push'"  # and what needs it is left out with it
    }


def test_a_called_workflow_waits_for_no_group_that_its_caller_is_in() -> None:
    """Groups are compared without regard to case; within a called workflow `github.workflow` is the caller's name."""
    ci, publish = (workflow(ROOT / ".github/workflows" / name) for name in ("ci.yml", "publish.yml"))
    groups = [ci["concurrency"]["group"].replace("${{ github.workflow }}", each["name"]) for each in (ci, publish)]
    assert len({group.lower() for group in (*groups, publish["concurrency"]["group"])}) == 3
