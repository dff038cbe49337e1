"""The options of `mlxkv`: parsed and checked without importing mlx, mlx_lm or textual.

`mlxkv QUESTION` and its options are the command `chat`, which need not be named. Exit codes: 0 ok, 1 failed, 2 usage,
130 interrupted; 3 of `models check`: the hub was not reached. Every error is one sentence on stderr; a traceback only
with --debug.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxkv.cli.bench.command import bench
from mlxkv.cli.cache import cache
from mlxkv.cli.chats import Json, chats, ids_for_completion
from mlxkv.cli.close_command import mistyped, question_of
from mlxkv.cli.completion import insert_chat_command, presets, prompt_caches
from mlxkv.cli.completion import models as model_names
from mlxkv.cli.error_output import UsageErrors, exit_code, json_format, report, usage_text
from mlxkv.cli.examples import COMMANDS_OF, Command, Root
from mlxkv.cli.input_files import STDOUT, piped_text, question_with, schema_file, text_or_file
from mlxkv.cli.models import models
from mlxkv.cli.print_mode import PrintRequest
from mlxkv.cli.serve import serve
from mlxkv.cli.setting_options import option_of
from mlxkv.cli.start import (
    begin_group,
    chosen_model,
    first_commands,
    model_name,
    named_cache,
    open_window,
    session_id_of,
    sources_of,
    talk_in_lines,
)
from mlxkv.config import Folders, Settings, load_settings, load_sources, unknown_variable
from mlxkv.distributed.group import rank_given, wish_given
from mlxkv.errors import ConfigError, MlxkvError, OutOfMemoryError, OutputClosedError, PromptError
from mlxkv.settings.presets import PresetFolder
from mlxkv.settings.schema import CACHE_SETTINGS, help_of
from mlxkv.system.keep_awake import KeepAwake
from mlxkv.system.streams import run
from mlxkv.system.terminal import GONE, detach_terminal, is_terminal_error
from mlxkv.text.clean import clean

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cli.batch import BatchRequest
    from mlxkv.model import Model


_COMMANDS = {
    "chat", "chats", "cache", "models", "serve", "bench", "doctor", "path", "--help", "-h", "--install-completion",
    "--show-completion",
}  # fmt: skip


_RESUME_HELP = "Resume this chat (title, id or id prefix); alone: choose one."
_NO_VALUE = "\0"  # no argument of a program can contain it


app = typer.Typer(
    cls=Root,
    rich_markup_mode=None,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Chat with a local model whose KV cache rotates in place and survives a restart.",
)
app.add_typer(chats, name="chats")
app.add_typer(cache, name="cache")
app.add_typer(models, name="models")


class Output(StrEnum):
    text = "text"
    json = "json"
    stream_json = "stream-json"


@app.command()
def chat(
    words: Annotated[list[str] | None, typer.Argument(metavar="QUESTION", help="What to ask first, in quotes.")] = None,
    print_: Annotated[bool, typer.Option("-p", "--print", help="Print the reply and end (implied in a pipe).")] = False,
    model: Annotated[str | None, option_of("model", autocompletion=model_names)] = None,
    adapter: Annotated[str | None, option_of("adapter")] = None,
    preset: Annotated[
        str | None, typer.Option("-P", "--preset", help="Settings saved under this name.", autocompletion=presets)
    ] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="System prompt, or @FILE.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option("-f", "--file", help="Put a file before the question (- is stdin).")
    ] = None,
    continue_: Annotated[bool, typer.Option("-c", "--continue", help="Continue the last chat.")] = False,
    resume: Annotated[
        str | None, typer.Option("-r", "--resume", help=_RESUME_HELP, autocompletion=ids_for_completion)
    ] = None,
    fork: Annotated[bool, typer.Option("--fork", help="With -c or -r: continue in a copy.")] = False,
    named: Annotated[
        str | None, typer.Option("--cache", help="With -p: ask this prompt cache.", autocompletion=prompt_caches)
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", help="Answer the prompts of FILE, one JSON object a line (- is stdin).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="With --batch: write here; a second run continues.")
    ] = None,
    as_finished: Annotated[
        bool, typer.Option("--as-finished", help="With --batch: replies as they finish, not in order.")
    ] = False,
    no_save: Annotated[bool, typer.Option("--no-save", help="Leave nothing on disk.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help=help_of("plain"))] = False,
    no_mouse: Annotated[bool, typer.Option("--no-mouse", help="Leave the mouse to the terminal.")] = False,
    no_stdin: Annotated[bool, typer.Option("-n", "--no-stdin", help="Do not read standard input.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No figures on stderr.")] = False,
    max_tokens: Annotated[str | None, option_of("max_tokens")] = None,
    thinking_budget: Annotated[str | None, option_of("thinking_budget")] = None,
    temp: Annotated[str | None, option_of("temperature")] = None,
    top_p: Annotated[str | None, option_of("top_p")] = None,
    top_k: Annotated[str | None, option_of("top_k")] = None,
    min_p: Annotated[str | None, option_of("min_p")] = None,
    seed: Annotated[str | None, option_of("seed")] = None,
    repetition_penalty: Annotated[str | None, option_of("repetition_penalty")] = None,
    repetition_context_size: Annotated[str | None, option_of("repetition_context_size")] = None,
    presence_penalty: Annotated[str | None, option_of("presence_penalty")] = None,
    presence_context_size: Annotated[str | None, option_of("presence_context_size")] = None,
    frequency_penalty: Annotated[str | None, option_of("frequency_penalty")] = None,
    frequency_context_size: Annotated[str | None, option_of("frequency_context_size")] = None,
    xtc_probability: Annotated[str | None, option_of("xtc_probability")] = None,
    xtc_threshold: Annotated[str | None, option_of("xtc_threshold")] = None,
    logit_bias: Annotated[str | None, option_of("logit_bias")] = None,
    schema: Annotated[
        Path | None, typer.Option("--schema", help="With -p: the reply follows the JSON schema in FILE.")
    ] = None,
    logprobs: Annotated[
        int | None, typer.Option("--logprobs", help="Report log-probabilities, and of so many likeliest tokens.")
    ] = None,
    think: Annotated[bool | None, typer.Option("--think/--no-think", help=help_of("think"))] = None,
    window: Annotated[str | None, option_of("window")] = None,
    sinks: Annotated[str | None, option_of("sinks")] = None,
    kv_bits: Annotated[str | None, option_of("kv_bits")] = None,
    disk_limit: Annotated[str | None, option_of("disk_limit")] = None,
    no_draft: Annotated[bool, typer.Option("--no-draft", help="Draft no tokens.")] = False,
    draft_model: Annotated[str | None, option_of("draft_model", autocompletion=model_names)] = None,
    load_anyway: Annotated[bool, typer.Option("--load-anyway", help="Try a model that does not fit.")] = False,
    hosts: Annotated[Path | None, typer.Option("--hosts", help="Split the model between the machines of FILE.")] = None,
    distributed: Annotated[
        str | None, typer.Option("--distributed", help="How to split it: auto, tensor or pipeline.")
    ] = None,
    output: Annotated[Output, typer.Option("--output-format", help="text, json or stream-json.")] = Output.text,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks, for bug reports.", hidden=True)] = False,
) -> None:
    """Open the chat, or with -p print one reply."""
    question = question_of(words or [], file or [])
    out = None if out == STDOUT else out
    if fork and resume is None and not continue_:
        raise ConfigError("--fork copies the chat that -c or -r continues; add one of them.")
    folders = Folders.from_env()
    no_stdin |= rank_given() is not None  # `mlx.launch` keeps it open
    flags = {
        "adapter": adapter, "model": model, "system": system and text_or_file(system), "temperature": temp,
        "top_p": top_p, "top_k": top_k, "min_p": min_p, "max_tokens": max_tokens, "thinking_budget": thinking_budget,
        "seed": seed, "window": window, "sinks": sinks,
        "plain": plain or None, "mouse": False if no_mouse else None, "kv_bits": kv_bits, "disk_limit": disk_limit,
        "repetition_penalty": repetition_penalty, "repetition_context_size": repetition_context_size,
        "presence_penalty": presence_penalty, "presence_context_size": presence_context_size,
        "frequency_penalty": frequency_penalty, "frequency_context_size": frequency_context_size,
        "xtc_probability": xtc_probability, "xtc_threshold": xtc_threshold, "logit_bias": logit_bias,
        "think": think, "draft": False if no_draft else None, "draft_model": draft_model,
    }  # fmt: skip
    taken = PresetFolder(folders).load(preset) if preset is not None else None
    given = load_sources(folders, flags=flags)
    sources, _ = sources_of(folders, given, None, taken)
    settings = sources.settings
    if disk_limit is not None:
        os.environ["MLXKV_DISK_LIMIT"] = disk_limit  # the store reads it when it is opened
    picks = False
    asked = named_cache(folders, named, system, continue_ or resume is not None)
    from mlxkv.cache.config import CacheConfig
    from mlxkv.device import check_platform
    from mlxkv.inference.sampling import SamplingParams

    bounds = CacheConfig.from_settings(settings)
    sampling = {**settings.sampling, "logprobs": logprobs}
    SamplingParams.for_model({}, **sampling)  # reports invalid values before a model is loaded
    if logprobs is not None and output is Output.text and batch is None:
        raise ConfigError("--logprobs is printed as JSON; add --output-format json.")
    follows = schema_file(schema) if schema is not None else None

    check_platform()
    begin_group(hosts, distributed)
    if batch is not None or out is not None or as_finished:
        others = {
            "a question": question, "-f": file, "-c": continue_, "-r": resume, "--fork": fork,
            "--output-format": output is not Output.text,
        }  # fmt: skip
        from mlxkv.cli.batch import batch_request

        todo = batch_request(batch, out, as_finished, others, settings, asked, quiet, follows)
        raise typer.Exit(_batch(folders, settings, sampling, todo, bounds, model, load_anyway))
    printing = print_ or asked is not None or follows is not None or output is not Output.text
    printing = printing or not (plain or (sys.stdin.isatty() and sys.stdout.isatty()))
    plain = settings.plain or bool(os.environ.get("ACCESSIBLE")) or os.environ.get("TERM") == "dumb"
    if resume == _NO_VALUE:  # show the list of chats, on a terminal
        picks, resume, continue_ = not (continue_ or printing), None, continue_ or printing
    session_id = None if picks else session_id_of(folders, resume, continue_, printing)
    if printing:
        sources, unusable = sources_of(folders, given, session_id, taken)
        settings = sources.settings
        bounds, sampling = CacheConfig.from_settings(settings), {**settings.sampling, "logprobs": logprobs}
        if unusable and not quiet:
            print(clean(unusable), file=sys.stderr)
        reports = bool(question) and not quiet and output is Output.text
        request = PrintRequest(
            question_with(question, file or [], "" if no_stdin else piped_text(sys.stdin, reports)),
            settings.system,
            session_id,
            fork,
            not no_save,
            quiet,
            output.value,
            asked,
            settings.think,
            follows,
            sources.chat if taken is not None else None,
            session_id is not None and taken is None and sources.has_own(CACHE_SETTINGS),
        )
        raise typer.Exit(_print(folders, settings, sampling, request, bounds, model, load_anyway))
    question = question_with(question, file) if file else question
    wanted = sources_of(folders, given, session_id, taken)[0].settings
    talk = talk_in_lines if plain else open_window
    raise typer.Exit(
        talk(
            folders,
            sources,
            first_commands(folders, wanted, session_id, fork, picks, load_anyway, preset),
            question,
            not no_save,
        )
    )


def _print(
    folders: Folders,
    settings: Settings,
    sampling: dict[str, Any],
    request: PrintRequest,
    cache: CacheConfig,
    model_flag: str | None,
    load_anyway: bool,
) -> int:
    if not request.question.strip():
        raise PromptError('The prompt is empty; give one, as in `mlxkv -p "Why is the sky blue?"`.')
    from mlxkv.cache.config import CacheConfig
    from mlxkv.cli.print_mode import answer

    with KeepAwake(settings.keep_awake).running():
        checked = CacheConfig() if request.has_own_bounds else cache  # those are checked once the model is loaded
        model, loaded = _loaded(folders, settings, request.cache, request.resume, checked, model_flag, load_anyway)
        cache = cache if request.has_own_bounds else loaded
        bounds = cache if request.resume is None or settings.bounds_cache else None
        return answer(model, request, bounds, sampling, sys.stdout, sys.stderr)


def _batch(
    folders: Folders,
    settings: Settings,
    sampling: dict[str, Any],
    request: BatchRequest,
    cache: CacheConfig,
    model_flag: str | None,
    load_anyway: bool,
) -> int:
    from mlxkv.cli.batch import opened_batch, run_batch

    with opened_batch(request, sys.stdout) as opened, KeepAwake(settings.keep_awake).running():  # errors of files first
        model, cache = _loaded(folders, settings, request.cache, None, cache, model_flag, load_anyway)
        return run_batch(model, opened, cache, sampling, sys.stderr)


def _loaded(
    folders: Folders,
    settings: Settings,
    named: Path | None,
    resume: str | None,
    cache: CacheConfig,
    model_flag: str | None,
    load_anyway: bool,
) -> tuple[Model, CacheConfig]:
    """The model for a prompt cache or a chat, and the bounds of its cache."""
    from mlxkv.memory.preflight import WINDOW, alternatives, check_fit
    from mlxkv.model import load
    from mlxkv.models import BUILT_IN
    from mlxkv.store.prompts.folder import PromptFolder

    made_with = None if named is None or model_flag else PromptFolder(folders).describe(named)
    name, adapter = chosen_model(folders, settings, resume)
    if made_with is not None and made_with.model:
        is_given = settings.adapter != "auto" and settings.model in (None, made_with.model)
        name, adapter = made_with.model, adapter if is_given else made_with.adapter
    name = name or BUILT_IN[0]
    if (wish := wish_given()) is not None:
        pass  # each machine checks its own part
    elif load_anyway:
        cache = cache if cache.window else replace(cache, window=WINDOW)
    elif found := check_fit(name, cache, adapter=adapter, draft=settings.draft_model if settings.draft else None):
        raise OutOfMemoryError(f"{found.text}; {alternatives(found)}.")
    draft = settings.drafting
    loaded = load(
        name, folders=folders, limited=not load_anyway, draft=draft, adapter_path=adapter, distributed=wish
    )  # fmt: skip
    return loaded, cache


# -- other commands ---------------------------------------------------------------------------------------------------


@app.command()
def doctor(
    device: Annotated[
        bool, typer.Option("--device", help="Check tokens, memory and speed on this device, in a minute or two.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="With --device or --hosts: this model.", autocompletion=model_names),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    hosts: Annotated[Path | None, typer.Option("--hosts", help="Check the machines of FILE.")] = None,
) -> None:
    """Check the installation, this machine and the folders; or, for a report, the device.

    Exit code 1: something is wrong.
    """
    if device:
        from mlxkv.cli.device_check.command import check_device
        from mlxkv.models import BUILT_IN

        folders = Folders.from_env()
        chosen = model or model_name(folders, load_settings(folders), None)
        raise typer.Exit(check_device(list(dict.fromkeys([BUILT_IN[0], chosen or BUILT_IN[0]])), as_json))
    if model is not None and hosts is None:
        raise ConfigError("-m chooses the model that --device or --hosts checks; add one of them.")
    from mlxkv.cli.doctor import examine, examine_machines

    findings = []
    for finding in examine(Folders.from_env()) if hosts is None else examine_machines(hosts, model):
        findings.append(finding)
        if not as_json:
            print(f"{'ok ' if finding.ok else '!! '} {finding.subject:<16} {finding.text}")
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


app.command()(serve)
app.command()(bench)


@app.command()
def path(as_json: Json = False) -> None:
    """Print the folders that mlxkv uses."""
    folders = Folders.from_env()
    found = {name: str(getattr(folders, name)) for name in ("config", "data", "cache", "state")}
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{name:<7} {found[name]}" for name in found))


for _typer in (app, chats, cache, models):
    for _command in _typer.registered_commands:
        _command.cls = Command


# -- start -------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """The `mlxkv` command."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] in (["--version"], ["-V"]):
        from mlxkv import __version__

        print(f"mlxkv {__version__}")
        sys.exit(0)
    if "_MLXKV_COMPLETE" in os.environ:
        insert_chat_command(os.environ, _COMMANDS)
    elif warning := unknown_variable(os.environ):
        print(f"mlxkv: {clean(warning)}", file=sys.stderr)
    typo = mistyped(args, {*_COMMANDS, "--version"}, COMMANDS_OF)
    if args[1:] and args[0] in ("--install-completion", "--show-completion"):  # typer would ignore the rest
        typo = f"{args[0]} finds out in which shell it runs; type it there, without {shlex.quote(args[1])}."
    if not args or args[0] not in _COMMANDS:
        args.insert(0, "chat")
    debug, form = "--debug" in args, json_format(args)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice about PyTorch is not for our users
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # downloads send no usage data
    try:
        if typo is not None:
            raise ConfigError(typo)
        sys.exit(app(args=_with_value(args), prog_name="mlxkv", standalone_mode=False))
    except OutputClosedError:
        sys.exit(0)
    except MlxkvError as error:
        if debug:
            raise
        report(type(error).__name__, str(error), code := exit_code(error), form)
        sys.exit(code)
    except UsageErrors as error:
        report("UsageError", usage_text(error), error.exit_code, form)
        sys.exit(error.exit_code)
    except typer.Abort:  # a question that is not answered
        print("Aborted!", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if not is_terminal_error(error):
            raise
        detach_terminal()
        sys.exit(GONE)


def _with_value(args: list[str]) -> list[str]:
    """Give `-r` without a value the value for choosing a chat: click's options always take one."""
    out = []
    for arg, following in zip(args, [*args[1:], None], strict=True):
        out.append(arg)
        if arg in ("-r", "--resume") and (following is None or following.startswith("-")):
            out.append(_NO_VALUE)
    return out


if __name__ == "__main__":
    run(main)
