"""Use mlxkv's caches in mlx-lm's own loop: its `stream_generate`, with a window that stays the same size.

python examples/mlx_lm_loop.py [MODEL]
"""

import sys

from mlx_lm import stream_generate

import mlxkv

model = mlxkv.load(sys.argv[1] if len(sys.argv) > 1 else "tutor")
theirs = model.loaded.model  # the module that mlx-lm made; `mlx_lm.load` returns the same
prompt = model.tokenizer.apply_chat_template(
    [{"role": "user", "content": "Count from 1 to 60."}], add_generation_prompt=True
)

# One cache for each layer, as mlx_lm.models.cache.make_prompt_cache returns them: the first 4 tokens are pinned, and
# of the others the last 64 stay, evicted 8 at a time.
cache = mlxkv.make_cache(theirs, mlxkv.CacheConfig(window=64, sinks=4, block=8))
for count, piece in enumerate(stream_generate(theirs, model.tokenizer, prompt, max_tokens=160, prompt_cache=cache), 1):
    print(piece.text, end="", flush=True)
    if count % 40 == 0:
        held = sum(layer.nbytes for layer in cache)
        print(f"\n    [{len(prompt) + count} tokens so far, {held / 1e3:.0f} kB]")
print()
model.close()
