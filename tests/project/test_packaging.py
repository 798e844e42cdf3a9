"""The package is the same uninstalled, from a checkout, and laid out as a wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import importlib.util, json, fastpower, fastpower.kernels, fastpower.kernels.reference, fastpower._C
from fastpower.kernels.reference.philox import philox4x32
top = importlib.util.find_spec("kernels")
print(json.dumps({
    "fastpower": fastpower.__file__,
    "reference": fastpower.kernels.reference.__file__,
    "extension": fastpower._C.__file__,
    "shadows": bool(top and top.origin),  # a namespace folder has no origin: Hugging Face's `kernels` still wins
    "philox": [int(w) for w in philox4x32(0, 0)],
}))
"""


def probe(path: Path, cwd: Path) -> dict:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def wheel_layout(tmp_path_factory) -> Path:
    """What a wheel would unpack to; the compiled extension is the one already built."""
    target = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(target)],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Package would be ignored" not in built.stderr, "data without a line in [tool.setuptools.package-data]"
    import fastpower._C

    shutil.copy(fastpower._C.__file__, target / "fastpower")
    return target


def test_a_checkout_works_uninstalled():
    facts = probe(ROOT, ROOT)
    assert Path(facts["fastpower"]).is_relative_to(ROOT / "fastpower")
    assert Path(facts["reference"]) == ROOT / "kernels" / "reference" / "__init__.py"
    assert not facts["shadows"]


@pytest.mark.parametrize("inside_checkout", [False, True])
def test_a_wheel_brings_everything_and_ignores_the_checkout_around_it(wheel_layout, tmp_path, inside_checkout):
    cwd = ROOT / "docs" if inside_checkout else tmp_path
    facts = probe(wheel_layout, cwd)
    for part in ("fastpower", "reference", "extension"):
        assert Path(facts[part]).is_relative_to(wheel_layout), f"{part} came from {facts[part]}"
    assert not facts["shadows"]
    sources = [p for p in (ROOT / "fastpower").rglob("*") if p.is_file() and p.suffix not in (".so", ".pyc")]
    assert len(sources) > 100
    missing = [str(p) for p in sources if not (wheel_layout / p.relative_to(ROOT)).is_file()]
    assert not missing, "add them to [tool.setuptools.package-data]"
    assert (wheel_layout / "fastpower" / "kernels" / "triton" / "sample_tokens.py").is_file()
    # The first block of Philox 4x32-10 with key and counter 0 (Random123's known answers).
    assert facts["philox"] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
