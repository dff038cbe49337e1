# ruff: noqa: F401, F811 — the fixture `run` is imported
"""`mlxkv -p --batch FILE`: lines in, lines out, whatever is in them, and continued after a kill."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mlxkv.cli import batch_lines
from mlxkv.cli.batch_lines import Finished, lines_of
from tests.cli.test_cli import MLXKV, Ran, Run, run
from tests.thorough import part

FAST = ["--temp", "0", "--max-tokens", "6", "--window", "256"]


def lines(data: bytes | str) -> list[batch_lines.Line]:
    return list(lines_of(io.BufferedReader(io.BytesIO(data.encode() if isinstance(data, str) else data))))  # type: ignore[arg-type]


def batch(run: Run, tiny_path: Path, text: str, tmp_path: Path, *more: str) -> Ran:
    (tmp_path / "in.jsonl").write_text(text)
    return run("-p", "--batch", tmp_path / "in.jsonl", "-m", tiny_path, *FAST, *more)


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# -- lines -------------------------------------------------------------------------------------------------------------


def test_fields_of_a_line() -> None:
    line, second, third = lines(
        '{"id": "a", "prompt": "hi", "system": "short", "max_tokens": 3, "stop": ["x"], "seed": null}\n'
        "\r\n  \n"
        '{"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}\r\n'
        '{"id": 7, "prompt": "half \\ud800"}'
    )
    assert (line.number, line.id, line.sampling) == (1, "a", {"max_tokens": 3, "stop": ["x"]})
    assert line.messages == ({"role": "system", "content": "short"}, {"role": "user", "content": "hi"})
    assert (second.number, second.id, second.sampling) == (4, 4, {"temperature": 0.5})
    assert (third.id, third.messages[0]["content"]) == (7, "half \N{REPLACEMENT CHARACTER}")
    assert not any(x.error for x in (line, second, third))


BAD = [
    ("nonsense", "Line 1 is not JSON"), ("[1, 2]", "Line 1 is [1, 2]; it must be an object."),
    ("null", "must be an object"),
    ('{"prompt": "x", "tempo": 1}', "has a field 'tempo'"), ('{"prompt": "x", "sed": 1}', "did you mean `seed`"),
    ("{}", "either a `prompt` or `messages`"), ('{"prompt": "x", "messages": []}', "either a `prompt` or `messages`"),
    ('{"prompt": " "}', "empty `prompt`"), ('{"prompt": 7}', "the `prompt` 7; it must be text"),
    ('{"messages": []}', "a list of objects"), ('{"prompt": "x", "system": 1}', "the `system` 1"),
    ('{"id": 1.5, "prompt": "x"}', "must be text or a whole number"), ('{"id": true, "prompt": "x"}', "`id`"),
    ('{"id": null, "prompt": "x"}', "`id`"), ('{"prompt": "x", "seed": 1' + "0" * 5000 + "}", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ('{"system": "a", "messages": [{"role": "system", "content": "b"}]}', "two system prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "error"), BAD)
def test_a_bad_line_is_one_sentence_and_the_next_is_read(text: str, error: str) -> None:
    bad, good = lines(text + '\n{"prompt": "fine"}\n')
    assert error in (bad.error or "")
    assert (bad.error or "").endswith(".")
    assert "\n" not in (bad.error or "")
    assert good.error is None


def test_bytes_that_are_no_text_and_marks_and_repeated_ids() -> None:
    bad, good = lines(b'{"prompt": "\xff"}\n{"prompt": "x"}')
    assert "is not text" in (bad.error or "")
    assert good.error is None
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert [x.messages[0]["content"] for x in lines('{"prompt": "é"}\r\n{"prompt": "ü"}\n'.encode(encoding))] == [
            "é",
            "ü",
        ]
    first, again, other = lines('{"id": 3, "prompt": "a"}\n{"id": 3, "prompt": "b"}\n{"prompt": "c"}')
    assert (first.error, again.error) == (None, "Line 2 has the id 3, as line 1; give each its own.")
    assert "the id 3, as line 1" in (other.error or "")  # its number


def test_a_line_that_is_too_long_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINE", 100)
    long, good = lines('{"prompt": "' + "x" * 1000 + '"}\n{"prompt": "y"}\n')
    assert "over" in (long.error or "")
    assert (good.number, good.error) == (2, None)


def test_lines_are_read_one_at_a_time() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            data = b'{"prompt": "x"}\n'[: len(buffer)]
            buffer[: len(data)] = data
            return len(data)

    found = lines_of(io.BufferedReader(Endless()))
    assert [next(found).number for _ in range(5)] == [1, 2, 3, 4, 5]


def test_results_of_an_earlier_run() -> None:
    inputs = lines('{"prompt": "a"}\n{"prompt": "b"}\n{"id": 1, "prompt": "c"}\nnonsense\n')
    out = [{"id": x.id, "input": x.digest, **({"error": x.error} if x.error else {"text": ""})} for x in inputs]
    whole = "".join(json.dumps(x) + "\n" for x in out)

    def finished(text: str) -> Finished:
        return Finished(io.BytesIO(text.encode()))

    found = finished(whole + '{"id": 5, "te')
    assert (found.size, len(found), found.num_failed) == (len(whole), 4, 2)
    found.check(iter(inputs), in_order=True)
    assert [found.take(line) for line in inputs] == [True] * 4
    assert not any(found.take(line) for line in inputs)  # each counts once
    backwards = finished("".join(json.dumps(x) + "\n" for x in reversed(out)))
    backwards.check(iter(inputs), in_order=False)
    for text, in_order in ((whole, True), (whole, False)):
        with pytest.raises(ValueError, match=r"no result of line 1|no line of this input"):
            finished(text).check(iter(lines('{"prompt": "other"}\n')), in_order=in_order)
    with pytest.raises(ValueError, match="no result of line 1"):
        backwards.check(iter(inputs), in_order=True)
    for text in ("notes\n", "[]\n", '{"id": 1}\n', '{"input": "x"}\n'):
        with pytest.raises(ValueError, match="its line 1 is no result of a batch"):
            finished(text)


# -- the command -------------------------------------------------------------------------------------------------------

INPUT = (
    '{"id": "first", "prompt": "hello", "max_tokens": 20}\n{"prompt": "who?", "temperature": 9000}\n'
    '{"prompt": "once", "system": "be brief"}\nnonsense\n{"prompt": "x", "seed": 4, "temperature": 1.0}\n'
)


@pytest.mark.slow
def test_replies_are_those_of_print_mode_and_bad_lines_are_errors(
    run: Run,
    tiny_path: Path,
    tmp_path: Path,
) -> None:
    done = batch(run, tiny_path, INPUT, tmp_path, "-s", "you are tiny")
    assert done.code == 1
    results = parsed(done.out)
    assert [r["id"] for r in results] == ["first", 2, 3, 4, 5]
    assert ["error" in r for r in results] == [False, True, False, True, False]
    assert "temperature" in results[1]["error"]
    print_mode = ["-m", tiny_path, "--no-save", "--output-format", "json", *FAST]
    for at, more in (
        (0, ("hello", "-s", "you are tiny", "--max-tokens", "20")),
        (2, ("once", "-s", "be brief")),
        (4, ("x", "-s", "you are tiny", "--seed", "4", "--temp", "1")),
    ):
        alone = json.loads(run("-p", *print_mode, *more).out)
        assert (results[at]["text"], results[at]["finish_reason"]) == (alone["text"], alone["finish_reason"])
        assert results[at]["usage"]["completion_tokens"] == alone["usage"]["completion_tokens"]
    assert results[0]["batched"] is True
    assert "done: 5 lines · 2 failed" in done.err


@pytest.mark.slow
def test_a_line_says_why_it_was_not_batched(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    done = batch(run, tiny_path, '{"prompt": "a"}\n{"prompt": "b", "max_tokens": 400}\n{"prompt": "c"}\n', tmp_path)
    results = parsed(done.out)
    assert done.code == 0
    assert [r["batched"] for r in results] == [True, False, True]
    assert "exceed the window" in results[1]["not_batched_why"]
    assert "not_batched_why" not in results[0]


@pytest.mark.slow
def test_as_finished_gives_short_replies_first(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    text = '{"id": "long", "prompt": "a", "max_tokens": 30}\n{"id": "short", "prompt": "b", "max_tokens": 1}\n'
    assert [r["id"] for r in parsed(batch(run, tiny_path, text, tmp_path).out)] == ["long", "short"]
    assert [r["id"] for r in parsed(batch(run, tiny_path, text, tmp_path, "--as-finished").out)] == ["short", "long"]


@pytest.mark.slow
def test_a_prompt_cache_is_shared_by_all_lines(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("a long book. " * 9)
    made = run("cache", "create", "book", "-f", tmp_path / "book.txt", "-m", tiny_path, "--window", "256")
    assert made.code == 0, made.err
    text = '{"prompt": "who?"}\n{"prompt": "what?"}\n{"prompt": "x", "system": "y"}\n'
    (tmp_path / "in.jsonl").write_text(text)
    done = run("-p", "--batch", tmp_path / "in.jsonl", "--cache", "book", "--temp", "0", "--max-tokens", "6")
    results = parsed(done.out)
    assert "system" in results[2]["error"]
    assert all(r["usage"]["cached_tokens"] > 100 for r in results[:2])
    alone = json.loads(
        run("-p", "who?", "--cache", "book", "--temp", "0", "--max-tokens", "6", "--output-format", "json").out
    )
    assert results[0]["text"] == alone["text"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--as-finished",)])
def test_a_second_run_continues_the_first(
    run: Run,
    tiny_path: Path,
    tmp_path: Path,
    more: tuple[str, ...],
) -> None:
    out = tmp_path / "out.jsonl"
    assert batch(run, tiny_path, INPUT, tmp_path, "-o", str(out), *more).code == 1
    whole = out.read_text()
    order = [r["id"] for r in parsed(whole)]
    for kept in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)):
        out.write_text(whole[:kept] + "x" * 3000)  # of a half line
        done = batch(run, tiny_path, INPUT, tmp_path, "-o", str(out), *more)
        assert done.code == 1  # lines that failed before count
        results = parsed(out.read_text())
        assert sorted(map(str, order)) == sorted(str(r["id"]) for r in results)
        assert {(r["id"], r.get("text"), r.get("error")) for r in results} == {
            (r["id"], r.get("text"), r.get("error")) for r in parsed(whole)
        }
        assert [r["id"] for r in results] == order or more
        assert whole[:kept].count("\n") == 0 or "answered before" in done.err
    run_from_stdin = run("-p", "--batch", "-", "-o", out, "-m", tiny_path, *FAST, *more, stdin=INPUT)
    assert (run_from_stdin.code, parsed(out.read_text())) == (1, results)


def test_an_output_of_another_input_is_refused_before_a_model_is_loaded(
    run: Run,
    tmp_path: Path,
) -> None:
    (tmp_path / "in.jsonl").write_text(INPUT)
    out = tmp_path / "out.jsonl"
    for content in ('{"id": 1, "text": "", "input": "0123"}\n', "my notes\n", '{"prompt": "x"}\n'):
        out.write_text(content)
        for more in ((), ("--as-finished",)):
            done = run("-p", "--batch", tmp_path / "in.jsonl", "-o", out, "-m", "no-such-model", *more)
            assert done.code == 2, done.err
            assert "cannot be continued" in done.err
            assert out.read_text() == content


def test_options_that_do_not_go_together(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(INPUT)
    for arguments, code, text in (
        (["--batch", file, "a question"], 2, "leave out a question"),
        (["--batch", file, "-c"], 2, "leave out -c"),
        (["--batch", file, "--output-format", "json"], 2, "leave out --output-format"),
        (["-o", tmp_path / "x", "hi"], 2, "give --batch FILE too"),
        (["--as-finished", "hi"], 2, "give --batch FILE too"),
        (["--batch", tmp_path / "missing"], 2, "cannot be read"),
        (["--batch", tmp_path], 2, "cannot be read"),
        (["--batch", file, "-o", file], 2, "is the input of this batch"),
        (["--batch", file, "-o", tmp_path], 1, "cannot be written"),
    ):
        done = run("-p", *arguments)
        said = done.err or done.out  # an error object, with --output-format json
        assert (done.code, text in said) == (code, True), said
        assert said.count("\n") == 1
    assert file.read_text() == INPUT


MANY = "".join(
    json.dumps({"id": f"n{i}", "prompt": "hello " * (i + 1), "max_tokens": 5 + 15 * i, "temperature": 0.9, "seed": i})
    + "\n"
    for i in range(14)
)


@pytest.mark.slow
@pytest.mark.parametrize("number", part([signal.SIGKILL, signal.SIGINT], 2))
def test_a_run_that_was_ended_continues_to_the_same_output(
    run: Run,
    tiny_path: Path,
    tmp_path: Path,
    home: Path,
    number: signal.Signals,
) -> None:
    file, out, straight = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "straight.jsonl"
    file.write_text(MANY)
    options = ["-m", str(tiny_path), "--window", "512"]
    assert run("-p", "--batch", file, "-o", straight, *options).code == 0
    command = [*MLXKV, "-p", "--batch", str(file), "-o", str(out), *options]
    out.touch()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as p:
        while not out.stat().st_size and p.poll() is None:
            threading.Event().wait(0.001)
        p.send_signal(number)
        _, err = p.communicate(timeout=60)
    kept = out.read_text()
    assert 0 < kept.count("\n") < 14
    if number == signal.SIGINT:
        assert (p.returncode, "run the same command again to continue" in err) == (130, True), err
        assert "Traceback" not in err
    done = run("-p", "--batch", file, "-o", out, *options)
    assert done.code == 0
    assert out.read_text().startswith(kept[: kept.rfind("\n") + 1])
    a, b = ([(r["id"], r["text"], r["finish_reason"]) for r in parsed(path.read_text())] for path in (out, straight))
    assert a == b


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tiny_path: Path, tmp_path: Path, home: Path) -> None:
    (tmp_path / "in.jsonl").write_text(MANY)
    command = " ".join([*MLXKV, "-p", "--batch", str(tmp_path / "in.jsonl"), "-m", str(tiny_path)])
    piped = [*("bash", "-c"), f"{command} | head -1; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(piped, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [r["id"] for r in parsed(done.stdout)] == ["n0"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a device that is always full")
def test_a_full_disk_is_one_sentence(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    done = batch(run, tiny_path, INPUT, tmp_path, "-o", "/dev/full")
    assert done.code == 1
    assert done.err.endswith(
        "cannot be written (No space left on device); free some space and run the same command again.\n"
    )


@pytest.mark.slow
def test_progress_is_for_a_terminal(
    run: Run,
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("mlxkv.cli.batch.time.monotonic", iter(range(1000)).__next__)
    done = batch(run, tiny_path, INPUT, tmp_path)
    assert "\r\x1b[K4/5 lines" in done.err
    assert "\r" not in batch(run, tiny_path, INPUT, tmp_path, "-q").err
