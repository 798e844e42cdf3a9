"""Builds ``fastpower._C`` (pybind11, no torch headers), the CPU library and, with FASTPOWER_CUDA=1, the CUDA library.

Environment:
  FASTPOWER_CUDA=1      also compile csrc/cuda with nvcc (hardware is never sniffed: the flag decides); nvcc is
                        $CUDA_HOME/bin/nvcc if CUDA_HOME is set, else the one on PATH
  FASTPOWER_CUDA_ARCHS  compute capabilities to compile for, default "80 90 100"; the newest also as PTX
  FASTPOWER_SANITIZE=1  address + undefined-behaviour sanitizers, for the tests that run without torch
"""

import glob
import os
import shutil
import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 12):  # pip would notice after building
    raise SystemExit("fastpower needs Python 3.11 or 3.12; this is {}.{}".format(*sys.version_info[:2]))

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

# ISA variants are chosen at run time inside the sources (target attributes); never -march=native here.
# No -ffast-math, no contraction of a * b + c wherever the optimiser likes: bitwise reproducibility and -inf/NaN
# handling are part of the contract.
compile_args = [
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-pthread",
]
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


class BuildWithLibraries(build_ext):
    """build_ext, and the libraries behind fastpower/include/fastpower.h.

    libfastpower_cpu.so is linked from the extension's own object files, so that it costs no second compilation, and
    has neither Python nor torch in it. libfastpower_cuda.so, with FASTPOWER_CUDA=1, is what fastpower/kernels/cuda
    loads: the CUDA runtime is linked in, so it needs neither torch nor a GPU to be built or loaded."""

    def run(self):
        command = nvcc_command() if os.environ.get("FASTPOWER_CUDA") == "1" else None  # fails before anything is built
        super().run()
        root = "." if self.inplace or self.editable_mode else self.build_lib
        sources = [name for name in SOURCES if name.startswith(("csrc/cpu/", "csrc/c_api/"))]
        objects = self.compiler.object_filenames(sources, output_dir=self.build_temp)
        library = os.path.join(root, "fastpower", "libfastpower_cpu.so")
        if not os.path.exists(library) or os.path.getmtime(library) < max(map(os.path.getmtime, objects)):
            self.compiler.link_shared_object(objects, library, extra_postargs=link_args, target_lang="c++")
        if command is not None:
            self.spawn([*command, "-o", os.path.join(root, "fastpower", "libfastpower_cuda.so")])


def nvcc_command():
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if nvcc is None:
        where = f"CUDA_HOME={home}" if home else "PATH"
        raise SystemExit(f"FASTPOWER_CUDA=1: no nvcc in {where}; install the CUDA toolkit, or unset FASTPOWER_CUDA")
    text = os.environ.get("FASTPOWER_CUDA_ARCHS", "80 90 100")
    archs = sorted(text.replace(",", " ").replace(";", " ").split(), key=lambda arch: (len(arch), arch))
    if not archs or not all(arch.isdigit() and len(arch) in (2, 3) for arch in archs):
        raise SystemExit(f'FASTPOWER_CUDA_ARCHS must be compute capabilities such as "80 90 100", got {text!r}')
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # newer GPUs compile this one
    flags = [
        "-O3",
        "-std=c++17",
        "--threads=0",
        "--resource-usage",
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    ]
    return [nvcc, "-shared", "-cudart=static", *flags, *targets, *sorted(glob.glob("csrc/cuda/*.cu"))]


SOURCES = sorted(glob.glob("csrc/**/*.cpp", recursive=True))
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
            SOURCES,
            include_dirs=["csrc"],
            depends=[
                *sorted(glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.inl", recursive=True)),
                "fastpower/include/fastpower.h",
            ],
            cxx_std=17,
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_ext": BuildWithLibraries},
)
