"""Our attention, and where wanted our products, in a model of transformers for as long as a forward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastpower.decoders.transformers.layout import ATTENTION
from fastpower.decoders.transformers.packed_linear import Acceleration, accelerate
from fastpower.decoders.transformers.products import float32_product
from fastpower.interfaces import require


class Substitution:
    """What is exchanged in one model, and put back after every forward, whatever happens in it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._acceleration: Acceleration | None = None
        self._head: tuple[Any, Callable[[torch.Tensor], torch.Tensor]] | None = None
        # Text and image parts of one model have configurations of their own; each is asked which attention to use.
        configs = [module.config for module in model.modules() if hasattr(module, "config")]
        self._configs = list({id(c): c for c in configs if hasattr(c, "_attn_implementation_internal")}.values())
        if not self._configs:
            require(model.config, "_attn_implementation_internal", "transformers")

    def accelerate(self) -> None:
        """From now on packed products, too (a second copy of the weights)."""
        self._acceleration = accelerate(self._model)
        self._acceleration.pause()

    def widen_head(self) -> None:
        """From now on logits in float32 from a 16-bit head that is a plain product (``device_forward.py`` says why)."""
        head = self._model.get_output_embeddings()
        if type(head) is torch.nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16):
            self._head = head, float32_product(head)

    def repack(self) -> None:
        """Pack the weights as they are now, if any are packed."""
        if self._acceleration is not None:
            self._acceleration.repack()

    @contextmanager
    def paged(self) -> Iterator[None]:
        """Attention over pages, and packed products after ``accelerate``."""
        if self._acceleration is not None:
            self._acceleration.resume()
        if self._head is not None:
            head, product = self._head
            head.forward = lambda x: product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        try:
            with self.attention(ATTENTION):
                yield
        finally:
            if self._head is not None:
                del self._head[0].forward
            if self._acceleration is not None:
                self._acceleration.pause()

    @contextmanager
    def attention(self, name: str) -> Iterator[None]:
        """The attention that transformers knows by ``name``."""
        own = [config._attn_implementation_internal for config in self._configs]
        for config in self._configs:
            config._attn_implementation_internal = name
        try:
            yield
        finally:
            for config, before in zip(self._configs, own, strict=True):
                config._attn_implementation_internal = before
