# ruff: noqa: F401, F811 — the fixture `run` is imported
"""`--schema` and `--logprobs`, in print mode and in batches, with what may be wrong about them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import Run, ask, run

SCHEMA = '{"type": "integer", "minimum": 10, "maximum": 99}'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "number.json").write_text(SCHEMA)
    return tmp_path / "number.json"


def check(told: list[dict[str, Any]], num_top: int) -> None:
    """Log-probabilities with texts: sensible, and the likeliest first."""
    for each in told:
        assert each["logprob"] < 0
        top = [one["logprob"] for one in each["top"]]
        assert (len(top), top) == (num_top, sorted(top, reverse=True))
        assert sum(map(math.exp, top)) <= 1


def test_a_reply_follows_the_schema_and_is_told(run: Run, tiny_path: Path, file: Path) -> None:
    options = ("--schema", str(file), "--logprobs", "2", "--output-format")
    result = json.loads(ask(run, tiny_path, "hi", *options, "json").out)
    assert 10 <= int(result["text"]) <= 99
    assert result["finish_reason"] == "stop"
    told = result["logprobs"]
    check(told, 2)
    assert [each["text"] for each in told] == [*result["text"], "<|im_end|>"]
    lines = [json.loads(line) for line in ask(run, tiny_path, "hi", *options, "stream-json").out.splitlines()]
    assert lines[-1]["logprobs"] == told
    assert [each for line in lines for each in line.get("logprobs", ()) if line["type"] == "text"] == told[:2]
    assert "logprobs" not in json.loads(ask(run, tiny_path, "hi", "--output-format", "json").out)
    assert ask(run, tiny_path, "hi", "--schema", str(file)).out.strip().isdigit()


def test_lines_of_a_batch_have_schemas_and_logprobs(run: Run, tiny_path: Path, file: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "b", "schema": {"enum": [True, None]}, "logprobs": 0, "logit_bias": {"5": 2}},
        {"prompt": "c", "schema": {"type": "objekt"}},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--schema", file, "--logprobs", "1", "-q")
    done = run("-p", "--batch", tmp_path / "in.jsonl", "-m", tiny_path, "--temp", "0", "--window", "512",
               "--max-tokens", "9", *options)  # fmt: skip
    number, word, wrong = [json.loads(line) for line in done.out.splitlines()]
    assert 10 <= int(number["text"]) <= 99
    check(number["logprobs"], 1)
    assert word["text"] in ("true", "null")
    check(word["logprobs"], 0)
    assert wrong["error"].startswith("`schema` cannot be followed (Invalid type: objekt)")


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (SCHEMA, ["--logprobs", "2"], "--logprobs is printed as JSON; add --output-format json."),
        ("[1]", [], "is no JSON schema; it must contain an object."),
        ("{", [], "is not JSON ("),
        ('{"type": "objekt"}', [], "`schema` cannot be followed (Invalid type: objekt); change it."),
        (SCHEMA, ["--logit-bias", "a=1"], "must be ids and numbers, such as 1234=-5,42=2"),
        (SCHEMA, ["--xtc-threshold", "0.7"], "must be a number from 0 to 0.5"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run: Run, tiny_path: Path, file: Path, text: str, options: list[str], said: str
) -> None:
    file.write_text(text)
    done = ask(run, tiny_path, "hi", "--schema", str(file), *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1
