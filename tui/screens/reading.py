"""What the window does for a reader: message cursor, search, folding, links, copying. UI thread.

The part of the app that joins the transcript, the search line and the clipboard. What a wish means for the chat (edit,
retry, fork, another version) is the state's business.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from textual.app import App, SuspendNotSupported

from mlxkv.protocol import commands as cmd
from mlxkv.stats import plural
from mlxkv.tui.screens.chat import ChatView
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.labels import number_range
from mlxkv.tui.state.prompt_history import History
from mlxkv.tui.widgets.copying import code_blocks, message_source
from mlxkv.tui.widgets.prompt import Prompt
from mlxkv.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from mlxkv.tui.widgets.find_bar import FindBar

CURSOR_KEYS = "y copy · c code · e edit · r again · f fork · [ ] versions · space fold · / find · esc"
_COPY = re.compile(r"(\d+)?\s*(?:(code)\s*(\d+)?)?$")


class ReadingApp(App[int]):
    """The app's own parts are declared here and made by the subclass."""

    state: ChatState
    view: ChatView
    history: History
    transcript: Transcript
    prompt: Prompt
    _find_bar: FindBar | None = None

    def _say(self, text: str, seconds: float = 5.0) -> None:
        raise NotImplementedError

    def _sync(self) -> None:
        raise NotImplementedError

    def on_mount(self) -> None:
        self.prompt.earlier = self.history.entries

    # -- the prompt elsewhere ----------------------------------------------------------------------------

    def on_prompt_editor_wanted(self, message: Prompt.EditorWanted) -> None:
        from mlxkv.tui.external_editor import EditorError, edited, editor_command

        try:
            command = editor_command(os.environ)
            with self.suspend():
                text = edited(message.text, command)
        except EditorError as error:
            self._say(str(error))
            return
        except SuspendNotSupported:
            self._say("This terminal cannot be left for an editor.")
            return
        self.prompt.put(text)
        self.refresh()

    # -- the message cursor ------------------------------------------------------------------------------

    def on_prompt_cursor_wanted(self, message: Prompt.CursorWanted) -> None:
        self.transcript.move_cursor(message.step)

    def on_transcript_cursor_moved(self, message: Transcript.CursorMoved) -> None:
        if message.message is not None:
            self._say(CURSOR_KEYS, seconds=600)
            return
        self._say("", seconds=0)
        if self.focused is None or self.focused is self.transcript:  # it may have gone to a search or a list
            self.prompt.focus()
        if message.typed:
            self.prompt.insert(message.typed)

    def on_transcript_wanted(self, message: Transcript.Wanted) -> None:
        number, state, done = message.message, self.state, False
        match message.wish:
            case "copy":
                self._copy_message(number)
                return
            case "copy_code":
                self._copy_code(number, None)
                return
            case "edit":
                done = state.edit(number) or state.edit(number - 1)
                self.transcript.leave_cursor()
            case "retry":
                done = self._is_reply(number) or self._is_reply(number + 1)
                if done:
                    state.submit(cmd.Retry(number if self._is_reply(number) else number + 1))
                    self.transcript.leave_cursor()
            case "fork":
                done = True
                state.submit(cmd.Fork(number))
                self.transcript.leave_cursor()
            case "older" | "newer":
                done = state.other_version(number, -1 if message.wish == "older" else 1)
                if not done:
                    self._say("There is no other version of this message.")
                    return
        if not done:
            self._say("That is not possible with this message.")
        self._sync()

    def _is_reply(self, number: int) -> bool:
        messages = self.state.messages
        return 0 <= number < len(messages) and messages[number].role == "assistant"

    # -- copying -----------------------------------------------------------------------------------------

    def _put_on_clipboard(self, text: str) -> None:
        from mlxkv.tui.clipboard import copy

        self._say(copy(self, text), seconds=2)

    def _copy_message(self, number: int) -> None:
        text = message_source(self.transcript.blocks_of(number))
        if text:
            self._put_on_clipboard(text)
        else:
            self._say("There is nothing to copy.")

    def _copy_code(self, number: int, which: int | None) -> None:
        codes = code_blocks(self.transcript.blocks_of(number))
        if not codes:
            self._say("There is no code in this message.")
        elif which is None:
            self._put_on_clipboard("\n\n".join(codes))
        elif 1 <= which <= len(codes):
            self._put_on_clipboard(codes[which - 1])
        else:
            self._say(f"This message has {plural(len(codes), 'code block')}; there is no number {which}.")

    def copy_reply(self, argument: str) -> None:
        """`/copy [n] [code [k]]`: the n-th last reply, or its code."""
        match = _COPY.match(argument.strip())
        replies = [i for i, message in enumerate(self.state.messages) if message.role == "assistant"]
        if self.state.turn is not None:
            replies.append(len(self.state.messages))
        if match is None:
            self._say("/copy, /copy 2, /copy code or /copy 2 code 1: the second last reply, its first code block.")
            return
        back = int(match[1] or 1)
        if not 1 <= back <= len(replies):
            known = f"There is no reply {back}: {number_range(len(replies))}."
            self._say(known if replies else "There is no reply yet.")
        elif match[2]:
            self._copy_code(replies[-back], int(match[3]) if match[3] else None)
        else:
            self._copy_message(replies[-back])

    # -- folding -----------------------------------------------------------------------------------------

    def action_fold_all(self) -> None:
        self._say("reasoning unfolded" if self.transcript.fold_all() else "reasoning folded", seconds=2)

    # -- search ------------------------------------------------------------------------------------------

    def action_find(self, words: str = "") -> None:
        from mlxkv.tui.widgets.find_bar import FindBar

        if self._find_bar is not None:
            self._find_bar.input.focus()
            return
        self._find_bar = FindBar(words)
        self.view.mount(self._find_bar, after=self.transcript)

    def on_transcript_find_wanted(self) -> None:
        self.action_find()

    def on_find_bar_changed(self, message: FindBar.Changed) -> None:
        self.transcript.find(message.words)
        self._show_count()

    def on_find_bar_step(self, message: FindBar.Step) -> None:
        self.transcript.action_match(message.step)
        self._show_count()

    def on_find_bar_closed(self) -> None:
        if self._find_bar is not None:
            self._find_bar.remove()
            self._find_bar = None
        self.transcript.find("")
        self.prompt.focus()

    def on_chat_view_searched(self) -> None:
        self._show_count()

    def _show_count(self) -> None:
        if self._find_bar is not None:
            self._find_bar.show(*self.transcript.finder.numbers())

    # -- links -------------------------------------------------------------------------------------------

    def on_transcript_link_clicked(self, message: Transcript.LinkClicked) -> None:
        from mlxkv.tui.screens.link import LinkScreen, is_web

        address = message.address
        if not is_web(address):
            self._say("Only http and https addresses are opened.")
            return

        def answered(what: str | None) -> None:
            if what == "open":
                self.open_url(address)
                self._say("opened in the browser", seconds=2)
            elif what == "copy":
                self._put_on_clipboard(address)

        self.push_screen(LinkScreen(address), answered)
