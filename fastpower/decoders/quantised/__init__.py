"""Models whose weights stay quantised: read from GGUF files, or made so when a checkpoint is loaded."""

from fastpower.decoders.quantised.decoder import QuantisedDecoder

__all__ = ["QuantisedDecoder"]
