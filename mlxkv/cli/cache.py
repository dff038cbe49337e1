"""`mlxkv cache ...`: named prompt caches. Parses and prints; `Model` and the store do the work."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxkv.cli.completion import models, prompt_caches
from mlxkv.cli.examples import Group
from mlxkv.cli.setting_options import option_of
from mlxkv.config import Folders, load_settings
from mlxkv.protocol.export_format import CACHE_FORMATS, CACHE_SUFFIXES, export_format
from mlxkv.system.keep_awake import KeepAwake

if TYPE_CHECKING:
    from mlxkv.store.prompts.folder import NamedCache, PromptFolder

cache = typer.Typer(rich_markup_mode=None, cls=Group, help="Prefill a text once, ask about it many times.")

Name = Annotated[str, typer.Argument(help="Name of the prompt cache.", autocompletion=prompt_caches)]
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Names; without any, all.", show_default=False, autocompletion=prompt_caches),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a prompt cache of the same name.")]
ModelName = Annotated[
    str | None, typer.Option("-m", "--model", help="Built-in name, folder or org/name.", autocompletion=models)
]
AdapterName = Annotated[str | None, typer.Option("--adapter", help="LoRA adapter of the model: a folder or org/name.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@cache.command("create")
def cache_create(
    name: Name,
    file: Annotated[
        list[Path] | None, typer.Option("-f", "--file", help="A text to prefill (- is stdin); may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="System prompt, or @FILE.")] = None,
    model: ModelName = None,
    adapter: AdapterName = None,
    window: Annotated[str | None, option_of("window")] = None,
    sinks: Annotated[str | None, typer.Option("--sinks", help="Pinned tokens: a number, or system.")] = None,
    kv_bits: Annotated[str | None, option_of("kv_bits")] = None,
    force: Force = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Prefill files (and a system prompt), for `mlxkv -p QUESTION --cache NAME`."""
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cli.input_files import STDIN, piped_text, question_with, text_or_file
    from mlxkv.errors import PromptError

    folders = Folders.from_env()
    flags = {
        "model": model,
        "adapter": adapter,
        "window": window,
        "sinks": sinks,
        "system": system and text_or_file(system),
    }
    settings = load_settings(folders, flags=flags | ({} if kv_bits is None else {"kv_bits": kv_bits}))
    piped = piped_text(sys.stdin, report=False) if STDIN in (file or []) else ""
    config, text = CacheConfig.from_settings(settings), question_with(None, file or [], piped)
    if not text and not settings.system:
        raise PromptError(
            "There is nothing to prefill; give files with -f (-f - is standard input) or a system prompt with -s."
        )
    folder = _folder(folders)
    path = folder.new(name, replace=force)
    held = _load(folders, settings.model, settings.adapter_name)
    try:
        show = None if quiet or not sys.stderr.isatty() else _progress
        with KeepAwake(settings.keep_awake).running():
            pc = held.prefill(text, config, system=settings.system, chat=True, progress=show, save_to=path)
            size = pc.save(path)
        folder.remove_replaced(path)
        if pc.num_evicted:
            print(
                f"The text has {pc.offset:,} tokens and the window holds {pc.capacity:,}: its oldest part was evicted; "
                f"give a larger --window to keep all of it.",
                file=sys.stderr,
            )
    finally:
        held.close()
    from mlxkv.stats import bytes_text
    from mlxkv.store.kv.disk_usage import on_disk

    print(f"{name}  {pc.offset:,} tokens  {bytes_text(on_disk(size))}")


@cache.command("ls")
def cache_ls(as_json: Json = False) -> None:
    """List the prompt caches: name, date, tokens, size, model, start of the text."""
    from mlxkv.cli.tables import date_text, print_header, row, width_of_terminal
    from mlxkv.stats import bytes_text, disk_text
    from mlxkv.store.kv.disk_usage import CacheFolder, on_disk

    folders = Folders.from_env()
    found = _folder(folders).list()
    if as_json:
        print(json.dumps([_json(c) for c in found], indent=1))
        return
    wide = max((len(c.name) for c in found), default=0)
    if found:
        names = ["name".ljust(wide), f"{'made':<16}", f"{'tokens':>12}", f"{'size':>7}", "model", "text"]
        print_header(names, width_of_terminal())
    for c in found:
        tokens = "damaged" if c.error else "imported" if c.num_tokens is None else f"{c.num_tokens:,} tok"
        size = bytes_text(on_disk(c.size))  # as counted in the total below
        columns = [c.name.ljust(wide), date_text(c.made), f"{tokens:>12}", f"{size:>7}", Path(c.model).name]
        print(row([*columns, " ".join((c.head or c.system or c.error or "").split())], width_of_terminal()))
    used, limit = CacheFolder.at(folders.cache).used(), load_settings(folders).disk_limit_bytes
    named = sum(on_disk(c.size) for c in found)
    used = f"KV on disk in all: {disk_text(used, limit, named, _state_bytes(folders))}"
    print(used if found else f"None yet; `mlxkv cache create` makes one. {used}", file=sys.stderr)


@cache.command("show")
def cache_show(name: Name, as_json: Json = False) -> None:
    """Show a prompt cache: model, tokens, bytes, window, start of the text."""
    from mlxkv.cache.config import named_bits
    from mlxkv.cli.tables import date_text
    from mlxkv.errors import CorruptError
    from mlxkv.stats import bytes_text
    from mlxkv.store.kv.disk_usage import on_disk
    from mlxkv.text.clean import clean

    folder = _folder()
    c = folder.describe(folder.find(name))
    if c.error:
        raise CorruptError(c.error)
    if as_json:
        print(json.dumps(_json(c), indent=1))
        return
    config = c.config or {}
    facts = {
        "name": c.name,
        "file": str(c.path),
        "made": date_text(c.made),
        "model": c.model or "unknown",
        "adapter": c.adapter or "",
        "tokens": "unknown: mlx-lm wrote it; use it only if you trust its source"
        if c.num_tokens is None
        else f"{c.num_tokens:,}",
        "size": f"{bytes_text(on_disk(c.size))} on disk, {c.size:,} bytes in the file",
        "rows": bytes_text(c.row_bytes) if c.state_bytes else "",
        "state": f"{bytes_text(c.state_bytes)}, of the recurrent layers" if c.state_bytes else "",
        "window": f"{config['window']:,}" if isinstance(config.get("window"), int) else "",
        "bits": str(named_bits(config.get("bits")) or ""),
        "system": c.system or "",
        "text": c.head or "",
    }
    for key, value in facts.items():
        if value:
            print(f"{key:<8} {' '.join(clean(value).split())}")


@cache.command("verify")
def cache_verify(
    names: Names = None,
    repair: Annotated[bool, typer.Option("--repair", help="Set damaged ones aside; repair the store.")] = False,
) -> None:
    """Verify every byte of the prompt caches; without names, also all chats and their KV rows."""
    from mlxkv.text.clean import clean

    folder, bad = _folder(), 0
    for path in [folder.find(name) for name in names] if names else [c.path for c in folder.list()]:
        c = folder.verify(path)
        if c.error and repair:
            folder.quarantine(path)
        bad += bool(c.error) and not repair
        advice = " Set aside; create it again with `mlxkv cache create`." if repair else ""
        state = f"!!  {c.name}  {c.error}{advice}" if c.error else f"ok  {c.name}"
        print(clean(state + (" (mlx-lm's files have no checksum)" if c.is_imported and not c.error else "")))
    if not names:
        bad += _verify_store(repair)
    raise typer.Exit(1 if bad else 0)


def _verify_store(repair: bool) -> bool:
    from mlxkv.stats import bytes_text, plural
    from mlxkv.store.session_store import SessionStore
    from mlxkv.text.clean import clean

    with SessionStore.open(Folders.from_env()) as store:
        report = store.verify(repair)
    for problem in report.problems:
        mark = "ok" if problem.repaired or not problem.is_serious else "!!"
        print(clean(f"{mark}  {problem.text}{' Repaired.' if problem.repaired else ''}"))
    print(
        f"{'ok' if report.ok else '!!'}  {plural(report.num_sessions, 'chat')}, {plural(report.num_turns, 'message')}, "
        f"{report.num_chunks:,} chunks, {bytes_text(report.num_bytes)} read"
    )
    return not report.ok


@cache.command("gc")
def cache_gc() -> None:
    """Remove unused files: those set aside, those left by crashes, and rows over the disk limit."""
    from mlxkv.stats import bytes_text
    from mlxkv.store.kv.disk_usage import CacheFolder
    from mlxkv.store.session_store import SessionStore

    folders = Folders.from_env()
    folder = _folder(folders)
    before = CacheFolder.at(folders.cache).used()
    folder.collect()
    with SessionStore.open(folders) as store:
        store.collect()
        after = store.disk_usage()
    print(f"freed {bytes_text(max(before - after, 0))}")


@cache.command("rename")
def cache_rename(name: Name, new: Annotated[str, typer.Argument(help="New name.")]) -> None:
    """Rename a prompt cache."""
    _folder().rename(name, new)


@cache.command("rm")
def cache_rm(
    names: Annotated[list[str], typer.Argument(help="Names.", autocompletion=prompt_caches)],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete prompt caches."""
    from mlxkv.cli.chats import is_confirmed
    from mlxkv.stats import bytes_text
    from mlxkv.store.kv.disk_usage import on_disk

    folder = _folder()
    found = [folder.find(name) for name in names]  # an unknown name is reported before anything is deleted
    for path in dict.fromkeys(found):
        name = path.name.removesuffix(path.suffix)
        if is_confirmed(f"Delete the prompt cache {name} ({bytes_text(on_disk(path.lstat().st_size))})?", yes):
            folder.remove(path)
            print(f"deleted {name}")


@cache.command("export")
def cache_export(
    name: Name,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write (.safetensors, .kv).")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="mlx-lm, mlx-lm-0.31 (or older), or kv. Default: by FILE's suffix, else mlx-lm.",
            autocompletion=lambda incomplete: [name for name in CACHE_FORMATS if name.startswith(incomplete)],
        ),
    ] = None,
    model: ModelName = None,
    adapter: AdapterName = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Export a prompt cache for mlx-lm (`mlx_lm.generate --prompt-cache-file`), or unchanged."""
    from mlxkv.cli.input_files import STDOUT
    from mlxkv.cli.print_mode import open_cache
    from mlxkv.errors import ConfigError, StoreError
    from mlxkv.stats import bytes_text
    from mlxkv.store.session_store import SessionStore

    if output == STDOUT:
        raise ConfigError("A prompt cache is not text; name a file with -o FILE.")
    chosen = export_format(format_, output, CACHE_SUFFIXES, tuple(CACHE_FORMATS), force=force)
    folders = Folders.from_env()
    folder = _folder(folders)
    path = folder.find(name)
    if chosen == "kv":
        if path.suffix != ".kv":
            raise StoreError(f"{name} was made by mlx-lm, whose files have no ids; export it as mlx-lm.")
        with SessionStore.open(folders) as store, store.saving_named(output) as room:
            size = folder.copy_in(path, output, room)
    else:
        made_with = folder.describe(path)
        held = _load(folders, model or made_with.model or None, adapter or (None if model else made_with.adapter))
        try:
            size = open_cache(held, path).export_mlx_lm(output, CACHE_FORMATS[chosen])
        finally:
            held.close()
    print(f"{output}  {bytes_text(size)}")


@cache.command("import")
def cache_import(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A prompt cache that mlx-lm saved, or a .kv file (- is stdin).")],
    model: ModelName = None,
    adapter: AdapterName = None,
    force: Force = False,
) -> None:
    """Import a prompt cache. mlx-lm's contain no token ids: use only those from people you trust."""
    from mlxkv.cli.input_files import as_file

    with as_file(file) as path:
        _import(name, path, model, adapter, force)


def _import(name: str, file: Path, model: str | None, adapter: str | None, force: bool) -> None:
    from mlxkv.errors import CorruptError
    from mlxkv.safetensors.header import read_header
    from mlxkv.stats import bytes_text
    from mlxkv.store.kv.disk_usage import on_disk
    from mlxkv.store.prompts.mlx_lm_file import describe_mlx_lm, made_with
    from mlxkv.store.session_store import SessionStore

    folders = Folders.from_env()
    folder = _folder(folders)
    ours = "mlxkv" in read_header(file).metadata
    notes: tuple[str, ...] = ()
    by = "" if ours else made_with(describe_mlx_lm(file)[2])
    path = folder.new(name, imported=not ours, replace=force)
    if ours:
        checked = folder.verify(file)
        if checked.error:
            raise CorruptError(checked.error)
        with SessionStore.open(folders) as store, store.saving_named(path) as room:
            size = folder.copy_in(file, path, room)
    else:
        held = _load(folders, model or by or None, adapter)
        try:
            taken = held.import_mlx_lm(file)
            size = taken.export_mlx_lm(path)
            notes = taken.plan.notes
        finally:
            held.close()
    folder.remove_replaced(path)
    print(f"{name}  {bytes_text(on_disk(size))}")
    if not ours:
        print("It contains no token ids: its creator decides what the model believes it has read.", file=sys.stderr)
        for note in notes:
            print(f"{note[0].upper()}{note[1:]}.", file=sys.stderr)


def _load(folders: Folders, name: str | None, adapter: str | None) -> Any:
    from mlxkv.device import check_platform
    from mlxkv.model import load
    from mlxkv.models import BUILT_IN

    check_platform()
    return load(name or BUILT_IN[0], folders=folders, adapter_path=adapter)


def _state_bytes(folders: Folders) -> int:
    """Bytes of the recurrent states of all chats; 0 if there are no chats, or they cannot be read."""
    from mlxkv.errors import MlxkvError
    from mlxkv.store.db.open import DATABASE
    from mlxkv.store.session_store import SessionStore

    if (folders.data / DATABASE).exists():
        with suppress(MlxkvError), SessionStore.open(folders, enforce=False, when_full="read") as store:
            return store.state_bytes()
    return 0


def _folder(folders: Folders | None = None) -> PromptFolder:
    from mlxkv.store.prompts.folder import PromptFolder

    return PromptFolder(folders or Folders.from_env())


def _progress(done: int, total: int) -> None:
    print(f"\rprefilled {done:,} of {total:,} tokens", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _json(c: NamedCache) -> dict[str, Any]:
    shares = () if c.state_bytes else ("row_bytes", "state_bytes")
    return {key: value for key, value in asdict(c).items() if key not in shares} | {"path": str(c.path)}
