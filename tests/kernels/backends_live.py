"""Every way in which an operator can run here: (backend, device) and, for the C++ kernels, each instruction set."""

import contextlib
from typing import NamedTuple

import torch

from fastpower import _C
from fastpower.kernels import backends, sample_tokens, score_tokens


class Way(NamedTuple):
    backend: str
    device: str
    isa: str | None = None

    def __str__(self):
        return self.isa or self.backend

    @contextlib.contextmanager
    def active(self):
        """Within it the C++ kernels use this instruction set."""
        before = _C.isa()
        if self.isa:
            _C.set_isa(self.isa)
        try:
            yield self
        finally:
            _C.set_isa(before)


def instruction_sets():
    """Those of this machine for which the kernels have code of their own, best last."""
    order = ["portable", "avx2", "avx512", "avx512_bf16", "amx"]
    return order[: order.index(_C.isa()) + 1]


def ways(isas=("portable", "avx2", "avx512")):
    """The reference, the C++ kernels on each of ``isas`` that is here, and the GPU backends if there is a GPU."""
    found = [Way("reference", "cpu"), *(Way("cpu", "cpu", isa) for isa in isas if isa in instruction_sets())]
    if torch.cuda.is_available():
        found += [Way(name, "cuda") for name in ("triton", "cuda") if backends()[name] is None]
    return found


def sample(case, way):
    """``sample_tokens`` run that way, results on the CPU."""
    result = sample_tokens(*case.to(way.device), backend=way.backend)
    return type(result)(*(x.cpu() for x in result))


def score(logits, tokens, exponents, way):
    """``score_tokens`` run that way, results on the CPU."""
    result = score_tokens(
        logits.to(way.device), tokens.to(way.device), torch.tensor(exponents, device=way.device), backend=way.backend
    )
    return type(result)(*(x.cpu() for x in result))
