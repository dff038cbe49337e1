"""The clipboard: `pbcopy` where it exists (Apple Terminal ignores OSC 52), else the terminal's OSC 52. UI thread."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from textual.app import App

from mlxkv.text.clean import clean


def copy(app: App[Any], text: str) -> str:
    """Copy `text`; returns what happened, for the user."""
    text = clean(text, joined=True)  # a shell would act on control characters when it is pasted
    size = f"{len(text):,} characters"
    if tool := shutil.which("pbcopy"):
        try:
            subprocess.run([tool], input=text.encode(), check=True, timeout=2)
            return f"copied {size}"
        except (OSError, subprocess.SubprocessError) as error:
            return f"not copied: {error}"
    app.copy_to_clipboard(text)
    return f"sent {size} to the terminal's clipboard"
