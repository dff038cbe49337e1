"""`mlxkv serve` as a process: what the documentation shows, and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from mlxkv.cli.app import main
from tests.docs.pages import DOCS, ROOT, blocks


@pytest.fixture
def process(home: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of tutor, and its address."""
    command = [sys.executable, "-m", "mlxkv", "serve", "-m", "tutor", "--port", "0", "--window", "1024"]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as made:
        assert made.stderr is not None
        lines = []
        for line in made.stderr:
            lines.append(line)
            if found := re.search(r"listening on (http://127\.0\.0\.1:\d+/v1)", line):
                yield made, found[1]
                break
        else:
            pytest.fail("".join(lines))
        made.kill()


@pytest.mark.slow
def test_what_the_page_shows_runs_and_sigterm_waits_for_replies(process: tuple[subprocess.Popen[str], str]) -> None:
    server, url = process
    env = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any", "PYTHONPATH": str(ROOT)}
    page = "\n".join(block.code for block in blocks(DOCS / "server.md") if block.kind == "python")
    shown = subprocess.run([sys.executable, "-c", page], env=env, capture_output=True, text=True, check=True).stdout
    prompts = [tuple(map(int, found)) for found in re.findall(r"(\d+) tokens, (\d+) of them cached", shown)]
    assert prompts[1][1] > prompts[0][0]  # the first reply was not prefilled again
    example = [sys.executable, str(ROOT / "examples" / "endpoint.py")]
    printed = subprocess.run(example, env=env, capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"^ *\d+ prefilled \+ \d+ cached", printed, re.MULTILINE)) == 2

    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        ask: Any = {"model": "tutor", "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True}
        stream = iter(client.chat.completions.create(**ask, max_tokens=40, temperature=1.5))
        next(stream)
        server.send_signal(signal.SIGTERM)
        reasons = [chunk.choices[0].finish_reason for chunk in stream]
        assert reasons[-1] in ("length", "stop")
        assert server.stderr is not None
        rest = server.stderr.read()
        assert server.wait() == 0
        assert "ending after the replies that run" in rest
        assert "story" not in rest
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--host", "0.0.0.0"], "needs a key"),
        (["--api-key", "short"], "8 characters"),
        (["--temp", "1000"], "temp"),
        (["--port", "x"], "port"),
    ],
)
def test_options_are_refused_before_anything_is_loaded(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLXKV_API_KEY", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["serve", *args])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_without_the_extra_one_sentence_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("mlxkv.server", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        main(["serve"])
    assert "pip install 'mlxkv[serve]'" in capsys.readouterr().err
