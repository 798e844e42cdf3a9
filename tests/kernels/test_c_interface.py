"""fastpower.h and libfastpower_cpu.so: what another engine links has the façade's bits and refuses before it writes."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpower import kernels, native

ROOT = Path(__file__).resolve().parents[2]
HEADER = native.include_dir() / "fastpower.h"
DECLARED = set(re.findall(r"\b(fastpower_\w+)\(", HEADER.read_text()))
LANGUAGES = {"C99": ["cc", "-std=c99", "-xc"], "C++17": ["c++", "-std=c++17", "-xc++"]}


@pytest.fixture(scope="module")
def library():
    lib = ctypes.CDLL(str(native.library()))
    lib.fastpower_cpu_last_error.restype = ctypes.c_char_p
    return lib


def build(source: Path, target: Path, language: str) -> Path:
    compiler, *options = LANGUAGES[language]
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([compiler, *options, *strict, str(source), *native.flags(), "-o", str(target)], check=True)
    return target


def numbers(count: int, state: int) -> tuple[list[float], int]:
    """Those of the example in C."""
    found = []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        found.append((state >> 8) / 16777216.0 * 8.0 - 4.0)
    return found, state


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_compiles_and_prints_what_the_facade_gives(language, tmp_path):
    program = build(ROOT / "examples/c/sample.c", tmp_path / "sample", language)
    lines = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()

    logits, state = numbers(3 * 10_000, 1)
    rows, keys, positions = torch.tensor([0, 0, 1, 2]), torch.arange(11, 15), torch.tensor([7, 7, 7, 9])
    alpha = torch.tensor([4.0, 1.0, 4.0])
    z = torch.tensor(logits, dtype=torch.float32).view(3, -1)
    out = kernels.sample_tokens(z, alpha, alpha[:1], rows, keys, positions, backend="cpu")
    expected = zip(out.token, out.logp, out.logz[rows, 0], out.entropy[rows], strict=True)
    for line, values in zip(lines, expected, strict=False):
        token, *floats = line.split()
        assert [int(token), *map(float.fromhex, floats)] == [x.item() for x in values]

    parts = []
    for shape in ((8, 16, 1, 64), (8, 16, 1, 64), (1, 4, 64)):
        part, state = numbers(int(np.prod(shape)), state)
        parts.append(torch.tensor(part, dtype=torch.float32).view(shape))
    k, v, query = parts
    table, starts, lengths = (torch.tensor(x, dtype=torch.int32) for x in ([[5, 0, 3]], [0, 1], [40]))
    attended = kernels.paged_attention(query, k, v, table, starts, lengths, scale=0.125, backend="cpu")
    total = np.float32(0)
    for x in attended.flatten().numpy():
        total += x
    assert float.fromhex(lines[-1]) == total and len(lines) == 5


def test_the_library_has_the_functions_of_the_header_and_nothing_of_python(library):
    for name in DECLARED:
        if name.startswith("fastpower_cpu_"):
            assert getattr(library, name)
    if shutil.which("nm"):
        symbols = subprocess.run(["nm", "-D", native.library()], capture_output=True, text=True, check=True).stdout
        exported = set(re.findall(r" T (fastpower_\w+)", symbols))
        assert exported == {name for name in DECLARED if name.startswith("fastpower_cpu_")}
        assert not re.search(r" U _?Py", symbols) and "torch" not in symbols


def test_the_cuda_library_is_what_the_header_says():
    from fastpower.kernels.cuda.library import INTERFACE, SIGNATURES

    assert {name for name in DECLARED if not name.startswith("fastpower_cpu_")} == set(SIGNATURES)
    version = int(re.search(r"FASTPOWER_ABI_VERSION (\d+)", HEADER.read_text())[1])
    assert (
        version == INTERFACE
        and '#include "../../fastpower/include/fastpower.h"' in (ROOT / "csrc/cuda/launch.h").read_text()
    )  # a definition that differs from its declaration does not compile


def test_flags_are_printed_and_a_library_that_is_not_there_is_named(tmp_path):
    def run(*arguments):
        program = [sys.executable, "-m", "fastpower.native", *arguments]
        return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert run().stdout.split() == native.flags() and run("cpu").returncode == 0
    assert "device must be 'cpu' or 'cuda', got 'tpu'" in run("tpu").stderr
    if not (native.include_dir().parent / "libfastpower_cuda.so").exists():
        assert "FASTPOWER_CUDA=1" in run("cuda").stderr and run("cuda").returncode == 1


def test_the_version_is_the_headers(library):
    version = int(re.search(r"FASTPOWER_ABI_VERSION (\d+)", HEADER.read_text())[1])
    assert library.fastpower_cpu_abi_version() == version


#: counts the calls of malloc of the first turn of some calls, of three more, and of sixty on two threads
ALLOCATIONS = r"""
#include <dlfcn.h>
#include <fastpower.h>
#include <stdio.h>
#include <stdlib.h>
static long count = 0;
extern void* __libc_malloc(size_t);
extern void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { __sync_fetch_and_add(&count, 1); return __libc_malloc(n); }
void* aligned_alloc(size_t a, size_t n) { __sync_fetch_and_add(&count, 1); return __libc_memalign(a, n); }
enum { ROWS = 8, VOCAB = 40000, DRAWS = 12, S = 5, P = 40, D = 64 };
static float logits[ROWS * VOCAB], logz[ROWS], entropy[ROWS], logp[DRAWS], alpha[ROWS];
static float k[S * P * 16 * D], v[S * P * 16 * D], q[S * 4 * D], out[S * 4 * D];
static int64_t rows[DRAWS], keys[DRAWS], token[DRAWS];
static int32_t status[ROWS], table[S * P], starts[S + 1], lengths[S];
int main(void) {
  const float four = 4;
  int i, turn, code = 0;
  long before[64];
  for (i = 0; i < ROWS * VOCAB; ++i) logits[i] = (float)(i % 977) / 100;
  for (i = 0; i < ROWS; ++i) alpha[i] = 4;
  for (i = 0; i < DRAWS; ++i) rows[i] = i % ROWS, keys[i] = i;
  for (i = 0; i < S * P; ++i) table[i] = i;
  for (i = 0; i < S; ++i) starts[i] = i, lengths[i] = 16 * P - i;
  starts[S] = S;
  for (turn = 0; turn < 64; ++turn) {
    fastpower_cpu_set_num_threads(turn < 4 ? 1 : 2);
    before[turn] = count;
    code |= fastpower_cpu_sample_tokens(logits, 0, ROWS, VOCAB, VOCAB, alpha, &four, 1, rows, keys, keys, 0,
                                        DRAWS, token, logp, logz, entropy, status);
    code |= fastpower_cpu_paged_attention(q, k, v, out, 0, S, 4, 1, D, 4 * D, D, S * P, 16, 16 * D, 16 * D,
                                          table, starts, lengths, S, P, 0, 0, 0, 0.125f, 0, 0, 0);
  }
  printf("%d %ld %ld %ld\n", code, before[1], before[4] - before[1], count - before[4]);
  return 0;
}
"""


def test_later_calls_allocate_nothing_on_the_heap(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("counts the calls of glibc's malloc")
    source = tmp_path / "count.c"
    source.write_text(ALLOCATIONS)
    program = tmp_path / "count"
    subprocess.run(["cc", "-w", str(source), *native.flags(), "-o", str(program)], check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    code, first, later, threaded = map(int, printed.split())
    assert code == 0 and first > 5  # the counter counts
    assert later == 0
    assert threaded < 30  # the pool begins, and each thread meets its first task: once in sixty turns, not in each


# ------------------------------------------------------------------------ what is refused, with nothing written


def sample_arguments():
    """Arguments of ``fastpower_cpu_sample_tokens`` by name, in order."""
    z = np.random.default_rng(0).standard_normal((2, 50), dtype=np.float32)
    return {
        **{"logits": z, "dtype": 0, "rows": 2, "vocab": 50, "row_stride": 50, "alpha": np.ones(2, np.float32)},
        **{"exponents": np.full(1, 4, np.float32), "num_exponents": 1, "draw_rows": np.array([0, 1, 1])},
        **{"keys": np.arange(3), "positions": np.arange(3), "exclude": np.full(3, -1), "num_draws": 3},
        **{"token": np.full(3, -7), "logp": np.full(3, -7, np.float32), "logz": np.full((2, 1), -7, np.float32)},
        **{"entropy": np.full(2, -7, np.float32), "status": np.full(2, -7, np.int32)},
    }


def passed(value):
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


INVALID, RANGE = -1, -2
BAD_SAMPLES = [
    *((name, None, INVALID) for name in ("logits", "alpha", "exponents", "draw_rows", "keys", "positions")),
    *((name, None, INVALID) for name in ("token", "logp", "logz", "entropy", "status")),
    *((name, -1, INVALID) for name in ("rows", "vocab", "row_stride", "num_exponents", "num_draws", "dtype")),
    ("dtype", 3, INVALID),
    ("vocab", 0, INVALID),
    ("vocab", 2**61, INVALID),
    ("num_exponents", 2**60, INVALID),
    ("draw_rows", np.array([0, 2, 1]), INVALID),
    ("draw_rows", np.array([0, -1, 1]), INVALID),
    ("exclude", np.array([0, 50, 1]), INVALID),
    ("alpha", np.array([1, np.nan], np.float32), INVALID),
    ("alpha", np.array([1, 0], np.float32), INVALID),
    ("exponents", np.array([-1], np.float32), INVALID),
]


@pytest.mark.parametrize("name, value, code", BAD_SAMPLES, ids=lambda x: str(x)[:20])
def test_draws_from_bad_arguments_are_refused_and_write_nothing(library, name, value, code):
    arguments = sample_arguments() | {name: value}
    assert library.fastpower_cpu_sample_tokens(*map(passed, arguments.values())) == code
    message = library.fastpower_cpu_last_error().decode()
    assert "sample_tokens" in message and (name.removeprefix("draw_") in message or "overflow" in message)
    outputs = [arguments[key] for key in ("token", "logp", "logz", "entropy", "status")]
    assert all((x == -7).all() for x in outputs if x is not None)


def attention_arguments():
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 6, 4, 1, 8), dtype=np.float32)
    return {
        **{"query": rng.standard_normal((2, 2, 8), dtype=np.float32), "k_cache": k, "v_cache": v},
        **{"out": np.full((2, 2, 8), -7, np.float32), "dtype": 0, "queries": 2, "query_heads": 2, "kv_heads": 1},
        **{"dim": 8, "query_token_stride": 16, "query_head_stride": 8, "pages": 6, "page_size": 4},
        **{"k_page_stride": 32, "v_page_stride": 32, "page_table": np.array([[0, 1], [2, 3]], np.int32)},
        **{"query_starts": np.array([0, 1, 2], np.int32), "lengths": np.array([8, 5], np.int32), "sequences": 2},
        **{"max_pages": 2, "shared_starts": None, "shared_pages": None, "groups": 0, "scale": 0.3, "window": 0},
        **{"softcap": 0.0, "ancestors": None},
    }


BAD_ATTENTION = [
    *((name, None, INVALID) for name in ("query", "k_cache", "v_cache", "out", "page_table", "lengths")),
    *((name, -1, INVALID) for name in ("dtype", "queries", "kv_heads", "pages", "page_size", "sequences", "window")),
    ("dim", 12, INVALID),
    ("dim", 264, INVALID),
    ("query_heads", 0, INVALID),
    ("pages", 2**60, INVALID),
    ("groups", 1, INVALID),
    ("scale", float("nan"), INVALID),
    ("softcap", -1.0, INVALID),
    ("page_table", np.array([[0, 6], [2, 3]], np.int32), RANGE),
    ("page_table", np.array([[0, -1], [2, 3]], np.int32), RANGE),
    ("lengths", np.array([9, 5], np.int32), INVALID),
    ("lengths", np.array([0, 5], np.int32), INVALID),
    ("query_starts", np.array([0, 1, 1], np.int32), INVALID),
]


@pytest.mark.parametrize("name, value, code", BAD_ATTENTION, ids=lambda x: str(x)[:20])
def test_attention_of_bad_arguments_is_refused_and_writes_nothing(library, name, value, code):
    arguments = attention_arguments() | {name: value}
    assert library.fastpower_cpu_paged_attention(*map(passed, arguments.values())) == code
    message = library.fastpower_cpu_last_error().decode()
    assert "paged_attention" in message
    assert arguments["out"] is None or (arguments["out"] == -7).all()


def test_good_arguments_clear_the_error_and_have_the_bits_of_the_facade(library):
    arguments = attention_arguments()
    library.fastpower_cpu_set_num_threads(0)
    assert b"num_threads" in library.fastpower_cpu_last_error()
    assert library.fastpower_cpu_paged_attention(*map(passed, arguments.values())) == 0
    assert library.fastpower_cpu_last_error() == b""
    tensors = (arguments[n] for n in ("query", "k_cache", "v_cache", "page_table", "query_starts", "lengths"))
    expected = kernels.paged_attention(*map(torch.from_numpy, tensors), scale=float(np.float32(0.3)), backend="cpu")
    assert torch.equal(torch.from_numpy(arguments["out"]), expected)


def test_copies_and_appends_refuse_before_they_write(library):
    cache = np.zeros((2, 3, 4, 8), np.float32)  # K and V: pages, slots, numbers of a token
    rows = np.ones((2, 8), np.float32)

    def append(slots, stride=128):
        arguments = (rows, rows, cache[0], cache[1], np.array(slots), 2, 1, 32, 32, 32, 32, 32, 3, 4, stride, stride)
        return library.fastpower_cpu_append_kv(*map(passed, arguments))

    def copy(source, target, tokens):
        arguments = (cache[0], cache[1], *map(np.array, (source, target, tokens)), 1, 1, 3, 4, 32, 384, 128, 384, 128)
        return library.fastpower_cpu_copy_pages(*map(passed, arguments))

    assert [append([0, 12]), append([0, -2]), append([5, 5]), append([0, 1], 64)] == [RANGE, RANGE, INVALID, INVALID]
    assert [copy([0], [3], [1]), copy([0], [0], [1]), copy([0], [1], [5])] == [RANGE, INVALID, RANGE]
    assert not cache.any()
    assert append([4, 0]) == 0 and copy([1], [2], [1]) == 0
    assert cache[:, 2, 0].all() and cache.sum() == 2 * 3 * 8


def test_resampling_is_the_facades(library):
    weights = np.log(np.random.default_rng(0).random((2, 9)))
    uniforms = np.random.default_rng(1).random((2, 9))
    index, ess, log_mean = np.full((2, 9), -7), np.zeros(2), np.zeros(2)
    out = (index, ess, log_mean)
    assert library.fastpower_cpu_resample(*map(passed, (weights, uniforms, 2, 9, 4, *out))) == INVALID
    assert (index == -7).all()
    assert library.fastpower_cpu_resample(*map(passed, (weights, uniforms, 2, 9, 1, *out))) == 0
    from fastpower.kernels.cpu.resample import resample

    expected = resample(torch.from_numpy(weights), torch.from_numpy(uniforms), scheme="stratified")
    assert all(torch.equal(torch.from_numpy(a), b) for a, b in zip(out, expected, strict=True))
