"""Triton kernels under Triton's interpreter. It must be switched on before triton is imported, so these tests run in a
process of their own: tests/triton/test_ahead_of_time.py starts it, or

    TRITON_INTERPRET=1 python -m pytest tests/triton
"""

import os

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    import triton.language as tl
    from triton.runtime import interpreter

    multiply = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *options):
        """The interpreter keeps bfloat16 as bare 16-bit integers and would multiply those: widen them first."""
        a, b = (
            interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
            if x.dtype.scalar == tl.bfloat16
            else x
            for x in (a, b)
        )
        return multiply(self, a, b, d, *options)

    convert = interpreter._convert_float

    def convert_float(values, source, target, rounding):
        """The interpreter truncates float32 to bfloat16; devices round to nearest."""
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, rounding)
        rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):
        """Triton 3.6 makes an int of an array of one entry, as the bound of a loop, which NumPy 2.4 refuses."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._convert_float = convert_float


@pytest.fixture(autouse=True)
def poison():
    """torch.empty returns NaN (floats) and the largest value (integers), so that an output left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    with np.errstate(all="ignore"):  # −inf − (−inf) and the like, selected away afterwards
        yield
    torch.use_deterministic_algorithms(False)
