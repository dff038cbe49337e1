"""What gets installed, what a script may rely on, and what stays out of the way until it is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import pytest

import mlxkv

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "constraints.txt",
    "mlxkv",
    "tui",
    "models",
    "tests",
)

# -- wheel and sdist -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    wheel: frozenset[str]
    sdist: frozenset[str]
    metadata: str
    entry_points: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An sdist of a copy of this checkout, and the wheel built from that sdist; no index is asked.

    The copy also has what must stay out: a training recipe and its weights, as a working tree may.
    """
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    (source / "models" / "training").mkdir(exist_ok=True)
    (source / "models" / "training" / "recipe.py").write_text("", encoding="utf-8")
    (source / "tests" / "stray.py").write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata, entry_points = (
            archive.read(next(n for n in names if n.endswith(f".dist-info/{end}"))).decode()
            for end in ("METADATA", "entry_points.txt")
        )
    with tarfile.open(sdist) as archive:
        members = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    assert len(names) == len(set(names))
    return Built(frozenset(names), frozenset(members), metadata, entry_points)


def in_checkout(folder: str) -> set[str]:
    """Files of one folder, links not followed, without what must not be installed."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file() and not path.is_symlink())
    return {
        path.as_posix()
        for path in found
        if "__pycache__" not in path.parts and path.parts[:2] not in (("models", "training"), ("mlxkv", "tui"))
        and path.parts[:2] != ("mlxkv", "models")
    }  # fmt: skip


@pytest.mark.slow
def test_the_wheel_is_one_package(built: Built) -> None:
    """`tui/` and `models/` are installed as mlxkv.tui and mlxkv.models, once, and nothing else is."""
    wanted = in_checkout("mlxkv") | {f"mlxkv/{name}" for name in in_checkout("tui") | in_checkout("models")}
    assert {name for name in built.wheel if ".dist-info/" not in name} == wanted
    assert {"mlxkv/cli/app.py", "mlxkv/models/loading/load.py", "mlxkv/models/catalogue.toml"} <= wanted
    assert "mlxkv/tui/app.py" in wanted


def test_the_wheel_says_that_it_is_typed(built: Built) -> None:
    """Without the marker of PEP 561, type checkers ignore the annotations of an installed package."""
    assert "mlxkv/py.typed" in built.wheel


def test_the_wheel_leaves_out_training_and_tests(built: Built) -> None:
    tops = {name.split("/")[0] for name in built.wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mlxkv"}
    assert not [name for name in built.wheel if "training" in name or "test" in name]


def test_the_sdist_has_each_file_once_and_can_build_the_wheel(built: Built) -> None:
    assert {"pyproject.toml", "README.md", "LICENSE", "tui/app.py", "models/catalogue.toml", "tests/stray.py"} <= set(
        built.sdist
    )
    assert not [name for name in built.sdist if name.startswith(("mlxkv/tui", "mlxkv/models", "models/training"))]


def test_the_wheel_brings_the_command_and_its_licence(built: Built) -> None:
    assert "mlxkv = mlxkv.__main__:main" in built.entry_points
    assert f"\nVersion: {mlxkv.__version__}\n" in built.metadata
    assert "\nLicense-Expression: MIT\n" in built.metadata
    assert any(name.endswith("/licenses/LICENSE") for name in built.wheel)


def test_each_platform_gets_its_mlx(built: Built) -> None:
    """mlx-cpu and the CUDA packages overwrite each other, so Linux must ask for exactly one of them."""
    wants = [line for line in built.metadata.splitlines() if line.startswith("Requires-Dist: mlx")]
    assert [w for w in wants if "darwin" in w and "[" not in w]
    assert [w for w in wants if "linux" in w and "mlx[cpu]" in w]
    assert len(wants) == 3  # these two and mlx-lm


# -- the public names ------------------------------------------------------------------------------------------------

NAMES = [
    "AsyncChat", "AsyncEvents", "AsyncModel", "AsyncPromptCache", "BatchEvent", "CacheConfig", "Chat", "Choice",
    "Completion", "Estimate", "MlxkvError", "Model", "Notice", "PrefillProgress", "PromptCache", "ReplyFinished",
    "RequestFailed", "Sampling", "SamplingParams", "Score", "TextDelta", "TokenLogprobs", "ToolCall", "TurnEvent",
    "TurnFinished", "TurnStats", "errors", "estimate", "events", "load", "make_cache", "open_async",
]  # fmt: skip

METHODS = {
    "Model": [
        "generate",
        "stream",
        "generate_batch",
        "stream_batch",
        "score",
        "choose",
        "prefill",
        "chat",
        "resume",
        "make_cache",
        "load_cache",
        "import_mlx_lm",
        "close",
    ],
    "Chat": ["send", "cancel", "undo", "retry", "edit", "fork", "save", "close"],
    "AsyncModel": ["stream", "generate", "generate_batch", "chat", "resume", "prefill", "load_cache", "run", "close"],
    "AsyncChat": ["ask", "send", "cancel", "undo", "retry", "edit", "fork", "save", "run", "close"],
    "AsyncPromptCache": ["save", "export_mlx_lm", "fork", "run", "close"],
    "PromptCache": ["save", "export_mlx_lm", "fork", "reuse", "rewind", "nbytes"],
    "Completion": ["text", "tokens", "stats", "thinking", "tool_calls", "logprobs", "finish_reason"],
}


def test_the_public_names() -> None:
    assert mlxkv.__all__ == NAMES
    assert dir(mlxkv) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_resolves_to_something_of_that_name(name: str) -> None:
    found = getattr(mlxkv, name)
    assert getattr(found, "__name__", name).removeprefix("mlxkv.") == name


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        _ = mlxkv.Modell


@pytest.mark.parametrize("name", METHODS)
def test_what_scripts_call(name: str) -> None:
    owner = getattr(mlxkv, name)
    there = set(dir(owner)) | {f.name for f in fields(owner)} if is_dataclass(owner) else set(dir(owner))
    assert set(METHODS[name]) <= there


# -- what is not imported --------------------------------------------------------------------------------------------

HEAVY = (
    "mlx",
    "mlx_lm",
    "textual",
    "transformers",
    "huggingface_hub",
    "numpy",
)  # each costs a tenth of a second or more


def imported(code: str, *suspects: str) -> list[str]:
    """Which of `suspects` are loaded after `code` ran in a Python of its own."""
    probe = f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    probe += f"print('loaded', *(name for name in {suspects!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1].split()[1:]


@pytest.mark.slow
def test_the_probe_sees_what_is_imported() -> None:
    assert imported("import mlxkv.inference.generation", "mlx", "textual") == ["mlx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import mlxkv",
        "import mlxkv.cli.app",
        "import mlxkv.events, mlxkv.stats, mlxkv.config, mlxkv.errors",
        "import mlxkv.models",
        "import mlxkv.tui",
        "from mlxkv.cli.app import main; main(['--help'])",
        "from mlxkv.cli.app import main; main(['--version'])",
        "from mlxkv.cli.app import main; main(['chats', '--help'])",
        "from mlxkv.cli.app import main; main(['path'])",
    ],
)
def test_light_commands_import_nothing_heavy(code: str) -> None:
    assert imported(code, *HEAVY) == []


@pytest.mark.slow
def test_a_typo_is_told_before_anything_heavy_is_imported() -> None:
    code = "import mlxkv.cli.app as c\n    try: c.main(['-p', 'hi', '--temp', 'hot'])\n    except SystemExit: pass"
    assert imported(code, *HEAVY) == []


@pytest.mark.slow
def test_nothing_below_the_window_imports_textual() -> None:
    """A script, print mode and the engine run without it. (import-linter reads the code; this runs it.)"""
    modules = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "mlxkv").rglob("*.py"))]
    names = [".".join(path.parts) for path in modules if path.name != "__init__" and "tui" not in path.parts]
    assert "mlxkv.engine.thread" in names
    assert imported(f"import {', '.join(names)}", "textual", "mlx") == ["mlx"]
