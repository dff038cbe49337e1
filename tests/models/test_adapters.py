"""LoRA adapters: the same text as mlx-lm's, in every way to use a model, and a sentence for each wrong folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.sample_utils import make_sampler

import mlxkv
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.traits import traits_of
from mlxkv.errors import MismatchError, ModelError
from mlxkv.memory.preflight import check_fit
from mlxkv.models import Hub, load_model
from tests.adapters import make_adapter
from tests.fakes_hub import FakeHub, serve
from tests.tokenizers import tiny_folder

PROMPT = "there was a quick brown fox"


def greedy(model: mlxkv.Model, prompt: str = PROMPT) -> str:
    return model.generate(prompt, max_tokens=24, temperature=0.0).text


@pytest.fixture(scope="module")
def adapter(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "poems", tiny_path)


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_the_text_is_that_of_mlx_lm(kind: str, tiny_path: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / kind, tiny_path, kind)
    theirs, tokenizer = mlx_lm.load(str(tiny_path), adapter_path=str(folder))[:2]
    expected = mlx_lm.generate(theirs, tokenizer, PROMPT, max_tokens=24, sampler=make_sampler(temp=0.0))
    model, bare = mlxkv.load(tiny_path, adapter_path=folder), mlxkv.load(tiny_path)
    assert greedy(model) == expected != greedy(bare)
    assert (model.adapter, bare.adapter) == (str(folder), None)
    added = model.loaded.weight_bytes - bare.loaded.weight_bytes
    assert (added > 0) is (kind != "full")
    config = CacheConfig(window=64)
    assert mlxkv.estimate(tiny_path, config, adapter_path=folder).weight_bytes == model.loaded.weight_bytes
    assert mlxkv.estimate(tiny_path, config).weight_bytes == bare.loaded.weight_bytes


def test_a_batch_a_draft_and_a_full_window_go_through_the_adapter(tiny_path: Path, adapter: Path) -> None:
    model = mlxkv.load(tiny_path, adapter_path=adapter)
    prompts, config = [PROMPT, "hello", PROMPT[:9]], CacheConfig(window=16, sinks=2)
    alone = [greedy(model, prompt) for prompt in prompts]
    assert [c.text for c in model.generate_batch(prompts, max_tokens=24, temperature=0.0)] == alone
    drafting = mlxkv.load(tiny_path, adapter_path=adapter, draft=tiny_path)
    assert greedy(drafting) == alone[0]
    assert all(
        sinks.rotation is not None for sinks in traits_of(model.loaded.model).sinks(model.loaded.model, is_loaded=True)
    )
    bounded = model.generate(PROMPT, cache=config, max_tokens=24, temperature=0.0)
    assert bounded.stats.evicted_tokens
    assert bounded.text == model.generate(PROMPT, cache=config, max_tokens=24, temperature=0.0).text
    assert bounded.text != mlxkv.load(tiny_path).generate(PROMPT, cache=config, max_tokens=24, temperature=0.0).text


def test_rows_are_used_with_the_adapter_they_were_made_with(tiny_path: Path, adapter: Path, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "other", tiny_path, seed=2)
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    model = mlxkv.load(tiny_path, adapter_path=adapter)
    chat = model.chat(autosave=True, max_tokens=12, temperature=0.0)
    list(chat.send("hello there, how are you?"))
    tokens, session = chat.cache.offset, chat.session_id
    assert session is not None
    chat.close()
    model.prefill(PROMPT).save(tmp_path / "fox.kv")
    for path, fits in ((None, False), (other, False), (adapter, True), (moved, True)):
        resumed = mlxkv.load(tiny_path, adapter_path=path)
        chat = resumed.resume(session, fork=True)
        assert (chat.restored is not None and chat.restored.tokens == tokens) is fits
        assert (chat.restored is None or not chat.restored.tokens) is not fits
        chat.close()
        if fits:
            assert resumed.load_cache(tmp_path / "fox.kv").offset == len(PROMPT)
        else:
            with pytest.raises(MismatchError, match="and the adapter") as error:
                resumed.load_cache(tmp_path / "fox.kv")
            assert error.value.field.startswith("adapter.")
    assert resumed.store.sessions.model_of(session).adapter == str(adapter)
    (moved / "adapters.safetensors").write_bytes((other / "adapters.safetensors").read_bytes())
    assert resumed.loaded.files_changed()  # its hash would not describe what is in memory


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _config(**values: Any) -> Callable[[Path], object]:
    """Change adapter_config.json: its own values, or those of its `lora_parameters`."""

    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        of = config["lora_parameters"] if set(values) & {"rank", "scale", "dropout", "keys"} else config
        of.update(values)
        path.write_text(json.dumps(config))

    return change


def _weights(change: Callable[[dict[str, mx.array]], dict[str, mx.array]]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        path = str(folder / "adapters.safetensors")
        weights = change(dict(mx.load(path)))  # type: ignore[arg-type]
        mx.eval(weights)
        mx.save_safetensors(path, weights)

    return rewrite


def _cut(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _peft(folder: Path) -> None:
    (folder / "adapters.safetensors").rename(folder / "adapter_model.safetensors")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (_without("adapter_config.json"), "holds no adapter_config.json"),
    "no weights": (_without("adapters.safetensors"), "holds no adapters.safetensors"),
    "no folder": (shutil.rmtree, "There is no adapter"),
    "PEFT": (_peft, "adapter of PEFT"),
    "not JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
    "damaged": (lambda f: (f / "adapters.safetensors").write_bytes(b"\x08"), "not a valid safetensors file"),
    "cut off": (_cut, "is cut off at"),
    "kind": (_config(fine_tune_type="rola"), "`fine_tune_type` must be lora, dora or full"),
    "layers": (_config(num_layers=True), "`num_layers` must be a whole number"),
    "parameters": (_config(lora_parameters=[]), "`lora_parameters` must be an object"),
    "rank": (_config(rank=1 << 40), "`rank` must be a whole number from 1"),
    "scale": (_config(scale="2"), "`scale` must be a number"),
    "dropout": (_config(dropout=1), "`dropout` must be a number"),
    "keys": (_config(keys=[1]), "`keys` must be a list of names"),
    "another rank": (_config(rank=8), r"does not fit .* adapter shape \(.*4.*\) does not match"),
    "other layers": (_config(keys=["self_attn.no_proj"]), "not an adapter parameter in the model"),
    "more layers": (_config(num_layers=2), r"does not fit .*it has no model.layers.0\S+lora_a, which"),
    "whole numbers": (_weights(lambda w: {k: a.astype(mx.int32) for k, a in w.items()}), "as I32; it must be one of"),
    "empty": (_weights(lambda w: {}), "holds no tensors"),
    "not the model's": (_weights(lambda w: w | {"model.layers.9.self_attn.q_proj.lora_a": mx.zeros((1,))}), "layers.9"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_folder_is_a_sentence(kind: str, tiny_path: Path, adapter: Path, tmp_path: Path) -> None:
    break_it, words = WRONG[kind]
    folder = Path(shutil.copytree(adapter, tmp_path / "broken"))
    break_it(folder)
    with pytest.raises(ModelError, match=words) as error:
        mlxkv.load(tiny_path, adapter_path=folder)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_an_adapter_of_the_hub_is_downloaded_once(
    tiny_path: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with serve(FakeHub("org/poems", files | {"README.md": b"#", "0000100_adapters.safetensors": b"x"})) as fake:
        hub = Hub(fake.endpoint, tmp_path / "hub")
        first = mlxkv.load(tiny_path, adapter_path="org/poems", hub=hub)
        assert set(fake.sent) == set(files)
        num_requests = len(fake.requests)
        again = mlxkv.load(tiny_path, adapter_path="org/poems", hub=hub)
        assert len(fake.requests) == num_requests
    assert greedy(first) == greedy(again) == greedy(mlxkv.load(tiny_path, adapter_path=adapter))
    assert again.identity.model_id == mlxkv.load(tiny_path, adapter_path=adapter).identity.model_id
    assert again.identity.adapter == "org/poems"


def test_what_is_loaded_beside_the_weights_counts_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_folder(tmp_path / "model", hidden=64)
    adapter = make_adapter(tmp_path / "adapter", model)
    config = CacheConfig(window=64)
    needs, texts = [], []
    cases: list[dict[str, Any]] = [{}, {"adapter": str(adapter)}, {"draft": str(model)}]
    for beside in cases:
        monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "100kB")
        found = check_fit(str(model), config, **beside)
        assert found is not None
        needs.append(found.need)
        texts.append(found.text)
        monkeypatch.setenv("MLXKV_MEMORY_LIMIT", str(found.need + (1 << 20)))
        assert check_fit(str(model), config, **beside) is None
    weights = load_model(str(model)).weight_bytes
    assert needs[1] - needs[0] == load_model(str(model), adapter=str(adapter)).weight_bytes - weights
    assert needs[2] - needs[0] > weights
    assert texts[2].startswith("model with the draft model model needs")
