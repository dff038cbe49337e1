"""Compares the catalogue with the hub: whether ids exist, and their sizes, licences, contexts and architectures.

Two or three small requests for each entry; nothing is saved. A hub that limits requests or does not answer is not asked
about the rest. Blocks the calling thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mlxkv.cache.planning.trained_length import trained_length
from mlxkv.errors import ConfigError, ModelFileError, escaped
from mlxkv.models.catalogue import CatalogueEntry
from mlxkv.models.files.architecture import has_model_type, is_known
from mlxkv.models.hub.download import is_wanted
from mlxkv.models.hub.fetch import HubStatusError
from mlxkv.models.hub.hub import Hub
from mlxkv.models.hub.repository import RemoteInfo, fetch_config, fetch_file_list, fetch_info

TOLERANCE = 0.05  # of the size
MOST_FAILURES = 2  # without an answer, one after another

_WORDS = re.compile(r"[a-z]+|\d+(?:\.\d+)*")
_FILLERS = {"license", "licence", "model", "community", "agreement", "the"}


class Verdict(StrEnum):
    OK = "ok"
    CHANGED = "changed"
    MISSING = "missing"
    NOT_REACHABLE = "not reachable"


@dataclass(frozen=True)
class Checked:
    """What the hub says of an entry. `details`: what differs, or why that is unknown; () if all is as in the catalogue.

    `asked`: False if asking about earlier ones had shown that the hub is not reachable. The other fields are the hub's;
    None where it was not asked or does not say.
    """

    id: str
    verdict: Verdict
    details: tuple[str, ...] = ()
    hub_id: str | None = None
    size_bytes: int | None = None
    licence: str | None = None
    context: int | None = None
    model_type: str | None = None
    asked: bool = True


def check_entries(entries: Sequence[CatalogueEntry], hub: Hub | None = None) -> Iterator[Checked]:
    """Ask the hub about each entry.

    Raises:
        ConfigError: the address of the hub is invalid.
    """
    hub, failures, why = hub or Hub(), 0, ""
    for entry in entries:
        if why:
            yield Checked(entry.id, Verdict.NOT_REACHABLE, (f"not asked: {why}",), asked=False)
            continue
        checked, is_final = _check(entry, hub)
        failures = failures + 1 if checked.verdict is Verdict.NOT_REACHABLE else 0
        if is_final:
            why = checked.details[0]
        elif failures == MOST_FAILURES:
            why = f"{checked.details[0]}; check the network and HF_ENDPOINT, or try later"
        yield checked


def same_licence(ours: str, hubs: str) -> bool:
    """Whether the hub's identifier ("apache-2.0", "lfm1.0") can be that of a licence by the catalogue's name."""
    return {*_words(hubs)} <= {*_words(ours)}


def _check(entry: CatalogueEntry, hub: Hub) -> tuple[Checked, bool]:
    """The result of an entry, and whether asking about others is useless."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return _ask(entry, hub.url()), False
    except ConfigError:
        raise
    except OfflineModeIsEnabled:
        return Checked(entry.id, Verdict.NOT_REACHABLE, ("HF_HUB_OFFLINE forbids asking; unset it",)), True
    except HubStatusError as error:
        return _refused(entry, error)
    except ModelFileError as error:
        return Checked(entry.id, Verdict.CHANGED, (str(error),)), False
    except Exception as error:  # of the network, or an answer that makes no sense
        return Checked(entry.id, Verdict.NOT_REACHABLE, (f"no usable answer ({type(error).__name__})",)), False


def _refused(entry: CatalogueEntry, error: HubStatusError) -> tuple[Checked, bool]:
    if error.code == "GatedRepo" or error.status == 403:
        return Checked(entry.id, Verdict.CHANGED, (f"gated (HTTP {error.status}): its terms must be accepted",)), False
    if error.status == 401 and error.message.startswith("Invalid credentials"):
        return Checked(entry.id, Verdict.NOT_REACHABLE, ("the hub refuses the token; check HF_TOKEN",)), True
    if error.status in (401, 404):
        return Checked(entry.id, Verdict.MISSING, (f"deleted, renamed or private (HTTP {error.status})",)), False
    if error.status == 429:
        why = "the hub limits requests (HTTP 429); set HF_TOKEN or try later"
        return Checked(entry.id, Verdict.NOT_REACHABLE, (why,)), True
    return Checked(entry.id, Verdict.NOT_REACHABLE, (f"the hub answered HTTP {error.status}",)), False


def _ask(entry: CatalogueEntry, endpoint: str) -> Checked:
    info = fetch_info(endpoint, entry.id, None)
    files, _ = fetch_file_list(endpoint, info.id, info.commit, is_wanted)
    size, names = sum(file.size for file in files), {file.path for file in files}
    config = fetch_config(endpoint, info.id, info.commit) if "config.json" in names else {}
    kind, context = config.get("model_type"), trained_length(config)
    details = [*_differences(entry, info, size), *_config_differences(entry, config, context)]
    return Checked(
        entry.id,
        Verdict.CHANGED if details else Verdict.OK,
        tuple(details),
        info.id,
        size,
        info.licence or None,
        context,
        kind if isinstance(kind, str) else None,
    )


def _differences(entry: CatalogueEntry, info: RemoteInfo, size: int) -> Iterator[str]:
    if info.id != entry.id:
        yield f"renamed to {info.id}"
    if abs(size - entry.size_bytes) > entry.size_bytes * TOLERANCE:
        yield f"{size:,} bytes to download, not {entry.size_bytes:,}"
    if info.licence and not same_licence(entry.licence, info.licence):
        yield f"licence {escaped(info.licence)}, not {entry.licence}"


def _config_differences(entry: CatalogueEntry, config: dict[str, Any], context: int | None) -> Iterator[str]:
    if not has_model_type(config):
        yield "no config.json with a model_type"
        return
    if context is not None and context != entry.context:
        yield f"a context of {context:,} tokens, not {entry.context:,}"
    if not is_known(config):
        yield f"mlx-lm has no module for the model_type {escaped(config['model_type'])}"


def _words(licence: str) -> Iterator[str]:
    return (word for word in _WORDS.findall(licence.lower()) if word not in _FILLERS)
