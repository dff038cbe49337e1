"""Write the table of docs/distributed.md: `python -m bench.splits`, which models mlx-lm can split and how.

Asks a tiny model of each architecture; nothing is computed.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path

from mlxkv.distributed.split import Kind, kinds_of
from tests.cache.architectures import ARCHITECTURES

DOCS = Path(__file__).parents[1] / "docs" / "distributed.md"
TITLE = "## Which models"
_HEAD = """\
Those of [all architectures](models.md#caches) that mlx-lm {} can split; `python -m bench.splits` writes this table.
Tiny random models of `llama`, `qwen2`, `qwen3`, `qwen3_moe`, `qwen3_5`, `gpt_oss`, `deepseek_v3` and `glm4_moe` gave
the same greedy tokens on two processes as on one, in every split that they have; the others have not been run."""


def row(name: str) -> str | None:
    """The row of an architecture; None if mlx-lm cannot split it."""
    module = importlib.import_module(f"mlx_lm.models.{ARCHITECTURES[name].module}")
    found = kinds_of(module.Model(module.ModelArgs.from_dict(ARCHITECTURES[name].config())))
    kinds: tuple[Kind, ...] = ("tensor", "pipeline")
    return f"| `{name}` | {' | '.join('yes' if kind in found else 'no' for kind in kinds)} |" if found else None


def section() -> str:
    """The last section of the page."""
    rows = [line for name in sorted(ARCHITECTURES) if (line := row(name))]
    head = _HEAD.format(version("mlx-lm"))
    return "\n".join([TITLE, "", head, "", "| architecture | tensor | pipeline |", "| --- | --- | --- |", *rows, ""])


def main() -> None:
    DOCS.write_text(DOCS.read_text().partition(TITLE)[0] + section())


if __name__ == "__main__":
    main()
