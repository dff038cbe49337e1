"""`mlxkv models ...`: local models, downloads, estimates. `mlxkv.models` does the work."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlxkv.cli.chats import Json, Output, is_confirmed, is_json, open_store
from mlxkv.cli.examples import Group
from mlxkv.cli.setting_options import option_of
from mlxkv.config import Folders, load_settings
from mlxkv.errors import MlxkvError
from mlxkv.system.keep_awake import KeepAwake

if TYPE_CHECKING:
    from mlxkv.models import CatalogueEntry
    from mlxkv.models.check import Checked
    from mlxkv.models.groups import ModelGroup

models = typer.Typer(rich_markup_mode=None, cls=Group, help="List, download, describe and delete models.")


@models.command("ls")
def models_ls(as_json: Json = False, output: Output = "text") -> None:
    """List the models on this machine, then models to download: suggestions first; `*` fits in memory."""
    from mlxkv.cli.tables import print_header, row, width_of_terminal
    from mlxkv.device import current_device
    from mlxkv.models import ranked
    from mlxkv.stats import bytes_text
    from mlxkv.text.clean import clean

    limit, width = current_device().memory_limit, width_of_terminal()
    groups = _groups()
    if is_json(as_json, output):
        here = [model for group in groups for model in group.models]
        found = [{"id": m.id, "is_here": True, "size_bytes": m.size_bytes, "problem": m.problem} for m in here]
        for entry in (suggestion.entry for suggestion in ranked(limit)):
            about = {"size_bytes": entry.size_bytes, "licence": entry.licence, "note": entry.note}
            found.append({"id": entry.id, "is_here": False, **about, "fits": entry.fits(limit)})
        print(json.dumps(found, indent=1))
        return
    print_header([f"{'where':<10}{'size':>7}", "model", "about", "licence"], width)
    for local in (model for group in groups for model in group.models):
        mark = "broken" if local.problem else "here"
        print(row([f"{mark:<10}{bytes_text(local.size_bytes):>7}", local.id, local.problem], None))
    for group in groups:  # models to download are listed all the same
        if group.note:
            print(clean(f"{group.name}: {group.note}"), file=sys.stderr)
    for suggestion in ranked(limit):
        entry = suggestion.entry
        size = f"download {'*' if entry.fits(limit) else ' '}{bytes_text(entry.size_bytes):>7}"
        note = f"{suggestion.reason}: {entry.note}" if suggestion.reason else entry.note
        print(row([size, entry.id, note, entry.licence], width))
    if width is not None:
        print("here: on this machine; download: `mlxkv models pull MODEL` gets it")
    print(f"* fits in the {bytes_text(limit)} usable here, with a chat of 8,192 tokens")


def _groups() -> tuple[ModelGroup, ...]:
    """The models on this machine, as `/model` lists them."""
    from mlxkv.config import Folders, load_settings
    from mlxkv.models.groups import model_groups

    folders, used = Folders.from_env(), []
    if (folders.data / "store.json").exists():
        with suppress(MlxkvError), open_store(folders, enforce=False) as store:  # unreadable chats hide no models
            used = [chat.model for chat in store.list()]
    return model_groups(used, load_settings(folders).model_dirs)


@models.command("pull")
def models_pull(repo: Annotated[str, typer.Argument(help="org/name[@revision]")]) -> None:
    """Download a model; run it again to continue after an interruption."""
    from mlxkv.errors import ModelNotFoundError
    from mlxkv.models import download, resolve
    from mlxkv.stats import bytes_text

    source = resolve(repo)
    if source.repo is None:
        raise ModelNotFoundError(f"{repo!r} is on this machine already; to download a model, name its repository.")

    shown = False

    def show(done: int, total: int) -> None:
        nonlocal shown
        shown = True
        print(f"\r{bytes_text(done)} / {bytes_text(total)}   ", end="", file=sys.stderr, flush=True)

    try:
        with KeepAwake(load_settings(Folders.from_env()).keep_awake).running():
            folder = download(source.repo, source.revision, progress=show)
    except KeyboardInterrupt:
        if shown:
            print("\nThe download was stopped; the same command continues it.", end="", file=sys.stderr)
        raise
    finally:
        if shown:
            print(file=sys.stderr)
    print(folder)


@models.command("info")
def models_info(model: Annotated[str, typer.Argument(help="Built-in name, folder or org/name.")]) -> None:
    """Describe a model from its configuration and tokenizer; no weights are read."""
    from mlxkv.cache.planning.plan import plan_cache
    from mlxkv.cache.planning.trained_length import trained_length
    from mlxkv.cache.recurrent.state_shapes import state_nbytes
    from mlxkv.models import parts_not_loaded, skeleton
    from mlxkv.stats import bytes_text
    from mlxkv.text.clean import clean

    config, network = skeleton(model)
    length = trained_length(config)
    plan = plan_cache(network, is_loaded=False, trained=length)
    state = sum(state_nbytes(network, plan))
    quantized = config.get("quantization") or config.get("quantization_config") or {}
    for name, value in {
        "architecture": config.get("model_type"),
        "layers": len(plan.layers),
        "trained length": f"{length:,} tokens" if length else "unknown",
        "quantized": f"{quantized['bits']} bits" if "bits" in quantized else "no",
        "KV per token": f"{plan.bytes_per_token:,} bytes",
        "KV cache": plan.description,
        **({"recurrent state": f"{bytes_text(state)}, whatever the length of the chat"} if state else {}),
        **({"not loaded": f"{others}; {_not_read(others)}"} if (others := parts_not_loaded(model)) else {}),
        **_text(model),
        "files": _files(model),
    }.items():
        print(f"{name:<15} {clean(str(value))}")


def _not_read(parts: str) -> str:
    """The sentence on the parts of a repository that are not loaded."""
    kinds = [kind for kind in ("images", "sound") if kind in parts]
    verb = "is" if kinds == ["sound"] else "are"
    return f"{' and '.join(kinds)} {verb} not read here" if kinds else "only the text part runs here"


def _text(model: str) -> dict[str, str]:
    """Facts from the tokenizer's files, if they are downloaded."""
    from mlxkv.errors import ModelError
    from mlxkv.models import find_tokenizer

    try:
        found = find_tokenizer(model)
    except ModelError as error:
        return {"tokenizer": str(error)}
    if found is None:
        return {"tokenizer": "not downloaded yet"}
    own = "mlx-lm's own" if found.tokenizer.has_chat_template else "none: messages continue the text"
    ends = "; ".join(f"{token.id} {token.text!r} ({', '.join(token.sources)})" for token in found.ends)
    return {"chat template": str(found.template or own), "ends a reply": ends or "nothing: only --max-tokens"}


def _files(model: str) -> str:
    """Whether the model can be loaded now."""
    from mlxkv.models import Hub, resolve
    from mlxkv.models.files.completeness import problem
    from mlxkv.models.hub.hub import find_local

    source = resolve(model)
    folder = source.path or find_local(Hub(), source.repo or "", source.revision, need_weights=False)
    return (problem(folder, model) if folder else "") or "all here"


@models.command("estimate")
def models_estimate(
    model: Annotated[str, typer.Argument(help="Built-in name, folder or org/name.")],
    window: Annotated[str | None, option_of("window")] = None,
    kv_bits: Annotated[str | None, option_of("kv_bits")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="With this LoRA adapter.")] = None,
) -> None:
    """Estimate the memory of a model and its KV cache, before anything is loaded."""
    from mlxkv.cache.config import CacheConfig
    from mlxkv.memory.estimate import estimate
    from mlxkv.settings.schema import Settings, change
    from mlxkv.stats import bytes_text

    given = {name: value for name, value in (("window", window), ("kv_bits", kv_bits)) if value is not None}
    settings = change(Settings(), given, lambda name: f"The option --{name.replace('_', '-')}")
    e = estimate(model, CacheConfig.from_settings(settings), adapter_path=adapter)
    states = e.state_bytes + e.checkpoint_bytes
    kept = f"recurrent state {bytes_text(e.state_bytes)}, checkpoints up to {bytes_text(e.checkpoint_bytes)}"
    for name, size, note in (
        ("weights", e.weight_bytes, ""),
        ("KV cache", e.cache_bytes - states, f"{e.bytes_per_token:,} bytes per token; {e.description}"),
        *([("states", states, kept)] if states else []),
        ("prefill", e.prefill_bytes, f"at its peak, {e.prefill_chunk} tokens at a time"),
        ("together", e.total_bytes, f"of {bytes_text(e.memory_limit)} usable here"),
    ):
        print(f"{name:<10} {bytes_text(size):>7}  {note}".rstrip())
    if e.not_loaded:
        print(f"not loaded: {e.not_loaded}; {_not_read(e.not_loaded)}")
    print("fits" if e.fits else f"does not fit; {e.advice}")


@models.command("check")
def models_check(
    names: Annotated[list[str] | None, typer.Argument(help="Suggested models; all.", show_default=False)] = None,
    as_json: Json = False,
    output: Output = "text",
) -> None:
    """Compare the suggested models with the hub: id, size, licence, context, architecture.

    Exit code 1: one has changed or is missing; 3: the hub could not be asked about all of them.
    """
    from mlxkv.models.check import Verdict, check_entries
    from mlxkv.stats import plural
    from mlxkv.text.clean import clean

    results: list[Checked] = []
    prints_json = is_json(as_json, output)
    for checked in check_entries(_suggested(names or [])):
        results.append(checked)
        if checked.asked and not prints_json:
            print(_line(checked), flush=True)
    found = Counter(checked.verdict for checked in results)
    if prints_json:
        print(json.dumps([asdict(checked) for checked in results], indent=1))
    else:
        if skipped := [checked for checked in results if not checked.asked]:
            were = "was" if len(skipped) == 1 else "were"
            print(f"{plural(len(skipped), 'model')} {were} {clean(skipped[0].details[0])}.")
        print(", ".join(f"{found[verdict]} {verdict}" for verdict in Verdict))
    if found[Verdict.CHANGED] or found[Verdict.MISSING]:
        raise typer.Exit(1)
    raise typer.Exit(3 if found[Verdict.NOT_REACHABLE] else 0)


def _suggested(names: Sequence[str]) -> list[CatalogueEntry]:
    """The entries of the catalogue with these ids, or all.

    Raises:
        ConfigError: one is not in the catalogue.
    """
    from mlxkv.errors import ConfigError, quoted
    from mlxkv.models import catalogue

    entries = {entry.id.lower(): entry for entry in catalogue()}
    if unknown := [name for name in names if name.lower() not in entries]:
        raise ConfigError(f"{quoted(unknown[0])} is not a suggested model; `mlxkv models ls` lists their ids.")
    return [entries[name.lower()] for name in names] or list(entries.values())


def _line(checked: Checked) -> str:
    from mlxkv.stats import bytes_text
    from mlxkv.text.clean import clean

    size, context = checked.size_bytes, checked.context
    facts = (
        bytes_text(size) if size is not None else "",
        checked.licence or "no licence stated",
        f"{context:,} tokens" if context is not None else "",
        checked.model_type or "",
    )
    told = checked.details or tuple(fact for fact in facts if fact)
    return clean(f"{checked.verdict:<13}  {checked.id}  {', '.join(told)}")


@models.command("rm")
def models_rm(
    repo: Annotated[str, typer.Argument(help="org/name")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a downloaded model."""
    from mlxkv.models import Hub, remove, resolve
    from mlxkv.stats import bytes_text

    stored = resolve(repo).repo
    is_there = stored is not None and Hub().storage(stored).is_dir()
    if not is_there or is_confirmed(f"Delete {stored} from this machine?", yes):  # `remove` says why it cannot
        print(f"freed {bytes_text(remove(repo))}")
