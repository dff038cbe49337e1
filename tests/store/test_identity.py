"""What must match: every weight, the config, the code; and the name of what does not."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxkv.store import identity
from mlxkv.store.identity import FileHashes, code_part, first_difference, identify, sha256_of, spec_id
from mlxkv.store.session_store import SessionStore


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "tokenizer.json").write_text("{}")
    return path


CONFIG = {"model_type": "llama", "hidden": 8, "rope_theta": 1e4, "id2label": {str(n): "x" for n in range(100)}}


def test_each_input_changes_the_id_it_belongs_to(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    base = identify(path, CONFIG)
    assert identify(path, CONFIG) == base
    assert base.name == "m"
    assert max(len(v) for v in base.parts.values()) < 200

    other = identify(path, CONFIG | {"hidden": 9})
    assert other.model_id != base.model_id
    assert first_difference(base.parts, other.parts) == "config.hidden"

    (path / "tokenizer.json").write_text("[]")
    other = identify(path, CONFIG)
    assert (other.model_id, other.template_id == base.template_id) == (base.model_id, False)

    for name in ("model.safetensors", "adapters.safetensors", "adapter_config.json", "model.safetensors.index.json"):
        before = identify(path, CONFIG)
        (path / name).write_bytes(b"Weights")
        other = identify(path, CONFIG)
        assert other.model_id != before.model_id
        assert first_difference(before.parts, other.parts) == f"file.{name}"


def test_the_spec_covers_layout_rope_and_code(tmp_path: Path) -> None:
    base = identify(folder(tmp_path / "m"), CONFIG)
    layout = {"window": 64, "groups": {"full": {"layers": [1, 2]}}}
    spec = spec_id(layout, base.spec_extra)
    assert set(base.spec_extra) == {"rope.rope_theta", "code.llama"}
    assert spec == spec_id({"groups": {"full": {"layers": (1, 2)}}, "window": 64}, base.spec_extra)
    assert spec != spec_id({**layout, "window": 65}, base.spec_extra)
    assert spec != spec_id({**layout, "groups": {"full": {"layers": [2, 1]}}}, base.spec_extra)
    assert spec != spec_id(layout, {**base.spec_extra, "code.llama": "0"})


def test_the_code_is_mlx_lms_without_importing_it() -> None:
    (name, digest), *_ = code_part("llama").items()
    assert (name, len(digest)) == ("code.llama", 64)
    assert code_part("mistral") == code_part("llama")  # mlx-lm runs it with llama's module
    assert code_part("../etc")["code.../etc"] == code_part("nothing_like_it")["code.nothing_like_it"] == "unknown"
    code = (
        "import sys; from mlxkv.store.identity import code_part; code_part('llama')\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'textual')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_blob_of_the_hugging_face_cache_is_not_read(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    sha = hashlib.sha256(b"as downloaded").hexdigest()
    (blobs / sha).write_bytes(b"not what the name says, so it was not read")
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "model.safetensors"
    link.symlink_to(Path("..") / "blobs" / sha)
    assert sha256_of(link) == sha
    small = blobs / ("a" * 40)  # no LFS file: the name is git's
    small.write_bytes(b"x")
    (tmp_path / "snapshot" / "config.json").symlink_to(small)
    assert sha256_of(tmp_path / "snapshot" / "config.json") == hashlib.sha256(b"x").hexdigest()


OLD = 1_000_000_000 * 10**9  # an mtime of long ago
Change = Callable[[Path], Path | None]


class Coarse:
    """A file system whose clock ticks once in an hour."""

    def __init__(self, hashes: FileHashes) -> None:
        self._hashes = hashes

    def get(self, path: str, info: os.stat_result) -> str | None:
        return self._hashes.get(path, self._rounded(info))

    def has(self, path: str) -> bool:
        return self._hashes.has(path)

    def put(self, path: str, info: os.stat_result, sha256: str) -> None:
        self._hashes.put(path, self._rounded(info), sha256)

    def _rounded(self, info: os.stat_result) -> Any:
        fields = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
        return SimpleNamespace(**{name: getattr(info, name) for name in fields}, st_ctime_ns=0)


def write(file: Path, data: bytes = b"two") -> None:
    """In place, with size, inode and mtime as they were."""
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(OLD, OLD))


def grow(file: Path) -> None:
    file.write_bytes(b"three")


def rename(file: Path) -> None:
    new = file.with_name("new")
    new.write_bytes(b"two")
    os.utime(new, ns=(OLD, OLD))
    new.replace(file)


def put_back(file: Path) -> None:
    write(file)
    write(file, b"one")


def copy(file: Path) -> Path:
    return Path(shutil.copy2(file, file.with_name("copy")))


def move(file: Path) -> Path:
    return file.rename(file.with_name("moved"))


def nothing(file: Path) -> None:
    pass


# what happens to the file, how old it was when it was hashed (seconds; < 0: its clock is ahead), how its file system
# counts time, whether what is remembered of it is believed, and whether its rows are reused
CASES: dict[str, tuple[Change, float, bool, bool, bool]] = {
    "nothing": (nothing, 60, False, True, True),
    "touched": (Path.touch, 60, False, False, True),
    "made read-only": (lambda file: file.chmod(0o400), 60, False, False, True),
    "copied to another folder": (copy, 60, False, False, True),
    "moved": (move, 60, False, False, True),
    "replaced in place": (write, 60, False, False, False),
    "replaced by another file": (rename, 60, False, False, False),
    "replaced by what grew": (grow, 60, False, False, False),
    "replaced and put back": (put_back, 60, False, False, True),
    "nothing, hashed as it was written": (nothing, 0, False, False, True),
    "replaced in the same tick": (write, 0, True, False, False),
    "replaced in the same tick, a second later": (write, 1, True, False, False),
    "nothing, and a coarse clock": (nothing, 60, True, True, True),
    "nothing, and the clock was set back": (nothing, -86400, False, False, True),
    "replaced, and the clock was set back": (write, -86400, True, False, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("is_blob", [False, True], ids=["in a folder", "in the cache"])
@pytest.mark.parametrize(("change", "age", "is_coarse", "is_believed", "is_reused"), CASES.values(), ids=CASES.keys())
def test_what_is_believed_of_weights_that_may_have_been_replaced(
    change: Change, age: float, is_coarse: bool, is_believed: bool, is_reused: bool, is_blob: bool,
    tmp_path: Path, store: SessionStore, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    one = hashlib.sha256(b"one").hexdigest()
    file = tmp_path / "blobs" / one if is_blob else tmp_path / "model.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"one")
    os.utime(file, ns=(OLD, OLD))
    hashes = Coarse(store.file_hashes) if is_coarse else store.file_hashes
    now = file.stat().st_ctime_ns + int(age * 10**9)

    def named(file: Path) -> Path:
        link = tmp_path / "link.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(file)
        return link if is_blob else file

    monkeypatch.setattr(identity, "time", SimpleNamespace(time_ns=lambda: now))
    assert sha256_of(named(file), hashes) == one
    after = change(file) or file
    num_read = 0

    def digest(stream: Any, name: str) -> Any:
        nonlocal num_read
        num_read += 1
        return hashlib.new(name, stream.read())

    monkeypatch.setattr(identity.hashlib, "file_digest", digest)
    assert (sha256_of(named(after), hashes) == one) == is_reused
    assert num_read == (0 if is_believed else 1)


def test_an_adapter_and_a_shard_are_parts_of_the_model(tmp_path: Path) -> None:
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    for path in (folder, adapter):
        path.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (adapter / "adapters.safetensors").write_bytes(b"lora")
    (adapter / "adapter_config.json").write_text("{}")
    bare = identify(folder, {"model_type": "llama"})
    tuned = identify(folder, {"model_type": "llama"}, adapter=adapter)
    halves = [bare.of_part(f"tensor {n}/2") for n in range(2)]
    assert len({i.model_id for i in (bare, tuned, *halves)}) == 4
    assert {*tuned.parts} - {*bare.parts} == {"adapter.adapters.safetensors", "adapter.adapter_config.json"}
    assert halves[1].parts["shard"] == "tensor 1/2"
    (adapter / "adapters.safetensors").write_bytes(b"other")
    other = identify(folder, {"model_type": "llama"}, adapter=adapter)
    assert first_difference(tuned.parts, other.parts) == "adapter.adapters.safetensors"
    assert {i.template_id for i in (bare, tuned, *halves)} == {bare.template_id}
