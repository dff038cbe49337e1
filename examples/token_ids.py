"""Generate in token ids, a piece at a time: each step gives back all ids, and only those that are new are prefilled.

python examples/token_ids.py [MODEL]
"""

import sys

import numpy as np

import mlxkv

QUESTION = [{"role": "user", "content": "What is a KV cache?"}]

with mlxkv.load(sys.argv[1] if len(sys.argv) > 1 else "tutor") as model:
    ids = list(model.tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False))
    print(f"{model.count(ids)} ids, {model.count(QUESTION)} of the messages")
    cache = model.make_cache()
    for _ in range(3):
        # numpy's arrays, MLX's, lists and tuples are all taken.
        result = model.generate(np.array(ids), cache=cache, max_tokens=8, temperature=0)
        how = "continued" if result.stats.continued else "whole"
        print(f"{how}: {result.stats.prefill_tokens} prefilled, {result.stats.cached_tokens} cached, {result.text!r}")
        ids += result.tokens  # never the text, which tokenized again may give others

    # Ids that do not begin with all that the cache holds continue it.
    result = model.generate(ids[-3:], cache=cache.fork(), max_tokens=1)
    how = "continued" if result.stats.continued else "whole"
    print(f"{how}: {result.stats.prefill_tokens} prefilled, {result.stats.cached_tokens} cached")
