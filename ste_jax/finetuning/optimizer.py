"""How does a gradient become an update?

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) or Adafactor (Shazeer and Stern 2018, arXiv
1804.04235), with a linear warm-up and then a way to a fraction of the peak, or to a multiple of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ste_jax.finetuning.knobs import TrainingKnobs


def learning_rate(knobs: TrainingKnobs, total_steps: int, step: jax.Array | int) -> jax.Array:
    """The rate of optimizer step `step`, counted from 0.

    The warm-up's first step has `1 / warmup_steps` of the peak, not 0. The final value is reached
    at `schedule_steps` or, where that is 0, at `total_steps`, one after the last step; there it
    stays.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = float(knobs.warmup_steps)
    peak, final = knobs.learning_rate, knobs.learning_rate * knobs.final_learning_rate_fraction
    length = max(1.0, (knobs.schedule_steps or total_steps) - warmup)
    ways: dict[str, Callable[[jax.Array], Any]] = {
        "cosine": optax.cosine_decay_schedule(peak, length, knobs.final_learning_rate_fraction),
        "linear": optax.linear_schedule(peak, final, length),
        "constant": optax.constant_schedule(peak),
    }
    after = jnp.asarray(ways[knobs.schedule](jnp.maximum(step - warmup, 0.0)), jnp.float32)
    return jnp.where(step < warmup, peak * (step + 1.0) / max(1.0, warmup), after)


def make_optimizer(knobs: TrainingKnobs, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer that `knobs.optimizer` names, after clipping by the global norm if that is on.

    Only matrices decay: norms and biases are left out. The parameter tree is a mapping of parameter
    path (`layers.0.q`) to array.
    """

    def decays(params: dict[str, Any]) -> dict[str, bool]:
        return {path: not path.endswith(("norm", "bias")) for path in params}

    def rate(step: Any) -> jax.Array:
        return learning_rate(knobs, total_steps, step)

    if knobs.optimizer == "adafactor":
        # optax's Adafactor does not scale weight decay by the rate. Decay is added as in AdamW, so
        # that the knob means the same for both.
        own = optax.chain(
            optax.adafactor(multiply_by_parameter_scale=False, clipping_threshold=1.0),
            optax.add_decayed_weights(-knobs.weight_decay, mask=decays),
            optax.scale_by_schedule(rate),
        )
    else:
        moments = optax.scale_by_adam(b1=knobs.beta1, b2=knobs.beta2)
        if knobs.moments_dtype != "float32":
            moments = stored_as(moments, knobs.moments_dtype)
        own = optax.chain(
            moments,
            optax.add_decayed_weights(knobs.weight_decay, mask=decays),
            optax.scale_by_learning_rate(rate),
        )
    if knobs.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(knobs.clip_norm), own)
    return optax.with_extra_args_support(own)


def stored_as(
    inner: optax.GradientTransformation, dtype: Any
) -> optax.GradientTransformationExtraArgs:
    """The same transformation, computed in float32, whose state is kept in `dtype` between steps.

    optax itself keeps only Adam's first moment in another type.
    """

    def cast(state: Any, kind: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.astype(kind) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            state,
        )

    def init(params: Any) -> Any:
        return cast(inner.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformationExtraArgs(init, update)
