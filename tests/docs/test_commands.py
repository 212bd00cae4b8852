"""The commands that pages show are commands, and the pages that they link to are there."""

from __future__ import annotations

import re
import shlex

import pytest

from ste_jax.cli import _parser
from ste_jax.commands import words
from tests.docs import pages
from tests.running import REPOSITORY

PAGES = ["README.md", "CONTRIBUTING.md"] + [
    f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md"))
]


PARSER = _parser()
(SUBCOMMANDS,) = [each.choices for each in PARSER._actions if each.choices and each.dest != "help"]


def of_blocks(page: str) -> list[str]:
    """The commands of `ste` in the blocks of a page."""
    return [
        command.strip()
        for _, block in pages.blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        for command in re.findall(r"(?<![\w/-])ste [a-z][^|>#&]*", line)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_a_command_of_a_block_is_read_by_the_parser(page, capsys):
    for command in of_blocks(page):
        given = [word for word in shlex.split(command)[1:] if word != "..."]
        try:
            _, left = PARSER.parse_known_args(words.with_values(given))
        except SystemExit as end:
            assert end.code == 0, f"{page}: {command}: {capsys.readouterr().err}"
        else:
            assert not any(word[0] == "-" for word in left), f"{page}: {command}: {left}"


@pytest.mark.parametrize("page", PAGES)
def test_a_command_in_a_sentence_has_its_name_and_its_options(page):
    for command in re.findall(r"`ste ([a-z][^`]*)`", pages.text(page)):
        name, *others = command.split()
        for each in name.split("|"):
            assert each in SUBCOMMANDS, f"{page}: ste {command}"
            known = SUBCOMMANDS[each]._option_string_actions
            options = [word.partition("=")[0] for word in others if word[:2] == "--"]
            assert set(options) <= set(known), f"{page}: ste {command}"


def test_the_readme_lists_all_commands():
    (listed,) = re.findall(r"All commands: (.*?); each", pages.text("README.md"), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == set(SUBCOMMANDS)


def test_the_blocks_have_commands():
    assert len(of_blocks("README.md")) >= 8
    assert len(of_blocks("docs/use-the-judge.md")) >= 4


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    here = (REPOSITORY / page).parent
    for link in re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", pages.text(page)):
        assert (here / link).exists(), f"{page}: {link}"
