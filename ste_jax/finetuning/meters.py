"""How fast is a training step, and how full are the devices?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ste_jax.system.hardware import PEAK_FLOPS


def measured(
    event: dict[str, Any], seconds: float, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """The speed and the memory of a step, from its event and its `seconds`, as far as known.

    `seconds`, `tokens_per_second`; `mfu`: the model's FLOPs, of what `devices` (all of the mesh)
    can do in bfloat16; `hbm_bytes` and `hbm_peak_bytes`: what the fullest device of this process
    holds now, and the most that one has held since the process began (decoding included).
    """
    found = {"seconds": seconds, "tokens_per_second": event["tokens"] / seconds}
    peak = PEAK_FLOPS.get(devices[0].device_kind)
    if peak is not None:
        found["mfu"] = event["flops"] / (seconds * peak * len(devices))
    mine = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in mine]
    for name, key in (("hbm_bytes", "bytes_in_use"), ("hbm_peak_bytes", "peak_bytes_in_use")):
        known = [each[key] for each in stats if key in each]
        if known:
            found[name] = max(known)
    return found
