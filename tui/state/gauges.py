"""Lines of the cache panel: the ring as a strip, decode speed of the last minute, memory, disk. Pure; UI thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mlxkv.events import PrefillProgress, TextDelta, TurnFinished
from mlxkv.protocol.events import EngineEvent, TurnStarted
from mlxkv.protocol.status import CacheView, SessionStatus
from mlxkv.stats import bytes_text, disk_text, rate_text
from mlxkv.tui.state.lists.choices import cut

BARS = "▁▂▃▄▅▆▇█"
SECONDS = 60  # of decode speed
PINNED, LIVE, EVICTED, FREE = "█", "▓", "░", "·"


def ring_strip(cache: CacheView, width: int) -> tuple[str, str]:
    """The ring, and the line below it that marks the next row to be written.

    Cells are equal shares of the rows: pinned, live, free; after the window, the evicted rows of the undo area.
    """
    rows = max(1, cache.capacity + cache.undo)
    ends = (cache.pinned, max(cache.live, cache.pinned), cache.capacity, cache.capacity + cache.undo)
    cells = ""
    for sign, end in zip((PINNED, LIVE, FREE, EVICTED), ends, strict=True):
        target = width * end // rows
        if end and sign is PINNED:
            target = max(1, target)  # few as they are, pinned rows always show
        cells += sign * max(0, target - len(cells))
    head = min(width - 1, width * cache.head // rows)
    return cells.ljust(width, FREE)[:width], f"{' ' * head}▲"


def sparkline(rates: Sequence[int], width: int) -> str:
    """Bars of the last `width` seconds, scaled to the fastest; a second without tokens is a blank."""
    shown = list(rates)[-width:]
    most = max(shown, default=0)
    if not most:
        return " " * len(shown)
    return "".join(BARS[max(0, -(-rate * len(BARS) // most) - 1)] if rate else " " for rate in shown)


def bar(share: float, width: int) -> str:
    full = min(width, max(round(share * width), 1 if share > 0 else 0))
    return "▰" * full + "▱" * (width - full)


def ring_legend(cache: CacheView, room: int = 200) -> list[str]:
    """What the signs of the ring mean, in lines of at most `room` cells."""
    live, rows = max(0, cache.live - cache.pinned), f"of {cache.capacity:,} rows"
    signs = [f"{PINNED} pinned {cache.pinned:,}", f"{LIVE} live {live:,}", f"{EVICTED} evicted {cache.evicted:,}"]
    endings = [["▲ next write", rows], ["▲ next", rows]]
    if cache.bits:
        endings = [[mark, f"{rows}, {cache.bits}-bit"] for mark, rows in endings]
    else:
        endings.insert(0, ["▲ next write", f"{rows}, full precision"])
    fitting = (folded([*signs, *ending], "  ", room) for ending in endings)
    return next((lines for lines in fitting if len(lines) == 1), folded([*signs, *endings[0]], "  ", room))


def folded(parts: Sequence[str], separator: str, room: int) -> list[str]:
    """The parts joined in as few lines of at most `room` cells as they need."""
    lines = [""]
    for part in parts:
        line = f"{lines[-1]}{separator}{part}" if lines[-1] else part
        if len(line) <= room or not lines[-1]:
            lines[-1] = line
        else:
            lines.append(part)
    return lines


def wide_lines(status: SessionStatus, rates: Sequence[int], prefill_tps: float, width: int) -> list[str]:
    """The panel below the chat: six lines, or more where it is narrow."""
    indent, room = " " * 8, width - 8
    cache, live = status.cache, f"{bytes_text(status.kv_bytes)} live" if status.kv_bytes else "–"
    if cache is None and status.kv_bytes:
        ring = ["Ring    none: the layers have caches of their own", "", ""]
    elif cache is None or not cache.capacity:
        ring = ["Ring    empty", "", ""]
    else:
        cells, mark = ring_strip(cache, max(10, width - 9))
        ring = [f"Ring    {cells}", f"{indent}{mark}", *(indent + line for line in ring_legend(cache, room))]
    now = max((rate for rate in rates[-3:]), default=0)
    prefill = f"prefill {rate_text(prefill_tps)} tok/s" if prefill_tps else "prefill –"
    words = f" {now} tok/s, last 60 s · {prefill}"
    speed = f"Speed   {sparkline(rates, max(0, min(60, width - 8 - len(words))))}{words}"
    kv = f"{bytes_text(cache.allocated_bytes)} allocated, {bytes_text(cache.live_bytes)} live" if cache else live
    parts = [f"weights {bytes_text(status.weight_bytes)}", f"KV {kv}"]
    if status.memory_limit:
        parts.append(f"free {bytes_text(max(0, status.memory_limit - status.memory_used))}")
    first, *more = folded(parts, " · ", room)
    lines = [
        *ring,
        speed,
        f"Memory  {first}",
        *(indent + line for line in more),
        f"Disk    KV on disk in all: {disk_text(status.disk_bytes, status.disk_limit)}",
    ]
    return [cut(line, width) for line in lines]


def narrow_lines(status: SessionStatus, rates: Sequence[int], prefill_tps: float, width: int) -> list[str]:
    """The panel under the list of chats, one column."""
    cache = status.cache
    now = max((rate for rate in rates[-3:]), default=0)
    rate = f" {now} t/s"
    bits = "" if cache is None else f"  {cache.bits}-bit" if cache.bits else ""
    lines = [
        f"Speed{'last 60 s':>{max(0, width - 6)}}",
        f" {sparkline(rates, width - 2 - len(rate))}{rate}",
        f"Prefill{f'{rate_text(prefill_tps)} t/s' if prefill_tps else '–':>{max(0, width - 8)}}",
        "Memory",
        f" weights  {bytes_text(status.weight_bytes)}",
        f" KV       {bytes_text(cache.allocated_bytes if cache else status.kv_bytes)}{bits}",
    ]
    if status.memory_limit:
        lines.append(f" free     {bytes_text(max(0, status.memory_limit - status.memory_used))}")
    return [*lines, f"Disk KV  {disk_text(status.disk_bytes, status.disk_limit)}"]


class SpeedMeter:
    """Generated tokens per second of the last minute. `prefill_tps` is that of the last prompt, 0 before any."""

    def __init__(self) -> None:
        self.prefill_tps = 0.0
        self._seconds: deque[tuple[int, int]] = deque(maxlen=SECONDS + 2)  # second, tokens in it
        self._counted = 0

    def record(self, event: EngineEvent, now: float) -> None:
        match event:
            case TextDelta(_, num_tokens):
                new, self._counted = max(0, num_tokens - self._counted), max(num_tokens, self._counted)
                second = int(now)
                if self._seconds and self._seconds[-1][0] == second:
                    new += self._seconds.pop()[1]
                self._seconds.append((second, new))
            case PrefillProgress(tps=tps) if tps > 0:
                self.prefill_tps = tps
            case TurnStarted():
                self._counted = 0
            case TurnFinished(stats=stats):
                self._counted = 0
                self.prefill_tps = stats.prefill_tps or self.prefill_tps

    def rates(self, now: float) -> list[int]:
        """Tokens in each of the last 60 whole seconds, the latest last."""
        counts = dict(self._seconds)
        end = int(now)
        return [counts.get(second, 0) for second in range(end - SECONDS, end)]
