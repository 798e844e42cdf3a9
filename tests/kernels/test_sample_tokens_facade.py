"""The façade of ``sample_tokens`` and ``score_tokens``: what bad input raises, and the registered operators."""

import re

import pytest
import torch

from fastpower.kernels import sample_tokens, score_tokens
from tests.kernels.sampling_inputs import make_case

BACKENDS = ("reference", "cpu")

# argument, value, error, what the message says besides the operator's name
BAD_SAMPLES = [
    (
        "logits",
        torch.zeros(3, 5, dtype=torch.float64),
        TypeError,
        "logits must be float32 or bfloat16 or float16, got float64",
    ),
    ("logits", [[1.0]], TypeError, "logits must be a torch.Tensor, got list"),
    ("logits", torch.zeros(5), ValueError, "logits must have shape (B, V), got (5,)"),
    ("logits", torch.zeros(3, 0), ValueError, "logits must have at least one column"),
    ("logits", torch.zeros(5, 3).T, ValueError, "logits must have last stride 1"),
    ("logits", torch.zeros(3, 5, device="meta"), ValueError, "logits has shape (3, 5) but no memory"),
    ("alpha", torch.ones(2), ValueError, "alpha must have shape (3,), got (2,)"),
    ("alpha", torch.ones(3, dtype=torch.float64), TypeError, "alpha must be float32, got float64"),
    ("alpha", 4.0, TypeError, "alpha must be a torch.Tensor, got float"),
    ("alpha", torch.tensor([1.0, 0.0, 1.0]), ValueError, "alpha[1] must be finite and > 0, got 0"),
    ("alpha", torch.tensor([1.0, 1.0, -2.5]), ValueError, "alpha[2] must be finite and > 0, got -2.5"),
    ("alpha", torch.tensor([torch.nan, 1.0, 1.0]), ValueError, "alpha[0] must be finite and > 0, got nan"),
    ("alpha", torch.tensor([1.0, torch.inf, 1.0]), ValueError, "alpha[1] must be finite and > 0, got inf"),
    ("exponents", torch.ones(2, 2), ValueError, "exponents must have shape (E,), got (2, 2)"),
    ("exponents", torch.tensor([1.0, -1.0]), ValueError, "exponents[1] must be finite and > 0, got -1"),
    ("exponents", torch.tensor([torch.nan]), ValueError, "exponents[0] must be finite and > 0, got nan"),
    ("rows", torch.tensor([0, 3, 1]), ValueError, "rows[1] must be in [0, 3), got 3"),
    ("rows", torch.tensor([-1, 0, 1]), ValueError, "rows[0] must be in [0, 3), got -1"),
    ("rows", torch.zeros(3, dtype=torch.int32), TypeError, "rows must be int64, got int32"),
    ("rows", torch.zeros(1, 3, dtype=torch.int64), ValueError, "rows must have shape (D,), got (1, 3)"),
    ("keys", torch.zeros(2, dtype=torch.int64), ValueError, "keys must have shape (3,), got (2,)"),
    ("positions", torch.zeros(4, dtype=torch.int64), ValueError, "positions must have shape (3,), got (4,)"),
    ("exclude", torch.tensor([0, 1, 5]), ValueError, "exclude[2] must be in [-1, 5), got 5"),
    ("exclude", torch.tensor([0, -2, 1]), ValueError, "exclude[1] must be in [-1, 5), got -2"),
    ("exclude", torch.zeros(3), TypeError, "exclude must be int64, got float32"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name, value, error, message", BAD_SAMPLES, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_argument_is_named(backend, name, value, error, message):
    case = make_case("normal", rows=3, vocab=5)
    with pytest.raises(error, match=re.escape("sample_tokens: " + message)):
        sample_tokens(*case._replace(**{name: value}), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "tokens, error, message",
    [
        (torch.tensor([0, 5, 1]), ValueError, "tokens[1] must be in [0, 5), got 5"),
        (torch.tensor([0, 1, -1]), ValueError, "tokens[2] must be in [0, 5), got -1"),
        (torch.tensor([0, 1]), ValueError, "tokens must have shape (3,), got (2,)"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, "tokens must be int64, got float32"),
    ],
)
def test_bad_token_to_score_is_named(backend, tokens, error, message):
    with pytest.raises(error, match=re.escape("score_tokens: " + message)):
        score_tokens(torch.zeros(3, 5), tokens, torch.ones(1), backend=backend)


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"backend must be 'auto' or one of .* got 'gpu'"):
        sample_tokens(*make_case("normal", rows=3, vocab=5), backend="gpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_need_not_be_contiguous_and_are_left_as_they_were(backend):
    case = make_case("normal", rows=4, vocab=130, draws=12, alpha=1.5)
    spread = [torch.stack([x, x.flip(0)], 1)[:, 0] for x in case[1:6]]
    assert not any(x.is_contiguous() for x in spread)
    before = [x.clone() for x in case[:6]]
    plain, strided = sample_tokens(*case, backend=backend), sample_tokens(case.logits, *spread, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(case[:6], before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exclude", [False, True])
def test_registered_sample_tokens_passes_opcheck(backend, exclude):
    case = make_case("normal", rows=4, vocab=130, draws=7, alpha=1.5)
    removed = torch.arange(7) if exclude else None
    torch.library.opcheck(torch.ops.fastpower.sample_tokens.default, (*case[:6], removed, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_registered_score_tokens_passes_opcheck(backend):
    case = make_case("normal", rows=4, vocab=130)
    torch.library.opcheck(torch.ops.fastpower.score_tokens.default, (case.logits, case.rows, case.exponents, backend))


def test_compiles_as_one_graph():
    def step(hidden, weight, case):
        logits = hidden @ weight
        drawn = sample_tokens(logits, *case)
        scored = score_tokens(logits, drawn.token, case[1])
        return drawn.token + 1, drawn.logz * 2, scored.logp - drawn.logp, scored.entropy + drawn.entropy

    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 16, generator=g), torch.randn(16, 300, generator=g)
    case = make_case("normal", rows=4, vocab=300, alpha=1.5)[1:6]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(hidden, weight, case), step(hidden, weight, case), strict=True):
        assert torch.equal(a, b)
