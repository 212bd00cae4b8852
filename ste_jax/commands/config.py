"""Which configs are there, and what stands in one?"""

from __future__ import annotations

from ste_jax.config.commented import WIDTH, commented, split_comments
from ste_jax.config.load import find_config, load_config, read_config, shipped_configs
from ste_jax.run.layout import run_named
from ste_jax.system import notation


def show_config(source: str, width: int = WIDTH) -> str:
    """A config's text with every key, its meaning and its default: of a file, of a shipped one by
    its name, or of a run by its directory. Its comments take at most `width` columns.

    Raises:
      RequestError: as `ste_jax.config.load.load_config`.
    """
    if run := run_named(source):
        source = str(run.config)
    load_config(source)  # so that what would be refused is refused here
    path = find_config(source)
    return commented(read_config(path), notation.as_text(path.read_bytes()), width)


def list_configs() -> str:
    """The shipped configs, one a line: its name, and the first sentence at its top."""
    there = shipped_configs()
    width = max(map(len, there), default=0)
    lines = []
    for name, path in there.items():
        heading, _ = split_comments(path.read_text(encoding="utf-8"))
        text = " ".join(line.lstrip("# ") for line in heading)
        lines.append(f"{name:<{width}}  {text.partition('. ')[0].removesuffix('.')}")
    return "\n".join(lines)
