"""In which order MLX evaluates a graph. Pure; no MLX.

After mlx/transforms.cpp (eval_impl): backwards from what is wanted, breadth first while no more than 20 operations
wait, then depth first; executed in the reverse of that order.
"""

from __future__ import annotations

from collections import Counter

from mlxkv.memory.graph import Graph, Node

_MAX_WIDTH = 20


def evaluation_order(graph: Graph) -> list[Node]:
    """The nodes that the targets need, first evaluated first."""
    producers = graph.producers()
    wanted = Node("", graph.targets, (), ())
    uses = _uses(wanted, producers)
    tape, deferred, at = [wanted], [], 0
    while uses and (at < len(tape) or deferred):
        if at < len(tape):
            node, first = tape[at], 0
            at += 1
        else:
            node, first = deferred.pop()
        for i in range(first, len(node.inputs)):
            source = producers.get(node.inputs[i])
            if source is None or id(source) not in uses:
                continue
            if len(tape) - at >= _MAX_WIDTH:
                deferred.append((node, i))
                break
            uses[id(source)] -= 1
            if not uses[id(source)]:
                del uses[id(source)]
                tape.append(source)
    return tape[:0:-1]


def _uses(wanted: Node, producers: dict[str, Node]) -> Counter[int]:
    """How often each needed node's outputs are inputs of needed nodes."""
    uses: Counter[int] = Counter()
    todo = [wanted]
    while todo:
        for name in todo.pop().inputs:
            source = producers.get(name)
            if source is None:
                continue
            uses[id(source)] += 1
            if uses[id(source)] == 1:
                todo.append(source)
    return uses
