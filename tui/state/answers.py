"""Events that answer a question of the user's and change nothing in the chat: lists, trees, figures. Pure; UI."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.stats import bytes_text, disk_text
from mlxkv.tui.state import choice_lists as lists
from mlxkv.tui.state import reports
from mlxkv.tui.state.transcript import title_line

if TYPE_CHECKING:
    from mlxkv.tui.state.chat_state import ChatState


def take(state: ChatState, event: ev.EngineEvent) -> None:
    """Answer the user; other events are none of ours."""
    match event:
        case ev.ChatList(chats):
            state.answered(cmd.ListChats)
            state.chats = chats
            state.choose(chats)
        case ev.ChatTree(branches):
            state.answered(cmd.ShowTree)
            if len(branches) > 1:
                state.show(lists.tree_list(branches, state.today()))
            else:
                state.say("This chat has no branches yet; /fork, /edit and /retry make them.")
        case ev.ChatHits(words, hits):
            state.answered(cmd.SearchChats)
            state.show(lists.hits_list(words, hits))
        case ev.ChatRenamed(session_id, title):
            state.answered(cmd.RenameChat)
            if session_id == state.session_id or state.session_id is None:
                state.title = title_line(title)
            state.chats = tuple(replace(c, title=title) if c.id == session_id else c for c in state.chats)
            state.say(f"Renamed: “{title}”.")
        case ev.ChatDeleted(session_id, title):
            state.answered(cmd.DeleteChat)
            state.chats = tuple(c for c in state.chats if c.id != session_id)
            tell = state.say_after_opening if session_id == state.session_id else state.say
            tell(f"Deleted “{title}”.")
        case ev.ChatExported(path):
            state.answered(cmd.ExportChat)
            state.say(f"Written to {path}")
        case ev.SettingsApplied(text):
            state.answered(cmd.ChangeSettings, cmd.SetSystem)
            if text:
                state.say(text)
        case ev.CacheList():
            state.answered(cmd.ListCache)
            state.show(lists.cache_list(event, state.today()))
        case ev.CacheCollected(freed, used):
            state.answered(cmd.CollectCache)
            what = f"Freed {bytes_text(freed)}" if freed else "Nothing to remove"
            state.say(f"{what}; KV on disk in all: {disk_text(used, state.status.disk_limit)}.")
        case ev.ChatPinned(_, pinned):
            state.answered(cmd.PinChat)
            stays = "stay on disk whatever else wants the room; /cache pin again lets them go"
            state.say(f"The rows of this chat {stays if pinned else 'may go again when others want the room'}.")
        case ev.TokensCounted(key, tokens):
            state.token_counts.set_count(key, tokens)
        case ev.CompactPlan():
            state.answered(cmd.PlanCompact)
            state.show(lists.compact_list(event))
        case ev.Compacted():
            state.answered(cmd.Compact)
            state.say(reports.compacted_text(event))
        case ev.ModelTooLarge():
            state.answered(cmd.LoadModel)
            state.show(lists.too_large_list(event))
        case ev.ModelList(models, only_fitting):
            state.answered(cmd.ListModels)
            state.models = models
            state.show(lists.models_list(models, state.model, bool(state.messages), only_fitting))
        case ev.ModelMissing(name, size):
            state.answered(cmd.LoadModel)
            state.show(lists.missing_model(name, size))
        case ev.ContextUsage():
            state.answered(cmd.ShowContext)
            state.say_lines([reports.context_text(event), *reports.context_rows(event)])
        case ev.SessionStats():
            state.answered(cmd.ShowStats)
            state.say_lines(reports.stats_lines(event))
