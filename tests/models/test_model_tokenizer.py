"""What ends a reply, by the union of a model's files, and where its chat template is found."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

import mlxkv
from mlxkv.cli.app import main as cli
from mlxkv.errors import ModelFileError
from mlxkv.models import Hub, download, find_tokenizer
from mlxkv.models.files.chat_template import find_template
from mlxkv.models.files.end_tokens import end_tokens, token_ids
from mlxkv.models.loading.tokenizer import load_tokenizer
from mlxkv.tokenizer.tokens import decode, encode
from tests.fakes_hub import FakeHub
from tests.tokenizers import CHATML, tiny_folder, tiny_tokenizer

# Marks at which templates end a turn, and others that only look like it.
MARKS = ("<|eot|>", "<|end|>", "<|return|>", "<|text_end|>")
EOT, END, RETURN, TEXT_END = (f"<{m}>" for m in ("|eot|", "|end|", "|return|", "|text_end|"))
HEAD = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
TAIL = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HARMONY = (
    HEAD + "{{ '<|return|>' if loop.last and m['role'] == 'assistant' and not add_generation_prompt else '<|end|>' }}"
    "{% endfor %}" + TAIL
)


def folder_with(tmp_path: Path, **files: Any) -> Path:
    """A tiny model, with these files beside (text, or what becomes JSON; config.json is added to)."""
    folder = tiny_folder(tmp_path / "model", template=None)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if name in ("config.json", "tokenizer_config.json"):
            content = json.loads(path.read_text()) | content
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def info(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli(["models", "info", str(folder)])
    assert not ended.value.code
    return capsys.readouterr().out


# -- what ends a reply -------------------------------------------------------------------------------------------------

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ("2", None, {2}),
        (2, [0], {0, 2}),
        ([2, 7], 9, {2, 7, 9}),
        (["7", "8"], "9", {2, 7, 8, 9}),
        ([[7], [[8]]], None, {2, 7, 8}),
        (None, None, {2}),
        (-1, [999, 10**30, 1e400], {2}),
        (True, [False, None, {}, "x y", 7.5, 7.0], {2, 7}),
        ("<|im_start|>", ["<unknown>"], {1, 2}),
    ],
)
def test_every_file_that_names_an_end_counts(tmp_path: Path, config: Any, generation: Any, expected: set[int]) -> None:
    folder = folder_with(
        tmp_path, **{CONFIG: {"eos_token_id": config}, GENERATION: {"eos_token_id": generation, "top_k": 4}}
    )
    model = mlxkv.load(str(folder))
    assert model.tokenizer.eos_token_ids == expected
    assert {token.id for token in model.loaded.ends} == expected


def test_the_inner_configuration_counts_too() -> None:
    ends = end_tokens(tiny_tokenizer(None), {"text_config": {"eos_token_id": [5], "vocab_size": 64}}, {})
    assert [(token.id, token.sources) for token in ends] == [(2, (TOKENIZER,)), (5, (CONFIG,))]


def test_a_reply_ends_at_what_another_file_names(tmp_path: Path) -> None:
    """The model repeats one token; generation_config.json alone names none that it writes."""
    folder = folder_with(tmp_path, **{GENERATION: {"eos_token_id": [0]}})
    plain = mlxkv.load(str(folder)).generate("hello", max_tokens=8, temperature=0.0)
    token = plain.tokens[2]
    folder = folder_with(tmp_path, **{CONFIG: {"eos_token_id": str(token)}, GENERATION: {"eos_token_id": [0]}})
    ended = mlxkv.load(str(folder)).generate("hello", max_tokens=8, temperature=0.0)
    assert ended.stats.finish_reason == "stop"
    assert ended.tokens == plain.tokens[: plain.tokens.index(token) + 1]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<|im_end|>"),
        (HEAD + "<|eot|>{% endfor %}" + TAIL, "<|eot|>"),
        (HEAD + "\n <|eot|>\n{% endfor %}" + TAIL, "<|eot|>"),
        (HARMONY, "<|return|>"),
        (HEAD + "<|text_end|><|eot|>{% endfor %}" + TAIL, "<|eot|>"),
        (HEAD + "<|end|>\n{% endfor %}{% if not add_generation_prompt %}<|im_end|>{% endif %}" + TAIL, "<|end|>"),
        (HEAD + "\n{% endfor %}" + TAIL, None),
        (HEAD + "<|end|>response{% endfor %}" + TAIL, None),  # it closes a part of the reply
        (HEAD + "{% endfor %}<|im_start|>{% if add_generation_prompt %}<|im_start|>assistant{% endif %}", None),
        ("{{ raise_exception('no') }}", None),
        ("{{ messages[0].nothing.at.all }}", None),
        ("{% for m in nothing_there %}{{ m + 3 }}{% endfor %}{{ 1 + 'a' }}", None),
        ("nothing of what was said", None),
    ],
)
def test_what_the_template_ends_a_turn_with_ends_a_reply(template: str, expected: str | None) -> None:
    tokenizer = tiny_tokenizer(template, marks=MARKS)
    found = {token.text for token in end_tokens(tokenizer, {}, {}) if "chat template" in token.sources}
    assert found == ({expected} if expected else set())


def test_a_line_break_that_is_a_token_of_its_own_ends_nothing() -> None:
    """Gemma's tokenizer has such tokens, and its template writes one after the end of each turn."""
    tokenizer = tiny_tokenizer(HEAD + "<|eot|>\n{% endfor %}" + TAIL, marks=MARKS)
    tokenizer._tokenizer.add_tokens(["\n"])
    assert [token.text for token in end_tokens(tokenizer, {}, {})] == ["<|im_end|>", "<|eot|>"]


@pytest.mark.slow
def test_a_long_nest_of_lists_is_understood_in_time() -> None:
    deep: list[Any] = [3]
    for _ in range(100_000):
        deep = [deep]
    assert list(token_ids(deep)) == []
    assert list(token_ids([[3], 4])) == [4, 3]


# -- where templates are found -----------------------------------------------------------------------------------------

JINJA, LEGACY, PROCESSOR = "chat_template.jinja", "chat_template.json", "processor_config.json"
TOOLS, RAG = "additional_chat_templates/tool_use.jinja", "additional_chat_templates/rag.jinja"
NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]

PLACES: list[tuple[dict[str, Any], tuple[str, str, str] | None]] = [
    ({}, None),
    ({JINJA: "J"}, ("J", JINJA, "default")),
    ({TOKENIZER: {"chat_template": "C"}}, ("C", TOKENIZER, "default")),
    ({LEGACY: {"chat_template": "L"}}, ("L", LEGACY, "default")),
    ({PROCESSOR: {"chat_template": "P"}}, ("P", PROCESSOR, "default")),
    ({JINJA: "J", TOKENIZER: {"chat_template": "C"}, LEGACY: {"chat_template": "L"}}, ("J", JINJA, "default")),
    ({TOKENIZER: {"chat_template": "C"}, LEGACY: {"chat_template": "L"}}, ("C", TOKENIZER, "default")),
    ({TOKENIZER: {"chat_template": NAMED}}, ("D", TOKENIZER, "default")),
    ({TOKENIZER: {"chat_template": NAMED[1:]}}, ("T", TOKENIZER, "tool_use")),
    ({TOKENIZER: {"chat_template": [NAMED[1], {"name": "short", "template": "S"}]}}, ("S", TOKENIZER, "short")),
    ({LEGACY: {"chat_template": {"default": "L"}}}, ("L", LEGACY, "default")),
    ({JINJA: "J", TOOLS: "T"}, ("J", JINJA, "default")),
    ({TOOLS: "T"}, ("T", TOOLS, "tool_use")),
    ({TOOLS: "T", RAG: "R"}, ("R", RAG, "rag")),
    ({TOOLS: "T", TOKENIZER: {"chat_template": "C"}}, ("C", TOKENIZER, "default")),
    ({LEGACY: {"chat_template": 3}}, None),
    ({LEGACY: {}}, None),
    ({JINJA: "\n"}, None),
    ({TOKENIZER: {"chat_template": ""}}, None),
    ({TOKENIZER: {"chat_template": ""}, LEGACY: {"chat_template": "L"}}, ("L", LEGACY, "default")),
    ({TOKENIZER: {"chat_template": [{"name": "default", "template": " "}, NAMED[1]]}}, ("T", TOKENIZER, "tool_use")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("files", "expected"), PLACES)
def test_a_template_is_found_where_it_lies(
    tmp_path: Path, files: dict[str, Any], expected: tuple[str, str, str] | None
) -> None:
    """And is the one that chats are written with."""
    folder = folder_with(tmp_path, **files)
    found = find_template(folder)
    assert (None if found is None else (found.text, found.source, found.name)) == expected
    model = mlxkv.load(str(folder))
    assert model.has_chat_template == (expected is not None)
    if expected:
        assert model.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == expected[0]
        assert model.loaded.template == found


@pytest.mark.parametrize("name", [LEGACY, PROCESSOR])
def test_a_template_that_cannot_be_read_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match=name):
        mlxkv.load(str(folder_with(tmp_path, **{name: "{"})))


def test_a_chat_is_written_with_a_processors_template(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{LEGACY: {"chat_template": CHATML}})
    chat = mlxkv.load(str(folder)).chat(max_tokens=2, temperature=0.0)
    list(chat.send("hello"))
    assert chat.log[0] == 1  # <|im_start|>


def test_models_info_says_what_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(
        tmp_path, **{LEGACY: {"chat_template": CHATML}, GENERATION: {"eos_token_id": [0, 2]}, TOOLS: "T"}
    )
    shown = info(folder, capsys)
    assert f"chat template   {LEGACY} (not taken: tool_use)" in shown
    assert f"0 '<unk>' ({GENERATION}); 2 '<|im_end|>' ({GENERATION}, {TOKENIZER}, chat template)" in shown


def test_a_text_longer_than_the_tokenizer_expects_warns_of_nothing(tmp_path: Path) -> None:
    """transformers said that it "will result in indexing errors"; a window takes any length."""
    folder = folder_with(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 4}))
    records = list[logging.LogRecord]()
    handler, log = logging.Handler(), logging.getLogger("transformers")
    handler.emit = records.append  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        tokenizer = load_tokenizer(folder, "tiny", json.loads((folder / "config.json").read_text()), {}).tokenizer
        assert len(encode(tokenizer, "once upon a time")) > tokenizer.model_max_length == 4
    finally:
        log.removeHandler(handler)
    assert records == []


def test_of_a_model_without_any_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path)
    assert "chat template   none" in info(folder, capsys)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert find_tokenizer(folder) is None
    assert "not downloaded yet" in info(folder, capsys)


def test_all_these_files_are_downloaded(fake: FakeHub, hub: Hub) -> None:
    for name in (LEGACY, PROCESSOR, TOOLS, "generation_config.json", "tokenizer_config.json"):
        fake.files[name] = b"{}"
    folder = download("org/model", hub=hub)
    for name in (JINJA, LEGACY, PROCESSOR, TOOLS, "generation_config.json"):
        assert (folder / name).is_file()


# -- Mistral's regex ---------------------------------------------------------------------------------------------------

# Of tekken.json in Mistral's own package, and the one that transformers' converter wrote into tokenizer.json instead.
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONVERTED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
HINDI = "हिन्दी eBay 123"


def split_tokenizer(regex: str, special: str) -> Tokenizer:
    """Over 100,000 tokens on bytes, with `special`, that merge across a vowel sign, a capital and digits."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    (word, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("िन")
    merges = [*pairwise(word), ("e", "B"), ("1", "2")]
    tokens = ["<unk>", "<s>", "</s>", special, *letters, *dict.fromkeys(a + b for a, b in merges)]
    vocab = {token: i for i, token in enumerate([*tokens, *(f"filler{i}" for i in range(100_000))])}
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>"))
    split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>", special)])
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("regex", "special", "written_by", "kind", "expected"),
    [
        (CONVERTED, "[INST]", "4.52.4", "mistral3", TEKKEN),
        (CONVERTED, "[INST]", None, "mistral", TEKKEN),
        (TEKKEN, "[INST]", "5.0.0.dev0", "mistral3", TEKKEN),  # as Ministral 3
        (CONVERTED, "<|user|>", "4.52.4", "mistral", CONVERTED),  # a vocabulary of its own
        (CONVERTED, "[INST]", "4.52.4", "llama", CONVERTED),
        (CONVERTED, "[INST]", "5.1.0", "mistral3", CONVERTED),
    ],
    ids=["Mistral Small 3.2", "without a version", "Ministral 3", "own vocabulary", "llama", "transformers 5"],
)
def test_mistrals_vocabulary_is_split_by_mistrals_regex(
    tmp_path: Path, regex: str, special: str, written_by: str | None, kind: str, expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    split_tokenizer(regex, special).save(str(tmp_path / "tokenizer.json"))
    config = {"model_type": kind, "transformers_version": written_by}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / TOKENIZER).write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}))
    right, wrong = (split_tokenizer(r, special).encode(HINDI).ids for r in (TEKKEN, CONVERTED))
    assert right != wrong
    loaded = load_tokenizer(tmp_path, "mistral", config, {}).tokenizer
    assert encode(loaded, HINDI) == (right if expected == TEKKEN else wrong)
    assert decode(loaded, encode(loaded, HINDI)) == HINDI
    assert "regex" not in caplog.text
