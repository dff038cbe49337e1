"""Export of a checkpoint to a folder mlxkv loads: `python -m mlxkv.models.training.export CHECKPOINT_FOLDER FOLDER`.

Writes float16 weights with mlx_lm's names, config.json, tokenizer, template, generation defaults. Then MLX computes the
logits of one long prompt with the same weights in float32, and they must equal PyTorch's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file, save_file

from mlxkv.models.training.network import Network, Shape
from mlxkv.models.training.text import END, PAD, START, TEMPLATE, load

TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", type=float, default=0, help="mix in this share of the weights that OUT has now")
    options = parser.parse_args()
    saved = torch.load(options.checkpoint / "checkpoint.pt")
    network = Network(Shape(**saved["shape"]))
    network.load_state_dict(saved["weights"])
    if options.keep:
        before = load_file(options.out / "model.safetensors")
        for name, weight in network.named_parameters():
            weight.data.lerp_(before[f"model.{name}"].float(), options.keep)
    export(network.half(), options.checkpoint / "tokenizer.json", options.out)
    print(f"largest difference of logits, MLX and PyTorch in float32: {difference(network.float(), options.out):.1e}")


def export(network: Network, tokenizer: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": weight.contiguous() for name, weight in network.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    _write(
        out / "config.json", {**network.shape.config(), "torch_dtype": "float16", "eos_token_id": 2, "pad_token_id": 0}
    )
    _write(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": [START],
            "clean_up_tokenization_spaces": False,
            "model_max_length": network.shape.max_position_embeddings,
            "chat_template": TEMPLATE,
        },
    )
    _write(out / "generation_config.json", {"do_sample": False, "temperature": 0.0, "eos_token_id": 2})


def difference(network: Network, folder: Path) -> float:
    """Return the largest difference between PyTorch's logits and MLX's over 600 tokens.

    Raises:
        ValueError: it is more than 1e-4.
    """
    import mlx.core as mx
    from mlx_lm.utils import load_model

    tokenizer = load(folder / "tokenizer.json")
    text = " ".join(f"{START}user\nWhat is a KV cache? I am number {n}.{END}" for n in range(60))
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:600]
    with torch.no_grad():
        ours = network.logits(network(torch.tensor([ids])))
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    theirs = torch.tensor(model(mx.array([ids])).tolist())
    worst = float((ours - theirs).abs().max())
    if worst > TOLERANCE:
        raise ValueError(f"MLX and PyTorch differ by {worst:.1e} where {TOLERANCE} is allowed; the export is wrong.")
    return worst


def _write(path: Path, table: dict[str, object]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
