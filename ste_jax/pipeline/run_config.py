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
from ste_jax.run.opened import Run, open_run
from ste_jax.system import jax_settings
from ste_jax.system.errors import RequestError


def run_config(
    config: str | os.PathLike[str] | Config,
    *,
    dir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Run the whole recipe, as `ste run` does; what is finished already is not done again.

    Where this process has joined others (`jax.distributed.initialize`), all of them call it.

    Args:
      config: the name of a shipped config, a YAML file, or what `load_config` gave.
      dir: the run's directory (local or `gs://`); `runs/NAME`, unless given.
      overrides: other values of knobs of a config that is read, as `{"annotate.samples": 8}`.

    Returns:
      The run, to be read.

    Raises:
      RequestError: the config cannot be run, the directory holds something else, another command is
        at work on the run, or JAX's settings are unfit for the programs.
      WorkError: a step left nothing to go on with; names the step and why.
    """
    jax_settings.require()
    if not isinstance(config, Config):
        config = load_config(os.fspath(config), overrides or {})
    elif overrides:
        raise RequestError("overrides are for a config that is read; give them to `load_config`")
    check_phases(config)  # before the first meeting with other processes
    root = epath.Path(dir or os.path.join("runs", config.name))
    run(config, root, joined())
    return open_run(root)
