"""A job's messages as a prompt: the chat template, with tools. On the MLX thread."""

from __future__ import annotations

from mlxkv.chat.prompts.messages import template_messages, without_tools
from mlxkv.chat.prompts.prompt import Message, PromptFormat, PromptState
from mlxkv.chat.tools import Tool
from mlxkv.errors import ConfigError, ModelError
from mlxkv.events import ToolCall
from mlxkv.server.errors import invalid
from mlxkv.server.jobs import Job
from mlxkv.store.records import TurnRecord


def prompts_for(prompts: PromptFormat, job: Job) -> PromptFormat:
    """The chat template with a job's tools.

    Raises:
        ApiError: this model's template takes none.
    """
    try:
        return prompts.with_tools([Tool(schema) for schema in job.tools])
    except ConfigError as error:
        raise invalid("tools", str(error)) from error


def render(prompts: PromptFormat, job: Job, before: PromptState) -> PromptState:
    """The prompt of a job, after the state `before`; `prompts` are those of `prompts_for`.

    Raises:
        ApiError: the chat template refuses these messages.
    """
    try:
        return prompts.prompt(_messages(prompts, job), before, job.think)
    except ModelError as error:
        raise invalid("messages", str(error)) from error


def rendered_text(prompts: PromptFormat, job: Job) -> str:
    """The text of that prompt.

    Raises:
        ModelError: as above.
    """
    return prompts.render(_messages(prompts, job), think=job.think) if prompts.has_template else ""


def _messages(prompts: PromptFormat, job: Job) -> list[Message]:
    messages = job.messages
    system = messages[0].text if messages[0].role == "system" else None
    turns = [
        TurnRecord(
            m.role,
            m.text,
            thinking=m.thinking,
            tool_calls=tuple(ToolCall(c.name, c.arguments, c.id) for c in m.calls),
            tool_call_id=m.call_id,
        )
        for m in (messages if system is None else messages[1:])
    ]
    turns = turns if prompts.shows_calls else without_tools(turns)
    return template_messages(system, turns, joined=prompts.has_template)
