"""Adds the chats of a foreign export to the store, and says what was added. On the thread that opened the store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mlxkv.stats import plural
from mlxkv.store.db.imports import import_families
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.export.foreign.read import read_export


@dataclass(frozen=True)
class ForeignImport:
    """What was imported; `str` is one sentence of it.

    Attributes:
        session_ids: of the chats; each continues the branch that was seen last.
        num_messages: of these branches.
        num_branches: further branches of these chats, each a fork.
        num_known: chats that were skipped, because they are here already.
        num_empty: chats without messages.
        left_out: files by kind ("image", "recording", "file", ...) whose content was not imported.
    """

    program: str
    session_ids: tuple[str, ...] = ()
    num_messages: int = 0
    num_branches: int = 0
    num_known: int = 0
    num_empty: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"Imported {plural(len(self.session_ids), 'chat')} of {self.program}"
        text += f" with {plural(self.num_messages, 'message')}" if self.session_ids else ""
        if self.num_branches:
            text += f" and {self.num_branches:,} other branch{'' if self.num_branches == 1 else 'es'}"
        skipped = [f"{self.num_known:,} already here"] if self.num_known else []
        skipped += [f"{self.num_empty:,} without messages"] if self.num_empty else []
        text += f"; skipped {' and '.join(skipped)}" if skipped else ""
        left = [_count(count, kind) for kind, count in sorted(self.left_out.items())]
        text += f"; left out {', '.join(left)}" if left else ""
        return f"{text}."


def import_foreign(sessions: Sessions, path: Path) -> ForeignImport | None:
    """See SessionStore.import_foreign."""
    export = read_export(path)
    if export is None:
        return None
    families = [[(branch.record, branch.parent) for branch in family.branches] for family in export.families]
    ids = import_families(sessions, families)
    new = [family for family, session_id in zip(export.families, ids, strict=True) if session_id]
    return ForeignImport(
        export.program,
        tuple(filter(None, ids)),
        sum(len(branch.record.turns) for family in new for branch in family.branches if branch.parent is None),
        sum(len(family.branches) - 1 for family in new),
        ids.count(None),
        export.num_empty,
        dict(sum((Counter(family.left_out) for family in new), Counter())),
    )


def _count(count: int, kind: str) -> str:
    first, _, rest = kind.partition(" ")
    return f"{plural(count, first)}{' ' if rest else ''}{rest}"
