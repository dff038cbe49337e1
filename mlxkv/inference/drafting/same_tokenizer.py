"""Whether a draft model has the tokenizer of the model it drafts for. Any thread."""

from __future__ import annotations

from mlxkv.errors import MismatchError
from mlxkv.models import LoadedModel


def check_same_tokenizer(loaded: LoadedModel, draft: LoadedModel) -> None:
    """Check that both have the same tokens, with the same ids, and end replies with the same ones.

    Raises:
        MismatchError: they do not; the message names the first difference.
    """
    ours, theirs = (each.tokenizer.get_vocab() for each in (loaded, draft))
    differs = min((id_ for _, id_ in ours.items() ^ theirs.items()), default=None)
    if differs is not None:
        why = f"the token {differs} is not the same"
    elif set(loaded.tokenizer.eos_token_ids) != set(draft.tokenizer.eos_token_ids):
        why = "other tokens end its replies"
    else:
        return
    raise MismatchError(
        f"{draft.name} cannot draft for {loaded.name}: it has another tokenizer ({why}); choose a smaller model of the "
        "same family, or none.",
        "tokenizer",
    )
