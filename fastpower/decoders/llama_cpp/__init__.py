"""llama.cpp as a decoder."""

from fastpower.decoders.llama_cpp.decoder import LlamaCppDecoder
from fastpower.decoders.llama_cpp.loading import PREFIX, open_llama_cpp

__all__ = ["PREFIX", "LlamaCppDecoder", "open_llama_cpp"]
