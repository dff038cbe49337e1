"""The hub and its cache, the files that may be downloaded, and errors of the hub as one sentence.

The settings are huggingface_hub's; None means its own (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE).
Imports huggingface_hub lazily. Any thread may call it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlxkv.errors import ConfigError, MlxkvError, ModelDownloadError, ModelNotFoundError, first_line, quoted, shortened
from mlxkv.models.files.completeness import is_complete, problem
from mlxkv.models.hub.fetch import HubStatusError
from mlxkv.models.hub.repository import is_id
from mlxkv.system.regular_file import read_text, reason

ALLOW = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*")
NEVER = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.gguf", "*.npz", "*.npy", "*.ckpt", "*.h5", "*.onnx")
# Weights that mlx-lm never reads: copies in other formats, and duplicates in one file.
NOT_LOADED = ("*/*.safetensors", "consolidated*.safetensors", "*/*.json", "*/*.txt", "*/*.model")
MAX_REF = 4096  # bytes of a file that names a commit


@dataclass(frozen=True)
class Hub:
    """A hub: its URL and its cache folder (with subfolders such as `models--org--name`)."""

    endpoint: str | None = None
    cache_dir: Path | None = None

    def url(self) -> str:
        """The hub's URL. Raises ConfigError: it is not http(s)."""
        check_hub_settings()
        from huggingface_hub import constants

        url = (self.endpoint or constants.ENDPOINT).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"The address of the hub is {quoted(url)}; set HF_ENDPOINT to an https:// URL, or unset it."
            )
        return url

    def cache(self) -> Path:
        """The cache folder. Raises ConfigError: it cannot be used."""
        check_hub_settings()
        from huggingface_hub import constants

        path = Path(self.cache_dir or constants.HF_HUB_CACHE)
        try:
            path = path.expanduser()
            path.stat()
        except FileNotFoundError:
            pass
        except (OSError, RuntimeError) as error:  # RuntimeError: `~` of an unknown user
            raise ConfigError(
                f"The model cache {shortened(path)} cannot be used ({reason(error)}); set HF_HOME to another folder."
            ) from error
        return path

    def storage(self, repo: str) -> Path:
        """The repository's folder in the cache. Raises ConfigError: see `cache`."""
        return self.cache() / f"models--{repo.replace('/', '--')}"


def check_hub_settings() -> None:
    """Import huggingface_hub, which reads its variables then; call it before mlx-lm imports it.

    Raises:
        ConfigError: a variable has an invalid value.
    """
    try:
        from huggingface_hub import constants

        _ = urlsplit(constants.ENDPOINT).port
    except ValueError as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith("HF_")))
        raise ConfigError(
            f"A setting of the Hugging Face hub cannot be used ({first_line(error)}); check the variables {names}."
        ) from error


def find_local(
    hub: Hub,
    repo: str,
    revision: str | None = None,
    *,
    need_weights: bool = True,
    needs: Sequence[str] = ("config.json",),
) -> Path | None:
    """The snapshot folder of a repository that is complete in the cache, or None; makes no requests.

    `need_weights`: those of a model, and its tokenizer. `needs`: files without which it counts as missing.
    """
    storage = hub.storage(repo)
    commit = revision or "main"
    ref = storage / "refs" / commit
    try:
        commit = read_text(ref, MAX_REF).strip()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, UnicodeDecodeError):
        return None
    if not is_id(commit):
        return None
    folder = storage / "snapshots" / commit
    if not all((folder / name).is_file() for name in needs):
        return None
    return folder if not need_weights or is_complete(folder) else None


def explain(error: Exception, hub: Hub, repo: str, revision: str | None) -> MlxkvError:
    """Convert an error from `fetch.get`, huggingface_hub, the network or the disk into one sentence about `repo`."""
    from huggingface_hub import errors

    if isinstance(error, MlxkvError):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelDownloadError(
            f"{repo} {_lack(hub, repo, revision)}, and HF_HUB_OFFLINE forbids downloading it; unset it to download."
        )
    if isinstance(error, HubStatusError):
        return _explain_status(error, repo, revision)
    if isinstance(error, UnicodeEncodeError):  # of a header
        return ModelDownloadError(
            "The token for the hub has invalid characters; check HF_TOKEN, or run `hf auth login`."
        )
    if isinstance(error, OSError) and error.strerror:
        return ModelDownloadError(f"{repo} could not be saved ({error.strerror}); make room or check the cache folder.")
    return ModelDownloadError(
        f"{repo} {_lack(hub, repo, revision)} and the hub cannot be reached ({type(error).__name__}); "
        "check the connection and try again, the download will continue."
    )


def _lack(hub: Hub, repo: str, revision: str | None) -> str:
    half = find_local(hub, repo, revision, need_weights=False)
    return (problem(half, repo) if half else "") or "is not in the cache"


def _explain_status(error: HubStatusError, repo: str, revision: str | None) -> MlxkvError:
    status = error.status
    if error.code == "RevisionNotFound":
        return ModelNotFoundError(f"The repository {repo} has no revision {revision or 'main'!r}; check its name.")
    if error.code == "EntryNotFound":
        return ModelDownloadError(f"The hub lists a file of {repo} that it lacks (HTTP {status}); try again later.")
    if error.code == "GatedRepo" or status == 403:
        return ModelDownloadError(
            f"{repo} is gated (HTTP {status}): accept its terms on its page, run `hf auth login`, then try again."
        )
    if error.code == "RepoNotFound" or status in (401, 404):
        return ModelNotFoundError(
            f"The hub has no repository {repo} that you can read (HTTP {status}); "
            "check the name, or run `hf auth login` if it is private."
        )
    return ModelDownloadError(f"The hub answered HTTP {status} when asked for {repo}; try again later.")
