"""Chat templates under a budget: a template that loops or allocates without end is refused, not waited for.

Templates come with models, so they are as trustworthy as those. transformers renders them in jinja2's sandbox, which
keeps them from reaching anything, but not from running for ever or filling the memory. Here the same sandbox counts:
every turn of a loop, every call of a macro, method, filter or test, and the size of everything that is made, read as a
whole or compared. What one operation could make out of proportion (`*`, `**`, widths, `replace`, `join`, `format`) is
judged before it runs. Counting is exact, so a template is refused on every machine or on none; no thread, no clock.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 250_000
"""Turns of loops, calls, filters and tests of one rendering: a second or two."""
MAX_UNITS = 200_000_000
"""Characters, items and bits that one rendering may make or go through, all together."""

_MAX_NUMBER = 100_000  # as an argument: widths, counts
_MAX_INDENT = 16
_MAX_BITS = 100_000  # of a whole number
_WIDE = re.compile(r"\d{5,}|\{[^{}]*\{|\*")  # of a format: a large width, or one that comes from an argument
_MAX_NODES = 200_000  # of one nested value
_NODE = 100  # units: going through a list takes longer than through text
_UNSIZED = 100_000  # what an iterator may be long
_MULTIPLYING = {"do_format", "do_indent", "do_join", "expandtabs", "format", "format_map", "indent", "join", "replace",
                "do_replace", "sync_do_join", "tojson", "translate"}  # fmt: skip
"""Calls whose result can be as large as the product of what they are given."""
_PEEKING = {"do_default", "do_first", "do_last", "get", "len", "sync_do_first"}  # at a value, however large it is


class TemplateTooCostlyError(TemplateError):
    """The template ran over its budget."""


@contextmanager
def budgeted() -> Iterator[None]:
    """Within, on this thread, transformers renders chat templates under a budget of their own each time."""
    from transformers.utils import chat_template_utils as library

    own = library._compile_jinja_template
    base = own("").environment

    def compiled(template: str) -> Any:
        found = _compiled(template, base)
        found.environment.steps = found.environment.units = 0
        return found

    library._compile_jinja_template = compiled
    try:
        yield
    finally:
        library._compile_jinja_template = own


@functools.lru_cache(maxsize=4)
def _compiled(template: str, base: Any) -> Any:
    """The template in a counting sandbox that is otherwise set up as transformers' own."""
    extensions = [type(extension) for extension in base.extensions.values()]
    made = BudgetedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    made.globals.update(base.globals)
    made.filters = {name: made.counted(function) for name, function in base.filters.items()}
    made.tests = {name: made.counted(function) for name, function in base.tests.items()}
    return made.from_string(template)


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, counting from `steps` and `units` 0 for each rendering."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps = self.units = 0
        self.concat = self._concat  # type: ignore[method-assign]
        self.finalize = self.weigh  # what is put out

    # -- counting ----------------------------------------------------------------------------------------------------

    def tick(self) -> bool:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TemplateTooCostlyError(f"it takes more than {MAX_STEPS:,} steps")
        return True

    def weigh(self, value: Any) -> Any:
        """Count what is made or gone through."""
        self._charge(_size(value))
        return value

    def _charge(self, units: int) -> None:
        self.units += units
        if self.units > MAX_UNITS:
            raise TemplateTooCostlyError(f"it makes or reads more than {MAX_UNITS:,} characters")

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test that is judged, counted and weighed; jinja2's marks on it are kept."""
        name = getattr(function, "__name__", "")

        @functools.wraps(function)
        def judged(*args: Any, **kwargs: Any) -> Any:
            self._judge(name, args, kwargs)
            result = function(*args, **kwargs)
            return result if name in _PEEKING else self.weigh(result)

        return judged

    def _judge(self, name: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        """Count a call, and what it could make of its arguments at most, before it does."""
        self.tick()
        if name in _PEEKING:
            return
        values = [v for v in (*args, *kwargs.values()) if not isinstance(v, (Context, EvalContext, Environment))]
        numbers = [abs(v) for v in values if isinstance(v, int)]
        most = _MAX_INDENT if name == "tojson" else _MAX_NUMBER
        if any(number > most for number in numbers):
            raise TemplateTooCostlyError(f"it passes a number over {most:,} to {name or 'a function'}")
        if "format" in name and any(isinstance(v, str) and _WIDE.search(v) for v in values):
            raise TemplateTooCostlyError("it formats to a width that is large or comes from an argument")
        others = [v for v in values if not isinstance(v, int)]
        sizes = sorted((_UNSIZED if _is_iterator(v) else _size(v) for v in others), reverse=True)
        self._charge(sum(sizes))
        if name in _MULTIPLYING:
            product = 1
            for factor in (*sizes[:2], max(numbers, default=1)):
                product *= max(factor, 1)
            if product > MAX_UNITS:
                raise TemplateTooCostlyError(f"{name} could make {product:,} characters")

    # -- what jinja2 asks --------------------------------------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The template with a tick in every loop and macro, and comparisons that weigh what they compare."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            loop.body.insert(0, nodes.ExprStmt(_call("tick", lineno=loop.lineno), lineno=loop.lineno))
            if isinstance(loop, nodes.For) and loop.test is not None:  # asked before the body is reached
                loop.test = nodes.And(_call("tick", lineno=loop.lineno), loop.test, lineno=loop.lineno)
        for comparison in list(tree.find_all(nodes.Compare)):
            comparison.expr = _call("weigh", comparison.expr, lineno=comparison.lineno)
            for operand in comparison.ops:
                operand.expr = _call("weigh", operand.expr, lineno=comparison.lineno)
        for cut in list(tree.find_all(nodes.Getitem)):
            if isinstance(cut.arg, nodes.Slice):
                cut.node = _call("weigh", cut.node, lineno=cut.lineno)
        for joined in list(tree.find_all(nodes.Concat)):
            joined.nodes = [_call("weigh", node, lineno=joined.lineno) for node in joined.nodes]
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        a, b = _size(left), _size(right)
        if operator == "*":
            both_numbers = isinstance(left, int) and isinstance(right, int)
            count = right if isinstance(right, int) else left if isinstance(left, int) else 1
            self._charge(a + b if both_numbers else max(a, b) * max(count, 1))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._limit_bits(max(left.bit_length(), 1) * abs(right))
        elif operator == "%" and isinstance(left, str):
            self._judge("format", (left, *(right if isinstance(right, tuple) else (right,))), {})
        result = self.weigh(super().call_binop(context, operator, left, right))
        if isinstance(result, int):
            self._limit_bits(result.bit_length())
        return result

    def _limit_bits(self, bits: int) -> None:
        if bits > _MAX_BITS:
            raise TemplateTooCostlyError(f"it makes a number of more than {_MAX_BITS:,} bits")

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if function == self.tick or function == self.weigh:  # put there by `_parse`
            return function(*args)
        if isinstance(function, Macro):  # counts for itself
            self.tick()
            return super().call(context, function, *args, **kwargs)
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        self._judge(getattr(function, "__name__", ""), args if owner is None else (owner, *args), kwargs)
        return self.weigh(super().call(context, function, *args, **kwargs))

    def _concat(self, parts: Any) -> str:
        """Of output, macros and blocks."""
        pieces = []
        for part in parts:
            self._charge(len(part))
            pieces.append(part)
        return "".join(pieces)


def _call(name: str, *args: nodes.Expr, lineno: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None, lineno=lineno)


def _size(value: Any) -> int:
    """Characters, items and bits, of nested values all of them, as often as they occur."""
    if isinstance(value, (str, range)):
        return len(value)
    if isinstance(value, int):
        return value.bit_length()
    total, nodes_left, todo = 0, _MAX_NODES, [value]
    while todo:
        value = todo.pop()
        nodes_left -= 1
        total += _NODE
        if nodes_left < 0:
            raise TemplateTooCostlyError(f"it makes a value of more than {_MAX_NODES:,} parts")
        total += len(value) if isinstance(value, str) else value.bit_length() if isinstance(value, int) else 0
        if isinstance(value, Mapping):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            todo += value
    return total


def _is_iterator(value: Any) -> bool:
    return hasattr(type(value), "__next__")
