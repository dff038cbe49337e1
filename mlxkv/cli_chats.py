"""`mlxkv chats ...`: what is saved, from the command line. Parses and prints; the store does the work."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxkv.config import Folders

if TYPE_CHECKING:
    from mlxkv.store import SessionStore

chats = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="List, show, search and delete saved chats.")


@chats.command("ls")
def chats_ls() -> None:
    """The saved chats, newest first: id, date, turns, KV on disk, model, title."""
    from mlxkv.stats import bytes_text
    from mlxkv.text import clean

    with open_store() as store:
        for c in store.list():
            when = datetime.datetime.fromtimestamp(c.updated).strftime("%Y-%m-%d %H:%M")
            kv = bytes_text(c.kv_bytes)
            print(f"{c.id}  {when}  {c.num_turns:>4} turns  {kv:>7}  {clean(Path(c.model).name)}  {clean(c.title)}")


@chats.command("show")
def chats_show(chat: Annotated[str, typer.Argument(help="Id or title.")]) -> None:
    """Print a chat."""
    from mlxkv.text import clean

    with open_store() as store:
        record = store.load(store.find(chat))
    print(f"# {clean(record.title)}\n\n{record.id} · {clean(record.model.name)} · {len(record.log):,} tokens")
    for turn in ([] if record.system is None else [("system", record.system)]) + [
        (t.role, t.text) for t in record.turns
    ]:
        print(f"\n## {turn[0]}\n\n{clean(turn[1])}")


@chats.command("search")
def chats_search(text: Annotated[str, typer.Argument(help="Words to look for.")]) -> None:
    """Find words in all chats."""
    from mlxkv.text import clean

    with open_store() as store:
        for hit in store.search(text):
            print(f"{hit.session_id}  {clean(hit.title)}  {hit.role}: {clean(hit.snippet)}")


@chats.command("rename")
def chats_rename(
    chat: Annotated[str, typer.Argument(help="Id or title.")], title: Annotated[str, typer.Argument(help="New title.")]
) -> None:
    """Give a chat another title."""
    with open_store() as store:
        store.rename(store.find(chat), title)


@chats.command("rm")
def chats_rm(
    chat: Annotated[list[str], typer.Argument(help="Ids or titles.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete chats, and the KV rows that no other chat uses."""
    with open_store() as store:
        for name in chat:
            session_id = store.find(name)
            title = store.load(session_id).title
            if not yes and not typer.confirm(f"Delete {session_id} {title!r}?"):
                continue
            store.delete(session_id)
            print(f"deleted {session_id}")


@chats.command("backups")
def chats_backups() -> None:
    """The copies of all chats there are, newest first: name, day, size, chats."""
    from mlxkv.stats import bytes_text
    from mlxkv.store.backup import list_backups

    found = list_backups(Folders.from_env().data)
    for b in found:
        print(f"{b.name}  {b.day}  {bytes_text(b.size):>7}  {'?' if b.num_chats is None else b.num_chats:>4} chats")
    hint = "`mlxkv chats restore-backup NAME` goes back to one." if found else "One is made every day you chat."
    print(hint, file=sys.stderr)


@chats.command("restore-backup")
def chats_restore_backup(name: Annotated[str, typer.Argument(help="As `mlxkv chats backups` shows it.")]) -> None:
    """Put a copy in the place of all chats; what is there now becomes a copy itself."""
    from mlxkv.store.backup import restore

    aside = restore(Folders.from_env(), name)
    print(f"The chats are those of {name} now{f'; the ones before are kept as {aside.stem}' if aside else ''}.")


def open_store(folders: Folders | None = None) -> SessionStore:
    """The sessions of this user."""
    from mlxkv.store import SessionStore

    return SessionStore.open(folders or Folders.from_env())
