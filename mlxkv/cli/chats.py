"""`mlxkv chats ...`: saved chats. Parses and prints; the store does the work."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxkv.cli.examples import Group
from mlxkv.config import Folders
from mlxkv.protocol.chat_names import short_ids as _short_ids
from mlxkv.protocol.export_format import CHAT_FORMATS, CHAT_SUFFIXES, export_format

if TYPE_CHECKING:
    from mlxkv.protocol.status import ChatSummary, SearchHit
    from mlxkv.store.session_store import SessionStore

chats = typer.Typer(rich_markup_mode=None, cls=Group, help="List, show, search, export and delete saved chats.")

_ROOMY = 90  # cells; narrower terminals get only the title
_BADGE = "[untrusted KV] "


def ids_for_completion(beginning: str) -> Sequence[tuple[str, str]]:
    """Ids and titles of chats whose id or title begins with the typed text; for the shell."""
    from mlxkv.text.clean import clean

    with open_store() as store:
        found = store.list()
    short = _short_ids(found)
    found = tuple(c for c in found if c.kind != "version")
    begins = [c for c in found if c.id.startswith(beginning.upper()) or c.title.lower().startswith(beginning.lower())]
    return [(short[c.id], " ".join(clean(c.title).split())) for c in begins]


Chat = Annotated[str, typer.Argument(help="Title, id or id prefix.", autocompletion=ids_for_completion)]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
Output = Annotated[str, typer.Option("--output-format", help="text or json.")]


@chats.command("ls")
def chats_ls(
    every: Annotated[bool, typer.Option("--all", help="Also runs of print mode and versions of chats.")] = False,
    as_json: Json = False,
    output: Output = "text",
) -> None:
    """List the saved chats, newest first, forks below their origin: id, date, messages, KV on disk, model, title."""
    from mlxkv.cli.tables import date_text, print_header, row, width_of_terminal
    from mlxkv.stats import bytes_text, plural

    with open_store() as store:
        known = store.list()
    found = [c for c in known if every or c.kind == "chat"]
    if is_json(as_json, output):
        print(json.dumps([_table(c) for c in found], indent=1))
        return
    short, width = _short_ids(known), width_of_terminal()
    facts = [f"{'messages':>12}", f"{'KV':>7}", "model"] if width is None or width >= _ROOMY else []
    kind = [f"{'kind':<7}"] if every else []
    print_header([f"{'id':<10}", f"{'last used':<16}", *kind, *facts, "title"], width)
    for depth, c in _nested(found):
        title = f"{'  ' * (depth - 1)}{'↳ ' if depth else ''}{_BADGE if c.untrusted else ''}{c.name}"
        facts = [f"{plural(c.num_turns, 'message'):>12}", f"{bytes_text(c.kv_bytes):>7}", Path(c.model).name]
        kind = [f"{c.kind:<7}"] if every else []
        facts = facts if width is None or width >= _ROOMY else []
        print(row([short[c.id], date_text(c.updated), *kind, *facts, title], width))
    hidden = [] if every else [c.kind for c in known if c.kind != "chat"]
    if hidden and (not found or width is not None):
        runs, versions = hidden.count("run"), hidden.count("version")
        left = [plural(runs, "run") + " of print mode"] if runs else []
        left += [plural(versions, "version")] if versions else []
        print(f"Not listed: {' and '.join(left)}; --all lists them too.", file=sys.stderr)


@chats.command("tree")
def chats_tree(chat: Chat) -> None:
    """Print the branches of a chat: its forks, and the versions that retry, edit and undo left."""
    from mlxkv.cli.tables import date_text, row, width_of_terminal
    from mlxkv.stats import plural

    with open_store() as store:
        branches = store.tree(store.sessions.find(chat))
        short, width = _short_ids(store.list()), width_of_terminal()
    depths: dict[str, int] = {}
    for branch in branches:
        depth = depths[branch.session_id] = depths.get(branch.parent or "", -1) + 1
        facts = [short[branch.session_id], date_text(branch.updated), f"{plural(branch.num_turns, 'message'):>12}"]
        lead = f"{'  ' * (depth - 1)}↳ " if depth else ""
        print(row([*facts, f"{'*' if branch.is_current else ' '} {lead}{branch.name}"], width))


@chats.command("show")
def chats_show(chat: Chat, as_json: Json = False, output: Output = "text") -> None:
    """Print a chat."""
    from mlxkv.store.export.document import to_document
    from mlxkv.store.export.markdown import to_markdown

    with open_store() as store:
        session_id = store.sessions.find(chat)
        record = store.load(session_id)
        summary = next(c for c in store.list() if c.id == session_id)
    if is_json(as_json, output):
        print(json.dumps({"id": record.id, "untrusted": summary.untrusted, **to_document(record)}, indent=1))
        return
    title, rest = to_markdown(record).split("\n", 1)
    badge = "KV rows imported from someone else · " if summary.untrusted else ""
    print(f"{title}\n\n{badge}{record.id} · {rest.lstrip()}", end="")


@chats.command("search")
def chats_search(
    text: Annotated[list[str], typer.Argument(help='Words that must all occur; "words in quotes" in this order.')],
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Maximum number of hits.")] = 50,
    as_json: Json = False,
    output: Output = "text",
) -> None:
    """Search all chats and their titles, best match first. Punctuation counts; whole words come before parts."""
    from mlxkv.cli.tables import row, width_of_terminal
    from mlxkv.text.clean import marked

    with open_store() as store:
        hits = store.sessions.search(" ".join(text), limit)
        short = _short_ids(store.list())
    if is_json(as_json, output):
        print(json.dumps([asdict(hit) for hit in hits], indent=1))
        return
    width = width_of_terminal()
    for hit in hits:
        place = row([short.get(hit.session_id, hit.session_id), *_place(hit)], None)
        snippet, marks = marked(hit.snippet, hit.marks)
        line = row([place, snippet], width)
        print(line if width is None else _bold(line, len(place) + 2, marks))
    if not hits:
        print("Nothing found.", file=sys.stderr)
        raise typer.Exit(1)


@chats.command("rename")
def chats_rename(chat: Chat, title: Annotated[str, typer.Argument(help="New title.")]) -> None:
    """Rename a chat."""
    from mlxkv.errors import ConfigError

    title = " ".join(title.split())  # unprintable characters stay in the title and are shown as marks
    if not title:
        raise ConfigError("The new title is empty; give one.")
    with open_store() as store:
        store.sessions.rename(store.sessions.find(chat), title)


@chats.command("rm")
def chats_rm(
    chat: Annotated[list[str], typer.Argument(help="Ids or titles.", autocompletion=ids_for_completion)],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete chats with their versions, and the KV rows that no other chat uses."""
    from mlxkv.stats import plural
    from mlxkv.text.clean import clean

    with open_store() as store:
        found = [store.sessions.find(name) for name in chat]  # an unknown name is reported before anything is deleted
        known = {c.id: c for c in store.list()}
        deleted: set[str] = set()
        for session_id in dict.fromkeys(found):
            versions = known[session_id].versions
            with_them = f" with {plural(len(versions), 'other version')}" if versions else ""
            if session_id in deleted:
                continue
            if is_confirmed(f"Delete {session_id:.10} {clean(known[session_id].title)!r}{with_them}?", yes):
                if versions:
                    deleted |= {*store.delete_chat(session_id)}
                else:
                    store.delete(session_id)
                print(f"deleted {session_id}{with_them}")


@chats.command("export")
def chats_export(
    chat: Chat,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="md (to read), json, or mlxkv (with KV rows). Default: by FILE's suffix, else md.",
            autocompletion=lambda incomplete: [name for name in CHAT_FORMATS if name.startswith(incomplete)],
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write (.md, .markdown, .json, .mlxkv). Default: stdout."),
    ] = None,
    kv: Annotated[
        bool, typer.Option("--kv/--no-kv", help="mlxkv format: with KV rows, or only messages and ids.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Export a chat to a file. json and mlxkv can be imported on any machine."""
    from mlxkv.cli.input_files import STDOUT
    from mlxkv.errors import ConfigError, StoreError, shortened
    from mlxkv.stats import bytes_text
    from mlxkv.store.export.document import to_document
    from mlxkv.store.export.markdown import to_markdown
    from mlxkv.store.files import Files

    output = None if output == STDOUT else output
    chosen = export_format(format_, output, CHAT_SUFFIXES, CHAT_FORMATS, force=force)
    if chosen == "mlxkv" and output is None:
        raise ConfigError("The format mlxkv is not text; name a file with -o FILE.")
    with open_store() as store:
        session_id = store.sessions.find(chat)
        if chosen == "mlxkv":
            assert output is not None
            print(f"{output}  {bytes_text(store.export_chat(session_id, output, kv=kv))}")
            return
        record = store.load(session_id)
    in_file = output is not None or not sys.stdout.isatty()
    text = json.dumps(to_document(record), indent=1) + "\n"
    if chosen == "md":
        text = to_markdown(record, joined=in_file)
    if output is None:
        print(text, end="")
        return
    if not os.path.isdir(output.parent):
        raise StoreError(f"The folder {shortened(output.parent)} does not exist; make it first.")
    try:
        print(f"{output}  {bytes_text(Files().overwrite(output, [text.encode()]))}")
    except OSError as error:
        raise StoreError(
            f"{shortened(output)} cannot be written ({error.strerror}); check the path and the disk."
        ) from error


@chats.command("import")
def chats_import(
    file: Annotated[
        Path,
        typer.Argument(
            help="A file that `chats export` wrote as json or mlxkv; or an export of ChatGPT or Claude (the zip, its "
            "folder or conversations.json), or a chat or folder of LM Studio. - is stdin."
        ),
    ],
    trust_kv: Annotated[
        bool, typer.Option("--trust-kv", help="Import its KV rows too: only from people you trust.")
    ] = False,
) -> None:
    """Import chats: messages are prefilled when a chat is resumed. Chats that are here already are skipped."""
    from mlxkv.cli.input_files import as_file
    from mlxkv.cli.tables import row
    from mlxkv.stats import plural
    from mlxkv.store.export.foreign.add import ForeignImport
    from mlxkv.text.clean import clean

    with as_file(file) as path, open_store() as store:
        if (found := store.import_foreign(path)) is not None:
            print(found)
            print("`mlxkv chats ls` lists them; -m names the model that continues one.", file=sys.stderr)
            return
        done = store.import_chat(path, trust_kv=trust_kv, skip_known=True)
    if done.is_known:
        print(ForeignImport("mlxkv", num_known=1))
        rows = "; to import its KV rows, delete it first" if trust_kv else ""
        print(f"{done.session_id:.10} {clean(done.title)!r} has all of its messages{rows}.", file=sys.stderr)
        return
    rows = f", KV rows of {done.kv_tokens:,}" if done.kv_tokens else ""
    facts = f"{plural(done.num_turns, 'message')}, {done.num_tokens:,} tokens{rows}"
    print(row([done.session_id, done.title, facts], None))
    print(f"made with {clean(done.model)}; resuming uses that model, or the one -m names", file=sys.stderr)
    if done.notice:
        print(clean(done.notice), file=sys.stderr)


@chats.command("backups")
def chats_backups() -> None:
    """List the backups of all chats, newest first: name, day, size, chats."""
    from mlxkv.stats import bytes_text, plural
    from mlxkv.store.db.backup import list_backups

    found = list_backups(Folders.from_env().data)
    for b in found:
        held = "? chats" if b.num_chats is None else plural(b.num_chats, "chat")
        print(f"{b.name}  {b.day}  {bytes_text(b.size):>7}  {held:>10}")
    hint = "`mlxkv chats restore-backup NAME` restores one." if found else "A backup is made every day you chat."
    print(hint, file=sys.stderr)


@chats.command("restore-backup")
def chats_restore_backup(
    name: Annotated[str, typer.Argument(help="Name of the backup, as `mlxkv chats backups` lists it.")],
) -> None:
    """Replace all chats with those of a backup; the current ones become a backup first."""
    from mlxkv.store.db.backup import restore

    previous = restore(Folders.from_env(), name)
    kept = f"; the previous ones are saved as {previous.stem}" if previous else ""
    print(f"The chats are now those of {name}{kept}.")


def open_store(folders: Folders | None = None, *, enforce: bool = True) -> SessionStore:
    """Open the store of this user, read-only on a full disk. `enforce`: see SessionStore.open."""
    from mlxkv.store.session_store import SessionStore

    return SessionStore.open(folders or Folders.from_env(), enforce=enforce, when_full="read")


def _table(chat: ChatSummary) -> dict[str, Any]:
    return {**asdict(chat), "departure": chat.departure.text if chat.departure else None}


def _place(hit: SearchHit) -> list[str]:
    """Number of the message, as `/fork` takes it."""
    return ["title:"] if hit.turn is None else [hit.title, f"#{hit.turn // 2 + 1} {hit.role}:"]


def _bold(line: str, start: int, marks: Sequence[tuple[int, int]]) -> str:
    """Highlight hits on a terminal, with escape sequences that the text itself cannot contain."""
    for a, b in reversed(marks):
        a, b = min(start + a, len(line)), min(start + b, len(line))
        line = f"{line[:a]}\x1b[1m{line[a:b]}\x1b[0m{line[b:]}"
    return line


def is_confirmed(question: str, yes: bool) -> bool:
    """Ask on the terminal, unless `yes`. Raises ConfigError: there is none."""
    from mlxkv.errors import ConfigError

    if not yes and not sys.stdin.isatty():
        raise ConfigError("There is no terminal to ask on; give --yes to delete.")
    return yes or typer.confirm(question)


def is_json(flag: bool, output: str) -> bool:
    from mlxkv.errors import ConfigError

    if output not in ("text", "json"):
        raise ConfigError(f"The option --output-format is {output!r}; it must be text or json.")
    return flag or output == "json"


def _nested(found: Sequence[ChatSummary]) -> list[tuple[int, ChatSummary]]:
    """Each chat with its depth: forks directly below their origin, families ordered by their newest member."""
    there = {c.id for c in found}
    children: dict[str | None, list[ChatSummary]] = {}
    for c in found:  # newest first, and so within each family
        children.setdefault(c.parent if c.parent in there else None, []).append(c)
    out: list[tuple[int, ChatSummary]] = []
    waiting: list[tuple[int, ChatSummary]] = [(0, c) for c in _by_family(children)]
    while waiting:
        depth, c = waiting.pop(0)
        out.append((depth, c))
        waiting[:0] = [(depth + 1, child) for child in children.get(c.id, [])]
    return out


def _by_family(children: dict[str | None, list[ChatSummary]]) -> list[ChatSummary]:
    def newest(c: ChatSummary) -> tuple[int, float]:
        found, waiting = (c.seq, c.updated), list(children.get(c.id, []))
        while waiting:
            child = waiting.pop()
            found = max(found, (child.seq, child.updated))
            waiting += children.get(child.id, [])
        return found

    return sorted(children.get(None, []), key=newest, reverse=True)
