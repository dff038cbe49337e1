"""What lies in the cache: only what can be loaded is listed, and removing one leaves nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxkv.errors import ModelDownloadError, ModelNotFoundError
from mlxkv.models import Hub, download, list_local, remove
from tests.fakes_hub import FakeHub

REPO = "org/model"


def test_no_cache(tmp_path: Path) -> None:
    assert list_local(Hub(cache_dir=tmp_path / "none")) == ()


def test_listed(fake: FakeHub, hub: Hub) -> None:
    folder = download(REPO, hub=hub)
    (model,) = list_local(hub)
    assert (model.id, model.model_type, model.path) == (REPO, "llama", folder)
    assert model.size_bytes == sum(len(fake.files[p.name]) for p in folder.iterdir())
    assert model.last_used > 1_600_000_000


def test_half_a_model_is_not_listed(fake: FakeHub, hub: Hub) -> None:
    download(REPO, hub=hub, allow=("*.json",))
    assert list_local(hub) == ()


def test_something_that_is_no_model_is_not_listed(fake: FakeHub, hub: Hub) -> None:
    fake.files["config.json"] = b'{"sample_rate": 16000}'
    download(REPO, hub=hub)
    assert list_local(hub) == ()


def test_removed(fake: FakeHub, hub: Hub) -> None:
    size = sum(len((download(REPO, hub=hub) / name).read_bytes()) for name in ("config.json", "model.safetensors"))
    assert remove(REPO, hub=hub) >= size
    assert list_local(hub) == ()
    assert not hub.storage(REPO).exists()
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        remove(REPO, hub=hub)


def test_the_rest_of_a_broken_download_is_removed(fake: FakeHub, hub: Hub) -> None:
    fake.break_after = 1_500_000
    with pytest.raises(ModelDownloadError):
        download(REPO, hub=hub)
    assert remove(REPO, hub=hub) == 1_500_000 + sum(fake.sent[n] for n in fake.sent if not fake.is_large(n))
    assert not hub.storage(REPO).exists()


def test_a_folder_is_the_users(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="delete the folder yourself"):
        remove(str(tmp_path))
    assert tmp_path.is_dir()
