"""The help and the list of keys, as reports. Pure; UI thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from textual.binding import Binding, BindingType

from mlxkv.tui.state.commands.slash import help_rows
from mlxkv.tui.state.reports.report import Line, Report

KEYS = (
    ("Enter", "send, or queue while a reply runs"),
    ("Ctrl+J", "new line (also Shift+Enter, Alt+Enter, \\ Enter)"),
    ("Esc", "close a pane, stop the reply; twice clears the prompt, or goes back to a message"),
    ("Ctrl+C", "copy the selection, close a list, clear, stop; twice quits"),
    ("Ctrl+D", "quit when the prompt is empty"),
    ("↑ ↓ Ctrl+R", "earlier prompts, search them; ↑ also edits a queued one"),
    ("Ctrl+G", "write the prompt in $EDITOR"),
    ("@", "attach a file"),
    ("PgUp PgDn", "scroll (also Shift+↑ ↓, the wheel)"),
    ("End", "follow the reply again"),
    ("Ctrl+B Ctrl+K", "chats in a sidebar, chats in a list"),
    ("Ctrl+N", "new chat"),
    ("F2", "the cache: ring, speed, memory, disk"),
    ("Ctrl+T Ctrl+O", "reasoning on or off; fold or unfold it"),
    ("Ctrl+Y", "answer now, while the model reasons"),
    ("Ctrl+F", "search in this chat"),
    ("Alt+↑ ↓", "move over the messages; then:"),
    ("  y c", "copy it, copy its code"),
    ("  e r f", "edit and ask again, reply again, fork here"),
    ("  [ ] Space", "its other versions; fold or unfold"),
    ("Ctrl+P", "menu and themes"),
    ("Ctrl+L Ctrl+Z", "redraw, suspend"),
    ("```", "code; fences follow CommonMark, but ```markdown may contain fences with a language"),
    ("Mouse", "drag to select, Ctrl+C copies; a click on a link shows its full address first"),
)


def help_report() -> Report:
    commands = (*help_rows(), ("//text", "send a text that starts with /"))
    keys, rest = (tuple(Line(*row) for row in rows) for rows in (KEYS, commands))
    return Report("help", (Line("Keys"), *keys, Line("Commands"), *rest))


def keys_report(groups: Sequence[tuple[str, Iterable[BindingType]]], changed: Mapping[str, str]) -> Report:
    """Every binding, and the id under which `[keys]` in config.toml, which has `changed`, changes it."""
    rows = [Line("", "[keys] in config.toml changes them, by the ids at the end of the lines.")]
    for name, bindings in groups:
        found = [binding for binding in bindings if isinstance(binding, Binding) and binding.id]
        keys = [changed.get(binding.id or "", binding.key).replace(",", " ") for binding in found]
        rows += [Line(name), *(Line(key, f"{b.description} · {b.id}") for key, b in zip(keys, found, strict=True))]
    return Report("keys", tuple(rows))
