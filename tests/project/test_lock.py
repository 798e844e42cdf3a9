"""The lock files, what pyproject.toml asks for, and the Pythons that are refused."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci" / "lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lock = _program()


def pins(python: str) -> dict[str, str]:
    """Version by name."""
    lines = lock.lock_file(python).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.lstrip().startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def asked_for() -> list[Requirement]:
    project, texts = PROJECT["project"], []
    texts += project["dependencies"] + PROJECT["build-system"]["requires"] + PROJECT["dependency-groups"]["environment"]
    for name, extra in project["optional-dependencies"].items():
        texts += extra if name not in lock.LEFT_OUT else []
    return [Requirement(text) for text in texts]


def test_the_lock_files_were_made_from_this_pyproject() -> None:
    assert lock.check() is None


@pytest.mark.parametrize("python", lock.PYTHONS)
def test_every_requirement_has_a_pin_that_fits_it(python: str) -> None:
    found = pins(python)
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    for requirement in asked_for():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = found.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} has no pin"
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is pinned at {version}"


@pytest.mark.parametrize("python", lock.PYTHONS)
def test_a_lock_file_holds_pins_alone_and_nothing_of_cuda(python: str) -> None:
    text = lock.lock_file(python).read_text(encoding="utf-8")
    assert "://" not in text and not re.search(r"^\s*-", text, re.M), "a host or an option of pip"
    assert not [name for name in pins(python) if name.startswith(("nvidia-", "cuda-"))]
    assert all(re.fullmatch(r"[\w.+-]+", version) for version in pins(python).values())


def test_there_is_a_lock_file_for_every_supported_python() -> None:
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [p for p in (f"3.{minor}" for minor in range(8, 20)) if p in supported] == list(lock.PYTHONS)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda root: (root / "pyproject.toml").write_text(CHANGED), "was not made from this pyproject.toml"),
        (lambda root: lock.lock_file("3.12", root).unlink(), "is missing"),
    ],
)
def test_a_lock_file_that_does_not_match_names_the_command_that_renews_it(
    tmp_path: Path, change: object, word: str
) -> None:
    (tmp_path / ".ci").mkdir()
    for path in (ROOT / "pyproject.toml", ROOT / ".ci" / "lock.py", *map(lock.lock_file, lock.PYTHONS)):
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    assert lock.check(tmp_path) is None
    change(tmp_path)  # type: ignore[operator]
    for command in ("check", "install"):  # nothing is installed either
        done = subprocess.run([sys.executable, ".ci/lock.py", command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and word in done.stderr and "`make lock`" in done.stderr


CHANGED = (ROOT / "pyproject.toml").read_text(encoding="utf-8").replace('"rich>=13"', '"rich>=13", "jinja2>=3"')


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "lock"])
@pytest.mark.parametrize("version", [(3, 10), (3, 13), None])
def test_an_unsupported_python_is_refused_before_anything_is_made(
    tmp_path: Path, target: str, version: tuple[int, int] | None
) -> None:
    """By a stand-in that answers as another Python would."""
    python = tmp_path / "python"
    if version is not None:
        python.write_text(
            f"#!{sys.executable}\n"
            "import sys\n"
            f"print('Python {version[0]}.{version[1]}.0') if '--version' in sys.argv else None\n"
            f"sys.version_info = ({version[0]}, {version[1]}, 0)\n"
            "if '-c' in sys.argv: exec(sys.argv[2])\n"
        )
        python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "csrc").mkdir()
    done = subprocess.run(["make", target, f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "error: fastpower needs Python 3.11 or 3.12" in done.stderr and f"make {target} PYTHON=" in done.stderr
    assert ("Python 3.1" if version else "not there") in done.stderr
    assert not (tmp_path / ".venv").exists() and "lock.py" not in done.stdout


def test_setup_py_refuses_an_unsupported_python_with_the_same_sentence(tmp_path: Path) -> None:
    program = "import sys; sys.version_info = (3, 13, 0); exec(open('setup.py').read())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "fastpower needs Python 3.11 or 3.12" in done.stderr
