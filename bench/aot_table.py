"""Compile every Triton kernel ahead of time, without a GPU, and print what the compiler made of it.

    python bench/aot_table.py                                     # the table, every target
    python bench/aot_table.py --targets cuda:90 --match sample    # part of it
    python bench/aot_table.py --json FILE                         # the same numbers, for tests/triton/aot_baseline.json
    python bench/aot_table.py --known FILE                        # compile what FILE has no numbers of, and a sample

Per kernel and target: registers per thread, bytes spilled, bytes of shared memory, machine instructions; for NVIDIA
also barriers, loads of 128 bits and of fewer, and how many groups of copies a loop keeps under way. NVIDIA numbers are
read from the cubin (ptxas, cuobjdump, nvdisasm ship inside triton), AMD numbers from the code object's
metadata. TRITON_INTERPRET must be unset: the interpreter replaces what would be compiled.

Numbers in a file stand beside a key made of all that they depend on: the kernel's source and that of what it calls,
signature, constants, options and target, Triton's release, and how numbers are read here. With ``--known`` a kernel
whose key is in the file is not compiled again, one in SAMPLE of them excepted.
"""

import argparse
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

if os.environ.get("TRITON_INTERPRET"):
    raise SystemExit("unset TRITON_INTERPRET: under the interpreter there is nothing to compile")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = Path(__file__).resolve().parents[1] / "kernels" / "triton"
TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SAMPLE = 24
DTYPES = {"bf16": "*bf16", "fp32": "*fp32"}
TORCH_NAMES = {"bf16": "bfloat16", "fp32": "float32"}


class Spec(NamedTuple):
    """One compilation: a kernel with its argument types, constants and options."""

    name: str
    kernel: object
    signature: dict  # argument → type; constants are left out
    constants: dict
    options: dict


def load_kernels():
    """kernels/triton as a package of its own: nothing but triton and torch is imported."""
    spec = importlib.util.spec_from_file_location(
        "triton_kernels", KERNELS / "__init__.py", submodule_search_locations=[str(KERNELS)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["triton_kernels"] = package
    spec.loader.exec_module(package)
    names = sorted(p.stem for p in KERNELS.glob("*.py") if p.stem not in ("__init__", "registers", "device"))
    return {name: importlib.import_module(f"triton_kernels.{name}") for name in names}


def sample_specs(k):
    sums = dict(partial_ptr="*fp32", blocks="i32", exponents_ptr="*fp32")
    results = dict(logz_ptr="*fp32", entropy_ptr="*fp32", status_ptr="*i32")
    merge = dict(E=1, BLOCKS=64, NAN=1, MASKED=2)
    for dtype, pointer in DTYPES.items():
        rows = dict(logits_ptr=pointer, stride_row="i32", V="i32", alpha_ptr="*fp32", partial_ptr="*fp32")
        for E in (1, 4):
            yield Spec(
                f"sample_tokens.statistics[{dtype},E={E}]",
                k["sample_tokens"].statistics_kernel,
                dict(rows, exponents_ptr="*fp32"),
                dict(E=E, HAS_ALPHA=True, BLOCK=4096),
                dict(num_warps=8),
            )
        draws = dict(rows_ptr="*i64", keys_ptr="*i64", positions_ptr="*i64", exclude_ptr="*i64")
        yield Spec(
            f"sample_tokens.draw[{dtype}]",
            k["sample_tokens"].draw_kernel,
            {**rows, **draws, **dict(B="i32", blocks="i32", token_ptr="*i64", logp_ptr="*fp32", status_ptr="*i32")},
            dict(E=1, HAS_EXCLUDE=True, BLOCK=4096, BLOCKS=64, EXHAUSTED=4),
            dict(num_warps=8),
        )
        yield Spec(
            f"score_tokens.score[{dtype}]",
            k["score_tokens"].score_kernel,
            dict(logits_ptr=pointer, stride_row="i32", tokens_ptr="*i64", logp_ptr="*fp32", **sums, **results),
            merge,
            dict(num_warps=1),
        )
    yield Spec("sample_tokens.merge", k["sample_tokens"].merge_kernel, dict(sums, **results), merge, dict(num_warps=1))


def cache_specs(k):
    for dtype, pointer in DTYPES.items():
        names = [n for n in k["append_kv"].append_kernel.arg_names if "stride" in n]
        yield Spec(
            f"append_kv.append[{dtype}]",
            k["append_kv"].append_kernel,
            dict(key_ptr=pointer, value_ptr=pointer, k_cache_ptr=pointer, v_cache_ptr=pointer, slots_ptr="*i64")
            | dict.fromkeys(names, "i32"),
            dict(PAGE=16, H=8, D=128, BLOCK=1024),
            dict(num_warps=4, divisible=names),
        )
    names = [n for n in k["copy_pages"].copy_kernel.arg_names if "stride" in n or n == "token_size"]
    yield Spec(
        "copy_pages.copy",
        k["copy_pages"].copy_kernel,
        dict(k_cache_ptr="*i32", v_cache_ptr="*i32", source_ptr="*i64", target_ptr="*i64", tokens_ptr="*i64")
        | dict.fromkeys(names, "i64"),
        dict(BLOCK=2048),
        dict(num_warps=4, divisible=names),
    )


def attention_specs(k):
    module = k["paged_attention"]
    for dtype, pointer in DTYPES.items():
        for D in (64, 80, 96, 128, 256):
            M, N, num_warps, num_stages = k["attention_tiles"].tile(getattr(torch, TORCH_NAMES[dtype]), D)
            shape = dict(D=D, DP=triton.next_power_of_2(D), SPLIT=module.SPLIT)
            pointers = dict(query_ptr=pointer, k_cache_ptr=pointer, v_cache_ptr=pointer, page_table_ptr="*i32")
            pointers |= dict(query_starts_ptr="*i32", lengths_ptr="*i32", ancestors_ptr="*i64")
            pointers |= dict(tiles_ptr="*i32", m_ptr="*fp32", s_ptr="*fp32")
            strides = [n for n in module.attend_kernel.arg_names if "stride" in n]
            sizes = dict.fromkeys(["low", "high", "window", *strides], "i32")
            for variant in ("plain", "window,softcap", "tree", "final"):
                flags = dict(
                    FINAL=variant == "final",
                    WINDOW="window" in variant,
                    SOFTCAP="softcap" in variant,
                    TREE=variant == "tree",
                )
                yield Spec(
                    f"paged_attention.attend[{dtype},D={D},{variant}]",
                    module.attend_kernel,
                    {
                        **pointers,
                        **sizes,
                        "out_ptr": pointer if variant == "final" else "*fp32",
                        "scale": "fp32",
                        "softcap": "fp32",
                    },
                    dict(shape, HG=4, M=M, N=N, PAGE=16, **flags),
                    dict(num_warps=num_warps, num_stages=num_stages, maxnreg=255, divisible=strides),
                )
            yield Spec(
                f"paged_attention.fold[{dtype},D={D}]",
                module.fold_kernel,
                dict(m_ptr="*fp32", s_ptr="*fp32", o_ptr="*fp32", last_ptr="*i32")
                | dict(out_ptr=pointer, low="i32", count="i32", window="i32"),
                dict(shape, CHUNK=module.fold_chunk(shape["DP"]), WINDOW=False),
                dict(num_warps=4),
            )
    tiles = k["attention_tiles"]
    yield Spec(
        "attention_tiles.plan",
        tiles.plan_kernel,
        dict(query_starts_ptr="*i32", lengths_ptr="*i32", group_starts_ptr="*i32", group_pages_ptr="*i32")
        | dict(tiles_ptr="*i32", last_ptr="*i32")
        | dict.fromkeys(tiles.PLAN_SIZES, "i32"),
        dict(M=16, HG=4, SPLIT=module.SPLIT, TREE=False, BLOCK=256),
        dict(num_warps=4),
    )


def book_specs(k):
    books = dict(page_table_ptr="*i32", lengths_ptr="*i32", references_ptr="*i32", free_ptr="*i32")
    sizes = dict(free_count_ptr="*i32", R="i32", max_pages="i32", page_size="i32")
    plan = dict(source_ptr="*i32", target_ptr="*i32", length_ptr="*i32", staged_ptr="*i32")
    kernels = k["page_books"]
    yield Spec(
        "page_books.assign",
        kernels.assign_kernel,
        {**books, **sizes, **plan},
        dict(ROWS=64, BLOCK=kernels.BLOCK),
        dict(num_warps=8, maxnreg=255),
    )
    plan = dict(slots_ptr="*i64", source_ptr="*i64", target_ptr="*i64", tokens_ptr="*i64")
    yield Spec(
        "page_books.reserve",
        kernels.reserve_kernel,
        {**books, **sizes, **plan, **dict(rows_ptr="*i32", fits_ptr="*i32")},
        dict(ROWS=64),
        dict(num_warps=4),
    )


def resample_specs(k):
    kernels = k["resample"]
    weights = dict(log_weights_ptr="*fp64", running_ptr="*fp64", copies_ptr="*fp64", N="i32")
    yield Spec(
        "resample.weights",
        kernels.weights_kernel,
        dict(weights, ess_ptr="*fp64", log_mean_ptr="*fp64"),
        dict(RESIDUAL=True, BLOCK=kernels.BLOCK),
        dict(num_warps=4),
    )
    yield Spec(
        "resample.search",
        kernels.search_kernel,
        dict(running_ptr="*fp64", copies_ptr="*fp64", ess_ptr="*fp64", uniforms_ptr="*fp64", index_ptr="*i64", N="i32"),
        dict(SCHEME=3, STEPS=11, BLOCK=kernels.BLOCK),
        dict(num_warps=4),
    )


def pool_specs(k):
    kernels = k["pool_rows"]
    rows = dict(starts_ptr="*i64", partial_ptr="*fp32", blocks="i32", B="i32", pool_ptr="*fp32")
    for dtype, pointer in DTYPES.items():
        yield Spec(
            f"pool_rows.pool[{dtype}]",
            kernels.pool_kernel,
            dict(rows, logits_ptr=pointer, stride_row="i32", V="i32", pooled_ptr="*fp32"),
            dict(PART=2048, BLOCKS=64),
            dict(num_warps=8),
        )
    yield Spec(
        "pool_rows.mass",
        kernels.mass_kernel,
        dict(rows, parts="i32", log_mass_ptr="*fp32", status_ptr="*i32"),
        dict(BLOCKS=64, PARTS=128, NAN=1, MASKED=2),
        dict(num_warps=1),
    )


def forward_specs(k):
    for dtype, pointer in DTYPES.items():
        yield Spec(
            f"add_rms_norm.add_rms_norm[{dtype}]",
            k["add_rms_norm"].add_rms_norm_kernel,
            dict(residual_ptr="*fp32", x_ptr=pointer, inner_ptr="*fp32", weight_ptr="*fp32", out_ptr=pointer)
            | dict(eps="fp32"),
            dict(H=3584, BLOCK=4096, HAS_X=True, HAS_INNER=False),
            dict(num_warps=4),
        )
        strides = dict(k_stride_page="i32", v_stride_page="i32")
        yield Spec(
            f"rotary_append.rotary_append[{dtype}]",
            k["rotary_append"].rotary_append_kernel,
            dict(qkv_ptr=pointer, cos_ptr="*fp32", sin_ptr="*fp32", positions_ptr="*i64", slots_ptr="*i64")
            | dict(q_norm_ptr="*fp32", k_norm_ptr="*fp32", query_ptr=pointer, k_cache_ptr=pointer, v_cache_ptr=pointer)
            | dict(strides, eps="fp32"),
            dict(HQ=28, HKV=4, D=128, HALF=64, PAGE=16, HAS_NORM=True),
            dict(num_warps=1, divisible=[*strides]),
        )
        yield Spec(
            f"gated_activation.gated_activation[{dtype}]",
            k["gated_activation"].gated_activation_kernel,
            dict(gate_up_ptr=pointer, out_ptr=pointer),
            dict(I=18944, GELU=False, BLOCK=1024),
            dict(num_warps=4),
        )


def specs():
    k = load_kernels()
    return [
        *(*sample_specs(k), *cache_specs(k), *book_specs(k), *resample_specs(k), *pool_specs(k), *attention_specs(k)),
        *forward_specs(k),
    ]


def aligned(spec):
    """What the launcher would find at run time: addresses and sizes divisible by 16, except where the kernel asks not
    to be specialised on them."""
    return {
        (p.num,): [["tt.divisibility", 16]]
        for p in spec.kernel.params
        if p.name in spec.signature
        and not (p.do_not_specialize or p.do_not_specialize_on_alignment)
        and (spec.signature[p.name].startswith("*") or p.name in spec.options.get("divisible", ()))
    }


def run(*command):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)


def nvidia_usage(compiled):
    """Registers, spills and instructions of a cubin. Spilled bytes live in local memory, below the stack frame."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = run(NVIDIA_TOOLS / "cuobjdump", "-res-usage", cubin.name).stdout
        sass = run(NVIDIA_TOOLS / "nvdisasm", "-c", cubin.name).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    spilled = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    loads = re.findall(r"\bLDG\.E(\S*)", sass)
    wide = sum(".128" in width for width in loads)
    # Groups of asynchronous copies that may still be under way when the oldest is waited for.
    depths = [int(depth, 16) for depth in re.findall(r"DEPBAR\.LE SB0, (0x[0-9a-f]+)", sass)]
    return dict(
        registers=int(found["REG"]),
        spills=int(found["LOCAL"]) + int(found["STACK"]) + spilled,
        instructions=len(re.findall(r"/\*[0-9a-f]{4,}\*/\s+[@A-Z]", sass)),
        barriers=len(re.findall(r"\bBAR\.SYNC", sass)),
        wide_loads=wide,
        narrow_loads=len(loads) - wide,
        wide_copies=len(re.findall(r"\bLDGSTS\S*\.128", sass)),
        pipeline=max(depths, default=0),
    )


def amd_usage(compiled):
    """The same from an AMD code object: vector registers, spilled registers and scratch bytes, instruction lines."""
    text = compiled.asm["amdgcn"]
    found = {
        k: int(v)
        for k, v in re.findall(
            r"\.(vgpr_count|agpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size):\s+(\d+)", text
        )
    }
    return dict(
        registers=found["vgpr_count"],
        spills=found["vgpr_spill_count"] + found["sgpr_spill_count"] + found["private_segment_fixed_size"],
        instructions=len(re.findall(r"^\t(?:[vs]_|buffer_|global_|flat_|ds_|scratch_)", text, flags=re.MULTILINE)),
    )


def key(spec, target):
    """A digest of everything that the numbers of a kernel on a target depend on."""
    parts = [spec.kernel.cache_key, spec.signature, spec.constants, spec.options, aligned(spec), target]
    parts += [triton.__version__, *map(inspect.getsource, (nvidia_usage, amd_usage, measure))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def measure(spec, target):
    vendor, arch = target.split(":")
    gpu = GPUTarget("cuda", int(arch), 32) if vendor == "cuda" else GPUTarget("hip", arch, 64)
    signature = {a: spec.signature.get(a, "constexpr") for a in spec.kernel.arg_names}
    source = ASTSource(fn=spec.kernel, signature=signature, constexprs=spec.constants, attrs=aligned(spec))
    options = {key: value for key, value in spec.options.items() if key != "divisible"}
    if vendor == "hip":
        options.pop("maxnreg", None)
    compiled = triton.compile(source, target=gpu, options=options)
    row = nvidia_usage(compiled) if vendor == "cuda" else amd_usage(compiled)
    return dict(row, shared=compiled.metadata.shared)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--match", default="", help="only kernels whose name matches this regular expression")
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--known", help="a file written by --json: numbers of unchanged kernels are taken from it")
    args = parser.parse_args()
    known = json.loads(Path(args.known).read_text())["kernels"] if args.known else {}
    rows, compiled = {}, 0
    columns = ("registers", "spills", "shared", "instructions", "barriers", "wide_loads", "narrow_loads", "pipeline")
    print(f"triton {triton.__version__}\n{'kernel':48} {'target':11}", *columns)
    # A cache of its own: what is reported was compiled by this run.
    with tempfile.TemporaryDirectory(prefix="triton_aot_") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for spec in specs():
            if not re.search(args.match, spec.name):
                continue
            for target in args.targets:
                name = f"{spec.name} {target}"
                row = dict(known.get(name, {}))
                digest = key(spec, target)
                if row.get("key") != digest or int(digest, 16) % SAMPLE == 0:
                    compiled += 1
                    try:
                        row = dict(measure(spec, target), key=digest)
                    except Exception as error:
                        row = dict(error=f"{type(error).__name__}: {str(error)[-2000:]}")
                text = row["error"].replace("\n", " ")[-400:] if "error" in row else ""
                text = text or " ".join(f"{row.get(column, '–'):>{len(column)}}" for column in columns)
                print(f"{spec.name:48} {target:11} {text}", flush=True)
                rows[name] = row
    print(f"{compiled} of {len(rows)} compiled")
    if args.json:
        if args.match:  # the others' numbers stand; kernels that are no more go
            names = {spec.name for spec in specs()}
            kept = json.loads(Path(args.json).read_text())["kernels"] if Path(args.json).exists() else {}
            rows = {name: row for name, row in kept.items() if name.rsplit(" ", 1)[0] in names} | rows
        Path(args.json).write_text(
            json.dumps(dict(triton=triton.__version__, kernels=rows), indent=1, sort_keys=True) + "\n"
        )
    return 1 if any("error" in row or row["spills"] for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
