"""The table in docs/models.md: one row per architecture, each cell what a check has just shown.

`python -m bench.architectures` writes the file; tests make rows anew and compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from mlxkv.cache.planning.layer_plan import LayerPlan
from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.planning.traits import traits_of
from tests.cache.architecture_checks import Parity, parity, planned, quantizes, resumes, rewinds, streams
from tests.cache.architectures import ARCHITECTURES, NOT_BUILT

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
CHOICE_TITLE = "## Choose a model"  # the first section, by `python -m bench.catalogue`
CACHES_TITLE = "## Caches"
REAL_MODELS_TITLE = "## Real models"  # by `python -m bench.shapes`
CATALOGUE_TITLE = "## All suggested models"  # the last section, by `python -m bench.catalogue`
UNEQUAL_IN_PIECES = ("plamo3",)  # mlx-lm's own decode steps see one token less than its prefill
_CHUNKED = 105  # back to here from 119 stays within a chunk of 20


@dataclass(frozen=True)
class Row:
    """A row of the table; the field names, with spaces, are its head."""

    architecture: str
    native_caches: str
    what_it_becomes: str
    bounded: str
    quantized: str
    rewindable: str
    streaming_positions: str
    resumed_bit_by_bit: str

    def __str__(self) -> str:
        return f"| {' | '.join(astuple(self))} |"


def make_row(name: str, scratch: Path) -> Row:
    """Run every check of this architecture.

    Raises:
        AssertionError: one of them did not hold.
    """
    model = ARCHITECTURES[name].build()
    plan = planned(model)
    found = parity(model, plan)
    check_parity(name, plan, found)
    has_rings = any(leaf.geometry for leaf in plan.leaves)
    return Row(
        f"`{name}`",
        *plan_cells(model, plan),
        _quantized(quantizes(model), has_rings),
        _rewindable(model, plan),
        {True: "yes", False: "no: absolute", None: "nothing pinned"}[streams(model)],
        "yes" if resumes(model, plan, scratch) else "no: read again",
    )


def check_parity(name: str, plan: CachePlan, found: Parity) -> None:
    """What the table says of logits.

    Raises:
        AssertionError: they differ.
    """
    assert found.whole == 0.0, f"one call differs by {found.whole:.1e}"
    exact = all(leaf.native_window is None for leaf in plan.leaves)
    allowed = 0.0 if exact else 1e-5
    assert found.pieces <= allowed or name in UNEQUAL_IN_PIECES, f"pieces differ by {found.pieces:.1e}"
    assert found.evicted is None or found.evicted < 1e-5, f"past the window it differs by {found.evicted:.1e}"


def plan_cells(model: Any, plan: CachePlan) -> tuple[str, str, str]:
    """Native caches, what they become, and whether that is bounded: what the plan alone tells."""
    native = _counted(plan.layers, lambda leaf: leaf.native_class)
    return native, _counted(plan.layers, _becomes), _bounded(model, plan)


def _counted(layers: Iterable[LayerPlan], name: Any) -> str:
    """Each kind once, in the order of layers."""
    kinds = [f"({' + '.join(name(c) for c in p.children)})" if p.children else name(p) for p in layers]
    return ", ".join(dict.fromkeys(kinds))


def _becomes(leaf: LayerPlan) -> str:
    if leaf.geometry is None:
        return "as it is, with checkpoints" if leaf.native_class in ("ArraysCache", "LayerCache") else "as it is"
    return "ring" if leaf.native_window is None else "sliding ring"


def _bounded(model: Any, plan: CachePlan) -> str:
    if reason := traits_of(model).counts_rows:
        return f"no: {reason}"
    classes = {leaf.native_class for leaf in plan.leaves if leaf.geometry is None}
    if "LayerCache" in classes:
        return "no: a cache of its own, which only it understands"
    if "ChunkedKVCache" in classes:
        return "yes; chunks by the model itself"
    if all(leaf.geometry is None for leaf in plan.leaves):
        return "yes: of constant size"
    return "yes"


def _quantized(refused: str | None, has_rings: bool) -> str:
    if not has_rings:
        return "no: stays as it is" if refused else "no rows"
    return f"no: {refused}" if refused else "8, 4, (8, 4)"


def _rewindable(model: Any, plan: CachePlan) -> str:
    if rewinds(model, plan):
        recurrent = any("checkpoints" in _becomes(leaf) for leaf in plan.leaves)
        return "to checkpoints" if recurrent else "yes"
    return "within a chunk" if rewinds(model, plan, _CHUNKED) else "no"


def read_rows() -> dict[str, str]:
    """The rows of the committed table by architecture."""
    table = DOCS.read_text().partition("\n| architecture |")[2].partition(REAL_MODELS_TITLE)[0]
    return {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}


_HEAD = """\
{caches}

What mlxkv does with the cache of each architecture in mlx-lm {version}. The table is written by
`python -m bench.architectures`: every row comes from a run of a tiny model with random weights, and the tests repeat
rows and compare them with this file.

* **bounded**: the rows held never exceed sinks + window + undo, at any step, and the logits equal those of one call
  over all tokens with a mask that shows exactly the held rows, to 1e-5 of the largest logit. If that is impossible, a
  requested `window` is refused with `UnboundedError`, and otherwise the model's own caches are used.
* Before anything is evicted the logits equal those with mlx-lm's own caches: exactly in one call; in pieces and decode
  steps exactly if no layer has a sliding window, else to 1e-5, since rows are then summed in another order. PLaMo 3
  is equal only in one call: mlx-lm's decode steps see one token fewer than its prefill; here both see the same.
* **quantized**: `bits=8`, `4` and `(8, 4)` past the window, packed or decoded, or the reason why
  `CacheConfig(bits=...)` is refused.
* **rewindable**: rewinding past an eviction gives exactly the logits of a cache without the later tokens. Recurrent
  layers rewind to the last checkpoint before the place asked for, llama 4 within its attention chunk.
* **streaming positions**: pinned tokens are shifted, so that evicted ones leave no gap; else they keep their absolute
  positions. Checked on the keys themselves: a model may normalise them after rotating, which its rope does not show.
  The answer depends on the model's config.json, which chooses its rope and such norms, and a row here holds for the
  tiny model's: `mlxkv models info` has yours. [Positions of pinned tokens](positions.md) lists the ropes.
* **resumed bit by bit**: saved to a file, restored into another cache, and all further logits are exactly equal.

## Values from a model's files

* **Rope**: `rope_parameters`, as transformers 5 writes configs (one table, or one per layer type), are compared with
  the ropes that the model really has. If its module does not read them, they are put into the older keys that it
  reads (`rope_theta`, `rope_scaling`, `rope_local_base_freq`,
  `partial_rotary_factor`, ...), and rows saved before no longer fit; if no variant gives those ropes, the
  model is refused, and so is a config whose rope values are not positive numbers. If both
  exist, `rope_parameters` give theta and `rope_scaling` gives the scaling, as in transformers. `gptj`,
  `phixtral`, `plamo2`, `qwen` and `recurrent_gemma` support one theta, 10,000.
  Values that mlx-lm's ropes do not support in either form (YaRN's `truncate`) are ignored.
* **Trained length**: `max_position_embeddings`, `n_positions`, `seq_length`, `max_seq_len`, `n_ctx` and similar keys,
  of the text model first; a YaRN, Llama 3 or long rope extends it to `original_max_position_embeddings` times
  `factor`, if that is more.
* **End of a reply**: every token that config.json, its `text_config`, generation_config.json or the tokenizer
  names as `eos_token`, and the special token that the chat template puts after a reply at the end of a chat
  (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`, gpt-oss' `<|return|>`). Numbers may be text or nested; invalid
  values are skipped.
* **Vision repositories** (Qwen3.5 to 3.8, Gemma 4, Mistral 3, LFM2.5-VL, ...): the text part is loaded, whichever
  prefix its tensors have (`language_model.`, `model.language_model.`, none; tested with each architecture below).
  Tensors for images, sound and draft layers (MTP) stay on disk: memory checks and `mlxkv models estimate` do not
  count them, and `mlxkv models info` says "images are not read here". If mlx-lm lacks the model_type but has that of
  `text_config`, this one runs; `qwen3_6`, `qwen3_8` and `qwen3_5_text` run as `qwen3_5`. A quantized `kv_b_proj` of
  Ling 3.0 is unpacked on loading.
* **Families that mlx-lm lacks** (DeepSeek V4, Hunyuan, `qwen4_exp`, GLM-4.6V, ...) are refused in a sentence that names
  the model_type and a model to use instead: of the same family if one fits this machine, else the suggested one.
* **FP8** (`weight_scale_inv`, for a whole tensor or for blocks of 128 x 128) is decoded to bfloat16 on loading where
  mlx-lm's module does not: `ministral3` takes the bytes for numbers.
* **Chat template**: chat_template.jinja, additional_chat_templates/*.jinja, tokenizer_config.json, then the
  processor's files: chat_template.json, processor_config.json. Of several templates the one named "default", else the
  first by name, "rag" and "tool_use" last. A template that shows the text of lists of parts alone, as some vision
  models' do, gets such lists.

`mlxkv models info` shows the template and the end tokens, each with its file.

"""


def document(rows: Mapping[str, str], version: str) -> str:
    """The whole file, of one row for each architecture; the sections of other commands stay."""
    head = [field.name.replace("_", " ") for field in fields(Row)]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *(rows[name] for name in ARCHITECTURES)]
    absent = [f"* `{name}`: {why}." for name, why in sorted(NOT_BUILT.items())]
    text = DOCS.read_text()
    _, title, real_models = text.partition(REAL_MODELS_TITLE)
    lines += ["", "Not run here:", "", *absent, "", title + real_models]
    head_text = _HEAD.format(version=version, caches=CACHES_TITLE)
    return text.partition(CACHES_TITLE)[0] + head_text + "\n".join(lines)
