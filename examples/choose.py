"""Which continuation is the most probable, and how probable a text is.

python examples/choose.py [MODEL]
"""

import math
import sys

import mlxkv

STORY = "Once upon a time there was a kind dog named Sha, who lived in a house by the"
ENDINGS = (" sea", " moon", " cache of keys")


def main(name: str = "tutor") -> None:
    model = mlxkv.load(name)
    story = model.prefill(STORY)  # prefilled once; scoring changes nothing in it
    choice = model.choose(ENDINGS, cache=story, normalize="tokens")
    for ending, score in zip(ENDINGS, choice.scores, strict=True):
        print(f"{score.logprob:6.1f} of {score.num_tokens} tokens, perplexity {score.perplexity:,.0f}: {ending}")
    print(f"the choice is number {choice.index}: {STORY}{choice.option}")
    for told in model.generate(STORY, temperature=0, max_tokens=2, logprobs=2).logprobs:
        first, second = (f"{model.tokenizer.decode([token])!r} {math.exp(p):.0%}" for token, p in told.top)
        print(f"then {first}, or {second}")


main(*sys.argv[1:])
