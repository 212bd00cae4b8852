"""How fast are the devices that programs run on, and how much memory do they have?"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Chip:
    """The sizes of a TPU chip, from its page in Cloud TPU's documentation."""

    name: str
    hbm_bytes: float
    hbm_bandwidth: float
    """Bytes per second."""
    flops: float
    """Peak in bfloat16, per second."""
    ici_bandwidth: float
    """Bytes per second of all of a chip's links, both directions together."""


CHIPS = {
    # cloud.google.com/tpu/docs/v5e
    "TPU v5 lite": Chip(
        name="v5e",
        hbm_bytes=16e9,
        hbm_bandwidth=819e9,
        flops=PEAK_FLOPS["TPU v5 lite"],
        ici_bandwidth=400e9,
    ),
    # cloud.google.com/tpu/docs/v5p
    "TPU v5": Chip(
        name="v5p",
        hbm_bytes=95e9,
        hbm_bandwidth=2765e9,
        flops=PEAK_FLOPS["TPU v5"],
        ici_bandwidth=1200e9,
    ),
    # cloud.google.com/tpu/docs/v6e
    "TPU v6 lite": Chip(
        name="v6e",
        hbm_bytes=32e9,
        hbm_bandwidth=1640e9,
        flops=PEAK_FLOPS["TPU v6 lite"],
        ici_bandwidth=800e9,
    ),
}
"""`device_kind` -> the chip. Sizes of HBM are read as powers of ten, the smaller reading."""
