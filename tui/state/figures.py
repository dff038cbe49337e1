"""The figures line under a reply: its parts in a fixed order, as many as a width holds. Pure; UI thread.

`mlxkv.stats` words the parts, the same for line mode and print mode; this adds the version of the reply and the
commands that continue it, and decides what a narrow line leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlxkv.stats import TurnStats, stat_parts
from mlxkv.tui.state.lists.choices import cut

_BRIGHT = ("rate", "kv")
_DROPPED = (  # the first one first
    "time", "drafted", "growth", "retry", "prompt", "tokens", "made_with", "ttft", "continue", "cut", "asked", "kv",
    "version", "rate",
)  # fmt: skip
_MADE_WITH = 24  # cells
_COMMANDS = {"length": ("continue",), "stopped": ("retry", "continue")}


def figures_line(
    stats: TurnStats,
    width: int,
    kv_added: int = 0,
    version: tuple[int, int] = (1, 1),
    made_with: str = "",
    asked: tuple[int, int] = (1, 1),
) -> tuple[str, str]:
    """The speed and the KV of a reply, which are drawn brighter, and the rest of its line: `width` cells at most.

    `made_with`: the model or the settings in which this version differs from the others. `asked`: which of the
    questions in its place it answers.
    """
    parts = stat_parts(stats, kv_added)
    shorter = {"growth": ("kv", stat_parts(stats)["kv"]), "made_with": ("version", _version(version))}
    parts["asked"] = _version(asked).replace("‹ ", "‹ question ")
    parts["version"] = _version(version, made_with)
    parts |= {name: f"/{name}" for name in _COMMANDS.get(stats.finish_reason, ())}
    for name in _DROPPED:
        if len(_joined(parts.values())) <= width:
            break
        part, text = shorter.get(name, (name, ""))
        parts[part] = text
    lead = _joined(parts[name] for name in _BRIGHT)
    return lead, _joined(parts.values())[len(lead) :]


def _version(version: tuple[int, int], made_with: str = "") -> str:
    number, count = version
    of = f" · {cut(made_with, _MADE_WITH)}" if made_with else ""
    return f"‹ {number}/{count}{of} ›" if count > 1 else ""


def _joined(parts: Iterable[str]) -> str:
    return " · ".join(filter(None, parts))
