"""How are many samples of many prompts drawn on fixed shapes, and kept the same whatever runs
beside?

The engine is the host's loop. Each turn it places waiting rows into the free slots of a shape
(`scheduler`), computes the prompts that these need (`prefill`), runs a round of decoding steps on
the device (`programs`), and takes the tokens (`rows`). The last token of a prompt is not prefilled:
every row feeds it as its own first step, which yields the row's first token.

A shape is run until it has nothing left; then the next one that has. No result depends on that
order.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.caches import Cache
from ste_jax.decoding.decode_round import NOT_FINITE, NOTHING, empty_control
from ste_jax.decoding.memory import Memory
from ste_jax.decoding.prefill import Prefiller
from ste_jax.decoding.programs import Programs
from ste_jax.decoding.rows import Prompt, Row, TextDecoder, hash_id, split64
from ste_jax.decoding.scheduler import Placement, SlotSchedule
from ste_jax.decoding.scoring import batches, check_score
from ste_jax.decoding.shapes import DoesNotFit, Shape, TooLong, check_shapes, choose_shape
from ste_jax.generation import Completion, Request, Usage
from ste_jax.models.decoder import Decoder
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import preemption

Array = np.ndarray[Any, Any]


class Engine:
    """Draws and scores completions of token prompts with one model."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: TextDecoder,
        knobs: DecodingKnobs,
        mesh: Mesh | None = None,
    ) -> None:
        check_shapes(knobs)
        self._knobs = knobs
        self._tokenizer = tokenizer
        self._eos_ids = np.asarray(tokenizer.eos_ids, np.int32)
        self._max_position = model.config.max_position
        self._flops_per_token = model.config.flops_per_token
        mesh = mesh or make_mesh(MeshKnobs(), jax.local_devices()[:1])
        self._memory = Memory(model.config, knobs, mesh.size)
        with self._memory.explaining_out_of_memory():
            self._programs = Programs(
                model,
                mesh,
                dtype=knobs.dtype,
                int8=knobs.weights == "int8",
                chunk=knobs.prefill_chunk,
                steps=knobs.steps_per_round,
                as_list=layers_as_list(),
            )
            self._prefiller = Prefiller(
                self._programs,
                bucket=knobs.prompt_buckets[-1],
                chunk=knobs.prefill_chunk,
                cache_tokens=knobs.cache_tokens,
            )
        self._schedules: dict[Shape, SlotSchedule[Row]] = {}
        self._running: _Running | None = None
        self._ready: deque[Completion] = deque()
        self.usage = Usage()

    # -- what is asked ------------------------------------------------------------------------

    def submit(self, request: Request, prompt: Prompt) -> None:
        """Queues the request's samples. One that cannot be drawn is a completion that says why."""
        try:
            shape = self._check(request, prompt)
        except DoesNotFit as error:
            self.refuse(request, str(error), prompt, too_long=isinstance(error, TooLong))
            return
        rows = [Row(request, sample, prompt) for sample in request.samples]
        self.usage.requests += 1
        self.usage.samples += len(rows)
        if shape not in self._schedules:
            self._schedules[shape] = SlotSchedule(shape.groups, shape.rows)
        name = prompt.name
        for row in rows:
            self._schedules[shape].add(name, row)

    def refuse(
        self, request: Request, why: str, prompt: Prompt | None = None, *, too_long: bool = False
    ) -> None:
        """Answers the request's samples with completions that say why there are none."""
        # A request without samples gets one completion, of a sample number that does not exist.
        rows = [Row(request, sample, prompt or Prompt(())) for sample in request.samples or (-1,)]
        self.usage.requests += 1
        self.usage.samples += len(rows)
        self._ready.extend(row.failed(why, too_long=too_long) for row in rows)

    def completions(self) -> Iterator[Completion]:
        """Yields samples as they end, in no order, until nothing is outstanding.

        Raises `Preempted` between two rounds when the process was asked to stop, and `WorkError`
        where memory does not suffice.
        """
        while True:
            while self._ready:
                yield self._ready.popleft()
            preemption.poll()
            if not self._advance():
                return

    def release(self, id: str) -> None:
        """Forgets this request's prompt: no more of its samples will be asked for."""
        self._prefiller.release(id)

    def score(
        self, id: str, prompt: Prompt, completions: Sequence[Sequence[int]]
    ) -> list[tuple[float, ...]]:
        """Log-probability of every token of each completion after `prompt`.

        Raises `DoesNotFit` where the prompt or a completion is too long, or the prompt is empty, or
        a result is not finite; `WorkError` where memory does not suffice.
        """
        check_score(self._knobs, self._max_position, prompt.tokens, completions)
        with self._memory.explaining_out_of_memory():
            return self._score(id, prompt, completions)

    @property
    def waiting(self) -> int:
        """Number of samples that have no slot yet."""
        return sum(schedule.waiting for schedule in self._schedules.values())

    # -- how it is done -----------------------------------------------------------------------

    def _check(self, request: Request, prompt: Prompt) -> Shape:
        sampling = request.sampling
        shape = choose_shape(
            self._knobs, len(prompt.tokens), sampling.max_new_tokens, alone=request.alone
        )
        if len(prompt.tokens) + sampling.max_new_tokens > self._max_position:
            raise TooLong(
                f"{len(prompt.tokens)} prompt tokens and {sampling.max_new_tokens} new ones are "
                f"more than the model's {self._max_position} positions"
            )
        if not request.samples or min(request.samples) < 0:
            raise DoesNotFit(f"samples={list(request.samples)}: indices from 0 on are needed")
        return shape

    def _advance(self) -> bool:
        """Runs a round of the shape that runs, or of the next that has rows; False if none has."""
        if self._running is None or self._running.schedule.idle:
            shapes = [shape for shape, schedule in self._schedules.items() if not schedule.idle]
            if not shapes:
                return False
            if self._running is None or self._running.shape != shapes[0]:
                self._running = None  # its caches go before the next shape's are made
                schedule = self._schedules[shapes[0]]
                with self._memory.explaining_out_of_memory(shapes[0]):
                    self._running = _Running(shapes[0], schedule, self._programs)
        began = time.perf_counter()
        with self._memory.explaining_out_of_memory(self._running.shape):
            self._ready.extend(self._round(self._running))
        self.usage.seconds += time.perf_counter() - began
        return True

    def _prefill(self, prompt: Prompt, user: str) -> None:
        began = time.perf_counter()
        prefiller = self._prefiller
        computed, reused = prefiller.computed, prefiller.reused
        prefiller.run(prompt.tokens[:-1], user)
        jax.block_until_ready(prefiller.buffer)
        computed, reused = prefiller.computed - computed, prefiller.reused - reused
        self.usage.prompt_tokens += computed + reused
        self.usage.cached_prompt_tokens += reused
        self.usage.flops += self._flops_per_token * computed
        self.usage.prefill_seconds += time.perf_counter() - began

    def _score(
        self, id: str, prompt: Prompt, completions: Sequence[Sequence[int]]
    ) -> list[tuple[float, ...]]:
        began = time.perf_counter()
        self.usage.requests += 1
        self._prefill(prompt, id)
        out: list[tuple[float, ...]] = [()] * len(completions)
        for batch in batches(prompt.tokens[-1], completions, self._knobs.new_buckets[-1]):
            logprobs = np.asarray(
                self._programs.score(
                    self._prefiller.buffer, batch.tokens, batch.targets, len(prompt.tokens) - 1
                )
            )
            for row, index in enumerate(batch.indices):
                length = len(completions[index])
                out[index] = tuple(logprobs[row, :length].tolist())
                self.usage.flops += self._flops_per_token * length
        self.usage.seconds += time.perf_counter() - began
        if not all(math.isfinite(value) for values in out for value in values):
            raise DoesNotFit("the model's logits are not finite")
        return out

    def _round(self, running: _Running) -> list[Completion]:
        for placement in running.schedule.place():
            first = placement.rows[0][1]
            if placement.fill:
                self._prefill(first.prompt, first.request.id)
            running.start(placement, self._prefiller.buffer)
        tokens, logprobs = running.decode(self._eos_ids)

        drawn = tokens != NOTHING
        steps = int(np.sum(drawn.any(axis=(1, 2))))
        self.usage.slot_steps += steps * drawn[0].size
        self.usage.busy_slot_steps += int(drawn.sum())
        self.usage.new_tokens += int(drawn.sum())
        self.usage.flops += self._flops_per_token * int(drawn.sum())

        ended = []
        for group, slot, row in running.schedule.running():
            mine = tokens[drawn[:, group, slot], group, slot].tolist()
            if mine[-1] == NOT_FINITE:
                where = len(row.tokens) + len(mine) - 1
                completion: Completion | None = row.failed(
                    f"the model's logits are not finite at new token {where}"
                )
            else:
                scores = logprobs[drawn[:, group, slot], group, slot].tolist()
                completion = row.take(mine, scores, self._tokenizer)
            if completion is not None:
                ended.append(completion)
                running.end(group, slot)
            else:
                running.go_on(group, slot, row)
        return ended


class _Running:
    """The shape that runs: its caches on the device, and what the host knows of its slots."""

    def __init__(self, shape: Shape, schedule: SlotSchedule[Row], programs: Programs) -> None:
        self.shape = shape
        self.schedule = schedule
        schedule.forget()
        self._programs = programs
        self._prefix: Cache = programs.prefix(shape.groups, shape.prompt)
        self._pasts = programs.pasts(shape.groups, shape.rows, shape.new)
        self._blocks = programs.blocks(shape.new)
        self._control = empty_control(shape.groups, shape.rows)

    def start(self, placement: Placement[Row], buffer: Cache) -> None:
        """Gives the group its prompt, which `buffer` holds, if it needs it, and starts the rows."""
        control, group = self._control, placement.group
        if placement.fill:
            length = len(placement.rows[0][1].prompt.tokens) - 1
            self._prefix = self._programs.fill(
                prefix=self._prefix,
                buffer=buffer,
                group=np.int32(group),
                length=np.int32(length),
            )
            control.prefix_length[group] = length
        for slot, row in placement.rows:
            at, sampling = (group, slot), row.request.sampling
            control.token[at] = row.prompt.tokens[-1]
            control.filled[at] = 0
            control.active[at] = True
            control.budget[at] = sampling.max_new_tokens
            control.temperature[at] = sampling.temperature
            control.top_k[at] = sampling.top_k
            control.top_p[at] = sampling.top_p
            control.min_p[at] = sampling.min_p
            control.stop_at_eos[at] = not sampling.ignore_eos
            control.seed[at] = split64(row.request.key)
            control.row_id[at] = hash_id(row.request.id)
            control.sample[at] = row.sample

    def decode(self, eos_ids: Array) -> tuple[Array, Array]:
        """A round: tokens and log-probabilities [steps,G,N], as `Programs.decode` gives them."""
        control = self._control
        furthest = np.minimum(control.filled + self._programs.steps, control.budget)
        blocks = blocks_read(int(furthest[control.active].max()), self._blocks)
        self._pasts[:blocks], tokens, logprobs = self._programs.decode(
            self._prefix, self._pasts[:blocks], control, eos_ids
        )
        return np.asarray(tokens), np.asarray(logprobs)

    def go_on(self, group: int, slot: int, row: Row) -> None:
        """Lets the row run on from its last token."""
        self._control.token[group, slot] = row.tokens[-1]
        self._control.filled[group, slot] = len(row.tokens)

    def end(self, group: int, slot: int) -> None:
        """Frees the slot."""
        self._control.active[group, slot] = False
        self.schedule.finish(group, slot)


def blocks_read(tokens: int, sizes: Sequence[int]) -> int:
    """How many blocks of these sizes are read where the longest row has `tokens` new tokens.

    It is a power of two, or all. A shape has one program for each number, compiled when a row first
    needs it."""
    needed = -(-tokens // sizes[0])
    return min(1 << (needed - 1).bit_length(), len(sizes))


def layers_as_list() -> bool:
    """Whether the layers run as a Python loop over arrays of their own.

    A compiled loop over stacked layers is small and quick to compile. But on CPU and GPU it copies
    each layer's weights and caches before it uses them, which makes a step 2 to 3 times as long.
    """
    return jax.default_backend() in ("cpu", "gpu")
