"""How much memory do the shipped configs need on each chip of the device that they are written for?

The programs are compiled by libtpu for the slice, which need not be here; see
`ste_jax/planning/config_memory.py`. Their figures stand in the comments of the configs. One 80 GB
GPU cannot be compiled for: there one TPU v5p chip stands for it, and the figures are estimates.

Exit status: 0 when every config fits, or where there is no libtpu; 1 when one does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.shapes import shape_of
from ste_jax.config.load import load_config, shipped_configs
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.planning.compile import missing_libtpu
from ste_jax.planning.config_memory import DEVICES, Need, Plan
from ste_jax.system.errors import SteError

GB = 1e9


def names() -> list[str]:
    """The shipped configs that are written for a device."""
    return [name for name in shipped_configs() if name.endswith(tuple(DEVICES))]


def plan_of(name: str, overrides: Sequence[str] = (), devices: Sequence[jax.Device] = ()) -> Plan:
    """What a config asks of its device; `devices` are as in `Plan`."""
    config = load_config(name, overrides)
    roles = config.roles
    return Plan(
        model=shape_of(config.model),
        decoding=config.decoding,
        training=TrainingKnobs.of(config.finetune),
        training_axes=config.finetune.mesh,
        judgment_tokens=roles.judge.sampling.max_new_tokens,
        answer_tokens=max(
            roles.respond.sampling.max_new_tokens, roles.modify.sampling.max_new_tokens
        ),
        device=next(device for ending, device in DEVICES.items() if name.endswith(ending)),
        devices=devices,
    )


def line(need: Need, room: float) -> str:
    """A program's figures, as they stand in a config's comment."""
    beside = f" and {need.beside / GB:.1f} beside them" if need.beside else ""
    fits = "" if need.bytes <= room else ": TOO MUCH"
    return f"{need.what}: {need.bytes / GB:.1f} GB, {need.kept / GB:.1f} of arrays{beside}{fits}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints each config's figures; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="configs (default: all of them)")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a knob")
    options = parser.parse_args(arguments)
    why = missing_libtpu()
    if why:
        print(f"skipped: {why}")
        return 0
    jax.config.update("jax_platforms", "cpu")
    fits = True
    for name in options.names or names():
        plan = plan_of(name, options.set)
        room = plan.device.bytes
        print(f"{name}: {room / GB:.1f} GB of a chip", flush=True)
        try:
            for need in plan.needs():
                print(f"  {line(need, room)}", flush=True)
                fits &= need.bytes <= room
        except SteError as error:
            print(f"  {error}", flush=True)
            fits = False
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
