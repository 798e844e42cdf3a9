"""What the blocks of GGUF files stand for, one format after the other, in plain tensor operations.

A weight is a · q − b rounded once to float32, with integers q and float32 products a, b of its block. blocks: (…, n ·
block bytes) uint8 → (…, n · block) float32.
"""

from __future__ import annotations

import torch


def dequantise(blocks, format):
    count, size, function = _FORMATS[format]
    values = function(blocks.contiguous().reshape(-1, size))
    return values.reshape(*blocks.shape[:-1], blocks.shape[-1] // size * count)


def _half(blocks, at):
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


def _nibbles(qs):
    """Bytes → the low halves, then the high halves."""
    return torch.cat([qs & 15, qs >> 4], 1).to(torch.float32)


def _fifth_bits(qh):
    """4 bytes → 32 numbers, 0 or 16."""
    bits = qh[:, :, None] >> torch.arange(8, dtype=torch.uint8, device="cpu") & 1
    return 16.0 * bits.reshape(-1, 32).to(torch.float32)


def _q4_0(blocks):
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _q4_1(blocks):
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks):
    return _half(blocks, 0) * (_nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6]) - 16)


def _q5_1(blocks):
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])) + _half(blocks, 2)


def _q8_0(blocks):
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).to(torch.float32)


def _scales_and_mins(packed):
    """12 bytes → 8 scales and 8 mins of 6 bits: four of each in the low six bits of a byte, the others in pieces."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([low & 63, (high & 15) | (low >> 6) << 4], 1)
    mins = torch.cat([middle & 63, (high >> 4) | (middle >> 6) << 4], 1)
    return scales.to(torch.float32), mins.to(torch.float32)


def _super(blocks, q):
    """q: (n, 8, 32)."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    a, b = _half(blocks, 0) * scales, _half(blocks, 2) * mins
    return (a[:, :, None] * q - b[:, :, None]).reshape(-1, 256)


def _low_nibbles(qs):
    """128 bytes → (n, 8, 32): of each 32 bytes the low halves, then the high ones."""
    qs = qs.reshape(-1, 4, 1, 32)
    return torch.cat([qs & 15, qs >> 4], 2).reshape(-1, 8, 32)


def _q4_k(blocks):
    return _super(blocks, _low_nibbles(blocks[:, 16:]).to(torch.float32))


def _q5_k(blocks):
    fifth = blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8, device="cpu")[None, :, None] & 1
    return _super(blocks, (_low_nibbles(blocks[:, 48:]) | fifth << 4).to(torch.float32))


def _q6_k(blocks):
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = torch.cat([low & 15, low >> 4], 2).reshape(-1, 2, 4, 32)
    high = high >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device="cpu")[None, None, :, None] & 3
    q = (low | high << 4).reshape(-1, 16, 16).to(torch.float32) - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).to(torch.float32)
    return ((_half(blocks, 208) * scales)[:, :, None] * q).reshape(-1, 256)


#: weights and bytes of a block, and the function
_FORMATS = {
    "Q4_0": (32, 18, _q4_0),
    "Q4_1": (32, 20, _q4_1),
    "Q5_0": (32, 22, _q5_0),
    "Q5_1": (32, 24, _q5_1),
    "Q8_0": (32, 34, _q8_0),
    "Q4_K": (256, 144, _q4_k),
    "Q5_K": (256, 176, _q5_k),
    "Q6_K": (256, 210, _q6_k),
}
