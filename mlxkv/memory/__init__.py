"""What reading a prompt takes in memory at its peak, said before anything is allocated.

    peak = weights + cache + what one prefill call holds between its first and its last operation

Weights and cache are sums of array sizes. The third part has no closed form: it depends on the architecture (experts,
attention with or without a fused kernel, packed weights), on the backend, and on how far MLX queues operations ahead
of computing them. So MLX is asked for the graph of that very call, with placeholders for weights and cache rows
(`graph`), the graph is put in MLX's order (`schedule`), and MLX's allocations are counted through it (`allocation`,
which words the rules and their sources). The call taken is the largest: `chunk` tokens that fill the window, where
attention is widest. A decode step is counted too, for its row of logits. Within 10 % of what MLX measures, on the
models and chunks of tests/peak.

Knows no files and no text. Used on the MLX thread.
"""

from mlxkv.memory.budget import CHUNKS, Budget
from mlxkv.memory.prefill_peak import prefill_bytes

__all__ = ["CHUNKS", "Budget", "prefill_bytes"]
