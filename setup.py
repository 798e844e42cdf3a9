"""Builds ``fastpower._C`` (pybind11, no torch headers) and, with FASTPOWER_CUDA=1, the CUDA library.

Environment:
  FASTPOWER_CUDA=1      also compile csrc/cuda with nvcc (hardware is never sniffed: the flag decides)
  FASTPOWER_SANITIZE=1  address + undefined-behaviour sanitizers, for the tests that run without torch
"""

import glob
import os

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

# ISA variants are chosen at run time inside the sources (target attributes); never -march=native here.
# No -ffast-math: bitwise reproducibility and -inf/NaN handling are part of the contract.
compile_args = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]
link_args = ["-pthread"]
if os.environ.get("FASTPOWER_SANITIZE") == "1":
    sanitize = [
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
        "-O1",
        "-g",
    ]
    compile_args += sanitize
    link_args += sanitize
else:
    compile_args += ["-g0"]

if os.environ.get("FASTPOWER_CUDA") == "1" and not glob.glob("csrc/cuda/*.cu"):
    raise SystemExit("FASTPOWER_CUDA=1: this version has no CUDA sources (csrc/cuda is empty); unset FASTPOWER_CUDA")

ParallelCompile("FASTPOWER_BUILD_JOBS", default=0).install()
setup(
    # The last two live in kernels/, see [tool.setuptools.package-dir].
    packages=[
        *find_packages(include=["fastpower", "fastpower.*"]),
        "fastpower.kernels.reference",
        "fastpower.kernels.triton",
    ],
    ext_modules=[
        Pybind11Extension(
            "fastpower._C",
            sorted(glob.glob("csrc/*.cpp") + glob.glob("csrc/cpu/*.cpp")),
            include_dirs=["csrc"],
            depends=sorted(glob.glob("csrc/*.h") + glob.glob("csrc/cpu/*.h") + glob.glob("csrc/cpu/*.inl")),
            cxx_std=17,
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
