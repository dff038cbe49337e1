"""Each file in examples/ runs with the built-in model and shows what it is there to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlxkv

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def run(name: str, *arguments: str, stdin: str = "") -> str:
    """What an example prints; it must end well and say nothing on stderr."""
    command = [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(name: str) -> str:
    """The output of an example in examples/README.md."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## \[{re.escape(name)}\].*?^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return found


@pytest.mark.slow
def test_folder_prefills_the_instruction_once() -> None:
    printed = run("folder.py")
    (instruction,) = re.findall(r"^instruction: (\d+) tokens prefilled, once$", printed, re.MULTILINE)
    turns = re.findall(r"^    (\d+) tokens prefilled, (\d+) cached$", printed, re.MULTILINE)
    assert [cached for _, cached in turns] == [instruction] * len(list((EXAMPLES / "letters").iterdir()))
    assert all(0 < int(prefilled) < int(instruction) for prefilled, _ in turns)
    assert re.findall(r"\d+ tokens.*", printed) == re.findall(r"\d+ tokens.*", shown("folder.py"))


@pytest.mark.slow
def test_folder_says_that_a_folder_has_no_files(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "folder.py"), "tutor", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"There is no .txt file in {tmp_path}.\n")


@pytest.mark.slow
def test_ten_questions_prefill_the_document_once() -> None:
    printed = run("ten_questions.py", "tutor", str(EXAMPLES / "document.txt"), "What is decode?", "What are sinks?")
    (document,) = re.findall(r"^document: (\d+) tokens prefilled, [\d,]+ kB on disk$", printed, re.MULTILINE)
    turns = re.findall(r"^ *(\d+) prefilled \+ (\d+) cached  What .*\?\n    \S", printed, re.MULTILINE)
    assert [cached for _, cached in turns] == [document] * 2
    assert all(0 < int(prefilled) < 20 for prefilled, _ in turns)
    counts = r"^(?:document: \d+ tokens| *\d+ prefilled.*)"  # not bytes: tutor computes in float32 on a CPU alone
    assert set(re.findall(counts, printed, re.MULTILINE)) <= set(
        re.findall(counts, shown("ten_questions.py"), re.MULTILINE)
    )


def test_there_are_ten_questions() -> None:
    text = (EXAMPLES / "ten_questions.py").read_text(encoding="utf-8")
    assert len(set(re.findall(r'"([^"]+\?)"', text))) == 10


@pytest.mark.slow
def test_repl_answers_and_caches_the_chat() -> None:
    printed = run("repl.py", stdin="What is a KV cache?\nMy name is Ada.\nWhat is my name?\n")
    assert "keys and values" in printed
    assert "Your name is Ada." in printed
    turns = re.findall(r"^\[(\d+) prefilled, (\d+) cached, \d+ tok/s\]$", printed, re.MULTILINE)
    assert len(turns) == 3
    assert [int(cached) > 0 for _, cached in turns] == [False, True, True]


@pytest.mark.slow
def test_tools_are_left_out_where_the_template_takes_none() -> None:
    printed, expected = run("tools.py").splitlines(), shown("tools.py").splitlines()
    assert (printed[0], len(printed)) == (expected[0], len(expected))


@pytest.mark.slow
def test_four_questions_are_answered_together() -> None:
    printed = run("four_questions.py")
    assert printed.count("batched: True]") == 4
    assert sorted(printed.splitlines()) == sorted(shown("four_questions.py").splitlines())  # in either order


@pytest.mark.slow
def test_the_cache_in_mlx_lms_loop_keeps_its_size() -> None:
    held = re.findall(r"\[(\d+) tokens so far, (\d+) kB\]", run("mlx_lm_loop.py"))
    assert len(held) == 4
    assert len({size for _, size in held}) == 1
    assert int(held[-1][0]) > 2 * 64
    assert [count for count, _ in held] == re.findall(r"\[(\d+) tokens so far", shown("mlx_lm_loop.py"))


@pytest.mark.slow
def test_an_adapter_is_trained_and_loaded(tmp_path: Path) -> None:
    printed = run("adapter.py", "tutor", str(tmp_path))
    assert printed == shown("adapter.py")
    assert {path.name for path in tmp_path.iterdir()} >= {"adapters.safetensors", "adapter_config.json"}


@pytest.mark.slow
def test_the_rotation_is_drawn_as_the_ring_has_it() -> None:
    """Each line against the positions of the rows that a real layer holds after as many tokens."""
    printed = run("rotation.py")
    assert printed == shown("rotation.py")
    lines = re.findall(r"^ *(\d+) +(\d+) +(\d+)  (.+)$", printed, re.MULTILINE)
    model = mlxkv.load("tutor")
    ring = mlxkv.make_cache(model.loaded.model, mlxkv.CacheConfig(window=48, sinks=4, block=8))[0]
    for num_tokens, num_attended, num_evicted, buffer in ((int(a), int(b), int(c), d) for a, b, c, d in lines):
        positions = ring.positions(num_tokens).tolist()
        rows = ["◆" if p < 4 else str((p - 4) // 8 % 10) for p in positions]
        assert buffer.replace(" ", "").rstrip("·") == "".join(rows)
        assert (num_attended, num_evicted) == (len(positions), num_tokens - len(positions))
    assert int(lines[-1][2]) > 48, "too few tokens for a full round"
    model.close()


@pytest.mark.slow
def test_token_ids_are_prefilled_once() -> None:
    assert run("token_ids.py") == shown("token_ids.py")


@pytest.mark.slow
def test_ways_of_sampling_prefill_the_question_once() -> None:
    def counts(text: str) -> list[str]:
        return re.findall(r"^[\w ]+: |<TurnStats .*?, \d+ tokens|<Chat .*? tokens", text, re.MULTILINE)

    printed = counts(run("compare.py"))
    assert printed == counts(shown("compare.py"))
    assert len(printed) == 7


@pytest.mark.slow
def test_a_reply_of_one_form_is_sorted() -> None:
    line = r"^\S+\.txt: (question|thanks|complaint), [1-5] of 5 stars, code [A-Z]{2}-\d{4}$"
    found = re.findall(line, run("json_reply.py"), re.MULTILINE)
    assert len(found) == len(list((EXAMPLES / "letters").iterdir()))


@pytest.mark.slow
def test_the_choice_is_the_ending_with_the_least_perplexity() -> None:
    printed = run("choose.py")
    perplexities = [int(text.replace(",", "")) for text in re.findall(r"perplexity ([\d,]+):", printed)]
    (index,) = re.findall(r"^the choice is number (\d):", printed, re.MULTILINE)
    assert int(index) == perplexities.index(min(perplexities))
    lines = r"^the choice .*|^.*, perplexity"
    assert re.findall(lines, printed, re.MULTILINE) == re.findall(lines, shown("choose.py"), re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short_and_explained(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 41
    assert f"python examples/{name} [MODEL" in text.split('"""')[1]
    assert f"## [{name}]({name})\n" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
