"""The network: a Llama of a few million parameters that mlx_lm can load. PyTorch; knows nothing of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True)
class Shape:
    """Sizes, named as in config.json."""

    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 768
    head_dim: int = 64
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 1024

    def config(self) -> dict[str, object]:
        """Return the contents of config.json."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            **asdict(self),
            "tie_word_embeddings": True,
        }


class Network(nn.Module):
    """Token ids (B, L) to hidden states (B, L, D); `logits` turns those into (…, vocab) with the tied embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.num_hidden_layers) ** 0.5 if last else 0.02)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        wire_copying(self)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = (t.to(x.device) for t in rotations(ids.shape[1], self.shape))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, dim = shape.hidden_size, shape.head_dim
        self.q_proj = nn.Linear(width, shape.num_attention_heads * dim, bias=False)
        self.k_proj = nn.Linear(width, shape.num_key_value_heads * dim, bias=False)
        self.v_proj = nn.Linear(width, shape.num_key_value_heads * dim, bias=False)
        self.o_proj = nn.Linear(shape.num_attention_heads * dim, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            p(x).view(batch, length, -1, self.shape.head_dim).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, heads, L, head_dim)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = attention(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over (B, heads, L, head_dim), written out: backwards five times faster on a CPU."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    length, dim = q.shape[-2:]
    ahead = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
    scores = torch.baddbmm(ahead, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=dim**-0.5)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view_as(q)


def rotations(length: int, shape: Shape) -> tuple[Tensor, Tensor]:
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-half)  # (L, head_dim / 2)
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


@torch.no_grad()
def wire_copying(network: Network) -> None:
    """Wire an induction head, which a small model needs millions of tokens to learn (arXiv 2209.11895).

    Layer 0, head 0 looks one token back and notes it; layer 1, head 0 finds where the current token was noted and
    predicts the token there. Both are ordinary weights, and training changes them like all others.
    """
    shape = network.shape
    dim, width = shape.head_dim, shape.hidden_size
    network.embed_tokens.weight[:, 0] = 0.4  # the same in every token: what a look at positions alone needs
    content, note, said = (_rows(dim, width) for _ in range(3))
    back, find = network.layers[0].self_attn, network.layers[1].self_attn

    turn = shape.rope_theta ** -(torch.arange(dim // 4) * 2 / dim)  # the faster half of the frequencies, in radians
    for projection in (back.q_proj, back.k_proj, find.q_proj, find.k_proj):
        projection.weight[:dim] = 0
    back.k_proj.weight[: dim // 4, 0] = 0.9
    back.q_proj.weight[: dim // 4, 0] = 0.9 * turn.cos()
    back.q_proj.weight[dim // 2 : dim // 2 + dim // 4, 0] = -0.9 * turn.sin()
    back.v_proj.weight[:dim] = content
    back.o_proj.weight[:, :dim] = 0.1 * note.T

    slow = torch.cat(
        [torch.arange(dim // 4, dim // 2), torch.arange(dim // 4 + dim // 2, dim)]
    )  # hardly turn with distance
    find.q_proj.weight[slow] = 2 * content[: len(slow)]
    find.k_proj.weight[slow] = 2 * note[: len(slow)]
    find.v_proj.weight[:dim] = said
    find.o_proj.weight[:, :dim] = 0.3 * said.T


def _rows(count: int, width: int) -> Tensor:
    """Return orthonormal rows (count, width) with zeros in the first column."""
    rows = torch.zeros(count, width)
    rows[:, 1:] = torch.linalg.qr(torch.randn(width - 1, count)).Q.T
    return rows
