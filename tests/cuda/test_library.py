"""Loading the CUDA library, and what a build without it, or without nvcc, says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastpower.errors import BackendUnavailable
from fastpower.kernels import cuda, dispatch, sample_tokens
from fastpower.kernels.cuda import library
from tests.cuda.conftest import emulate
from tests.kernels.sampling_inputs import make_case

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_cache():
    dispatch.why_not.cache_clear()
    dispatch._route.cache_clear()
    yield
    dispatch.why_not.cache_clear()
    dispatch._route.cache_clear()


def test_missing_library_is_named_with_the_remedy(tmp_path, monkeypatch, no_cache):
    monkeypatch.setattr(library, "PATH", tmp_path / "libfastpower_cuda.so")
    with pytest.raises(BackendUnavailable, match=r"libfastpower_cuda.so was not built.*FASTPOWER_CUDA=1"):
        sample_tokens(*make_case(vocab=7), backend="cuda")


def test_library_of_another_version_is_refused(tmp_path, monkeypatch):
    source = tmp_path / "old.cu"
    source.write_text(
        f'#include "{ROOT}/csrc/cuda/launch.h"\nFASTPOWER_API int fastpower_interface_version() {{ return 0; }}\n'
    )
    monkeypatch.setattr(library, "PATH", emulate([source], tmp_path / "old.so"))
    assert "belongs to another version" in cuda.why_not()


def test_without_a_gpu_the_reason_is_torch_or_the_machine(emulated_library, monkeypatch):
    monkeypatch.setattr(library, "PATH", emulated_library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in cuda.why_not()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no NVIDIA GPU" in cuda.why_not()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.why_not() is None


def test_failed_launch_raises_with_the_words_of_the_runtime(emulated):
    with pytest.raises(RuntimeError, match=r"fastpower_copy_pages: CUDA error 716 .*FASTPOWER_CUDA_ARCHS"):
        library.call("fastpower_copy_pages", torch.device("cpu"), *[None] * 5, 1, 1, 1, 1, 3, *[16] * 4)


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"CUDA_HOME": "/nonexistent"}, "no nvcc in CUDA_HOME=/nonexistent; install the CUDA toolkit"),
        ({"PATH": "/nonexistent"}, "no nvcc in PATH; install the CUDA toolkit"),
        ({"FASTPOWER_CUDA_ARCHS": "native"}, "must be compute capabilities such as"),
    ],
    ids=["home", "path", "archs"],
)
def test_build_that_cannot_compile_cuda_fails_and_says_why(variables, message, tmp_path):
    if "FASTPOWER_CUDA_ARCHS" in variables:  # needs an nvcc to be found, not to be run
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/nvcc").write_text("")
        (tmp_path / "bin/nvcc").chmod(0o755)
        variables = {**variables, "CUDA_HOME": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_HOME"}
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path],
        cwd=ROOT,
        env={**environment, "FASTPOWER_CUDA": "1", **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert message in run.stderr
    assert not list(tmp_path.glob("**/*.so"))
