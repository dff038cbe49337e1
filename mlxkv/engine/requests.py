"""Requests for the MLX thread: what a caller asks for, in plain values, and how it becomes a request of the scheduler.

A RequestSpec may be made on any thread; RequestMaker belongs to the MLX thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlxkv import arguments
from mlxkv.arguments import shown
from mlxkv.errors import PromptError

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.chat.batches import BatchPrompts, Prompt
    from mlxkv.model import Model
    from mlxkv.scheduler import Request

_MAX_TOKENS = 256  # of a reply, as in `Model.generate`
_MAX_BOUNDS = 8  # kinds of caches whose empty ones are kept, for prompts to share a beginning


@dataclass(frozen=True)
class RequestSpec:
    """One prompt and how it is answered.

    Attributes:
        prompt: text or token ids, which are continued, or a list of messages, which the chat template renders; see
            `plain_prompt`.
        sampling: SamplingParams fields, the model's own for those that are left out, and 256 tokens; and hooks, whose
            functions are called on the MLX thread.
        cache: how to bound the KV cache.
        deadline: seconds; then the reply ends as it is, with the finish reason "deadline".
        think: the switch of the chat template for reasoning; None leaves it to the model.
        sample: which of several texts for one prompt: each has a seed made from `seed`.
    """

    prompt: Prompt
    sampling: Mapping[str, Any] = field(default_factory=dict)
    cache: CacheConfig | None = None
    deadline: float | None = None
    think: bool | None = None
    sample: int = 0


def plain_prompt(prompt: Any) -> Prompt:
    """`prompt` as text, a tuple of ids, or a tuple of new dicts, which the caller cannot change afterwards.

    Raises:
        ArgumentError: it is none of these. PromptError: it has too many ids.
    """
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list | tuple) and any(isinstance(item, Mapping) for item in prompt):
        for i, item in enumerate(prompt):
            if not isinstance(item, Mapping):
                raise PromptError(f"Message {i} is {shown(item)}; it must have a `role` and a `content`.")
        return tuple(dict(item) for item in prompt)
    return tuple(arguments.token_ids("prompt", prompt))


class RequestMaker:
    """Makes requests on one model. Requests with the same bounds share empty caches, so that the scheduler can copy a
    beginning that their prompts share."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._made: dict[tuple[CacheConfig | None, bool | None], BatchPrompts] = {}

    def request(self, name: int, spec: RequestSpec, cache: PromptCache | None = None) -> Request:
        """The request `name`; one with a `cache` continues that, and does not change it.

        Raises:
            MlxkvError: as for `Model.generate_batch`.
        """
        prompts = self._prompts(spec) if cache is None else self._model.batch_prompts(cache, spec.think)
        from mlxkv.inference.sampling import SamplingParams

        chosen = {"max_tokens": _MAX_TOKENS, **{k: v for k, v in spec.sampling.items() if v is not None}}
        hooks = prompts.hooks(chosen)
        params = SamplingParams.for_model(self._model.loaded.generation, **chosen).for_sample(spec.sample)
        return prompts.request(name, spec.prompt, params, spec.deadline, hooks)

    def _prompts(self, spec: RequestSpec) -> BatchPrompts:
        key = spec.cache, spec.think
        made = self._made.pop(key, None)
        if made is None or not made.is_current:
            made = self._model.batch_prompts(spec.cache, spec.think)
        self._made[key] = made
        if len(self._made) > _MAX_BOUNDS:
            del self._made[next(iter(self._made))]
        return made
