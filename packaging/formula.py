"""Fill the Homebrew formula from a built sdist: python packaging/formula.py dist/mlxkv-0.1.0.tar.gz > mlxkv.rb

The version comes from the file's name, the checksum from its bytes. The result belongs into the tap's folder Formula.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

TEMPLATE = Path(__file__).with_name("mlxkv.rb")


def filled(sdist: Path) -> str:
    """The formula for the release whose sdist this is.

    Raises:
        ValueError: the file is not named like an sdist of mlxkv.
    """
    name = re.fullmatch(r"mlxkv-([0-9][^-]*)\.tar\.gz", sdist.name)
    if name is None:
        raise ValueError(f"{sdist.name!r} is not named mlxkv-VERSION.tar.gz; give the sdist that `make dist` built.")
    checksum = hashlib.sha256(sdist.read_bytes()).hexdigest()
    return TEMPLATE.read_text(encoding="utf-8").replace("@VERSION@", name[1]).replace("@SHA256@", checksum)


if __name__ == "__main__":
    try:
        print(filled(Path(*sys.argv[1:2])), end="")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
