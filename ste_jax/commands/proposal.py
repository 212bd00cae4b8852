"""Which config suits a model, a device and some hours?

A shipped config of a model that is at least as large, written for the same device, gives the shapes
and how training fits; the hours give the number of instructions. Times are estimated from what a
device can do at its peak, of which programs reach a part: it may take twice as long.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ste_jax.config.from_plain import to_dict
from ste_jax.config.load import read_config, shipped_configs
from ste_jax.config.schema import Config
from ste_jax.system.errors import RequestError
from ste_jax.system.hardware import CHIPS, PEAK_FLOPS


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a device can do at its peak."""

    bandwidth: float
    """Bytes of memory that are read per second, by all chips together."""
    flops: float
    """Products and sums in bfloat16 (float32 on a CPU), per second."""


def _of_chips(kind: str, chips: int) -> Pace:
    chip = CHIPS[kind]
    return Pace(bandwidth=chips * chip.hbm_bandwidth, flops=chips * chip.flops)


PACES = {
    "cpu": Pace(bandwidth=40e9, flops=200e9),
    "v5e-8": _of_chips("TPU v5 lite", 8),
    "v6e-8": _of_chips("TPU v6 lite", 8),
    "gpu-80gb": Pace(bandwidth=2.0e12, flops=PEAK_FLOPS["NVIDIA A100-SXM4-80GB"]),
}
"""Devices: two CPU cores, TPU slices, an A100 (its bandwidth is of its data sheet)."""
DECODING, PRODUCTS = 0.3, 0.35
"""The share of a device's peak that decoding and that prompts and training are taken to reach."""
SMALL = 1.5e9
"""Models with fewer parameters need templates with examples and a forced verdict."""
BASES = (
    (8.5e9, "llama-3.1-8b"),
    (12.5e9, "gemma-3-12b"),
)
"""Up to how many parameters a shipped config's shapes suit, and which one's."""
TRAIN = (10_000, 7_000, 5_000, 3_000, 2_000, 1_500, 1_000, 700, 500, 300, 200, 150, 100, 70, 50, 30)
"""Numbers of training instructions to choose from."""
DRAWN, WRITTEN = 3, 0.5
"""How many judgments of a prompt are taken to be drawn until one is correct, and how much of its
cap a text is taken to fill."""
INSTRUCTION = 300
"""How many tokens an instruction and a template are taken to have."""
LABELLED = 3
"""How many instructions are labelled for each that is chosen."""
ENOUGH = 25
"""Pairs to validate by: each is judged in both orders, and fewer than 50 prompts choose badly."""


def size_in(name: str) -> float | None:
    """How many parameters a model's name says it has, as 8e9 in `Llama-3.1-8B`; None if none."""
    found = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name.lower())
    return max((float(n) * {"b": 1e9, "m": 1e6}[unit] for n, unit in found), default=None)


def base_of(model: str, parameters: float, device: str) -> str:
    """The shipped config that a config for a model is made after.

    Raises:
      RequestError: the model is too large for the device.
    """
    if parameters < SMALL:
        return "smollm2-135m"
    if device == "cpu":
        raise RequestError(
            f"a model of {parameters / 1e9:.1f}B parameters is too slow on CPUs: name a smaller "
            f"one (below {SMALL / 1e9:g}B) or another device"
        )
    for name, path in shipped_configs().items():
        if name.endswith(f"-{device}") and read_config(path).model == model:
            return name
    for most, name in BASES:
        if parameters <= most:
            return f"{name}-{device}"
    raise RequestError(
        f"a model of {parameters / 1e9:.1f}B parameters is more than one {device} is planned for "
        f"({BASES[-1][0] / 1e9:g}B): name a smaller one, or begin from `ste config paper`, which "
        "is for 70B on many chips"
    )


def on_an_accelerator(config: Config) -> Config:
    """A small model's config for all chips of a device, each of which has all weights."""
    finetune = dataclasses.replace(
        config.finetune,
        batch_rows=8,
        mesh=dataclasses.replace(config.finetune.mesh, data=-1, fsdp=1),
    )
    decoding = dataclasses.replace(
        config.decoding, groups=64, mesh=dataclasses.replace(config.decoding.mesh, data=-1, fsdp=1)
    )
    return dataclasses.replace(config, finetune=finetune, decoding=decoding)


def with_room(config: Config) -> Config:
    """A config for another model than the one that its memory was planned for: half as many
    prompts at once, since keys and values of a token may take more."""
    groups = max(1, config.decoding.groups // 2)
    return dataclasses.replace(config, decoding=dataclasses.replace(config.decoding, groups=groups))


def seconds_of(config: Config, parameters: float, pace: Pace) -> dict[str, float]:
    """About how long steps take: `label` and `pair`, `annotate` and `sft` in one iteration, and
    `evaluate` of one judge."""
    roles, knobs = config.roles, config.decoding
    answer = WRITTEN * roles.respond.sampling.max_new_tokens
    judgment = WRITTEN * roles.judge.sampling.max_new_tokens
    both = answer + WRITTEN * roles.modify.sampling.max_new_tokens
    label = WRITTEN * (roles.classify.sampling.max_new_tokens or 64)
    prompt = INSTRUCTION + 2 * answer
    size = 4 if knobs.dtype == "float32" else 1 if knobs.weights == "int8" else 2
    rows = knobs.groups * knobs.group_size
    step = max(size * parameters / pace.bandwidth, 2 * parameters * rows / pace.flops)

    def taking(*, drawn: float = 0, read: float = 0, learnt: float = 0) -> float:
        products = parameters * (2 * read + 6 * learnt) / (PRODUCTS * pace.flops)
        return drawn / rows * step / DECODING + products

    # Pairs are judged in both orders.
    pool, chosen = config.pool.sample or config.pool.limit, config.select
    train, heldout = 2 * chosen.train, 2 * chosen.heldout
    pairs, samples = chosen.train + chosen.heldout, min(DRAWN, config.annotate.samples)
    epochs = config.finetune.epochs
    return {
        "label": taking(drawn=pool * label, read=pool * INSTRUCTION),
        "pair": taking(drawn=pairs * both, read=pairs * prompt),
        "annotate": taking(drawn=train * samples * judgment, read=train * prompt),
        "sft": taking(learnt=train * (prompt + judgment) * epochs),
        "evaluate": taking(drawn=heldout * config.evaluate.votes * judgment, read=heldout * prompt),
    }


def hours_of(config: Config, parameters: float, pace: Pace) -> float:
    """About how long a run takes."""
    once, passes = seconds_of(config, parameters, pace), config.iterations
    seconds = once["label"] + once["pair"] + passes * (once["annotate"] + once["sft"])
    return (seconds + (passes + 1) * once["evaluate"]) / 3600


def in_words(hours: float) -> str:
    """A time as a person says it."""
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} minutes"


def sized(config: Config, parameters: float, device: str, hours: float, rows: int | None) -> Config:
    """The config with as many instructions as the hours allow, and the data has (`rows`, if known).

    Raises:
      RequestError: the hours or the rows are too few for anything; says how many would do.
    """
    pace = PACES[device]
    for train in TRAIN:
        heldout = min(400, max(40, train // 10))
        # Some instructions are dropped: near duplicates, and those of no category.
        if rows is not None and train + heldout > 0.8 * rows:
            continue
        select = dataclasses.replace(
            config.select,
            train=train,
            heldout=heldout,
            validation_fraction=round(min(0.3, max(0.05, ENOUGH / train)), 2),
        )
        # Labelling takes time, too: of a large pool a sample is enough to choose from.
        pool = dataclasses.replace(config.pool, sample=LABELLED * (train + heldout))
        found = dataclasses.replace(config, select=select, pool=pool)
        if hours_of(found, parameters, pace) <= hours:
            return found
    least = TRAIN[-1] + 40
    if rows is not None and least > 0.8 * rows:
        raise RequestError(
            f"the data has {rows:,} instructions that can be used; at least {least / 0.8:.0f} are "
            "needed to train and to measure with"
        )
    needed = hours_of(found, parameters, pace)
    raise RequestError(
        f"{hours:g} hours are too few for this model on {device}: even {TRAIN[-1]} instructions "
        f"take about {in_words(needed)}; give it --hours {max(1, round(needed + 0.5))}, or name a "
        "smaller model"
    )


def changed(config: Config, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that differ from the defaults `plain`, as plain values."""

    def differing(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for key, value in values.items():
            before = usual.get(key)
            if isinstance(value, Mapping) and isinstance(before, Mapping) and before:
                if inner := differing(value, before):
                    found[key] = inner
            elif value != before:
                found[key] = value
        return found

    return differing(to_dict(config), plain)
