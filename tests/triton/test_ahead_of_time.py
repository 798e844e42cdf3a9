"""Triton without a GPU: the kernels interpreted, compiled ahead of time, and imported without the rest of fastpower.

Both need a process of their own: the interpreter must be on, or off, before triton is imported.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / "tests" / "triton" / "aot_baseline.json"
GROWTH = 1.1  # registers, shared memory and instructions may grow by a tenth before someone has to look
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# A kernel of every file, and of attention every variant, each on one target.
QUICK = (
    r"statistics\[bf16,E=1\]|merge|draw\[fp32|score\[bf16|append\[bf16|copy_pages|page_books|resample|pool\[bf16|mass"
    r"|attend\[bf16,D=128,|attention_tiles|_norm|rotary|gated|fold\[fp32,D=80|attend\[fp32,D=96,plain"
)


def environment(**changes):
    rest = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return {**rest, **changes}


@pytest.mark.timeout(1800)
def test_kernels_pass_under_the_interpreter():
    """tests/triton, in a process in which triton was imported with its interpreter on."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/triton", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment(TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 80
    assert "skipped" not in run.stdout


def test_kernels_import_with_nothing_but_triton_and_torch():
    program = """
import importlib, importlib.util, pathlib, sys
for name in ("fastpower", "transformers", "rich", "numpy"):
    sys.modules[name] = None  # importing it fails
folder = pathlib.Path("kernels/triton")
spec = importlib.util.spec_from_file_location("alone", folder / "__init__.py", submodule_search_locations=[str(folder)])
sys.modules["alone"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["alone"])
rest = ("__init__", "registers", "device", "attention_tiles", "page_books")
names = [path.stem for path in folder.glob("*.py") if path.stem not in rest]
for name in names:
    assert callable(getattr(importlib.import_module(f"alone.{name}"), name))
print(len(names))
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == 10


def compile_ahead(tmp_path, *options):
    """What bench/aot_table.py says of the kernels: {"kernel target": numbers}, and its triton version.

    Numbers of the baseline stand for kernels that have not changed since, nor the compiler; a sample of those is
    compiled all the same.
    """
    out = tmp_path / "aot.json"
    command = [sys.executable, "-W", "ignore", "bench/aot_table.py", "--json", str(out), "--known", str(BASELINE)]
    run = subprocess.run([*command, *options], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert out.exists(), run.stderr[-3000:]
    assert int(re.search(r"(\d+) of \d+ compiled", run.stdout)[1]) > 0, run.stdout[-300:]
    report = json.loads(out.read_text())
    return report["kernels"], report["triton"]


def assert_lean(kernels, version):
    """No spills; against the baseline made with the same triton, no growth; unchanged kernels do not differ."""
    failed = {name: row["error"] for name, row in kernels.items() if "error" in row}
    assert not failed, failed
    assert not {name: row for name, row in kernels.items() if row["spills"]}
    baseline = json.loads(BASELINE.read_text())
    assert set(kernels) <= set(baseline["kernels"]), "new kernels: python bench/aot_table.py --json " + str(BASELINE)
    if version != baseline["triton"]:
        return
    recorded = baseline["kernels"]
    unchanged = [name for name in kernels if kernels[name]["key"] == recorded[name].get("key")]
    assert not {name: (recorded[name], kernels[name]) for name in unchanged if kernels[name] != recorded[name]}
    grown = {
        f"{name}: {key}": (recorded[name][key], row[key])
        for name, row in kernels.items()
        for key in ("registers", "shared", "instructions")
        if row[key] > GROWTH * recorded[name][key] + (key == "registers") * 2
    }
    assert not grown, f"(baseline, now): {grown}"


@pytest.mark.timeout(1800)
def test_kernels_compile_ahead_of_time_without_spills(tmp_path):
    """Every file, for one NVIDIA and one AMD target."""
    kernels, version = compile_ahead(tmp_path, "--match", QUICK, "--targets", "cuda:90", "hip:gfx942")
    every = {name.split(" ")[0].split("[")[0] for name in json.loads(BASELINE.read_text())["kernels"]}
    assert {name.split(" ")[0].split("[")[0] for name in kernels} == every
    assert_lean(kernels, version)
    assert_machine_code({name.removesuffix(" cuda:90"): row for name, row in kernels.items() if "cuda:90" in name})


def assert_machine_code(kernels):
    """What the time of the two kernels that read most hangs on, in the machine code for an H100."""
    statistics = kernels["sample_tokens.statistics[bf16,E=1]"]
    assert statistics["narrow_loads"] <= 4 and statistics["wide_loads"] >= 2  # 16 logits a thread; scalars besides
    assert statistics["instructions"] / 16 <= 33  # per logit; 43 when they were read one by one
    for name, row in kernels.items():
        if name.startswith("paged_attention.attend"):
            assert row["pipeline"] >= 2, f"{name}: K and V of the next tile are not under way while one is worked on"
            assert row["wide_copies"] > 0 and row["barriers"] <= 16, (name, row)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_kernel_compiles_for_every_target_without_spills(tmp_path):
    """All dtypes, head dimensions and variants, for sm_80, sm_90, sm_100 and gfx942."""
    kernels, version = compile_ahead(tmp_path)
    assert set(kernels) == set(json.loads(BASELINE.read_text())["kernels"])
    assert {name.rsplit(" ", 1)[1] for name in kernels} == {"cuda:80", "cuda:90", "cuda:100", "hip:gfx942"}
    assert_lean(kernels, version)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_launchers_bind_and_compile_what_they_launch():
    """With arguments specialised by their values, as on a device; a driver without a device stands in for CUDA's."""
    command = [sys.executable, "-W", "ignore", "tests/triton/launches.py"]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    files = (path.read_text() for path in (ROOT / "kernels" / "triton").glob("*.py"))
    assert run.stdout.split() == sorted(name for text in files for name in re.findall(r"def (\w+_kernel)\(", text))
