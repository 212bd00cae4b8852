"""How does a gradient become an update?

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with the recipe's schedule: a linear warm-up,
then a cosine down to a fraction of the peak. The moments are float32 whatever the parameters are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ste_jax.config import FinetuneKnobs


def learning_rate(knobs: FinetuneKnobs, total_steps: int, step: jax.Array | int) -> jax.Array:
    """The rate of optimizer step `step`, counted from 0.

    The warm-up's first step has `1 / warmup_steps` of the peak, not 0; the cosine reaches its final
    value at `total_steps`, one after the last step.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = float(knobs.warmup_steps)
    peak, final = knobs.learning_rate, knobs.learning_rate * knobs.final_learning_rate_fraction
    progress = jnp.clip((step - warmup) / max(1.0, total_steps - warmup), 0.0, 1.0)
    cosine = final + (peak - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, peak * (step + 1.0) / max(1.0, warmup), cosine)


def make_optimizer(knobs: FinetuneKnobs, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """Clipping by the global norm (if the knob is on) and AdamW.

    Weight decay is for matrices: norms and biases are left out. Its parameter tree is a mapping of
    parameter path (`layers.0.q`) to array.
    """

    def decays(params: dict[str, Any]) -> dict[str, bool]:
        return {path: not path.endswith(("norm", "bias")) for path in params}

    adamw = optax.adamw(
        lambda step: learning_rate(knobs, total_steps, step),
        b1=knobs.beta1,
        b2=knobs.beta2,
        weight_decay=knobs.weight_decay,
        mask=decays,
    )
    if knobs.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(knobs.clip_norm), adamw)
    return optax.with_extra_args_support(adamw)
