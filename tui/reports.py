"""Answers to /context, /stats and /memory as lines of text. Pure."""

from __future__ import annotations

from mlxkv.readings import ContextUse, SessionFigures, SessionStatus
from mlxkv.stats import bytes_text, rate_text
from mlxkv.text import clean
from mlxkv.tui.wording import plural

_BAR = 20
_TEXT = 34  # cells of a message that say which one it is
_NAMES = {"system": "system", "user": "you", "assistant": "reply"}


def context_lines(use: ContextUse) -> list[str]:
    """What fills the window, message by message; what has rotated out is said."""
    if not use.parts:
        return ["The window is empty: nothing has been said yet."]
    live, tokens = sum(p.live for p in use.parts), sum(p.tokens for p in use.parts)
    most = max(p.tokens for p in use.parts) or 1
    share = f" of {use.window:,} ({100 * live // use.window}%)" if use.window else ""
    lines = [f"Context: {live:,} tok{share} · {use.pinned:,} pinned · {tokens - live:,} rotated out"]
    for number, part in enumerate(use.parts):
        text = " ".join(clean(part.text).split())
        text = text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
        full = round(_BAR * part.live / most)
        gone = "" if part.live == part.tokens else " · out" if not part.live else f" · {part.live:,} left"
        bar = "█" * max(full, 1 if part.live else 0)
        name = _NAMES.get(part.role, part.role)
        lines.append(f"{number:>3} {name:<6} {text:<{_TEXT}} {part.tokens:>7,} tok {bar}{gone}")
    return lines


def stats_lines(f: SessionFigures) -> list[str]:
    rates = f"{rate_text(f.decode_tps)} tok/s decoding" if f.decode_tps else "nothing decoded yet"
    rates += f" · {rate_text(f.prefill_tps)} tok/s reading" if f.prefill_tps else ""
    asked = f.prefill_tokens + f.cached_tokens
    saved = f" ({100 * f.cached_tokens // asked}% not read again)" if asked else ""
    limit = f" of {bytes_text(f.disk_limit)}" if f.disk_limit else ""
    return [
        f"This chat: {plural(f.num_turns, 'turn')} · {rates}",
        f"  tokens   {f.generated_tokens:,} generated · {f.prefill_tokens:,} read · {f.cached_tokens:,} cached{saved}",
        f"  KV       {bytes_text(f.kv_bytes)} in memory · {bytes_text(f.disk_bytes)} on disk"
        f" · {bytes_text(f.disk_written_bytes)} written · {f.evicted_tokens:,} tok rotated out",
        f"All chats: {f.num_chats:,} · KV on disk {bytes_text(f.all_disk_bytes)}{limit}"
        f" · {bytes_text(f.all_written_bytes)} ever written",
    ]


def memory_lines(status: SessionStatus) -> list[str]:
    cache = status.cache
    allocated = f"{bytes_text(cache.allocated_bytes)} allocated, " if cache else ""
    limit = f" of {bytes_text(status.memory_limit)} usable" if status.memory_limit else ""
    return [
        f"Memory: {bytes_text(status.memory_used)}{limit}",
        f"  weights  {bytes_text(status.weight_bytes)}",
        f"  KV       {allocated}{bytes_text(status.kv_bytes)} live",
        f"  free     {bytes_text(max(0, status.memory_limit - status.memory_used))}" if status.memory_limit else "",
    ]
