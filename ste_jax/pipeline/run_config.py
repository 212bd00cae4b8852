"""How is a config run from Python?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from ste_jax.config.load import load_config
from ste_jax.config.schema import Config
from ste_jax.parallel.processes import joined
from ste_jax.pipeline.phases import check_phases
from ste_jax.pipeline.recipe import run
from ste_jax.run.layout import run_named
from ste_jax.run.opened import Run, open_run
from ste_jax.system import jax_settings, progress
from ste_jax.system.errors import RequestError


def run_config(
    config: str | os.PathLike[str] | Config,
    *,
    dir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    yes: bool = False,
) -> Run:
    """Run the whole recipe, as `ste run` does; what is finished already is not done again. What
    goes on is shown on standard error.

    Where this process has joined others (`jax.distributed.initialize`), all of them call it.

    Args:
      config: the name of a shipped config, a YAML file, a run's directory (which goes on under its
        own config), or what `load_config` gave.
      dir: the run's directory (local or `gs://`); that of the run that is named, else `runs/NAME`,
        unless given.
      overrides: other values of knobs of a config that is read, as `{"annotate.samples": 8}`.
      yes: set finished work aside that does not fit the config; it comes back with its knobs.

    Returns:
      The run, to be read.

    Raises:
      RequestError: the config cannot be run, the directory holds something else, another command is
        at work on the run, finished work would be set aside without `yes`, or JAX's settings are
        unfit for the programs.
      WorkError: a step left nothing to go on with; names the step and why.
    """
    jax_settings.require()
    there = None
    if not isinstance(config, Config):
        there = run_named(os.fspath(config))
        config = load_config(os.fspath(there.config if there else config), overrides or {})
    elif overrides:
        raise RequestError("overrides are for a config that is read; give them to `load_config`")
    check_phases(config)  # before the first meeting with other processes
    root = epath.Path(dir or (there.root if there else os.path.join("runs", config.name)))
    with progress.shown(f"run {config.name}"):
        run(config, root, joined(), yes=yes)
    return open_run(root)
