"""The keys of a widget itself, for widgets that must act at once: a binding's action runs after letters that follow."""

from __future__ import annotations

from textual.widget import Widget


def own_action(widget: Widget, key: str) -> str | None:
    """The action that `key` has among the bindings of `widget`, if these apply now."""
    bound = widget.screen.active_bindings.get(key)
    return bound.binding.action if bound is not None and bound.node is widget else None
