"""Model, which `mlxkv.load` returns: text in, text or events out; chats, sessions and prompt caches.

Checks arguments and sets defaults; ModelRuntime owns the parts. On the thread that made it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from mlxkv import arguments
from mlxkv.arguments import instance, optional, public, shown, text
from mlxkv.cache.config import CacheConfig
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.batches import BatchPrompts, Prompt, answers_of, events_of, num_tokens_of
from mlxkv.chat.chat import Chat
from mlxkv.chat.completion import Completion
from mlxkv.chat.prompts.messages import checked
from mlxkv.chat.prompts.prefills import new_cache, prefill_steps
from mlxkv.chat.prompts.raw_prompt import RawPrompt, checked_prompt
from mlxkv.chat.resuming.resumption import resumed
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.chat.tools import Tool, checked_tools
from mlxkv.config import Folders
from mlxkv.device import current_device
from mlxkv.distributed.group import Wish, check_wish
from mlxkv.errors import ConfigError
from mlxkv.events import BatchEvent, Message, TurnEvent
from mlxkv.inference.drafting.same_tokenizer import check_same_tokenizer
from mlxkv.inference.generation import Generation
from mlxkv.inference.hooks import HOOKS, Hooks
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SAMPLING, SamplingParams
from mlxkv.inference.sampling_types import Sampling
from mlxkv.inference.scores import (
    Choice,
    Normalize,
    Score,
    Scorer,
    check_normalize,
    check_options,
    most_probable,
)
from mlxkv.models import Hub, LoadedModel, LoadProgress, load_model
from mlxkv.models.loading.load import ModelSplit
from mlxkv.scheduler import Scheduler
from mlxkv.stats import bytes_text
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.session_store import SessionStore
from mlxkv.system.inspection import copies, hides
from mlxkv.system.thread_owner import Owned, Owner
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import PromptIds

_GENERATE_TOKENS = 256
_MOST_SAMPLES = 10_000
_CONFIG = optional(instance(CacheConfig))


def _samples(name: str, value: Any) -> int:
    return arguments.whole(name, value, 1, _MOST_SAMPLES)


def _cache(name: str, value: Any) -> Any:
    is_file = isinstance(value, str | os.PathLike)
    advice = "read a file with `Model.load_cache` first" if is_file else ""
    return optional(instance(PromptCache, CacheConfig, advice=advice))(name, value)


def _prompt(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(item, str | Mapping) for item in value):
        arguments.wrong_type(name, value, "text (str) or a list of token ids", "`generate_batch` takes several prompts")
    return value if isinstance(value, str) else arguments.token_ids(name, value)


def _draft(name: str, value: Any) -> Any:
    return arguments.model_name(name, value) if isinstance(value, str | os.PathLike) else arguments.flag(name, value)


def _several(name: str, value: Any) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        arguments.wrong_type(name, value, "a list of prompts", "each is text, token ids or a list of messages")
    return list(value)


def _given(sampling: Sampling) -> dict[str, Any]:
    return {name: value for name, value in sampling.items() if value is not None}


def _seconds(name: str, value: Any) -> float:
    return arguments.number(name, value, 0.0, 1e9)


_Event = TypeVar("_Event")
_Result = TypeVar("_Result")


def result_of(
    steps: Generator[tuple[int, int], None, _Result], progress: Callable[[int, int], object] | None = None
) -> _Result:
    """The result of `steps`, done without a pause; `progress` is called with what they yield."""
    while True:
        try:
            done = next(steps)
        except StopIteration as end:
            return end.value
        if progress is not None:
            progress(*done)


@hides(
    "runner", "identity", "open_store_for_one_reply", "batch_prompts", "prefill_steps", "score_steps", "choose_steps",
    "scheduler",
)  # fmt: skip
@copies("use the same one for all chats and prompt caches, and load it by its name in another process.")
class Model:
    """A loaded model, which `mlxkv.load` returns.

    Attributes:
        name: its name.
        adapter: the folder or repository of its LoRA adapter, None without one.
        tokenizer: mlx-lm's tokenizer.
        loaded: what was loaded: `loaded.model` is mlx-lm's model, `loaded.config` its config.json.
        is_limited: caches and prompts that would not fit in memory are refused.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        folders: Folders | None = None,
        *,
        limited: bool = True,
        draft: bool | LoadedModel = True,
    ) -> None:
        """`folders`: where sessions are stored; None reads the environment. `limited`: see `is_limited`. `draft`: see
        `load`."""
        self.loaded, self.is_limited = loaded, limited
        self._owner = Owner()
        self._runtime = ModelRuntime(loaded, folders, limited, draft)
        self.name, self.tokenizer = self._runtime.name, loaded.tokenizer
        self.adapter = None if loaded.adapter is None else loaded.adapter.name

    # -- text --------------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompt: str | PromptIds,
        *,
        cache: PromptCache | CacheConfig | None = None,
        n: Literal[1] = 1,
        **sampling: Unpack[Sampling],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str | PromptIds,
        *,
        cache: PromptCache | CacheConfig | None = None,
        n: int,
        **sampling: Unpack[Sampling],
    ) -> list[Completion]: ...

    @public(*SAMPLING, *HOOKS, prompt=_prompt, cache=_cache, n=_samples)
    def generate(
        self,
        prompt: str | PromptIds,
        *,
        cache: PromptCache | CacheConfig | None = None,
        n: int = 1,
        **sampling: Unpack[Sampling],
    ) -> Completion | list[Completion]:
        r"""Continue `prompt` as raw text, without the chat template.

        Args:
            prompt: text, in which control tokens are control tokens; or token ids, which are fed as they are: a list, a
                tuple or a one-dimensional array of numpy or MLX, shape (tokens,).
            cache: a PromptCache to continue (it is changed: pass `pc.fork()` to keep it), or how to bound a new one.
                If `prompt` begins with all that it holds, it is the whole prompt, and only the rest is prefilled; else
                it is a continuation. `stats.continued` says which, `stats.cached_tokens` how much was reused.
            n: how many texts. With 2 or more the result is a list: the prompt is prefilled once, a PromptCache then
                holds the prompt without its last token and none of the texts, and each has a seed made from `seed`.
            sampling: SamplingParams fields, e.g. ``temperature=0.0``, ``stop=["\n\n"]``, the model's own if left out,
                and for `max_tokens` 256; and hooks. `schema` is what the text must be, after any reasoning: a JSON
                schema as a dict or its text, a pydantic model, or a `re.compile` pattern that matches all of it; the
                text is cut at `max_tokens` (the finish reason "length"). `processors` are functions of (all token ids
                so far (tokens,), logits (1, vocab)) that return logits, and `sampler` a function of log-probabilities
                (1, vocab) that returns a token id (1,), as those of mlx-lm, also called one token ahead; with these
                nothing is drafted.

        Raises:
            PromptError: the prompt is empty, or an id is not of this model.
            ConfigError: a parameter has a value it cannot have.
            MismatchError: the PromptCache was made with another model.
            CacheError: its layers were used outside it, or another reply is being generated on it.
        """
        completions = []
        for generation in self._completions(prompt, cache, sampling, n)():
            for _ in generation.events():
                pass
            text, tokens, logprobs = generation.text, tuple(generation.generated), tuple(generation.logprobs)
            completions.append(Completion(text, tokens, generation.stats, logprobs=logprobs))
        return completions[0] if n == 1 else completions

    @public(*SAMPLING, *HOOKS, prompt=_prompt, cache=_cache)
    def stream(
        self,
        prompt: str | PromptIds,
        *,
        cache: PromptCache | CacheConfig | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generator[TurnEvent]:
        """Continue `prompt`, text or token ids, as an iterator of events: PrefillProgress, TextDelta, Notice and, at
        the end, one TurnFinished.

        Arguments and errors are those of `generate`; arguments are checked by the call, before the first event.
        """
        begin = self._completions(prompt, cache, sampling)

        def events() -> Generator[TurnEvent]:
            for generation in begin():
                yield from generation.events()

        return self._stream(events())

    @public(*SAMPLING, *HOOKS, prompts=_several, cache=_cache, deadline=optional(_seconds))
    def generate_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        cache: PromptCache | CacheConfig | None = None,
        deadline: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[Completion]:
        """Answer many prompts, as many at once as fit in memory; the results are in the order of the prompts.

        Each reply is that of its prompt alone; a seed counts for each prompt. `stats.batched` says whether a reply was
        generated together with others, `stats.not_batched_why` why not. A beginning that prompts share is prefilled
        once.

        Args:
            prompts: each a text or token ids, which are continued as by `generate`, or a list of messages
                (``{"role": "user", "content": "..."}``), which the chat template renders.
            cache: a PromptCache that all prompts continue; it is not changed. Or how to bound new ones.
            deadline: seconds for all of them; then replies end as they are, with the finish reason "deadline".
            sampling: as for `generate`, for each reply.

        Raises:
            PromptError: a prompt is empty, too long or invalid; the message has its index, and nothing was computed.
            OutOfMemoryError: a prompt does not fit even alone.
            ConfigError, MismatchError, CacheError: as for `generate`.
        """
        made, (params, hooks) = BatchPrompts(self._runtime, cache), self._sampling(sampling)
        ends = answers_of(self._runtime, list(made.requests(prompts, params, deadline, hooks)))
        return [Completion(end.text, end.tokens, end.stats, end.thinking, logprobs=end.logprobs) for end in ends]

    @public(*SAMPLING, *HOOKS, prompts=_several, cache=_cache, deadline=optional(_seconds))
    def stream_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        cache: PromptCache | CacheConfig | None = None,
        deadline: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generator[BatchEvent]:
        """Answer many prompts, as an iterator of events, each with the index of its prompt.

        Arguments and errors are those of `generate_batch`, but a prompt that cannot be answered ends with a
        RequestFailed, and the others go on. Closing the iterator stops all of them.
        """
        made, (params, hooks) = BatchPrompts(self._runtime, cache), self._sampling(sampling)

        def events() -> Generator[BatchEvent]:
            for i, event in events_of(self._runtime, made.requests(prompts, params, deadline, hooks)):
                yield BatchEvent(int(i), event)

        return self._stream(events())

    @public(text=text, cache=_cache)
    def score(self, text: str, *, cache: PromptCache | CacheConfig | None = None) -> Score:
        """How probable `text` is as raw text, without the chat template; its first token only counts after others: a
        BOS token, or those of `cache`.

        Args:
            text: the text; control tokens that it spells are control tokens.
            cache: a PromptCache that it continues, which is not changed, or how to bound a new one. Where `text` begins
                with all of the text it holds, only the rest is scored.

        Raises:
            PromptError: there is nothing to score.
            MismatchError, CacheError, OutOfMemoryError: as for `generate`.
        """
        return result_of(self.score_steps(text, cache=cache))

    @public(text=text, cache=_cache)
    def score_steps(
        self, text: str, *, cache: PromptCache | CacheConfig | None = None
    ) -> Generator[tuple[int, int], None, Score]:
        """`score` a chunk at a time; yields the number of tokens scored so far, and of all."""
        return (yield from self._scores([text], cache))[0]

    @public(options=check_options, cache=_cache, normalize=check_normalize)
    def choose(
        self,
        options: Iterable[str],
        *,
        cache: PromptCache | CacheConfig | None = None,
        normalize: Normalize = "none",
    ) -> Choice:
        """The most probable of several texts, each scored as by `score`; a beginning that they share is computed once.

        Args:
            options: the texts, with the space that they begin with after other text.
            cache: what they continue, as for `score`.
            normalize: longer texts are less probable. "tokens" compares the mean log-probabilities of their tokens,
                "characters" those of their characters, "none" the probabilities themselves.

        Raises:
            ConfigError: there are no options, or one is empty.
            PromptError, MismatchError, CacheError, OutOfMemoryError: as for `score`.
        """
        return result_of(self.choose_steps(options, cache=cache, normalize=normalize))

    @public(options=check_options, cache=_cache, normalize=check_normalize)
    def choose_steps(
        self,
        options: Iterable[str],
        *,
        cache: PromptCache | CacheConfig | None = None,
        normalize: Normalize = "none",
    ) -> Generator[tuple[int, int], None, Choice]:
        """`choose` a chunk at a time; yields as `score_steps`."""
        texts = list(options)
        return most_probable(texts, (yield from self._scores(texts, cache)), normalize)

    def _scores(
        self, texts: list[str], cache: PromptCache | CacheConfig | None
    ) -> Generator[tuple[int, int], None, list[Score]]:
        if isinstance(cache, PromptCache):
            self._runtime.check_cache(cache)
        held = cache if isinstance(cache, PromptCache) else self.make_cache(cache)
        prompts = self._runtime.prompts
        ids = [RawPrompt.after(held.log, well_formed(text), prompts).ids for text in texts]
        return (yield from Scorer(self.runner, held).steps(ids))

    def batch_prompts(self, cache: PromptCache | CacheConfig | None, think: bool | None) -> BatchPrompts:
        """Requests with sampling of their own, for the command line."""
        return BatchPrompts(self._runtime, cache, think)

    def scheduler(self, **options: Any) -> Scheduler:
        """A scheduler of requests on this model, for the thread that serves many callers; `options` are its own."""
        return Scheduler(self._runtime.runner, self.tokenizer, self._runtime.budget, **options)

    def _stream(self, events: Generator[_Event]) -> Generator[_Event]:
        """`events` for this thread only, closed with the model."""
        stream = Owned(self._owner, events)
        self._runtime.streams.add(stream)
        return stream

    def _sampling(self, sampling: Sampling) -> tuple[SamplingParams, Hooks]:
        """What the keywords of a method outside a chat say, whose replies are shorter by default."""
        given = {"max_tokens": _GENERATE_TOKENS, **_given(sampling)}
        hooks = self._runtime.take_hooks(given)
        params = SamplingParams.for_model(self.loaded.generation, **given)
        self._runtime.check_sampling(params)
        return params, hooks

    @overload
    def prefill(
        self,
        prompt: str,
        cache: CacheConfig | None = None,
        *,
        system: str | None = None,
        chat: bool | None = None,
        progress: Callable[[int, int], object] | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> PromptCache: ...

    @overload
    def prefill(
        self,
        prompt: PromptIds,
        cache: CacheConfig | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> PromptCache: ...

    @public(
        cache=_CONFIG, system=optional(text), chat=optional(arguments.flag), progress=optional(arguments.function),
        save_to=optional(arguments.path),
    )  # fmt: skip
    def prefill(
        self,
        prompt: str | PromptIds,
        cache: CacheConfig | None = None,
        *,
        system: str | None = None,
        chat: bool | None = None,
        progress: Callable[[int, int], object] | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> PromptCache:
        """Prefill `prompt` into a PromptCache, to generate from, chat from, fork or save.

        If a saved chat of this model and these bounds has the same prefix, its rows are restored from disk instead.

        Args:
            prompt: text, or token ids: a list, a tuple or a one-dimensional array of numpy or MLX, shape (tokens,).
            cache: how to bound the cache.
            system: makes it the beginning of a chat: this system prompt, then `prompt` as the first message begins,
                for `Model.chat(cache=pc.fork())`. `chat=True` does so without a system prompt; otherwise it is raw
                text.
            chat: see `system`.
            progress: called with the number of tokens prefilled so far, and of all.
            save_to: where you will save it: raises before the prefill if the disk limit leaves too little space there.
                This does not save it.

        Raises:
            PromptError: there is nothing to prefill, or an id is not of this model.
            ConfigError: ids cannot begin a chat.
            OutOfMemoryError: the cache or the prefill would not fit; nothing was allocated.
            StoreError: see `save_to`.
        """
        return result_of(self.prefill_steps(prompt, cache, system=system, chat=chat, save_to=save_to), progress)

    def prefill_steps(
        self,
        prompt: str | PromptIds,
        cache: CacheConfig | None = None,
        *,
        system: str | None = None,
        chat: bool | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> Generator[tuple[int, int], None, PromptCache]:
        """`prefill` a chunk at a time; yields the number of tokens prefilled so far, and of all."""
        path = None if save_to is None else Path(save_to)
        return prefill_steps(self._runtime, prompt, cache, system, chat, path)

    def _completions(
        self,
        prompt: str | PromptIds,
        cache: PromptCache | CacheConfig | None,
        sampling: Sampling,
        n: int = 1,
    ) -> Callable[[], Iterator[Generation]]:
        """Check the arguments now; generations are made when they begin, since the cache may hold more by then."""
        given, started = checked_prompt(prompt, self._runtime.model_args), time.perf_counter()
        params, hooks = self._sampling(sampling)
        if isinstance(cache, PromptCache):
            self._runtime.check_cache(cache)

        def generations() -> Iterator[Generation]:
            held = cache if isinstance(cache, PromptCache) else self.make_cache(cache)
            raw = RawPrompt.after(held.log, given, self._runtime.prompts)
            parts = (self.runner, self.tokenizer, held, raw.ids)
            for i in range(n):
                yield Generation(
                    *parts,
                    params.for_sample(i),
                    started=None if i else started,
                    keeps_reply=n == 1 and held is cache,
                    keeps_prompt=n > 1,
                    hooks=hooks,
                    continued=raw.continued,
                )

        return generations

    # -- chats -------------------------------------------------------------------------------------------------------

    @public(
        *SAMPLING, system=optional(text), cache=_cache, autosave=arguments.flag, think=optional(arguments.flag)
    )  # fmt: skip
    def chat(
        self,
        system: str | None = None,
        cache: CacheConfig | PromptCache | None = None,
        *,
        messages: Sequence[Mapping[str, Any] | Message] | None = None,
        tools: Sequence[Callable[..., Any] | Mapping[str, Any] | Tool] | None = None,
        autosave: bool = False,
        think: bool | None = None,
        **sampling: Unpack[Sampling],
    ) -> Chat:
        """Begin a chat.

        Args:
            system: the system prompt.
            cache: how to bound it, or a PromptCache to begin with (it is changed: pass `pc.fork()` to keep it), which
                `prefill` made with a system prompt or `chat=True`, or `import_mlx_lm`.
            messages: what the chat begins with: ``{"role": "user", "content": "..."}``, with the roles system (first),
                user, assistant and tool, as OpenAI's clients write them; or `Chat.messages`. `Chat.ask` without a text
                answers them.
            tools: functions, described by their signature and docstring, or JSON schemas, which the model may call.
            autosave: make it a session at its first turn; otherwise only `Chat.save` does.
            think: whether the model should reason before it answers, if its template has a switch for that; None leaves
                it to the model.
            sampling: SamplingParams fields for all turns, e.g. ``max_tokens=400``; the model's own if left out.

        Raises:
            ConfigError: both a system prompt and a PromptCache, or a PromptCache that holds raw text; or tools that
                cannot be described, or that this model's chat template does not take.
            MismatchError: the PromptCache was made with another model.
            PromptError: a message is invalid; it is named by its number. ModelError: the chat template refuses it.
        """
        params = SamplingParams.for_model(self.loaded.generation, **sampling)
        self._runtime.check_sampling(params)
        own, turns = checked(() if messages is None else messages)
        if own is not None and (system is not None or isinstance(cache, PromptCache)):
            raise ConfigError("The messages begin with a system prompt, and there is another one; leave one out.")
        known = checked_tools(tools)
        chat = Chat(
            self._runtime,
            system=system if own is None else own,
            cache=cache,
            params=params,
            autosave=autosave,
            think=think,
            tools=known,
        )
        chat.begin_with(turns, int(own is not None))
        return chat

    @public(*SAMPLING, session=arguments.label, cache=_CONFIG, fork=arguments.flag)
    def resume(
        self,
        session: str,
        *,
        cache: CacheConfig | None = None,
        fork: bool = False,
        tools: Sequence[Callable[..., Any] | Mapping[str, Any] | Tool] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Chat:
        """Resume a session; rows that are on disk are restored and not prefilled again.

        A session that another process has open is read-only: `Chat.read_only` says who, and `Chat.fork` continues it.
        If nothing can be saved, the chat continues without its session and says so once. Settings that were stored with
        the chat in the window (`/set`, `/preset`) hold, unless `cache` or `sampling` say otherwise.

        Args:
            session: its title, its id, or a unique prefix of either.
            cache: another bound than the session had (its rows are then prefilled again).
            fork: leave the session unchanged and continue in a fork.
            tools: as for `chat`; None: the session's own, as JSON schemas. Give its functions again to call them; other
                tools change the beginning of the prompt, so that all is prefilled again.
            sampling: SamplingParams fields instead of those the session had.

        Raises:
            SessionNotFoundError: no session matches, or several do.
            CorruptError: the turns are damaged.
        """
        return self.reopen(self.store.sessions.find(session), cache=cache, fork=fork, tools=tools, **sampling)

    @public(*SAMPLING, session_id=arguments.label, cache=_CONFIG, fork=arguments.flag, own=arguments.flag)
    def reopen(
        self,
        session_id: str,
        *,
        cache: CacheConfig | None = None,
        fork: bool = False,
        tools: Sequence[Callable[..., Any] | Mapping[str, Any] | Tool] | None = None,
        own: bool = True,
        **sampling: Unpack[Sampling],
    ) -> Chat:
        """`resume` by the full id only, which no title can be mistaken for. `own`: apply the chat's own settings."""
        store, known = self.store, None if tools is None else checked_tools(tools)
        if fork and not store.read_only:
            session_id = store.fork(session_id)
        chat = resumed(self._runtime, store.load(session_id), cache, known, _given(sampling), own=own)
        store.enforce_limit()  # once the chat's lock is held, so that its own rows stay
        return chat

    # -- caches ------------------------------------------------------------------------------------------------------

    @public(config=_CONFIG, system=optional(text))
    def make_cache(self, config: CacheConfig | None = None, system: str | None = None) -> PromptCache:
        """Make an empty cache for this model.

        Args:
            config: how to bound it.
            system: a system prompt, which `sinks="system"` then pins.

        Raises:
            OutOfMemoryError: it could not be filled beside the weights, by the predicted peak; nothing was allocated.
        """
        return new_cache(self._runtime, config, system)

    @public(path=arguments.path)
    def load_cache(self, path: str | os.PathLike[str]) -> PromptCache:
        """Load a file that `PromptCache.save` wrote, and verify every byte of it.

        Raises:
            FileMissingError: no such file.
            MismatchError: it was made with another model; `field` says which part differs.
            CorruptError: the bytes are not what was written.
        """
        return self._runtime.load_cache(Path(path))

    @public(path=arguments.path, cache=_CONFIG)
    def import_mlx_lm(self, path: str | os.PathLike[str], cache: CacheConfig | None = None) -> PromptCache:
        """Load a prompt cache that mlx-lm saved (any version), to continue it; the file has no token ids.

        Rows of another floating type than this model computes in are converted where that loses nothing (a float16
        model runs in float32 on a CPU); `plan.notes` of the cache says so.

        The file becomes the model's earlier context, so import only files that you trust.

        Args:
            path: a `.safetensors` file of mlx-lm's.
            cache: how to bound it, if mlx-lm had not bounded or quantized it.

        Raises:
            FileMissingError: no such file.
            CorruptError: the file breaks a rule.
            MismatchError: it was made with another model.
            CacheError: this model has other caches than keys and values.
            OutOfMemoryError: the cache would not fit; nothing was allocated.
        """
        return self._runtime.import_mlx_lm(Path(path), cache)

    @public(text=text)
    def num_tokens(self, text: str) -> int:
        """The number of tokens of `text` in a message, without what the chat template adds; see `count`."""
        return len(self._runtime.prompts.encode_text(well_formed(text)))

    @public()
    def count(self, prompt: Prompt) -> int:
        """The number of tokens that `prompt` has as a prompt.

        Args:
            prompt: text or token ids, as `generate` takes them, a BOS token included; or a list of messages, as
                `generate_batch` takes it: what the chat template renders, up to where the reply begins. Messages may
                also end with a reply.

        Raises:
            PromptError: it is empty, an id is not of this model, or a message has no role or text.
            ModelError: the chat template refuses the messages.
        """
        return num_tokens_of(self._runtime, prompt)

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def runner(self) -> ModelRunner:
        """Prefill and decode on token ids."""
        return self._runtime.runner

    @property
    def store(self) -> SessionStore:
        """The sessions on this machine; opened at first use."""
        return self._runtime.store

    def open_store_for_one_reply(self) -> None:
        """Open the sessions, on a full disk for reading only: no later reply could be saved."""
        self._runtime.open_store_for_one_reply()

    @property
    def identity(self) -> ModelIdentity:
        """The hashes that must match before saved rows may be used."""
        return self._runtime.identity

    @property
    def has_chat_template(self) -> bool:
        """Whether messages are rendered by a template; without one they are passed as raw text."""
        return self._runtime.prompts.has_template

    @property
    def can_call_tools(self) -> bool:
        """Whether `chat` takes `tools`: the template has a place for them, and mlx-lm a parser of their calls."""
        return self._runtime.prompts.can_call_tools

    @public()
    def close(self) -> str | None:
        """Close it: replies end, its chats are saved and their sessions unlocked, and memory is freed: the weights, and
        the caches of chats. Whatever was taken from it, such as `loaded.model`, is of no use afterwards.

        A PromptCache that the caller refers to keeps its rows; save it before.

        Returns:
            One sentence if something could not be saved.
        """
        return self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{bytes_text(self.loaded.weight_bytes)} of weights" if self._runtime.is_open else "closed"
        return f"<Model {shown(self.name)} {state}>"


@public(
    name=arguments.model_name, folders=optional(instance(Folders)), limited=arguments.flag,
    progress=optional(arguments.function), cancel=optional(instance(threading.Event)), draft=_draft,
    adapter_path=optional(arguments.model_name), distributed=optional(check_wish),
)  # fmt: skip
def load(
    name: str | os.PathLike[str] = "tutor",
    *,
    folders: Folders | None = None,
    limited: bool = True,
    progress: Callable[[LoadProgress], None] | None = None,
    cancel: threading.Event | None = None,
    hub: Hub | None = None,
    draft: bool | str | os.PathLike[str] = True,
    adapter_path: str | os.PathLike[str] | None = None,
    distributed: Wish | None = None,
) -> Model:
    """Load a model: a built-in name, a local folder, or a Hugging Face repository id (`org/name[@revision]`).

    Args:
        name: a built-in name, a folder or a repository id; a path object is always a folder.
        folders: another place for chats and KV files, such as
            ``mlxkv.config.Folders.from_env({"MLXKV_HOME": "/some/folder"})``; None: where the `mlxkv` command has them.
        limited: False also tries to load a model that would not fit; the system may end the process.
        progress: called again and again with an object whose `phase` is "downloading" or "loading", and whose `done`
            and `total` are bytes (`total` is 0 while it is unknown).
        cancel: set this event in another thread to stop.
        hub: another hub or folder for downloads, an ``mlxkv.models.Hub(endpoint, cache_dir)``; None: HF_ENDPOINT and
            HF_HOME, as for other programs.
        draft: draft the next tokens where they occurred before, and verify them in one call, where that is faster; the
            text is the same as with False. A name, a repository id or a folder: that smaller model with the same
            tokenizer drafts, too.
        adapter_path: a LoRA adapter for the model, as `mlx_lm.lora` makes them: its folder or a repository id.
        distributed: in a script that `mlx.launch` starts on several machines: each loads its part of the model.
            "tensor" gives every machine some heads of each layer, "pipeline" whole layers, "auto" what the model has;
            alone, "auto" loads all of it. The first process gets the Model, the others compute and end with it.

    Raises:
        ModelError: and its kinds; one sentence each. MismatchError: the draft model has another tokenizer.
        MachineError: another machine failed, cannot be reached, or has other files.
        OutOfMemoryError: it would not fit.
    """
    device = None if limited else replace(current_device(), memory_limit=1 << 62)
    adapter = None if adapter_path is None else os.fspath(adapter_path)

    def load_part(name: str, split: ModelSplit | None) -> LoadedModel:
        return load_model(name, device=device, progress=progress, cancel=cancel, hub=hub, adapter=adapter, split=split)

    if distributed is None:
        loaded = load_part(os.fspath(name), None)
    else:
        from mlxkv.distributed.start import load_together  # as few imports as possible on one machine

        loaded = load_together(
            os.fspath(name), distributed, load_part, limited=limited, adapter=adapter, folders=folders
        )
    if isinstance(draft, bool):
        return Model(loaded, folders, limited=limited, draft=draft)
    device = device or current_device()
    device = replace(device, memory_limit=max(device.memory_limit - loaded.weight_bytes, 1))
    drafter = load_model(os.fspath(draft), device=device, progress=progress, cancel=cancel, hub=hub)
    check_same_tokenizer(loaded, drafter)
    return Model(loaded, folders, limited=limited, draft=drafter)
