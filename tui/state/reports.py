"""Answers to /context, /stats and /memory as lines of text. Pure."""

from __future__ import annotations

from rich.cells import cell_len

from mlxkv.protocol.status import ContextUse, SessionFigures, SessionStatus
from mlxkv.stats import bytes_text, disk_text, plural, prompt_text, rate_text
from mlxkv.text.clean import clean
from mlxkv.tui.state.choices import cut

_BAR = 20  # cells at most
_NAMES = {"system": "system", "user": "you", "assistant": "reply"}


def context_lines(use: ContextUse) -> list[str]:
    """What fills the window: a line in words, then one for each message, which `context_line` words for a width."""
    if not use.parts:
        return ["The window is empty: nothing has been said yet."]
    live, tokens = sum(p.live for p in use.parts), sum(p.tokens for p in use.parts)
    most = max(p.tokens for p in use.parts) or 1
    share = f" of {use.window:,} ({100 * live // use.window}%)" if use.window else ""
    lines = [f"Context: {live:,} tok{share} · {use.pinned:,} pinned · {tokens - live:,} evicted"]
    number = 0  # of the question, as in /fork 2: a reply has that of the question to it
    for part in use.parts:
        number += part.role == "user"
        text, name = " ".join(clean(part.text).split()), _NAMES.get(part.role, part.role)
        lines.append("\t".join(map(str, (number or "", name, text, part.tokens, part.live, most))))
    return lines


def context_line(line: str, width: int) -> str:
    """A line of `context_lines` in at most `width` cells, where that is about a message: who, what, tokens and a bar.

    The bar gives way first, then who; of the text there is what the rest leaves.
    """
    if line.count("\t") != 5:
        return line
    number, name, text, tokens, live, most = line.split("\t")
    gone = "" if live == tokens else " · out" if live == "0" else f" · {int(live):,} left"
    cells = min(_BAR, max(0, (width - 40) // 2))
    full = round(cells * int(live) / int(most))
    bar = "█" * max(full, 1 if int(live) and cells else 0)
    who = f"{number:>3} {name:<6} " if width >= 30 else ""
    right = f" {int(tokens):>7,} tok" + (f" {bar}" if cells else "") + gone
    widest = f" {int(tokens):>7,} tok" + (" " * (cells + 1) if cells else "") + gone
    room = max(0, width - len(who) - len(widest))
    text = cut(text, room) if room > 1 else ""
    return cut(f"{who}{text}{' ' * (room - cell_len(text))}{right}", width)


def stats_lines(f: SessionFigures) -> list[str]:
    rates = f"{rate_text(f.decode_tps)} tok/s decoding" if f.decode_tps else "nothing decoded yet"
    rates += f" · {rate_text(f.prefill_tps)} tok/s prefill" if f.prefill_tps else ""
    asked = f.prefill_tokens + f.cached_tokens
    saved = f" ({100 * (f.cached_tokens - f.cached_evicted_tokens) // asked}% reused)" if asked else ""
    prompt = prompt_text(f.prefill_tokens, f.cached_tokens, f.cached_evicted_tokens)
    used = disk_text(f.all_disk_bytes, f.disk_limit, f.named_disk_bytes)
    return [
        f"This chat: {plural(f.num_turns, 'turn')} ({plural(f.num_messages, 'message')}) · {rates}",
        f"  tokens   {f.generated_tokens:,} generated · {prompt}{saved}",
        f"  KV       {bytes_text(f.kv_bytes)} in memory · {bytes_text(f.disk_bytes)} on disk"
        f" · {bytes_text(f.disk_written_bytes)} written · {f.evicted_tokens:,} tok evicted",
        f"All chats: {f.num_chats:,} · KV on disk in all: {used} · {bytes_text(f.all_written_bytes)} ever written",
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
