"""kernels/ as Hugging Face's `kernels` loads it: the build file, the layout, and that it runs from anywhere."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import importlib.util, json, sys, torch
from pathlib import Path

build = Path(sys.argv[1])
name = json.loads((build / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, build / "__init__.py")  # as the library does
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
z, one, i = torch.randn(2, 50), torch.ones(2), torch.arange(2)
out = module.sample_tokens(z, one, one[:1], i, i, i)
assert out.entropy.isfinite().all() and (out.token >= 0).all()
print(sorted(module.__all__), any(n.partition(".")[0] == "fastpower" for n in sys.modules))
"""


@pytest.fixture(scope="module")
def assembled(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "kernel"
    subprocess.run([sys.executable, ROOT / "kernels" / "assemble.py", out], check=True, capture_output=True)
    return out


def test_the_build_file_has_what_the_builder_asks_for():
    config = tomllib.loads((ROOT / "kernels" / "build.toml").read_text())
    general = config["general"]
    assert set(config) == {"general", "torch-noarch"} and config["torch-noarch"] == {"pyext": ["py"]}
    assert set(general) == {"name", "version", "edition", "license", "backends", "hub"}
    assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", general["name"]) and general["hub"]["repo-id"].count("/") == 1
    assert isinstance(general["version"], int) and set(general["backends"]) <= {"cpu", "cuda", "rocm", "xpu"}


def test_builds_import_nothing_but_torch_triton_and_themselves(assembled):
    allowed = {"torch", "triton", "numpy", *sys.stdlib_module_names}
    builds = sorted((assembled / "build").iterdir())
    assert [build.name for build in builds] == ["torch-cuda", "torch-rocm"]
    for path in builds[0].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert {name.partition(".")[0] for name in names} <= allowed, path
    metadata = [json.loads((build / "metadata.json").read_text()) for build in builds]
    assert len({m["id"] for m in metadata}) == 2


def test_a_build_runs_from_its_path_alone(assembled, tmp_path):
    pytest.importorskip("triton")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TRITON_INTERPRET": "1"}
    program = [sys.executable, "-c", PROGRAM, assembled / "build" / "torch-cuda"]
    done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "sample_tokens" in done.stdout and done.stdout.split()[-1] == "False"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("")
    done = subprocess.run([sys.executable, ROOT / "kernels" / "assemble.py", tmp_path], capture_output=True, text=True)
    assert done.returncode and "is not empty" in done.stderr and len(list(tmp_path.iterdir())) == 1
