"""Which attention kernel runs on which backend, and which shapes does it take?

Shapes: `B` rows, `T` query time, `S` key time, `H` query heads, `K` kv heads, `d` head size.

`KERNELS` is the one table. What it does not name, and every shape that a kernel does not take, runs
as plain products that XLA compiles. A kernel returns the logarithm of each query's sum of
exp(score) beside its output, so that attention over several stretches of keys can be merged.

A decoding step reads a prompt once for all the rows that share it, and each row's own tokens. JAX's
paged and ragged kernels for TPU read a row's keys row by row: a prompt of P tokens with N samples
costs them N * P keys and values a step, where two plain products read P. So it stays with these
there. On GPU, JAX's decoding kernel takes the queries of all rows of a prompt as the heads that
share one key, and writes no scores to memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ste_jax.models.attention import Seen


class Kernel(Protocol):
    """Attention over one stretch of keys, by a kernel of its own."""

    def fits(self, seen: Seen, dtype: Any, head_dim: int, *, queries: int, keys: int) -> bool:
        """Whether it takes so many queries and keys of this size and type."""

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen, *, causal: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Attention of `q` [B,H,T,d] to `k`, `v` [B,K,S,d].

        With `causal`, T is S, and a query sees the keys up to its own place, within the window;
        else every query sees every key.

        Returns the output [B,H,T,d] in the type of `q`, and float32 log-sum-exps of the scores
        [B,H,T].
        """


@dataclass(frozen=True)
class Splash:
    """JAX's sparse flash attention for TPU. Blocks that a mask hides are never read."""

    interpret: bool = False
    """Run by JAX's interpreter of kernels, on any backend."""

    def fits(self, seen: Seen, dtype: Any, head_dim: int, *, queries: int, keys: int) -> bool:
        """Keys fill whole lanes, queries whole tiles of registers."""
        del seen
        known = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float32)
        return known and head_dim % 64 == 0 and keys % 128 == 0 and queries % 16 == 0

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen, *, causal: bool
    ) -> tuple[jax.Array, jax.Array]:
        """See `Kernel`."""
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            BlockSizes,
            FullMask,
            MultiHeadMask,
            make_splash_mha_single_device,
        )

        _, heads, time, _ = q.shape
        keys = k.shape[-2]
        mask = _earlier(time, seen) if causal else FullMask((time, keys))
        run = make_splash_mha_single_device(
            MultiHeadMask([mask] * heads),
            block_sizes=BlockSizes(block_q=_block(time), block_kv=_block(keys)),
            save_residuals=True,
            attn_logits_soft_cap=seen.softcap,
            interpret=self.interpret,
        )
        out, (logsumexp,) = jax.vmap(run)(_scaled(q, seen), k, v)
        return out, logsumexp

    def packed(
        self, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, seen: Seen
    ) -> jax.Array:
        """Attention of packed rows `q` [B,H,T,d] to themselves, `k` and `v` [B,K,T,d]: a query sees
        the keys of its segment (`segment_ids` [B,T]) up to its own place, within the window.
        Returns [B,H,T,d]; it can be differentiated.
        """
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            BlockSizes,
            MultiHeadMask,
            SegmentIds,
            make_splash_mha_single_device,
        )

        _, heads, time, _ = q.shape
        block = _block(time)
        run = make_splash_mha_single_device(
            MultiHeadMask([_earlier(time, seen)] * heads),
            block_sizes=BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=block,
                block_q_dq=block,
                block_kv_dq=block,
            ),
            attn_logits_soft_cap=seen.softcap,
            interpret=self.interpret,
        )

        def of_row(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
            out: jax.Array = run(q, k, v, segment_ids=SegmentIds(q=ids, kv=ids))
            return out

        return jax.vmap(of_row)(_scaled(q, seen), k, v, segment_ids)


@dataclass(frozen=True)
class Cudnn:
    """cuDNN's flash attention."""

    def fits(self, seen: Seen, dtype: Any, head_dim: int, *, queries: int, keys: int) -> bool:
        """Types of 16 bits, and scores without a cap; for few queries it is not worth it."""
        known = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and seen.softcap is None
        return known and head_dim % 8 == 0 and head_dim <= 128 and min(queries, keys) >= 64

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen, *, causal: bool
    ) -> tuple[jax.Array, jax.Array]:
        """See `Kernel`."""
        # `jax.nn.dot_product_attention` runs this function, but rounds the log-sum-exp to the type
        # of its inputs: at a common size of 6, in bfloat16, by up to 0.016, and so every weight of
        # a merged part by 1.6%. Here it is exact to 1e-6 (measured on an H100, jax 0.11.2).
        from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

        out, logsumexp = dot_product_attention(
            q,
            k,
            v,
            scale=seen.scale,
            mask_type=MaskType.CAUSAL if causal else MaskType.NO_MASK,
            sliding_window_length=seen.window if causal else None,
            qkv_layout="BNTH",
            return_residual=True,
        )
        return out, logsumexp


@dataclass(frozen=True)
class Mqa:
    """JAX's decoding kernel for GPU: few queries, and keys that all of them share."""

    interpret: bool = False
    """Run by JAX's interpreter of kernels, on any backend."""

    def fits(self, seen: Seen, dtype: Any, head_dim: int, *, keys: int) -> bool:
        """Types of 16 bits, keys in blocks of 128, no window and no cap."""
        known = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        plain = seen.softcap is None and seen.window is None
        return known and plain and head_dim in (32, 64, 128, 256) and keys % 128 == 0

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array, seen: Seen
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Attention of `q` [B,M,d] to the first `length` [B] of `k`, `v` [B,S,d].

        Returns in float32 the largest scores [B,M], the sums of exp(score - largest) [B,M], and the
        values weighted by these [B,M,d].
        """
        from jax.experimental.pallas.ops.gpu.decode_attention import mqa

        out, (total, highest) = mqa(
            q,
            k,
            v,
            kv_seq_len=length,
            sm_scale=seen.scale,
            block_h=min(64, max(16, 1 << (q.shape[1] - 1).bit_length())),
            block_k=64,
            k_splits=math.gcd(k.shape[1] // 128, 16),
            interpret=self.interpret,
            return_residuals=True,
            normalize_output=False,
        )
        return highest, total, out.astype(jnp.float32)


class Kernels(NamedTuple):
    """What runs as a kernel, and as which; None: as plain products."""

    own: Kernel | None = None
    """A piece of a prompt or a completion attends to itself."""
    prefix: Kernel | None = None
    """It attends to the tokens before it."""
    decode: Mqa | None = None
    """In a decoding step, the rows of a prompt attend to it, and each row to its own tokens."""
    packed: Splash | None = None
    """In training, a packed row attends to itself."""


PLAIN = Kernels()

KERNELS: dict[str, Kernels] = {
    "tpu": Kernels(own=Splash(), prefix=Splash(), packed=Splash()),
    "gpu": Kernels(own=Cudnn(), prefix=Cudnn(), decode=Mqa()),
    "cpu": PLAIN,
}
"""Backend -> its kernels."""


def kernels_of(device: jax.Device) -> Kernels:
    """The kernels that run on this device."""
    if device.platform == "gpu":
        # cuDNN's flash attention begins with compute capability 8.0; other makers' have a name.
        generation = str(getattr(device, "compute_capability", "")).split(".")[0]
        if not generation.isdecimal() or int(generation) < 8:
            return PLAIN
    return KERNELS.get(device.platform, PLAIN)


def _earlier(time: int, seen: Seen) -> Any:
    """Splash's mask of the keys up to a query's own place, within the window."""
    from jax.experimental.pallas.ops.tpu.splash_attention import CausalMask, LocalMask

    if seen.window is not None and seen.window < time:
        return LocalMask((time, time), (seen.window - 1, 0), 0)
    return CausalMask((time, time))


def _scaled(q: jax.Array, seen: Seen) -> jax.Array:
    """Splash multiplies by no scale of its own."""
    return (q.astype(jnp.float32) * seen.scale).astype(q.dtype)


def _block(length: int) -> int:
    """The largest block that divides `length`, of those that a core's memory holds well."""
    return next(size for size in (512, 256, 128, 64, 32, 16) if length % size == 0)
