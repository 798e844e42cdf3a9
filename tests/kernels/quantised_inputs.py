"""Random weights in every block format, as bytes of a file."""

import numpy as np
import torch

from fastpower.kernels import QuantisedBlocks
from fastpower.kernels.quantised import FORMATS

#: where the float16 numbers of a block stand
_HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2)}


def random_blocks(format, out_features, in_features, seed=0):
    """Every bit pattern of integers and 6-bit scales; the float16 factors are of either sign and about 0.01."""
    rng = np.random.default_rng(seed)
    block = FORMATS[format]
    count = in_features // block.block
    raw = rng.integers(0, 256, (out_features, count, block.block_bytes), dtype=np.uint8)
    for at in _HALVES.get(format, (208,)):
        factors = rng.normal(0, 0.01, (out_features, count, 1)).astype(np.float16)
        raw[:, :, at : at + 2] = factors.view(np.uint8)
    return QuantisedBlocks(torch.from_numpy(raw.reshape(out_features, -1)), format)
