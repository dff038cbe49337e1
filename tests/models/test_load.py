"""Loading real weights, and the sentence for each way in which a model folder can be wrong."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.sample_utils import make_sampler

from mlxkv.device import Device
from mlxkv.errors import (
    MlxkvError,
    ModelDownloadError,
    ModelError,
    ModelFileError,
    ModelNotFoundError,
    ModelUnsupportedError,
    OutOfMemoryError,
)
from mlxkv.models import Hub, LoadedModel, LoadProgress, load_model
from tests.fakes_hub import FakeHub

CPU = Device("cpu", False, 8_000_000_000, 10_000_000_000, False)
METAL = Device("gpu", True, 8_000_000_000, 10_000_000_000, True)


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def convert(folder: Path, dtype: mx.Dtype, bits: int | None = None) -> None:
    """Rewrite the weights in another dtype, quantized if `bits`."""
    path = folder / "model.safetensors"
    weights: dict[str, mx.array] = mx.load(str(path))  # type: ignore[assignment]
    out = {}
    for name, array in weights.items():
        array = array.astype(dtype)
        if bits and array.ndim == 2 and array.shape[-1] % 32 == 0:
            packed = mx.quantize(array, group_size=32, bits=bits)
            out |= dict(zip((name, *(name.replace("weight", k) for k in ("scales", "biases"))), packed, strict=True))
        else:
            out[name] = array
    mx.eval(out)
    mx.save_safetensors(str(path), out, {"format": "mlx"})
    if bits:
        change(folder, quantization={"group_size": 32, "bits": bits})


def dtypes(loaded: LoadedModel) -> set[mx.Dtype]:
    return {array.dtype for _, array in tree_flatten(loaded.model.parameters())}  # type: ignore[union-attr]


def story(loaded: LoadedModel) -> str:
    sampler = make_sampler(temp=0.0)
    return mlx_lm.generate(loaded.model, loaded.tokenizer, "Once upon a time", max_tokens=20, sampler=sampler)


@pytest.mark.slow
def test_real_model(stories_path: Path) -> None:
    seen: list[LoadProgress] = []
    loaded = load_model(str(stories_path), progress=seen.append)
    assert story(loaded).lstrip(", ").startswith("there was a little girl named Lily")
    assert loaded.path == stories_path.resolve()
    assert loaded.config["model_type"] == "llama"
    assert loaded.trained_length == 512
    assert loaded.generation == {}
    assert loaded.weight_bytes == sum(a.nbytes for _, a in tree_flatten(loaded.model.parameters()))  # type: ignore[union-attr]
    assert loaded.tokenizer.eos_token_ids == {2}
    assert seen[-1] == LoadProgress(str(stories_path), "loading", loaded.weight_bytes, loaded.weight_bytes)


@pytest.mark.slow
def test_float16_becomes_float32_where_it_is_slow(model_folder: Path) -> None:
    convert(model_folder, mx.float16)
    loaded = load_model(str(model_folder), device=CPU)
    assert dtypes(loaded) == {mx.float32}
    assert story(loaded).lstrip(", ").startswith("there was a little girl named Lily")
    assert dtypes(load_model(str(model_folder), device=METAL)) == {mx.float16}


def test_quantized_weights_stay_packed(model_folder: Path) -> None:
    convert(model_folder, mx.float16, bits=8)
    assert dtypes(load_model(str(model_folder), device=CPU)) == {mx.uint32, mx.float32}
    assert dtypes(load_model(str(model_folder), device=METAL)) == {mx.uint32, mx.float16}


def test_bfloat16_stays(model_folder: Path) -> None:
    convert(model_folder, mx.bfloat16)
    assert dtypes(load_model(str(model_folder), device=CPU)) == {mx.bfloat16}


def test_float16_stays_where_float32_would_not_fit(model_folder: Path) -> None:
    convert(model_folder, mx.float16)
    small = Device("cpu", False, 600_000, 1_000_000, False)  # 520 kB as float16, 1040 kB as float32
    assert dtypes(load_model(str(model_folder), device=small)) == {mx.float16}


def test_too_large(stories_path: Path) -> None:
    small = Device("cpu", False, 400_000, 500_000, False)
    with pytest.raises(OutOfMemoryError, match=r"need 1\.0 MB .* use 400 kB of its 500 kB"):
        load_model(str(stories_path), device=small)


def test_too_large_names_what_would_fit(model_folder: Path) -> None:
    """The header alone is believed: nothing of this size exists."""
    (model_folder / "model-huge.safetensors").write_bytes(b"")
    path = model_folder / "model-huge.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[2000000000,5],"data_offsets":[0,10000000000]}}'
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 10_000_000_000)  # sparse
    with pytest.raises(OutOfMemoryError, match=r"need 10 GB .* mlx-community/\S+ \(.* GB\) would fit"):
        load_model(str(model_folder), device=CPU)


def test_cancelled(stories_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(ModelError, match="was stopped"):
        load_model(str(stories_path), cancel=cancel)


def test_generation_config_and_end_tokens(model_folder: Path) -> None:
    (model_folder / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [2, 7]}')
    loaded = load_model(str(model_folder))
    assert loaded.generation["temperature"] == 0.6
    assert loaded.tokenizer.eos_token_ids == {2, 7}


def test_auto_map_of_a_known_architecture_is_fine(model_folder: Path) -> None:
    """Many configs keep it for other programs; the code it names is never looked at."""
    change(model_folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (model_folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    assert load_model(str(model_folder)).config["model_type"] == "llama"


def write(name: str, text: str | bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def code_in_tokenizer(folder: Path) -> None:
    (folder / "tok.py").write_text("raise SystemExit('ran')")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["tok.Tok", None]}, "tokenizer_class": "Tok"}
    path.write_text(json.dumps(config))


WRONG: dict[str, tuple[Any, type[MlxkvError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ModelNotFoundError, "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ModelFileError, "lacks model.safetensors"),
    "config is no JSON": (write("config.json", "{"), ModelFileError, "cannot be read as JSON"),
    "config is not UTF-8": (write("config.json", b'{"\xff'), ModelFileError, "cannot be read as JSON"),
    "config is a list": (write("config.json", "[]"), ModelFileError, "must hold a JSON object"),
    "config is nested": (write("config.json", "[" * 100_000), ModelFileError, "cannot be read as JSON"),
    "no model_type": (lambda f: change(f, model_type=None), ModelFileError, "found None"),
    "model_type is a number": (lambda f: change(f, model_type=3), ModelFileError, "found 3"),
    "model_type is a path": (lambda f: change(f, model_type="..os"), ModelFileError, r"found '\.\.os'"),
    "unknown model_type": (lambda f: change(f, model_type="gpt9"), ModelUnsupportedError, "'gpt9'"),
    "a helper module": (lambda f: change(f, model_type="cache"), ModelUnsupportedError, "'cache'"),
    "own code": (lambda f: change(f, model_type="gpt9", auto_map={"A": "x.Y"}), ModelUnsupportedError, "auto_map"),
    "own file": (lambda f: change(f, model_file="evil.py"), ModelUnsupportedError, "'evil.py'"),
    "tokenizer with code": (code_in_tokenizer, ModelUnsupportedError, "tokenizer .* own code"),
    "config lacks a value": (lambda f: change(f, hidden_size=None), ModelFileError, "hidden_size"),
    "config is of another size": (lambda f: change(f, hidden_size=128), ModelFileError, "do not fit the llama"),
    "config has more layers": (lambda f: change(f, num_hidden_layers=6), ModelFileError, "do not fit the llama"),
    "config has a word for a number": (lambda f: change(f, num_hidden_layers="5"), ModelFileError, "do not fit"),
    "quantization is a word": (lambda f: change(f, quantization="yes"), ModelFileError, "do not fit"),
    "weights cut": (cut, ModelFileError, "is cut off at .* of its .* bytes"),
    "weights are text": (write("model.safetensors", "version https://git-lfs"), ModelFileError, "header length"),
    "another file is hostile": (write("extra.safetensors", b"\xff" * 8), ModelFileError, "header length"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], ModelFileError, "tokenizer"),
    "tokenizer is no JSON": (write("tokenizer.json", "{"), ModelFileError, "tokenizer"),
    "generation config is no JSON": (write("generation_config.json", "{"), ModelFileError, "generation_config.json"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str, model_folder: Path) -> None:
    """One printable sentence of the right kind, whatever is wrong."""
    spoil, kind, message = WRONG[name]
    spoil(model_folder)
    with pytest.raises(kind, match=message) as caught:
        load_model(str(model_folder))
    text = str(caught.value)
    assert type(caught.value) is kind
    assert text.isprintable()
    assert text.endswith(".")


def test_a_path_that_is_no_text(model_folder: Path) -> None:
    """MLX says `std::bad_cast`, which is no reason to download anything again."""
    odd = model_folder.with_name("odd\udcff")
    try:
        model_folder.rename(odd)
    except OSError:
        pytest.skip("this disk takes no such name")
    with pytest.raises(ModelFileError, match="not UTF-8; rename it"):
        load_model(str(odd))


def test_folder_whose_name_is_a_pattern(model_folder: Path) -> None:
    """mlx-lm looks for the weights with glob and would find none."""
    folder = model_folder.rename(model_folder.with_name("model [1]"))
    with pytest.raises(ModelFileError, match="rename it"):
        load_model(str(folder))


def publish(fake: FakeHub, folder: Path) -> None:
    fake.files = {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_from_the_hub(fake: FakeHub, hub: Hub, stories_path: Path) -> None:
    publish(fake, stories_path)
    seen: list[LoadProgress] = []
    loaded = load_model("org/model", hub=hub, progress=seen.append)
    assert story(loaded).lstrip(", ").startswith("there was a little girl named Lily")
    assert [p.phase for p in seen] == sorted(p.phase for p in seen)  # downloading, then loading
    assert {p.phase for p in seen} == {"downloading", "loading"}
    fake.requests.clear()
    assert load_model("org/model", hub=hub).path == loaded.path
    assert fake.requests == []


def test_too_large_is_not_downloaded(fake: FakeHub, hub: Hub, stories_path: Path) -> None:
    publish(fake, stories_path)
    with pytest.raises(OutOfMemoryError, match="org/model"):
        load_model("org/model", hub=hub, device=Device("cpu", False, 400_000, 500_000, False))
    assert fake.sent == {}


def test_cancelled_while_downloading(fake: FakeHub, hub: Hub) -> None:
    cancel = threading.Event()
    with pytest.raises(ModelDownloadError, match="was stopped"):
        load_model("org/model", hub=hub, cancel=cancel, progress=lambda _: cancel.set())
