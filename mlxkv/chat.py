"""Chat: messages and one turn after the other, on one KV cache, saved as it goes when it has a session.

Owns the messages and what has been fed; the rows belong to PromptCache, the files to SessionStore. Going back (undo,
retry, edit) never destroys: a saved chat goes on in a fork. On the MLX thread, but for `cancel`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache, common_prefix
from mlxkv.device import set_wired_limit
from mlxkv.errors import ConfigError, PromptError, StoreError
from mlxkv.events import Message, Notice, TextDelta, TurnEvent, TurnFinished
from mlxkv.prompt import Fed, PromptFormat
from mlxkv.runner import ModelRunner
from mlxkv.sampling import SamplingParams, random_state, set_random_state
from mlxkv.stats import TurnStats
from mlxkv.store import ModelIdentity, Restored, SessionRecord, SessionStore, TurnRecord
from mlxkv.turn import Turn

_UPDATE_TOKENS = 256  # an open reply is written to disk this often,
_UPDATE_SECONDS = 2.0  # or this often, whichever comes first
_TITLE_LENGTH = 60


@dataclass(frozen=True)
class ChatBackend:
    """What a chat needs of the model it runs on; `Model` makes it."""

    name: str
    runner: ModelRunner
    tokenizer: Any
    prompts: PromptFormat
    make_cache: Callable[[CacheConfig, str | None], PromptCache]
    store: Callable[[], SessionStore]
    identity: Callable[[], ModelIdentity]


class Chat:
    """A conversation. Made by `Model.chat` and `Model.resume`.

    Args:
        autosave: make a session at the first turn; else only `save` does.
    """

    def __init__(
        self,
        backend: ChatBackend,
        *,
        system: str | None = None,
        cache: CacheConfig | None = None,
        params: SamplingParams | None = None,
        autosave: bool = False,
    ) -> None:
        self._backend = backend
        self._params = params or SamplingParams()
        self._config = cache or CacheConfig()
        self._autosave = autosave
        self._cancel = threading.Event()
        self._open = ExitStack()  # the session's lock
        self._fed = Fed()  # what the next prompt can go on from
        self._log: list[int] = []  # the session's token log: the replay of its turns
        self._turns: list[TurnRecord] = []
        self.system = system or None
        self.cache = backend.make_cache(self._config, self.system)
        self.session_id: str | None = None
        self.title = ""
        self.stats = TurnStats()
        self.restored: Restored | None = None

    # -- talking -----------------------------------------------------------------------------------------------------

    def send(self, text: str, *, started: float | None = None, **sampling: Any) -> Iterator[TurnEvent]:
        """Say `text`; iterate for PrefillProgress, TextDelta, Notice and one TurnFinished at the end.

        A saved chat has the user's turn on disk before anything is generated. Walking away early keeps what was
        generated, as `cancel` does.

        Args:
            started: `time.perf_counter()` when the user asked, for the time to first token.
            sampling: SamplingParams fields for this turn.

        Raises:
            PromptError: `text` is empty. ConfigError: no such sampling parameter. StoreError: the turn cannot be saved.
        """
        if not text.strip():
            raise PromptError("The message is empty; write something first.")
        params = SamplingParams.for_model({}, **{**_chosen(self._params), **sampling})
        return self._turn(text, params, time.perf_counter() if started is None else started)

    def cancel(self) -> None:
        """Stop the running reply after its current token or prefill chunk; from any thread. What was said is kept."""
        self._cancel.set()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, without the system prompt."""
        return tuple(Message(t.role, t.text, _stats_of(t)) for t in self._turns)

    def _turn(self, text: str, params: SamplingParams, started: float) -> Iterator[TurnEvent]:
        self._cancel.clear()
        if self._turns and self._turns[-1].role == "user":  # a crash came before any reply: keep the roles alternating
            self._append(TurnRecord("assistant", "", state="stopped"))
        if not self._turns:
            yield from (Notice(f"{note[0].upper()}{note[1:]}.") for note in self.cache.plan.notes)
        prompt = self._backend.prompts.prompt(self._as_messages([*self._turns, TurnRecord("user", text)]), self._fed)
        if self._autosave and self.session_id is None:
            self.save(title=_title(text))
        start = common_prefix(self._log, prompt.ids)
        self._append(TurnRecord("user", text, prompt.ids[start:], start))
        self._bring_back(prompt.ids)
        turn = Turn(
            self._backend.runner,
            self._backend.tokenizer,
            self.cache,
            prompt.ids,
            params,
            started=started,
            cancelled=self._cancel.is_set,
        )
        notice = None
        try:
            with set_wired_limit():
                yield from self._streamed(turn, params)
        finally:
            notice = self._finish(turn, prompt, params)
        if notice:
            yield Notice(notice)
        yield TurnFinished(turn.reason, turn.text, self.stats)

    def _streamed(self, turn: Turn, params: SamplingParams) -> Iterator[TurnEvent]:
        """The turn's events but the last; a saved chat's open reply reaches the disk every few seconds."""
        saved_at, saved_tokens = time.monotonic(), 0
        for event in turn.events():
            if isinstance(event, TurnFinished):
                return
            yield event
            if self.session_id is None or not isinstance(event, TextDelta):
                continue
            grown = event.num_tokens - saved_tokens
            if grown >= _UPDATE_TOKENS or time.monotonic() - saved_at >= _UPDATE_SECONDS:
                self._write_reply(_reply(turn, params, "open"))
                saved_at, saved_tokens = time.monotonic(), event.num_tokens

    def _finish(self, turn: Turn, prompt: Fed, params: SamplingParams) -> str | None:
        """Record the reply, then its rows; the notice to show when rows could not be saved."""
        state = "stopped" if turn.reason == "stopped" else "done"
        self._fed = self._backend.prompts.replied(prompt, turn.text, turn.generated)
        if turn.reason == "stop_string":  # the ids say more than the text: tokenize the text again next time
            self._fed = Fed("", self._fed.ids)
        self.stats = turn.stats
        self._write_reply(_reply(turn, params, state))
        if self.session_id is None:
            return None
        written, notice = self._commit_rows()
        self.stats = turn.stats_on_disk(self._backend.store().disk_bytes(self.session_id), written)
        return notice

    # -- going back --------------------------------------------------------------------------------------------------

    def undo(self) -> str:
        """Take back the last exchange; the user's text of it. A saved chat goes on in a fork.

        Raises:
            PromptError: nothing has been said.
        """
        i = self._last_user_turn()
        text = self._turns[i].text
        self._branch(i)
        return text

    def retry(self, **sampling: Any) -> Iterator[TurnEvent]:
        """Generate the last reply again; the old one stays in the session this one was forked from."""
        return self.send(self.undo(), **sampling)

    def edit(self, turn: int, text: str, **sampling: Any) -> Iterator[TurnEvent]:
        """Say `text` instead of message number `turn` (0 is the first), which must be the user's, and go on there.

        Raises:
            ConfigError: there is no such message, or it is not the user's.
        """
        if not 0 <= turn < len(self._turns) or self._turns[turn].role != "user":
            mine = [i for i, t in enumerate(self._turns) if t.role == "user"]
            raise ConfigError(f"Message {turn!r} is not one of yours; yours are {mine}.")
        if not text.strip():
            raise PromptError("The message is empty; write something first.")
        self._branch(turn)
        return self.send(text, **sampling)

    def fork(self) -> Chat:
        """A second chat with the same past; cache buffers and saved rows are shared until they differ."""
        twin = Chat.__new__(Chat)
        twin.__dict__.update(self.__dict__)
        twin._cancel, twin._open = threading.Event(), ExitStack()
        twin._turns, twin._log, twin.cache = list(self._turns), list(self._log), self.cache.fork()
        if self.session_id is not None:
            twin._enter(self._backend.store().fork(self.session_id, len(self._turns)))
        return twin

    def _last_user_turn(self) -> int:
        mine = [i for i, t in enumerate(self._turns) if t.role == "user"]
        if not mine:
            raise PromptError("There is nothing to take back: nothing has been said yet.")
        return mine[-1]

    def _branch(self, num_turns: int) -> None:
        """Go on from the first `num_turns` turns, in a fork of the session if there is one."""
        if self.session_id is not None:
            self._enter(self._backend.store().fork(self.session_id, num_turns))
        self._take(self._turns[:num_turns])  # the cache goes back when the next prompt says how far

    # -- sessions ----------------------------------------------------------------------------------------------------

    def save(self, title: str | None = None) -> str:
        """Make this chat a session, or commit and perhaps rename the one it is; later turns commit by themselves.

        Returns the session's id.
        """
        store = self._backend.store()
        if self.session_id is None:
            self.title = title or (_title(self._turns[0].text) if self._turns else "Untitled")
            params = {"cache": asdict(self.cache.plan.resolved), "sampling": _chosen(self._params)}
            self._enter(store.create(self.title, self._backend.identity(), system=self.system, params=params))
            for turn in self._turns:
                store.add_turn(self._session, turn)
        elif title:
            self.title = title
            store.rename(self.session_id, title)
        if self.cache.tokens:
            self._commit_rows()
        return self._session

    def load(self, record: SessionRecord) -> None:
        """Take over a stored session: its turns, and from disk what fits of its rows."""
        store = self._backend.store()
        self._enter(record.id)
        turns = list(record.turns)
        if turns and turns[-1].state == "open":  # a crash came while it streamed
            turns[-1] = replace(turns[-1], state="stopped")
            store.update_open_turn(record.id, turns[-1])
        self._take(turns)
        self.restored = self._restore(self._log)
        if self.restored is not None and self.restored.rng is not None:
            set_random_state(self.restored.rng)  # sampling goes on as if the process had never ended
        mine = self._backend.identity()
        if record.model.model_id != mine.model_id:
            store.set_model(record.id, mine)
            self._fed = Fed()  # another model's ids: everything is tokenized anew

    def detach(self) -> None:
        """Go on without the session: nothing of what follows is saved."""
        self._open.close()
        self.session_id, self._autosave = None, False

    def close(self) -> None:
        """Let another process open the session."""
        self._open.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _session(self) -> str:
        assert self.session_id is not None
        return self.session_id

    def _enter(self, session_id: str) -> None:
        self._open.close()
        self._open = ExitStack()
        self._open.enter_context(self._backend.store().lock(session_id))
        self.session_id = session_id
        self._reply_open = False

    def _restore(self, ids: Sequence[int]) -> Restored | None:
        """Fill the cache from disk with the longest saved beginning of `ids`."""
        self.cache.reset()
        if self.session_id is None or not self.cache.can_save or not ids:
            return None
        return self._backend.store().restore_kv(self.session_id, self.cache, self._backend.identity(), ids)

    def _bring_back(self, ids: Sequence[int]) -> None:
        """Where `ids` need rows that have rotated out of the cache, the session's chunks may still have them."""
        back = self.cache.offset - common_prefix(self.cache.tokens, ids)
        if back > self.cache.rewindable and self.session_id is not None:
            self._restore(ids)

    def _append(self, turn: TurnRecord) -> None:
        if self.session_id is not None:
            self._backend.store().add_turn(self.session_id, turn)
        self._take([*self._turns, turn], fed=self._fed)

    _reply_open = False  # the last turn is a reply that is still being written

    def _write_reply(self, reply: TurnRecord) -> None:
        if self._reply_open:
            if self.session_id is not None:
                self._backend.store().update_open_turn(self.session_id, reply)
            self._take([*self._turns[:-1], reply], fed=self._fed)
        else:
            self._append(reply)
        self._reply_open = reply.state == "open"

    def _commit_rows(self) -> tuple[int, str | None]:
        """Save the cache's new rows: bytes written, and a notice if that failed (the turns are safe already)."""
        if not self.cache.can_save:
            return 0, None
        try:
            commit = self._backend.store().commit_kv(
                self._session, self.cache, self._backend.identity(), random_state()
            )
        except (OSError, StoreError) as error:
            return 0, f"The KV cache could not be saved, the chat is ({error})"
        return commit.bytes_written, commit.notice

    # -- what was fed ------------------------------------------------------------------------------------------------

    def _as_messages(self, turns: Sequence[TurnRecord]) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *({"role": t.role, "content": t.text} for t in turns)]

    def _take(self, turns: list[TurnRecord], fed: Fed | None = None) -> None:
        """These are the turns now; `fed` None works out what the model was fed for them."""
        log: list[int] = []
        for turn in turns:
            del log[len(log) if turn.start is None else turn.start :]
            log += turn.ids
        self._turns, self._log = turns, log
        self._fed = self._fed_after(turns) if fed is None else fed

    def _fed_after(self, turns: Sequence[TurnRecord]) -> Fed:
        """What `PromptFormat` would have left once these turns were done."""
        prompts, ids = self._backend.prompts, tuple(self._log)
        if not turns or not prompts.has_template or turns[-1].stats.get("finish_reason") == "stop_string":
            return Fed("", ids)
        if turns[-1].role == "user":
            return Fed(prompts.render(self._as_messages(turns)), ids)
        reply = turns[-1]
        prompt = Fed(prompts.render(self._as_messages(turns[:-1])), ids[: len(ids) - len(reply.ids)])
        return prompts.replied(prompt, reply.text, reply.ids)


def _chosen(params: SamplingParams) -> dict[str, Any]:
    return {f.name: getattr(params, f.name) for f in fields(SamplingParams)}


def _reply(turn: Turn, params: SamplingParams, state: str) -> TurnRecord:
    return TurnRecord(
        "assistant",
        turn.text,
        tuple(turn.generated),
        state=state,
        params=_chosen(params),
        stats=asdict(turn.stats),
    )


def _stats_of(turn: TurnRecord) -> TurnStats | None:
    known = {f.name for f in fields(TurnStats)}
    stats: Mapping[str, Any] = {k: v for k, v in turn.stats.items() if k in known}
    return TurnStats(**stats) if stats else None


def _title(text: str) -> str:
    """The first line, cut to a title's length."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "Untitled")
    return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1].rstrip() + "…"
