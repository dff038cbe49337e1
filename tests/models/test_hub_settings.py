"""What huggingface_hub takes from the environment, where it cannot be used: a sentence. A row a value."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

import mlxkv
from mlxkv.errors import ConfigError, ModelDownloadError
from mlxkv.models import Hub, download, list_local, remove, skeleton
from mlxkv.models.hub.hub import find_local
from tests.fakes_hub import FakeHub

NO_ADDRESS = {
    "empty": "",
    "a word": "foo",
    "a host": "huggingface.co",
    "a file": "file:///etc",
    "no host": "https://",
    "a host that is none": "http://[::1",
    "a port that is none": "http://127.0.0.1:99999999",
}
BREAKS_THE_IMPORT = ["a host that is none", "a port that is none"]


@pytest.mark.parametrize("endpoint", NO_ADDRESS)
def test_an_address_that_is_none(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NO_ADDRESS[endpoint])
    monkeypatch.setenv("HF_ENDPOINT", NO_ADDRESS[endpoint])
    with pytest.raises(ConfigError, match=r"HF_ENDPOINT.*\.$"):
        download("org/model", hub=Hub(cache_dir=tmp_path))


@pytest.mark.parametrize("endpoint", BREAKS_THE_IMPORT)
def test_it_is_said_before_mlx_lm_imports_it(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that needs no hub, too: mlx-lm cannot be imported then."""
    monkeypatch.setattr(constants, "ENDPOINT", NO_ADDRESS[endpoint])
    for use in (mlxkv.load, skeleton, lambda _: list_local(), lambda _: remove("org/model")):
        with pytest.raises(ConfigError, match="hub cannot be used"):
            use("tutor")


def test_a_number_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "x")
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants")
    monkeypatch.delattr(huggingface_hub, "constants")
    with pytest.raises(ConfigError, match="HF_HUB_ETAG_TIMEOUT"):
        list_local()


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ("/dev/null/hub", "Not a directory"),
        ("/tmp/" + "a" * 5000, "File name too long"),
        ("~no-such-user/hub", "home directory"),
    ],
)
def test_a_cache_that_cannot_be_one(cache: str, says: str) -> None:
    hub = Hub(endpoint="http://127.0.0.1:9", cache_dir=Path(cache))
    for use in (list_local, lambda hub: remove("org/name", hub=hub), lambda hub: find_local(hub, "org/name")):
        with pytest.raises(ConfigError, match=says) as caught:
            use(hub)
        assert len(str(caught.value)) < 400


def test_a_token_that_no_header_holds(fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "\u043a\u043b\u044e\u0447")
    with pytest.raises(ModelDownloadError, match="check HF_TOKEN"):
        download("org/model", hub=hub)
    assert fake.requests == []


def test_a_token_in_a_pipe(fake: FakeHub, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "token")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ModelDownloadError, match=r"token .* cannot be read \(it is a pipe, not a"):
        download("org/model", hub=hub)
    assert fake.requests == []
