"""Models: suggestions, downloads, loading, and the models in the cache. Import as `mlxkv.models`.

Importing it imports neither mlx, mlx_lm nor huggingface_hub; only its functions do, when called.
"""

from mlxkv.models.catalogue import CatalogueEntry, Suggestion, catalogue, ranked, suggestions
from mlxkv.models.hub.download import Plan, download, plan_download
from mlxkv.models.hub.hub import Hub
from mlxkv.models.loading.load import LoadedModel, LoadProgress, load_model
from mlxkv.models.loading.skeleton import find_tokenizer, parts_not_loaded, skeleton
from mlxkv.models.local import LocalModel, list_local, remove
from mlxkv.models.resolve import BUILT_IN, Source, resolve

__all__ = [
    "BUILT_IN",
    "CatalogueEntry",
    "Hub",
    "LoadProgress",
    "LoadedModel",
    "LocalModel",
    "Plan",
    "Source",
    "Suggestion",
    "catalogue",
    "download",
    "find_tokenizer",
    "list_local",
    "load_model",
    "parts_not_loaded",
    "plan_download",
    "ranked",
    "remove",
    "resolve",
    "skeleton",
    "suggestions",
]
