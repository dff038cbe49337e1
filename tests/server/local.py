"""An endpoint driven on the thread of the test: a job in, its events out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlxkv
from mlxkv.inference.generation import Generation
from mlxkv.server.endpoint import Endpoint, EndpointOptions
from mlxkv.server.jobs import Accepted, ChatMessage, Ended, Job, JobEvent

SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 12}  # ids that are seldom those of their text
CONFIG = mlxkv.CacheConfig(window=1024, block=64)


def messages(*texts: str, system: str | None = None) -> tuple[ChatMessage, ...]:
    """A conversation that begins with the user."""
    head = () if system is None else (ChatMessage("system", system),)
    return (*head, *(ChatMessage("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)))


class Local:
    """An Endpoint and a scheduler."""

    def __init__(self, model: mlxkv.Model, **options: Any) -> None:
        self.model = model
        self.endpoint = Endpoint(model, EndpointOptions(**{"cache": CONFIG, "num_slots": 3, **options}))
        self.scheduler = model.scheduler()
        self._ids = iter(range(1 << 20))

    def run(self, *jobs: Job) -> list[list[Ended]]:
        """The replies of jobs that run together."""
        found: list[list[Ended]] = []
        accepted: list[Accepted] = []
        keys = []
        for job in jobs:
            keys.append(next(self._ids))
            accepted.append(self.endpoint.prepare(keys[-1], job))
            found.append([])
        for first in (True, False):
            for key, job, ends in zip(keys, jobs, found, strict=True):
                for index in [0] if first else range(1, job.n):
                    self._submit(key, index, ends)
            self.scheduler.run()
        for key in keys:
            self.endpoint.forget(key)
        return found

    def _submit(self, key: int, index: int, ends: list[Ended]) -> None:
        def emit(event: JobEvent | BaseException | None) -> None:
            assert not isinstance(event, BaseException), event
            if isinstance(event, Ended):
                ends.append(event)

        sink = self.endpoint.sink(key, index, emit)

        def put(event: Any) -> None:
            sink.put(event)
            if isinstance(event, mlxkv.TurnFinished):
                sink.end(None)

        self.scheduler.submit(self.endpoint.request(sink, next(self._ids)), put)

    def say(self, conversation: Sequence[ChatMessage], **more: Any) -> Ended:
        """The reply to a conversation."""
        return self.run(Job(tuple(conversation), sampling={**SAMPLED, **more}))[0][0]

    def alone(self, conversation: Sequence[ChatMessage]) -> str:
        """The reply that the prompt has in an empty cache of its own, by the ids that the endpoint made of it."""
        key = next(self._ids)
        self.endpoint.prepare(key, Job(tuple(conversation), sampling=SAMPLED))
        prepared = self.endpoint._prepared.pop(key)
        match = prepared.match
        assert match is not None
        runtime, cache = self.model._runtime, self.model.make_cache(CONFIG)
        reader = match.prompts.reader(match.state)
        generation = Generation(runtime.runner, runtime.tokenizer, cache, prepared.ids, prepared.params, reader=reader)
        for _ in generation.events():
            pass
        return generation.text
