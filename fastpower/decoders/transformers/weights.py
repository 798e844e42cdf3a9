"""What a model's weights are now: whatever was derived from them is only good for as long as they stay so.

Training loops, ``load_state_dict`` and adapters write to weights between runs, and not every write is counted by
torch: PEFT merges through ``.data``, NumPy and ``ctypes`` write past it. So the state of the weights is their
addresses, dtypes and versions, and a checksum of their bytes: one more read of them for each run, about what a decoding
step costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastpower import _C
from fastpower.kernels.addresses import address

State = dict[str, tuple[Any, ...]]


def state_of(model: Any) -> State:
    """Every parameter and buffer of a model by name: where and what it is, how often torch wrote to it, a checksum.

    A tensor that torch cannot show as plain numbers (quantised by torchao, say) has no checksum.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: (*_identity(tensor), _content(tensor)) for name, tensor in named}


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    place = tensor.data_ptr() if plain else id(tensor)
    return place, tensor.dtype, tuple(tensor.shape), 0 if tensor.is_inference() else tensor._version


def _content(tensor: Tensor) -> int:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.numel() == 0 or tensor.is_meta:
        return 0
    with torch.inference_mode():
        dense = tensor.detach().contiguous()
        if dense.is_cpu:
            return int(_C.checksum(address(dense, dense.dtype), dense.nbytes))
        words = dense.view(torch.uint8).flatten()
        words = words[: words.numel() // 4 * 4].view(torch.int32).long() if words.numel() >= 4 else words.long()
        return int(words.sum())
