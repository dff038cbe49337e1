"""The figures line under a reply: its parts in a fixed order, as many as a width holds. Pure; UI thread.

`mlxkv.stats` words the parts, the same for line mode and print mode; this adds the version of the reply and the
commands that continue it, and decides what a narrow line leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlxkv.stats import TurnStats, stat_parts

_BRIGHT = ("rate", "kv")
_DROPPED = (  # the first one first
    "time", "drafted", "growth", "retry", "prompt", "tokens", "ttft", "continue", "kv", "version", "rate"
)  # fmt: skip
_COMMANDS = {"length": ("continue",), "stopped": ("retry", "continue")}


def figures_line(stats: TurnStats, width: int, kv_added: int = 0, version: tuple[int, int] = (1, 1)) -> tuple[str, str]:
    """The speed and the KV of a reply, which are drawn brighter, and the rest of its line: `width` cells at most."""
    parts, small = stat_parts(stats, kv_added), stat_parts(stats)["kv"]
    parts["version"] = f"‹ {version[0]}/{version[1]} ›" if version[1] > 1 else ""
    parts |= {name: f"/{name}" for name in _COMMANDS.get(stats.finish_reason, ())}
    for name in _DROPPED:
        if len(_joined(parts.values())) <= width:
            break
        parts |= {"kv": small} if name == "growth" else {name: ""}
    lead = _joined(parts[name] for name in _BRIGHT)
    return lead, _joined(parts.values())[len(lead) :]


def _joined(parts: Iterable[str]) -> str:
    return " · ".join(filter(None, parts))
