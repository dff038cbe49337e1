"""Muon: momentum whose matrices are made orthogonal (Keller Jordan 2024, https://kellerjordan.github.io/posts/muon/).

torch.optim.Muon always computes that in bfloat16, which takes a CPU without such instructions ten times as long.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor  # pyright: ignore[reportMissingImports]

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic whose iteration moves all singular values near 1
STEPS = 4


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, decoupled weight decay, and updates of the size that AdamW's have (0.2 per element)."""

    def __init__(self, matrices: Iterable[Tensor], dtype: torch.dtype, lr: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": 0.05, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                alike[matrix.shape].append(matrix)
            for (rows, columns), matrices in alike.items():
                updates = orthogonal(torch.stack([self._momentum(m, group["momentum"]) for m in matrices]), self.dtype)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(rows, columns) ** 0.5
                torch._foreach_add_(matrices, list(updates.float()), alpha=-group["lr"] * size)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        running = state.setdefault("momentum", torch.zeros_like(matrix)).lerp_(gradient, 1 - momentum)
        return gradient.lerp(running, momentum)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrices (N, rows, columns) with all singular values near 1, by Newton-Schulz iteration in `dtype`."""
    a, b, c = COEFFICIENTS
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
