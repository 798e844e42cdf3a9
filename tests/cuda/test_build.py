"""FASTPOWER_CUDA=1 builds a library for the promised GPUs that loads without one, and no kernel spills registers."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastpower.kernels.cuda import library

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("80", "90", "100")
# Most registers a thread may use. With 48, five thread blocks of 256 threads share a multiprocessor, enough loads in
# flight to reach memory bandwidth; attention has many loads in flight in each thread, and runs two.
KERNELS = {"append_kv": 48, "attend": 128, "block_stats": 48, "copy_pages": 48, "finish": 48, "fold_splits": 48}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """(path of the library, what nvcc printed) of a build with the default architectures."""
    home = os.environ.get("CUDA_HOME")
    if shutil.which("nvcc", path=f"{home}/bin" if home else None) is None:
        pytest.skip("no nvcc")
    folder = tmp_path_factory.mktemp("build")
    environment = {name: value for name, value in os.environ.items() if name != "FASTPOWER_CUDA_ARCHS"}
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", folder, "--build-temp", folder / "objects"],
        cwd=ROOT,
        env={**environment, "FASTPOWER_CUDA": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return folder / "fastpower" / library.PATH.name, run.stdout + run.stderr


def resources(log):
    """{(kernel, arch): [(registers, spilled bytes), …]} from nvcc's --resource-usage, one entry per instantiation."""
    found = {}
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    for match in pattern.finditer(log):
        kernel = next(name for name in KERNELS if name in match["name"])
        spilled = int(match["stores"]) + int(match["loads"])
        found.setdefault((kernel, match["arch"]), []).append((int(match["registers"]), spilled))
    return found


@pytest.mark.slow
def test_every_kernel_is_compiled_for_every_architecture_without_spills(build):
    found = resources(build[1])
    assert set(found) == {(kernel, arch) for kernel in KERNELS for arch in ARCHS}
    assert {len(found["block_stats", arch]) for arch in ARCHS} == {3}  # float32, bfloat16, float16
    assert {spilled for uses in found.values() for _, spilled in uses} == {0}
    for (kernel, arch), uses in found.items():
        assert max(registers for registers, _ in uses) <= KERNELS[kernel], (kernel, arch)


@pytest.mark.slow
def test_library_loads_without_a_gpu_and_has_every_function(build, monkeypatch):
    monkeypatch.setattr(library, "PATH", build[0])
    loaded = library.load()
    assert loaded.fastpower_interface_version() == library.INTERFACE
    assert loaded.fastpower_error_string(0) == b"no error"
    assert loaded.fastpower_sample_scratch(3, 4097, 2) == 6 * 3 * 2
    needed = subprocess.run(["readelf", "-d", build[0]], capture_output=True, text=True, check=True).stdout
    assert "libcudart" not in needed and "libtorch" not in needed and "libc10" not in needed


@pytest.mark.slow
def test_library_exports_the_c_interface_and_nothing_else(build):
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", build[0]], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[-1] for line in symbols.splitlines()}
    assert {name for name in exported if name.startswith("fastpower")} == set(library.SIGNATURES)
    assert not {name for name in exported if "fastpower" in name and not name.startswith("fastpower_")}


def cuobjdump(*arguments):
    bundled = Path(pytest.importorskip("triton").__file__).parent / "backends/nvidia/bin/cuobjdump"
    program = shutil.which("cuobjdump") or (bundled if bundled.exists() else pytest.skip("no cuobjdump"))
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_row_is_read_in_16_byte_loads_with_one_exponential_per_entry_and_sum(build, arch):
    functions = re.split(r"Function : ", cuobjdump("-sass", "-arch", f"sm_{arch}", build[0]))
    bodies = [text for text in functions if "block_stats" in text.partition("\n")[0]]
    assert len(bodies) == 3
    for body in bodies:
        float32 = "block_statsIf" in body.partition("\n")[0]
        assert len(re.findall(r"LDG\.E\S*\.128", body)) == (4 if float32 else 2)  # 16 entries a thread
        assert body.count("MUFU.EX2") == 3 * 16  # s (and t), s_alpha, one s_e


@pytest.mark.slow
def test_library_holds_machine_code_per_architecture_and_the_newest_as_ptx(build):
    for option, archs in (("--list-elf", ARCHS), ("--list-ptx", ARCHS[-1:])):
        assert set(re.findall(r"sm_(\d+)\.", cuobjdump(option, build[0]))) == set(archs)


@pytest.mark.slow
def test_launch_without_a_driver_fails_with_an_error_and_not_a_crash(build, monkeypatch):
    """Only where CUDA cannot start at all; on a GPU tests/gpu runs the real thing."""
    monkeypatch.setattr(library, "PATH", build[0])
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has a CUDA driver")
    monkeypatch.setattr(library, "stream", lambda device: 0)
    with pytest.raises(RuntimeError, match=r"CUDA error 35 \(CUDA driver version is insufficient"):
        import torch

        library.call("fastpower_copy_pages", torch.device("cpu"), *[None] * 5, 1, 1, 1, 1, 16, *[16] * 4)
