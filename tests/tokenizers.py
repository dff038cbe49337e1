"""A tiny tokenizer with a ChatML template, wrapped as mlx-lm wraps its own: no files, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.reference import tiny_llama

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Rewrites history, as templates do that strip reasoning: only the last reply keeps its digits.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if m['role'] != 'assistant' else '(said)' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Strips reasoning from history, as Qwen3's does; the model writes <think> itself, unless it is told not to think.
STRIPPING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m.get('reasoning_content') %}"
    "<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENING = STRIPPING.replace("{% endif %}{% endif %}", "{% else %}<think>\n{% endif %}{% endif %}")  # in the prompt
THINK = ("<think>", "</think>")
VOCAB = 64


def tiny_tokenizer(
    template: str | None = CHATML, *, reverse: bool = False, marks: Sequence[str] = (), more: Sequence[str] = ()
) -> TokenizerWrapper:
    """One token per character of a small alphabet (others are <unk>), 64 ids, the two ChatML marks, and `marks`.

    `more`: tokens that no text is made of, but a model may sample them; `<0xC3>` is a byte.
    """
    alphabet = "abcdefghijklmnopqrstuvwxyzABCHMU0123456789 .,?!'\n()-"
    vocab = {"<unk>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<s>": 3}
    for char in (*(reversed(alphabet) if reverse else alphabet), *marks, *more):
        vocab[char] = len(vocab)
    while len(vocab) < VOCAB:
        vocab[f"<{len(vocab)}>"] = len(vocab)
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *marks],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return TokenizerWrapper(fast)


def tiny_folder(
    folder: Path,
    *,
    seed: int = 0,
    template: str | None = CHATML,
    dtype: mx.Dtype = mx.float32,
    reverse: bool = False,
    **args: Any,
) -> Path:
    """A random llama with this tokenizer (`reverse`: other ids), saved as `mlxkv.load` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_llama(seed=seed, vocab=VOCAB, **args)
    model.set_dtype(dtype)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})  # type: ignore[arg-type]
    config = {k: v for k, v in asdict(model.args).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer(template, reverse=reverse)._tokenizer.save_pretrained(folder)
    return folder
