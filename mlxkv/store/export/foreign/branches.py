"""The branches of a foreign chat as sessions of this store. Pure; any thread.

Every end of the tree is a branch. Branches share the digests of the turns that they have in common, so they are
versions of each other as forks are. Turns alternate between user and assistant (with results of tools between two
replies): parts of one role become one message, and where a reply is missing an empty one is put, as after a crash.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mlxkv.errors import CorruptError, escaped
from mlxkv.store.db.history import genesis, stored_fields, turn_digest
from mlxkv.store.export.foreign.chat import MAX_NAME, ForeignChat, ForeignFile, ForeignMessage, ForeignNode
from mlxkv.store.export.foreign.tool_turns import grouped
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.records import Attachment, SessionRecord, TurnRecord, TurnState
from mlxkv.text.clean import MARK, clean
from mlxkv.text.encoding import well_formed
from mlxkv.text.fences import fenced, file_heading

MAX_BRANCHES = 200  # of one chat
MAX_TURNS = 100_000  # of one chat, those of every branch counted
_TITLE = 200  # characters
_FIRST_LINE = 60
_MEDIA = {"image": "image/*", "recording": "audio/*", "video": "video/*", "file": "application/octet-stream"}


@dataclass(frozen=True)
class Branch:
    """A session to import. `parent`: the number of the branch that it is a fork of, None for the one that was seen
    last. `record.forked_at` are the turns that it shares with that one."""

    record: SessionRecord
    parent: int | None


@dataclass(frozen=True)
class ForeignFamily:
    """The branches of one chat, in the order in which they were made, and how many files of each kind lack content."""

    branches: tuple[Branch, ...]
    left_out: Mapping[str, int]


def family_of(chat: ForeignChat, file: str, now: float) -> ForeignFamily | None:
    """The sessions of `chat`; None if it has no messages. `now`: the time of a chat that has none.

    Raises:
        CorruptError: it is not a tree, or has too many branches or messages.
    """
    where = f"{file} cannot be imported: the chat {escaped(chat.title or chat.id)}"
    if len(chat.id) > MAX_NAME or not chat.id.isprintable():
        raise CorruptError(f"{where} has the id {escaped(chat.id)}; it may have {MAX_NAME} printable characters.")
    paths = _paths(chat, where)
    system = chat.system.strip() or None
    model = ModelIdentity.foreign(_printable(f"{chat.program} {chat.model}"))
    times = [node.time for node in chat.nodes if node.time]
    updated = chat.updated or max(times, default=0) or chat.created or now
    created = min(chat.created or min(times, default=updated), updated)
    made = {"model": model.model_id[:16]}
    kept: list[tuple[list[TurnRecord], list[str], float]] = []
    for path in paths:
        turns = _turns([node.parts for node in path], made)
        kept.append((turns, _digests(turns, system), max((node.time for node in path), default=0)))
    spoken = [i for i, (turns, _, _) in enumerate(kept) if any(turn.text or turn.thinking for turn in turns)]
    if not spoken:
        return None
    current = next((i for i in spoken if paths[i][-1].id == chat.current), None)
    current = max(spoken, key=lambda i: (kept[i][2], i)) if current is None else current
    last = kept[current][1][-1]
    inner = {digest for _, digests, _ in kept for digest in digests[:-1]}
    unique = {digests[-1]: i for i, (_, digests, _) in reversed([*enumerate(kept)])}
    chosen = sorted(i for head, i in unique.items() if head == last or head not in inner)
    title = clean(" ".join(well_formed(chat.title).split()))[:_TITLE] or _first_line(kept[current][0])
    origin = f"{chat.program.lower().replace(' ', '')}:{chat.id or kept[current][1][-1]}"
    record = SessionRecord(
        "", title, created, updated, model, system, {}, None, None, (), (), last, origin=origin
    )  # fmt: skip
    main = unique[last]
    order = [main, *(i for i in chosen if i != main)]  # a branch is a fork of one that comes before it here
    branches: dict[int, Branch] = {}
    for n, i in enumerate(order):
        turns, digests, time = kept[i]
        if i == main:
            branches[i] = Branch(replace(record, turns=tuple(turns)), None)
            continue
        shared, parent = max(((_shared(digests, kept[k][1]), -m) for m, k in enumerate(order[:n])), default=(0, 0))
        branches[i] = Branch(
            replace(
                record,
                updated=min(max(time, created), updated - 1e-3),  # the branch that was seen last is the newest
                turns=tuple(turns),
                head=digests[-1],
                origin=None,
                forked_at=shared,
            ),
            chosen.index(order[-parent]),
        )
    files = {id(m): m for path in paths for node in path for m in node.parts}.values()
    left_out = Counter(file.kind for m in files for file in m.files if file.text is None)
    if chat.unknown:
        left_out["part of an unknown kind"] = chat.unknown
    return ForeignFamily(tuple(branches[i] for i in chosen), left_out)


def _paths(chat: ForeignChat, where: str) -> list[list[ForeignNode]]:
    """The path to every end of the tree and to the current node, in the order of the nodes."""
    nodes = {node.id: node for node in chat.nodes}
    children: dict[str | None, list[ForeignNode]] = defaultdict(list)
    for node in nodes.values():
        children[node.parent if node.parent in nodes else None].append(node)
    ends, reached, waiting = [], 0, children[None][::-1]
    while waiting:
        node = waiting.pop()
        reached += 1
        if not children[node.id] or node.id == chat.current:
            ends.append(node)
        waiting += children[node.id][::-1]
    if reached < len(nodes):
        raise CorruptError(f"{where} has messages that follow each other in a circle.")
    if len(ends) > MAX_BRANCHES:
        raise CorruptError(f"{where} has {len(ends):,} branches; at most {MAX_BRANCHES} can be imported.")
    paths, num_nodes = [], 0
    for end in ends:
        path, node = [], end
        while node is not None:
            path.append(node)
            node = nodes.get(node.parent) if node.parent is not None else None
        paths.append(path[::-1])
        num_nodes += sum(max(len(node.parts), 1) for node in path)
        if num_nodes > MAX_TURNS:
            raise CorruptError(f"{where} has over {MAX_TURNS:,} messages in its branches.")
    return paths


def _turns(places: Iterable[Sequence[ForeignMessage]], made: Mapping[str, str]) -> list[TurnRecord]:
    """Turns that alternate, the first one the user's, with results of tools after the reply that calls them. `made`
    goes with each reply."""
    groups: list[list[ForeignMessage]] = []
    for group in grouped(places):
        role, last = group[0].role, groups[-1][0].role if groups else "assistant"
        if role == last != "tool":
            other = "user" if role == "assistant" else "assistant"
            groups.append([ForeignMessage(other, is_complete=other == "user")])
        if (role, last) == ("user", "tool"):
            groups.append([ForeignMessage("assistant", is_complete=False)])
        groups.append(group)
    return [_turn(group, made) for group in groups]


def _turn(parts: Sequence[ForeignMessage], made: Mapping[str, str]) -> TurnRecord:
    role = parts[0].role
    text = "\n\n".join(part.text for part in parts if part.text)
    thinking = "\n\n".join(part.thinking for part in parts if part.thinking)
    attachments = []
    files = [file for part in parts for file in part.files]
    for file in sorted(files, key=lambda file: file.text is not None):  # the window folds files at the end
        text, attachment = _with_file(text, file)
        attachments.append(attachment)
    state = TurnState.DONE if parts[-1].is_complete else TurnState.STOPPED
    return TurnRecord(
        role, text, (), 0, thinking, state, made if role == "assistant" else {}, attachments=tuple(attachments),
        tool_calls=tuple(part.call for part in parts if part.call is not None), tool_call_id=parts[0].call_id,
    )  # fmt: skip


def _with_file(text: str, file: ForeignFile) -> tuple[str, Attachment]:
    """`text` with a file's own text, or the note that it is missing; and where that is."""
    if file.text is None:
        note = f"[{file.kind} left out: {file.name}]"
        return (f"{text}\n\n{note}" if text else note), Attachment(file.name, _MEDIA.get(file.kind, _MEDIA["file"]))
    head, fence = f"\n\nFile `{file_heading(file.name)}`:\n", fenced(file.text)
    start = len(text) + len(head) + fence.index("\n") + 1
    return text + head + fence, Attachment(file.name, "text/plain", start, start + len(file.text.rstrip("\n")))


def _digests(turns: Sequence[TurnRecord], system: str | None) -> list[str]:
    """The heads of the chain before the first turn and after each."""
    digests = [genesis(system)]
    for i, turn in enumerate(turns):
        digests.append(turn_digest(digests[-1], i, stored_fields(turn, 0), b""))
    return digests


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """The number of turns that two chains begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))) - 1


def _first_line(turns: Sequence[TurnRecord]) -> str:
    lines = (line for turn in turns for line in turn.text.splitlines() if line.strip())
    return clean(" ".join(next(lines, "").split()))[:_FIRST_LINE] or "Imported chat"


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else MARK for c in clean(name)).strip()[:MAX_NAME]
