"""Endpoint: what serves one model on the MLX thread: prompts from jobs, slots, conversations, and their archive.

The event loop calls `prepare` for a job, then submits the `request` of each of its replies to the RequestThread, with a
sink of `sink`. Knows no HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlxkv.chat.prompts import clock
from mlxkv.chat.prompts.prompt import check_ids
from mlxkv.errors import ConfigError, PromptError
from mlxkv.events import FinishReason, PrefillProgress, ReplyFinished, TextDelta, TokenLogprobs, TurnEvent
from mlxkv.inference.generation import check_size
from mlxkv.inference.hooks import Hooks
from mlxkv.inference.sampling import SamplingParams
from mlxkv.scheduler import Request
from mlxkv.server.archive import Archive, Reply
from mlxkv.server.capacity import Capacity, decide_capacity
from mlxkv.server.conversations import Conversation, Conversations, Match, after_reply
from mlxkv.server.errors import invalid, too_long
from mlxkv.server.jobs import Accepted, Call, ChatMessage, Ended, Job, JobEvent, Piece, Prefilling, TokenScore
from mlxkv.server.scores import scores_of
from mlxkv.server.slots import Slot, Slots
from mlxkv.text.encoding import well_formed

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.model import Model

_log = logging.getLogger("mlxkv.server")
MAX_CONVERSATIONS = 64
Emit = Callable[[JobEvent | BaseException | None], object]
"""Takes the events of one reply, at the end None or an error; called on the MLX thread."""


@dataclass(frozen=True)
class EndpointOptions:
    """How a model is served.

    Attributes:
        cache: how caches are bounded; without a window, one is chosen.
        sampling: SamplingParams fields for what a request leaves out.
        think: as of `Model.chat`, likewise.
        saves: whether conversations are saved on disk.
        num_slots: requests that run at once; None: what fits in memory.
        forgets: delete first what was saved before.
    """

    cache: CacheConfig
    sampling: Mapping[str, Any] = field(default_factory=dict)
    think: bool | None = None
    saves: bool = True
    num_slots: int | None = None
    forgets: bool = False


@dataclass(eq=False)
class _Prepared:
    """A job whose prompt was checked. `match`: of messages. `shared`: holds the prompt, for further replies."""

    job: Job
    ids: Sequence[int]
    params: SamplingParams
    hooks: Hooks
    match: Match | None = None
    shared: PromptCache | None = None


class Endpoint:
    """Serves a model. Its methods belong to the MLX thread."""

    def __init__(self, model: Model, options: EndpointOptions) -> None:
        self._model, self._options, self._runtime = model, options, model._runtime
        self.capacity: Capacity = decide_capacity(self._runtime, options.cache, options.num_slots)
        self._template = self._capacity_template()
        self._archive = Archive(self._runtime, options.saves)
        if options.forgets:
            self._archive.forget_all()
        prompts = self._runtime.prompts
        self._conversations = Conversations(prompts, clock.now, MAX_CONVERSATIONS)
        for conversation in self._archive.load(prompts, MAX_CONVERSATIONS):
            self._conversations.add(conversation)
        self._slots = Slots(self._template.fork, self.capacity.num_slots, self._save_states)
        self._prepared: dict[int, _Prepared] = {}

    def _capacity_template(self) -> PromptCache:
        """An empty cache whose forks grow with their tokens, up to the window."""
        root = self._runtime.new_cache(self.capacity.cache)
        for _ in self._runtime.runner.prefill(root, [next(iter(self._runtime.tokenizer.eos_token_ids))]):
            pass
        twin = root.fork()
        twin.make_room(1)
        twin.reset()
        return twin

    def _save_states(self, slot: Slot) -> None:
        if slot.conversation is not None:
            self._archive.save_states(slot.conversation, slot.cache)

    def close(self) -> None:
        """Save what a restart would have to prefill."""
        self._slots.close()
        self._archive.close()

    # -- prompts -------------------------------------------------------------------------------------------------------

    def prepare(self, key: int, job: Job) -> Accepted:
        """Check a job, which `key` names from now on, until `forget`.

        Raises:
            ApiError, MlxkvError: it cannot be answered.
        """
        if job.think is None and self._options.think is not None:
            job = replace(job, think=self._options.think)
        match = self._conversations.match(job) if job.prompt is None else None
        ids = self._ids(job.prompt) if match is None else match.state.ids
        check_size(ids)
        most = self.capacity.window
        if most is not None and len(ids) >= most:
            raise too_long(len(ids), most)
        params, hooks = self._params(job), self._hooks(job)
        if most is not None:
            params = replace(params, max_tokens=min(params.max_tokens, most - len(ids)))
        self._prepared[key] = _Prepared(job, ids, params, hooks, match)
        return Accepted(len(ids))

    def _ids(self, prompt: str | tuple[int, ...] | None) -> Sequence[int]:
        if isinstance(prompt, str):
            return self._runtime.prompts.encode_raw(well_formed(prompt))
        try:
            return check_ids(prompt or (), getattr(self._runtime.model, "args", None))
        except PromptError as error:
            raise invalid("prompt", str(error)) from error

    def _params(self, job: Job) -> SamplingParams:
        scores = {} if job.logprobs is None else {"logprobs": job.logprobs}
        chosen = {**self._options.sampling, **job.sampling, **scores}
        params = SamplingParams.for_model(self._model.loaded.generation, **chosen)
        self._runtime.check_sampling(params)
        return params

    def _hooks(self, job: Job) -> Hooks:
        if job.schema is None:
            return Hooks()
        try:
            return Hooks(schema=self._runtime.grammars.compile(job.schema))
        except ConfigError as error:
            raise invalid("response_format", str(error)) from error

    def forget(self, key: int) -> None:
        """A job has ended."""
        self._prepared.pop(key, None)

    # -- replies -------------------------------------------------------------------------------------------------------

    def sink(self, key: int, index: int, emit: Emit) -> ReplySink:
        """Takes the events of a job's reply number `index`. May be made on any thread."""
        return ReplySink(self, key, index, emit)

    def request(self, sink: ReplySink, request_id: int) -> Request:
        """The request of one reply. The first one of a job is generated in a slot; ask for the others once it has
        ended."""
        prepared = self._prepared[sink.key]
        params, match = prepared.params.for_sample(sink.index), prepared.match
        prompts = match.prompts if match else None
        num_calls = sum(len(message.calls) for message in prepared.job.messages)
        reader = (lambda: prompts.reader(match.state, params.stop, num_calls)) if match and prompts else None
        hooks = prepared.hooks
        if sink.index and prepared.shared is not None:
            return Request(request_id, prepared.ids, params, prepared.shared, reader=reader, hooks=hooks)
        slot = sink.slot = self._slots.take(prepared.ids)
        self._archive.restore(
            slot.cache, prepared.ids, slot.reusable(prepared.ids), match.conversation if match else None
        )
        return Request(request_id, prepared.ids, params, slot.cache, reader=reader, hooks=hooks, keeps_cache=True)

    def finish(self, sink: ReplySink, ended: Ended, tokens: tuple[int, ...], reason: str) -> None:
        """A reply has ended: remember and save its conversation."""
        prepared, slot = self._prepared[sink.key], sink.slot
        if slot is None:
            return
        if prepared.job.n > 1:
            prepared.shared = slot.cache.fork()
        match = prepared.match
        if match is None or not tokens or reason in (FinishReason.STOPPED, FinishReason.DEADLINE):
            return
        is_cut = reason == FinishReason.STOP_STRING
        message = ChatMessage("assistant", ended.text, ended.thinking, ended.calls)
        state = after_reply(match.prompts, match.state, ended.text, tokens, is_cut)
        before = match.conversation if match.continues else None
        conversation = Conversation((*match.messages, message), match.state.ids + tokens, match.began, lambda: state)
        forgotten = self._conversations.add(conversation, before)
        self._archive.save(
            conversation, prepared.job, Reply(match.state, ended.text, tokens, is_cut), slot.cache, before
        )
        self._archive.forget(forgotten)
        slot.conversation = conversation

    def scores(self, found: Sequence[TokenLogprobs]) -> tuple[TokenScore, ...]:
        """Log-probabilities as clients read them."""
        return scores_of(self._runtime.tokenizer, found) if found else ()

    def release(self, slot: Slot) -> None:
        self._slots.release(slot)


class ReplySink:
    """Turns the events of one reply into JobEvents. On the MLX thread.

    Attributes:
        slot: the one that the reply is generated in.
    """

    def __init__(self, endpoint: Endpoint, key: int, index: int, emit: Emit) -> None:
        self._endpoint, self.key, self.index, self._emit = endpoint, key, index, emit
        self.slot: Slot | None = None

    def put(self, event: TurnEvent) -> None:
        match event:
            case PrefillProgress(done, total, cached):
                self._emit(Prefilling(done, total, cached))
            case TextDelta(text, thinking=thinking, restarts=restarts):
                self._emit(Piece(self.index, text, thinking, restarts, self._endpoint.scores(event.logprobs)))
            case ReplyFinished(reason, text, stats, thinking, tokens=tokens):
                calls = tuple(Call(c.name, c.arguments, c.id) for c in event.tool_calls)
                scores = self._endpoint.scores(event.logprobs)
                ended = Ended(self.index, _REASONS.get(reason, "stop"), text, thinking, stats, calls, scores)
                self._emit(ended)
                try:
                    self._endpoint.finish(self, ended, tokens, reason)
                except Exception:  # the client has its reply
                    _log.exception("a conversation was not kept")

    def end(self, error: BaseException | None) -> None:
        if self.slot is not None:
            self._endpoint.release(self.slot)
        self._emit(error)


_REASONS: Mapping[str, str] = {
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
}
