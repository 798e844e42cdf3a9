"""The table of operators: shapes, dtypes and ranges of everything that the façade passes on.

N new tokens, S sequences, Hq and Hkv heads of queries and of keys and values, D numbers in a head (where there are
logits: draws), B rows of logits over V tokens, E exponents, C copies, G groups. What cannot be said of one argument is
a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastpower.kernels.arguments import FLOATS
from fastpower.kernels.caches import check_pages, check_written
from fastpower.kernels.contract import Argument, Contract, Output, Scalar, Sizes, Values
from fastpower.kernels.outputs import check_outputs

_F32, _F64 = (torch.float32,), (torch.float64,)
_I32, _I64, _U8 = (torch.int32,), (torch.int64,), (torch.uint8,)
#: scales and soft caps beyond this make float32 scores infinite or zero
LARGEST = 2.0**64

POSITIVE = Values("finite and > 0", lambda x, _: (x > 0) & x.isfinite())


def _below(size: str, low: int = 0) -> Values:
    return Values(f"in [{low}, {{{size}}})", lambda x, sizes: (x >= low) & (x < sizes[size]))


def _starts_rise(starts: Tensor, sizes: Sizes) -> Tensor:
    good = torch.ones_like(starts, dtype=torch.bool)
    good[1:] = starts[1:] > starts[:-1]
    good[0] &= starts[0] == 0
    good[-1] &= starts[-1] == sizes["B"]
    return good


def _logits_have_dense_rows(op: str, arguments: Mapping[str, Any], sizes: Sizes) -> None:
    logits = arguments["logits"]
    if sizes["V"] == 0:
        raise ValueError(f"{op}: logits must have at least one column, got shape {tuple(logits.shape)}")
    if logits.stride(1) != 1 and sizes["V"] > 1:
        raise ValueError(f"{op}: logits must have last stride 1, got {logits.stride()}; use logits.contiguous()")


def _pages_are_contiguous(op: str, arguments: Mapping[str, Any], _: Sizes) -> None:
    check_pages(op, arguments["k_cache"], arguments["v_cache"])


def _pages_are_apart(op: str, arguments: Mapping[str, Any], _: Sizes) -> None:
    written = {name: arguments[name] for name in ("k_cache", "v_cache")}
    check_written(op, written, {name: tensor for name, tensor in arguments.items() if name not in written})


def _heads_fit(op: str, _: Mapping[str, Any], sizes: Sizes) -> None:
    dim, heads, kv_heads = sizes["D"], sizes["Hq"], sizes["Hkv"]
    if dim % 8 or not 0 < dim <= 256:
        raise ValueError(f"{op}: head_dim must be a multiple of 8, at most 256, got {dim}; pad the heads with zeros")
    if kv_heads == 0 or heads < kv_heads or heads % kv_heads:
        raise ValueError(f"{op}: query heads must be a multiple of key/value heads, got {heads} and {kv_heads}")


def _scores_are_finite(op: str, arguments: Mapping[str, Any], _: Sizes) -> None:
    scale, softcap = arguments["scale"], arguments["softcap"]
    if not abs(scale) <= LARGEST:
        raise ValueError(f"{op}: scale must be finite and at most 2**64, since scores are float32, got {scale}")
    if not (softcap == 0.0 or 1 / LARGEST <= softcap <= LARGEST):
        raise ValueError(
            f"{op}: softcap must be 0 (none) or lie in [2**-64, 2**64], since scores are float32, got {softcap}"
        )


def _window_fits(op: str, arguments: Mapping[str, Any], _: Sizes) -> None:
    window = arguments["window"]
    if window < 0:
        raise ValueError(f"{op}: window must be >= 0 (0 = none), got {window}")
    if window > 0 and arguments["ancestors"] is not None:
        raise ValueError(f"{op}: ancestors do not go with a window, got window={window}; use window=0")


def _groups_are_whole(op: str, arguments: Mapping[str, Any], _: Sizes) -> None:
    if (arguments["shared_starts"] is None) != (arguments["shared_pages"] is None):
        raise ValueError(f"{op}: shared needs both (starts, pages), got only one")


def _particles(op: str, arguments: Mapping[str, Any], sizes: Sizes) -> None:
    if sizes["N"] == 0:
        shape = tuple(arguments["log_weights"].shape)
        raise ValueError(f"{op}: log_weights must hold at least one particle, got shape {shape}")


def _resample(uniforms: str) -> Contract:
    return Contract(
        "resample",
        (
            Argument("log_weights", _F64, "R? N", values=Values("finite or -inf", lambda x, _: x < torch.inf)),
            Argument("uniforms", _F64, uniforms, values=Values("in [0, 1)", lambda x, _: (x >= 0) & (x < 1))),
            Scalar("scheme", "str"),
        ),
        (Output(torch.int64, "R? N"), Output(torch.float64, "R?"), Output(torch.float64, "R?")),
        (_particles,),
    )


def _writing(contract: Contract, names: tuple[str, ...]) -> Contract:
    """The operator that writes the outputs of ``contract`` to tensors of the caller, and works in memory of theirs."""

    def may_be_written(op: str, arguments: Mapping[str, Any], _: Sizes) -> None:
        op = op.removesuffix("_out")
        inputs = [arguments[argument.name] for _, argument in contract.tensors]
        check_outputs(op, {name: arguments[name] for name in names}, arguments["workspace"], inputs)

    written = (
        Argument(
            name,
            output.dtype if isinstance(output.dtype, str) else (output.dtype,),
            output.shape,
            written=True,
            label="out" if name == "out" else f"out.{name}",
        )
        for name, output in zip(names, contract.outputs, strict=True)
    )
    return Contract(
        f"{contract.op}_out",
        (*contract.arguments, *written, Argument("workspace", _U8, "bytes", optional=True, written=True)),
        rules=(*contract.rules, may_be_written),
        first=contract.first,
    )


SAMPLE_TOKENS = Contract(
    "sample_tokens",
    (
        Argument("logits", FLOATS, "B V"),
        Argument("alpha", _F32, "B", values=POSITIVE),
        Argument("exponents", _F32, "E", values=POSITIVE),
        Argument("rows", _I64, "D", values=_below("B")),
        Argument("keys", _I64, "D"),
        Argument("positions", _I64, "D"),
        Argument("exclude", _I64, "D", optional=True, values=_below("V", -1)),
    ),
    (
        Output(torch.int64, "D"),
        Output(torch.float32, "D"),
        Output(torch.float32, "B E"),
        Output(torch.float32, "B"),
        Output(torch.int32, "B"),
    ),
    (_logits_have_dense_rows,),
)

SAMPLE_TOKENS_OUT = _writing(SAMPLE_TOKENS, ("token", "logp", "logz", "entropy", "status"))

SCORE_TOKENS = Contract(
    "score_tokens",
    (
        Argument("logits", FLOATS, "B V"),
        Argument("tokens", _I64, "B", values=_below("V")),
        Argument("exponents", _F32, "E", values=POSITIVE),
    ),
    (
        Output(torch.float32, "B"),
        Output(torch.float32, "B E"),
        Output(torch.float32, "B"),
        Output(torch.int32, "B"),
    ),
    (_logits_have_dense_rows,),
)

POOL_ROWS = Contract(
    "pool_rows",
    (
        Argument("logits", FLOATS, "B V"),
        Argument(
            "starts",
            _I64,
            "G+1",
            values=Values("risen from 0 to {B}, every group with a row at least", _starts_rise),
        ),
    ),
    (Output(torch.float32, "G V"), Output(torch.float32, "G"), Output(torch.int32, "G")),
    (_logits_have_dense_rows,),
)

APPEND_KV = Contract(
    "append_kv",
    (
        Argument("key", FLOATS, "N Hkv D"),
        Argument("value", "key", "N Hkv D"),
        Argument("k_cache", "key", "pages page_size Hkv D", written=True),
        Argument("v_cache", "key", "pages page_size Hkv D", written=True),
        Argument("slots", _I64, "N"),
    ),
    rules=(_pages_are_contiguous, _pages_are_apart),
)

COPY_PAGES = Contract(
    "copy_pages",
    (
        Argument("k_cache", FLOATS, "layers pages page_size Hkv D", written=True),
        Argument("v_cache", "k_cache", "layers pages page_size Hkv D", written=True),
        Argument("source", _I64, "C"),
        Argument("target", _I64, "C"),
        Argument("tokens", _I64, "C"),
    ),
    rules=(_pages_are_contiguous, _pages_are_apart),
)

PAGED_ATTENTION = Contract(
    "paged_attention",
    (
        Argument("query", FLOATS, "N Hq D"),
        Argument("k_cache", "query", "pages page_size Hkv D"),
        Argument("v_cache", "query", "pages page_size Hkv D"),
        Argument("page_table", _I32, "S max_pages"),
        Argument("query_starts", _I32, "S+1"),
        Argument("lengths", _I32, "S"),
        Scalar("scale", "float"),
        Scalar("window", "int"),
        Scalar("softcap", "float"),
        Argument("shared_starts", _I32, "G+1", optional=True, label="shared starts"),
        Argument("shared_pages", _I32, "G", optional=True, label="shared pages"),
        Argument("ancestors", _I64, "N", optional=True),
    ),
    (Output("query", "N Hq D"),),
    (_pages_are_contiguous, _heads_fit, _scores_are_finite, _window_fits, _groups_are_whole),
    first=("query", "lengths"),
)

PAGED_ATTENTION_OUT = _writing(PAGED_ATTENTION, ("out",))

RESAMPLE = _resample("R? N")
RESAMPLE_SYSTEMATIC = _resample("R? 1")  #: one uniform a set of particles

LINEAR = Contract(
    "linear",
    (
        Argument("x", (torch.float32, torch.bfloat16), "rows in"),
        Argument("panels", _U8, "bytes"),
        Argument("bias", _F32, "out_features", optional=True),
        Scalar("out_features", "int"),
        Scalar("dtype", "ScalarType"),
        Scalar("out_dtype", "ScalarType"),
        Scalar("format", "str?", "None"),
    ),
    (Output("out_dtype", "rows out_features"),),
    backend=False,
)

#: every operator that is registered with torch, by its name
CONTRACTS = {
    contract.op: contract
    for contract in (
        *(SAMPLE_TOKENS, SAMPLE_TOKENS_OUT, SCORE_TOKENS, POOL_ROWS, APPEND_KV, COPY_PAGES),
        *(PAGED_ATTENTION, PAGED_ATTENTION_OUT, RESAMPLE, LINEAR),
    )
}
