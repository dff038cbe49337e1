"""Mistakes on the command line: a mistyped command asks, errors are JSON where asked for, examples are right."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mlxkv.cli.app import _COMMANDS, app
from mlxkv.cli.close_command import is_close, mistyped
from mlxkv.cli.examples import COMMANDS_OF, COMPLETION, EXAMPLES
from mlxkv.cli.input_files import question_with
from mlxkv.config import Folders
from mlxkv.models import Hub, catalogue
from tests.cli.test_cli import Run, run  # noqa: F401

WORDS = {
    "modles": "models", "model": "models", "Models": "models", "caht": "chat", "hcat": "chat", "chast": "chats",
    "cahce": "cache", "pacth": "path", "dotcor": "doctor", "benhc": "bench", "srve": "serve", "help": "--help",
    "modles ls": "models ls", "modles -m tutor": "models", "help chats": "chats --help",
    "search sky": "chats search sky", "pull org/x": "models pull org/x", "run tutor": "-m MODEL",
}  # fmt: skip


@pytest.mark.parametrize("line", WORDS)
def test_a_mistyped_command_asks(line: str) -> None:
    text = mistyped(line.split(), _COMMANDS, COMMANDS_OF) or ""
    word, message = line.split()[0], line.split(" -")[0]
    assert text == (
        f"There is no command `{word}`; did you mean `mlxkv {WORDS[line]}`? "
        f"To send it as a message: mlxkv -p {shlex.quote(message)}"
    )


@pytest.mark.parametrize(
    "line",
    [
        *(
            "what",
            "that",
            "hello",
            "hi",
            "cash",
            "math",
            "coach",
            "explain",
            "chat",
            "models ls",
            "modl3s",
            "-p modles",
            "-p ls",
            "show me the sky",
        ),
        *("modles -p", "modles -np", "modles --print", "'modles please'", ""),
    ],
)
def test_a_message_is_sent(line: str) -> None:
    assert mistyped(shlex.split(line), _COMMANDS, COMMANDS_OF) is None


def test_long_words_may_have_two_mistakes() -> None:
    assert is_close("mdoeals", "models") or is_close("modelsss", "models")
    assert not is_close("chhaat", "chat")


def test_a_word_of_several_groups_names_them_all() -> None:
    text = mistyped(["list"], _COMMANDS, COMMANDS_OF) or ""
    assert "did you mean `mlxkv chats ls`, `mlxkv cache ls` or `mlxkv models ls`?" in text
    assert "did you mean `/set` in a chat?" in (mistyped(["config"], _COMMANDS, COMMANDS_OF) or "")


USAGE = {
    "chats sho": "There is no command `mlxkv chats sho`; did you mean `mlxkv chats show`?",
    "chats delete x": "There is no command `mlxkv chats delete`; did you mean `mlxkv chats rm`?",
    "models show x": "There is no command `mlxkv models show`; did you mean `mlxkv models info`?",
    "cache help": "There is no command `mlxkv cache help`; did you mean `mlxkv cache --help`?",
    "cache sing": "There is no command `mlxkv cache sing`; `mlxkv cache --help` lists them.",
    "chats show": "Missing argument 'chat'; see `mlxkv chats show --help`.",
    "--hepl": "No such option: --hepl; did you mean --help or --plain or --temp?",
    "why is it so": "The question is 4 arguments; put it in quotes: 'why is it so'.",
    "-p -f a.txt b.txt sum": "The question is 2 arguments; put it in quotes: 'b.txt sum'; "
    "if some of them are files, each needs its own -f.",
    "bench --tokens x": "Invalid value for '--tokens': it must be a valid integer; see `mlxkv bench --help`.",
    "serve --port 70000": "Invalid value for '--port': it must be less than or equal to 65535; "
    "see `mlxkv serve --help`.",
    "-p hi --output-format xml": "Invalid value for '--output-format': 'xml' is not one of 'text', 'json', "
    "'stream-json'; "
    "see `mlxkv --help`.",
    "-p hi --fork": "--fork copies the chat that -c or -r continues; add one of them.",
    "-p hi --schema nofile": "nofile cannot be read (No such file or directory); check the name.",
    "-p hi -f -": "The file - is standard input, and nothing comes from there; pipe a text in.",
    "-P terse": "There is no preset 'terse'; `/preset save NAME` in a chat makes one.",
    "cache create x": "There is nothing to prefill; give files with -f (-f - is standard input) or a system prompt "
    "with -s.",
    "-p hi --temp warm": "The option --temp is 'warm'; it must be a number from 0 to 100, or \"none\".",
    "-p hi --window 1.5": "The option --window is '1.5'; it must be a whole number from 1 to 16,777,216, or \"none\".",
}


@pytest.mark.parametrize("line", USAGE)
def test_wrong_arguments_are_one_sentence_that_says_what_to_do(run: Run, line: str) -> None:  # noqa: F811
    done = run(*shlex.split(line))
    assert (done.code, done.out, done.err) == (2, "", f"mlxkv: {USAGE[line]}\n")


def test_a_misspelt_setting_is_named(run: Run, home: Path) -> None:  # noqa: F811
    path = Folders.from_env().config / "config.toml"
    path.parent.mkdir(parents=True)
    for key, says in (("temprature", "did you mean `temperature`?"), ("xyz", "the settings are model, ")):
        path.write_text(f"{key} = 1")
        assert f"`{key}` in {path} is not a setting; {says}" in run("-p", "hi").err


def test_lists_and_folders_are_json_too(run: Run) -> None:  # noqa: F811
    assert json.loads(run("path", "--json").out)["data"] == str(Folders.from_env().data)
    first, *others = json.loads(run("models", "ls", "--json").out)
    assert (first["id"], first["is_here"]) == ("tutor", True)
    assert {other["id"] for other in others} == {entry.id for entry in catalogue()}
    assert {other["fits"] for other in others if not other["is_here"]} <= {True, False}


def test_what_cannot_be_deleted_is_not_asked_about(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    assert "tutor is a part of mlxkv and stays" in run("models", "rm", "tutor").err
    assert "org/x is not in the cache" in run("models", "rm", "org/x").err
    (Hub().storage("org/x") / "blobs").mkdir(parents=True)
    assert "give --yes to delete" in run("models", "rm", "org/x").err
    assert run("models", "rm", "org/x", "--yes").out == "freed 0 B\n"


def test_a_dash_among_the_files_is_standard_input(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    files = [tmp_path / "a.txt", Path("-")]
    assert question_with("Why?", files, "piped\n") == "a.txt:\n\nalpha\n\npiped\n\nWhy?"
    assert question_with("Why?", files[:1], "piped\n") == "a.txt:\n\nalpha\n\nWhy?\n\npiped"


def test_an_option_takes_what_config_toml_takes(run: Run) -> None:  # noqa: F811
    done = run("-p", "", "--temp", "none", "--max-tokens", "none", "--window", "none", "--seed", "none")
    assert done.err.startswith("mlxkv: The prompt is empty")


def test_a_group_alone_shows_its_help_uncut(run: Run) -> None:  # noqa: F811
    done = run("chats")
    assert (done.code, done.out) == (2, "")
    assert "..." not in done.err.split("Commands:")[1]
    assert "Usage: mlxkv chats" in done.err


def test_completion_is_installed_for_the_shell_in_which_it_is_asked_for(
    run: Run,  # noqa: F811
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(home))  # typer would write there
    done = run("--install-completion", "zsh")
    assert done.code == 2
    assert done.err == "mlxkv: --install-completion finds out in which shell it runs; type it there, without zsh.\n"


ERRORS = {
    "modles": ("ConfigError", 2), "-p hi -m ./nowhere": ("ModelNotFoundError", 1), "-p hi --nope": ("UsageError", 2),
    "-p hi --temp warm": ("ConfigError", 2), "-p hi --temp 900": ("ConfigError", 2), "-p ''": ("PromptError", 2),
    "chats show nothing": ("SessionNotFoundError", 1), "chats nope": ("UsageError", 2),
}  # fmt: skip


@pytest.mark.parametrize("line", ERRORS)
def test_with_json_an_error_is_one_object_with_the_same_exit_code(run: Run, line: str) -> None:  # noqa: F811
    kind, code = ERRORS[line]
    plain = run(*shlex.split(line))
    assert (plain.code, plain.out) == (code, "")
    for option in (["--output-format", "json"], ["--output-format=stream-json"]):
        done = run(*shlex.split(line), *option)
        assert (done.code, done.err) == (code, "")
        found = json.loads(done.out)
        assert found.pop("type", None) == ("error" if "stream" in option[0] else None)
        error = found.pop("error")
        assert (error["type"], error["exit_code"], found) == (kind, code, {})
        assert error["message"].splitlines()[0] in plain.err


def commands(command: object, path: str) -> Iterator[tuple[str, object]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


def test_every_command_shows_examples_that_parse(run: Run) -> None:  # noqa: F811
    known = dict(commands(typer.main.get_command(app), "mlxkv"))
    leaves = {path for path, command in known.items() if not hasattr(command, "commands")} - {"mlxkv chat"}
    assert EXAMPLES.keys() == {*leaves, "mlxkv"}
    for path, lines in EXAMPLES.items():
        help_of: typer.core.TyperCommand = known[path]  # type: ignore[assignment]
        shown = help_of.get_help(help_of.context_class(help_of, info_name=path))  # type: ignore[attr-defined]
        for line in lines:
            assert f"\n  {line}\n" in f"{shown}\n"
            words = shlex.split(re.split(r" \| (?=jq)|.*\| (?=mlxkv)", line)[-1 if "| mlxkv" in line else 0])
            command: typer.core.TyperCommand = known["mlxkv chat" if path == "mlxkv" else path]  # type: ignore[assignment]
            command.make_context(path, words[len(path.split()) :])  # raises if it does not parse
        assert "list[" not in shown
    assert COMPLETION in run("--help").out
    assert EXAMPLES["mlxkv"][0] in run("chat", "--help").out


def test_lists_have_a_header_that_a_pipe_does_not_get(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    assert (run("chats", "ls").out, run("models", "ls").err) == ("", "")
    monkeypatch.setattr("mlxkv.cli.tables.width_of_terminal", lambda: 120)
    done = run("models", "ls")
    head, legend = done.out.splitlines()[0], done.out.splitlines()[-2]
    assert head.split() == ["where", "size", "model", "about", "licence"]
    assert legend == "here: on this machine; download: `mlxkv models pull MODEL` gets it"
    first = done.out.splitlines()[1]
    assert head.index("size") + 4 == re.search(r"[GMk]B", first).end()  # type: ignore[union-attr]
    assert run("chats", "ls").out.split() == ["id", "last", "used", "messages", "KV", "model", "title"]
