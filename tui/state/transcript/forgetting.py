"""The rule in the transcript below what the model no longer attends to: its place and its words. Pure; UI thread.

`mlxkv/engine/handlers/unattended.py` finds the tokens; `tui/widgets/line_layout.py` puts the rule into the lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxkv.events import Message
from mlxkv.protocol.status import Unattended
from mlxkv.stats import plural
from mlxkv.text.clean import clean
from mlxkv.tui.state.prompt.attachments import split_attachments


@dataclass(frozen=True)
class Rule:
    """A rule in message number `message`, after `chars` characters of the text shown; None: above it, though only its
    end is attended. Messages before number `first` are pinned."""

    message: int
    chars: int | None
    first: int
    found: Unattended


def rule_of(found: Unattended | None, messages: Sequence[Message]) -> Rule | None:
    """The rule for what the engine found in a chat of `messages`, to which a reply in progress may be added."""
    if found is None:
        return None
    chars = found.chars
    if chars and found.message < len(messages):
        text = messages[found.message].text
        shown, files = split_attachments(text) if messages[found.message].role == "user" else (text, [])
        chars = None if files and chars > len(shown) else len(clean(text[:chars], joined=True))  # files are not shown
    return Rule(found.message, chars, found.pinned_messages, found)


def rule_text(rule: Rule, width: int) -> str:
    """`the model no longer sees what is above · 412 tok of 6 messages · the system prompt stays`: at most `width`
    characters, with fewer facts where there is less room."""
    found = rule.found
    what = "only the recurrent state holds" if found.in_state else "the model no longer sees"
    what += " what is above"
    what += ", and of this message only the end" if rule.chars is None else ""
    tokens = f"{found.tokens:,} tok"
    stays = f"the first {found.pinned:,} tok stay" if found.pinned else ""
    if found.pinned_messages:
        stays = "the first message stays" if found.pinned_messages == 1 else f"{found.pinned_messages} messages stay"
    elif found.pins_system:
        stays = "system prompt stays"
    choices = (
        (what, f"{tokens} of {plural(found.num_messages, 'message')}", stays),
        (what, tokens, stays),
        (what, tokens),
        (what,),
        ("not seen any more", tokens),
    )
    texts = [" · ".join(filter(None, parts)) for parts in choices]
    return next((text for text in texts if len(text) <= width), texts[-1])
