"""Lays the Triton kernels and their reference out as Hugging Face's `kernels` library loads them.

    python kernels/assemble.py OUT
    >>> from kernels import get_local_kernel
    >>> get_local_kernel(Path("OUT")).sample_tokens

OUT gets the sources as kernel-builder takes them (``build.toml``, ``torch-ext/fastpower_kernels``) and, since there is
nothing to compile, the builds that it would make of them (``build/torch-cuda``, ``build/torch-rocm``). Nothing is
uploaded. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ("reference", "triton")
FACE = '''"""Exact sampling from p(x)^alpha: Triton kernels, and their reference in PyTorch.

Contracts are those of fastpower.kernels, whose checks are not here: arguments are trusted.
"""

from .triton.append_kv import append_kv
from .triton.copy_pages import copy_pages
from .triton.paged_attention import paged_attention
from .triton.sample_tokens import TokenSamples, sample_tokens
from .triton.score_tokens import score_tokens

__all__ = ["TokenSamples", "append_kv", "copy_pages", "paged_attention", "sample_tokens", "score_tokens"]
'''


def assemble(out: Path) -> list[Path]:
    """Write OUT and return the folders of its builds.

    Raises:
        FileExistsError: There is something in OUT.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give a new folder")
    config = tomllib.loads((HERE / "build.toml").read_text(encoding="utf-8"))["general"]
    package = config["name"].replace("-", "_")
    sources = out / "torch-ext" / package
    for part in PARTS:
        shutil.copytree(HERE / part, sources / part, ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "__init__.py").write_text(FACE, encoding="utf-8")
    shutil.copy(HERE / "build.toml", out)
    shutil.copy(HERE.parent / "LICENSE", out)
    text = b"".join(path.read_bytes() for path in sorted(sources.rglob("*.py")))
    digest = hashlib.sha256(text).hexdigest()[:8]
    builds = []
    for backend in config["backends"]:
        build = out / "build" / f"torch-{backend}"
        shutil.copytree(sources, build)
        metadata = {
            "name": config["name"],
            "id": f"_{package}_{backend}_{digest}",
            "version": config["version"],
            "license": config["license"],
            "python-depends": [],
            "backend": {"type": backend},
        }
        (build / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        builds.append(build)
    return builds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="a new folder")
    for build in assemble(parser.parse_args().out):
        print(build)


if __name__ == "__main__":
    main()
