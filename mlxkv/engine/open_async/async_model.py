"""AsyncModel, which `mlxkv.open_async` opens: a model for `asyncio`, on a thread of its own.

Forwards what is asked to a RequestThread, which owns MLX; the event loop never waits for it. Knows no event loop
itself: an open model may be used in one loop after the other, or from several threads with a loop each.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from mlxkv import arguments
from mlxkv.engine.open_async.async_chat import AsyncChat, AsyncPromptCache
from mlxkv.engine.open_async.async_events import AsyncEvents
from mlxkv.engine.open_async.held import Held
from mlxkv.engine.request_thread import MAX_WAITING, RequestThread
from mlxkv.engine.requests import RequestSpec, plain_prompt
from mlxkv.errors import MlxkvError
from mlxkv.events import Message, PrefillProgress, TurnEvent
from mlxkv.inference.sampling_types import Sampling
from mlxkv.model import Completion, Model, load

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.chat.batches import Prompt
    from mlxkv.chat.chat import Chat
    from mlxkv.chat.tools import Tool
    from mlxkv.config import Folders
    from mlxkv.inference.scores import Choice, Normalize, Score
    from mlxkv.models import Hub, LoadProgress

R = TypeVar("R")
_AT_ONCE = 64  # prompts of one batch that are in line or answered


class AsyncModel:
    """A loaded model, which `mlxkv.open_async` opens. Requests are answered together, and chats beside them.

    Attributes:
        name: its name.
    """

    name: str

    def __init__(self, thread: RequestThread) -> None:
        self._thread = thread

    # -- text --------------------------------------------------------------------------------------------------------

    def stream(
        self,
        prompt: Prompt,
        *,
        cache: AsyncPromptCache | CacheConfig | None = None,
        think: bool | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncEvents:
        """Answer one prompt, as events for `async for`: PrefillProgress, TextDelta, Notice and, at the end, one
        ReplyFinished.

        Leaving the loop cancels the request before its next chunk or token.

        Args:
            prompt: text or token ids, which are continued, or a list of messages, which the chat template renders.
            cache: a prompt cache to continue, which is not changed, or how to bound a new one.
            think: for messages: whether the model should reason, if its template has a switch for that.
            deadline: seconds from when the request is in line; then the reply ends as it is, with the finish reason
                "deadline".
            timeout: seconds from then; then it is cancelled and a TimeoutError raised.
            sampling: as for `Model.generate`, `max_tokens` 256 if left out.

        Raises (the first step of the loop):
            QueueFullError: too many are waiting. ClosedError: the model is closed.
            PromptError, ConfigError, ModelError, MismatchError, OutOfMemoryError: as `Model.generate_batch`.
        """
        return self._stream(prompt, cache, think, deadline, timeout, sampling)

    def _stream(
        self,
        prompt: Prompt,
        cache: AsyncPromptCache | CacheConfig | None,
        think: bool | None,
        deadline: float | None,
        timeout: float | None,
        sampling: Sampling,
        sample: int = 0,
    ) -> AsyncEvents:
        handle = cache if isinstance(cache, AsyncPromptCache) else None
        spec = RequestSpec(
            plain_prompt(prompt),
            {**sampling},
            None if isinstance(cache, AsyncPromptCache) else cache,
            _seconds("deadline", deadline),
            think,
            sample,
        )
        get = handle.held.get if handle else None
        return AsyncEvents(
            self._thread, lambda sink: self._thread.submit(spec, sink, get), _seconds("timeout", timeout)
        )

    @overload
    async def generate(
        self,
        prompt: Prompt,
        *,
        cache: AsyncPromptCache | CacheConfig | None = None,
        n: Literal[1] = 1,
        think: bool | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion: ...

    @overload
    async def generate(
        self,
        prompt: Prompt,
        *,
        cache: AsyncPromptCache | CacheConfig | None = None,
        n: int,
        think: bool | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[Completion]: ...

    async def generate(
        self,
        prompt: Prompt,
        *,
        cache: AsyncPromptCache | CacheConfig | None = None,
        n: int = 1,
        think: bool | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion | list[Completion]:
        """Answer one prompt; arguments and errors are those of `stream`.

        Args:
            n: how many texts. With 2 or more the result is a list, and each has a seed made from `seed`.
        """
        n = arguments.whole("n", n, 1)
        found = [self._stream(prompt, cache, think, deadline, timeout, sampling, i).completion() for i in range(n)]
        return await found[0] if n == 1 else await _all(found)

    async def generate_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        cache: AsyncPromptCache | CacheConfig | None = None,
        think: bool | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[Completion]:
        """Answer many prompts, as many at once as fit in memory; the results are in the order of the prompts.

        At most 64 of them are in line at a time, and others' requests come in between. Arguments and errors are those
        of `stream`; `deadline` and `timeout` count for all prompts together. An error ends the whole batch, and its
        message has the index of its prompt.
        """
        asked, places = list(prompts), asyncio.Semaphore(_AT_ONCE)
        started, most, _ = time.perf_counter(), _seconds("deadline", deadline), _seconds("timeout", timeout)

        async def answer(i: int, prompt: Prompt) -> Completion:
            async with places:
                left = None if most is None else max(most - (time.perf_counter() - started), 0.0)
                try:
                    return await self._stream(prompt, cache, think, left, None, sampling).completion()
                except MlxkvError as error:
                    error.args = (f"prompts[{i}]: {error}",)
                    raise

        async with asyncio.timeout(timeout):
            return await _all([answer(i, prompt) for i, prompt in enumerate(asked)])

    async def count(self, prompt: Prompt) -> int:
        """The number of tokens that `prompt` has as a prompt; see `Model.count`."""
        plain = plain_prompt(prompt)
        return await self.run(lambda model: model.count(plain))

    async def score(self, text: str, *, cache: AsyncPromptCache | CacheConfig | None = None) -> Score:
        """How probable `text` is, in chunks between which others' replies continue; see `Model.score`."""
        held = _held(cache)
        return await self._result(lambda model: model.score_steps(text, cache=held()))

    async def choose(
        self,
        options: Iterable[str],
        *,
        cache: AsyncPromptCache | CacheConfig | None = None,
        normalize: Normalize = "none",
    ) -> Choice:
        """The most probable of several texts, computed as by `score`; see `Model.choose`."""
        held, texts = _held(cache), list(options)
        return await self._result(lambda model: model.choose_steps(texts, cache=held(), normalize=normalize))

    async def _result(self, steps: Callable[[Model], Generator[tuple[int, int], None, R]]) -> R:
        """The result of what is done a step in each round."""
        found: list[R] = []

        def events(model: Model) -> Generator[TurnEvent]:
            found.append((yield from _as_events(steps(model))))

        async for _ in AsyncEvents(self._thread, lambda sink: self._thread.iterate(events, sink)):
            pass
        return found[0]

    async def run(self, function: Callable[[Model], R]) -> R:
        """Call a function of the Model on the MLX thread, for what this class has no method for:
        ``await model.run(lambda model: model.store.list())``.

        It should take milliseconds, as all replies wait for it, and return plain values: no chat, cache or array.
        """
        return await asyncio.wrap_future(self._thread.call(function))

    # -- chats and caches ----------------------------------------------------------------------------------------------

    def chat(
        self,
        system: str | None = None,
        cache: CacheConfig | AsyncPromptCache | None = None,
        *,
        messages: Sequence[Mapping[str, Any] | Message] | None = None,
        tools: Sequence[Callable[..., Any] | Mapping[str, Any] | Tool] | None = None,
        autosave: bool = False,
        think: bool | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncChat:
        """Begin a chat; see `Model.chat`. A prompt cache is not changed.

        Errors in the arguments are raised by the first thing that is asked of the chat.
        """

        def made(model: Model) -> Chat:
            bounds = cache.held.get().fork() if isinstance(cache, AsyncPromptCache) else cache
            return model.chat(
                system, bounds, messages=messages, tools=tools, autosave=autosave, think=think, **sampling
            )

        return AsyncChat(self._thread, made)

    async def resume(
        self,
        session: str,
        *,
        cache: CacheConfig | None = None,
        fork: bool = False,
        tools: Sequence[Callable[..., Any] | Mapping[str, Any] | Tool] | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncChat:
        """Resume a session; see `Model.resume`."""

        def made(model: Model) -> Chat:
            return model.resume(session, cache=cache, fork=fork, tools=tools, **sampling)

        return await AsyncChat(self._thread, made).made()

    async def prefill(
        self,
        prompt: str | Sequence[int],
        cache: CacheConfig | None = None,
        *,
        system: str | None = None,
        chat: bool | None = None,
        progress: Callable[[int, int], object] | None = None,
        save_to: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> AsyncPromptCache:
        """Prefill text or token ids into a prompt cache, in chunks between which others' replies continue; see
        `Model.prefill`. `timeout`: seconds; then a TimeoutError is raised.
        """
        plain: Any = plain_prompt(prompt)

        def steps(model: Model) -> Generator[TurnEvent, None, PromptCache]:
            made = model.prefill_steps(plain, cache, system=system, chat=chat, save_to=save_to)
            return (yield from _as_events(made))

        held = Held(self._thread, steps)
        async for event in AsyncEvents(self._thread, held.fill, _seconds("timeout", timeout)):
            if progress is not None and isinstance(event, PrefillProgress):
                progress(event.done, event.total)
        return await AsyncPromptCache.of(self._thread, held)

    async def load_cache(self, path: str | os.PathLike[str]) -> AsyncPromptCache:
        """Load a file that `save` wrote; see `Model.load_cache`."""
        return await AsyncPromptCache.of(self._thread, Held.of(self._thread, lambda model: model.load_cache(path)))

    async def import_mlx_lm(self, path: str | os.PathLike[str], cache: CacheConfig | None = None) -> AsyncPromptCache:
        """Load a prompt cache that mlx-lm saved; see `Model.import_mlx_lm`."""
        held = Held.of(self._thread, lambda model: model.import_mlx_lm(path, cache))
        return await AsyncPromptCache.of(self._thread, held)

    async def close(self, *, finish: bool = False) -> None:
        """End what runs, close all chats and the model, and end the thread; who waits for a reply gets a ClosedError.

        Args:
            finish: finish first what was asked for; nothing new is accepted.
        """
        await asyncio.wrap_future(self._thread.begin_close(finish=finish))
        self._thread.close()


class _Opening(AbstractAsyncContextManager[AsyncModel]):
    """What `open_async` returns: for `async with`, or `await`."""

    def __init__(self, thread: RequestThread) -> None:
        self._thread, self._model = thread, AsyncModel(thread)

    async def _begin(self) -> AsyncModel:
        opened = self._thread.start()
        try:
            await asyncio.wrap_future(opened)
        except BaseException:
            self._thread.begin_close()
            raise
        self._model.name = await self._model.run(lambda model: model.name)
        return self._model

    def __await__(self) -> Generator[Any, None, AsyncModel]:
        return self._begin().__await__()

    async def __aenter__(self) -> AsyncModel:
        return await self._begin()

    async def __aexit__(self, *_: object) -> None:
        await self._model.close()


def open_async(
    name: str | os.PathLike[str] = "tutor",
    *,
    folders: Folders | None = None,
    limited: bool = True,
    progress: Callable[[LoadProgress], None] | None = None,
    hub: Hub | None = None,
    draft: bool | str | os.PathLike[str] = True,
    adapter_path: str | os.PathLike[str] | None = None,
    max_waiting: int = MAX_WAITING,
) -> _Opening:
    """Load a model on a thread of its own, for `asyncio`: ``async with mlxkv.open_async("tutor") as model:``, or
    ``model = await mlxkv.open_async("tutor")``, which ``await model.close()`` ends, or the end of the process.

    Args:
        name, folders, limited, progress, hub, draft, adapter_path: as for `mlxkv.load`; `progress` is called on that
            thread.
        max_waiting: the most requests and replies that wait in line; more raise a QueueFullError.

    Raises (when it is entered or awaited):
        ModelError, MismatchError, OutOfMemoryError: as `mlxkv.load`.
    """
    most = arguments.whole("max_waiting", max_waiting, 1)

    def loaded(cancel: threading.Event) -> Model:
        return load(
            name, folders=folders, limited=limited, progress=progress, cancel=cancel, hub=hub, draft=draft,
            adapter_path=adapter_path,
        )  # fmt: skip

    return _Opening(RequestThread(loaded, max_waiting=most))


def _held(cache: AsyncPromptCache | CacheConfig | None) -> Callable[[], PromptCache | CacheConfig | None]:
    """For the MLX thread: returns what `cache` stands for."""
    return cache.held.get if isinstance(cache, AsyncPromptCache) else lambda: cache


def _seconds(name: str, value: float | None) -> float | None:
    return None if value is None else arguments.number(name, value, 0.0, 1e9)


async def _all(found: Iterable[Any]) -> list[Any]:
    """The results of all, in order; the first error cancels the others."""
    tasks = [asyncio.ensure_future(one) for one in found]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _as_events(steps: Generator[tuple[int, int], None, R]) -> Generator[TurnEvent, None, R]:
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            return end.value
        yield PrefillProgress(done, total, 0, 0.0)
