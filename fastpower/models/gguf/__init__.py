"""GGUF files read directly: their header, the architecture they describe, their tokenizer."""

from fastpower.models.gguf.architecture import Architecture, Undescribed, architecture_of
from fastpower.models.gguf.header import GGUFFile

__all__ = ["Architecture", "GGUFFile", "Undescribed", "architecture_of"]
