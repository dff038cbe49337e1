"""Loads a model's tokenizer with its chat template and end tokens, and the files they come from.

Imports mlx_lm lazily; loads no weights. On the MLX thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxkv.errors import ModelFileError, ModelUnsupportedError, as_sentence
from mlxkv.models.files.architecture import TOKENIZER_CONFIGS, check_files, read_json, repository_like
from mlxkv.models.files.chat_template import FoundTemplate, find_template, is_template
from mlxkv.models.files.end_tokens import EndToken, end_tokens, token_ids
from mlxkv.system.regular_file import opened
from mlxkv.tokenizer.chat_template import FILE
from mlxkv.tokenizer.tokens import encode, tokenizer_file

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

_PROBE = "a0 <|x|>\n"
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer ready to use. `template` is None without one, or if mlx-lm renders the model's chats in Python."""

    tokenizer: TokenizerWrapper
    ends: tuple[EndToken, ...]
    template: FoundTemplate | None


def load_tokenizer(folder: Path, name: str, config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelTokenizer:
    """Load the tokenizer in `folder`.

    Args:
        config, generation: contents of config.json and generation_config.json.

    Raises:
        ModelUnsupportedError: it requires running its own code. ModelFileError: it cannot be read.
    """
    check_files(folder)
    template = find_template(folder)
    known = [*token_ids([config.get("eos_token_id"), generation.get("eos_token_id")])]
    with as_sentence(ModelFileError, lambda why: _tokenizer_error(folder, name, why)), _no_warnings():
        try:
            tokenizer = _load(folder, config, known or None)
            _add_bos(tokenizer._tokenizer, folder)
            # The window bounds a prompt. This is how transformers notes that it has warned of a long one.
            getattr(tokenizer._tokenizer, "deprecation_warnings", {})[_TOO_LONG] = True
        except Exception as error:
            if "trust_remote_code" in str(error):
                raise ModelUnsupportedError(
                    f"The tokenizer of {name} requires running its own code, which mlxkv never does; use another model."
                ) from error
            raise
        if tokenizer._chat_template is not None:
            template = None
        elif not is_template(tokenizer.chat_template):  # several templates, a processor's, or none
            tokenizer.chat_template, tokenizer.has_chat_template = template and template.text, template is not None
        if template is not None:
            setattr(tokenizer, FILE, template.source)
        ends = end_tokens(tokenizer, config, generation)
        tokenizer.eos_token_ids = {token.id for token in ends}
        return ModelTokenizer(tokenizer, ends, template)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Without the warnings of transformers about parts of config.json that it alone would run; they stay if its
    verbosity was changed."""
    from transformers.utils import logging as verbosity

    before = verbosity.get_verbosity()
    if before == logging.WARNING:
        verbosity.set_verbosity_error()
    try:
        yield
    finally:
        verbosity.set_verbosity(before)


def _tokenizer_error(folder: Path, name: str, why: str) -> str:
    """The error about a tokenizer that cannot be loaded; names tokenizer.json only if that file alone fails."""
    file = tokenizer_file(folder)
    if file == "tekken.json":
        return (
            f"{name} has its tokenizer in Mistral's format alone (tekken.json), which mlxkv cannot read; use a "
            f"repository with a tokenizer.json, such as {repository_like('mistral')}."
        )
    if file == "tokenizer.json":
        from tokenizers import Tokenizer

        try:
            with as_sentence(ModelFileError, str):
                alone = Tokenizer.from_file(str(folder / file))
                alone.decode(alone.encode(_PROBE).ids)
        except ModelFileError:
            pass
        else:
            file = next((other for other in TOKENIZER_CONFIGS if (folder / other).is_file()), file)
    return f"The tokenizer of {name} ({file}) cannot be read ({why}); download the model again."


def _load(folder: Path, config: Mapping[str, Any], ends: list[int] | None) -> TokenizerWrapper:
    """mlx-lm's tokenizer.

    transformers needs only the tokenizer's class from config.json, but rejects the file for unrelated values; then it
    gets a config with the class alone. It corrects the regex of Mistral's files if it is asked to.
    """
    from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer
    from transformers import AutoConfig

    extra: dict[str, Any] = {"trust_remote_code": False}
    if _is_tekken(folder):
        extra["fix_mistral_regex"] = True
    try:
        return mlx_lm_load_tokenizer(folder, extra, eos_token_ids=ends)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        try:
            named = {key: config[key] for key in ("tokenizer_class",) if isinstance(config.get(key), str)}
            plain = AutoConfig.for_model(config["model_type"], **named)
            return mlx_lm_load_tokenizer(folder, {**extra, "config": plain}, eos_token_ids=ends)
        except Exception:
            raise error from None


def _is_tekken(folder: Path) -> bool:
    """Whether tokenizer.json has a vocabulary of Mistral's.

    Until transformers 5, its converter wrote such files with the regex of another family: words of Hindi, for example,
    then become other ids than those the model was trained on. transformers replaces the regex if the vocabulary has
    over 100,000 tokens and config.json is of one of Mistral's types and of a transformers before 5. Others use
    Mistral's architecture with a vocabulary of their own, whose regex must stay.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return False
    with opened(file) as vocabulary:  # of a size that `check_files` has limited; `read_bytes` would allocate the limit
        return b'"[INST]"' in vocabulary.read(file.stat().st_size)


def _add_bos(tokenizer: Any, folder: Path) -> None:
    """Apply `add_bos_token: true`, which transformers 5 ignores if there is a tokenizer.json."""
    wanted = (read_json(folder / "tokenizer_config.json") or {}).get("add_bos_token") is True
    can = hasattr(tokenizer, "update_post_processor") and tokenizer.bos_token is not None
    if wanted and can and encode(tokenizer, "a", add_special_tokens=True)[:1] != [tokenizer.bos_token_id]:
        tokenizer.add_bos_token = True
        tokenizer.update_post_processor()
