"""Causal language models of transformers as decoders: paged K/V, packed batches, a forward of our own on the CPU."""

from fastpower.decoders.transformers.decoder import TransformersDecoder

__all__ = ["TransformersDecoder"]
