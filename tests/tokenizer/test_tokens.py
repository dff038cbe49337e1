"""Text to ids and back, for every kind of tokenizer: what follows a text decodes to the text that follows it."""

from __future__ import annotations

import copy
import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import mlxkv
from mlxkv.cache.mlx_lm import OPAQUE
from mlxkv.chat.prompts.prompt import PromptFormat, PromptState, message
from mlxkv.tokenizer.tokens import Detokenizer, decode, encode_after, encode_start
from tests.chats import CONFIG
from tests.tokenizers import tiny_folder

LETTERS = string.ascii_letters + string.digits + ".,!?'"
MERGES = [("a", "b"), ("▁", "a"), ("▁", "▁"), ("▁a", "b"), ("h", "e"), ("▁", "he"), (",", "▁")]
SPACED = decoders.Replace("▁", " ")


def _spm(before: Any = None, *, normalizer: Any = None, strip: bool = True, unigram: bool = False) -> Tokenizer:
    """SentencePiece: spaces are `▁`, what is not in the vocabulary is bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *LETTERS]
    pieces += [a + b for a, b in MERGES]
    if unigram:
        made = models.Unigram([(piece, -len(pieces) / (i + 1)) for i, piece in enumerate(pieces)], 0, True)
    else:
        vocab = {piece: i for i, piece in enumerate(pieces)}
        made = models.BPE(vocab, MERGES, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(made)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if before is not None:
        tokenizer.pre_tokenizer = before
    parts = [SPACED, decoders.ByteFallback(), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if strip else [])]
    tokenizer.decoder = decoders.Sequence(parts)  # type: ignore[assignment]
    return tokenizer


def _bytes(prefix: bool) -> Tokenizer:
    """GPT-2's: every byte is a letter of its own."""
    pieces = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("a", "b"), ("Ġ", "a"), ("Ġ", "Ġ"), ("h", "e"), ("Ċ", "Ċ"), ("Ã", "©"), ("Ġ", "ð")]
    pieces += [a + b for a, b in merges]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def _metaspace(scheme: str) -> Any:
    return pre_tokenizers.Metaspace("▁", scheme, split=False)


def _wrapped(tokenizer: Tokenizer) -> TokenizerWrapper:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))


LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
KINDS = {
    "bytes": _wrapped(_bytes(prefix=False)),
    "bytes with a space in front": _wrapped(_bytes(prefix=True)),
    "legacy": _wrapped(_spm(normalizer=LEGACY)),
    "first": _wrapped(_spm(_metaspace("first"))),
    "always": _wrapped(_spm(_metaspace("always"))),
    "no space in front": _wrapped(_spm(normalizer=normalizers.Replace(" ", "▁"), strip=False)),
    "unigram": _wrapped(_spm(_metaspace("always"), unigram=True)),
}
TEXT = st.text(alphabet=" ab,he\n\0é你😀.Ā\u200d", min_size=1, max_size=12)
kinds = pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)


def read(tokenizer: TokenizerWrapper, ids: list[int], before: list[int]) -> str:
    stream = Detokenizer(tokenizer, before)
    return "".join([*map(stream.add, ids), stream.finish()])


@pytest.mark.slow
@kinds
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
@example(texts=[" ", " "])
def test_texts_that_continue_each_other_decode_to_their_sum(tokenizer: TokenizerWrapper, texts: list[str]) -> None:
    ids = encode_start(tokenizer, texts[0])
    start = decode(tokenizer, ids)
    assert start.removeprefix(" ") == texts[0].removeprefix(" ")  # GPT-2's with a space in front has one too many
    for text in texts[1:]:
        more = encode_after(tokenizer, ids, text)
        assert read(tokenizer, more, ids) == text
        ids += more
    assert decode(tokenizer, ids) == start + "".join(texts[1:])


@kinds
def test_nothing_is_put_in_between(tokenizer: TokenizerWrapper) -> None:
    """`Once upon a time` and `,` became `Once upon a time ,`."""
    for text in (",", " he", "he", "  a", "\n\nab", "\n", "é"):
        ids = encode_start(tokenizer, "ab ab")
        whole = [*ids, *encode_after(tokenizer, ids, text)]
        assert decode(tokenizer, whole).endswith("ab ab" + text)


@kinds
def test_text_behind_ids_that_nobody_knows_begins_as_behind_a_letter(tokenizer: TokenizerWrapper) -> None:
    ids = encode_after(tokenizer, [OPAQUE] * 3, "he")
    assert read(tokenizer, ids, encode_start(tokenizer, "a")) == "he"


@pytest.mark.slow
@kinds
def test_every_character_and_every_byte_comes_out_as_it_is(tokenizer: TokenizerWrapper) -> None:
    before = encode_start(tokenizer, "a")
    for text in [chr(c) for c in range(256)] + ["\u07ff", "\u0800", "\uffff", "\U00010000", "\U0010ffff"]:
        stream = Detokenizer(tokenizer, before)
        *parts, last = [stream.add(token) for token in encode_after(tokenizer, before, text)]
        assert (parts, last, stream.finish()) == ([""] * len(parts), text, "")  # never half of it


@pytest.mark.slow
@kinds
def test_bytes_that_are_no_character_do_not_take_others_with_them(tokenizer: TokenizerWrapper) -> None:
    vocab = tokenizer.get_vocab()
    broken = vocab["ÿ"] if "ÿ" in vocab and "<0xFF>" not in vocab else vocab["<0xFF>"]
    a, b = (encode_after(tokenizer, encode_start(tokenizer, "a"), letter) for letter in "ab")
    assert read(tokenizer, [*a, broken, *b], a) == "a\ufffdb"
    assert read(tokenizer, [broken] * 600, a) == "\ufffd" * 600


@kinds
def test_the_first_space_of_a_completion_is_kept(tokenizer: TokenizerWrapper) -> None:
    before = encode_start(tokenizer, "ab")
    ids = encode_after(tokenizer, before, " he ab")
    assert read(tokenizer, ids, before) == " he ab"


@kinds
def test_a_chat_continues_with_the_ids_of_the_whole(tokenizer: TokenizerWrapper) -> None:
    """What follows a reply is what the tokenizer makes of it there, not of it as a text of its own: `▁` and `\\n`."""
    fast = copy.deepcopy(tokenizer._tokenizer)
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}"
        "assistant\n{% endif %}"
    )
    prompts = PromptFormat(TokenizerWrapper(fast))
    said = [message("user", "he he"), message("assistant", "ab"), message("user", "a ab")]
    first = prompts.prompt(said[:1], PromptState())
    for end in ([2], []):  # a reply that came to its end, and one that was cut
        reply = encode_after(prompts.tokenizer, first.ids, "ab")
        fed = prompts.with_reply(first, "ab", [*reply, *end])
        second = prompts.prompt(said, fed)
        assert second.ids[: len(fed.ids)] == fed.ids
        whole = prompts.encode(second.text)
        assert list(second.ids[len(fed.ids) :]) == whole[len(whole) - len(second.ids) + len(fed.ids) :]
        assert whole.count(2) == list(second.ids).count(2) == 3
    opening = prompts.chat_prefix(None, "ab")
    second = prompts.prompt([message("user", "ab\n\nhe")], opening)
    assert "ab\n\nhe</s>" in decode(prompts.tokenizer, second.ids)


def test_a_text_gets_the_beginning_that_its_tokenizer_puts_before_texts_once_and_no_end() -> None:
    raw = _bytes(prefix=False)
    bos, eos = ("<s>", 1), ("</s>", 2)
    raw.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [bos, eos])  # type: ignore[assignment]
    tokenizer = _wrapped(raw)
    plain = tokenizer.encode("ab", add_special_tokens=False)
    assert tokenizer.encode("ab") == [1, *plain, 2]
    assert encode_start(tokenizer, "ab") == encode_start(tokenizer, "<s>ab") == [1, *plain]
    assert encode_start(tokenizer, "ab</s>") == [1, *plain, 2]
    assert encode_start(KINDS["bytes"], "ab") == plain


def test_add_bos_token_of_the_configuration_holds(tmp_path: Path) -> None:
    """transformers 5 drops it beside a tokenizer.json, so that DeepSeek's raw text lost its beginning."""
    folder = tiny_folder(tmp_path / "tiny")
    path = folder / "tokenizer_config.json"
    text = path.read_text()
    for wanted in (False, True):
        path.write_text(json.dumps({**json.loads(text), "bos_token": "<s>", "add_bos_token": wanted}))
        model = mlxkv.load(str(folder))
        ids = model.prefill("abc", CONFIG).tokens
        assert ids == ([3] if wanted else []) + load_tokenizer(folder).encode("abc", add_special_tokens=False)
        assert model.prefill("<s>abc", CONFIG).tokens[0] == 3
        assert model.prefill("<s>abc", CONFIG).tokens[1] != 3
        model.close()


@pytest.mark.slow
def test_a_prompt_cache_is_continued_and_its_completion_completes(stories_path: Path) -> None:
    model = mlxkv.load(str(stories_path))
    pc = model.prefill("Once upon a time", CONFIG)
    done = model.generate(", there", cache=pc, max_tokens=12, temperature=0.0)
    assert decode(model.tokenizer, pc.tokens) == "Once upon a time, there" + done.text
    done = model.generate("Once upon a time, there was a", max_tokens=8, temperature=0.0)
    assert done.text.startswith(" ")
    model.close()


@kinds
def test_a_control_token_that_is_spelled_behind_other_text_is_text_and_exact(tokenizer: TokenizerWrapper) -> None:
    before = encode_start(tokenizer, "ab")
    for text in ("he</s>a", ",</s>", " </s>"):
        ids = PromptFormat(tokenizer).encode_text(text, before)
        assert 2 not in ids
        assert decode(tokenizer, [*before, *ids]).endswith("ab" + text)
