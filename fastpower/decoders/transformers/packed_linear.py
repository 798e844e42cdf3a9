"""Packed matrix products under an unmodified model.

    with accelerate(model): ...          # or: handle = accelerate(model); …; handle.close()

Every ``nn.Linear`` (and GPT-2's ``Conv1D``) of a float32 or bfloat16 model on the CPU gets a forward that calls
``fastpower.kernels.linear``. Modules keep their class, name, parameters and state dict; only an attribute ``forward``
of the instance is added, and ``close`` takes it away. A product is then batch-invariant and, for the few rows of a
decode step, runs at the speed at which the weights can be read.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fastpower.kernels import PackedLinear, linear, pack_linear
from fastpower.kernels.dispatch import compiling

_DTYPES = (torch.float32, torch.bfloat16)


class _PackedForward:
    """The forward of one module: the packed product, or the module's own while gradients are wanted."""

    def __init__(self, module: Any, transposed: bool) -> None:
        self._module, self._transposed = module, transposed
        self._own = module.forward
        self._pack()

    def _pack(self) -> None:
        module = self._module
        weight = module.weight.detach()
        self._state = self._current_state()
        self._packed: PackedLinear = pack_linear(weight.T if self._transposed else weight, module.bias)

    def _current_state(self) -> tuple[Any, ...]:
        """Changes when a parameter is replaced, moved or written to."""
        tensors = [tensor for tensor in (self._module.weight, self._module.bias) if tensor is not None]
        return tuple((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != self._packed.dtype or (torch.is_grad_enabled() and self._wants_gradients(x)):
            result: Tensor = self._own(x)
            return result
        if not compiling() and self._current_state() != self._state:
            self._pack()
        return linear(x, self._packed)

    def _wants_gradients(self, x: Tensor) -> bool:
        return x.requires_grad or self._module.weight.requires_grad


class Acceleration:
    """What ``accelerate`` changed. A context manager; ``close`` may be called more than once."""

    def __init__(self, modules: dict[str, Any], forwards: list[_PackedForward]) -> None:
        self._modules, self._forwards = modules, forwards

    def pause(self) -> None:
        """Give every module its own forward back, but keep the packed weights."""
        for module in self._modules.values():
            module.__dict__.pop("forward", None)

    def resume(self) -> None:
        """Undo ``pause``."""
        for module, forward in zip(self._modules.values(), self._forwards, strict=True):
            module.__dict__["forward"] = forward

    def repack(self) -> None:
        """Pack every weight as it is now; only needed after writes that torch does not see (``.data``, numpy)."""
        for forward in self._forwards:
            forward._pack()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modules that run packed."""
        return tuple(self._modules)

    def close(self) -> None:
        """Give every module its own forward back and free the packed weights."""
        self.pause()
        self._modules, self._forwards = {}, []

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def accelerate(model: nn.Module) -> Acceleration:
    """Let the linear modules of ``model`` use packed weights until the result is closed.

    Left alone: subclasses of ``nn.Linear``, modules whose forward was already replaced, other dtypes and devices,
    weights that are subclasses of ``Tensor`` (torchao's quantised ones), and calls under ``torch.enable_grad`` that
    need gradients. Packing copies the weights (memory: once more their size; a weight that two modules share is packed
    for each that multiplies by it). A weight that is written to later is packed again at its next use.
    """
    modules, forwards = {}, []
    for name, module in model.named_modules():
        transposed = type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
        if not (type(module) is nn.Linear or transposed) or "forward" in vars(module):
            continue
        weight: Tensor = module.weight
        plain = type(weight.data) is Tensor  # not one that stands for quantised numbers
        if plain and weight.dtype in _DTYPES and weight.device.type == "cpu" and weight.numel():
            modules[name] = module
            forwards.append(_PackedForward(module, transposed))
    acceleration = Acceleration(modules, forwards)
    acceleration.resume()
    return acceleration
