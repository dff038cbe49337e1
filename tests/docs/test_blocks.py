"""Every code block of the documentation runs, or is checked in a way that is named here. An unknown kind fails."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxkv.config import Folders, load_settings
from tests.docs import command_server
from tests.docs.pages import PAGES, ROOT, Block, blocks, name_of
from tests.fakes_hub import FakeHub, Handler, serve
from tests.store.foreign.exports import chatgpt, lm_studio, write, write_zip
from tests.thorough import part

BLOCKS = [block for page in PAGES for block in blocks(page)]
FILES = {  # what blocks read
    "river.json": '{"type": "object", "properties": {"name": {"enum": ["Tejo", "Douro"]}}, "required": ["name"]}',
    "book.txt": "Once upon a time there was a dog called Max. He was the hero. In the end he slept.",
    "notes.txt": "My name is Ada. I live in Porto.",
    "prompts.jsonl": '{"id": "sky", "prompt": "Why is the sky blue?"}\n',
    "questions.txt": "What is a KV cache?\nWhat is a sink?\n",
    "script.txt": "What is a KV cache?\n/quit\n",
    "runner.py": "print('hello')\n",
}
PRELUDE = """
mlxkv -q -p "Why is the sky blue?" >/dev/null
mlxkv chats rename "Why is" sky
cp "$MLXKV_HOME/data/mlxkv.db" "$MLXKV_HOME/data/backups/mlxkv-20261129.db"
"""


def of_kind(*kinds: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind in kinds]


def pages_with(*kinds: str) -> list[Path]:
    return [page for page in PAGES if any(block.kind in kinds for block in blocks(page))]


SERVED = {"server.md"}
"""Pages whose Python needs a server: `tests/server/test_command.py` runs it."""


# -- kinds -----------------------------------------------------------------------------------------------------------


def check_json(code: str) -> None:
    json.loads(code)


def check_toml(code: str) -> None:
    """It is what `config.toml` may hold."""
    folders = Folders.from_env()
    folders.config.mkdir(parents=True, mode=0o700)
    (folders.config / "config.toml").write_text(code, encoding="utf-8")
    assert tomllib.loads(code)
    load_settings(folders)


def check_mermaid(code: str) -> None:
    """The build of the site draws it; here the kind of diagram must be one that GitHub knows."""
    first = next(line for line in code.splitlines() if not line.startswith("%%"))
    assert re.match(r"(flowchart|sequenceDiagram|stateDiagram-v2|graph)\b", first)


def check_directives(code: str) -> None:
    """The build of the site runs them; here what they document must exist."""
    for kind, target in re.findall(r"^\.\. auto(\w+):: ([\w.]+)", code, re.MULTILINE):
        try:
            importlib.import_module(target)
        except ImportError:
            module, _, name = target.rpartition(".")
            assert hasattr(importlib.import_module(module), name), f"{kind} {target}"


def check_text(code: str) -> None:
    """A picture of a screen, a folder or a layout: no command may hide in it."""
    assert not re.search(r"^\s*(\$ |mlxkv -|make |pip |uv |>>> )", code, re.MULTILINE)


CHECKS = {
    "json": check_json, "toml": check_toml, "mermaid": check_mermaid, "{eval-rst}": check_directives, "": check_text,
    "text": check_text,
}  # fmt: skip


def test_each_kind_of_block_is_run_or_checked() -> None:
    unknown = [str(block) for block in BLOCKS if block.kind not in {"python", "sh", *CHECKS}]
    assert not unknown, f"a kind that no test runs; use one of python, sh, {', '.join(CHECKS)}"
    assert {block.kind for block in BLOCKS} >= {"python", "sh", "json", "toml", "mermaid", "{eval-rst}"}


@pytest.mark.parametrize("block", of_kind(*CHECKS), ids=str)
def test_a_block_that_is_no_program_is_valid(block: Block) -> None:
    CHECKS[block.kind](block.code)


# -- what the programs use -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    """Serves tutor as the model of every name, so that blocks run as they are."""
    tutor = ROOT / "models" / "tutor"
    files = {
        path.name: path.read_bytes() for path in tutor.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")
    }

    def serves_any(handler: Handler, path: str) -> bool:
        if found := re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:/|$)", path):
            handler.fake.repo = found[1]
        return False

    with serve(FakeHub(files=files, rules=[serves_any])) as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    user = tmp_path_factory.mktemp("user")
    write(user / ".lmstudio" / "conversations" / "1.conversation.json", lm_studio())
    return kept | {
        "PATH": "/usr/bin:/bin",
        "TERM": "xterm",
        "HOME": str(user),
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_ENDPOINT": hub.endpoint,
        "MLXKV_MAX_TOKENS": "8",
        "MLXKV_TEMPERATURE": "0",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The current folder of a block, with the files that blocks read."""
    here = tmp_path / "here"
    here.mkdir()
    for name, text in FILES.items():
        (here / name).write_text(text, encoding="utf-8")
    write_zip(here / "chatgpt-export.zip", {"conversations.json": [chatgpt(title="Trip to Porto")]})
    return here


# -- Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages_with("python") if page.name not in SERVED], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, folder: Path, home: Path, environment: dict[str, str]) -> None:
    """All blocks of a page, in order, in one namespace; the model that they name is tutor, from the fake hub."""
    code = "\n".join(block.code for block in blocks(page) if block.kind == "python")
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
    env = environment | {"MLXKV_HOME": str(home), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# -- the shell -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell whose programs are those of `command_server`."""
    programs = tmp_path_factory.mktemp("programs") / "bin"
    with tempfile.TemporaryDirectory(prefix="mlxkv") as short:  # the address of a socket has at most 107 bytes
        command_server.install(programs, address := f"{short}/s")
        env = environment | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.docs.command_server", address]
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "ready\n"
                yield environment | {"PATH": f"{programs}:/usr/bin:/bin"}
            finally:
                server.terminate()


@pytest.fixture(scope="module")
def used_home(shell: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a chat named sky and a backup of it."""
    home = tmp_path_factory.mktemp("prepared") / "home"
    run = bash(PRELUDE, tmp_path_factory.mktemp("here"), shell | {"MLXKV_HOME": str(home)})
    assert run.returncode == 0, run.stderr
    return home


def bash(code: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", part(pages_with("sh"), 2), ids=name_of)
def test_the_shell_blocks_of_a_page_run(
    page: Path, folder: Path, home: Path, shell: dict[str, str], used_home: Path
) -> None:
    """All blocks of a page, in order, in one folder and one home; see `command_server` for what stands in for what."""
    shutil.copytree(used_home, home)
    env = shell | {"MLXKV_HOME": str(home)}
    programs = env["PATH"].partition(":")[0]
    for stand_in, program in ((".venv/bin/python", "python"), (".ci/run", "run")):
        (folder / stand_in).parent.mkdir(parents=True)
        (folder / stand_in).symlink_to(Path(programs) / program)
    bash("git init -q . && git add runner.py && echo 1 >> runner.py", folder, env)
    for block in blocks(page):
        if block.kind == "sh":
            run = bash(block.code, folder, env)
            assert run.returncode == 0, f"{block} ended with {run.returncode}\n{block.code}\n{run.stdout}{run.stderr}"
