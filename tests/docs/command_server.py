"""Runs the commands of shell blocks, each in a fork of one process that has imported everything.

A start of mlxkv takes two seconds of CPU, nearly all of it imports, and the pages have dozens of commands. The shell
calls a stand-in per program (`install`), which hands its arguments, folder, environment and streams to this server and
ends with the exit code it gets.

`mlxkv` runs as it is, on the fake hub, but for these:
* Without -p it would open a window, which needs a terminal: it chats in lines (--plain) on `TYPED`.
* Deleting asks on a terminal: it gets --yes.
* `PARSED` commands are parsed only, for the reason given there. Programs of `CHECKED` are checked only, likewise.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
TYPED = "What is a KV cache?\n/quit\n"

# No computation: MLX starts threads at its first, and a fork has none of them.
PRELOADED = (
    "huggingface_hub.hf_api", "mlx_lm", "mlx_lm.generate", "mlx_lm.models.llama", "mlxkv.cli.app", "mlxkv.cli.doctor",
    "mlxkv.cli.print_mode", "mlxkv.memory.preflight", "mlxkv.model", "mlxkv.store.prompts.folder",
    "mlxkv.tui.line_mode", "transformers.models.llama.configuration_llama",
    "transformers.tokenization_utils_tokenizers", "typer._adapters",
)  # fmt: skip

PARSED = {
    ("bench",): "measures for minutes",
    ("doctor", "--device"): "measures for minutes",
    ("serve",): "answers requests until it is stopped",
    ("models", "check"): "asks the hub about every model of the catalogue",
}

_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    program = os.path.basename(sys.argv[0])
    request = dict(program=program, args=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ))
    socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(server.recv(16) or b"70"))
"""


def install(folder: Path, address: str) -> None:
    """Write a stand-in for each program into `folder`, to be put in PATH."""
    folder.mkdir(parents=True)
    for program in ("mlxkv", *CHECKED):
        path = folder / program
        path.write_text(_CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        path.chmod(0o700)


def serve(address: str) -> None:
    if sys.platform != "darwin":  # Metal does not survive a fork
        for module in PRELOADED:
            importlib.import_module(module)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                code = _answer(connection)
                connection.sendall(str(code).encode())
                os._exit(0)  # the streams of MLX's threads are the parent's business
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(connection: socket.socket) -> int:
    """Run one command; its exit code."""
    data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    request = json.loads(data)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    program, args = request["program"], request["args"]
    try:
        _mlxkv(args) if program == "mlxkv" else CHECKED[program](args)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        code = 70
        print(f"{program}: {error!r}", file=sys.stderr)
    else:
        code = 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


# -- mlxkv -----------------------------------------------------------------------------------------------------------


def _mlxkv(args: list[str]) -> None:
    from mlxkv.__main__ import opens_window
    from mlxkv.cli.app import main

    if any(tuple(args[: len(words)]) == words for words in PARSED):
        _parse(args)
        return
    is_unattended = stat.S_ISCHR(os.fstat(0).st_mode)  # /dev/null: the block gives it nothing to read
    if opens_window(args) and is_unattended and "--cache" not in args:
        args = ["--plain", *args]
        read, write = os.pipe()
        os.write(write, TYPED.encode())
        os.close(write)
        os.dup2(read, 0)
    elif args[:2] in (["chats", "rm"], ["models", "rm"]) and is_unattended:
        args = [*args, "--yes"]
    main(args)


def _parse(args: list[str]) -> None:
    import typer

    from mlxkv.cli.app import app

    command = typer.main.get_command(app)
    while args and (inner := getattr(command, "commands", {}).get(args[0])) is not None:
        command, args = inner, args[1:]
    command.make_context("mlxkv", args)


# -- other programs --------------------------------------------------------------------------------------------------


def _make(args: list[str]) -> None:
    """Installs packages, runs every test, trains: here its targets must exist."""
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = [arg for arg in args if "=" not in arg and not arg.startswith("-")]
    if not targets or not {*targets} <= {*known}:
        sys.exit(f"make: no such target among {targets}")


def _python(args: list[str]) -> None:
    """Runs for minutes: here the module must exist."""
    if args[:1] != ["-m"]:
        sys.exit(f"python: only -m MODULE is checked, found {args}")
    sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec(args[1]) is None:
        sys.exit(f"python: no module {args[1]}")


def _installer(args: list[str]) -> None:
    """Downloads packages from an index: here it must be told to install this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    wanted = args[-1].rpartition("/")[2].partition("[")[0]
    if not {"install", "tap", "run", "upgrade", "uninstall"} & {*args} or wanted not in (project, "."):
        sys.exit(f"expected an installation of {project}, found {args}")


def _git(args: list[str]) -> None:
    """A clone comes from the network: here it is an empty folder, and its address must be the project's."""
    if args[0] != "clone":
        path = os.environ["PATH"].partition(":")[2]
        git = shutil.which("git", path=path) or "git"
        sys.exit(subprocess.run([git, *args], check=False).returncode)
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    if args[1].removesuffix(".git") not in [url.removesuffix(".git") for url in urls.values()]:
        sys.exit(f"git clone: {args[1]} is none of the project's addresses")
    Path(args[1].removesuffix(".git").rpartition("/")[2]).mkdir()


def _ci(args: list[str]) -> None:
    """Runs all tests, this one too: here it must be a program."""
    if not os.access(ROOT / ".ci" / "run", os.X_OK):
        sys.exit(".ci/run is no program")


def _curl(args: list[str]) -> None:
    """Asks a server that does not run here: its address must be one of the endpoint's, and its body a request."""
    from mlxkv.server.openai.chat_completions import chat_request
    from mlxkv.server.openai.fields import Fields

    address = next(arg for arg in args if arg.startswith("http")).partition(":8321")[2]
    if address not in ("/health", "/v1/models", "/v1/chat/completions"):
        sys.exit(f"curl: there is no {address}")
    if "-d" in args:
        chat_request(Fields(json.loads(args[args.index("-d") + 1])))


CHECKED: dict[str, Callable[[list[str]], None]] = {
    "make": _make, "python": _python, "python3": _python, "uv": _installer, "uvx": _installer, "pip": _installer,
    "pipx": _installer, "brew": _installer, "git": _git, "run": _ci,
    "curl": _curl,
}  # fmt: skip


if __name__ == "__main__":
    serve(sys.argv[1])
