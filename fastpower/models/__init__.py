"""Models: what can be loaded by which name, what it takes, and prompts as token ids."""

from fastpower.models.loading import load_model
from fastpower.models.packaged import DEFAULT_MODEL, PACKAGED_MODELS, PackagedModel, cache_folder, packaged_files
from fastpower.models.prompts import prompt_tokens

__all__ = [
    "DEFAULT_MODEL",
    "PACKAGED_MODELS",
    "PackagedModel",
    "cache_folder",
    "load_model",
    "packaged_files",
    "prompt_tokens",
]
