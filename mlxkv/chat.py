"""Chat: one turn after the other on one KV cache: messages to prompt, prompt to reply.

Owns the cache and what has been fed; what was said and where it is saved belongs to Conversation. Going back (undo,
retry, edit) never destroys: a saved chat goes on in a fork. On the MLX thread, but for `cancel`.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache, common_prefix
from mlxkv.conversation import Conversation
from mlxkv.device import set_wired_limit
from mlxkv.errors import ConfigError, PromptError
from mlxkv.events import Message, Notice, TextDelta, TurnEvent, TurnFinished
from mlxkv.prompt import Fed, PromptFormat
from mlxkv.runner import ModelRunner
from mlxkv.sampling import SamplingParams, set_random_state
from mlxkv.stats import TurnStats
from mlxkv.store import ModelIdentity, Restored, SessionRecord, SessionStore, TurnRecord
from mlxkv.turn import Turn

_UPDATE_TOKENS = 256  # an open reply is written to disk this often,
_UPDATE_SECONDS = 2.0  # or this often, whichever comes first
_TITLE_LENGTH = 60


@dataclass(frozen=True)
class ChatBackend:
    """What a chat needs of the model it runs on; `Model` makes it."""

    runner: ModelRunner
    tokenizer: Any
    prompts: PromptFormat
    make_cache: Callable[[CacheConfig, str | None], PromptCache]
    store: Callable[[], SessionStore]
    identity: Callable[[], ModelIdentity]


class Chat:
    """A conversation with a model. Made by `Model.chat` and `Model.resume`.

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
        self._autosave = autosave
        self._cancel = threading.Event()
        self._said = Conversation(backend.store, backend.identity)
        self._fed = Fed()  # what the next prompt can go on from
        self.system = system or None
        self.cache = backend.make_cache(cache or CacheConfig(), self.system)
        self.stats = TurnStats()
        self.restored: Restored | None = None  # what came back from disk when the chat was resumed

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
        chosen = {name: value for name, value in sampling.items() if value is not None}
        params = SamplingParams.for_model({}, **{**asdict(self._params), **chosen})
        return self._turn(text, params, time.perf_counter() if started is None else started)

    def cancel(self) -> None:
        """Stop the running reply after its current token or prefill chunk; from any thread. What was said is kept."""
        self._cancel.set()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, without the system prompt."""
        return tuple(Message(t.role, t.text, _stats_of(t)) for t in self._said.turns)

    def _turn(self, text: str, params: SamplingParams, started: float) -> Iterator[TurnEvent]:
        self._cancel.clear()
        said = self._said
        if not said.turns:
            yield from (Notice(f"{note[0].upper()}{note[1:]}.") for note in self.cache.plan.notes)
        elif said.turns[-1].role == "user":  # a crash came before any reply: keep the roles alternating
            said.append(TurnRecord("assistant", "", state="stopped"))
        prompt = self._backend.prompts.prompt(self._as_messages([*said.turns, TurnRecord("user", text)]), self._fed)
        if self._autosave and self.session_id is None:
            self.save(title=_title(text))
        start = common_prefix(said.log, prompt.ids)
        said.append(TurnRecord("user", text, prompt.ids[start:], start))
        said.bring_back(self.cache, prompt.ids)
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
                self._said.write_reply(_reply(turn, params, "open"))
                saved_at, saved_tokens = time.monotonic(), event.num_tokens

    def _finish(self, turn: Turn, prompt: Fed, params: SamplingParams) -> str | None:
        """Record the reply, then its rows; the notice to show when rows could not be saved."""
        self._fed = self._backend.prompts.replied(prompt, turn.text, turn.generated)
        if turn.reason == "stop_string":  # the ids say more than the text: tokenize the text again next time
            self._fed = Fed("", self._fed.ids)
        self.stats = turn.stats
        self._said.write_reply(_reply(turn, params, "stopped" if turn.reason == "stopped" else "done"))
        if self.session_id is None:
            return None
        written, notice = self._said.save_rows(self.cache)
        self.stats = turn.stats_on_disk(self._said.disk_bytes(), written)
        return notice

    # -- going back --------------------------------------------------------------------------------------------------

    def undo(self) -> str:
        """Take back the last exchange; the user's text of it. A saved chat goes on in a fork.

        Raises:
            PromptError: nothing has been said.
        """
        i = self._said.last("user")
        if i is None:
            raise PromptError("There is nothing to take back: nothing has been said yet.")
        text = self._said.turns[i].text
        self._branch(i)
        return text

    def retry(self, **sampling: Any) -> Iterator[TurnEvent]:
        """Generate the last reply again; the old one stays in the session this one was forked from."""
        return self.send(self.undo(), **sampling)

    def edit(self, turn: int, text: str, **sampling: Any) -> Iterator[TurnEvent]:
        """Say `text` instead of message number `turn` (0 is the first), which must be the user's, and go on there.

        Raises:
            ConfigError: there is no such message, or it is not the user's. PromptError: `text` is empty.
        """
        mine = [i for i, t in enumerate(self._said.turns) if t.role == "user"]
        if turn not in mine:
            raise ConfigError(f"Message {turn!r} is not one of yours; yours are {mine}.")
        if not text.strip():
            raise PromptError("The message is empty; write something first.")
        self._branch(turn)
        return self.send(text, **sampling)

    def fork(self) -> Chat:
        """A second chat with the same past; cache buffers and saved rows are shared until they differ."""
        twin = copy.copy(self)
        twin._cancel = threading.Event()
        twin._said, twin.cache = self._said.fork(), self.cache.fork()
        return twin

    def _branch(self, num_turns: int) -> None:
        self._said.branch(num_turns)
        self._fed = self._fed_so_far()  # the cache goes back when the next prompt says how far

    # -- sessions ----------------------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str | None:
        """None while this chat is not saved."""
        return self._said.session_id

    @property
    def title(self) -> str:
        return self._said.title

    def save(self, title: str | None = None) -> str:
        """Make this chat a session, or commit and perhaps rename the one it is; later turns commit by themselves.

        Returns the session's id.
        """
        said = self._said
        if said.session_id is None:
            params = {"cache": asdict(self.cache.plan.resolved), "sampling": asdict(self._params)}
            said.begin(title or (_title(said.turns[0].text) if said.turns else "Untitled"), self.system, params)
        elif title:
            said.rename(title)
        if self.cache.tokens:
            said.save_rows(self.cache)
        return str(said.session_id)

    def load(self, record: SessionRecord) -> None:
        """Take over a stored session: its turns, and from disk what fits of its rows."""
        was_this_models = self._said.resume(record)
        # Another model's ids mean nothing to this one's tokenizer: the next prompt is tokenized anew.
        self._fed = self._fed_so_far() if was_this_models else Fed()
        self.restored = self._said.restore_rows(self.cache, self._said.log)
        if self.restored is not None and self.restored.rng is not None:
            set_random_state(self.restored.rng)  # sampling goes on as if the process had never ended

    def detach(self) -> None:
        """Go on without the session: nothing of what follows is saved."""
        self._autosave = False
        self._said.detach()

    def close(self) -> None:
        """Let another process open the session."""
        self._said.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what was fed ------------------------------------------------------------------------------------------------

    def _as_messages(self, turns: Sequence[TurnRecord]) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *({"role": t.role, "content": t.text} for t in turns)]

    def _fed_so_far(self) -> Fed:
        """What `PromptFormat` would have left once the turns there are were done."""
        prompts, turns, ids = self._backend.prompts, self._said.turns, self._said.log
        if not turns or not prompts.has_template or turns[-1].stats.get("finish_reason") == "stop_string":
            return Fed("", ids)
        if turns[-1].role == "user":
            return Fed(prompts.render(self._as_messages(turns)), ids)
        reply = turns[-1]
        prompt = Fed(prompts.render(self._as_messages(turns[:-1])), ids[: len(ids) - len(reply.ids)])
        return prompts.replied(prompt, reply.text, reply.ids)


def _reply(turn: Turn, params: SamplingParams, state: str) -> TurnRecord:
    stats = asdict(turn.stats)
    return TurnRecord("assistant", turn.text, tuple(turn.generated), state=state, params=asdict(params), stats=stats)


def _stats_of(turn: TurnRecord) -> TurnStats | None:
    known = {f.name for f in fields(TurnStats)}
    stats: Mapping[str, Any] = {k: v for k, v in turn.stats.items() if k in known}
    return TurnStats(**stats) if stats else None


def _title(text: str) -> str:
    """The first line, cut to a title's length."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "Untitled")
    return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1].rstrip() + "…"
