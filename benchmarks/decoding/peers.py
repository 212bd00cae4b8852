"""How fast are the engines that a user would otherwise pick?

Each is given the same float32 weights and the same token ids, computes in float32, and is run in
several ways of which the fastest counts. Its package is imported only when it is asked for.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoding.work import Timed, Workload

Way = Callable[[Workload], list[list[list[int]]]]
"""Does the work in one way: the new tokens of each prompt's samples."""
_PIECE = 2048
"""Tokens of a prompt that llama.cpp computes at once."""


def fastest(name: str, ways: dict[str, Way], work: Workload) -> Timed:
    """The work in the way that was the fastest in a trial, which is the warm-up too: a quarter of
    the new tokens, and of more than 8 prompts a quarter."""
    some = work.prompts[: max(8, len(work.prompts) // 4)]
    trial = dataclasses.replace(work, prompts=some, new_tokens=max(1, work.new_tokens // 4))
    tried: dict[str, float] = {}
    for way_name, way in ways.items():
        try:
            tried[way_name] = _timed(name, way, trial).speed
        except RuntimeError as error:  # out of memory, or a way that this version has not
            print(f"{name}, {way_name}: {str(error).splitlines()[0]}", file=sys.stderr)
    best = max(tried, key=lambda way_name: tried[way_name])
    timed = _timed(name, ways[best], work)
    timed.details = {"way": best, "tokens/s in the trial": tried}
    return timed


def _timed(name: str, way: Way, work: Workload) -> Timed:
    began = time.perf_counter()
    ids = way(work)
    seconds = time.perf_counter() - began
    count = sum(len(sample) for of_prompt in ids for sample in of_prompt)
    return Timed(name=name, seconds=seconds, new_tokens=count, ids=ids)


# -- transformers ---------------------------------------------------------------------------------


def run_transformers(directory: Path, work: Workload) -> Timed:
    """`generate` with its caches, and with each prompt's cache computed once and copied."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return time_transformers(model, work)


def time_transformers(model: Any, work: Workload) -> Timed:
    """The work by a model of `transformers` that is loaded."""
    # Without a set of its own, `generate` goes by the model's.
    model.generation_config.eos_token_id = list(work.eos_ids) or None
    peer = _Transformers(model)
    ways: dict[str, Way] = {
        "prompt by prompt": peer.prompt_by_prompt,
        "all prompts together": peer.together,
        "prefix reused": peer.prefix_reused,
    }
    if model.device.type == "cpu":
        ways["static cache"] = peer.static_cache
    return fastest("transformers", ways, work)


class _Transformers:
    """The ways to `generate` with a model."""

    def __init__(self, model: Any) -> None:
        self._model, self._device = model, model.device

    def _generate(self, ids: Any, mask: Any, work: Workload, **more: Any) -> list[list[int]]:
        """The new tokens of `ids`."""
        import torch

        with torch.no_grad():
            rows = self._model.generate(
                ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=work.new_tokens,
                do_sample=work.temperature > 0,
                temperature=work.temperature or None,
                top_p=work.top_p if work.temperature else None,
                top_k=None,
                pad_token_id=0,
                eos_token_id=list(work.eos_ids) or None,
                **more,
            )
        return [_until(row[ids.shape[1] :].tolist(), work.eos_ids) for row in rows]

    def prompt_by_prompt(self, work: Workload, **more: Any) -> list[list[list[int]]]:
        """The samples of one prompt at once."""
        import torch

        found = []
        for prompt in work.prompts:
            ids = torch.tensor([prompt])
            mask = torch.ones_like(ids)
            found.append(self._generate(ids, mask, work, num_return_sequences=work.samples, **more))
        return found

    def static_cache(self, work: Workload) -> list[list[list[int]]]:
        """The samples of one prompt at once, in a cache of one size."""
        return self.prompt_by_prompt(work, cache_implementation="static")

    def together(self, work: Workload) -> list[list[list[int]]]:
        """All prompts in one batch, padded on the left."""
        import torch

        longest = work.longest
        ids = torch.zeros(len(work.prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(work.prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        tokens = self._generate(ids, mask, work, num_return_sequences=work.samples)
        return [tokens[i : i + work.samples] for i in range(0, len(tokens), work.samples)]

    def prefix_reused(self, work: Workload) -> list[list[list[int]]]:
        """The prompt's cache computed once, and repeated for its samples."""
        import torch
        from transformers import DynamicCache

        found = []
        for prompt in work.prompts:
            ids = torch.tensor([prompt], device=self._device)
            cache = DynamicCache(config=self._model.config)
            with torch.no_grad():
                self._model(ids[:, :-1], past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(work.samples)
            ids = ids.expand(work.samples, -1)
            mask = torch.ones_like(ids)
            found.append(self._generate(ids, mask, work, past_key_values=cache))
        return found


# -- llama.cpp ------------------------------------------------------------------------------------


def write_gguf(directory: Path, file: Path) -> None:
    """The float32 weights of a Llama's Hugging Face directory as llama.cpp reads them."""
    import gguf

    from ste_jax.model_io.load_weights import open_weights

    config = open_weights(directory).config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.kinds[0].rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")  # the engines are given ids
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    for name, tensor in _tensors(directory):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp turns neighbours where the reference turns halves.
            halves = tensor.reshape(-1, 2, config.head_dim // 2, tensor.shape[1])
            tensor = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(directory: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    from safetensors.numpy import load_file

    for file in sorted(directory.glob("*.safetensors")):
        yield from load_file(file).items()


def run_llamacpp(file: Path, work: Workload) -> Timed:
    """llama.cpp through its C interface: each prompt computed once, its cells shared by the
    samples, and all running samples in one batch per step."""
    peer = _LlamaCpp(file)
    many = max(1, 64 // work.samples)
    # Greedy tokens are compared with ours, which are of float32 throughout.
    halves = (False, True) if work.temperature else (False,)
    ways = {
        f"{at_once} prompts at once, cells {'shared' if unified else 'copied'}, "
        f"cache in {'float16' if half else 'float32'}": peer.way(at_once, unified, half)
        for at_once in sorted({1, many})
        for unified in (True, False)
        for half in halves
    }
    return fastest("llama.cpp", ways, work)


class _LlamaCpp:
    """A model of llama.cpp, and the ways to draw from it."""

    def __init__(self, file: Path) -> None:
        import llama_cpp as lib

        self._lib = lib
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(
            str(file).encode(), lib.llama_model_default_params()
        )

    def way(self, at_once: int, unified: bool, half: bool) -> Way:
        """So many prompts at once; cells of one store or of one each; a cache in half precision."""

        def drawn(work: Workload) -> list[list[list[int]]]:
            return [
                of_prompt
                for start in range(0, len(work.prompts), at_once)
                for of_prompt in self._draw(
                    work, work.prompts[start : start + at_once], unified, half
                )
            ]

        return drawn

    def _draw(
        self, work: Workload, prompts: Sequence[Sequence[int]], unified: bool, half: bool
    ) -> list[list[list[int]]]:
        """All samples of some prompts at once."""
        sequences = len(prompts) * work.samples
        context = self._context(work, prompts, unified, half)
        chains = [self._sampler(work, index) for index in range(sequences)]
        tokens: list[list[int]] = [[] for _ in range(sequences)]
        for index, prompt in enumerate(prompts):
            self._prefill(context, prompt, range(index * work.samples, (index + 1) * work.samples))
        last = {row: prompts[row // work.samples][-1] for row in range(sequences)}
        places = {row: len(prompts[row // work.samples]) - 1 for row in last}
        while last:
            running = sorted(last)
            self._decode(context, [(last[row], places[row], row, True) for row in running])
            for index, row in enumerate(running):
                token = self._lib.llama_sampler_sample(chains[row], context, index)
                tokens[row].append(token)
                last[row] = token
                places[row] += 1
                if len(tokens[row]) == work.new_tokens or token in work.eos_ids:
                    del last[row]
        for chain in chains:
            self._lib.llama_sampler_free(chain)
        self._lib.llama_free(context)
        return [tokens[i : i + work.samples] for i in range(0, sequences, work.samples)]

    def _context(
        self, work: Workload, prompts: Sequence[Sequence[int]], unified: bool, half: bool
    ) -> Any:
        """Room for all samples of some prompts."""
        sequences = len(prompts) * work.samples
        if unified:
            cells = sum(map(len, prompts)) + sequences * work.new_tokens
        else:
            cells = sequences * (max(map(len, prompts)) + work.new_tokens + 32)
        settings = self._lib.llama_context_default_params()
        settings.n_ctx = cells + 256
        settings.n_seq_max, settings.kv_unified = sequences, unified
        settings.n_batch, settings.n_ubatch = _PIECE, 512
        settings.n_threads = settings.n_threads_batch = len(os.sched_getaffinity(0))
        settings.type_k = settings.type_v = 1 if half else 0  # float16, float32
        settings.flash_attn_type = 1 if half else 0
        return self._lib.llama_init_from_model(self._model, settings)

    def _sampler(self, work: Workload, seed: int) -> Any:
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if work.temperature:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(work.top_p, 1))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(work.temperature))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
        else:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        return chain

    def _prefill(self, context: Any, prompt: Sequence[int], sequences: range) -> None:
        """A prompt but for its last token, computed once and shared by its sequences."""
        first = sequences[0]
        for start in range(0, len(prompt) - 1, _PIECE):
            piece = prompt[start : min(start + _PIECE, len(prompt) - 1)]
            self._decode(context, [(t, start + i, first, False) for i, t in enumerate(piece)])
        memory = self._lib.llama_get_memory(context)
        for other in sequences[1:]:
            self._lib.llama_memory_seq_cp(memory, first, other, -1, -1)

    def _decode(self, context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, place, sequence, whether its logits are wanted)."""
        batch = self._lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for index, (token, place, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = wanted
        if self._lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        self._lib.llama_batch_free(batch)


# -- OpenVINO GenAI -------------------------------------------------------------------------------


def write_openvino(directory: Path, out: Path) -> None:
    """The float32 weights as OpenVINO reads them, by the command line of `optimum-intel`."""
    command = shutil.which("optimum-cli")
    if command is None:
        raise SystemExit(
            "optimum-cli is not on the PATH: `pip install 'optimum-intel[openvino]'`, in an "
            "environment of its own, since it needs an older transformers"
        )
    words = ["--task", "text-generation-with-past", "--weight-format", "fp32"]
    subprocess.run(
        [command, "export", "openvino", "--model", str(directory), *words, str(out)], check=True
    )


def run_openvino(directory: Path, work: Workload) -> Timed:
    """Its continuous batching over paged attention, with the prompts' blocks shared."""
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 4
    scheduler.enable_prefix_caching = False
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 2048
    pipeline = genai.ContinuousBatchingPipeline(
        str(directory),
        scheduler,
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    )

    def draw(work: Workload) -> list[list[list[int]]]:
        settings = genai.GenerationConfig()
        settings.max_new_tokens = work.new_tokens
        settings.ignore_eos = not work.eos_ids
        settings.stop_token_ids = set(work.eos_ids)
        settings.do_sample = work.temperature > 0
        if work.temperature:
            settings.temperature, settings.top_p = work.temperature, work.top_p
            settings.top_k = 2**31 - 1
            settings.num_return_sequences = work.samples
        inputs = [ov.Tensor(np.asarray([prompt], np.int64)) for prompt in work.prompts]
        found = pipeline.generate(inputs, [settings] * len(inputs))
        return [[list(ids) for ids in one.m_generation_ids] for one in found]

    return fastest("OpenVINO GenAI", {"continuous batching": draw}, work)


def _until(tokens: list[int], eos_ids: tuple[int, ...]) -> list[int]:
    """`tokens` up to the first end, itself among them."""
    for index, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[: index + 1]
    return tokens
