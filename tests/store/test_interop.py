"""mlx-lm's prompt-cache files: both generations in and out, compared with mlx-lm going on from the same file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import generate as mlx_lm_generate
from mlx_lm import load as mlx_lm_load
from mlx_lm.models import cache as theirs

import mlxkv
from mlxkv.cache.interchange import OPAQUE
from mlxkv.cache.mlx_lm import ImportedCache, to_model_dtype
from mlxkv.config import Folders
from mlxkv.errors import CacheError, ConfigError, MismatchError, StoreError
from mlxkv.model import Model
from mlxkv.store.prompts.mlx_lm_file import VERSIONS, made_with, read_mlx_lm
from tests.fixtures.mlx_lm.make import CONTINUE, MODELS, PROMPT, STEPS
from tests.reference import largest, logits_of, random_ids
from tests.tokenizers import tiny_folder

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mlx_lm"
MADE_BY = ("0.28.4", "0.31.3", "0.32.2")
AT_ONCE, ONE_BY_ONE = [5], [1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Model]]:
    """The model that the fixtures of a kind were made with."""
    loaded: dict[int, Model] = {}

    def get(kind: str) -> Model:
        size = MODELS[kind]
        if size["hidden"] not in loaded:
            folder = tiny_folder(tmp_path_factory.mktemp("interop") / "model", **size)
            loaded[size["hidden"]] = mlxkv.load(str(folder))
        return loaded[size["hidden"]]

    yield get
    for model in loaded.values():
        model.close()


def plainly_read(path: Path) -> list[Any]:
    """The obvious reader: what mlx-lm's own would make of a file of either generation."""
    loaded: Any = mx.load(str(path), return_metadata=True)
    arrays, metadata = loaded
    layers = []
    for i in range(2):
        if (new := metadata["2.0"] == "") and path.parent.name != "0.32.2":
            return list(theirs.load_prompt_cache(str(path)))
        kind = metadata[f"1.{i}" if new else f"2.{i}"]
        if kind == "QuantizedKVCache":
            layer: Any = theirs.QuantizedKVCache(32, 8)
            layer.keys, layer.values = (tuple(arrays[f"{i}.{s}.{n}"] for n in range(3)) for s in (0, 1))
        else:
            layer = theirs.KVCache() if kind == "KVCache" else theirs.RotatingKVCache(16, keep=4)
            layer.keys, layer.values = arrays[f"{i}.0"], arrays[f"{i}.1"]
        layer.offset = len(PROMPT) + len(STEPS)
        if kind == "RotatingKVCache":
            layer._idx = 11
        layers.append(layer)
    return layers


def differ(model: Model, ours: list[Any], other: list[Any], sizes: list[int], ids: list[int] = CONTINUE) -> float:
    """The largest difference of any logit while both go on with the same ids."""
    network = model.loaded.model
    return largest(logits_of(network, ours, ids, sizes) - logits_of(network, other, ids, sizes))


# -- in --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [AT_ONCE, ONE_BY_ONE], ids=["prefill", "decode"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("version", MADE_BY)
def test_files_of_every_version_go_on_as_there(models: Any, version: str, kind: str, sizes: list[int]) -> None:
    path, model = FIXTURES / version / f"{kind}.safetensors", models(kind)
    cache = model.import_mlx_lm(path)
    assert cache.tokens == [OPAQUE] * 27
    assert differ(model, cache.layers, plainly_read(path), sizes) == 0.0
    if sizes == ONE_BY_ONE:
        again = model.import_mlx_lm(path)
        recorded = mx.array(json.loads((path.parent / "logits.json").read_text())[kind])
        assert largest(logits_of(model.loaded.model, again.layers, CONTINUE, sizes)[-1] - recorded) < 1e-4


def test_what_was_imported_can_be_asked_forked_and_exported_again(models: Any, tmp_path: Path) -> None:
    model = models("plain")
    cache = model.import_mlx_lm(FIXTURES / "0.31.3" / "plain.safetensors", mlxkv.CacheConfig(window=64, block=16))
    assert type(cache.layers[0]).__name__ == "RingKVCache"
    first = model.generate("who?", cache=cache.fork(), max_tokens=4, temperature=0.0)
    second = model.generate("who?", cache=cache.fork(), max_tokens=4, temperature=0.0, repetition_penalty=1.0001)
    assert first.stats.cached_tokens == 27
    assert second.tokens == first.tokens
    cache.export_mlx_lm(tmp_path / "again.safetensors")
    again = model.import_mlx_lm(tmp_path / "again.safetensors")
    assert differ(model, again.layers, cache.fork().layers, AT_ONCE) == 0.0
    with pytest.raises(CacheError, match="ids of an imported cache are unknown"):
        cache.save(tmp_path / "x.kv")


def test_a_long_one_widens_the_default_window(models: Any, tmp_path: Path) -> None:
    model = models("plain")
    long = model.prefill("a" * 700, mlxkv.CacheConfig(window=1024))
    long.export_mlx_lm(tmp_path / "long.safetensors")
    cache = model.import_mlx_lm(tmp_path / "long.safetensors")
    assert cache.num_evicted == 0
    assert differ(model, cache.layers, long.layers, AT_ONCE) == 0.0


@pytest.mark.parametrize("kind", MODELS)
def test_imported_tokens_are_never_read_again(models: Any, kind: str) -> None:
    cache = models(kind).import_mlx_lm(FIXTURES / "0.32.2" / f"{kind}.safetensors")
    assert isinstance(cache, ImportedCache)
    for prompt in ([5, 6, 7], [OPAQUE] * 20 + [3], [OPAQUE] * 27):
        with pytest.raises(CacheError, match="cannot be prefilled again"):
            cache.reuse(prompt)
        assert cache.offset == 27
    assert cache.reuse([OPAQUE] * 27 + [3]).cached == 27


@pytest.mark.parametrize(("kind", "other"), [("plain", "quantized"), ("quantized", "plain"), ("rotating", "quantized")])
def test_a_file_of_another_model_is_refused(models: Any, kind: str, other: str) -> None:
    with pytest.raises(MismatchError, match="load the model it was made with"):
        models(other).import_mlx_lm(FIXTURES / "0.32.2" / f"{kind}.safetensors")


# -- out -------------------------------------------------------------------------------------------------------------


def loaded_back(path: Path, version: str) -> list[Any]:
    """What mlx-lm of that version holds after loading the file; the installed one is 0.32."""
    if version == "0.32":
        return list(theirs.load_prompt_cache(str(path)))
    layers = []
    for state in read_mlx_lm(path).layers:
        match state.kind:
            case "KVCache":
                layer: Any = theirs.KVCache()
            case "RotatingKVCache":
                layer = theirs.RotatingKVCache(state.max_size, state.keep)
                layer._idx = state.idx
            case "QuantizedKVCache":
                layer = theirs.QuantizedKVCache(state.group_size, state.bits)
        packed = state.kind == "QuantizedKVCache"
        layer.keys, layer.values = (side if packed else side[0] for side in (state.keys, state.values))
        layer.offset = state.offset
        layers.append(layer)
    return layers


@pytest.mark.parametrize("version", VERSIONS)
def test_an_export_goes_on_there_exactly_as_here(models: Any, tmp_path: Path, version: str) -> None:
    model = models("plain")
    cache = model.prefill("once upon a time. " * 12, mlxkv.CacheConfig(window=512, block=64))
    size = cache.export_mlx_lm(tmp_path / "book.safetensors", version)
    assert size == (tmp_path / "book.safetensors").stat().st_size
    assert (tmp_path / "book.safetensors").stat().st_mode & 0o777 == 0o600
    for sizes in (AT_ONCE, ONE_BY_ONE):
        there = loaded_back(tmp_path / "book.safetensors", version)
        assert {type(layer).__name__ for layer in there} == {"KVCache"}
        assert differ(model, cache.fork().layers, there, sizes) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_quantized_export_decodes_there_exactly_as_here(models: Any, tmp_path: Path, version: str) -> None:
    model = models("quantized")
    for bits in (8, 4):
        cache = model.prefill("once upon a time. " * 12, mlxkv.CacheConfig(window=512, block=64, bits=bits))
        cache.export_mlx_lm(tmp_path / "book.safetensors", version)
        there = loaded_back(tmp_path / "book.safetensors", version)
        assert {(type(layer).__name__, layer.bits) for layer in there} == {("QuantizedKVCache", bits)}
        assert differ(model, cache.fork().layers, there, ONE_BY_ONE) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrapped_ring_is_seen_whole_by_the_next_call(models: Any, tmp_path: Path, version: str, sinks: int) -> None:
    """The same rows in another order, so the sums round differently: the blank row must not be seen at all."""
    model = models("plain")
    config = mlxkv.CacheConfig(window=64, block=16, sinks=sinks)
    for n in (64 + sinks, 90, 96, 100, 101, 131):
        cache = model.prefill(random_ids(n, seed=n), config)
        assert cache.plan.geometry is not None
        cache.export_mlx_lm(tmp_path / "book.safetensors", version)
        there = loaded_back(tmp_path / "book.safetensors", version)
        assert {(type(c).__name__, c.keep, c.offset) for c in there} == {("RotatingKVCache", sinks, n)}
        assert there[0].keys.shape[2] == cache.plan.geometry.live(n + 1)  # a blank row in the next token's place
        one = CONTINUE[:1]
        assert differ(model, cache.fork().layers, there, ONE_BY_ONE, one) < 1e-5, n
        if cache.tokens_to_boundary() >= 2:  # several at once: their first token sees every row
            there = loaded_back(tmp_path / "book.safetensors", version)
            two = [logits_of(model.loaded.model, c, CONTINUE[:2], [2])[0] for c in (cache.fork().layers, there)]
            assert largest(two[0] - two[1]) < 1e-5, n


@pytest.mark.slow
def test_a_sliding_window_goes_on_there(tmp_path: Path) -> None:
    """A model whose own caches rotate: mlx-lm, having read the same ids, says the same."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    model = mlxkv.load(str(tiny_folder(tmp_path / "sliding", **kinds)))
    ids = random_ids(50, seed=9)
    own = theirs.make_prompt_cache(model.loaded.model)
    assert [type(layer).__name__ for layer in own] == ["RotatingKVCache", "KVCache"]
    logits_of(model.loaded.model, own, ids, [50])
    cache = model.prefill(ids, mlxkv.CacheConfig(window=256, block=16))
    for version in VERSIONS:
        cache.export_mlx_lm(tmp_path / "book.safetensors", version)
        there = loaded_back(tmp_path / "book.safetensors", version)
        assert [type(layer).__name__ for layer in there] == ["RotatingKVCache", "KVCache"]
        assert differ(model, there, copy.deepcopy(own), ONE_BY_ONE) < 1e-5
    again = model.import_mlx_lm(tmp_path / "book.safetensors")
    assert differ(model, again.layers, loaded_back(tmp_path / "book.safetensors", "0.31"), AT_ONCE) == 0.0
    model.close()


@pytest.mark.slow
def test_what_mlx_lm_cannot_hold_is_refused(models: Any, tmp_path: Path) -> None:
    model, ids = models("quantized"), random_ids(120, seed=2)
    path = tmp_path / "x.safetensors"
    for config, ids_, why in (
        (mlxkv.CacheConfig(window=64, block=16, bits=8), ids, "wrapped"),
        (mlxkv.CacheConfig(window=64, block=16, bits=(8, 4)), ids[:20], "keys of 8 and values of 4 bits"),
    ):
        with pytest.raises(CacheError, match=why):
            model.prefill(ids_, config).export_mlx_lm(path)
    pc = model.prefill(ids[:5])
    with pytest.raises(ConfigError, match=r"'0\.30'"):
        pc.export_mlx_lm(path, version="0.30")
    with pytest.raises(ConfigError, match=r"end in \.safetensors"):
        pc.export_mlx_lm(tmp_path / "x.kv")
    with pytest.raises(StoreError, match="does not exist"):
        pc.export_mlx_lm(tmp_path / "no" / "x.safetensors")
    with pytest.raises(CacheError, match="empty"):
        model.make_cache(mlxkv.CacheConfig()).export_mlx_lm(path)
    assert not path.exists()


# -- floating types, and the name that mlx-lm loads by ---------------------------------------------------------------

EXACT = [
    (mx.float16, mx.float32, 1.1, True), (mx.bfloat16, mx.float32, 1.1, True), (mx.float32, mx.float16, 0.5, True),
    (mx.float32, mx.bfloat16, 0.5, True), (mx.bfloat16, mx.float16, 0.5, True), (mx.float16, mx.bfloat16, 0.5, True),
    (mx.float32, mx.float16, float("nan"), True), (mx.float32, mx.float16, 1.1, False),
    (mx.float32, mx.bfloat16, 1.1, False), (mx.bfloat16, mx.float16, 1e30, False),
    (mx.float16, mx.bfloat16, 1.1, False), (mx.float32, mx.float16, 1e-30, False),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("given", "wanted", "value", "is_exact"), EXACT)
def test_floating_types_are_converted_where_that_loses_nothing(
    models: Any, tmp_path: Path, given: mx.Dtype, wanted: mx.Dtype, value: float, is_exact: bool
) -> None:
    """A file of mlx-lm's with rows of one type, for a model that computes in another."""
    model = models("plain")
    plan = model.make_cache().plan
    layers = tuple(replace(p, shape=replace(p.shape, dtype=wanted)) for p in plan.layers)
    shape = layers[0].shape
    rows = [theirs.KVCache() for _ in layers]
    for layer in rows:
        keys, values = (mx.full((1, shape.heads, 3, dim), value, given) for dim in (shape.k_dim, shape.v_dim))
        layer.update_and_fetch(keys, values)
    theirs.save_prompt_cache(str(tmp_path / "x.safetensors"), rows)
    states = read_mlx_lm(tmp_path / "x.safetensors").layers
    if not is_exact:
        with pytest.raises(MismatchError, match=r"x holds \w+ numbers in layer 0, .* some would lose digits"):
            to_model_dtype(states, replace(plan, layers=layers), "x")
        return
    out, notes = to_model_dtype(states, replace(plan, layers=layers), "x")
    assert {x.dtype for state in out for x in (*state.keys, *state.values)} == {wanted}
    assert mx.array_equal(
        out[0].keys[0].astype(mx.float32),
        mx.full(out[0].keys[0].shape, value, given).astype(mx.float32),
        equal_nan=True,
    )
    assert len(notes) == 1
    assert "lost nothing" in notes[0]


@pytest.fixture(scope="module")
def tutor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Float16 weights, which run in float32 on a CPU; and a name that mlx-lm does not know."""
    model = mlxkv.load("tutor", folders=Folders.from_env({"MLXKV_HOME": str(tmp_path_factory.mktemp("home"))}))
    yield model
    model.close()


TEXT, MORE = "Once upon a time there was a little girl", " who lived"


@pytest.mark.slow
def test_a_file_that_mlx_lm_made_of_tutor_goes_on_here(tutor: Model, tmp_path: Path) -> None:
    network, tokenizer = mlx_lm_load(str(tutor.loaded.path))[:2]
    cache = theirs.make_prompt_cache(network)
    network(mx.array([tokenizer.encode(TEXT)]), cache=cache)
    theirs.save_prompt_cache(str(tmp_path / "theirs.safetensors"), cache)
    taken = tutor.import_mlx_lm(tmp_path / "theirs.safetensors")
    went_on = tutor.generate(MORE, cache=taken.fork(), max_tokens=8, temperature=0.0)
    assert went_on.text == tutor.generate(TEXT + MORE, max_tokens=8, temperature=0.0).text
    taken.export_mlx_lm(tmp_path / "again.safetensors")  # every bit of it is still there
    for old, new in zip(cache, theirs.load_prompt_cache(str(tmp_path / "again.safetensors")), strict=True):
        assert mx.array_equal(old.keys[..., : old.offset, :], new.keys.astype(mx.float16))


@pytest.mark.slow
def test_mlx_lm_loads_the_model_that_an_export_names_and_goes_on(tutor: Model, tmp_path: Path) -> None:
    pc = tutor.prefill(TEXT)
    pc.export_mlx_lm(tmp_path / "ours.safetensors")
    cache, about = theirs.load_prompt_cache(str(tmp_path / "ours.safetensors"), return_metadata=True)
    network, tokenizer = mlx_lm_load(about["model"])[:2]
    more = tokenizer.encode(MORE, add_special_tokens=False)
    said = mlx_lm_generate(network, tokenizer, more, prompt_cache=cache, max_tokens=8)
    assert said.strip() == tutor.generate(MORE, cache=pc, max_tokens=8, temperature=0.0).text.strip()
    assert made_with(about) == "tutor"
