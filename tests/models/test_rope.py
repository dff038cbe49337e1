"""`rope_parameters`: what transformers 5 writes becomes what mlx-lm's modules read, or is refused; never ignored."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.rings.sink_rotation import ropes_of
from mlxkv.errors import ModelFileError, ModelUnsupportedError
from mlxkv.models import load_model, skeleton
from mlxkv.models.loading.rope import normalize_ropes
from mlxkv.store.identity import identify
from tests.cache.architectures import ARCHITECTURES
from tests.reference import largest
from tests.thorough import part

pytestmark = pytest.mark.usefixtures("uncompiled")

IDS = mx.array([[3, 9, 27, 41, 5, 15, 45, 2, 6, 18, 54, 33] * 3])
OLD = ("rope_theta", "rope_scaling", "rotary_emb_base", "rope_freq_constant", "rope_embedding_base")
OTHERS = (
    "rope_parameters", "rope_local_base_freq", "partial_rotary_factor", "rotary_dim", "rotary_pct",
    "original_max_position_embeddings",
)  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config", config)


def logits(name: str, config: dict[str, Any]) -> mx.array:
    return ARCHITECTURES[name].build(config)(IDS)


def in_new_style(name: str, theta: float) -> dict[str, Any]:
    """The configuration in the table of architectures as transformers 5 would write it, with this theta."""
    config = ARCHITECTURES[name].config()
    text = text_of(config)
    given = copy.deepcopy(text.get("rope_parameters") or text.get("rope_scaling") or {"rope_type": "default"})
    for values in [v for v in given.values() if isinstance(v, dict)] or [given]:
        values["rope_theta"] = theta
    for key in OLD:
        text.pop(key, None)
    if "attn_config" in text:
        text["attn_config"].pop("rope_theta")
    text["rope_parameters"] = given
    return config


def outcome(name: str) -> str:
    """What becomes of two thetas."""
    try:
        far, near = (normalize_ropes(in_new_style(name, theta), name) for theta in (10_000.0, 400_000.0))
        models = [ARCHITECTURES[name].build(config) for config in (far, near)]
    except ModelUnsupportedError as error:
        return "refused" if "rope_parameters" in str(error) else str(error)
    a, b = (model(IDS) for model in models)
    has_ropes = any(ropes_of(layer) for layer in models[0].layers)
    if largest(mx.where(a == b, 0.0, a - b)) == 0.0:
        return "silently ignored" if has_ropes else "has no ropes"
    return "translated" if near.get("rope_parameters") is None else "read"


# Modules that turn rows by one theta, whatever a config says, and those whose layers have no positions.
REFUSED = {"gptj", "phixtral", "plamo2", "qwen", "recurrent_gemma", "deepseek_v41"}
WITHOUT = {"gpt2", "gpt_bigcode", "jamba", "kimi_k3", "kimi_linear", "mamba", "mamba2", "nemotron_h", "rwkv7"}


@pytest.mark.slow
@pytest.mark.parametrize("name", part(ARCHITECTURES, 6))
def test_another_theta_gives_other_logits_or_is_refused(name: str) -> None:
    wanted = {"refused"} if name in REFUSED else {"has no ropes"} if name in WITHOUT else {"translated", "read"}
    assert outcome(name) in wanted


GEMMA = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
GEMMA_OLD = {"rope_theta": 1e6, "rope_local_base_freq": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR, DYNAMIC = ({"type": kind, "factor": 2.0} for kind in ("linear", "dynamic"))
OF_4096, OF_512 = ({"original_max_position_embeddings": length} for length in (4096, 512))
MSCALE = {"short_mscale": 1.2, "long_mscale": 1.3}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0 + i / 4 for i in range(16)]}
DEEP = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}

# By architecture: `rope_parameters`, and the same in the keys from before.
SAME: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
    ("llama", {**YARN, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": YARN}),
    ("llama", {**LLAMA3, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA3 | OF_4096}),
    ("llama", {"type": "linear", "factor": 2, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LINEAR}),
    ("llama", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": DYNAMIC}),
    ("qwen2", {**YARN, "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": YARN}),
    ("qwen2_vl", {"rope_type": "mrope", "mrope_section": [4, 6, 6], "rope_theta": 3e5}, {"rope_theta": 3e5}),
    ("qwen3", {**YARN, "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": YARN}),
    ("qwen3_moe", {"rope_type": "default", "rope_theta": 1e7}, {"rope_theta": 1e7}),
    ("mistral3", {**DEEP, "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": DEEP}),
    ("gemma3_text", GEMMA, GEMMA_OLD),
    ("gemma3", GEMMA, GEMMA_OLD),
    ("gemma3n", GEMMA | {"full_attention": {"rope_theta": 1e6}}, {"rope_theta": 1e6, "rope_local_base_freq": 5000.0}),
    ("plamo3", GEMMA | {"full_attention": {"rope_theta": 1e6}}, {"rope_theta": 1e6, "rope_local_theta": 5000.0}),
    ("phi3", {**LONG, "rope_theta": 2e4, "original_max_position_embeddings": 512},
     {"rope_theta": 2e4, "rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 512}),
    ("phimoe", {**LONG, **MSCALE, **OF_512, "rope_theta": 2e4},
     {"rope_theta": 2e4, "rope_scaling": LONG | MSCALE, **OF_512}),
    ("gpt_oss", {**YARN, "rope_theta": 150000, "truncate": False}, {"rope_theta": 150000, "rope_scaling": YARN}),
    ("qwen3_next", {"rope_theta": 1e7, "partial_rotary_factor": 0.25, "rope_type": "default"},
     {"rope_theta": 1e7, "partial_rotary_factor": 0.25}),
    ("olmo3", {"full_attention": {**YARN, "rope_theta": 5e5, "attention_factor": 1.1386294361119891},
               "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}},
     {"rope_theta": 5e5, "rope_scaling": YARN}),
    ("granite", {**YARN, "rope_theta": 1e7}, {"rope_theta": 1e7, "rope_scaling": YARN}),
    ("deepseek_v2", {**DEEP, "rope_theta": 3e4}, {"rope_theta": 3e4, "rope_scaling": DEEP}),
    ("deepseek_v3", {**DEEP, "rope_theta": 3e4}, {"rope_theta": 3e4, "rope_scaling": DEEP}),
    ("kimi_k25", {**DEEP, "rope_theta": 3e4}, {"rope_theta": 3e4, "rope_scaling": DEEP}),
    ("glm4", {"rope_theta": 5e5, "partial_rotary_factor": 0.25}, {"rope_theta": 5e5, "partial_rotary_factor": 0.25}),
    ("gpt_neox", {"rope_theta": 5e5, "partial_rotary_factor": 0.5}, {"rotary_emb_base": 5e5, "rotary_pct": 0.5}),
    ("dbrx", {"rope_theta": 5e5}, {"attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 5e5}}),
    ("hunyuan", {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "rope_theta": 3e4},
     {"rope_theta": 3e4, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}}),
    ("internlm2", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
     {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    ("minicpm3", {**LONG, "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": LONG | OF_4096}),
    ("smollm3", {"rope_type": "default", "rope_theta": 5e6}, {"rope_theta": 5e6}),
    ("minimax", {"rope_theta": 5e6, "partial_rotary_factor": 0.25}, {"rope_theta": 5e6, "rotary_dim": 8}),
    ("deepseek_v41", {"main": {"rope_theta": 2e4}, "compress": {**YARN, "rope_theta": 3e5, "attention_factor": 1.0}},
     {"rope_theta": 2e4, "compress_rope_theta": 3e5, "rope_scaling": YARN}),
]  # fmt: skip


def settings(name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The architecture's configuration with these keys in place of its own."""
    config = ARCHITECTURES[name].config()
    text = text_of(config)
    for key in (*OLD, *OTHERS):
        text.pop(key, None)
    text.update(copy.deepcopy(keys))
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters", "old"), SAME, ids=[f"{i}-{case[0]}" for i, case in enumerate(SAME)])
def test_logits_are_those_of_the_old_keys(name: str, parameters: dict[str, Any], old: dict[str, Any]) -> None:
    new = normalize_ropes(settings(name, {"rope_parameters": parameters}), name)
    assert largest(logits(name, new) - logits(name, settings(name, old))) == 0.0


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5", "gemma4", "ministral3", "mistral4", "lfm2", "laguna", "glm_moe_dsa"]
)
def test_a_config_that_is_read_rightly_stays_as_it_is(name: str) -> None:
    """It is part of the identity of saved rows."""
    config = in_new_style(name, 4e5)
    if name == "gemma4":
        text_of(config)["rope_parameters"] = {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    before = json.dumps(config)
    assert normalize_ropes(config, name) is config
    assert json.dumps(config) == before


NOT_DONE: list[tuple[str, dict[str, Any], str]] = [
    ("cohere", {**YARN, "rope_theta": 5e5}, "'yarn' with theta 500,000"),
    ("mixtral", {**LLAMA3, "rope_theta": 5e5}, "'llama3' with theta 500,000"),
    ("phi3", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "'linear' with theta 10,000"),
    ("qwen2_moe", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "'dynamic' with theta 10,000"),
    ("llama", {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, "on 0.5 of each row"),
    ("llama", {"rope_type": "axial", "rope_theta": 1e4}, "'axial'"),
    ("llama", {"rope_type": ["yarn"], "rope_theta": 1e4}, "'yarn'"),
    ("llama", {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}}, "theta 1,000,000"),
    ("gemma3_text", GEMMA | {"sliding_attention": YARN}, "'yarn'"),
    ("qwen", {"rope_type": "default", "rope_theta": 1e6}, "theta 1,000,000"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters", "what"), NOT_DONE)
def test_what_a_module_does_not_do_is_refused_by_name(name: str, parameters: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelUnsupportedError) as caught:
        normalize_ropes(settings(name, {"rope_parameters": parameters}), "org/model")
    text = str(caught.value)
    assert what in text
    assert f"mlx-lm's {name} does not support" in text
    assert "org/model" in text
    assert text.isprintable()


def test_what_a_module_does_anyway_is_not_refused() -> None:
    config = settings("qwen", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000}})
    assert normalize_ropes(config, "qwen") is config


@pytest.mark.parametrize("value", [None, [], {}, {"a": 1}, {"rope_theta": None}])
def test_parameters_that_say_nothing(value: Any) -> None:
    config = settings("llama", {"rope_parameters": value})
    assert normalize_ropes(config, "llama") is config


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yarn", "longrope", "default"])
@pytest.mark.parametrize("value", [None, -1, float("nan"), "4", [], 10**400])
def test_odd_values_are_refused_or_understood(kind: str, value: Any) -> None:
    names = ("rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor", "attention_factor")
    for name in names:
        given = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0, name: value}
        with contextlib.suppress(ModelUnsupportedError, ModelFileError):
            normalize_ropes(settings("llama", {"rope_parameters": given}), "llama")


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"rope_parameters": "yarn"}, "rope_parameters 'yarn', which must be an object"),
        ({"rope_parameters": [YARN]}, "must be an object"),
        ({"rope_parameters": {"full_attention": "yarn"}}, "'yarn' for 'full_attention', which must be an object"),
        ({"rope_parameters": {"rope_theta": "500000"}}, "rope_theta '500000', which must be a number above 0"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta 0,"),
        ({"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta inf,"),
        ({"rope_parameters": {**YARN, "rope_theta": 10**400}}, "rope_theta 10000"),
        ({"rope_parameters": {**YARN, "factor": -4}}, "factor -4,"),
        ({"rope_parameters": {**YARN, "factor": "4"}}, "factor '4',"),
        ({"rope_parameters": {"full_attention": {**YARN, "factor": [4]}}}, r"factor \[4\] for 'full_attention',"),
        ({"rope_theta": "5"}, "rope_theta '5',"),
        ({"rope_theta": None}, "rope_theta null"),
    ],
)
def test_what_is_no_rope_is_refused_in_a_sentence(keys: dict[str, Any], what: str) -> None:
    """Not taken for theta 10,000 without a word, and no traceback at the first token."""
    with pytest.raises(ModelFileError, match=what):
        normalize_ropes(settings("llama", {}) | keys, "llama")


def test_a_scaling_beside_the_parameters_wins_as_in_transformers() -> None:
    both = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    new = normalize_ropes(settings("llama", both), "llama")
    assert (new["rope_theta"], new["rope_scaling"]["factor"]) == (5e5, 2.0)
    nested = normalize_ropes(settings("gemma3_text", {"rope_parameters": GEMMA, "rope_scaling": YARN}), "gemma")
    assert nested["rope_scaling"]["rope_type"] == "yarn"


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_model_from_disk(model_folder: Path) -> None:
    """Same logits as with the old keys, both with and without weights; and the rows saved before do not fit."""
    change(model_folder, rope_theta=3e4, rope_scaling=YARN)
    old = load_model(str(model_folder))
    change(model_folder, rope_theta=None, rope_scaling=None, rope_parameters={**YARN, "rope_theta": 3e4})
    new = load_model(str(model_folder))
    assert largest(new.model(IDS) - old.model(IDS)) == 0.0
    config, network = skeleton(model_folder)
    args: Any = network.args
    assert (config["rope_theta"], args.rope_theta) == (3e4, 3e4)
    assert new.trained_length == 4096
    raw = json.loads((model_folder / "config.json").read_text())
    before, after = (identify(model_folder, config) for config in (raw, new.config))
    assert before.model_id != after.model_id
    assert before.spec_extra != after.spec_extra


def test_a_refused_model_is_refused_before_its_weights_are_read(model_folder: Path) -> None:
    change(model_folder, rope_theta=None, rope_parameters={"rope_type": "axial", "rope_theta": 1e4})
    for read in (load_model, skeleton):
        with pytest.raises(ModelUnsupportedError, match="'axial'"):
            read(str(model_folder))


# Computed by the release before `rope_parameters` were translated: files of these models are on disks.
KNOWN = {
    "llama": (
        {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": YARN, "eos_token_id": 2},
        "227d16fab56f27cf5e2b53e2e9f74d550f809a7693ca8fefaaebe06e7fc31768",
    ),
    "qwen3": (
        {"model_type": "qwen3", "head_dim": 32, "rope_parameters": {**YARN, "rope_theta": 1e6}},
        "479c9f0ae587277f85568859ced32f52a692aed365b719570890a09b9d01c7ec",
    ),
}
_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_the_identity_of_other_models_is_what_it_was(name: str, tmp_path: Path) -> None:
    config, known = KNOWN[name]
    settled = normalize_ropes({**_SIZES, **config}, name)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert identify(tmp_path, settled).model_id == known
