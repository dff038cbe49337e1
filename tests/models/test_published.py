"""Repositories as they are published: vision towers, prefixes and files that mlx-lm does not read; or one sentence."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import mlxkv
from mlxkv.chat.prompts.prompt import PromptFormat, message
from mlxkv.cli.app import main
from mlxkv.device import Device, current_device
from mlxkv.errors import ModelFileError, ModelNotFoundError, ModelUnsupportedError
from mlxkv.models import Hub, catalogue, download, skeleton
from mlxkv.models.catalogue import memory_sizes
from mlxkv.models.files.architecture import is_known, model_classes, read_config, runnable
from mlxkv.models.files.completeness import problem
from mlxkv.models.files.text_part import classes, kv_b_rank, not_loaded, tensor_kind, text_name
from mlxkv.models.files.weight_memory import predict_weights
from mlxkv.models.loading.skeleton import parts_not_loaded
from mlxkv.safetensors.header import check_weights
from tests.cache.architectures import ARCHITECTURES
from tests.chats import CONFIG, say
from tests.fakes_hub import FakeHub
from tests.repositories import FORMS, PARTS, UNSUPPORTED, publish, write_json
from tests.thorough import part
from tests.tokenizers import THINK, tiny_tokenizer


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def silent() -> Iterator[None]:
    """Nothing logs a warning; transformers and huggingface_hub keep theirs from the root logger."""
    records = _Records()
    loggers = [logging.getLogger(name) for name in (None, "transformers", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(records)
    yield
    for logger in loggers:
        logger.removeHandler(records)
    assert records.messages == []


def predicted(folder: Path, device: Device) -> int:
    """The bytes by which loading decides whether the weights fit."""
    headers = [check_weights(path) for path in folder.glob("*.safetensors")]
    config = runnable(read_config(folder, "model"))
    return predict_weights(headers, device, kv_b_rank(model_classes(config, "model")[1], config))[0]


@pytest.mark.parametrize("name", FORMS)
def test_the_memory_of_weights_is_predicted_from_their_headers(name: str, tmp_path: Path) -> None:
    """On a Mac, whose GPU is fast in 16 bits, and on a CPU."""
    publish(tmp_path, FORMS[name])
    for fast in (True, False):
        device = replace(current_device(), has_fast_float16=fast)
        _, model = skeleton(str(tmp_path), device=device)
        parameters: list[Any] = tree_flatten(model.parameters())  # type: ignore[assignment]
        assert predicted(tmp_path, device) == sum(array.nbytes for _, array in parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", part(FORMS, 2))
def test_a_published_repository_loads_chats_and_resumes(
    name: str, tmp_path: Path, silent: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is printed, and warnings are errors in all tests."""
    form, folder, needs = FORMS[name], tmp_path / "model", list[int]()
    monkeypatch.setattr("mlxkv.models.loading.load.check_fits", lambda _name, need, _device: needs.append(need))
    reference = publish(folder, form)
    model = mlxkv.load(str(folder))
    assert capfd.readouterr() == ("", "")
    loaded = model.loaded
    in_float32 = form.bits is not None and not current_device().has_fast_float16
    if in_float32:
        reference.set_dtype(mx.float32)
    ids = mx.array([[5, 9, 14, 20, 7, 31]])
    assert mx.array_equal(loaded.model(ids), reference(ids)), "the weights are not those that were published"
    assert "sanitize" not in vars(loaded.model)  # it would keep the weights of a model that is closed
    assert problem(folder, str(folder)) == ""

    estimate = mlxkv.estimate(folder, CONFIG)
    expected = sum(array.nbytes for _, array in tree_flatten(reference.parameters()))  # type: ignore[attr-defined]
    assert [*needs, loaded.weight_bytes, estimate.weight_bytes] == [expected] * 3
    assert bool(form.others) == bool(estimate.not_loaded)

    assert {token.id for token in loaded.ends} >= {2, 62}  # all of generation_config.json
    assert str(loaded.template) == form.template
    chat = model.chat(system="be kind", cache=CONFIG, temperature=0.0, max_tokens=8, think=False)
    chat.save(title="published")
    first = say(chat, "hello")
    assert first.stats.generated_tokens > 0
    chat.close()
    chat = model.resume("published")
    second = say(chat, "again")
    assert second.stats.cached_tokens > 0
    fresh = model.chat(system="be kind", cache=CONFIG, temperature=0.0, max_tokens=8, think=False)
    say(fresh, "hello")
    assert say(fresh, "again").text == second.text
    model.close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Qwen3.5, mlx-community", "images (4.1 kB); images are not read here"),
        ("Gemma 4 E2B, mlx-community", "sound (4.1 kB), images (4.1 kB); images and sound are not read here"),
        ("Qwen3.6, MTP kept", "draft layers (2.0 kB), images (2.0 kB); images are not read here"),
        ("LFM2.5", ""),
    ],
)
def test_info_says_that_images_are_not_read(
    name: str, says: str, tmp_path: Path, silent: None, capfd: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, FORMS[name])
    with pytest.raises(SystemExit) as ended:
        main(["models", "info", str(tmp_path)])
    out, err = capfd.readouterr()
    assert (ended.value.code or 0, err) == (0, "")
    assert [line for line in out.splitlines() if "not loaded" in line] == ([f"not loaded      {says}"] if says else [])


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_family_that_mlx_lm_lacks_is_refused_in_a_sentence(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model_type": kind, "text_config": {"model_type": f"{kind}_text", "hidden_size": 64}, "vision_config": {}}
    write_json(tmp_path / "config.json", config)
    for ask in (lambda: mlxkv.load(str(tmp_path)), lambda: mlxkv.estimate(tmp_path)):
        with pytest.raises(ModelUnsupportedError) as caught:
            ask()
        text = str(caught.value)
        assert f"has the model_type '{kind}', which mlx-lm does not support; use " in text
        assert text.endswith(" or a newer mlxkv.")
        assert any(f"use {entry.id} " in text for entry in catalogue() if entry.fits(current_device().memory_limit))
    for command in (["models", "info", str(tmp_path)], ["-p", "hi", "-m", str(tmp_path), "--no-stdin"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 1
        assert capsys.readouterr() == ("", f"mlxkv: {text}\n")


@pytest.mark.parametrize(
    ("kind", "gigabytes", "repo"),
    [
        ("qwen4_exp", 64, "Qwen3.6-35B-A3B-4bit"),
        ("qwen4_exp", 8, "Qwen3.5-4B-MLX-4bit"),
        ("qwen9", 8, "Qwen3.5-4B-MLX-4bit"),
        ("glm4v", 32, "GLM-4.7-Flash-4bit"),
        ("glm4v", 16, "Qwen3.5-9B-4bit"),
        ("hy_v3", 16, "Qwen3.5-9B-4bit"),
    ],
)
def test_the_repository_named_instead_is_of_the_same_family_if_it_fits(
    kind: str, gigabytes: int, repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (limit,) = (size.limit for size in memory_sizes() if size.gigabytes == gigabytes)
    mac = Device("Apple M2", True, limit, gigabytes << 30, True)
    monkeypatch.setattr("mlxkv.models.files.architecture.current_device", lambda: mac)
    write_json(tmp_path / "config.json", {"model_type": kind})
    with pytest.raises(ModelUnsupportedError, match=f"use mlx-community/{repo} or a newer"):
        skeleton(tmp_path)


def test_a_qwen_without_linear_layers_is_not_taken_for_qwen3_5(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "qwen3_8", "hidden_size": 64})
    with pytest.raises(ModelUnsupportedError, match="'qwen3_8'"):
        skeleton(tmp_path)


@pytest.mark.parametrize("part", ["vision_config", "audio_config", "diffusion_config"])
def test_the_text_part_alone_runs_if_the_other_parts_are_for_images_or_sound(part: str) -> None:
    config = {"model_type": "new_vl", "text_config": {"model_type": "llama", "hidden_size": 64}, part: {}}
    assert (runnable(config)["model_type"] == "llama") is (part != "diffusion_config")
    assert is_known(config) is (part != "diffusion_config")


def test_a_folder_of_quantizations_names_them(tmp_path: Path) -> None:
    for bits in ("4bit", "8bit"):
        write_json(tmp_path / bits / "config.json", {"model_type": "lfm2"})
    with pytest.raises(ModelNotFoundError, match=r"name one of its folders that do \(4bit, 8bit\)\."):
        mlxkv.load(str(tmp_path))


def test_a_repository_of_quantizations_says_how_to_take_one(fake: FakeHub, hub: Hub) -> None:
    files = {f"{bits}/{name}": b"{}" for bits in ("4bit", "6bit") for name in ("config.json", "model.safetensors")}
    fake.files = {"README.md": b"", **files}
    for root in ({}, {"config.json": b'{"model_type": "lfm2"}'}):
        fake.files |= root
        with pytest.raises(ModelFileError) as caught:
            download("org/model", hub=hub)
        assert "in the folders 4bit, 6bit, of which mlxkv downloads none" in str(caught.value)
        assert "`hf download org/model --include '4bit/*' --local-dir DIR`, then use -m DIR/4bit." in str(caught.value)
    assert not fake.sent


def test_a_tokenizer_in_mistrals_own_format_alone_is_refused_in_a_sentence(tmp_path: Path) -> None:
    publish(tmp_path, FORMS["Ministral 3, mlx-community"])
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelFileError) as caught:
        mlxkv.load(str(tmp_path))
    assert "has its tokenizer in Mistral's format alone (tekken.json)" in str(caught.value)
    assert "such as mlx-community/Ministral-3-3B-Instruct-2512-4bit." in str(caught.value)


def test_a_format_of_quantization_that_mlx_lm_lacks_is_named(tmp_path: Path) -> None:
    """Google's Gemma 4 for phones and for vLLM are in compressed-tensors."""
    form = FORMS["Gemma 4 E2B, original"]
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    packed = replace(
        form,
        config={**form.config, "quantization_config": quantization},
        rename=lambda name: form.rename(name).replace("_proj.weight", "_proj.weight_packed"),
    )
    publish(tmp_path, packed)
    with pytest.raises(ModelFileError) as caught:
        mlxkv.load(str(tmp_path))
    text = str(caught.value)
    assert "is quantized in the format 'compressed-tensors', which mlx-lm's gemma4 cannot load (" in text
    assert text.endswith("; use mlx-community/gemma-4-E4B-it-qat-4bit.")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.visual.blocks.0.attn.qkv.weight", "images"),
        ("vision_tower.patch_embed.proj.weight", "images"),
        ("vision_model.embeddings.patch_embedding.weight", "images"),
        ("model.vision_embedder.patch_dense.weight", "images"),
        ("model.embed_vision.embedding_projection.scales", "images"),
        ("model.multi_modal_projector.linear_1.weight", "images"),
        ("model.audio_tower.layers.0.norm_out.weight", "sound"),
        ("embed_audio.embedding_projection.weight", "sound"),
        ("mtp.fc.weight", "draft layers"),
        ("language_model.mtp.layers.0.mlp.up_proj.weight", "draft layers"),
        ("model.language_model.layers.0.mlp.up_proj.weight", ""),
        ("language_model.lm_head.weight", ""),
        ("model.embed_tokens.weight", ""),
        ("model.layers.0.visual_gate.weight", ""),
    ],
)
def test_tensors_of_other_parts_are_told_by_their_names(name: str, kind: str) -> None:
    assert tensor_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("model.language_model.layers.0.x", "model.layers.0.x"),
        ("language_model.model.layers.0.x", "model.layers.0.x"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.layers.0.x", "model.layers.0.x"),
    ],
)
def test_every_prefix_gives_the_name_of_the_text_model(name: str, short: str) -> None:
    assert text_name(name) == short


@pytest.mark.slow
def test_the_weights_of_every_architecture_are_found_under_every_prefix() -> None:
    """mlx-lm finds those of 2 of 107 under `language_model.`, of 19 of 123 under `model.language_model.`."""
    wrong: list[tuple[str, str]] = []
    for name, architecture in ARCHITECTURES.items():
        module = importlib.import_module(f"mlx_lm.models.{architecture.module}")
        make, args_class = classes((module.Model, module.ModelArgs))
        model: Any = make(args_class.from_dict(architecture.config()))
        parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))  # type: ignore[arg-type]
        assert not any(map(tensor_kind, parameters)), "a parameter would not be loaded"
        expected = {key: array.shape for key, array in parameters.items()}
        text = {text_name(key): array for key, array in parameters.items()}
        for prefix in ("", "language_model."):
            found = model.sanitize({prefix + key: array for key, array in text.items()})
            wrong += [(name, prefix)] * ({key: array.shape for key, array in found.items()} != expected)
        nested = {
            f"model.language_model.{key.removeprefix('model.')}": array
            for key, array in text.items()
            if key.startswith("model.")
        }
        beside = {key: array for key, array in text.items() if not key.startswith("model.")}
        found = model.sanitize(nested | beside)
        wrong += [(name, "model.language_model.")] * ({key: array.shape for key, array in found.items()} != expected)
    assert wrong == []


def test_what_is_not_loaded_is_told_from_the_weights_or_before_them_from_the_configuration(tmp_path: Path) -> None:
    config = {"vision_config": {"depth": 1}, "audio_config": {"layers": 1}}
    assert not_loaded(config, []) == "images, sound"
    assert not_loaded(config, [("model.layers.0.x", 9)]) == ""
    tensors = [("visual.a", 1_000), ("mtp.fc", 2_000), ("visual.b", 500)]
    assert not_loaded({}, tensors) == "images (1.5 kB), draft layers (2.0 kB)"
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    assert parts_not_loaded(tmp_path) == ""


def test_a_vision_template_takes_plain_text() -> None:
    prompts = PromptFormat(tiny_tokenizer(PARTS, marks=THINK))
    parts = prompts._template.render([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])  # type: ignore[list-item]
    assert prompts.render([message("user", "hi")]) == parts
