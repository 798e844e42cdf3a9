"""Decoders: the only thing a sampler or the scheduler knows about a language model."""

from fastpower.decoders.base import Decoder, Draws, TokenDraws, TokenScores, VerifyingDecoder, Work

__all__ = ["Decoder", "Draws", "TokenDraws", "TokenScores", "VerifyingDecoder", "Work"]
