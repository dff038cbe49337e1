"""A tiny tokenizer with a ChatML template, wrapped as mlx-lm wraps its own: no files, no network."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
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
# Writes a system prompt of its own where there is none, as SmolLM2's and Qwen2.5's do.
DEFAULTING = (
    "<s>{% if messages[0]['role'] != 'system' %}<|im_start|>system\nyou are tiny<|im_end|>\n{% endif %}" + CHATML
)
# Prints when it is, as Llama 3.2's and gpt-oss's do.
DATED = "<|im_start|>system\ntoday {{ strftime_now('%Y-%m-%d %H') }}<|im_end|>\n" + CHATML
# Tells of tools and shows calls, in the way of Qwen's.
TOOLS = (
    "{% set ns = namespace(system='') %}{% if messages[0].role == 'system' %}{% set ns.system = messages[0].content %}"
    "{% endif %}{% if tools or ns.system %}<|im_start|>system\n{{ ns.system }}"
    "{% for tool in tools or [] %}{{ '\n' }}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for tool_call in m.tool_calls or [] %}"
    "{% if m.content or not loop.first %}{{ '\n' }}{% endif %}{% set tool_call = tool_call.function %}"
    '<tool_call>\n{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
JSON = '{}[]":_<>/|'
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
    tokenizer: TokenizerWrapper | None = None,
    **args: Any,
) -> Path:
    """A random llama with this tokenizer (`reverse`: other ids) or another, saved as `mlxkv.load` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or tiny_tokenizer(template, reverse=reverse)
    model = tiny_llama(seed=seed, vocab=max(VOCAB, len(tokenizer)), **args)
    model.set_dtype(dtype)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})  # type: ignore[arg-type]
    config = {k: v for k, v in asdict(model.args).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer._tokenizer.save_pretrained(folder)
    return folder


KINDS = ("bytes", "words", "blank first", "blank always", "blank prepended", "unigram", "compatible", "stripping")
START, END, HINT, TAG = "<|im_start|>", "<|im_end|>", "<hint>", "<b>"
HINTING = CHATML.replace("assistant\n{%", "assistant\n" + HINT + "{%")
_CORPUS = (
    "there was a quick brown fox, and the lazy dog said: what is in this file? im_start im_end system user assistant",
    "<b>it is bold</b> <|im <hint hint> </ s <| |> <<>> def f(x):\n    return x\n\n\tthe end of the file is near",
)  # fmt: skip


def real_tokenizer(kind: str, template: str | None = HINTING, *, knows: bool = True) -> TokenizerWrapper:
    """A trained tokenizer as models have them, one of `KINDS`, with control tokens, a hint that is one by the template
    and a tag that is none. Without `knows` it has never heard of them, and puts no blank before a text."""
    bare = _trained(kind)
    special = ("<unk>", "<s>", "</s>", START, END)
    control = (*special, HINT)
    model, in_vocab = bare["model"], kind in ("words", "blank first", "blank always", "blank prepended", "unigram")
    names = [text if knows else f"\ue000{i}" for i, text in enumerate(control)] if in_vocab else []
    blanks = [f"<0x{i:02X}>" for i in range(256)] if model.get("byte_fallback") else []
    if kind == "unigram":
        known = [piece for piece, _ in model["vocab"]]
        model["vocab"] = [[name, 0.0] for name in names] + [[p, s] for p, s in model["vocab"] if p not in names]
        model["unk_id"] = 0
        assert "▁the" in known
    else:
        pieces = dict.fromkeys((*names, *blanks, *model["vocab"]))
        model["vocab"] = {piece: i for i, piece in enumerate(pieces)}
        model["unk_token"] = names[0] if in_vocab else None
    if kind == "blank always":  # text can grow into a control token
        grown = [("<", "/"), ("</", "s")]
        for a, b in grown:
            model["vocab"].setdefault(a + b, len(model["vocab"]))
        model["merges"] = [*grown, *([("</s", ">")] if knows else []), *model["merges"]]
    if not knows and kind in ("blank first", "unigram"):
        bare["pre_tokenizer"]["prepend_scheme"] = "never"
    raw = Tokenizer.from_str(json.dumps(bare))
    if knows:
        flags: dict[str, Any] = {"normalized": kind == "compatible", "rstrip": kind == "stripping"}
        raw.add_special_tokens([AddedToken(text, special=True, **flags) for text in special])
        raw.add_tokens([AddedToken(HINT, normalized=False)])
    raw.add_tokens([AddedToken(text, normalized=False) for text in (TAG, "\n\n", "fox")])
    own = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": END} if knows else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **own)
    fast.chat_template = template
    return TokenizerWrapper(fast)


@functools.cache
def _training(kind: str) -> str:
    raw = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE())
    if kind in ("bytes", "compatible", "stripping"):
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        if kind == "compatible":
            raw.normalizer = normalizers.NFKC()  # type: ignore[assignment]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "words":
        raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated")  # type: ignore[assignment]
        raw.decoder = decoders.Fuse()  # type: ignore[assignment]
        alphabet = []
    else:
        blank = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if kind == "blank prepended":
            parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            raw.normalizer = normalizers.Sequence(parts)  # type: ignore[assignment]
        else:
            scheme = "always" if kind == "blank always" else "first"
            raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # type: ignore[assignment]
        raw.decoder = decoders.Sequence(blank)  # type: ignore[assignment]
        alphabet = []
    size: dict[str, Any] = {"vocab_size": 300, "show_progress": False, "initial_alphabet": alphabet}
    if kind == "unigram":
        trainer: Any = trainers.UnigramTrainer(special_tokens=["<unk>"], unk_token="<unk>", **size)
    else:
        trainer = trainers.BpeTrainer(**size)
    raw.train_from_iterator(_CORPUS * 4, trainer)
    return raw.to_str()


def _trained(kind: str) -> dict[str, Any]:
    made = json.loads(_training(kind))
    made["added_tokens"] = []
    made["model"]["byte_fallback"] = kind.startswith("blank")
    made["model"]["ignore_merges"] = kind == "words"
    return made
