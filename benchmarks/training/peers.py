"""How fast does torch with transformers train the same?"""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np

from benchmarks.training.work import Training


def peak_bytes(device: Any) -> int:
    """The most memory that was in use: of a GPU as torch counts it, else of the process."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(work: Training, way: str, accumulate: int) -> dict[str, Any]:
    """Tokens per second of the steps after the first, eager, with AdamW fused.

    A step is taken in `accumulate` micro-batches. `own`: the loss that `transformers` computes of
    masked labels; `tail`: logits of the second half of a row alone, all that the loss needs.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = _model(work).to(device, getattr(torch, work.dtype))
    model.train()
    if work.remat == "layer":
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    examples = work.examples()
    seconds, losses = [], []
    for step in range(work.steps):
        batch = examples[step * work.rows : (step + 1) * work.rows]
        ids = np.array([[*one.prompt_ids, *one.completion_ids] for one in batch])
        began = time.perf_counter()
        total = 0.0
        for part in np.split(ids, accumulate):
            loss = _loss(model, torch.tensor(part, device=device), way)
            (loss / accumulate).backward()
            total += float(loss.detach()) / accumulate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(total)
    timed = seconds[1:]
    return {
        "name": f"torch and transformers, {way}",
        "micro-batches": accumulate,
        "tokens/s": work.tokens * len(timed) / sum(timed),
        "seconds of the steps": timed,
        "losses": losses,
        "peak bytes": peak_bytes(device),
    }


def _model(work: Training) -> Any:
    """A Llama of the sizes that are trained, with weights drawn anew."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = work.config
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=max(config.max_position, work.length),
            tie_word_embeddings=config.tie_embeddings,
            use_cache=False,
        )
    )


def _loss(model: Any, tokens: Any, way: str) -> Any:
    """The mean loss of the second half of each row."""
    import torch

    half = tokens.shape[1] // 2
    if way == "own":
        labels = tokens.clone()
        labels[:, :half] = -100
        return model(input_ids=tokens, labels=labels).loss
    logits = model(input_ids=tokens, logits_to_keep=half + 1).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), tokens[:, half:].reshape(-1)
    )
