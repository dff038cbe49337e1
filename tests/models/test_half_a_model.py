"""Half a model in the cache, one row a case: what is wrong, and what lists and loading say of it.

What cannot be loaded is never listed as ready, what a download would mend is not taken for whole, and the sentence
names the file. The rest of the model is right: two shards, an index, a tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxkv.cli.app import main
from mlxkv.errors import ModelDownloadError, ModelError, ModelFileError
from mlxkv.models import Hub, list_local, load_model
from mlxkv.models.files.completeness import INDEX, check_complete, missing_files, problem
from mlxkv.models.hub.hub import find_local
from mlxkv.models.hub.snapshot import link
from mlxkv.protocol.commands import ListModels
from mlxkv.protocol.events import ModelCard, ModelList
from tests.engine.test_engine_chats import Said
from tests.safetensors_files import encode

REPO, COMMIT = "org/model", "c0ffee" * 6 + "cafe"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARD = encode({"w": ("U8", (1000,), bytes(1000))}, {})
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    FIRST: SHARD,
    SECOND: SHARD,
    INDEX: json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}).encode(),
}
Damage = Callable[[Path], object]


def unlink(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def dangle(*names: str) -> Damage:
    return lambda folder: [(folder / name).resolve().unlink() for name in names]


def write(name: str, data: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return damage


def index(value: object) -> Damage:
    return write(INDEX, json.dumps(value).encode())


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def fifo(name: str) -> Damage:
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


LACKS, ELSEWHERE = "lacks {}", "names {}"
# what is done, what is said, whether a download would bring what is missing
CASES: dict[str, tuple[Damage, str, bool]] = {
    "a shard": (unlink(SECOND), LACKS.format(SECOND), True),
    "all shards": (unlink(FIRST, SECOND), f"lacks {FIRST}, {SECOND}", True),
    "a shard's blob": (dangle(SECOND), LACKS.format(SECOND), True),
    "a shard, and no index": (unlink(SECOND, INDEX), LACKS.format(SECOND), True),
    "the first shard, and no index": (unlink(FIRST, INDEX), LACKS.format(FIRST), True),
    "the index's blob": (dangle(INDEX), LACKS.format(INDEX), True),
    "the index's blob and a shard": (both(dangle(INDEX), unlink(FIRST)), f"lacks {FIRST}, {INDEX}", True),
    "a shard of another name": (index({"weight_map": {"a": "other.safetensors"}}), "lacks other.safetensors", True),
    "five shards": (
        index({"weight_map": {str(n): f"model-{n}.safetensors" for n in range(5)}}),
        "lacks model-0.safetensors, model-1.safetensors, model-2.safetensors and 2 more",
        True,
    ),
    "a shard that is a pipe": (fifo(SECOND), LACKS.format(SECOND), True),
    "a pipe beside the shards": (lambda f: os.mkfifo(f / "model-x.safetensors"), "model-x.safetensors", False),
    "a shard that is a folder": (both(unlink(SECOND), lambda f: (f / SECOND).mkdir()), LACKS.format(SECOND), True),
    "a shard that ends early": (write(SECOND, SHARD[:-1]), f"{SECOND} is cut off at {len(SHARD) - 1:,} of", True),
    "a shard that ends in its header": (write(SECOND, SHARD[:20]), SECOND, True),
    "an empty shard": (write(SECOND, b""), SECOND, True),
    "an index of a file outside": (index({"weight_map": {"a": "../x.safetensors"}}), ELSEWHERE.format("'../x"), False),
    "an index from the root": (index({"weight_map": {"a": "/etc/passwd"}}), ELSEWHERE.format("'/etc/passwd'"), False),
    "an index of a NUL": (index({"weight_map": {"a": "a\0"}}), ELSEWHERE.format("'a\\x00'"), False),
    "an index of no name": (index({"weight_map": {"a": ""}}), ELSEWHERE.format("''"), False),
    "an index of dots": (index({"weight_map": {"a": ".."}}), ELSEWHERE.format("'..'"), False),
    "an index of 5,000 letters": (index({"weight_map": {"a": "a" * 5000}}), ELSEWHERE.format("'aaaa"), False),
    "an index of numbers": (index({"weight_map": {"a": 7}}), "must map tensors to files", False),
    "an index of a list": (index({"weight_map": ["a"]}), "must map tensors to files", False),
    "an index of nothing": (index({}), "must map tensors to files", False),
    "an index that is a list": (index([]), "must hold a JSON object", False),
    "an index that is no JSON": (write(INDEX, b"{"), "cannot be read as JSON", False),
    "an index that is deep": (write(INDEX, b'{"weight_map":' + b"[" * 100_000), "cannot be read as JSON", False),
    "a tokenizer": (unlink("tokenizer.json"), "lacks tokenizer.json", True),
    "a tokenizer's blob": (dangle("tokenizer.json"), "lacks tokenizer.json", True),
    "the blob of a list of tokens": (
        both(write("added_tokens.json", b""), lambda f: link(f / "gone", f / "added_tokens.json")),
        "lacks added_tokens.json",
        True,
    ),
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """The model as a download leaves it."""
    hub = Hub(cache_dir=tmp_path / "hub")
    storage = hub.storage(REPO)
    (storage / "blobs").mkdir(parents=True)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(COMMIT)
    for number, (name, data) in enumerate(FILES.items()):
        blob = storage / "blobs" / f"{number:040}"
        blob.write_bytes(data)
        link(blob, storage / "snapshots" / COMMIT / name)
    return hub


def folder_of(hub: Hub) -> Path:
    return hub.storage(REPO) / "snapshots" / COMMIT


def test_a_whole_model_is_ready(hub: Hub) -> None:
    folder = folder_of(hub)
    check_complete(folder, REPO)
    assert (missing_files(folder), problem(folder, REPO)) == ((), "")
    assert find_local(hub, REPO) == folder
    assert [model.id for model in list_local(hub)] == [REPO]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "says", "is_missing"), CASES.values(), ids=CASES.keys())
def test_half_a_model(damage: Damage, says: str, is_missing: bool, hub: Hub) -> None:
    folder = folder_of(hub)
    damage(folder)
    assert list_local(hub) == ()
    (model,) = list_local(hub, with_broken=True)
    assert (model.id, says in model.problem) == (REPO, True), model.problem
    assert find_local(hub, REPO) == (None if is_missing else folder)
    with pytest.raises(ModelFileError) as caught:
        load_model(str(folder))
    sentence = str(caught.value)
    assert says in sentence
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert "parameters" not in sentence


@pytest.mark.parametrize(
    ("damage", "says"),
    [(unlink("config.json"), r"holds no config\.json"), (dangle("config.json"), r"holds no config\.json"),
     (fifo("config.json"), r"config\.json cannot be read as JSON \(it is a pipe")],
    ids=["gone", "its blob gone", "a pipe"],
)  # fmt: skip
def test_without_its_configuration_a_model_is_in_no_list(damage: Damage, says: str, hub: Hub) -> None:
    damage(folder_of(hub))
    assert list_local(hub, with_broken=True) == ()
    assert find_local(hub, REPO) is None
    with pytest.raises(ModelError, match=says):
        load_model(str(folder_of(hub)))


def test_a_configuration_alone_is_not_listed(hub: Hub) -> None:
    """`models info` fetches that much."""
    unlink(FIRST, SECOND, INDEX)(folder_of(hub))
    assert list_local(hub, with_broken=True) == ()
    with pytest.raises(ModelFileError, match=r"lacks model\.safetensors; .* convert it with mlx_lm"):
        load_model(str(folder_of(hub)))


def test_offline_the_sentence_names_the_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    unlink(SECOND)(folder_of(hub))
    with pytest.raises(ModelDownloadError, match=f"lacks {SECOND}, and HF_HUB_OFFLINE"):
        load_model(REPO, hub=hub)


def test_a_model_that_mlx_lm_does_not_know_is_not_listed(hub: Hub) -> None:
    """People keep models of other kinds in the same cache."""
    write("config.json", b'{"model_type": "wav2vec2"}')(folder_of(hub))
    assert list_local(hub, with_broken=True) == ()
    assert "model_type wav2vec2" in problem(folder_of(hub), REPO)


def test_a_revision_is_listed_by_the_name_that_loads_it(hub: Hub) -> None:
    refs = hub.storage(REPO) / "refs"
    (refs / "pr").mkdir()
    (refs / "main").rename(refs / "pr" / "1")
    assert [model.id for model in list_local(hub)] == [f"{REPO}@pr/1"]
    assert find_local(hub, REPO, "pr/1") == folder_of(hub)
    (refs / "pr" / "1").unlink()
    assert [model.id for model in list_local(hub)] == [f"{REPO}@{COMMIT}"]


def test_a_download_that_was_interrupted_is_listed_as_that(hub: Hub, tmp_path: Path) -> None:
    blobs = Hub(cache_dir=tmp_path / "other").storage(REPO) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'a' * 64}.mlxkv-partial").write_bytes(b"123")
    (model,) = list_local(Hub(cache_dir=tmp_path / "other"), with_broken=True)
    assert (model.id, model.size_bytes, model.problem) == (REPO, 3, "is not fully downloaded")
    assert list_local(Hub(cache_dir=tmp_path / "other")) == ()


@pytest.mark.slow
def test_the_windows_list_and_the_command_line_tell_half_from_whole(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache_dir))
    said = Said()

    def shown() -> str:
        with pytest.raises(SystemExit):
            main(["models", "ls"])
        return next(line for line in capsys.readouterr().out.splitlines() if REPO in line)

    def card() -> ModelCard:
        event = said.one(ListModels(), ModelList)
        return next(card for card in event.models if card.id == REPO)

    assert shown().startswith("here ")
    assert (card().is_local, card().note) == (True, "")
    unlink(SECOND)(folder_of(hub))
    assert shown().startswith("broken ")
    assert shown().endswith(f"{REPO}  lacks {SECOND}")
    assert (card().is_local, card().note) == (False, f"lacks {SECOND}")
