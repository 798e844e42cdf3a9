"""Where launches run, and the memory that they work in.

Launches belong to the device that holds the tensors, whatever device is current.

Triton launches on torch's current device. A model on ``cuda:1`` in a program that never chose a device would launch on
GPU 0 with addresses of GPU 1: a fault, or silently wrong numbers. Every launcher is therefore wrapped.
"""

import math
from functools import wraps

import torch


def on_its_device(launcher):
    """The launcher with the device of its first argument current: a tensor, or a tuple whose first field is one."""

    @wraps(launcher)
    def launch(first, *args, **kwargs):
        with torch.cuda.device_of(first if isinstance(first, torch.Tensor) else first[0]):  # nothing for CPU tensors
            return launcher(first, *args, **kwargs)

    return launch


class Room:
    """Working memory of one call: pieces of the bytes that its caller brought, or new tensors where it brought none.

    ``memory`` is a tensor of bytes on ``device`` that begins at a multiple of 16, or None.
    """

    ALIGNMENT = 128  # bytes, a cache line of the devices

    def __init__(self, device, memory=None, op=""):
        self.device, self.memory, self.op, self.used = device, memory, op, 0

    def empty(self, shape, dtype):
        """An uninitialised tensor. Raises ValueError if what is left of the caller's memory does not hold it."""
        if self.memory is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        size = math.prod(shape) * dtype.itemsize
        if self.used + size > self.memory.numel():
            raise ValueError(
                f"{self.op}: workspace has {self.memory.numel()} bytes, this call needs more than {self.used + size}; "
                f"size it with {self.op}_workspace"
            )
        piece = self.memory[self.used : self.used + size].view(dtype).view(shape)
        self.used += self.bytes((shape, dtype))
        return piece

    @classmethod
    def bytes(cls, *parts):
        """What tensors of these (shape, dtype) take together."""
        return sum(-(-math.prod(shape) * dtype.itemsize // cls.ALIGNMENT) * cls.ALIGNMENT for shape, dtype in parts)
