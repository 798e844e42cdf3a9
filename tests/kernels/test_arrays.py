"""``fastpower.arrays``: kernels on NumPy and DLPack arrays, without torch, with the façade's bits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fastpower import arrays, kernels
from tests.kernels.paging_inputs import make_case as make_paging
from tests.kernels.sampling_inputs import make_case

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Foreign:
    """Another library's array: DLPack and nothing else. Old ones take no arguments."""

    def __init__(self, tensor, old):
        self.tensor, self.old = tensor, old

    def __dlpack__(self, **options):
        if self.old and options:
            raise TypeError("unexpected keyword argument")
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def same(a, b):
    return torch.equal(torch.from_dlpack(a) if not isinstance(a, np.ndarray) else torch.from_numpy(a), b)


@pytest.mark.parametrize("old", [False, True], ids=["version 1", "before"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_and_scores_have_the_bits_of_the_facade(dtype, old):
    case = make_case("masked_blocks", 3, 9000, draws=7)
    case = case._replace(logits=case.logits.to(dtype), exclude=torch.arange(7) - 1)
    expected = kernels.sample_tokens(*case, backend="cpu")
    result = arrays.sample_tokens(*(Foreign(x, old) for x in case))
    assert all(isinstance(a, np.ndarray) and same(a, b) for a, b in zip(result, expected, strict=True))
    tokens = torch.arange(3)
    expected_scores = kernels.score_tokens(case.logits, tokens, case.exponents, backend="cpu")
    scores = arrays.score_tokens(Foreign(case.logits, old), tokens.numpy(), case.exponents.numpy())
    assert all(same(a, b) for a, b in zip(scores, expected_scores, strict=True))


def test_numpy_rows_of_any_stride_and_outputs_of_the_caller():
    case = make_case("normal", 3, 500, draws=4)
    wide = np.zeros((3, 900), np.float32)
    wide[:, :500] = case.logits.numpy()
    inputs = [wide[:, :500], *(x.numpy() for x in case[1:6])]
    out = arrays.TokenSamples(*(np.full_like(x.numpy(), -7) for x in kernels.sample_tokens(*case)))
    result = arrays.sample_tokens(*inputs, out=out)
    assert all(a is b for a, b in zip(result, out, strict=True))
    assert all(same(a, b) for a, b in zip(result, kernels.sample_tokens(*case, backend="cpu"), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_has_the_bits_of_the_facade(dtype):
    case = make_paging([40, 290, 33], [1, 3, 1], dtype=dtype)
    options = {"scale": 0.3, "window": 64, "softcap": 20.0}
    out = torch.zeros_like(case.query)
    assert arrays.paged_attention(*(Foreign(x, False) for x in case), **options, out=out) is out
    assert torch.equal(out, kernels.paged_attention(*case, **options, backend="cpu"))
    if dtype == torch.float32:
        assert same(arrays.paged_attention(*(x.numpy() for x in case)), kernels.paged_attention(*case, backend="cpu"))


def test_torch_is_not_imported():
    program = (
        "import sys, numpy as np\nfrom fastpower import arrays\n"
        "z = np.random.default_rng(0).standard_normal((2, 50), dtype=np.float32)\n"
        "one, i = np.ones(2, np.float32), np.arange(2)\n"
        "print(arrays.sample_tokens(z, one, one[:1], i, i, i).token.min() >= 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "False"]


def arguments():
    case = make_case("normal", 3, 50, draws=4)
    names = ("logits", "alpha", "exponents", "rows", "keys", "positions")
    return {name: x.numpy() for name, x in zip(names, case[:6], strict=True)}


BAD = [
    ("logits", lambda z: z.tolist(), TypeError, "must be a NumPy array or have __dlpack__, got list"),
    ("logits", lambda z: z.astype(np.float64), TypeError, "must be float32 or bfloat16 or float16, got float64"),
    ("logits", lambda z: z.astype(">f4"), TypeError, "float32 of another byte order"),
    ("logits", lambda z: z.T.copy().T, ValueError, "last stride 1"),
    ("logits", lambda z: z[0], ValueError, r"must have 2 dimensions, got shape \(50,\)"),
    ("logits", lambda z: z[:, :0], ValueError, "at least one column"),
    ("alpha", lambda a: a[:2], ValueError, r"alpha must have shape \(3,\), got shape \(2,\)"),
    ("alpha", lambda a: a * 0, ValueError, "alpha"),
    ("keys", lambda k: k.view(np.uint64), TypeError, "keys must be int64, got uint64"),
    ("rows", lambda r: r + 3, ValueError, "rows"),
    ("positions", lambda p: np.repeat(p, 2)[::2], ValueError, "positions must be contiguous"),
]


@pytest.mark.parametrize("name, spoil, error, message", BAD)
def test_what_does_not_fit_is_refused_by_name_with_nothing_written(name, spoil, error, message):
    good = arguments()
    out = arrays.TokenSamples(*(np.full_like(x, -7) for x in arrays.sample_tokens(**good)))
    with pytest.raises(error, match=message):
        arrays.sample_tokens(**good | {name: spoil(good[name])}, out=out)
    assert all((x == -7).all() for x in out)


def test_outputs_that_cannot_be_written_are_refused():
    good = arguments()
    out = arrays.sample_tokens(**good)
    frozen = out.logp.copy()
    frozen.flags.writeable = False
    for bad, message in (
        (out._replace(logp=frozen), "out.logp is read-only"),
        (out._replace(logp=good["logits"][0, :4]), "out.logp shares memory"),
        (out._replace(entropy=out.logp[:3]), "out.entropy shares memory"),
        (out._replace(token=out.token[:2]), r"out\.token must have shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            arrays.sample_tokens(**good, out=bad)
    with pytest.raises(TypeError, match="got 2 arrays"):
        arrays.sample_tokens(**good, out=out[:2])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"page_table": np.full((2, 3), 99, np.int32)}, IndexError, "page_table"),
        ({"window": -1}, ValueError, "window"),
        ({"softcap": float("nan")}, ValueError, "softcap"),
        ({"scale": float("inf")}, ValueError, "scale"),
        ({"lengths": np.array([1, 2], np.int64)}, TypeError, "lengths must be int32, got int64"),
        ({"k_cache": np.zeros((2, 16, 3, 32), np.float32)}, ValueError, "must have"),
    ],
)
def test_attention_refuses_what_does_not_fit(change, error, message):
    case = make_paging([20, 5])
    good = {name: x.numpy() for name, x in case._asdict().items()}
    out = np.full_like(good["query"], -7)
    with pytest.raises(error, match=message):
        arrays.paged_attention(**good | change, out=out)
    assert (out == -7).all()


def test_a_capsule_is_not_taken_and_what_is_none_is_refused():
    from fastpower import _C

    capsule = torch.zeros(2, 3).__dlpack__()
    assert _C.dlpack_view(capsule)[5:7] == ((2, 3), (3, 1)) and _C.dlpack_view(capsule)[5] == (2, 3)
    with pytest.raises(TypeError):
        _C.dlpack_view(object())
