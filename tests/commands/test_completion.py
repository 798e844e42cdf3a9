"""The completion script completes what the parser knows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fastpower.cli import COMMANDS, build_parser
from fastpower.commands.completion import SHELLS, script

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture(scope="module")
def bash() -> str:
    return script(build_parser(), "bash")


def complete(bash: str, words: list[str], folder: Path | None = None) -> list[str]:
    """What bash offers for the last of ``words``."""
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"{bash}\nfunction_of=$(complete -p fastpower | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        f"$function_of fastpower '{words[-1]}' '{words[-2]}' 2> /dev/null\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=folder)
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


@needs_bash
def test_bash_completes_commands_flags_and_choices(bash: str) -> None:
    assert set(COMMANDS) <= set(complete(bash, ["fastpower", ""]))
    assert complete(bash, ["fastpower", "ev"]) == ["eval"]
    assert complete(bash, ["fastpower", "eval", "--match"]) == ["--match-best-of-n"]
    assert complete(bash, ["fastpower", "eval", "--engine", ""]) == ["local", "ray"]
    assert set(SHELLS) <= set(complete(bash, ["fastpower", "completion", ""]))
    assert "--engine" not in complete(bash, ["fastpower", "sample", "--"])


@needs_bash
@pytest.mark.parametrize("words", [["eval", "--out"], ["sample", "--prompts"], ["plot"], ["bench", "--model"]])
def test_bash_completes_files_where_an_argument_names_one(bash: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder of a run").mkdir()
    assert complete(bash, ["fastpower", *words, "fold"], tmp_path) == ["folder of a run"]
    assert complete(bash, ["fastpower", "sample", "--alpha", "fold"], tmp_path) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_every_subcommand_and_its_flags(shell: str) -> None:
    text = script(build_parser(), shell)
    assert all(name in text for name in COMMANDS)
    assert all(flag in text for flag in ("max-new-tokens", "match-best-of-n", "karan-du"))
