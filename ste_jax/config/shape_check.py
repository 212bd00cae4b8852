"""Can the shapes of the decoding programs be run?"""

from __future__ import annotations

from ste_jax.config import from_plain
from ste_jax.config.schema import DecodingKnobs
from ste_jax.errors import RequestError


def check_knobs(knobs: DecodingKnobs, *, fitted: bool = True) -> None:
    """Raises `RequestError` where the shapes cannot be run. Before they are `fitted` to a model
    there may be no buckets."""
    from_plain.build(DecodingKnobs, from_plain.to_dict(knobs), where="the shapes", key="decoding")
    for name in ("prompt_buckets", "new_buckets"):
        buckets = getattr(knobs, name)
        if not buckets and not fitted:
            continue
        if not buckets or list(buckets) != sorted(set(buckets)):
            raise RequestError(f"decoding.{name}={list(buckets)}: rising sizes are needed")
    for bucket in knobs.prompt_buckets:
        if bucket % knobs.prefill_chunk:
            raise RequestError(
                f"decoding.prompt_buckets: {bucket} is not a multiple of decoding.prefill_chunk "
                f"{knobs.prefill_chunk}"
            )
