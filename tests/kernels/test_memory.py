"""Tensors that are not what they seem: no memory, another sign, sizes that overflow, pages that overlap."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastpower import kernels
from fastpower.kernels.addresses import address, array_address

ROOT = Path(__file__).resolve().parents[2]


def caches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 16, 1, 8, generator=generator) for _ in "kv"]


def attention(query, k=None, v=None, **options):
    k, v = caches() if k is None else (k, v)
    n = query.shape[0]
    table, starts = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([0, n], dtype=torch.int32)
    return kernels.paged_attention(query, k, v, table, starts, torch.tensor([n], dtype=torch.int32), **options)


def sampled(logits):
    n = logits.shape[0]
    keys = torch.arange(n)
    alpha, exponents = torch.ones(n, dtype=torch.float32), torch.tensor([4.0], dtype=torch.float32)
    return kernels.sample_tokens(logits, alpha, exponents, keys, keys, torch.zeros_like(keys))


def without_memory(kind: str, *shape: int) -> torch.Tensor:
    if kind == "resized":
        tensor = torch.ones(shape)
        tensor.untyped_storage().resize_(0)
        return tensor
    if kind == "zero":
        return torch._efficientzerotensor(shape)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        return torch.ones(shape)


@pytest.mark.parametrize("kind", ["resized", "zero", "fake"])
def test_a_tensor_without_memory_is_an_error_as_any_argument(kind):
    empty, rows = without_memory(kind, 3, 1, 8), without_memory(kind, 3, 8)
    good = torch.ones(3, 1, 8)
    k, v = caches()
    with pytest.raises(ValueError, match="no memory"):
        attention(empty)
    with pytest.raises(ValueError, match="no memory"):
        sampled(rows)
    with pytest.raises(ValueError, match="no memory"):
        kernels.append_kv(good, empty, k, v, torch.arange(3))
    with pytest.raises(ValueError, match="no memory"):
        kernels.score_tokens(rows, torch.arange(3), torch.tensor([4.0]))


def test_functionalised_tensors_are_an_error_and_no_crash():
    with pytest.raises(ValueError, match="no memory"):
        torch.func.functionalize(attention)(torch.ones(3, 1, 8))


@pytest.mark.parametrize("make", [torch._neg_view, lambda x: torch.complex(x, -x).conj().imag.neg()])
def test_a_view_with_another_sign_is_read_with_its_sign_or_refused(make):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    view = make(x)
    plain = view.resolve_neg().contiguous().clone()
    for call in (lambda t: attention(t[:, None]), lambda t: sampled(t).entropy):
        try:
            got = call(view)
        except ValueError as refused:
            assert "negated" in str(refused) or "stride" in str(refused)
        else:
            assert torch.equal(got, call(plain))


@pytest.mark.parametrize(
    "call",
    [
        lambda: attention(torch.zeros(1, 1, 8).expand(1, 2**59, 8)),
        lambda: attention(torch.zeros(1, 1, 8).expand(2**59, 1, 8)),
        lambda: kernels.pack_linear(torch.zeros(1, 16).expand(2**58, 16)),
        lambda: kernels.pack_linear(torch.zeros(1, 1).expand(2**31, 2**31)),
        lambda: sampled(torch.zeros(1, 5).expand(2**60, 5)),
        lambda: kernels.score_tokens(
            torch.zeros(1, 1).expand(1, 2**62), torch.zeros(1, dtype=torch.int64), torch.ones(1)
        ),
    ],
)
def test_sizes_that_overflow_are_an_error_before_anything_is_read(call):
    with pytest.raises((ValueError, RuntimeError, MemoryError)):
        call()


@pytest.mark.parametrize("value", [1e39, 1e-46, 3e38, float("nan"), float("inf"), -1.0])
def test_a_soft_cap_that_float32_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="softcap must be"):
        attention(torch.ones(3, 1, 8), softcap=value)


@pytest.mark.parametrize("value", [3e38, -3e38, 1e39, float("nan"), float("inf")])
def test_a_scale_whose_scores_float32_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="scale must be"):
        attention(torch.ones(3, 1, 8), scale=value)


@pytest.mark.parametrize("value", [2.0**64, 2.0**-64, 1e-3, 50.0])
def test_a_soft_cap_that_float32_holds_is_the_references(value):
    query = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(2))
    got, reference = (attention(query, softcap=value, backend=name) for name in ("cpu", "reference"))
    torch.testing.assert_close(got, reference, rtol=1e-5, atol=1e-6)


def test_caches_whose_pages_share_memory_are_not_written():
    k = torch.zeros(1, 16, 1, 8)
    shared, row = k.expand(4, 16, 1, 8), torch.ones(2, 1, 8)
    with pytest.raises(ValueError, match="share memory"):
        kernels.append_kv(row, row, shared, shared, torch.tensor([0, 20]))
    layered, one = k[None].expand(2, 1, 16, 1, 8), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="share memory"):
        kernels.copy_pages(layered, layered, one, one, one + 1)
    assert not k.any()
    strided = torch.zeros(8, 16, 1, 8)[::2]
    kernels.append_kv(row, row, strided, strided.clone(), torch.tensor([0, 20]))
    assert strided[1, 4].all()


def test_an_address_is_given_out_for_the_dtype_that_is_read_there_only():
    with pytest.raises(TypeError, match="float32 was to be read, got bfloat16"):
        address(torch.ones(3, dtype=torch.bfloat16), torch.float32)
    with pytest.raises(TypeError, match="contiguous"):
        array_address(torch.ones(4, 4, dtype=torch.float32).numpy().T, "float32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_torchs_default_dtype_changes_no_record(dtype):
    import transformers

    from fastpower import generate, load, make_sampler

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    sampler = make_sampler("mh", max_new_tokens=12, block=4, moves=3)

    def record():
        [result] = generate(load(model), [[1, 5, 7]], sampler, seed=1)
        return result.token_ids, result.token_logp

    expected = record()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert record() == expected
        assert torch.equal(sampled(torch.ones(3, 8, dtype=torch.float32)).status, torch.zeros(3, dtype=torch.int32))
    finally:
        torch.set_default_dtype(before)
