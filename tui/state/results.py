"""Handle the engine's results that do not change the open chat: lists, trees, figures. Pure; UI thread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.stats import bytes_text, disk_text
from mlxkv.tui.state.lists import choice_lists, setting_lists
from mlxkv.tui.state.reports import reports
from mlxkv.tui.state.reports.report import Report
from mlxkv.tui.state.reports.saved_text import saved_text
from mlxkv.tui.state.transcript.transcript import title_line

if TYPE_CHECKING:
    from mlxkv.tui.state.chat_state import ChatState


def handle_result(state: ChatState, event: ev.EngineEvent) -> None:
    """Show a result to the user; any other event is ignored."""
    transcript = state.transcript
    match event:
        case ev.ChatList(chats):
            state.complete(cmd.ListChats)
            state.chats = tuple(chat for chat in chats if chat.kind == "chat")
            state.use_chat_list(chats)
        case ev.ChatTree(branches):
            state.complete(cmd.ShowTree)
            if len(branches) > 1:
                state.listing = replace(choice_lists.tree_list(branches, state.today()), beside="tree")
            else:
                transcript.add_line("This chat has no branches yet; /fork, /edit and /retry make them.")
        case ev.ChatHits(words, hits):
            state.complete(cmd.SearchChats)
            state.listing = choice_lists.hits_list(words, hits)
        case ev.ChatRenamed(session_id, title):
            state.complete(cmd.RenameChat)
            if session_id == state.session_id or state.session_id is None:
                transcript.title = title_line(title)
            state.chats = tuple(
                replace(c, title=title, departure=None) if c.id == session_id else c for c in state.chats
            )
            transcript.add_line(f"Renamed: “{title}”.")
        case ev.ChatTitled(session_id, title):
            if session_id == state.session_id:
                transcript.title = title_line(title)
            state.chats = tuple(replace(c, title=title) if c.id == session_id else c for c in state.chats)
        case ev.ChatSaved():
            state.complete(cmd.ShowSaved)
            transcript.add_line(saved_text(event))
        case ev.ChatDeleted(session_id, title):
            state.complete(cmd.DeleteChat)
            state.chats = tuple(c for c in state.chats if session_id not in (c.id, *c.versions))
            is_current = session_id == state.session_id
            (transcript.add_line_after_opening if is_current else transcript.add_line)(f"Deleted “{title}”.")
        case ev.ChatExported(path):
            state.complete(cmd.ExportChat)
            transcript.add_line(f"Exported to {path}")
        case ev.SettingsApplied(text):
            state.complete(cmd.ChangeSettings, cmd.SavePreset, cmd.RenamePreset, cmd.DeletePreset)
            if text:
                transcript.add_line(text)
        case ev.SettingsInForce(sources):
            state.sources = sources
        case ev.PresetList(presets, current):
            state.complete(cmd.ListPresets)
            if presets:
                state.listing = setting_lists.presets_list(presets, current)
            else:
                transcript.add_line("There are no presets yet; /preset save NAME saves what is in force in this chat.")
        case ev.PresetTaken(_, text, model, adapter):
            state.complete(cmd.TakePreset)
            transcript.add_line(text)
            if model:
                state.submit(cmd.LoadModel(model, ask=True, adapter=adapter))
        case ev.PresetExists(name):
            state.complete(cmd.SavePreset)
            state.listing = setting_lists.replace_preset(name)
        case ev.CacheList():
            state.complete(cmd.ListCache)
            state.listing = replace(choice_lists.cache_list(event, state.today()), beside="cache ls")
        case ev.CacheCollected(freed, used):
            state.complete(cmd.CollectCache)
            what = f"Freed {bytes_text(freed)}" if freed else "Nothing to remove"
            transcript.add_line(f"{what}; KV on disk in all: {disk_text(used, state.status.disk_limit)}.")
        case ev.ChatPinned(_, pinned):
            state.complete(cmd.PinChat)
            stays = "stays on disk, even at the disk limit; /cache pin again unpins it"
            transcript.add_line(f"The KV of this chat {stays if pinned else 'may be removed at the disk limit again'}.")
        case ev.TokensCounted(key, tokens):
            state.token_counts.set_count(key, tokens)
        case ev.CompactPlan():
            state.complete(cmd.PlanCompact)
            state.listing = choice_lists.compact_list(event)
        case ev.Compacted():
            state.complete(cmd.Compact)
            transcript.add_line(reports.compacted_text(event))
        case ev.ModelTooLarge():
            then = state.retry_after_load
            state.complete(cmd.LoadModel)
            state.listing = choice_lists.too_large_list(event, state.adapters.get(event.name), then)
        case ev.ModelList(models, only_fitting, notes):
            state.complete(cmd.ListModels)
            state.models = models
            has_messages, current = not transcript.is_empty, "" if state.status.unloaded else state.model
            state.listing = choice_lists.models_list(models, current, has_messages, only_fitting, notes)
        case ev.ModelUnloaded():
            state.complete(cmd.Unload)
            say = transcript.add_notice if event.is_idle else transcript.add_line
            say(reports.unloaded_text(event, state.settings.unload_after))
        case ev.ModelMissing(name, size):
            state.complete(cmd.LoadModel)
            state.listing = choice_lists.missing_model(name, size, state.adapters.get(name))
        case ev.ContextUsage():
            state.complete(cmd.ShowContext)
            state.report = reports.context_report(event)
        case ev.SessionStats():
            state.complete(cmd.ShowStats)
            state.report = Report("stats", tuple(reports.stats_lines(event)), is_of_chat=True)
