"""Calls that hand torch's tensors to C++ as they are: the same results, and everything unusual goes the long way."""

import pytest
import torch

from fastpower.kernels import append_kv, dispatch, paged_attention, paging, sample_tokens, sampling, score_tokens
from tests.kernels.paging_inputs import make_case as make_paging
from tests.kernels.sampling_inputs import make_case

pytestmark = pytest.mark.skipif(dispatch.direct("cpu") is None, reason="this torch does not offer its tensors to C")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def native():
    return dispatch.direct("cpu")


@pytest.fixture
def long_way(monkeypatch):
    """Calls the function without the short way."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            for façade in (sampling, paging):
                patch.setattr(façade, "direct", lambda backend: None)
            return function(*arguments, **options)

    return call


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(77), b.nan_to_num(77))


def attention(dtype=torch.float32, shared=64):
    """Arguments of ``paged_attention``, positional, and a group that shares its first pages."""
    case = make_paging([90, 70, 81], [1, 3, 2], dtype=dtype, shared_tokens=shared)
    return case, (torch.tensor([0, 3], dtype=torch.int32), torch.tensor([shared // 16], dtype=torch.int32))


# The same results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("excluding", [False, True])
def test_draws_and_scores_are_those_of_the_long_way(native, long_way, dtype, excluding):
    case = make_case("masked_blocks", 5, 5001, draws=17, alpha=4.0, exponents=(1.0, 2.5, 4.0), dtype=dtype)
    case = case._replace(exclude=torch.arange(17) - 1 if excluding else None)
    tokens = torch.arange(5)
    short, long = native.direct_sample_tokens(*case), long_way(sample_tokens, *case)
    assert all(same(x, y) for x, y in zip(short, long, strict=True))
    assert all(same(x, y) for x, y in zip(sample_tokens(*case), long, strict=True))
    scores = native.direct_score_tokens(case.logits, tokens, case.exponents)
    long = long_way(score_tokens, case.logits, tokens, case.exponents)
    assert all(same(x, y) for x, y in zip(scores, long, strict=True))


def test_rows_of_a_larger_matrix_and_empty_lists_are_taken_as_they_are(native, long_way):
    case = make_case("normal", 6, 1000, draws=4)
    case = case._replace(logits=case.logits[:, 10:900], exponents=torch.empty(0))
    short, long = native.direct_sample_tokens(*case), long_way(sample_tokens, *case)
    assert all(same(x, y) for x, y in zip(short, long, strict=True)) and short[2].shape == (6, 0)
    none = case._replace(rows=torch.empty(0, dtype=torch.int64), keys=case.keys[:0], positions=case.positions[:0])
    assert native.direct_sample_tokens(*none)[0].shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sharing", [False, True])
def test_attention_is_that_of_the_long_way(native, long_way, dtype, sharing):
    case, groups = attention(dtype)
    options = {"window": 50, "softcap": 20.0, "shared": groups if sharing else None}
    short = native.direct_paged_attention(*case, 0.2, 50, 20.0, *(groups if sharing else (None, None)))
    long = long_way(paged_attention, *case, scale=0.2, **options)
    assert same(short, long) and same(paged_attention(*case, scale=0.2, **options), long)
    assert short.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_appending_is_that_of_the_long_way(native, long_way, dtype):
    key, value = torch.randn(2, 9, 3, 40).to(dtype)
    slots = torch.randperm(4 * 16)[:9]
    first, second = torch.zeros(2, 2, 4, 16, 3, 40, dtype=dtype)
    assert native.direct_append_kv(key, value.transpose(0, 1).contiguous().transpose(0, 1), *first, slots)
    long_way(append_kv, key, value, *second, slots)
    assert torch.equal(first, second) and first.any()


def test_results_are_ordinary_tensors(native):
    case = make_case("normal", 3, 100)
    token, logp, logz, *_ = native.direct_sample_tokens(*case)
    del case
    assert type(token) is torch.Tensor and not logp.requires_grad and logz.is_contiguous()
    assert torch.equal((token + 1).clone() - 1, token) and torch.equal(torch.from_numpy(logp.numpy()), logp)
    token.zero_()
    assert not token.any()


# Everything else


@pytest.mark.parametrize(
    "change",
    [
        {"logits": lambda z: z.double()},
        {"logits": lambda z: z[0]},
        {"logits": lambda z: z.t().contiguous().t()},
        {"logits": lambda z: z[:, :0]},
        {"logits": lambda z: z.to("meta")},
        {"logits": lambda z: z.numpy()},
        {"logits": lambda z: torch.nn.Parameter(z)},
        {"logits": lambda z: None},
        {"alpha": lambda a: a[:1]},
        {"alpha": lambda a: a.double()},
        {"alpha": lambda a: torch.stack([a, a], 1)[:, 0]},
        {"exponents": lambda e: e[:, None]},
        {"rows": lambda r: r.int()},
        {"keys": lambda k: k[1:]},
        {"positions": lambda p: p.tolist()},
        {"exclude": lambda _: torch.zeros(4, dtype=torch.int32)},
        {"exclude": lambda _: torch.zeros(3, dtype=torch.int64)},
        {"exclude": lambda _: 5},
    ],
)
def test_what_is_not_plain_is_left_undone(native, change):
    case = make_case("normal", 3, 50, draws=4)
    assert native.direct_sample_tokens(*case) is not None
    for name, other in change.items():
        assert native.direct_sample_tokens(*case._replace(**{name: other(getattr(case, name))})) is None


@pytest.mark.parametrize(
    "index, other",
    [
        (0, lambda q: q.double()),
        (0, lambda q: q[..., :-8]),
        (0, lambda q: q[:, :4]),
        (1, lambda k: k.half()),
        (1, lambda k: k[:, :, :, ::2]),
        (2, lambda v: v[1:]),
        (3, lambda t: t.long()),
        (3, lambda t: t[:2]),
        (4, lambda s: s[:-1]),
        (5, lambda n: n.tolist()),
        (6, lambda _: float("nan")),
        (7, lambda _: -1),
        (7, lambda _: True),
        (7, lambda _: 10**30),
        (8, lambda _: -0.5),
        (9, lambda _: None),
        (10, lambda pages: pages.repeat(2)),
    ],
)
def test_attention_that_is_not_plain_is_left_undone(native, index, other):
    case, groups = attention()
    arguments = [*case, 0.2, 0, 0.0, *groups]
    assert native.direct_paged_attention(*arguments) is not None
    arguments[index] = other(arguments[index])
    assert native.direct_paged_attention(*arguments) is None


def test_appending_to_other_heads_is_left_undone(native):
    key, cache = torch.randn(2, 3, 40), torch.zeros(4, 16, 3, 40)
    slots = torch.tensor([3, 9])
    assert native.direct_append_kv(key, key, cache, cache.clone(), slots)
    for bad in (key[:, :2], key[..., :32], key[:1], key.half(), key.flatten(1)):
        assert not native.direct_append_kv(bad, bad, cache, cache.clone(), slots)
    assert not native.direct_append_kv(key, key, cache, cache[:, :, :2], slots)


def test_bad_values_are_named_and_nothing_is_written(native):
    case = make_case("normal", 3, 50, draws=4)
    with pytest.raises(ValueError, match=r"sample_tokens: alpha\[1\] must be finite and > 0, got -2"):
        native.direct_sample_tokens(*case._replace(alpha=torch.tensor([1.0, -2.0, 1.0])))
    cache = torch.zeros(4, 16, 3, 40)
    with pytest.raises(IndexError, match="64"):
        native.direct_append_kv(*torch.ones(2, 2, 3, 40), cache, cache.clone(), torch.tensor([3, 64]))
    assert not cache.any()


def test_a_logit_that_wants_a_gradient_is_read_like_any_other():
    case = make_case("normal", 3, 50)
    wanting = case._replace(logits=case.logits.clone().requires_grad_())
    assert torch.equal(sample_tokens(*wanting).token, sample_tokens(*case).token)


def test_a_batched_tensor_of_vmap_is_refused():
    logits, tokens = torch.randn(2, 3, 50), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda z: score_tokens(z, tokens, torch.empty(0)).logp)(logits)


def test_a_type_without_the_exchange_is_refused_and_changes_nothing(native):
    assert not native.use_tensors_of(int) and not native.use_tensors_of(None)
    assert native.direct_sample_tokens(*make_case("normal", 3, 50)) is not None
