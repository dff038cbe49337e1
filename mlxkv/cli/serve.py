"""`mlxkv serve`: an endpoint for scripts and editors, in the shapes of OpenAI's API. Its packages are an extra."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from mlxkv.cli.completion import models as model_names
from mlxkv.cli.completion import presets
from mlxkv.cli.setting_options import option_of
from mlxkv.cli.start import chosen_model, sources_of
from mlxkv.config import Folders, load_sources
from mlxkv.errors import ConfigError, OutOfMemoryError
from mlxkv.settings.presets import PresetFolder
from mlxkv.settings.schema import help_of

if TYPE_CHECKING:
    from threading import Event

    from mlxkv.model import Model

KEY_VARIABLE = "MLXKV_API_KEY"


def serve(
    model: Annotated[str | None, option_of("model", autocompletion=model_names)] = None,
    adapter: Annotated[str | None, option_of("adapter")] = None,
    preset: Annotated[
        str | None,
        typer.Option("-P", "--preset", help="Its model, window and sampling.", autocompletion=presets),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", help="Load this one, too, when a request names it.", autocompletion=model_names),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; beyond loopback a key is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8321,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="Key that clients must send; MLXKV_API_KEY keeps it out of `ps`.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option("--allow-origin", help="A web origin whose pages may ask.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another name of this server, in requests without a key.")
    ] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Leave nothing on disk.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Delete what the endpoint has saved, then serve.")] = False,
    max_tokens: Annotated[str | None, option_of("max_tokens")] = None,
    temp: Annotated[str | None, option_of("temperature")] = None,
    think: Annotated[bool | None, typer.Option("--think/--no-think", help=help_of("think"))] = None,
    window: Annotated[str | None, option_of("window")] = None,
    kv_bits: Annotated[str | None, option_of("kv_bits")] = None,
    disk_limit: Annotated[str | None, option_of("disk_limit")] = None,
    no_draft: Annotated[bool, typer.Option("--no-draft", help="Draft no tokens.")] = False,
    load_anyway: Annotated[bool, typer.Option("--load-anyway", help="Try a model that does not fit.")] = False,
) -> None:
    """Answer requests of OpenAI's API, until Ctrl+C or SIGTERM."""
    folders = Folders.from_env()
    flags = {
        "adapter": adapter, "model": model, "temperature": temp, "max_tokens": max_tokens, "think": think,
        "window": window, "kv_bits": kv_bits, "disk_limit": disk_limit, "draft": False if no_draft else None,
    }  # fmt: skip
    taken = PresetFolder(folders).load(preset) if preset is not None else None
    settings = sources_of(folders, load_sources(folders, flags=flags), None, taken)[0].settings
    if disk_limit is not None:
        os.environ["MLXKV_DISK_LIMIT"] = disk_limit  # the store reads it when it is opened
    try:
        from mlxkv.server.run import ServerOptions
        from mlxkv.server.run import serve as run
        from mlxkv.server.security import Access
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(f"`mlxkv serve` needs {error.name}; install it with `pip install 'mlxkv[serve]'`.") from error
    key = api_key or os.environ.get(KEY_VARIABLE) or None
    access = Access(host, key, tuple(allow_origin or ()), tuple(allow_host or ()))
    from mlxkv.cache.config import CacheConfig
    from mlxkv.device import check_platform
    from mlxkv.inference.sampling import SamplingParams
    from mlxkv.models import BUILT_IN
    from mlxkv.server.endpoint import EndpointOptions

    bounds = CacheConfig.from_settings(settings)
    SamplingParams.for_model({}, **settings.sampling)  # reports invalid values before a model is loaded
    check_platform()
    first, tuned = chosen_model(folders, settings, None)
    first = first or BUILT_IN[0]

    def load(name: str, stop: Event) -> Model:
        from mlxkv.memory.preflight import alternatives, check_fit
        from mlxkv.model import load

        with_it = tuned if name == first else None  # those of `models` have none
        draft = settings.draft_model if settings.draft else None
        if not load_anyway and (found := check_fit(name, bounds, adapter=with_it, draft=draft)):
            raise OutOfMemoryError(f"{found.text}; {alternatives(found)}.")
        return load(
            name,
            folders=folders,
            limited=not load_anyway,
            cancel=stop,
            draft=settings.drafting,
            adapter_path=with_it,
        )

    endpoint = EndpointOptions(bounds, settings.sampling, settings.think, not no_save, forgets=forget)
    raise typer.Exit(run(ServerOptions(access, port, [first, *(models or ())], endpoint, settings.keep_awake), load))
