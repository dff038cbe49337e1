"""Shell completion: names of chats, prompt caches and models, and options of the default command `chat`.

Typer passes the line in environment variables. Imports no MLX; each function is called once per Tab.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping, Sequence

from mlxkv.config import Folders


def insert_chat_command(env: MutableMapping[str, str], commands: Collection[str]) -> None:
    """Insert the default command `chat` into the line to complete, so that its options are offered."""
    for variable in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"):
        line = env.get(variable, "")
        words = line.split()
        is_first = len(words) < 2 or (len(words) == 2 and not line[-1:].isspace())
        if len(words) < 2 or words[1] in commands or (is_first and not words[1].startswith("-")):
            continue
        env[variable] = line.replace(words[0], f"{words[0]} chat", 1)
        if variable == "COMP_WORDS" and env.get("COMP_CWORD", "").isdigit():
            env["COMP_CWORD"] = str(int(env["COMP_CWORD"]) + 1)


def models(beginning: str) -> Sequence[str]:
    """Built-in models and those on this machine."""
    from mlxkv.models import BUILT_IN, list_local

    return [name for name in dict.fromkeys([*BUILT_IN, *(m.id for m in list_local())]) if name.startswith(beginning)]


def presets(beginning: str) -> Sequence[str]:
    """Names of presets."""
    from mlxkv.settings.presets import PresetFolder

    return [name for name in PresetFolder(Folders.from_env()).names() if name.startswith(beginning)]


def prompt_caches(beginning: str) -> Sequence[str]:
    """Names of prompt caches."""
    from mlxkv.store.prompts.folder import PromptFolder

    return [c.name for c in PromptFolder(Folders.from_env()).list() if c.name.startswith(beginning)]
