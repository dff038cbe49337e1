"""Editing the prompt in the user's own editor. UI thread: the window is suspended, the engine keeps running."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlxkv.system.regular_file import read_bytes
from mlxkv.text.clean import clean

_MAX_SIZE = 256 << 20  # bytes


class EditorError(Exception):
    """One sentence for the user."""


def editor_command(env: Mapping[str, str]) -> list[str]:
    """$VISUAL, $EDITOR or vi, with its arguments.

    Raises:
        EditorError: if it is not installed.
    """
    try:
        command = shlex.split(env.get("VISUAL") or env.get("EDITOR") or "vi")
    except ValueError:
        command = []
    if not command or shutil.which(command[0], path=env.get("PATH")) is None:
        raise EditorError(f"The editor {(command or ['?'])[0]!r} was not found. Set EDITOR to an installed one.")
    return command


def edit_text(text: str, command: list[str]) -> str:
    """Let the user edit `text` in a temporary file that only they can read; returns the result.

    Raises:
        EditorError: if the editor failed; the prompt is unchanged then.
    """
    try:
        handle, name = tempfile.mkstemp(prefix="mlxkv-", suffix=".md")
    except OSError as error:
        raise EditorError(
            f"No temporary file can be created ({error.strerror}); set TMPDIR to a writable folder."
        ) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        code = subprocess.run([*command, name], check=False).returncode
        if code:
            raise EditorError(f"{command[0]} exited with code {code}; the prompt is unchanged.")
        data = read_bytes(name, _MAX_SIZE)
    except OSError as error:
        raise EditorError(f"{command[0]} could not be started: {error.strerror}.") from None
    finally:
        Path(name).unlink(missing_ok=True)
    return clean(data.decode("utf-8", "replace").replace("\r\n", "\n"), joined=True).removesuffix("\n")
