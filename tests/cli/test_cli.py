"""The command line, as a script uses it: exit codes, streams, golden JSON, one sentence per error."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxkv.cli.app import main
from mlxkv.cli.print_mode import PrintRequest, _print_turn
from mlxkv.config import Folders
from mlxkv.events import Notice, TextDelta, TurnEvent, TurnFinished
from mlxkv.models import catalogue
from mlxkv.settings.presets import PresetFolder
from mlxkv.stats import TurnStats
from mlxkv.store.session_store import SessionStore
from mlxkv.text.clean import clean
from tests.tokenizers import tiny_folder
from tests.tui.hostile_engine import bomb

MLXKV = [sys.executable, "-m", "mlxkv.cli.app"]
GREEDY = ["--temp", "0", "--max-tokens", "12", "--window", "256"]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path) -> Run:
    """Call `mlxkv` in this process with `stdin` piped in."""

    def call(*args: str | Path, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in args])
        out = capsys.readouterr()
        code = end.value.code
        return Ran(code if isinstance(code, int) else 0, out.out, out.err)

    return call


def ask(run: Run, path: Path, text: str, *more: str, stdin: str = "") -> Ran:
    return run("-p", text, "-m", path, *GREEDY, *more, stdin=stdin)


@pytest.mark.slow
def test_the_reply_is_on_stdout_and_the_figures_on_stderr(run: Run, tiny_path: Path) -> None:
    done = ask(run, tiny_path, "hi")
    assert done.code == 0
    assert done.out.endswith("\n")
    assert len(done.out) > 1
    assert "tok/s" in done.err
    assert "prompt" in done.err
    assert ask(run, tiny_path, "hi", "-q").err == ""


@pytest.mark.slow
def test_drafting_by_another_model_or_not_at_all(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    more = ("--output-format", "json", "--max-tokens", "200")
    expected = json.loads(ask(run, tiny_path, "hi", *more, "--no-draft").out)
    assert expected["usage"]["drafted_tokens"] == 0
    drafted = json.loads(ask(run, tiny_path, "hi", *more, "--draft-model", str(tiny_path)).out)
    assert drafted["text"] == expected["text"]
    other = tiny_folder(tmp_path / "other", reverse=True)
    refused = ask(run, tiny_path, "hi", "--draft-model", str(other))
    assert refused.code == 1
    assert refused.out == ""
    assert "has another tokenizer" in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.slow
def test_real_weights_say_what_mlx_lm_says(run: Run, stories_path: Path) -> None:
    """A model without a chat template continues the raw text, with the same ids."""
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(stories_path))[:2]
    expected = mlx_lm.generate(model, tokenizer, "Once upon a time", max_tokens=80)
    done = run("-p", "Once upon a time", "-m", stories_path, "--temp", "0", "--max-tokens", "80")
    assert done.out == expected + "\n"
    assert "Lily" in done.out


@pytest.mark.slow
def test_json_is_one_object_with_the_agreed_fields(run: Run, tiny_path: Path) -> None:
    done = ask(run, tiny_path, "hi", "--output-format", "json")
    result = json.loads(done.out)
    assert done.err == ""
    assert list(result) == [
        "chat_id", "turn_id", "text", "thinking", "model", "finish_reason", "usage", "timing", "kv", "reuse", "memory",
    ]  # fmt: skip
    assert set(result["usage"]) == {
        "prompt_tokens", "cached_tokens", "cached_evicted_tokens", "completion_tokens", "decode_steps",
        "drafted_tokens", "accepted_tokens",
    }  # fmt: skip
    assert set(result["timing"]) == {"load_s", "restore_s", "ttft_s", "prefill_tps", "decode_tps", "total_s"}
    assert {"bytes", "bits", "tokens", "disk_bytes"} <= set(result["kv"])
    assert set(result["memory"]) == {"active_bytes", "peak_bytes"}
    assert result["turn_id"] == 1
    assert result["finish_reason"] in ("stop", "length")
    assert ask(run, tiny_path, "hi", "-q").out == result["text"] + "\n"


def test_stream_json_is_an_event_a_line_and_the_result_last(run: Run, tiny_path: Path) -> None:
    lines = [json.loads(line) for line in ask(run, tiny_path, "hi", "--output-format", "stream-json").out.splitlines()]
    assert lines[0]["type"] == "prefill"
    assert lines[-1]["type"] == "result"
    assert "".join(e["text"] for e in lines if e["type"] == "text") == lines[-1]["text"]


@pytest.mark.slow
def test_continuing_reads_nothing_again_and_says_so(run: Run, tiny_path: Path) -> None:
    first = json.loads(ask(run, tiny_path, "hi", "--output-format", "json").out)
    done = run("-c", "-p", "and you?", "--output-format", "json", "-q")  # the session knows its model and settings
    second = json.loads(done.out)
    assert second["chat_id"] == first["chat_id"]
    usage = first["usage"]
    assert second["usage"]["cached_tokens"] >= usage["prompt_tokens"] + usage["completion_tokens"] - 1
    forked = json.loads(run("-c", "--fork", "-p", "or?", "--output-format", "json").out)
    assert forked["chat_id"] != first["chat_id"]
    assert forked["usage"]["cached_tokens"] > second["usage"]["cached_tokens"]
    by_title = json.loads(run("-r", first["chat_id"][:20], "-p", "so?", "--output-format", "json").out)
    assert by_title["turn_id"] == 5


@pytest.mark.slow
def test_standard_input_and_files_join_the_question(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some notes")
    ask(run, tiny_path, "why?", "-f", str(tmp_path / "notes.txt"), stdin="a log\n")
    shown = run("chats", "show", "notes").out
    assert "notes.txt:\n\nsome notes\n\nwhy?\n\na log" in shown
    assert run("-m", tiny_path, *GREEDY, stdin="only piped").code == 0


@pytest.mark.slow
def test_the_disk_limit_of_the_command_line_reaches_the_store(
    run: Run, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXKV_DISK_LIMIT", "")  # the command sets it: put back after the test
    args = ("-m", str(tiny_path), "-p", "hi", "--max-tokens", "4", "--window", "256", "--output-format", "json")
    assert json.loads(run(*args, "--disk-limit", "0").out)["kv"]["disk_bytes"] == 0


def test_no_save_leaves_nothing(run: Run, tiny_path: Path, home: Path) -> None:
    assert ask(run, tiny_path, "hi", "--no-save").code == 0
    assert not [p for p in home.rglob("*") if p.is_file()]


@pytest.mark.slow
def test_chats_can_be_listed_shown_renamed_searched_and_deleted(run: Run, tiny_path: Path, home: Path) -> None:
    ask(run, tiny_path, "hi there")
    assert run("chats", "ls").out == ""
    listed = run("chats", "ls", "--all")
    assert "run" in listed.out
    assert "hi there" in listed.out
    assert "2 messages" in listed.out
    assert "## user\n\nhi there" in run("chats", "show", "hi").out
    assert run("chats", "rename", "hi", "greetings").code == 0
    assert "there" in run("chats", "search", "there").out
    assert run("chats", "rm", "-y", "greetings").code == 0
    assert run("chats", "ls").out == ""
    assert not list(home.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["-p", ""], 2, "prompt is empty"),
        (["-p", "hi", "--window", "0"], 2, "--window is '0'"),
        (["-p", "hi", "--temp", "-1"], 2, "--temp is '-1'"),
        (["-p", "hi", "--top-p", "7"], 2, "--top-p is '7'"),
        (["-p", "hi", "--sinks", "many"], 2, "sinks"),
        (["-p", "hi", "--kv-bits", "3"], 2, "3"),
        (["-p", "hi", "-m", "./nowhere"], 1, "./nowhere"),
        (["-p", "hi", "-m", "not a model"], 1, "not a model"),
        (["-p", "hi", "-s", "@/no/such/file"], 2, "/no/such/file"),
        (["-p", "hi", "-f", "/no/such/file"], 2, "/no/such/file"),
        (["-p", "hi", "-c"], 1, "no chat to continue"),
        (["-p", "hi", "-r", "sky"], 1, "sky"),
        (["chats", "show", "sky"], 1, "sky"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, args: list[str], code: int, says: str) -> None:
    done = run(*args)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert done.err.startswith("mlxkv: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_session_of_another_model_is_read_again_with_one_sentence(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    ask(run, tiny_path, "hi")
    other = tiny_folder(tmp_path / "other", seed=7)
    done = run("-c", "-p", "and?", "-m", other, *GREEDY)
    assert done.code == 0
    assert "differs" in done.err
    assert "hi" in run("chats", "show", "hi").out


@pytest.mark.slow
def test_a_truncated_chunk_is_read_again_with_one_sentence(run: Run, tiny_path: Path, home: Path) -> None:
    ask(run, tiny_path, "hi")
    for chunk in home.rglob("*.safetensors"):
        chunk.write_bytes(chunk.read_bytes()[:-50])
    done = run("-c", "-p", "and?", "--output-format", "json")
    assert done.code == 0
    assert "the rest is prefilled" in done.err
    result = json.loads(done.out)
    assert result["usage"]["cached_tokens"] == 0
    assert result["turn_id"] == 3


@pytest.mark.slow
def test_a_long_prompt_warns_once(run: Run, tiny_path: Path) -> None:
    done = run("-p", "much " * 100, "-m", tiny_path, "--temp", "0", "--max-tokens", "4", "--window", "64")
    assert done.code == 0
    assert done.err.count("are evicted before the reply; --window 2048 holds all of it") == 1


def test_a_preset_and_a_chats_own_settings_hold_in_print_mode(run: Run, tiny_path: Path, home: Path) -> None:
    folder = PresetFolder(Folders.from_env())
    folder.save("short", {"max_tokens": 2, "window": 128, "system": "Be terse.", "model": str(tiny_path)})
    (home / "config" / "config.toml").write_text("max_tokens = 9\nmodel = 'org/other'\n")

    def tokens(*args: str) -> int:
        done = run("-p", "hi", "--temp", "0", "--output-format", "json", *args)
        assert done.code == 0, done.err
        return json.loads(done.out)["usage"]["completion_tokens"]

    assert tokens("-P", "short") == 2
    with SessionStore.open(Folders.from_env()) as store:
        assert store.load(str(store.sessions.latest())).system == "Be terse."
        folder.delete("short")
        assert tokens("-c") == 2, "it is stored with the chat, and so is the model"
        assert tokens("-c", "--max-tokens", "3") == 3
        store.sessions.set_settings(str(store.sessions.latest()), {"max_tokens": 4, "top_p": "x"}, None)
    done = run("-p", "hi", "-c", "--output-format", "json")
    assert json.loads(done.out)["usage"]["completion_tokens"] == 4
    assert done.err.count("cannot use top_p = 'x'") == 1
    assert run("-p", "hi", "-P", "short").err.startswith("mlxkv: There is no preset 'short'")


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_said_and_exits_130(tiny_path: Path, home: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mlxkv.cli.app",
        "-p",
        "hi",
        "-m",
        str(tiny_path),
        "--max-tokens",
        "100000",
        "--temp",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        first = p.stdout.read(3)
        p.send_signal(signal.SIGINT)
        rest, err = p.communicate(timeout=60)
    assert p.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped" in err
    shown = subprocess.run([*MLXKV, "chats", "show", "hi"], capture_output=True, text=True, check=True)
    assert (first + rest).strip()[:20] in shown.stdout


@pytest.mark.slow
def test_a_kill_in_mid_reply_loses_at_most_its_last_moments(run: Run, tiny_path: Path, home: Path) -> None:
    command = [*MLXKV, "-p", "hi", "-m", str(tiny_path), "--max-tokens", "100000", "--temp", "0", "--window", "256"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        said = p.stdout.read(1100)  # an open reply is written every 256 tokens, and a token is at most 4 letters here
        p.kill()
        p.communicate()
    with SessionStore.open(Folders.from_env()) as store:
        before = store.load(str(store.sessions.latest()))
    assert [(t.role, t.state) for t in before.turns] == [("user", "done"), ("assistant", "open")]
    assert len(before.turns[1].ids) >= 256 - 1
    assert before.turns[1].stats["finish_reason"] == "stopped"  # and not cut at max-tokens
    assert said.startswith(before.turns[1].text[:1000])
    again = json.loads(run("-c", "-p", "and?", "--max-tokens", "4", "--output-format", "json").out)
    assert again["turn_id"] == 3
    with SessionStore.open(Folders.from_env()) as store:
        assert [t.state for t in store.load(before.id).turns] == ["done", "stopped", "done", "done"]


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tiny_path: Path, home: Path) -> None:
    mlxkv = " ".join([*MLXKV, "-p", "hi", "-m", str(tiny_path), "--max-tokens", "20000", "--temp", "0"])
    command = mlxkv + " | head -c 5; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 5
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Hostile:
    """A chat whose model writes everything a terminal must not obey, a character per token."""

    def send(self, _: str, **more: object) -> Iterator[TurnEvent]:
        yield Notice(bomb(1))
        yield from (TextDelta(char, i) for i, char in enumerate(bomb()))
        yield TurnFinished("stop", bomb(), TurnStats())


def test_a_terminal_does_not_obey_the_model_and_a_pipe_gets_the_exact_text() -> None:
    screen, pipe, err = Screen(), io.StringIO(), io.StringIO()
    for out in (screen, pipe):
        _print_turn(Hostile(), PrintRequest("hi"), out, err)  # type: ignore[arg-type]
    assert pipe.getvalue() == bomb() + "\n"
    assert screen.getvalue() == clean(bomb()) + "\n" != pipe.getvalue()
    assert err.getvalue() == 2 * (clean(bomb(1)) + "\n")


def test_an_error_that_quotes_a_name_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "evil\x1b]0;PWNED\x07\x9b"
    folder.mkdir()
    (folder / "config.json").write_text("[]")
    done = run("-p", "hi", "-m", folder)
    assert done.code == 1
    assert "␛]0;PWNED" in done.err
    assert clean(done.err) == done.err


def test_help_shows_the_options_and_the_commands(run: Run) -> None:
    done = run("--help")
    for word in ("--window", "--no-save", "chats", "models", "doctor", "path"):
        assert word in done.out
    assert run("--version").out.startswith("mlxkv 0.")


def test_models_can_be_looked_at_without_loading_them(run: Run, tiny_path: Path) -> None:
    info = run("models", "info", tiny_path)
    assert info.code == 0
    assert "llama" in info.out
    assert "256 bytes" in info.out  # 2 layers x 2 heads x (8 + 8) x 4 bytes
    assert "all here" in info.out
    estimate = run("models", "estimate", tiny_path, "--window", "256")
    assert "fits" in estimate.out
    assert run("models", "info", "./nowhere").code == 1


def test_models_ls_begins_with_what_is_suggested(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "5727MB")  # of a Mac with 8 GB
    lines = run("models", "ls").out.splitlines()
    first, second, *others = (line for line in lines if line.startswith("download"))
    assert first.startswith("download * 3.1 GB  mlx-community/Qwen3.5-4B-MLX-4bit  suggested for 8 GB or more: ")
    assert second.startswith("download * 1.8 GB  mlx-community/Qwen3.5-2B-4bit  quick choice for 8 GB or more: ")
    assert len(others) == len(catalogue()) - 2
    assert others[-1].startswith("download    70 GB")
    assert lines[-1] == "* fits in the 5.7 GB usable here, with a chat of 8,192 tokens"
    monkeypatch.setattr("mlxkv.cli.tables.width_of_terminal", lambda: 80)
    assert max(len(line) for line in run("models", "ls").out.splitlines()) == 80


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, "8/4"])
def test_quantized_rows_from_the_command_line(run: Run, tmp_path: Path, bits: int | str) -> None:
    wide = tiny_folder(tmp_path / "wide", hidden=128)
    first = json.loads(ask(run, wide, "hi", "--kv-bits", str(bits), "--output-format", "json").out)
    assert first["kv"]["bits"] == bits
    again = json.loads(run("-c", "-p", "and?", "--output-format", "json").out)  # the session remembers
    assert again["kv"]["bits"] == bits
    assert again["usage"]["cached_tokens"] > 0
    (tmp_path / "text").write_text("Once upon a time.")
    assert run("cache", "create", "story", "-f", tmp_path / "text", "-m", wide, "--kv-bits", bits).code == 0
    assert f"bits     {bits}\n" in run("cache", "show", "story").out


@pytest.mark.slow
def test_the_memory_of_quantized_rows(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    wide = tiny_folder(tmp_path / "wide", hidden=128)
    estimates = [run("models", "estimate", wide, "--window", "256", *more).out for more in ([], ["--kv-bits", "4"])]
    assert "in 4 bits" in estimates[1]
    assert "in 8/4 bits" in run("models", "estimate", wide, "--kv-bits", "8/4").out
    assert "--kv-bits is '4/8'; it must be 8, 8/4, 4" in run("models", "estimate", wide, "--kv-bits", "4/8").err
    assert estimates[0] != estimates[1]
    refused = ask(run, tiny_path, "hi", "--kv-bits", "4")
    assert refused.code == 2
    assert "groups of 32" in refused.err


def test_a_misspelt_variable_is_named_on_stderr(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("path").err == ""
    monkeypatch.setenv("MLXKV_TEMPP", "1")
    done = run("path")
    assert (done.code, done.out.count(str(home))) == (0, 4)
    assert done.err.startswith("mlxkv: The environment variable MLXKV_TEMPP is no setting and is ignored; did you mean")


def test_path_and_doctor(run: Run, home: Path) -> None:
    assert str(home) in run("path").out
    assert run("doctor").code == 0


@pytest.mark.slow
def test_bench_prints_tables_and_writes_them(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = run("bench", "-m", tiny_path, "--prompt", "8", "--tokens", "2", "--json", file)
    assert done.code == 0
    assert done.out.startswith("machine ")
    assert "| decode, 8 tokens | 8 |" in done.out
    assert [part["name"] for part in json.loads(file.read_text())["parts"]] == ["speed", "cache", "bandwidth"]
    assert run("bench", "--prompt", "1").code == 2
    assert run("bench", "--prompt", "8", "--context", "8").code == 2
    refused = run("bench", "--context", "8,many")
    assert refused.code == 2
    assert "'8,many'" in refused.err
    file.write_text("mine")
    refused = run("bench", "-m", tiny_path, "--prompt", "8", "--json", file)
    assert (refused.code, refused.out) == (2, "")  # before anything is measured
    assert file.read_text() == "mine"
