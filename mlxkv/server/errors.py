"""ApiError: an error in OpenAI's shape, and which of mlxkv's errors becomes which. Pure; any thread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxkv.errors import (
    ConfigError,
    MessageTooLongError,
    MlxkvError,
    ModelNotFoundError,
    OutOfMemoryError,
    PromptError,
    QueueFullError,
)

RETRY_SECONDS = 1  # after which a client that was refused may try again


@dataclass(eq=False)  # not frozen: `raise` and `with` set attributes of an exception
class ApiError(Exception):
    """An error that a client is told.

    Attributes:
        status: of HTTP.
        message: one sentence.
        param: the field of the request that it is about.
        code: OpenAI's, for programs.
        headers: of the response.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 403:
            return "permission_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self, request_id: str) -> dict[str, Any]:
        """The response's JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | {"request_id": request_id}}

    def __str__(self) -> str:
        return self.message


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, message, param, code)


def unsupported(param: str, why: str) -> ApiError:
    """A field, or a value of it, that this server does not honour."""
    return ApiError(400, f"`{param}` is not supported here: {why}.", param, "unsupported_parameter")


def busy(num_waiting: int) -> ApiError:
    """The line of waiting requests is full."""
    message = f"{num_waiting:,} requests are waiting, and no more may; try again in {RETRY_SECONDS} s."
    return ApiError(429, message, None, "rate_limit_exceeded", {"Retry-After": str(RETRY_SECONDS)})


def too_long(num_tokens: int, window: int) -> ApiError:
    """A prompt that the window does not hold."""
    message = (
        f"The prompt has {num_tokens:,} tokens, and the window holds {window:,}, one of which the reply needs; shorten "
        "it, or start the server with a larger `--window`."
    )
    return ApiError(400, message, "messages", "context_length_exceeded")


def of_error(error: BaseException) -> ApiError:
    """The ApiError that tells a client about an error of mlxkv's; of any other only that it happened."""
    match error:
        case ApiError():
            return error
        case MessageTooLongError() | PromptError() | ConfigError():
            return ApiError(400, str(error))
        case QueueFullError():
            return ApiError(429, str(error), None, "rate_limit_exceeded", {"Retry-After": str(RETRY_SECONDS)})
        case ModelNotFoundError():
            return ApiError(404, str(error), "model", "model_not_found")
        case OutOfMemoryError():
            return ApiError(503, str(error), None, "out_of_memory")
        case MlxkvError():
            return ApiError(500, str(error))
    return ApiError(500, "The server failed on this request; its log says why.")


def shown(value: Any) -> str:
    """A value of a request, short, for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
