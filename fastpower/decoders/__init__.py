"""Decoders: the only thing a sampler or the scheduler knows about a language model."""

from fastpower.decoders.base import Decoder, Draws, SequenceScores, TokenDraws, VerifyingDecoder, Work

__all__ = ["Decoder", "Draws", "SequenceScores", "TokenDraws", "VerifyingDecoder", "Work"]
