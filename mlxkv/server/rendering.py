"""A job's messages as a prompt: the chat template, with tools. On the MLX thread."""

from __future__ import annotations

from mlxkv.chat.prompt import Message, PromptFormat, PromptState, message
from mlxkv.errors import ModelError
from mlxkv.server.errors import invalid
from mlxkv.server.jobs import Job
from mlxkv.text.encoding import well_formed


def render(prompts: PromptFormat, job: Job, before: PromptState) -> PromptState:
    """The prompt of a job, after the state `before`.

    Raises:
        ApiError: the chat template refuses these messages.
    """
    try:
        return prompts.prompt(_messages(job), before, job.think)
    except ModelError as error:
        raise invalid("messages", str(error)) from error


def rendered_text(prompts: PromptFormat, job: Job) -> str:
    """The text of that prompt.

    Raises:
        ModelError: as above.
    """
    return prompts.render(_messages(job), think=job.think) if prompts.has_template else ""


def _messages(job: Job) -> list[Message]:
    return [message(m.role, well_formed(m.text), well_formed(m.thinking)) for m in job.messages]
