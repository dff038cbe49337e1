"""Write docs/models.md: `python -m bench.architectures [NAME ...]`.

Runs every check of every architecture, about two minutes, or of the named ones, and replaces their rows.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.cache.architecture_table import DOCS, document, make_row, read_rows
from tests.cache.architectures import ARCHITECTURES


def main() -> None:
    names = sys.argv[1:] or list(ARCHITECTURES)
    rows = read_rows() if sys.argv[1:] else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rows[name] = str(make_row(name, Path(folder) / "cache.kv"))
            print(rows[name], file=sys.stderr, flush=True)
    DOCS.write_text(document(rows, version("mlx-lm")))


if __name__ == "__main__":
    main()
