"""Downloads against a hub of our own on 127.0.0.1: whole, broken off, resumed, cancelled, refused, offline."""

from __future__ import annotations

import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from mlxkv.errors import ModelDownloadError, ModelFileError, ModelNotFoundError
from mlxkv.models import Hub, download, plan_download
from mlxkv.models.hub.blob import partial_path
from mlxkv.models.hub.download import ensure
from mlxkv.models.hub.hub import find_local
from tests.fakes_hub import COMMIT, FakeHub

REPO, WEIGHTS = "org/model", "model.safetensors"
WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def partial_of(hub: Hub, fake: FakeHub) -> Path:
    (file,) = [f for f in plan_download(REPO, hub=hub).files if f.path == WEIGHTS]
    return partial_path(hub.storage(REPO) / "blobs" / file.id)


def test_whole(fake: FakeHub, hub: Hub) -> None:
    seen: list[tuple[int, int]] = []
    folder = download(REPO, hub=hub, progress=lambda done, total: seen.append((done, total)))
    assert folder.name == COMMIT
    assert names(folder) == WANTED
    assert all((folder / name).read_bytes() == fake.files[name] for name in WANTED)
    total = sum(len(fake.files[name]) for name in WANTED)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert len(seen) >= 4  # the 3 MB are seen arriving
    assert fake.sent[WEIGHTS] == len(fake.files[WEIGHTS])


def test_nothing_that_can_run_is_even_asked_for(fake: FakeHub, hub: Hub) -> None:
    download(REPO, hub=hub)
    asked = {path.rsplit("/", 1)[1] for method, path in fake.requests if "/resolve/" in path}
    assert asked == WANTED


def test_again_fetches_nothing(fake: FakeHub, hub: Hub) -> None:
    folder = download(REPO, hub=hub)
    fake.sent.clear()
    assert download(REPO, hub=hub) == folder
    assert fake.sent == {}


def test_broken_off_goes_on_at_once(fake: FakeHub, hub: Hub) -> None:
    """One cut is not worth an error: the rest is asked for with a Range."""
    fake.break_after = 1_500_000

    def mend(done: int, _: int) -> None:
        if done >= 1_000_000:
            fake.break_after = None

    folder = download(REPO, hub=hub, progress=mend)
    assert (folder / WEIGHTS).read_bytes() == fake.files[WEIGHTS]
    assert fake.count("GET", WEIGHTS) == 2
    assert fake.sent[WEIGHTS] == len(fake.files[WEIGHTS])  # not a byte twice


def test_interrupted_then_only_the_rest(fake: FakeHub, hub: Hub) -> None:
    fake.break_after = 1_500_000
    with pytest.raises(ModelDownloadError, match="cannot be reached"):
        download(REPO, hub=hub)
    assert find_local(hub, REPO) is None
    there = partial_of(hub, fake).stat().st_size
    assert there == 1_500_000
    fake.break_after = None
    fake.sent.clear()
    seen: list[int] = []
    folder = download(REPO, hub=hub, progress=lambda done, _: seen.append(done))
    assert fake.sent[WEIGHTS] == len(fake.files[WEIGHTS]) - there
    assert there + sum(len(fake.files[name]) for name in WANTED - {WEIGHTS}) in seen
    assert (folder / WEIGHTS).read_bytes() == fake.files[WEIGHTS]
    assert not partial_of(hub, fake).exists()


def test_server_without_ranges(fake: FakeHub, hub: Hub) -> None:
    fake.break_after = 1_500_000
    with pytest.raises(ModelDownloadError):
        download(REPO, hub=hub)
    fake.break_after, fake.ignores_range = None, True
    seen: list[int] = []
    folder = download(REPO, hub=hub, progress=lambda done, _: seen.append(done))
    assert (folder / WEIGHTS).read_bytes() == fake.files[WEIGHTS]
    assert seen[-1] == plan_download(REPO, hub=hub).total_bytes


def test_damaged_on_the_way(fake: FakeHub, hub: Hub) -> None:
    fake.flip = True
    with pytest.raises(ModelDownloadError, match="damaged"):
        download(REPO, hub=hub)
    assert not partial_of(hub, fake).exists()  # a wrong part must not be resumed for ever
    fake.flip = False
    assert (download(REPO, hub=hub) / WEIGHTS).read_bytes() == fake.files[WEIGHTS]


def test_partial_file_longer_than_the_file(fake: FakeHub, hub: Hub) -> None:
    path = partial_of(hub, fake)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(len(fake.files[WEIGHTS]) + 1))
    assert (download(REPO, hub=hub) / WEIGHTS).read_bytes() == fake.files[WEIGHTS]


def test_two_processes_do_not_write_one_file(fake: FakeHub, hub: Hub) -> None:
    import fcntl

    path = partial_of(hub, fake)
    path.parent.mkdir(parents=True)
    with path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ModelDownloadError, match="Another process"):
            download(REPO, hub=hub)


def test_cancelled_keeps_what_arrived(fake: FakeHub, hub: Hub) -> None:
    cancel = threading.Event()

    def stop(done: int, _: int) -> None:
        if done >= 1_000_000:
            cancel.set()

    with pytest.raises(ModelDownloadError, match="was stopped"):
        download(REPO, hub=hub, progress=stop, cancel=cancel)
    assert partial_of(hub, fake).stat().st_size >= 1_000_000
    assert find_local(hub, REPO) is None


def test_cancelled_before_it_began(fake: FakeHub, hub: Hub) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(ModelDownloadError, match="was stopped"):
        download(REPO, hub=hub, cancel=cancel)
    assert fake.sent == {}


def test_cancelled_among_the_small_files(fake: FakeHub, hub: Hub) -> None:
    cancel = threading.Event()
    with pytest.raises(ModelDownloadError, match="was stopped"):
        download(REPO, hub=hub, allow=("*.json",), progress=lambda *_: cancel.set(), cancel=cancel)
    assert not list((hub.storage(REPO) / "snapshots").rglob("*.json"))


def test_what_the_callback_raises_comes_out(fake: FakeHub, hub: Hub) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done:
            raise Enough

    with pytest.raises(Enough):
        download(REPO, hub=hub, progress=stop)


def test_a_plan_can_be_refused_before_anything_is_fetched(fake: FakeHub, hub: Hub) -> None:
    def refuse(plan: object) -> None:
        raise ModelFileError("no")

    with pytest.raises(ModelFileError, match="no"):
        download(REPO, hub=hub, check=refuse)
    assert fake.sent == {}


@pytest.mark.parametrize(("status", "code"), [(403, "GatedRepo"), (401, "GatedRepo"), (403, "")])
def test_gated_files(fake: FakeHub, hub: Hub, status: int, code: str) -> None:
    fake.file_status, fake.error_code = status, code
    with pytest.raises(ModelDownloadError, match=r"gated .*accept its terms"):
        download(REPO, hub=hub)


def test_gated_small_files(fake: FakeHub, hub: Hub) -> None:
    fake.file_status, fake.error_code = 403, "GatedRepo"
    with pytest.raises(ModelDownloadError, match="gated"):
        download(REPO, hub=hub, allow=("*.json",))


@pytest.mark.parametrize(("status", "code"), [(404, "RepoNotFound"), (401, "")])
def test_missing_repository(fake: FakeHub, hub: Hub, status: int, code: str) -> None:
    fake.status, fake.error_code = status, code
    with pytest.raises(ModelNotFoundError, match="no repository org/model"):
        download(REPO, hub=hub)


def test_missing_revision(fake: FakeHub, hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match="no revision 'v9'"):
        download(REPO, "v9", hub=hub)


def test_server_error(fake: FakeHub, hub: Hub) -> None:
    fake.file_status = 500
    with pytest.raises(ModelDownloadError, match="HTTP 500"):
        download(REPO, hub=hub)


def test_no_server(online: None, tmp_path: Path) -> None:
    hub = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "hub")
    with pytest.raises(ModelDownloadError, match="cannot be reached"):
        download(REPO, hub=hub)


def test_offline(fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelDownloadError, match="HF_HUB_OFFLINE"):
        ensure(REPO, hub=hub)
    assert fake.requests == []


def test_in_the_cache_the_network_is_not_asked(fake: FakeHub, hub: Hub) -> None:
    folder = download(REPO, hub=hub)
    fake.requests.clear()
    assert ensure(REPO, hub=hub) == folder
    assert ensure(REPO, COMMIT, hub=hub) == folder
    assert fake.requests == []


def test_half_a_snapshot_counts_as_not_there(fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download(REPO, hub=hub)
    (folder / WEIGHTS).resolve().unlink()  # the blob; the link stays, as after a crash
    assert find_local(hub, REPO) is None
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelDownloadError, match=r"lacks model\.safetensors, and HF_HUB_OFFLINE"):
        ensure(REPO, hub=hub)


@pytest.mark.slow
def test_one_of_two_shards_counts_as_not_there(fake: FakeHub, hub: Hub) -> None:
    weights = fake.files.pop(WEIGHTS)
    fake.files["model-00001-of-00002.safetensors"] = weights
    fake.files["model-00002-of-00002.safetensors"] = weights + b" "
    fake.files["model.safetensors.index.json"] = (
        b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    folder = download(REPO, hub=hub)
    assert find_local(hub, REPO) == folder
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert find_local(hub, REPO) is None
    fake.sent.clear()
    download(REPO, hub=hub)
    assert fake.sent == {}  # its blob was still there: only the link was missing
    assert find_local(hub, REPO) == folder


def test_disk_too_small(fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1_000_000))
    with pytest.raises(ModelDownloadError, match=r"needs 3\.1 MB more .* 1\.0 MB free"):
        download(REPO, hub=hub)
    assert fake.sent == {}


def test_room_for_the_rest_is_enough(fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.break_after = 2_500_000
    with pytest.raises(ModelDownloadError):
        download(REPO, hub=hub)
    fake.break_after = None
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1_000_000))
    assert (download(REPO, hub=hub) / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b""}, "no config.json"),
        ({"config.json": b"{}"}, "no weights at all"),
        ({"config.json": b"{}", "a.gguf": b"x"}, "only files such as 'a.gguf'"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only files such as 'pytorch_model.bin'"),
        ({"config.json": b"{}", "consolidated.safetensors": b"x"}, "no model"),
    ],
)
def test_no_model_in_it(fake: FakeHub, hub: Hub, files: dict[str, bytes], message: str) -> None:
    fake.files = files
    with pytest.raises(ModelFileError, match=message):
        download(REPO, hub=hub)
    assert fake.count("GET", "/resolve/") == 0


def test_hash_that_is_a_path(fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash becomes a file's name: a hub that lies about it must not choose where we write."""
    tree = fake.tree()
    for entry in tree:
        if isinstance(lfs := entry.get("lfs"), dict):
            lfs["oid"] = "../../../../evil"
    monkeypatch.setattr(fake, "tree", lambda: tree)
    with pytest.raises(ModelFileError, match=r"invalid hash '\.\./"):
        download(REPO, hub=hub)


def test_file_name_that_climbs(fake: FakeHub, hub: Hub, tmp_path: Path) -> None:
    fake.files["../../../../evil.jinja"] = b"{}"
    with pytest.raises((ModelDownloadError, ModelFileError)):
        download(REPO, hub=hub)
    assert not list(tmp_path.parent.rglob("evil.jinja"))


def test_a_partial_file_of_other_bytes_is_fetched_again_at_once(fake: FakeHub, hub: Hub) -> None:
    path = partial_of(hub, fake)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not its beginning")
    assert (download(REPO, hub=hub) / WEIGHTS).read_bytes() == fake.files[WEIGHTS]


def test_a_file_that_a_crash_cut_off_is_fetched_again(fake: FakeHub, hub: Hub) -> None:
    folder = download(REPO, hub=hub)
    for name in (WEIGHTS, "config.json"):
        (folder / name).resolve().write_bytes(b"half")
    download(REPO, hub=hub)
    assert all((folder / name).read_bytes() == fake.files[name] for name in WANTED)


def test_files_of_one_content_are_fetched_once(fake: FakeHub, hub: Hub) -> None:
    fake.files["added_tokens.json"] = fake.files["tokenizer.json"]
    seen: list[tuple[int, int]] = []
    download(REPO, hub=hub, progress=lambda done, total: seen.append((done, total)))
    assert (fake.sent.get("tokenizer.json"), fake.sent.get("added_tokens.json")) == (2, None)
    assert seen[-1][0] == seen[-1][1]


def test_a_cache_that_cannot_be_written_to_is_enough_when_all_is_there(
    fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = download(REPO, hub=hub)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    for name in ("replace", "symlink", "unlink"):
        monkeypatch.setattr(f"os.{name}", refuse)
    assert download(REPO, hub=hub) == folder


def test_without_links_the_files_themselves_lie_in_the_snapshot(
    fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.symlink", refuse)
    folder = download(REPO, hub=hub)
    assert (folder / WEIGHTS).read_bytes() == fake.files[WEIGHTS]
    assert not (folder / WEIGHTS).is_symlink()
    fake.sent.clear()
    assert download(REPO, hub=hub) == folder
    assert fake.sent == {}
