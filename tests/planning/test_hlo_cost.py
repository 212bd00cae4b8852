"""Is what a compiled program costs counted as often as it runs?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from ste_jax.planning.hlo import Array, arrays_of, parse
from ste_jax.planning.hlo_cost import Cost, UnknownTripsError, lines, total


def cost(text: str, *unknown_trips: float) -> Cost:
    return total(lines(parse(text), unknown_trips))


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jit(function).lower(*arguments).compile()


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_products_flops_are_those_of_the_compilers_own_analysis() -> None:
    program = compiled(
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y), floats(3, 8, 32), floats(3, 32, 16)
    )
    assert cost(program.as_text()).flops == 2 * 3 * 8 * 32 * 16
    assert cost(program.as_text()).flops == program.cost_analysis()["flops"]


@pytest.mark.parametrize("depth", [2, 7])
def test_loops_in_loops_are_counted_as_often_as_they_run(depth: int) -> None:
    def layer(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ weight), x), None

    def run(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(layer, x, weights)[0]

    program = compiled(run, floats(16, 32), floats(depth, 32, 32))
    products = 2 * 16 * 32 * 32 * 5 * depth
    assert products <= cost(program.as_text()).flops <= 1.1 * products
    assert program.cost_analysis()["flops"] < products / 5  # it counts a body once


def test_a_loop_costs_what_the_program_without_it_does() -> None:
    def run(unroll: int | bool) -> Callable[..., Any]:
        def step(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ weight), None

        return lambda x, weights: jax.lax.scan(step, x, weights, unroll=unroll)[0]

    arguments = floats(64, 64), floats(6, 64, 64)
    looped, plain = (cost(compiled(run(u), *arguments).as_text()) for u in (1, True))
    assert looped.flops == pytest.approx(plain.flops, rel=0.01)


LOOP = """
HloModule test, is_scheduled=true

%body (state: (s32[], f32[64,64], s32[])) -> (s32[], f32[64,64], s32[]) {
  %state = (s32[], f32[64,64]{1,0}, s32[]) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %one = s32[] constant(STEP)
  %next = s32[] add(%index, %one)
  %x = f32[64,64]{1,0} get-tuple-element(%state), index=1
  %twice = f32[64,64]{1,0} add(%x, %x)
  %last = s32[] get-tuple-element(%state), index=2
  ROOT %out = (s32[], f32[64,64]{1,0}, s32[]) tuple(%next, %twice, %last)
}

%condition (state.1: (s32[], f32[64,64], s32[])) -> pred[] {
  %state.1 = (s32[], f32[64,64]{1,0}, s32[]) parameter(0)
  %index.1 = s32[] get-tuple-element(%state.1), index=0
  %last.1 = s32[] get-tuple-element(%state.1), index=2
  ROOT %less = pred[] compare(%index.1, %last.1), direction=LT
}

ENTRY %main (x.1: f32[64,64], n: s32[]) -> f32[64,64] {
  %x.1 = f32[64,64]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %start = s32[] constant(2)
  %end = s32[] constant(11)
  %begin = (s32[], f32[64,64]{1,0}, s32[]) tuple(%start, %x.1, BOUND)
  %loop = (s32[], f32[64,64]{1,0}, s32[]) while(%begin), condition=%condition, body=%body
  ROOT %result = f32[64,64]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_trips_are_derived_from_where_a_counter_starts_and_ends() -> None:
    for step, trips in ((1, 9), (2, 5), (20, 1)):
        text = LOOP.replace("STEP", str(step)).replace("BOUND", "%end")
        assert cost(text).flops == trips * 64 * 64


def test_trips_that_only_the_data_know_must_be_said() -> None:
    text = LOOP.replace("STEP", "1").replace("BOUND", "%n")
    with pytest.raises(UnknownTripsError, match="loop"):
        cost(text)
    assert cost(text, 4).flops == 4 * 64 * 64
    with pytest.raises(UnknownTripsError, match="of 2 loops are said, but of the last 1"):
        cost(text, 4, 5)


def test_each_loop_has_trips_of_its_own() -> None:
    second = "%again = (s32[], f32[64,64]{1,0}, s32[]) while(%loop), condition=%condition, "
    text = LOOP.replace("STEP", "1").replace("BOUND", "%n")
    text = text.replace("  ROOT %result", f"  {second}body=%body\n  ROOT %result")
    assert cost(text, 4, 0).flops == 4 * 64 * 64
    assert cost(text, 3, 2).flops == 5 * 64 * 64
    with pytest.raises(UnknownTripsError, match="loop again"):
        cost(text, 4)


def test_a_loop_whose_state_is_not_written_out_is_named() -> None:
    text = LOOP.replace("STEP", "1").replace("BOUND", "%end")
    text = text.replace("ROOT %out = ", "%out = ").replace(
        "tuple(%next, %twice, %last)\n",
        "tuple(%next, %twice, %last)\n  ROOT %held = (s32[], f32[64,64]{1,0}, s32[]) "
        "opt-barrier(%out)\n",
    )
    with pytest.raises(UnknownTripsError, match="the loop loop run"):
        cost(text)
    with pytest.raises(ValueError, match="body: no instruction of it is its result"):
        cost(text.replace("ROOT %held", "%held"))


KERNEL = """
HloModule test, is_scheduled=true

ENTRY %main (x: f32[64,64]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %kernel = f32[64,64]{1,0} custom-call(%x), custom_call_target="t", frontend_attributes={about={
"blocks":"{\\"q\\": 512, \\"kv\\": 512}"
}}, backend_config={"cost_estimate":{"flops":"7","bytes_accessed":"9"}}
  ROOT %result = f32[64,64]{1,0} add(%kernel, %x)
}
"""


def test_what_a_kernel_says_in_lines_of_its_own_ends_nothing() -> None:
    matrix = 64 * 64 * 4
    assert cost(KERNEL) == Cost(flops=7 + 64 * 64, hbm_bytes=9 + 3 * matrix)


FUSION = """
HloModule test, is_scheduled=true

%sliced (p0: f32[8,64,64], p1: s32[], p2: f32[64,64]) -> f32[64,64] {
  %p0 = f32[8,64,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,64,64]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,64}
  %flat = f32[64,64]{1,0} bitcast(%slice)
  %p2 = f32[64,64]{1,0} parameter(2)
  ROOT %sum = f32[64,64]{1,0} add(%flat, %p2)
}

%updated (q0: f32[8,64,64], q1: s32[], q2: f32[64,64]) -> f32[8,64,64] {
  %q0 = f32[8,64,64]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %nought = s32[] constant(0)
  %q2 = f32[64,64]{1,0} parameter(2)
  %new = f32[1,64,64]{2,1,0} bitcast(%q2)
  ROOT %put = f32[8,64,64]{2,1,0} dynamic-update-slice(%q0, %new, %q1, %nought, %nought)
}

ENTRY %main (a: f32[8,64,64], i: s32[], b: f32[64,64]) -> f32[8,64,64] {
  %a = f32[8,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[64,64]{1,0} parameter(2)
  %near = f32[64,64]{1,0SPACE} fusion(%a, %i, %b), kind=kLoop, calls=%sliced
  ROOT %result = f32[8,64,64]{2,1,0} fusion(%a, %i, %near), kind=kLoop, calls=%updated
}
"""


def test_of_what_a_fusion_slices_or_updates_only_the_slice_moves() -> None:
    matrix, index = 64 * 64 * 4, 4
    # A slice and a matrix read, a sum written; the sum read, a slice written.
    assert cost(FUSION.replace("SPACE", "")).hbm_bytes == 5 * matrix + 2 * index


def test_what_lies_in_another_memory_moves_nothing() -> None:
    matrix, index = 64 * 64 * 4, 4
    near = FUSION.replace("SPACE", ":T(8,128)S(1)")
    assert cost(near).hbm_bytes == 3 * matrix + 2 * index


def test_an_array_takes_whole_tiles() -> None:
    (plain, tiled) = arrays_of("(f32[3,130]{1,0}, bf16[5,3,130]{1,2,0:T(8,128)(2,1)})")
    assert plain == Array("f32", (3, 130), "1,0")
    assert plain.bytes == 3 * 130 * 4
    # In memory 5 x 130 x 3: the last two are padded to 136 x 128.
    assert tiled.bytes == 5 * 136 * 128 * 2


CONVOLUTION = """
HloModule test, is_scheduled=true

ENTRY %main (q: bf16[8,64,128], k: bf16[8,128,32]) -> f32[8,64,32] {
  %q = bf16[8,64,128]{2,1,0} parameter(0)
  %k = bf16[8,128,32]{2,1,0} parameter(1)
  ROOT %scores = f32[8,64,32]{2,1,0} convolution(%q, %k), window={size=8 stride=7 lhs_dilate=8},
    dim_labels=0bf_0io->0bf
}
"""


def test_a_batched_product_written_as_a_convolution_is_one() -> None:
    assert cost(CONVOLUTION.replace(",\n    ", ", ")).flops == 2 * 8 * 64 * 128 * 32


COLLECTIVES = """
HloModule test, is_scheduled=true

ENTRY %main (x: f32[64,64]) -> f32[128,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %sum = f32[64,64]{1,0} all-reduce(%x), replica_groups=GROUPS, to_apply=%add
  ROOT %whole = f32[128,64]{1,0} all-gather(%sum), replica_groups={{0,4},{1,5}}, dimensions={0}
}
"""


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", (0, 1, 2, 3)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['x'=2,'y'=4] {'y'}", (0, 1, 2, 3)),
        ("mesh['x'=2,'y'=4] {'x'}", (0, 4)),
        ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", (0, 2, 4, 6)),
        ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x'}", (0, 1)),
        ("mesh['x'=2,'y'=2], device_ids=(0,2,1,3) {'y'}", (0, 2)),
        ("mesh['x'=2,'y'=4] {'x','y':(1)2}", (0, 2, 4, 6)),
    ],
)
def test_what_is_sent_and_to_whom(groups: str, members: tuple[int, ...]) -> None:
    matrix = 64 * 64 * 4
    sent = cost(COLLECTIVES.replace("GROUPS", groups)).sent
    around, others = 2 * matrix * (len(members) - 1) / len(members), matrix
    expected = {members: around, (0, 4): others}
    if members == (0, 4):
        expected = {(0, 4): around + others}
    assert {tuple(sorted(group)): count for group, count in sent.items()} == expected


BRANCHES = """
HloModule test, is_scheduled=true

%small (s: f32[64,64]) -> f32[64,64] {
  %s = f32[64,64]{1,0} parameter(0)
  ROOT %same = f32[64,64]{1,0} copy(%s)
}

%large (l: f32[64,64]) -> f32[64,64] {
  %l = f32[64,64]{1,0} parameter(0)
  %e = f32[64,64]{1,0} exponential(%l)
  ROOT %product = f32[64,64]{1,0} multiply(%e, %l)
}

ENTRY %main (which: pred[], x: f32[64,64]) -> f32[64,64] {
  %which = pred[] parameter(0)
  %x = f32[64,64]{1,0} parameter(1)
  ROOT %either = f32[64,64]{1,0} conditional(%which, %x, %x), branch_computations={%small, %large}
}
"""


def test_of_branches_the_dearest_is_counted() -> None:
    assert cost(BRANCHES).hbm_bytes == 5 * 64 * 64 * 4


def test_what_is_no_compiled_module_is_refused() -> None:
    with pytest.raises(ValueError, match="not the text of a compiled module"):
        parse("module @jit_f { }")
