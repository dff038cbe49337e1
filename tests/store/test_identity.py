"""What must match: every weight, the config, the code; and the name of what does not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from mlxkv.store import SessionStore, identify
from mlxkv.store.identity import code_part, first_difference, sha256_of, spec_id


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


def test_a_local_file_is_hashed_once(tmp_path: Path, store: SessionStore) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    info = file.stat()
    assert sha256_of(file, store.file_hashes) == hashlib.sha256(b"one").hexdigest()
    store.file_hashes.put(str(file), info, "ab" * 32)
    assert sha256_of(file, store.file_hashes) == "ab" * 32
    file.write_bytes(b"three")
    assert sha256_of(file, store.file_hashes) == hashlib.sha256(b"three").hexdigest()


def test_weights_replaced_with_size_and_time_unchanged_are_hashed_again(tmp_path: Path, store: SessionStore) -> None:
    """The same inode, size and mtime: only the kernel's own time tells."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    info = file.stat()
    first = sha256_of(file, store.file_hashes)
    while file.stat().st_ctime_ns == info.st_ctime_ns:
        file.write_bytes(b"two")
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    again = file.stat()
    assert (again.st_ino, again.st_size, again.st_mtime_ns) == (info.st_ino, info.st_size, info.st_mtime_ns)
    assert sha256_of(file, store.file_hashes) == hashlib.sha256(b"two").hexdigest() != first


def test_an_adapter_and_a_shard_are_parts_of_the_model(tmp_path: Path) -> None:
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    for path in (folder, adapter):
        path.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (adapter / "adapters.safetensors").write_bytes(b"lora")
    (adapter / "adapter_config.json").write_text("{}")
    bare = identify(folder, {"model_type": "llama"})
    tuned = identify(folder, {"model_type": "llama"}, adapter=adapter)
    halves = [identify(folder, {"model_type": "llama"}, shard=f"tensor {n}/2") for n in range(2)]
    assert len({i.model_id for i in (bare, tuned, *halves)}) == 4
    assert {*tuned.parts} - {*bare.parts} == {"adapter.adapters.safetensors", "adapter.adapter_config.json"}
    assert halves[1].parts["shard"] == "tensor 1/2"
    (adapter / "adapters.safetensors").write_bytes(b"other")
    other = identify(folder, {"model_type": "llama"}, adapter=adapter)
    assert first_difference(tuned.parts, other.parts) == "adapter.adapters.safetensors"
    assert {i.template_id for i in (bare, tuned, *halves)} == {bare.template_id}
