"""Does a model over pages give the logits that it gives by itself? Asked of every model once, with a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastpower.decoders.base import Work
from fastpower.errors import UnsupportedModel

#: largest |Δlogit| between the paged path and the model's own attention, relative to the largest logit
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}

#: tokens of each of the two sequences
LENGTHS = (11, 6)


def verify(
    name: str,
    dtype: torch.dtype,
    vocab_size: int,
    sequences: Sequence[int],
    paged: Callable[[Sequence[Work]], Tensor],
    own: Callable[[list[int]], Tensor],
) -> None:
    """Two ragged sequences in chunks and single tokens, against the model's own attention on each alone.

    sequences: two empty ones. paged: (rows, V) logits after each row's last token. own: (V,) logits after a text.
    Whatever hides in a model beyond attention over K/V (a convolution, a state, positions counted inside) makes packed
    rows disturb each other or breaks the chunks, and shows here: raises UnsupportedModel.
    """
    size = min(vocab_size, 1000)
    texts = [[(37 * i + 11) % size for i in range(LENGTHS[0])], [(53 * i + 29) % size for i in range(LENGTHS[1])]]
    long, short = (partial(Work, sequence) for sequence in sequences)
    paged([long(texts[0][:7]), short(texts[1][:5])])
    middle = paged([long(texts[0][7:10]), short(texts[1][5:])])
    last = paged([long(texts[0][10:])])
    for text, logits in zip(texts, (last[0], middle[1]), strict=True):
        expected = own(text)
        scale = float(expected.abs().max())
        error = float((expected.float() - logits.float()).abs().max())
        if scale < float("inf") and not error <= _TOLERANCE[dtype] * max(scale, 1.0):
            raise UnsupportedModel(
                f"{name} over pages differs from its own attention by {error:.3g} in a logit (largest logit "
                f"{scale:.3g}): it has state or positions outside the K/V cache. verify=False skips this comparison"
            )
