"""Triton kernels under Triton's interpreter. It must be switched on before triton is imported, so these tests run in a
process of their own: tests/triton/test_ahead_of_time.py starts it, or

    TRITON_INTERPRET=1 python -m pytest tests/triton
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

#: what needs triton as it is, and starts the others
PLAIN = ["test_ahead_of_time.py", "test_launchers.py"]

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name not in PLAIN]
else:
    collect_ignore = PLAIN
    import triton.language as tl
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, *options):
        """A product whose bits do not depend on its shape: sums in one order, in float64, rounded once.

        The interpreter's own leaves the order to NumPy's BLAS, which on some processors takes another one for fewer
        rows, and multiplies bfloat16, kept as bare 16-bit integers, as such.
        """
        left, right = (
            (x.data.astype(np.uint32) << 16).view(np.float32) if x.dtype.scalar == tl.bfloat16 else x.data
            for x in (a, b)
        )
        left, right = left.astype(np.float64), right.astype(np.float64)
        total = np.zeros((left.shape[0], right.shape[1]))
        for i in range(left.shape[1]):
            total += left[:, i, None] * right[i]
        return interpreter.TensorHandle(total.astype(d.data.dtype) + d.data, d.dtype.scalar)

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
