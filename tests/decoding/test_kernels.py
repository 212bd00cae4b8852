"""Does attention by a kernel give what the plain products give, and who gets which kernel?"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.attend import decode_attend, shared_prefix_attend
from ste_jax.decoding.engine import Engine
from ste_jax.models import kernels as kernels_module
from ste_jax.models.attention import Seen
from ste_jax.models.config import LayerKind, ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.models.kernels import KERNELS, PLAIN, Cudnn, Kernels, Mqa, Splash, kernels_of
from ste_jax.parallel.sharding import make_mesh
from tests.decoding import small
from tests.decoding.small import LETTERS, Letters, collect, prompt, request

CHUNK = 128
SPLASH = Splash(interpret=True)
INTERPRETED = Kernels(own=SPLASH, prefix=SPLASH)
BF16, F32 = jnp.bfloat16, jnp.float32
PLAIN_SEEN = Seen(64**-0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class Counted:
    """A kernel that notes each stretch for which a program of it was made."""

    kernel: Splash
    made: list[tuple[int, int, bool]] = dataclasses.field(default_factory=list)

    def fits(self, *args: Any, **kwargs: Any) -> bool:
        return self.kernel.fits(*args, **kwargs)

    def __call__(self, q: Any, k: Any, v: Any, seen: Seen, *, causal: bool) -> Any:
        self.made.append((q.shape[2], k.shape[2], causal))
        return self.kernel(q, k, v, seen, causal=causal)


def arrays(
    *,
    rows: int = 1,
    time: int = CHUNK,
    heads: int = 4,
    kv_heads: int = 2,
    size: int = 64,
    dtype: Any,
) -> tuple[Any, ...]:
    """q, k, v of new tokens, and a cache of three chunks."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(draw.normal(size=shape), dtype)

    new = [normal(rows, time, n, size) for n in (heads, kv_heads, kv_heads)]
    cache = {name: normal(kv_heads, 3 * CHUNK, size) for name in ("k", "v")}
    return (*new, cache)


def run(given: Any, length: int, seen: Seen, kernels: Kernels) -> Any:
    def attend(given: Any, length: Any) -> Any:
        return shared_prefix_attend(length, CHUNK, kernels)(*given, seen)

    return jax.jit(attend)(given, jnp.int32(length))


def assert_close(found: Any, want: Any, dtype: Any) -> None:
    found, want = (np.asarray(x, np.float32) for x in (found, want))
    assert np.isfinite(found).all()
    # bf16 keeps 8 bits: both ways round what they multiply, each at its own place.
    np.testing.assert_allclose(found, want, atol=2e-5 if dtype == F32 else 3e-2)
    assert np.abs(found - want).mean() < (2e-6 if dtype == F32 else 2e-3)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    ("seen", "more"),
    [
        (PLAIN_SEEN, {}),
        (Seen(128**-0.5), {"size": 128, "heads": 2}),
        (Seen(0.3, softcap=2.0), {"heads": 6}),
        (PLAIN_SEEN._replace(window=50), {}),
        (PLAIN_SEEN._replace(window=CHUNK), {}),
        (PLAIN_SEEN._replace(window=300), {}),
        (PLAIN_SEEN, {"rows": 2, "time": 16}),
    ],
    ids=["64", "128", "capped", "window", "window-a-chunk", "window-of-chunks", "scoring"],
)
def test_splash_gives_what_the_plain_products_give(seen: Seen, more: Any, dtype: Any) -> None:
    given = arrays(dtype=dtype, **more)
    counted = Counted(SPLASH)
    for length in (0, 1, 200, CHUNK, 3 * CHUNK):
        found = run(given, length, seen, Kernels(counted, counted))
        assert_close(found, run(given, length, seen, PLAIN), dtype)
    causal = {one[2] for one in counted.made}
    assert causal == ({False} if more.get("time") else {False, True})


def test_what_lies_past_the_prefix_and_the_buffers_size_change_no_bit() -> None:
    *new, cache = arrays(dtype=F32)
    longer = {name: jnp.pad(x, ((0, 0), (0, CHUNK), (0, 0))) for name, x in cache.items()}
    for length in (0, 130, 256):
        other = {name: x.at[:, length:].set(9.0) for name, x in cache.items()}
        want = run((*new, cache), length, PLAIN_SEEN, INTERPRETED)
        for changed in (longer, other):
            found = run((*new, changed), length, PLAIN_SEEN, INTERPRETED)
            np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    ("kv_heads", "divided"), [(2, True), (3, False)], ids=["divided", "not-divisible"]
)
def test_each_device_runs_the_kernel_on_its_heads(kv_heads: int, divided: bool) -> None:
    given = arrays(dtype=F32, heads=2 * kv_heads, kv_heads=kv_heads)
    mesh = make_mesh(MeshKnobs(data=1, fsdp=1, tensor=2), jax.devices()[:2])
    want = run(given, 200, PLAIN_SEEN, PLAIN)
    with jax.set_mesh(mesh):
        found = run(given, 200, PLAIN_SEEN, INTERPRETED)
    assert_close(found, want, F32)
    assert found.sharding.shard_shape(found.shape)[2] == (kv_heads if divided else 2 * kv_heads)


def device(platform: str, capability: str = "") -> Any:
    return SimpleNamespace(platform=platform, compute_capability=capability)


def test_the_table() -> None:
    splash = Splash()
    assert kernels_of(device("tpu")) == Kernels(own=splash, prefix=splash, packed=splash)
    assert kernels_of(device("gpu", "9.0")) == Kernels(own=Cudnn(), prefix=Cudnn(), decode=Mqa())
    for older in (device("gpu", "7.5"), device("gpu", "gfx942"), device("gpu")):
        assert kernels_of(older) == PLAIN
    assert kernels_of(jax.devices("cpu")[0]) == PLAIN
    assert kernels_of(device("metal")) == PLAIN


@pytest.mark.parametrize(
    ("kernel", "seen", "dtype", "size", "queries", "keys", "fits"),
    [
        (SPLASH, PLAIN_SEEN, BF16, 64, 128, 128, True),
        (SPLASH, Seen(1.0, window=7, softcap=3.0), F32, 256, 16, 1024, True),
        (SPLASH, PLAIN_SEEN, jnp.float16, 64, 128, 128, False),
        (SPLASH, PLAIN_SEEN, BF16, 32, 128, 128, False),
        (SPLASH, PLAIN_SEEN, BF16, 64, 128, 64, False),
        (SPLASH, PLAIN_SEEN, BF16, 64, 8, 128, False),
        (Cudnn(), PLAIN_SEEN, BF16, 64, 64, 64, True),
        (Cudnn(), PLAIN_SEEN._replace(window=7), jnp.float16, 128, 100, 70, True),
        (Cudnn(), PLAIN_SEEN, F32, 64, 64, 64, False),
        (Cudnn(), PLAIN_SEEN, BF16, 256, 64, 64, False),
        (Cudnn(), PLAIN_SEEN, BF16, 20, 64, 64, False),
        (Cudnn(), PLAIN_SEEN, BF16, 64, 16, 64, False),
        (Cudnn(), PLAIN_SEEN, BF16, 64, 64, 32, False),
        (Cudnn(), Seen(1.0, softcap=3.0), BF16, 64, 64, 64, False),
    ],
)
def test_which_shapes_a_kernel_takes(
    kernel: Any, seen: Seen, dtype: Any, size: int, queries: int, keys: int, fits: bool
) -> None:
    assert kernel.fits(seen, dtype, size, queries=queries, keys=keys) is fits


def test_what_a_kernel_does_not_take_is_plain_bit_for_bit() -> None:
    """The GPU's kernels cannot run here at all, so none of them was made."""
    given = arrays(dtype=F32)
    want = run(given, 200, PLAIN_SEEN, PLAIN)
    np.testing.assert_array_equal(run(given, 200, PLAIN_SEEN, KERNELS["gpu"]), want)


def tiny_model() -> Decoder:
    """A model whose heads and chunk the kernel takes, with windows and without."""
    config = ModelConfig(
        vocab_size=len(LETTERS),
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        max_position=512,
        kinds=(LayerKind(window=150), LayerKind()),
    )
    return small.random_model(config, 3, lambda std: 3 * std)


@pytest.mark.parametrize("tensor", [1, 2])
def test_the_engine_draws_the_same_with_the_tpus_table(
    tensor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = DecodingKnobs(
        prompt_buckets=(384,),
        new_buckets=(128,),
        groups=2,
        group_size=1,
        prefill_chunk=CHUNK,
        steps_per_round=8,
        dtype="float32",
    )
    mesh = None
    if tensor > 1:
        mesh = make_mesh(MeshKnobs(data=1, fsdp=1, tensor=tensor), jax.devices()[:tensor])
    model, lengths = tiny_model(), (1, 130, 260, 384)

    def drawn() -> tuple[Any, Any]:
        engine = Engine(model, Letters(), knobs, mesh)
        for length in lengths:
            one = request(str(length), max_new_tokens=24, ignore_eos=True)
            engine.submit(one, prompt(length, length))
        found = collect(engine.completions())
        scores = engine.score("s", prompt(0, 300), [prompt(1, 70).tokens, prompt(2, 128).tokens])
        return [found[str(length), 0].token_ids for length in lengths], np.concatenate(scores)

    tokens, scores = drawn()
    kernels = [
        dataclasses.replace(one, interpret=True) for one in KERNELS["tpu"][:2] if one is not None
    ]
    assert len(kernels) == 2
    counted = [Counted(one) for one in kernels]
    monkeypatch.setitem(kernels_module.KERNELS, "cpu", Kernels(*counted))
    found, again = drawn()
    assert found == tokens
    assert len(set(map(tuple, found))) == len(lengths)
    np.testing.assert_allclose(again, scores, atol=1e-4)
    for one in counted:
        assert one.made


DECODE = Kernels(decode=Mqa(interpret=True))


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("rows", [2, 20])
def test_a_decoding_step_by_the_gpus_kernel(rows: int, size: int) -> None:
    """Of prompts and pasts of all lengths, none of them among these; the keys not transposed."""
    groups, kv_heads, each, room = 3, 2, 3, 256
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(draw.normal(size=shape), BF16)

    q = normal(groups * rows, 1, kv_heads * each, size)
    k, v = (normal(groups * rows, 1, kv_heads, size) for _ in range(2))
    prefix = [normal(groups, kv_heads, room, size) for _ in range(2)]
    pasts = [[normal(groups, rows, kv_heads, 128, size) for _ in range(2)] for _ in range(2)]
    length = jnp.asarray([0, 77, room])
    # In the places after a prompt its last key stands, see `decode_attend`.
    place = jnp.arange(room) >= length[:, None]
    last = jnp.take_along_axis(prefix[0], (length - 1)[:, None, None, None], axis=2)
    prefix[0] = jnp.where(place[:, None, :, None], last, prefix[0])
    filled = jnp.asarray(draw.integers(0, 257, (groups, rows))).at[0, 0].set(0).at[1, 1].set(128)
    plain = {
        "prefix_k": prefix[0].swapaxes(2, 3),
        "prefix_v": prefix[1],
        "pasts": [{"k": k.swapaxes(3, 4), "v": v} for k, v in pasts],
    }
    by_kernel = {
        "prefix_k": prefix[0],
        "prefix_v": prefix[1],
        "pasts": [{"k": k, "v": v} for k, v in pasts],
    }
    seen = Seen(size**-0.5)
    want = decode_attend(groups, length, filled)(q, k, v, plain, seen)
    found = decode_attend(groups, length, filled, DECODE, keys_transposed=False)(
        q, k, v, by_kernel, seen
    )
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (found, want)), atol=0.02)


@pytest.mark.parametrize(
    ("seen", "dtype", "size", "keys", "fits"),
    [
        (PLAIN_SEEN, BF16, 64, 128, True),
        (PLAIN_SEEN, jnp.float16, 256, 1024, True),
        (PLAIN_SEEN, F32, 64, 128, False),
        (PLAIN_SEEN, BF16, 96, 128, False),
        (PLAIN_SEEN, BF16, 64, 64, False),
        (Seen(1.0, window=9), BF16, 64, 128, False),
        (Seen(1.0, softcap=9.0), BF16, 64, 128, False),
    ],
)
def test_which_steps_the_gpus_kernel_takes(
    seen: Seen, dtype: Any, size: int, keys: int, fits: bool
) -> None:
    assert Mqa().fits(seen, dtype, size, keys=keys) is fits


def test_the_engine_draws_the_same_with_the_gpus_decoding_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16, so up to where rounding parts the likeliest two; layers with a window stay
    plain."""
    knobs = DecodingKnobs(
        prompt_buckets=(256,), new_buckets=(128,), groups=2, group_size=2, dtype="bfloat16"
    )
    model, lengths = tiny_model(), (1, 130, 256)

    def drawn() -> Any:
        engine = Engine(model, Letters(), knobs)
        for length in lengths:
            one = request(str(length), (0, 1), max_new_tokens=12, ignore_eos=True)
            engine.submit(one, prompt(length, length))
        return collect(engine.completions())

    want = drawn()
    monkeypatch.setitem(kernels_module.KERNELS, "cpu", DECODE)
    found = drawn()
    for key, one in want.items():
        alike = [a == b for a, b in zip(one.token_ids, found[key].token_ids, strict=True)]
        # Where they part, each took the likeliest: both are about as likely.
        until = alike.index(False) + 1 if False in alike else len(alike)
        np.testing.assert_allclose(
            found[key].logprobs[:until], one.logprobs[:until], atol=0.1, err_msg=str(key)
        )
        assert until > 1
