"""The graph of one model call: which arrays it would make of which, with nothing computed.

MLX builds it by running the model on placeholders (`mx.export_function`). Used on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass(frozen=True)
class Node:
    """One operation: the names of its inputs and outputs."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Shape:
    """Of one array: its dimensions, and bytes per number."""

    dims: tuple[int, ...]
    item: int

    @property
    def nbytes(self) -> int:
        size = self.item
        for n in self.dims:
            size *= n
        return size


@dataclass(frozen=True)
class Graph:
    """`resident` arrays are there before (weights, cache rows), `targets` are evaluated."""

    nodes: tuple[Node, ...]
    shapes: dict[str, Shape]
    resident: frozenset[str]
    targets: tuple[str, ...]

    def producers(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs}


def trace(call: Callable[..., tuple[Sequence[mx.array], Sequence[mx.array]]], *arrays: mx.array) -> Graph:
    """The graph of `call(*arrays)`, which gives the arrays to evaluate, and those that are held without that."""
    records: list[dict[str, Any]] = []
    num_targets = 0

    def flat(*placeholders: mx.array) -> list[mx.array]:
        nonlocal num_targets
        targets, held = call(*placeholders)
        num_targets = len(targets)
        return [*targets, *held]

    mx.export_function(records.append, flat, *arrays)
    by_type = {record["type"]: record for record in records if record["type"] != "primitive"}
    shapes = {name: Shape(tuple(dims), dtype.size) for name, dims, dtype in by_type["inputs"]["inputs"]}
    shapes |= {name: Shape(tuple(array.shape), array.dtype.size) for name, array in by_type["constants"]["constants"]}
    resident = frozenset(shapes)
    nodes = []
    for record in records:
        if record["type"] == "primitive":
            shapes |= {name: Shape(tuple(dims), dtype.size) for name, dims, dtype in record["outputs"]}
            nodes.append(
                Node(
                    record["name"],
                    tuple(name for name, *_ in record["inputs"]),
                    tuple(name for name, *_ in record["outputs"]),
                    tuple(record["arguments"]),
                )
            )
    targets = tuple(name for name, *_ in by_type["outputs"]["outputs"][:num_targets])
    return Graph(tuple(nodes), shapes, resident, targets)
