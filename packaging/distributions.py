"""Build the sdist and the wheel, and check them. `make dist` runs it: python packaging/distributions.py [FOLDER]

The wheel is built from the sdist, as pip builds it where it has no wheel. Checked are: the wheel built from the
checkout is the same, byte for byte; both hold what is committed and nothing else; PyPI will render the description.
Installing the results is `installs.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("tui", "models")  # folders at the top that are installed below mlxkv, where links stand for them
SDIST_ROOTS = ("mlxkv", *LINKS, "tests")
SDIST_FILES = ("CHANGELOG.md", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", ".gitignore", "PKG-INFO")


def run(*command: str | Path) -> str:
    """Run a command in the checkout, and return what it prints. A failure ends this program with its output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def committed(*roots: str) -> set[str]:
    """The committed files below `roots` that belong into a distribution: no links, no training recipe."""
    names = set(run("git", "ls-files", "--", *roots).split("\n")) - {"", *(f"mlxkv/{link}" for link in LINKS)}
    return {name for name in names if not name.startswith("models/training/")}


def installed_name(name: str) -> str:
    """The name in the wheel of a file of the checkout."""
    return f"mlxkv/{name}" if name.split("/")[0] in LINKS else name


def in_wheel(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def in_sdist(path: Path) -> set[str]:
    with tarfile.open(path) as archive:
        return {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}


def differences(name: str, found: set[str], wanted: set[str]) -> list[str]:
    """One line per file that is in one set alone."""
    extra = [f"{name} has {path}, which is not committed" for path in sorted(found - wanted)]
    return extra + [f"{name} lacks {path}" for path in sorted(wanted - found)]


def changed_members(one: Path, other: Path) -> list[str]:
    """The members of two wheels that differ; [] if the files are the same bytes."""
    if one.read_bytes() == other.read_bytes():
        return []
    with zipfile.ZipFile(one) as a, zipfile.ZipFile(other) as b:
        both = [
            {info.filename: (info.CRC, info.external_attr, info.date_time) for info in z.infolist()} for z in (a, b)
        ]
    names = sorted(both[0].keys() | both[1].keys())
    return [name for name in names if both[0].get(name) != both[1].get(name)] or ["the archive itself"]


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    build = (sys.executable, "-m", "build", "--no-isolation")
    run(*build, "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tempfile.TemporaryDirectory() as scratch:
        run(*build, "--wheel", "--outdir", scratch, ROOT)
        changed = changed_members(wheel, Path(scratch) / wheel.name)
    problems = [f"{name} is not the same in the wheels built from the sdist and from the checkout" for name in changed]
    problems += differences("the wheel", in_wheel(wheel), {installed_name(n) for n in committed("mlxkv", *LINKS)})
    problems += differences("the sdist", in_sdist(sdist), committed(*SDIST_ROOTS) | set(SDIST_FILES))
    if problems:
        sys.exit("\n".join(problems))
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    for path in (sdist, wheel):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(*sys.argv[1:] or [ROOT / "dist"]).resolve())
