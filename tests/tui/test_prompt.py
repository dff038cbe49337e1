"""The prompt: pastes, files, the menu of what may be meant, earlier prompts, the editor. Waits are for conditions."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from textual.events import Key, Paste

from mlxkv.config import Folders
from mlxkv.protocol.commands import Command, CountTokens, NewChat, Send
from mlxkv.protocol.events import EngineEvent, ModelReady, TokensCounted
from mlxkv.tui.external_editor import EditorError, edit_text, editor_command
from mlxkv.tui.state.prompt.completion import Source
from tests.tui.fake_engine import STATUS, FakeEngine
from tests.tui.window import Window, window


def sent(w: Window) -> list[str]:
    return [command.text for command in w.sent(Send) if isinstance(command, Send)]


def labels(w: Window) -> list[str]:
    menu = w.app.prompt.completer.menu
    return [entry.label for entry in menu.entries] if menu else []


@pytest.mark.slow
async def test_it_grows_to_a_third_of_the_screen() -> None:
    async with window(size=(80, 30)) as w:
        for rows in (1, 5, 30):
            w.app.prompt.put("\n".join(f"line {i}" for i in range(rows)))
            await w.until(lambda rows=rows: w.app.prompt.size.height == min(max(rows, 2), 9), f"{rows} rows")


@pytest.mark.slow
async def test_a_long_paste_is_one_word_until_it_is_sent() -> None:
    paste = "\n".join(f"line {i}" for i in range(40))
    async with window(FakeEngine(manual=True)) as w:
        w.app.prompt.put("what is ")
        w.app.prompt.post_message(Paste(paste))
        await w.until(lambda: w.app.prompt.text == "what is [Pasted text #1 +40 lines]")
        w.app.prompt.post_message(Paste("x" * 1000))
        await w.until(lambda: w.app.prompt.text.endswith("[Pasted text #2 1,000 characters]"))
        await w.pilot.press("enter")
        await w.until(lambda: sent(w))
        assert sent(w) == [f"what is {paste}{'x' * 1000}"]
        assert w.app.history.entries[-1] == sent(w)[0]
        await w.until(lambda: "more lines" in w.said())


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    ["👨\u200d👩\u200d👧", "می\u200cخواهم", "東京\u3000大阪", "10\u00a0km"],
    ids=["emoji", "Persian", "wide", "fixed"],
)
async def test_what_is_typed_has_its_joiners_and_spaces(typed: str) -> None:
    async with window(FakeEngine(manual=True)) as w:
        for letter in typed:  # one key each, as an input method or a list of emoji sends them
            w.app.prompt.post_message(Key(letter, letter))
        await w.until(lambda: w.app.prompt.text == typed)
        await w.pilot.press("enter")
        await w.until(lambda: sent(w) == [typed])


@pytest.mark.slow
async def test_a_paste_that_looks_like_a_command_is_not_one() -> None:
    async with window(FakeEngine(manual=True)) as w:
        w.app.prompt.post_message(Paste("/new\n" + "x\n" * 9))
        await w.until(lambda: w.app.prompt.text.startswith("[Pasted"))
        await w.pilot.press("enter")
        await w.until(lambda: sent(w))
        assert sent(w)[0].startswith("/new\nx")
        assert len(w.sent(NewChat)) == 1


@pytest.mark.slow
async def test_commands_are_offered_and_run() -> None:
    async with window() as w:
        await w.pilot.press("/")
        await w.until(lambda: len(labels(w)) > 20)
        assert "start a new chat" in w.screen()
        await w.pilot.press("n", "e")
        await w.until(lambda: labels(w)[:1] == ["/new"])
        await w.pilot.press("enter")  # a prefix: runs
        await w.until(lambda: len(w.sent(NewChat)) == 2)
        assert w.app.prompt.text == ""
        await w.until(lambda: not w.app.prompt.completer.menu_list.display)


@pytest.mark.slow
async def test_a_guess_is_completed_and_not_run() -> None:
    async with window() as w:
        await w.pilot.press(*"/nw")
        await w.until(lambda: labels(w)[:1] == ["/new"])
        await w.pilot.press("enter")
        await w.until(lambda: w.app.prompt.text == "/new")
        assert len(w.sent(NewChat)) == 1


@pytest.mark.slow
async def test_enter_right_after_the_letters_means_those_letters() -> None:
    """The menu is drawn a moment later; with what it offered before, `/q` once ran `/help`."""
    async with window() as w:
        w.app.prompt.insert("/q")
        w.app.prompt.action_send()
        await w.until(lambda: w.app.return_value == 0)


@pytest.mark.slow
async def test_moving_in_the_menu() -> None:
    async with window() as w:
        await w.pilot.press(*"/re")
        await w.until(lambda: len(labels(w)) > 3)
        first, second = labels(w)[:2]
        await w.pilot.press("down", "tab")
        await w.until(lambda: w.app.prompt.text.strip() == second.split()[0])
        assert first != second
        w.app.prompt.put("/think ")
        await w.until(lambda: labels(w) == ["on", "off"])
        await w.pilot.press("down", "tab")
        await w.until(lambda: w.app.prompt.text == "/think off")
        w.app.prompt.put("/th")
        await w.until(lambda: labels(w))
        await w.pilot.press("escape")
        await w.until(lambda: not labels(w))
        assert w.app.prompt.text == "/th"


@pytest.mark.slow
async def test_a_click_takes_an_entry() -> None:
    async with window() as w:
        await w.pilot.press(*"/r")
        await w.until(lambda: len(labels(w)) > 3)
        await w.until(lambda: w.app.prompt.completer.menu_list.size.height > 3)
        wanted = labels(w)[2].split()[0]
        await w.pilot.click(w.app.prompt.completer.menu_list, offset=(4, 2))
        await w.until(lambda: w.app.prompt.text.strip() == wanted)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "project"
    (base / "src").mkdir(parents=True)
    (base / "src" / "main.rs").write_text("fn main() {}\n" * 3)
    (base / "my notes.txt").write_text("```\nfence\n```\n")
    (base / "picture.png").write_bytes(b"\x89PNG\0\0")
    monkeypatch.chdir(base)
    return base


@pytest.mark.slow
async def test_a_file_is_named_completed_and_sent_along(folder: Path) -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.pilot.press(*"look at @mai")
        await w.until(lambda: labels(w) == ["src/main.rs"])
        await w.pilot.press("tab")
        await w.until(lambda: w.app.prompt.text == "look at @src/main.rs ")
        await w.until(lambda: "@src/main.rs 3 lines · 9 tok" in w.screen())
        await w.pilot.press("enter")
        await w.until(lambda: sent(w))
        assert sent(w) == [
            "look at @src/main.rs \n\nFile `src/main.rs`:\n```\nfn main() {}\nfn main() {}\nfn main() {}\n```"
        ]
        assert w.app.history.entries[-1] == "look at @src/main.rs "
        assert "fn main" not in w.said()
        assert "@src/main.rs · 3 lines" in w.said()


class Slow(FakeEngine):
    """Counts when it is told to."""

    def answer(self, command: Command) -> list[EngineEvent]:
        return [] if isinstance(command, CountTokens) else super().answer(command)

    def count(self, tokens: int) -> None:
        """Answer the last question."""
        key = next(c.key for c in reversed(self.commands) if isinstance(c, CountTokens))
        self.events.append(TokensCounted(key, tokens))


@pytest.mark.slow
async def test_tokens_of_a_file_are_counted_by_the_model_once_and_a_guess_until_then(folder: Path) -> None:
    engine = Slow(manual=True)
    async with window(engine) as w:
        await w.pilot.press(*"@src/main.rs or")
        await w.until(lambda: "@src/main.rs 3 lines · ~9 tok" in w.screen())
        await w.pilot.press(*" not")
        await w.until(lambda: w.sent(CountTokens))
        assert w.sent(CountTokens)[0].text == "\n".join(["fn main() {}"] * 3)  # type: ignore[union-attr]
        await w.pilot.press("enter")
        await w.until(lambda: "▸ @src/main.rs · 3 lines · ~9 tok" in w.said())
        engine.count(12_345)
        await w.until(lambda: "▸ @src/main.rs · 3 lines · 12k tok" in w.said())
        await w.pilot.press(*"@src/main.rs again")
        await w.until(lambda: "@src/main.rs 3 lines · 12k tok" in w.screen())
        assert "the window holds" not in w.screen()
        engine.events.append(replace(STATUS, cache_window=8_000))
        await w.until(lambda: w.app.prompt.files.window == 8_000)
        await w.pilot.press("?")
        await w.until(lambda: "12k tok · ▲ the window holds 8k" in w.screen())
        (folder / "src" / "main.rs").write_text("fn other() {}\n")
        await w.pilot.press(*"!")
        await w.until(lambda: "@src/main.rs 1 line · ~3 tok" in w.screen())
        await w.until(lambda: len(w.sent(CountTokens)) == 2)
        engine.count(1)
        await w.until(lambda: "@src/main.rs 1 line · 1 tok" in w.screen())
        engine.events.append(ModelReady("org/other", 1, 0.1, True))  # which counts otherwise
        await w.until(lambda: "@src/main.rs 1 line · ~3 tok" in w.screen())
        assert "3 lines · ~9 tok" in w.said()
        assert len(w.sent(CountTokens)) == 4


@pytest.mark.slow
async def test_a_queued_prompt_comes_back_without_its_files(folder: Path) -> None:
    async with window(FakeEngine(manual=True)) as w:
        await w.ask("one")
        await w.until(lambda: w.app.state.transcript.reply)
        await w.ask('see @"my notes.txt"')
        await w.until(lambda: w.app.state.queue)
        assert "````\n```\nfence" in w.app.state.queue[0]  # a fence that the file's own cannot end
        await w.pilot.press("up")
        await w.until(lambda: w.app.prompt.text == 'see @"my notes.txt"')


@pytest.mark.slow
async def test_a_file_that_is_no_text_is_refused_and_the_prompt_kept(folder: Path) -> None:
    async with window() as w:
        await w.ask("see @picture.png")
        await w.until(lambda: "picture.png is not text in UTF-8" in w.screen())
        assert w.app.prompt.text == "see @picture.png"
        assert not sent(w)


@pytest.mark.slow
async def test_earlier_prompts_are_searched() -> None:
    async with window(FakeEngine(manual=True), folders=Folders.from_env()) as w:
        for text in ("red apples", "green pears", "red wine"):
            w.app.history.add(text)
        w.app.prompt.put("draft")
        await w.pilot.press("ctrl+r")
        await w.until(lambda: w.app.prompt.completer.menu and w.app.prompt.completer.menu.source is Source.HISTORY)
        w.app.prompt.put("")
        await w.pilot.press(*"red")
        await w.until(lambda: labels(w) == ["red wine", "red apples"])
        await w.pilot.press("escape")
        await w.until(lambda: w.app.prompt.text == "draft")
        await w.pilot.press("ctrl+r")
        w.app.prompt.put("red")
        await w.until(lambda: labels(w) == ["red wine", "red apples"])
        await w.pilot.press("ctrl+r", "enter")
        await w.until(lambda: w.app.prompt.text == "red apples")
        assert not sent(w)


@pytest.mark.slow
async def test_the_prompt_in_an_editor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text("import sys\nopen(sys.argv[1], 'a').write(' and \\x1bmore\\n')\n")
    monkeypatch.setenv("VISUAL", f"{sys.executable} {script}")
    async with window() as w:
        monkeypatch.setattr(type(w.app), "suspend", lambda _self: nullcontext())
        w.app.prompt.put("some text")
        await w.pilot.press("ctrl+g")
        await w.until(lambda: w.app.prompt.text == "some text and ␛more")
        monkeypatch.setenv("VISUAL", "no-such-editor")
        await w.pilot.press("ctrl+g")
        await w.until(lambda: "The editor 'no-such-editor' was not found" in w.bar("activity"))


def test_the_editor_gets_a_file_of_ones_own(tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text(
        "import os, sys\nprint(oct(os.stat(sys.argv[1]).st_mode), file=open(sys.argv[2], 'w'))\nsys.exit(3)"
    )
    out = tmp_path / "mode"
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.argv = ['x', sys.argv[-1], {str(out)!r}]; exec(open({str(script)!r}).read())",
    ]
    with pytest.raises(EditorError, match="exited with code 3; the prompt is unchanged"):
        edit_text("secret", command)
    assert stat.S_IMODE(int(out.read_text(), 8)) == 0o600
    with pytest.raises(EditorError, match="was not found"):
        editor_command({"EDITOR": "'", "PATH": os.defpath})
