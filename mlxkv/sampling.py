"""SamplingParams, checked here and turned into mlx-lm's own sampler and logits processors.

Pure values until `make_sampler` is called, on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from mlxkv.errors import ConfigError

if TYPE_CHECKING:
    import mlx.core as mx

DEFAULT_MAX_TOKENS = 4096
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.95


PENALISED = 64  # tokens, the last ones: penalties look at fewer


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    Args:
        temperature: 0 always takes the likeliest token.
        top_p, top_k, min_p: nucleus, count and relative-probability cuts; 0 (or top_p 1) turns a cut off.
        max_tokens: the most tokens of one reply.
        seed: makes sampling repeatable; None continues the thread's random state.
        stop: strings that end the reply and are not part of it; one may be given by itself.
        repetition_penalty, presence_penalty, frequency_penalty: mlx-lm's, over the last 20 tokens; None is off.

    Raises:
        ConfigError: a value out of its range; the message names field, value and range.
    """

    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def __post_init__(self) -> None:
        _between("temperature", self.temperature, 0.0, 100.0)
        _between("top_p", self.top_p, 0.0, 1.0)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("top_k", self.top_k, 0, 10_000_000)
        _between("max_tokens", self.max_tokens, 1, 10_000_000)
        if self.seed is not None:
            _between("seed", self.seed, 0, 2**64 - 1)
        if self.repetition_penalty is not None:
            _between("repetition_penalty", self.repetition_penalty, 0.0, 100.0)
        object.__setattr__(self, "stop", _strings(self.stop))

    @classmethod
    def for_model(cls, generation: Mapping[str, Any], **chosen: Any) -> SamplingParams:
        """What the caller chose, else what the model's generation_config.json recommends, else the defaults."""
        params = cls()
        known = {f.name for f in fields(cls)}
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
            value = generation.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    params = replace(params, **{name: value})
                except ConfigError:
                    continue  # a model's own file may hold nonsense; the default is better than a refusal
        if generation.get("do_sample") is False:
            params = replace(params, temperature=0.0)
        for name, value in chosen.items():
            if name not in known:
                raise ConfigError(f"`{name}` is no sampling parameter; there are {', '.join(sorted(known))}.")
            if value is not None:
                params = replace(params, **{name: value})
        return params

    def make_sampler(self) -> Callable[[mx.array], mx.array]:
        """From log-probabilities (1, vocab) to token ids (1,)."""
        from mlx_lm.sample_utils import make_sampler

        return make_sampler(temp=self.temperature, top_p=self.top_p, min_p=self.min_p, top_k=self.top_k)

    def make_logits_processors(self) -> list[Callable[[mx.array, mx.array], mx.array]]:
        """Functions of (token ids so far, logits (1, vocab)) that return changed logits."""
        from mlx_lm.sample_utils import make_logits_processors

        return make_logits_processors(
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )


def random_state() -> bytes:
    """This thread's random state, to go on from later."""
    import mlx.core as mx

    state: Any = mx.random.state
    return b"".join(int(half).to_bytes(4, "big") for half in state[0].tolist())  # a key: two uint32


def set_random_state(state: bytes) -> None:
    """Go on from what `random_state` gave. A state of another size is passed over: it only makes sampling differ."""
    import mlx.core as mx

    if len(state) == 8:
        mx.random.seed(int.from_bytes(state, "big"))  # a seed's two halves are the key


def _strings(stop: Any) -> tuple[str, ...]:
    """`stop`, whichever way it was given: a string is one stop string, and not one for each of its letters."""
    found: tuple[Any, ...] = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (0,)
    if not all(isinstance(s, str) and s for s in found):
        raise ConfigError(f"`stop` is {stop!r}; it must be a string or a list of strings, none of them empty.")
    return found


def _between(field: str, value: Any, low: float, high: float) -> None:
    kind = int if isinstance(low, int) else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        whole = "a whole number" if isinstance(low, int) else "a number"
        raise ConfigError(f"`{field}` is {value!r}; it must be {whole} from {low:,} to {high:,}.")
