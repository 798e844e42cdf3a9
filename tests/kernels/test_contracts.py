"""The table of operators: what it says is what the façade refuses, what C++ takes, and what torch is told."""

from __future__ import annotations

import pytest
import torch

from fastpower import kernels
from fastpower.kernels import dispatch
from fastpower.kernels.contract import Argument, Contract, Output, Scalar, Values
from fastpower.kernels.contracts import CONTRACTS
from tests.kernels.paging_inputs import make_case as make_paging
from tests.kernels.sampling_inputs import make_case


def good(op):
    """Arguments of the registered operator, without its backend."""
    sampling, paging = make_case("normal", 3, 50, draws=4), make_paging([40, 33], [1, 2], dtype=torch.float32)
    pairs = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    match op:
        case "sample_tokens":
            return list(sampling._replace(exclude=torch.arange(4) - 1))
        case "sample_tokens_out" | "paged_attention_out":
            values = good(op.removesuffix("_out"))
            return [
                *values,
                *CONTRACTS[op.removesuffix("_out")].outputs_for(*values),
                torch.empty(64, dtype=torch.uint8),
            ]
        case "score_tokens":
            return [sampling.logits, torch.tensor([0, 49, 7]), sampling.exponents]
        case "pool_rows":
            return [sampling.logits, torch.tensor([0, 1, 3])]
        case "append_kv":
            return [torch.randn(5, 3, 8), torch.randn(5, 3, 8), *torch.zeros(2, 4, 16, 3, 8), torch.arange(5)]
        case "copy_pages":
            return [*torch.zeros(2, 3, 6, 16, 2, 8), torch.tensor([0, 1]), torch.tensor([3, 4]), torch.tensor([16, 5])]
        case "paged_attention":
            return [*paging, 0.2, 0, 0.0, *pairs, None]
        case "resample":
            return [torch.zeros(2, 9, dtype=torch.float64), torch.rand(2, 9, dtype=torch.float64), "stratified"]
        case "linear":
            packed = kernels.pack_linear(torch.randn(7, 5), torch.randn(7))
            return [torch.randn(3, 5), packed.panels, packed.bias, 7, torch.float32, torch.bfloat16, None]
    raise AssertionError(f"no inputs for {op}")


def direct(op, argument):
    """The short way to an operator; where there is none, something that leaves everything undone."""
    function = getattr(dispatch.direct("cpu"), f"direct_{op.replace('_out', '_into')}", None)
    if function is None or argument in ("ancestors", "workspace"):  # with them it is not asked
        return lambda *values: None
    match op:
        case "paged_attention":
            return lambda *values: function(*values[:-1])
        case "paged_attention_out":
            return lambda *values: function(*values[:11], values[12])
        case "sample_tokens_out":
            return lambda *values: function(*values[:7], tuple(values[7:12]))
    return function


#: whose first size no other argument has
ALONE = {
    ("pool_rows", "logits"),
    ("pool_rows", "starts"),
    ("sample_tokens", "exponents"),
    ("score_tokens", "exponents"),
    ("linear", "x"),
    ("linear", "panels"),
}
ALONE |= {("paged_attention", "query"), ("sample_tokens_out", "exponents"), ("paged_attention_out", "query")}
ALONE |= {("sample_tokens_out", "workspace"), ("paged_attention_out", "workspace")}


def spoiled():
    """(operator, argument, what is wrong with it)"""
    for op, contract in CONTRACTS.items():
        for argument in contract.arguments:
            if isinstance(argument, Argument):
                for wrong in ("dtype", "dimension", "no tensor", "device", "longer"):
                    if wrong != "longer" or (op, argument.name) not in ALONE:
                        yield op, argument.name, wrong


def spoil(value, wrong):
    match wrong:
        case "dtype":
            return value.to(torch.complex64)
        case "dimension":
            return value[None, None, None]
        case "no tensor":
            return value.tolist()
        case "device":
            return value.to("meta")
        case "longer":  # in its first size, which other arguments have, too
            return torch.cat([value, value[:1]])


@pytest.mark.parametrize("op", CONTRACTS)
def test_good_arguments_are_taken(op):
    values = good(op)
    contract = CONTRACTS[op]
    sizes = contract.check(*values)
    contract.check_values(sizes, *values)
    assert list(contract.names) == [parameter.name for parameter in schema(op).arguments][: len(values)]


@pytest.mark.parametrize("op, name, wrong", spoiled())
def test_what_does_not_fit_is_refused_by_the_table_and_left_alone_by_the_short_way(op, name, wrong):
    contract, values = CONTRACTS[op], good(op)
    i = contract.names.index(name)
    if values[i] is None:
        values[i] = torch.ones(3, dtype=torch.int64)
    values[i] = spoil(values[i], wrong)
    label = contract.arguments[i].label or name
    with pytest.raises((TypeError, ValueError), match=f"^{op.removesuffix('_out')}(_out)?: ") as error:
        contract.check(*values)
    if wrong not in ("longer", "device"):  # whichever of two that differ is named
        assert label in str(error.value)
    left = direct(op, name)(*values)
    assert left is None or left is False
    if op in ("append_kv", "copy_pages"):  # into caches of zeros
        caches = [values[i] for i, argument in contract.tensors if argument.written and argument.name != name]
        assert not any(cache.any() for cache in caches), "written before all was checked"


def schema(op):
    return getattr(torch.ops.fastpower, op).default._schema


@pytest.mark.parametrize("op", CONTRACTS)
def test_torch_knows_every_argument_as_the_table_says(op):
    contract = CONTRACTS[op]
    for argument, known in zip(contract.arguments, schema(op).arguments, strict=False):
        assert argument.name == known.name
        if isinstance(argument, Argument):
            assert (known.alias_info is not None and known.alias_info.is_write) == argument.written
            assert str(known.type) == ("Optional[Tensor]" if argument.optional else "Tensor")
    assert len(schema(op).returns) == len(contract.outputs)


@pytest.mark.parametrize("op", [op for op, contract in CONTRACTS.items() if contract.outputs])
def test_fakes_are_like_results(op):
    values = good(op)
    call = values if op == "linear" else [*values, "cpu"]
    real = getattr(torch.ops.fastpower, op).default(*call)
    fake = CONTRACTS[op].fake(*call)
    pairs = zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (real, fake)), strict=True)
    assert all(a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride() for a, b in pairs)


def test_an_optional_dimension_is_there_for_all_or_none():
    contract = Contract("op", (Argument("a", (torch.float32,), "R? N"), Argument("b", (torch.float32,), "R? 1")))
    contract.check(torch.zeros(4), torch.zeros(1))
    contract.check(torch.zeros(2, 4), torch.zeros(2, 1))
    for a, b, message in (
        (torch.zeros(4), torch.zeros(2, 1), r"b must have shape \(1,\), got \(2, 1\)"),
        (torch.zeros(2, 4), torch.zeros(1), r"b must have shape \(2, 1\), got \(1,\)"),
        (torch.zeros(2, 2, 4), torch.zeros(1), r"a must have shape \(R\?, N\), got \(2, 2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            contract.check(a, b)


def test_an_entry_out_of_range_is_named_with_its_place():
    even = Values("even and below {N}", lambda x, sizes: (x % 2 == 0) & (x < sizes["N"]))
    arguments = Argument("a", (torch.int64,), "B N", values=even), Scalar("n", "int")
    contract = Contract("op", arguments, (Output("a", "n"),))
    value = torch.tensor([[0, 2, 4], [2, 0, 3]])
    with pytest.raises(ValueError, match=r"op: a\[0, 2\] must be even and below 3, got 4"):
        contract.check_values(contract.check(value, 5), value, 5)
    assert contract.schema == "op(Tensor a, int n, str backend) -> Tensor"
    assert contract.fake(value, 5).shape == (5,)
