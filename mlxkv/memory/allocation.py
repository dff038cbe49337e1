"""How much memory evaluating a graph takes at its peak, beyond what is there before. Pure; no MLX.

What MLX does, in numbers (mlx/backend/cpu/{eval,encoder}, mlx/backend/common, mlx/transforms.cpp):

* Memory for an operation's output is taken when it is *queued*, by the thread that walks the graph.
* Views take none; an elementwise operation takes over the bytes of an input that nobody else holds; a slice is written
  into its target the same way; a product copies an operand whose last two axes do not lie in order.
* A buffer is given back when the operation that read it last has *run*. The queue may be 10 tasks of 10 entries ahead
  (an operation is two entries, a view one), and computing is much slower than queueing: so the last hundred entries'
  inputs are still held. This is why the peak is about one to two layers' intermediate arrays, not one array's.

On Metal a task is a command buffer, whose length depends on the bytes it touches; the same hundred entries are assumed
there, which has not been measured.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from mlxkv.memory.graph import Graph, Node, Shape
from mlxkv.memory.schedule import evaluation_order
from mlxkv.memory.strides import Dims, is_matrix, is_packed, packed, view

_AHEAD = 100  # entries of the queue that have not run
_ELEMENTWISE = {
    "Abs", "Add", "AsType", "BitwiseBinary", "Ceil", "Compiled", "Cos", "Divide", "Equal", "Erf", "Exp", "Expm1",
    "Floor", "Greater", "GreaterEqual", "Less", "LessEqual", "Log", "Log1p", "LogAddExp", "LogicalAnd", "LogicalNot",
    "LogicalOr", "Maximum", "Minimum", "Multiply", "Negative", "NotEqual", "Power", "Remainder", "Round", "Select",
    "Sigmoid", "Sign", "Sin", "Softmax", "Sqrt", "Square", "Subtract", "Tanh",
}  # fmt: skip
_UPDATES = {"DynamicSliceUpdate", "MaskedScatter", "Scatter", "ScatterAxis", "SliceUpdate"}
_PRODUCTS = {"AddMM", "BlockMaskedMM", "GatherMM", "Matmul"}
_PACKED_PRODUCTS = {"GatherQMM", "QuantizedMatmul"}


def peak_bytes(graph: Graph) -> int:
    """The most bytes that evaluating the targets holds at once, resident arrays not counted."""
    return _Evaluation(graph).run()


class _Evaluation:
    """Buffers are numbers; every array has one, views share theirs."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.shapes = graph, graph.shapes
        self.order = evaluation_order(graph)
        self.waiting = Counter(name for node in self.order for name in node.inputs)  # uses still to come
        made = {name for node in self.order for name in node.outputs}
        evaluated = set(map(id, self.order))
        unused = [node for node in graph.nodes if id(node) not in evaluated]
        # What is not evaluated holds what it would be made of.
        self.kept = {*graph.targets, *(name for node in unused for name in node.inputs if name in made)}
        self.buffer: dict[str, int] = {}
        self.strides: dict[str, Dims] = {}
        self.sizes: dict[int, int] = {}
        self.names: dict[int, set[str]] = {}  # arrays that will still be read, by buffer
        self.held: Counter[int] = Counter()  # by queued operations
        self.queue: deque[tuple[int, set[int]]] = deque()
        self.queued = self.active = self.peak = 0
        for name in graph.resident:
            self.buffer[name] = self._take(0)
            self.names[self.buffer[name]].add(name)
            self.strides[name] = packed(self.shapes[name].dims)
        self.resident = set(self.buffer.values())

    def run(self) -> int:
        for node in self.order:
            self._evaluate(node)
        return self.peak

    def _evaluate(self, node: Node) -> None:
        copies: list[int] = []
        is_view = self._share(node)
        if not is_view and not self._reuse(node):
            copies = [self._take(self.shapes[name].nbytes) for name in self._copied(node)]
            for name in node.outputs:
                self.buffer[name] = self._take(self.shapes[name].nbytes)
                self.strides[name] = packed(self.shapes[name].dims)
        self.peak = max(self.peak, self.active)
        for name in node.outputs:
            if self.waiting[name] or name in self.kept:
                self.names[self.buffer[name]].add(name)
        holds = {self.buffer[name] for name in (*node.inputs, *node.outputs[1:])} | set(copies)
        holds.discard(self.buffer[node.outputs[0]])
        for name in node.inputs:
            self.waiting[name] -= 1
            if not self.waiting[name] and name not in self.kept:
                self.names[self.buffer[name]].discard(name)
        self._queue(1 if is_view else 2 + len(copies), holds)
        self._release(self.buffer[name] for name in node.outputs)

    def _share(self, node: Node) -> bool:
        """Whether the outputs are views of the first input."""
        if not node.inputs:
            return False
        source = node.inputs[0]
        for name in node.outputs:
            strides = view(node, self.shapes[source].dims, self.strides[source], self.shapes[name].dims)
            if strides is None:
                return False
            self.buffer[name], self.strides[name] = self.buffer[source], strides
        return True

    def _reuse(self, node: Node) -> bool:
        """Whether the output takes over an input's bytes."""
        output = node.outputs[0]
        if node.name in _UPDATES:
            candidates = node.inputs[:1]
        elif node.name in _ELEMENTWISE:
            candidates = tuple(name for name in node.inputs if self._is_like(name, self.shapes[output]))
        else:
            return False
        for name in candidates:
            # Cache rows are written in place: the ring holds them alone.
            in_place = node.name in _UPDATES and self.buffer[name] in self.resident
            if in_place or self._is_last(node, name):
                self.buffer[output], self.strides[output] = self.buffer[name], self.strides[name]
                return True
        return False

    def _is_like(self, name: str, shape: Shape) -> bool:
        repeated = any(s == 0 and n > 1 for n, s in zip(self.shapes[name].dims, self.strides[name], strict=True))
        return self.shapes[name] == shape and not repeated

    def _is_last(self, node: Node, name: str) -> bool:
        """Whether the node alone still needs this array's buffer."""
        buffer = self.buffer[name]
        alone = self.names[buffer] == {name} and name not in self.kept and not self.held[buffer]
        return alone and buffer not in self.resident and self.waiting[name] == 1 == node.inputs.count(name)

    def _copied(self, node: Node) -> list[str]:
        """Operands that a product first puts in order."""
        if node.name in _PRODUCTS:
            return [n for n in node.inputs[:2] if not is_matrix(self.shapes[n].dims, self.strides[n])]
        if node.name in _PACKED_PRODUCTS:
            return [n for n in node.inputs[:2] if not is_packed(self.shapes[n].dims, self.strides[n])]
        return []

    def _take(self, nbytes: int) -> int:
        buffer = len(self.names)
        self.sizes[buffer], self.names[buffer] = nbytes, set()
        self.active += nbytes
        return buffer

    def _queue(self, entries: int, holds: set[int]) -> None:
        self.held.update(holds)
        self.queued += entries
        self.queue.append((self.queued, holds))
        while self.queue and self.queue[0][0] <= self.queued - _AHEAD:
            done = self.queue.popleft()[1]
            self.held.subtract(done)
            self._release(done)

    def _release(self, buffers: Iterable[int]) -> None:
        for buffer in buffers:
            if not self.held[buffer] and not self.names[buffer]:
                self.active -= self.sizes.pop(buffer, 0)
