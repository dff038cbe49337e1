"""Batches: texts, token ids and message lists to requests of the scheduler, and their events.

Checks each prompt; knows no files. On the MLX thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompts import clock
from mlxkv.chat.prompts.messages import checked, name_refused, template_messages, without_tools
from mlxkv.chat.prompts.prefix import ChatPrefix
from mlxkv.chat.prompts.prompt import PromptState
from mlxkv.chat.prompts.raw_prompt import RawPrompt, checked_prompt
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.errors import MlxkvError, ModelError, PromptError
from mlxkv.events import ReplyFinished, RequestFailed, TurnEvent
from mlxkv.inference.generation import check_size
from mlxkv.inference.hooks import Hooks
from mlxkv.inference.sampling import SamplingParams
from mlxkv.scheduler import Request, Scheduler
from mlxkv.store.records import TurnRecord
from mlxkv.token_ids import PromptIds

Prompt = str | PromptIds | Sequence[Mapping[str, Any]]


class BatchPrompts:
    """Makes requests that share a prompt cache, or the bounds of new ones.

    Args:
        cache: is not changed, and what it holds now is what counts.
        think: the switch of the chat template for reasoning, for message lists; None leaves it to the model.

    Raises:
        MismatchError, CacheError, OutOfMemoryError: as for `Model.generate`.
    """

    def __init__(
        self, runtime: ModelRuntime, cache: PromptCache | CacheConfig | None, think: bool | None = None
    ) -> None:
        self._runtime, self._think = runtime, think
        self._held: PromptCache | None = None
        self._prefix: ChatPrefix | None = None
        self._made: dict[int, PromptCache] = {}  # empty caches, by the number of pinned tokens
        self._prompts = runtime.prompts.at(clock.now())
        if isinstance(cache, PromptCache):
            runtime.check_cache(cache)
            self._held, self._config = cache.fork(), CacheConfig()
        else:
            self._config = cache or CacheConfig()
            self._empty(0)

    @property
    def is_current(self) -> bool:
        """Whether the chat template, if it prints the time, would print the same now."""
        return not self._prompts.prints_time or self._prompts.clock == clock.now()

    def requests(
        self, prompts: Iterable[Prompt], params: SamplingParams, deadline: float | None, hooks: Hooks
    ) -> Iterator[Request | tuple[int, MlxkvError]]:
        """The request of each prompt, with its index as the id; an error in place of those that are invalid."""
        for i, prompt in enumerate(prompts):
            try:
                yield self.request(i, prompt, params, deadline, hooks)
            except MlxkvError as error:
                yield i, error

    def request(
        self,
        name: int | str,
        prompt: Prompt,
        params: SamplingParams,
        deadline: float | None = None,
        hooks: Hooks | None = None,
    ) -> Request:
        """Make the request of one prompt.

        Raises:
            PromptError: it is empty, too long, or no prompt. ConfigError: messages cannot follow this prompt cache.
            ModelError: the chat template refuses them.
        """
        if _is_messages(prompt):
            state, cache = self._of_messages(*_checked(prompt))
            ids, continued, reader = state.ids, False, lambda: self._prompts.reader(state, params.stop)
        else:
            given, cache = checked_prompt(prompt, self._runtime.model_args), self._held or self._empty(0)
            raw = RawPrompt.after(cache.log, given, self._prompts)
            ids, continued, reader = raw.ids, raw.continued, None
        check_size(ids)
        cache.check_length(len(ids))
        self._runtime.check_sampling(params)
        return Request(name, ids, params, cache, deadline, reader, hooks or Hooks(), continued=continued)

    def hooks(self, given: dict[str, Any]) -> Hooks:
        """The hooks among the keywords `given`; see `hooks.take_hooks`."""
        return self._runtime.take_hooks(given)

    def events(
        self, requests: Iterable[Request | tuple[int | str, MlxkvError]]
    ) -> Generator[tuple[int | str, TurnEvent | RequestFailed]]:
        """`events_of` requests of this model."""
        return events_of(self._runtime, requests)

    def _of_messages(self, system: str | None, turns: Sequence[TurnRecord]) -> tuple[PromptState, PromptCache]:
        if self._held is None:
            pinned = self._prompts.num_system_tokens(system) if self._config.sinks == "system" else 0
            return self._rendered(system, turns, PromptState()), self._empty(pinned)
        if self._prefix is None or system is not None:
            self._prefix = ChatPrefix.of_cache(self._held, system, self._prompts)
            self._prompts = self._prompts.at(self._prefix.began)
        prefix = self._prefix
        turns = [replace(turns[0], text=prefix.text + turns[0].text), *turns[1:]]
        return self._rendered(prefix.system, turns, prefix.prompt_state), self._held

    def _rendered(self, system: str | None, turns: Sequence[TurnRecord], before: PromptState) -> PromptState:
        prompts = self._prompts
        messages = template_messages(system, turns if prompts.shows_calls else without_tools(turns))
        try:
            return prompts.prompt(messages, before, self._think)
        except ModelError as error:
            raise name_refused(prompts, messages, error) from error

    def _empty(self, num_pinned: int) -> PromptCache:
        """An empty cache that pins so many tokens."""
        if num_pinned not in self._made:
            self._made[num_pinned] = self._runtime.new_cache(self._config, num_pinned=num_pinned)
        return self._made[num_pinned]


def events_of(
    runtime: ModelRuntime, requests: Iterable[Request | tuple[int | str, MlxkvError]], max_waiting: int = 32
) -> Generator[tuple[int | str, TurnEvent | RequestFailed]]:
    """The events of requests, each with its id, as they happen; an error in place of a request is its only event.

    Requests are asked for as places in line become free. Closing the iterator stops all of them.
    """
    scheduler = Scheduler(runtime.runner, runtime.tokenizer, runtime.budget, max_waiting=max_waiting)
    events: deque[tuple[int | str, TurnEvent | RequestFailed]] = deque()
    source, has_more = iter(requests), True
    try:
        while True:
            while has_more and scheduler.can_take:
                item = next(source, None)
                if isinstance(item, Request):
                    scheduler.submit(item, lambda event, name=item.id: events.append((name, event)))
                elif item is not None:
                    events.append((item[0], RequestFailed(item[1])))
                has_more = item is not None
            is_busy = scheduler.step()
            while events:
                yield events.popleft()
            if not (is_busy or has_more):
                return
    finally:
        scheduler.close()


def answers_of(runtime: ModelRuntime, requests: Sequence[Request | tuple[int, MlxkvError]]) -> list[ReplyFinished]:
    """The last event of each, in order.

    Raises:
        MlxkvError: the first of those in place of a request, before anything is computed; or that a prompt does not fit
        in memory. The message begins with `prompts[i]`.
    """
    for request in requests:
        if not isinstance(request, Request):
            raise _of_prompt(*request)
    finished: dict[int | str, ReplyFinished] = {}
    with closing(events_of(runtime, requests)) as events:
        for i, event in events:
            if isinstance(event, RequestFailed):
                raise _of_prompt(i, event.error) if isinstance(event.error, MlxkvError) else event.error
            if isinstance(event, ReplyFinished):
                finished[i] = event
    return [finished[i] for i in range(len(requests))]


def _of_prompt(index: int | str, error: MlxkvError) -> MlxkvError:
    """The error, with the index of its prompt."""
    error.args = (f"prompts[{index}]: {error}",)
    return error


def num_tokens_of(runtime: ModelRuntime, prompt: Prompt) -> int:
    """The number of tokens of a prompt: text and token ids as they are continued, messages as the template renders
    them, with the beginning of a reply unless they end with one.

    Raises:
        PromptError: it is empty or invalid. ModelError: the chat template refuses the messages.
    """
    prompts = runtime.prompts.at(clock.now())
    if _is_messages(prompt):
        system, turns = checked(prompt)
        return prompts.num_tokens(template_messages(system, turns if prompts.shows_calls else without_tools(turns)))
    return len(RawPrompt.after((), checked_prompt(prompt, runtime.model_args), prompts).ids)


def _is_messages(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and any(isinstance(item, Mapping) for item in prompt)


def _checked(messages: Any) -> tuple[str | None, tuple[TurnRecord, ...]]:
    """The system prompt and the messages.

    Raises:
        PromptError: one is invalid, or they do not end with the user's or the result of a tool.
    """
    system, turns = checked(messages)
    last = turns[-1].role if turns else ""
    if not (last == "tool" or (last == "user" and turns[-1].text)):
        raise PromptError("The last message is not one of the user's, or it is empty; end with what is to be answered.")
    return system, turns
