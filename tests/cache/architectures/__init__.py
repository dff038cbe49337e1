"""A tiny random model of every architecture in mlx-lm, and those that cannot be built here, with the reason.

Sizes are chosen so that a few dozen tokens pass every sliding window, chunk and indexer; which arguments a module takes
is read from its own ModelArgs.
"""

from __future__ import annotations

import random

from tests.cache.architectures.build import SLIDING, Architecture, module_names
from tests.cache.architectures.dense import DENSE
from tests.cache.architectures.experts import EXPERTS
from tests.cache.architectures.latent import LATENT
from tests.cache.architectures.recurrent import RECURRENT
from tests.cache.architectures.sliding import SLIDING_WINDOWS
from tests.thorough import THOROUGH

ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(name, family, args)
    for family, members in {
        "dense": DENSE,
        "experts": EXPERTS,
        "sliding": SLIDING_WINDOWS,
        "latent": LATENT,
        "recurrent": RECURRENT,
    }.items()
    for name, args in members.items()
}

NOT_BUILT = {
    "bitnet": "its linear layers are a Metal kernel, which the CPU does not have",
    "muse_spark": "its attention and its experts are Metal kernels, which the CPU does not have",
    "olmo": "needs the package ai2-olmo, which mlx-lm does not install, and ends the interpreter without it",
}

# One of each kind, and a seeded handful of the rest: for checks that take a while, and differ by the cache alone.
KINDS = [
    "llama", "smollm3", "nanochat", "gemma3n", "plamo3", "iquestloopcoder", "deepseek_v32", "minimax_m3_vl",
    "falcon_h1", "mamba2", "llama4", "afm7",
]  # fmt: skip
SOME = KINDS + random.Random(4).sample(sorted(set(ARCHITECTURES) - set(KINDS)), 4)
CHECKED = list(ARCHITECTURES) if THOROUGH else SOME

__all__ = ["ARCHITECTURES", "CHECKED", "NOT_BUILT", "SLIDING", "Architecture", "module_names"]
