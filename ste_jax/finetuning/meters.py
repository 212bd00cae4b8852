"""How fast is a training step, and how full are the devices?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

PEAK_FLOPS = {
    # cloud.google.com/tpu/docs, per device as JAX counts them
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    # data sheets, dense
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Products in bfloat16 per second at a device's peak, by `device_kind`."""


def measured(
    event: dict[str, Any], seconds: float, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """What a step's event and its `seconds` say, as far as it is known.

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
