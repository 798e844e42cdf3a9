"""What `.ci/compat.py` prints of a run, and that the newest release of a library decides nothing in CI."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from fastpower.interfaces import TRIED
from tests.project.code_blocks import ROOT


def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compat", ROOT / ".ci" / "compat.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compat = _program()


def python(folder: Path, output: str) -> Path:
    """A stand-in for another environment's Python: a version when asked with -c, else pytest's output."""
    program = folder / "python"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nprint('9.9.9' if '-c' in sys.argv else {output!r})\n", encoding="utf-8"
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    "output, line, failed",
    [
        ("293 passed, 2 skipped in 61.04s (0:01:01)", "transformers 9.9.9: 293 passed, 0 failed", 0),
        ("FAILED a.py::b - x\n2 failed, 7 passed, 1 error in 3.20s", "transformers 9.9.9: 7 passed, 3 failed", 3),
        ("Segmentation fault", "transformers 9.9.9: 0 passed, 1 failed", 1),
    ],
)
def test_a_run_is_one_line(
    output: str, line: str, failed: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(compat, "FOLDER", tmp_path)
    assert compat.run_tests("newest", python(tmp_path, output), ("tests",), compat.ROOT, "not slow") == failed
    assert capsys.readouterr().out == f"newest: {line}\n"
    assert compat.run_tests("oldest", python(tmp_path, output), ("tests",), tmp_path, "not slow") == failed
    assert ("a.py::b" in capsys.readouterr().out) == ("a.py::b" in output)


def test_the_newest_release_decides_nothing_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable() -> Path:
        raise OSError("no index")

    monkeypatch.setattr(compat, "newest_transformers", unreachable)
    assert compat.main(["newest-transformers"]) == 0
    assert capsys.readouterr().out == "newest: transformers could not be tried: OSError: no index\n"
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[-2] == "make test" and script[-1].endswith("newest-transformers || true")


def test_the_oldest_environment_is_what_pyproject_allows_and_the_documentation_says() -> None:
    allowed = {r.name: r.specifier for r in map(Requirement, compat.requirements())}
    for text in compat.OLDEST:
        pinned = Requirement(text)
        [version] = [specifier.version for specifier in pinned.specifier]
        if pinned.name in allowed:
            assert version in allowed[pinned.name]
            assert f">={version.removesuffix('.0')}" in str(allowed[pinned.name])
        assert TRIED[pinned.name.replace("-", "_")][0] == version


@pytest.mark.parametrize("path", [*compat.TRANSFORMERS, *compat.OTHERS])
def test_what_is_run_is_there(path: str) -> None:
    assert (ROOT / path).exists()
