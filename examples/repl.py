"""A chat in the terminal in 20 lines. The cache is bounded: however long you talk, memory stays the same.

python examples/repl.py [MODEL]
"""

import sys

import mlxkv

model = mlxkv.load(sys.argv[1] if len(sys.argv) > 1 else "tutor")
chat = model.chat(system="You are helpful and brief.", cache=mlxkv.CacheConfig(window=1024), max_tokens=400)
for line in iter(lambda: input("> ") if sys.stdin.isatty() else sys.stdin.readline().strip(), ""):
    for event in chat.send(line):
        match event:
            case mlxkv.TextDelta(text):
                print(text, end="", flush=True)
            case mlxkv.TurnFinished(_, _, stats):
                print(
                    f"\n[{stats.prefill_tokens} prefilled, {stats.cached_tokens} cached, {stats.decode_tps:.0f} tok/s]"
                )
