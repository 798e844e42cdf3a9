"""Does a model over pages give the logits that it gives by itself? Asked of every model once, with a few tokens."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastpower.decoders.base import Work
from fastpower.errors import OutOfMemory, UnsupportedModel
from fastpower.models import memory

#: largest |Δlogit| between the paged path and the model's own attention, relative to the largest logit
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}

#: In these a model may be its own noise: keys with biases in the hundreds (Qwen2.5) round scores by whole units, and
#: the eager attention, which rounds scores too, is then the noisy side. Its own forwards tell how much.
_COARSE = (torch.float16, torch.bfloat16)
_NOISE = 3.0

#: tokens of each of the two sequences
LENGTHS = (11, 6)


def verify(
    name: str,
    dtype: torch.dtype,
    vocab_size: int,
    sequences: Sequence[int],
    paged: Callable[[Sequence[Work]], Tensor],
    own: Callable[[list[int], str], Tensor],
) -> None:
    """Two ragged sequences in chunks and single tokens, against the model's own attention on each alone.

    Whatever hides in a model beyond attention over K/V (a convolution, a state, positions counted inside) makes packed
    rows disturb each other or breaks the chunks, and shows here.

    Args:
        name: The model's, for the message.
        dtype: Of its weights.
        vocab_size: Of its logits.
        sequences: Two empty ones.
        paged: (rows, V) logits after each row's last token.
        own: (V,) logits after a text, by the model's attention of a name ("eager" is every model's definition), or by
            itself in "float32".

    Raises:
        UnsupportedModel: The logits are further apart than rounding explains.
    """
    size = min(vocab_size, 1000)
    texts = [[(37 * i + 11) % size for i in range(LENGTHS[0])], [(53 * i + 29) % size for i in range(LENGTHS[1])]]
    long, short = (partial(Work, sequence) for sequence in sequences)
    paged([long(texts[0][:7]), short(texts[1][:5])])
    middle = paged([long(texts[0][7:10]), short(texts[1][5:])])
    last = paged([long(texts[0][10:])])
    for text, logits in zip(texts, (last[0], middle[1]), strict=True):
        expected = own(text, "eager")
        scale = float(expected.abs().max())
        error = float((expected.float() - logits.float()).abs().max())
        bound = _TOLERANCE[dtype] * max(scale, 1.0)
        if not error <= bound and dtype in _COARSE:
            bound = max(bound, _NOISE * _rounding(expected, text, own))
        if scale < float("inf") and not error <= bound:
            raise UnsupportedModel(
                f"{name} over pages differs from its own attention by {error:.3g} in a logit (largest logit "
                f"{scale:.3g}): it has state or positions outside the K/V cache. verify=False skips this comparison"
            )


def _rounding(expected: Tensor, text: list[int], own: Callable[[list[int], str], Tensor]) -> float:
    """How far the model's own forwards are apart in a logit: its attentions, and float32 where there is room.

    0 if it has only one.
    """
    apart = 0.0
    for other in ("sdpa", "float32"):
        with contextlib.suppress(ImportError, KeyError, NotImplementedError, ValueError, OutOfMemory):
            apart = max(apart, float((expected.float() - own(text, other).float()).abs().max()))
    return apart


def own_logits(
    model: Any,
    attention: Callable[[str], AbstractContextManager[None]],
    device: torch.device,
    text: list[int],
    name: str,
) -> Tensor:
    """(V,) logits after a text by the model's own attention of a name, or in "float32"; ``attention`` chooses one."""
    ids = torch.tensor([text], dtype=torch.int64, device=device)
    with torch.inference_mode():
        if name == "float32":
            return float32_logits(model, ids)
        with attention(name):
            logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, -1]
    return logits


def float32_logits(model: Any, ids: Tensor) -> Tensor:
    """(V,) logits after a text by a copy of the model in float32.

    Raises:
        OutOfMemory: There is no room for one.
    """
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    memory.require(size, "a float32 copy of the model, to judge its rounding", "verify=False", ids.device)
    logits: Tensor = copy.deepcopy(model).float()(input_ids=ids, use_cache=False).logits[0, -1]
    return logits
