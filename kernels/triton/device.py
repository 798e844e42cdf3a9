"""Launches belong to the device that holds the tensors, whatever device is current.

Triton launches on torch's current device. A model on ``cuda:1`` in a program that never chose a device would launch on
GPU 0 with addresses of GPU 1: a fault, or silently wrong numbers. Every launcher is therefore wrapped.
"""

from functools import wraps

import torch


def on_its_device(launcher):
    """The launcher with the device of its first argument current: a tensor, or a tuple whose first field is one."""

    @wraps(launcher)
    def launch(first, *args, **kwargs):
        with torch.cuda.device_of(first if isinstance(first, torch.Tensor) else first[0]):  # nothing for CPU tensors
            return launcher(first, *args, **kwargs)

    return launch
