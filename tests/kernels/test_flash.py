"""The flash-attn backend: its call fits flash-attn's signature and means what ``paged_attention`` means.

flash-attn cannot run here (it is compiled for GPUs at installation), so a stand-in follows what its source distribution
documents: flash_attn/flash_attn_interface.py and the checks of mha_fwd_kvcache in csrc/flash_attn/flash_api.cpp,
flash-attn 2.8.3, sha256 1e71dd64a9e0280e0447b8a0c2541bad4bf6ac65bdeaa2f90e51a9e57de0370d.
"""

import importlib.util
import inspect
import sys
import types

import pytest
import torch
from fastpower.kernels.reference.paged_attention import paged_attention as reference

from fastpower.kernels import dispatch, flash
from fastpower.kernels.flash import paged_attention as backend
from tests.kernels.paging_inputs import make_case

# Parameters of flash_attn_with_kvcache in 2.8.3, in order, with their defaults.
EMPTY = inspect.Parameter.empty
RECORDED = {
    "q": EMPTY,
    "k_cache": EMPTY,
    "v_cache": EMPTY,
    "k": None,
    "v": None,
    "rotary_cos": None,
    "rotary_sin": None,
    "cache_seqlens": None,
    "cache_batch_idx": None,
    "cache_leftpad": None,
    "block_table": None,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "rotary_interleaved": True,
    "alibi_slopes": None,
    "num_splits": 0,
    "return_softmax_lse": False,
}
SIGNATURE = inspect.Signature(
    [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=d) for name, d in RECORDED.items()]
)


def stand_in(*args, **kwargs):
    """What flash-attn documents, on a rectangular batch, for the arguments that the backend uses."""
    call = SIGNATURE.bind(*args, **kwargs)
    call.apply_defaults()
    a = types.SimpleNamespace(**call.arguments)
    q, table, lengths = a.q, a.block_table, a.cache_seqlens
    batch, new, heads, dim = q.shape
    page_size, kv_heads = a.k_cache.shape[1:3]
    assert q.dtype in (torch.float16, torch.bfloat16) and a.k_cache.dtype == a.v_cache.dtype == q.dtype
    assert a.k_cache.shape[1:] == a.v_cache.shape[1:] == (page_size, kv_heads, dim)
    assert page_size % 256 == 0 and heads % kv_heads == 0 and batch > 0 and dim <= 256 and dim % 8 == 0
    assert table.dtype == lengths.dtype == torch.int32 and lengths.is_contiguous() and lengths.shape == (batch,)
    assert table.shape[0] == batch and table.stride(-1) == 1 and a.k_cache.stride(-1) == a.v_cache.stride(-1) == 1
    left, right = a.window_size
    out = torch.empty_like(q)
    for s in range(batch):
        length = int(lengths[s])
        pages = table[s, : -(-length // page_size)].long()
        k, v = (cache[pages].flatten(0, 1)[:length].double() for cache in (a.k_cache, a.v_cache))
        k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        score = torch.einsum("qhd,khd->hqk", q[s].double(), k) * a.softmax_scale
        if a.softcap > 0:
            score = a.softcap * torch.tanh(score / a.softcap)
        i, j = torch.arange(new)[:, None] + length - new, torch.arange(length)[None, :]
        hidden = torch.zeros(new, length, dtype=torch.bool)
        if a.causal:
            hidden |= j > i
        if left >= 0:
            hidden |= j < i - left
        if right >= 0:
            hidden |= j > i + right
        out[s] = torch.einsum("hqk,khd->qhd", score.masked_fill(hidden, -torch.inf).softmax(-1), v).to(q.dtype)
    return out


@pytest.fixture
def flash_attn(monkeypatch):
    """A module of that name whose function is the stand-in; Triton, the other way, is the reference here."""
    calls = []

    def flash_attn_with_kvcache(*args, **kwargs):
        calls.append(kwargs)
        return stand_in(*args, **kwargs)

    module = types.ModuleType("flash_attn")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(backend, "resolve", lambda op, name, device: {"triton": reference}[name])
    return calls


DECODE = {"lengths": [300, 1, 256, 700]}
PREFILL = {"lengths": [777], "queries": [40]}


@pytest.mark.parametrize("work", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    "options", [{}, {"window": 1}, {"window": 100}, {"softcap": 5.0}, {"scale": 0.3}], ids=lambda o: str(o or "plain")
)
def test_batches_that_flash_attn_takes_are_those_of_the_reference(work, options, flash_attn):
    case = make_case(**work, page_size=256, head_dim=40, dtype=torch.bfloat16)
    got = backend.paged_attention(*case, **options)
    assert len(flash_attn) == 1
    torch.testing.assert_close(got, reference(*case, **options), rtol=2**-7, atol=2**-9)
    assert got.is_contiguous() and got.shape == case.query.shape


@pytest.mark.parametrize(
    "work, reason",
    [
        ({"lengths": [300, 20], "queries": [40, 1]}, "neither one each nor of one sequence"),
        ({**DECODE, "page_size": 16}, "page_size 16 is not a multiple of 256"),
        ({**DECODE, "dtype": torch.float32}, "is not a 16-bit type"),
    ],
    ids=["ragged", "small pages", "float32"],
)
def test_batches_that_flash_attn_does_not_take_go_to_triton(work, reason, flash_attn):
    case = make_case(**{"page_size": 256, "head_dim": 40, "dtype": torch.bfloat16, **work})
    assert reason in backend.refusal(case.query, case.k_cache, case.lengths)
    assert torch.equal(backend.paged_attention(*case, window=7), reference(*case, window=7))
    assert flash_attn == []


def test_number_of_splits_is_fixed_so_that_a_row_does_not_depend_on_its_batch(flash_attn):
    backend.paged_attention(*make_case(**DECODE, page_size=256, dtype=torch.bfloat16))
    assert flash_attn[0]["num_splits"] == 1


def test_without_flash_attn_the_reason_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install '.[flash]'" in flash.why_not()


def test_installed_flash_attn_has_the_recorded_parameters_that_the_backend_uses():
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    from flash_attn import flash_attn_with_kvcache

    parameters = inspect.signature(flash_attn_with_kvcache).parameters
    used = ("q", "k_cache", "v_cache", "cache_seqlens", "block_table", "softmax_scale", "causal", "window_size")
    for name in (*used, "softcap", "num_splits"):
        assert name in parameters, name
        assert parameters[name].default == RECORDED[name], name


def test_backend_is_offered_for_attention_on_gpus():
    assert "flash" in dispatch.BACKENDS
    assert set(dispatch.backends()) == set(dispatch.BACKENDS)
