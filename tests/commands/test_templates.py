"""Every shipped template is listed under its role, with what it is for."""

from __future__ import annotations

import re

from ste_jax.commands.templates import as_text
from ste_jax.prompts.render import TEMPLATES


def test_every_template_is_listed_with_what_it_is_for() -> None:
    shown = as_text()
    for path in TEMPLATES.glob("*.yaml"):
        entry = re.search(rf"^  {re.escape(path.stem)} +(\S.*)$", shown, re.MULTILINE)
        assert entry, path.name
        assert path.read_text().startswith("# "), f"{path.name} does not say what it is for"
    assert max(map(len, shown.splitlines()[:-1])) <= 88
    under = shown.split("\n\n")
    (pairwise,) = [part for part in under if "judge.task: pairwise" in part]
    assert "small-judge" in pairwise and "(default)" in pairwise and "{answer_a}" in pairwise
    assert "\n  score" not in pairwise and "worked examples" in pairwise
    assert [part.count("(default)") for part in under[:-1]] == [1] * (len(under) - 1)
