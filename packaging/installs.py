"""Install a built sdist or wheel with uv, pipx and pip as a stranger would, and ask it something.

    python packaging/installs.py uv=dist/mlxkv-0.1.0.tar.gz pipx=dist/mlxkv-0.1.0-py3-none-any.whl [--latest]

Each tool gets an empty HOME. Versions come from constraints.txt; with --latest the newest that pyproject.toml allows,
as users get them. uv and pipx are those beside this Python, or of PATH. Downloads stay in the user's own caches.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
QUESTION = "What is a KV cache?"
SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"  # not ours: the installed command must need nothing from there


def call(command: list[str], environment: dict[str, str]) -> str:
    """Run a command away from the checkout, and return its standard output. A failure ends this program."""
    done = subprocess.run(
        command, env=environment, cwd=environment["HOME"], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def installer_environment(home: Path) -> dict[str, str]:
    """This process's environment with `home` for HOME, without what would lead the tools elsewhere."""
    foreign = re.compile(r"XDG_|PIPX_|UV_TOOL|MLXKV_|PYTHON|VIRTUAL_ENV|HOME$")
    kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    caches = {f"{tool.upper()}_CACHE_DIR": str(Path.home() / ".cache" / tool) for tool in ("pip", "uv")}
    return caches | kept | {"HOME": str(home), "PATH": path}


def install(tool: str, file: Path, home: Path, *, latest: bool) -> Path:
    """Install `file` below `home`; returns the command."""
    environment = installer_environment(home)
    exactly = [] if latest else ["--constraint", str(CONSTRAINTS)]
    match tool:
        case "uv":
            call(["uv", "tool", "install", "--python", sys.executable, *exactly, str(file)], environment)
        case "pipx":
            arguments = [f"--pip-args={' '.join(exactly)}"] if exactly else []
            call(["pipx", "install", "--python", sys.executable, *arguments, str(file)], environment)
        case "pip":
            python = home / "env" / "bin" / "python"
            call([sys.executable, "-m", "venv", str(home / "env")], environment)
            call([str(python), "-m", "pip", "install", *exactly, str(file)], environment)
            return python.with_name("mlxkv")
        case _:
            sys.exit(f"{tool!r} is not a tool that is tried; use uv, pipx or pip.")
    return home / ".local" / "bin" / "mlxkv"


def problems(command: Path, home: Path, version: str) -> list[str]:
    """What is wrong with an installed command, one line each; it runs with HOME and a system's PATH alone."""
    environment = {"HOME": str(home), "PATH": SYSTEM_PATH}
    wanted = {
        ("--version",): f"mlxkv {version}\n",
        ("doctor",): f"ok  mlxkv            {version}\n",
        ("-p", QUESTION): "keys and values",
        ("chats", "ls", "--all"): QUESTION,
    }
    printed = {arguments: call([str(command), *arguments], environment) for arguments in wanted}
    return [f"mlxkv {' '.join(a)} printed {printed[a]!r}, without {text!r}" for a, text in wanted.items()
            if text not in printed[a]]  # fmt: skip


def main(arguments: list[str]) -> None:
    for tool, name in (argument.split("=", 1) for argument in arguments if argument != "--latest"):
        file = Path(name).resolve()
        version = re.sub(r"(\.tar\.gz|-py3-none-any\.whl)$", "", file.name.removeprefix("mlxkv-"))
        with tempfile.TemporaryDirectory() as home:
            begin = time.monotonic()
            command = install(tool, file, Path(home), latest="--latest" in arguments)
            installed = time.monotonic()
            if found := problems(command, Path(home), version):
                sys.exit("\n".join(found))
            seconds = f"installed in {installed - begin:.0f} s, checked in {time.monotonic() - installed:.0f} s"
        print(f"{tool:5} {file.name}: {seconds}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
