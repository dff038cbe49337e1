"""Watch a KV cache rotate while a text is fed to it: one character for each row of a layer's buffer.

python examples/rotation.py [MODEL]

◆ sinks, which are never evicted; 0-9 the last digit of the number of the block that the row belongs to; · unused yet.
"""

import sys
from pathlib import Path

import mlxkv

SINKS, WINDOW, BLOCK, WORDS = 4, 48, 8, 5
SLOTS = WINDOW // BLOCK - 1  # where full blocks are; the block in progress has a place of its own behind them

model = mlxkv.load(sys.argv[1] if len(sys.argv) > 1 else "tutor")
cache = model.prefill("Once", mlxkv.CacheConfig(window=WINDOW, sinks=SINKS, block=BLOCK))
words = Path(__file__).with_name("document.txt").read_text(encoding="utf-8").split()


def drawn(num_tokens: int, num_evicted: int) -> str:
    """A layer's buffer. Block n is in slot n % SLOTS, so that a full block takes the place of the oldest one."""
    oldest = num_evicted // BLOCK
    slots = sorted(range(oldest, oldest + SLOTS), key=lambda n: n % SLOTS)
    buffer = "◆" * min(SINKS, num_tokens)
    for n in [*slots, oldest + SLOTS]:
        buffer += str(n % 10) * max(0, min(BLOCK, num_tokens - SINKS - n * BLOCK))
    buffer = buffer.ljust(SINKS + WINDOW, "·")
    return " ".join([buffer[:SINKS], *(buffer[i : i + BLOCK] for i in range(SINKS, len(buffer), BLOCK))])


print("tokens  attended  evicted  buffer")
for i in range(0, len(words), WORDS):
    # Without a fork the cache continues where it ended: with a few words of the text, and one token of the model's.
    text = " " + " ".join(words[i : i + WORDS])
    stats = model.generate(text, cache=cache, max_tokens=1).stats
    print(
        f"{cache.offset:6} {stats.cache_tokens:9} {stats.evicted_tokens:8}  {drawn(cache.offset, stats.evicted_tokens)}"
    )
model.close()
