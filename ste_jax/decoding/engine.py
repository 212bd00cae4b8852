"""How are many samples of many prompts drawn on fixed shapes, and kept the same whatever runs
beside?

The engine is the host's loop. Each turn it places waiting rows into the free slots of a lane
(`scheduler`), computes the prompts that these need (`prefill`), runs a round of decoding steps on
the device (`programs`), and takes the tokens (`rows`). The last token of a prompt is not prefilled:
every row feeds it as its own first step, which yields the row's first token.

A lane is run until it has nothing left; then the next one that has. No result depends on that
order.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.config.shape_check import check_knobs
from ste_jax.decoding.caches import Cache
from ste_jax.decoding.memory import Memory
from ste_jax.decoding.prefill import Prefiller
from ste_jax.decoding.programs import NOT_FINITE, NOTHING, Control, Programs
from ste_jax.decoding.rows import Prompt, Row, TextDecoder, hash_id, split64
from ste_jax.decoding.scheduler import LaneSchedule, Placement
from ste_jax.decoding.scoring import batches, check_score
from ste_jax.decoding.shapes import Lane, NoLane, TooLong, choose_lane
from ste_jax.generation import Completion, Request, Sampling, Usage
from ste_jax.models.decoder import Decoder
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import preemption

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Progress:
    """How far the engine is: what a progress bar shows."""

    samples_done: int
    samples_submitted: int
    tokens_per_second: float
    """New tokens per second of the engine's own time, prefill included."""
    slot_occupancy: float
    """Share of the decoding slots' steps that drew a token."""
    prefill_share: float
    """Share of the engine's time that went into prompts."""
    seconds_left: float
    """At the pace so far; infinity before the first sample has ended."""


class Engine:
    """Draws and scores completions of token prompts with one model."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: TextDecoder,
        knobs: DecodingKnobs,
        mesh: Mesh | None = None,
    ) -> None:
        check_knobs(knobs)
        self._knobs = knobs
        self._tokenizer = tokenizer
        self._eos_ids = np.asarray(tokenizer.eos_ids, np.int32)
        self._max_position = model.config.max_position
        self._flops_per_token = model.config.flops_per_token
        mesh = mesh or make_mesh(MeshKnobs(), jax.local_devices()[:1])
        self._memory = Memory(model.config, knobs, mesh.size)
        with self._memory.told():
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
        self._schedules: dict[Lane, LaneSchedule[Row]] = {}
        self._state: _LaneState | None = None
        self._ready: deque[Completion] = deque()
        self.usage = Usage()
        self._done = 0

    # -- what is asked ------------------------------------------------------------------------

    def submit(self, request: Request, prompt: Prompt) -> None:
        """Queues the request's samples. One that cannot be drawn is a completion that says why."""
        try:
            lane = self._check(request, prompt)
        except NoLane as error:
            self.refuse(request, str(error), prompt, too_long=isinstance(error, TooLong))
            return
        rows = [Row(request, sample, prompt) for sample in request.samples]
        self.usage.requests += 1
        self.usage.samples += len(rows)
        if lane not in self._schedules:
            self._schedules[lane] = LaneSchedule(lane.groups, lane.rows)
        name = prompt.name
        for row in rows:
            self._schedules[lane].add(name, row)

    def refuse(
        self, request: Request, why: str, prompt: Prompt | None = None, *, too_long: bool = False
    ) -> None:
        """Answers the request's samples with completions that say why there are none."""
        # One without samples is told as a sample that there is not.
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
                self._done += 1
                yield self._ready.popleft()
            preemption.poll()
            if not self._turn():
                return

    def release(self, id: str) -> None:
        """Nothing more will be asked of this request's prompt."""
        self._prefiller.release(id)

    def score(
        self, id: str, prompt: Prompt, completions: Sequence[Sequence[int]]
    ) -> list[tuple[float, ...]]:
        """Log-probability of every token of each completion after `prompt`.

        Raises `NoLane` where the prompt or a completion is too long, or the prompt is empty, or a
        result is not finite; `WorkError` where memory does not suffice.
        """
        check_score(self._knobs, self._max_position, prompt.tokens, completions)
        with self._memory.told():
            return self._score(id, prompt, completions)

    @property
    def waiting(self) -> int:
        """Number of samples that have no slot yet."""
        return sum(schedule.waiting for schedule in self._schedules.values())

    @property
    def progress(self) -> Progress:
        """Where the engine stands now."""
        usage = self.usage
        seconds = max(usage.seconds, 1e-9)
        left = usage.samples - self._done
        return Progress(
            samples_done=self._done,
            samples_submitted=usage.samples,
            tokens_per_second=usage.new_tokens / seconds,
            slot_occupancy=usage.busy_slot_steps / max(usage.slot_steps, 1),
            prefill_share=usage.prefill_seconds / seconds,
            seconds_left=left * usage.seconds / self._done if self._done else math.inf,
        )

    # -- how it is done -----------------------------------------------------------------------

    def _check(self, request: Request, prompt: Prompt) -> Lane:
        sampling = request.sampling
        lane = choose_lane(
            self._knobs, len(prompt.tokens), sampling.max_new_tokens, alone=request.alone
        )
        if len(prompt.tokens) + sampling.max_new_tokens > self._max_position:
            raise TooLong(
                f"{len(prompt.tokens)} prompt tokens and {sampling.max_new_tokens} new ones are "
                f"more than the model's {self._max_position} positions"
            )
        if not request.samples or min(request.samples) < 0:
            raise NoLane(f"samples={list(request.samples)}: indices from 0 on are needed")
        why = _check_sampling(sampling)
        if why:
            raise NoLane(why)
        return lane

    def _turn(self) -> bool:
        """Runs a round of the lane in hand, or of the next that has rows; False if none has."""
        if self._state is None or self._state.schedule.idle:
            lanes = [lane for lane, schedule in self._schedules.items() if not schedule.idle]
            if not lanes:
                return False
            if self._state is None or self._state.lane != lanes[0]:
                self._state = None  # its caches go before the next lane's are made
                schedule = self._schedules[lanes[0]]
                with self._memory.told(lanes[0]):
                    self._state = _LaneState(lanes[0], schedule, self._programs)
        began = time.perf_counter()
        with self._memory.told(self._state.lane):
            self._ready.extend(self._round(self._state))
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
            raise NoLane("the model's logits are not finite")
        return out

    def _round(self, state: _LaneState) -> list[Completion]:
        for placement in state.schedule.place():
            first = placement.rows[0][1]
            if placement.fill:
                self._prefill(first.prompt, first.request.id)
            state.start(placement, self._prefiller.buffer)
        tokens, logprobs = state.decode(self._eos_ids)

        drawn = tokens != NOTHING
        steps = int(np.sum(drawn.any(axis=(1, 2))))
        self.usage.slot_steps += steps * drawn[0].size
        self.usage.busy_slot_steps += int(drawn.sum())
        self.usage.new_tokens += int(drawn.sum())
        self.usage.flops += self._flops_per_token * int(drawn.sum())

        ended = []
        for group, slot, row in state.schedule.running():
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
                state.end(group, slot)
            else:
                state.go_on(group, slot, row)
        return ended


class _LaneState:
    """The caches of a lane on the device, and what the host knows of its slots."""

    def __init__(self, lane: Lane, schedule: LaneSchedule[Row], programs: Programs) -> None:
        self.lane = lane
        self.schedule = schedule
        schedule.forget()
        self._programs = programs
        self._prefix: Cache = programs.prefix(lane.groups, lane.prompt)
        self._pasts = programs.pasts(lane.groups, lane.rows, lane.new)
        self._blocks = programs.blocks(lane.new)
        self._control = empty_control(lane.groups, lane.rows)

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
        """The row runs on from its last token."""
        self._control.token[group, slot] = row.tokens[-1]
        self._control.filled[group, slot] = len(row.tokens)

    def end(self, group: int, slot: int) -> None:
        """The slot is free."""
        self._control.active[group, slot] = False
        self.schedule.finish(group, slot)


def blocks_read(tokens: int, sizes: Sequence[int]) -> int:
    """How many blocks of these sizes are read where rows come to `tokens` new ones: a power of two,
    or all. A lane has one program for each, compiled when a row first comes there."""
    needed = -(-tokens // sizes[0])
    return min(1 << (needed - 1).bit_length(), len(sizes))


def layers_as_list() -> bool:
    """Whether the layers run as a Python loop over arrays of their own.

    A compiled loop over stacked layers is small and quick to compile. But on CPU and GPU it copies
    each layer's weights and caches before it uses them, which makes a step 2 to 3 times as long.
    """
    return jax.default_backend() in ("cpu", "gpu")


def empty_control(groups: int, rows: int) -> Control:
    """A lane in which nothing runs."""
    return Control(
        token=np.zeros((groups, rows), np.int32),
        filled=np.zeros((groups, rows), np.int32),
        active=np.zeros((groups, rows), np.bool_),
        budget=np.zeros((groups, rows), np.int32),
        prefix_length=np.zeros(groups, np.int32),
        temperature=np.zeros((groups, rows), np.float32),
        top_k=np.zeros((groups, rows), np.int32),
        top_p=np.ones((groups, rows), np.float32),
        min_p=np.zeros((groups, rows), np.float32),
        stop_at_eos=np.zeros((groups, rows), np.bool_),
        seed=np.zeros((groups, rows, 2), np.uint32),
        row_id=np.zeros((groups, rows, 2), np.uint32),
        sample=np.zeros((groups, rows), np.int32),
    )


def _check_sampling(sampling: Sampling) -> str:
    if not 0.0 <= sampling.temperature < math.inf:
        return f"temperature={sampling.temperature}: a number from 0 up is needed"
    if not 0.0 < sampling.top_p <= 1.0:
        return f"top_p={sampling.top_p}: a share above 0, at most 1, is needed"
    if sampling.top_k < 0:
        return f"top_k={sampling.top_k}: a number from 0 up is needed"
    if not 0.0 <= sampling.min_p <= 1.0:
        return f"min_p={sampling.min_p}: a share from 0 to 1 is needed"
    return ""
