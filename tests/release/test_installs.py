"""What `make installs` would notice; the installations themselves are run by `.ci/run`."""

from __future__ import annotations

from pathlib import Path

import installs
import pytest

GOOD = """#!/bin/sh
test "$(env | cut -d= -f1 | grep -vE '^(_|PWD|SHLVL|OLDPWD|HOME|PATH)$')" = "" || exit 9
case "$*" in
--version) echo "mlxkv 1.2.3" ;;
doctor) echo "ok  mlxkv            1.2.3" ;;
-p*) echo "It holds keys and values." ;;
"chats ls --all") echo "01M8 1 message  What is a KV cache?" ;;
esac
"""


def command(folder: Path, script: str) -> Path:
    path = folder / "mlxkv"
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_command_that_answers_passes_in_an_empty_environment(tmp_path: Path) -> None:
    assert installs.problems(command(tmp_path, GOOD), tmp_path, "1.2.3") == []


@pytest.mark.parametrize(
    ("text", "instead", "problem"),
    [
        ("mlxkv 1.2.3", "mlxkv 1.2.2", "mlxkv --version printed"),
        ("keys and values", "nothing", "mlxkv -p What is a KV cache? printed"),
        ("What is a KV cache?", "", "mlxkv chats ls --all printed"),
    ],
)
def test_a_wrong_version_no_answer_and_a_chat_that_is_not_saved_are_noticed(
    text: str, instead: str, problem: str, tmp_path: Path
) -> None:
    (found,) = installs.problems(command(tmp_path, GOOD.replace(text, instead)), tmp_path, "1.2.3")
    assert found.startswith(problem)


def test_a_command_that_fails_ends_the_check(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 7"):
        installs.problems(command(tmp_path, "#!/bin/sh\nexit 7\n"), tmp_path, "1.2.3")


def test_the_installers_get_an_empty_home_and_the_users_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    monkeypatch.setenv("PIPX_HOME", "/elsewhere")
    monkeypatch.setenv("UV_CACHE_DIR", "/cache")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org")
    environment = installs.installer_environment(tmp_path)
    assert environment["HOME"] == str(tmp_path)
    assert environment.keys().isdisjoint({"XDG_DATA_HOME", "PIPX_HOME", "MLXKV_HOME"})
    assert environment["UV_CACHE_DIR"] == "/cache"
    assert environment["PIP_INDEX_URL"] == "https://example.org"
    assert environment["PIP_CACHE_DIR"]


def test_another_tool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="'conda' is not a tool that is tried"):
        installs.install("conda", tmp_path / "mlxkv-1.2.3.tar.gz", tmp_path, latest=True)
