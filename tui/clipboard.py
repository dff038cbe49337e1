"""Copying: `pbcopy` where there is one (Apple Terminal ignores OSC 52), else the terminal's escape. UI thread."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from textual.app import App

from mlxkv.text.clean import clean


def copy(app: App[Any], text: str) -> str:
    """Put `text` on the clipboard; returns a sentence that is true."""
    text = clean(text, joined=True)  # a paste into a shell would run what a control character says
    size = f"{len(text):,} characters"
    if tool := shutil.which("pbcopy"):
        try:
            subprocess.run([tool], input=text.encode(), check=True, timeout=2)
            return f"copied {size}"
        except (OSError, subprocess.SubprocessError) as error:
            return f"not copied: {error}"
    app.copy_to_clipboard(text)
    return f"sent {size} to the terminal's clipboard"
