"""The completion script completes what the parser knows."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from fastpower.cli import build_parser
from fastpower.commands.completion import SHELLS, script


def _complete(words: list[str]) -> list[str]:
    """What bash offers for the last of ``words``."""
    quoted = " ".join(f"'{word}'" for word in words)
    call = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _fastpower"
    program = f'{script(build_parser(), "bash")}\n{call}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_flags_and_choices() -> None:
    assert {"sample", "eval"} <= set(_complete(["fastpower", ""]))
    assert _complete(["fastpower", "ev"]) == ["eval"]
    assert _complete(["fastpower", "eval", "--match"]) == ["--match-best-of-n"]
    assert _complete(["fastpower", "eval", "--engine", ""]) == ["local", "ray"]
    assert set(SHELLS) <= set(_complete(["fastpower", "completion", ""]))
    assert "--engine" not in _complete(["fastpower", "sample", "--"])


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_every_subcommand(shell: str) -> None:
    text = script(build_parser(), shell)
    assert all(name in text for name in ("sample", "compare", "eval", "plot", "env"))
