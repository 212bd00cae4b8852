"""Which templates come with the package, and for what is each?"""

from __future__ import annotations

import textwrap
from pathlib import Path

from ste_jax.config.schema import RoleSet
from ste_jax.prompts.render import PLACES, TEMPLATES, Places, load_template
from ste_jax.tasks import TASKS

WIDTH = 88
_OWN = (
    "A template of your own is a YAML file of the same form: `roles.ROLE.template=FILE.yaml`, or "
    "`--template FILE.yaml` of `ste judge` and `ste evaluate`. Begin with a copy of one in"
)


def as_text(width: int = WIDTH) -> str:
    """The shipped templates, by the role that they are for, as text to print in so many columns."""
    roles, parts = _roles(), []
    of: dict[str, list[Path]] = {ending: [] for ending, *_ in roles}
    for path in sorted(TEMPLATES.glob("*.yaml"), key=lambda path: (len(path.stem), path.stem)):
        # a template is called NAME-ROLE, and a role's own name may end in that of another
        endings = [each for each in of if f"-{path.stem}".endswith(f"-{each}")]
        of[max(endings, key=len)].append(path)
    for ending, heading, places, usual in roles:
        lines = [heading, f"  places: {', '.join(f'{{{each}}}' for each in sorted(places.known))}"]
        for path in of[ending]:
            lines += _entry(path, places, path.stem == usual, width)
        parts.append("\n".join(lines))
    own = textwrap.fill(f"{_OWN} {TEMPLATES}", width, break_on_hyphens=False)
    return "\n\n".join([*parts, own])


def _roles() -> list[tuple[str, str, Places, str]]:
    """How names of templates end, the heading of those, their places, and which is the default."""
    judges = [
        (task.template, f"roles.judge, with judge.task: {name}", task.places, task.template)
        for name, task in TASKS.items()
    ]
    others = [
        (role, f"roles.{role}", places, getattr(RoleSet(), role).template)
        for role, places in PLACES.items()
    ]
    return judges + others


def _entry(path: Path, places: Places, usual: bool, width: int) -> list[str]:
    """The lines of a template: its name, and what the comment at its beginning says."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    template = load_template(path.stem, places)
    kind = [
        *(["default"] if usual else []),
        *([f"{len(template.examples)} worked examples"] if template.examples else []),
        *([f"begins the reply with {template.start!r}"] if template.start else []),
    ]
    about = " ".join(comment) + (f" ({'; '.join(kind)})" if kind else "")
    name = f"  {path.stem:<16}"
    return textwrap.wrap(
        about,
        width,
        initial_indent=name,
        subsequent_indent=" " * len(name),
        break_on_hyphens=False,
    )
