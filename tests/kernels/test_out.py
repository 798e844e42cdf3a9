"""``out=`` and ``workspace=``: the same bits, in the caller's memory, and nothing else is allocated."""

from __future__ import annotations

import pytest
import torch

from fastpower import kernels
from fastpower.kernels import TokenSamples, dispatch
from tests.kernels.paging_inputs import make_case as make_paging
from tests.kernels.paging_inputs import make_tree
from tests.kernels.sampling_inputs import make_case

DTYPES = (torch.float32, torch.bfloat16)


def poisoned(results):
    """Tensors like ``results`` that hold something else everywhere."""
    return TokenSamples(*(torch.full_like(x, -7) for x in results))


@pytest.mark.parametrize("short", [True, False], ids=["direct", "long"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_have_the_bits_of_a_call_without(fast, dtype, short, monkeypatch):
    if not short:
        monkeypatch.setattr("fastpower.kernels.sampling.direct", lambda backend: None)
    case = make_case("masked_blocks", 3, 9000, draws=7)
    case = case._replace(logits=case.logits.to(dtype), exclude=torch.arange(7) - 1).to(fast.device)
    expected = kernels.sample_tokens(*case, backend=fast.backend)
    out = poisoned(expected)
    room = torch.empty(
        kernels.sample_tokens_workspace(case.logits, case.exponents, backend=fast.backend),
        dtype=torch.uint8,
        device=fast.device,
    )
    for workspace in (None, room):
        result = kernels.sample_tokens(*case, out=out, workspace=workspace, backend=fast.backend)
        assert all(a is b for a, b in zip(result, out, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
        out = poisoned(expected)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_has_the_bits_of_a_call_without(fast, dtype, tree):
    queries = [1, 3, 1]
    case = make_paging([40, 290, 33], queries, dtype=dtype)
    options = {"ancestors": make_tree(queries).to(fast.device) if tree else None, "backend": fast.backend}
    case = type(case)(*(x.to(fast.device) for x in case))
    expected = kernels.paged_attention(*case, **options)
    size = kernels.paged_attention_workspace(
        case.query, case.k_cache, case.page_table, case.lengths, backend="triton" if tree and fast.backend == "cuda"
        else fast.backend,
    )  # fmt: skip
    for workspace in (None, torch.empty(size, dtype=torch.uint8, device=fast.device)):
        out = torch.full_like(expected, -7)
        assert kernels.paged_attention(*case, **options, out=out, workspace=workspace) is out
        assert torch.equal(out, expected)


def test_the_reference_writes_outputs_too():
    case = make_case("normal", 2, 50, draws=3)
    expected = kernels.sample_tokens(*case, backend="reference")
    result = kernels.sample_tokens(*case, out=poisoned(expected), backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    paging = make_paging([20, 5])
    out = torch.empty_like(paging.query)
    assert torch.equal(kernels.paged_attention(*paging, out=out, backend="reference"), out)


def allocations(call):
    """Bytes of every tensor allocation that torch makes within a call."""
    call()  # what is made once
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    return [event for event in profile.events() if event.name == "[memory]" and event.cpu_memory_usage > 0]


def test_a_call_with_outputs_allocates_no_tensor():
    case, paging = make_case("model", 4, 50_000, draws=9), make_paging([100, 700], dtype=torch.bfloat16)
    samples, attended = kernels.sample_tokens(*case), kernels.paged_attention(*paging)
    assert not allocations(lambda: kernels.sample_tokens(*case, out=samples))
    assert not allocations(lambda: kernels.paged_attention(*paging, out=attended))


# ------------------------------------------------------------------------ what is refused, with nothing written


def overlapping(out):
    out["entropy"] = out["logp"][:3] if len(out["logp"]) >= 3 else out["entropy"]
    return "share memory"


def strided(out):
    out["logz"] = torch.zeros(out["logz"].shape[::-1]).t()
    return "contiguous"


def short(out):
    out["token"] = out["token"][1:]
    return r"out\.token must have shape \(7,\), got \(6,\)"


def wrong_dtype(out):
    out["token"] = out["token"].int()
    return r"out\.token must be int64, got int32"


def leaf(out):
    out["logp"] = out["logp"].requires_grad_()
    return "requires grad"


@pytest.mark.parametrize("spoil", [overlapping, strided, short, wrong_dtype, leaf], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_outputs_that_cannot_be_written_are_refused_by_name(spoil, backend):
    case = make_case("normal", 3, 50, draws=7)
    out = poisoned(kernels.sample_tokens(*case))._asdict()
    message = spoil(out)
    before = [x.clone() for x in out.values()]
    with pytest.raises((ValueError, TypeError), match=message):
        kernels.sample_tokens(*case, out=TokenSamples(**out), backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(before, out.values(), strict=True))


@pytest.mark.parametrize("bad", ["rows", "alpha"])
def test_bad_arguments_leave_outputs_alone(bad):
    case = make_case("normal", 3, 50, draws=7)
    out = poisoned(kernels.sample_tokens(*case))
    case = case._replace(**{bad: getattr(case, bad) * 0 - 1})
    with pytest.raises(ValueError, match=bad):
        kernels.sample_tokens(*case, out=out)
    assert all((x == -7).all() for x in out)


def test_attention_refuses_an_output_that_lies_in_its_input():
    case = make_paging([20, 5])
    for out, message in (
        (case.query, "shares memory"),
        (torch.empty(1), r"out must have shape \(2, 9, 64\), got \(1,\)"),
        (case.query.to(torch.bfloat16), "out must be float32, got bfloat16"),
    ):
        before = case.query.clone()
        with pytest.raises((ValueError, TypeError), match=message):
            kernels.paged_attention(*case, out=out)
        assert torch.equal(case.query, before)


def test_a_workspace_must_be_bytes_and_what_is_not_a_result_is_refused():
    case = make_case("normal", 3, 50, draws=7)
    with pytest.raises(TypeError, match="workspace must be uint8"):
        kernels.sample_tokens(*case, workspace=torch.empty(9))
    with pytest.raises(TypeError, match="out must be TokenSamples of five tensors, got Tensor"):
        kernels.sample_tokens(*case, out=torch.empty(9))


def test_outputs_pass_through_a_compiled_graph():
    case, paging = make_case("normal", 3, 50, draws=7), make_paging([20, 5])

    @torch.compile(fullgraph=True, backend="eager")
    def step(out, attended):
        kernels.sample_tokens(*case, out=out)
        return kernels.paged_attention(*paging, out=attended)

    expected = kernels.sample_tokens(*case)
    out, attended = poisoned(expected), torch.empty_like(paging.query)
    step(out, attended)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    assert torch.equal(attended, kernels.paged_attention(*paging))
    assert dispatch.direct("cpu") is not None
