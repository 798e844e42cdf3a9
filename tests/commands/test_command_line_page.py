"""The command line's page of the documentation is made from the parsers and leaves nothing out."""

import argparse

import pytest

pytest.importorskip("mkdocs", reason="the documentation's tools are not installed: pip install '.[docs]'")

from docs.hooks.generated_pages import command_line_page
from fastpower.cli import COMMANDS, build_parser

PAGE = command_line_page(build_parser())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_in_its_section_with_its_meaning(command):
    [commands] = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    section = PAGE.split(f"## fastpower {command}\n")[1].split("\n## ")[0]
    for action in commands.choices[command]._actions:
        if action.dest != "help":
            rows = [line for line in section.splitlines() if line.startswith("| ")]
            [row] = [r for r in rows if any(_name(action) + end in r.split(" | ")[0] for end in "` ")]
            assert len(row.split(" | ")) == 2 and row.split(" | ")[1].strip(" |"), row


def _name(action: argparse.Action) -> str:
    return f"`{action.option_strings[-1] if action.option_strings else action.metavar or action.dest}"


def test_a_flag_that_is_added_appears_and_its_text_is_no_markup():
    parser = argparse.ArgumentParser("fastpower")
    command = parser.add_subparsers().add_parser("new", description="A *new* command.", epilog="examples:\n  new a | b")
    command.add_argument("--x", metavar="A|B", help="either <a> or b_c (default %(default)s)", default=7)
    page = command_line_page(parser)
    assert "| `--x A\\|B` | either \\<a\\> or b\\_c (default 7) |" in page
    assert "A \\*new\\* command." in page and "```\nnew a | b\n```" in page
