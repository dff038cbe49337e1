"""`.ci/run` and what CI's summary takes from it: no failure is lost, and each says in a sentence what it was.

Here `make` is a stand-in, which prints its arguments and does what the test wants of each target.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MAKE = """#!/bin/sh
echo "make $*"
if [ "$*" = "$STOPS" ]; then kill $PPID; fi
case "$*" in test-real) printf '%s\\n' "$REAL" ;; test*) printf '%s\\n' "$PYTEST" ;; esac
if printf '%s\\n' "$FAILS" | grep -qxF -e "$*"; then exit 2; fi
"""
WITHOUT_UV = pytest.mark.skipif(Path("/usr/bin/uv").exists(), reason="there is always uv here")
CORES = os.sysconf("SC_NPROCESSORS_ONLN")
TEST = f"test WORKERS=--numprocesses={CORES + 1} --dist=worksteal ARGS=-m 'not real'"
AGAIN = "test WORKERS= ARGS=--last-failed --last-failed-no-failures=none -m 'not real'"
COLLECT = "test WORKERS= ARGS=--collect-only --quiet"
REAL = "test-real"
UV, INSTALL = "build/uv/uv", ".venv/ready-ci"
CHECKS = "--keep-going lint installs"
SUMMARY = "===== 7 passed, 3 skipped in 312.33s (0:05:12) ====="
SKIPPED = "SKIPPED [3] tests/conftest.py:41: shared/testdata is not beside this checkout: no real weights"


def run(
    folder: Path, *fails: str, prints: str = "", real: str = "", stops: str = "", has_uv: bool = True
) -> tuple[int, str, list[str]]:
    """`.ci/run` in `folder`, where these commands of make fail, pytest prints that, also on real weights, and a signal
    comes during `stops`: exit code, output, its lines."""
    programs = folder / "programs"
    programs.mkdir()
    for name, program in (("make", MAKE), *([("uv", "")] if has_uv else [])):
        (programs / name).write_text(program, encoding="utf-8")
        (programs / name).chmod(0o755)
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(programs), "/usr/bin", "/bin"]),
        "FAILS": "\n".join(fails) or "none", "PYTEST": prints, "REAL": real, "STOPS": stops,
    }  # fmt: skip
    done = subprocess.run(
        [folder / ".ci" / "run"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout, done.stdout.splitlines()


def test_it_passes_where_everything_does(tmp_path: Path) -> None:
    code, output, lines = run(tmp_path)
    assert code == 0, output
    assert [line for line in lines if line.startswith("make ")] == [
        f"make {command}" for command in (INSTALL, TEST, CHECKS, REAL)
    ]
    assert lines[-1].startswith("== passed in ")


def test_a_failure_of_lint_or_the_packages_ends_it(tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, CHECKS)
    assert code == 1
    assert [line for line in lines if line.startswith("make ")][-1] == f"make {CHECKS}"  # its log is shown
    assert lines[-3] == "Failed: make lint or make installs; see above."
    assert lines[-1].startswith("== failed after ")


def test_a_failure_on_real_weights_ends_it(tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, REAL, real="E  assert 7 == 8")
    assert code == 1
    assert "E  assert 7 == 8" in lines
    assert lines[-3] == "Failed: make test-real; see above."


@WITHOUT_UV
def test_without_uv_it_is_installed_first(tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, has_uv=False)
    assert code == 0
    assert [line for line in lines if line.startswith("make ")][:2] == [f"make {UV}", f"make {INSTALL}"]


@pytest.mark.parametrize(("command", "has_uv"), [pytest.param(UV, False, marks=WITHOUT_UV), (INSTALL, True)])
def test_a_failure_to_install_ends_it(command: str, has_uv: bool, tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, command, has_uv=has_uv)
    assert code == 2
    assert [line for line in lines if line.startswith("make ")][-1] == f"make {command}"
    assert lines[-1].startswith("== failed after ")


def test_a_test_that_cannot_be_collected_ends_it(tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, COLLECT, prints="ImportError: no such name")
    assert code == 1
    assert "ImportError: no such name" in lines
    assert f"make {TEST}" not in lines


def test_what_failed_side_by_side_has_to_fail_alone(tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, TEST)
    assert code == 0
    assert f"make {AGAIN}" in lines


def test_what_fails_alone_too_ends_it(tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, TEST, AGAIN)
    assert code == 2
    assert lines[-1].startswith("== failed after ")


@pytest.mark.parametrize("line", ["INTERNALERROR> Traceback", "!!!!! Interrupted: 1 error during collection !!!!!"])
def test_a_run_that_was_broken_off_is_not_saved_by_its_failures_alone(line: str, tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, TEST, prints=line)
    assert code == 1
    assert f"make {AGAIN}" not in lines
    assert "Not all tests have run." in lines


def test_a_signal_is_no_pass(tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, stops=INSTALL)
    assert code == -signal.SIGTERM
    assert lines[-1].startswith("== failed after ")


def test_a_skipped_test_on_real_weights_ends_it(tmp_path: Path) -> None:
    code, _, lines = run(tmp_path, real=SKIPPED)
    assert code == 1
    assert lines[-3] == "None of these may be skipped."


def summary(folder: Path) -> list[str]:
    """What the step of ci.yml adds to GitHub's summary when run in `folder`."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (step,) = (s for s in workflow["jobs"]["check"]["steps"] if "GITHUB_STEP_SUMMARY" in s.get("run", ""))
    assert step["if"] == "always()"
    environment = os.environ | {"GITHUB_STEP_SUMMARY": str(folder / "summary")}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=folder, env=environment, capture_output=True, check=True)
    return (folder / "summary").read_text(encoding="utf-8").splitlines()[2:-1]


def test_the_summary_shows_pytests_own_lines_about_skipped_tests(tmp_path: Path) -> None:
    run(tmp_path, TEST, AGAIN, prints=f"tests/test_a.py ..s [100%]\n{SKIPPED}\n{SUMMARY}")
    assert summary(tmp_path) == [SKIPPED, SUMMARY]


def test_the_summary_says_if_nothing_ran(tmp_path: Path) -> None:
    run(tmp_path, INSTALL)
    assert summary(tmp_path) == ["No test has run."]
