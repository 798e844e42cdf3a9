"""Import paths of earlier versions lead to the modules that have their contents now."""

import importlib
import subprocess
import sys

import pytest

from fastpower.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_old_path_is_the_new_module_itself(old):
    if "distributed" in old:
        pytest.importorskip("ray")
    new = importlib.import_module(MOVED[old])
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        sys.modules.pop(old, None)
        assert importlib.import_module(old) is new
    assert new.__name__ == new.__spec__.name == MOVED[old]


def test_old_path_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "fastpower.evaluate.lm_eval", "--help"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_a_path_that_never_was_is_still_an_error():
    with pytest.raises(ModuleNotFoundError, match=r"fastpower\.never"):
        importlib.import_module("fastpower.never")
