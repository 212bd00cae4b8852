"""A whole small GGUF file, model and tokenizer: every tensor is filled with a number of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType

MARKS = ["<|im_start|>", "<|im_end|>"]
TOKENS = [*MARKS, *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", "ab", "cd"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, INNER, HEADS, HEAD = 8, 16, 2, 4
SHAPES = {
    "token_embd.weight": (len(TOKENS), WIDTH),
    "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (HEADS * HEAD, WIDTH),
    "blk.0.attn_k.weight": (HEADS * HEAD, WIDTH),
    "blk.0.attn_v.weight": (HEADS * HEAD, WIDTH),
    "blk.0.attn_output.weight": (WIDTH, HEADS * HEAD),
    "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.ffn_gate.weight": (INNER, WIDTH),
    "blk.0.ffn_up.weight": (INNER, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, INNER),
}
NUMBERS = {name: float(place + 1) for place, name in enumerate(SHAPES)}


def write(
    path: Path, *, tokens: list[str] = TOKENS, template: str = TEMPLATE, split: int = 0
) -> Path:
    """Writes the file; with `split` as parts of so many tensors."""
    writer = GGUFWriter(path, "llama", split_max_tensors=split)
    sizes: dict[str, Any] = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "rope.dimension_count": HEAD,
        "vocab_size": len(TOKENS),
    }
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control = (text.startswith("<|") for text in tokens)
    writer.add_token_types([TokenType.CONTROL if each else TokenType.NORMAL for each in control])
    writer.add_token_merges(["a b", "c d"])
    writer.add_eos_token_id(1)
    writer.add_chat_template(template)
    for name, shape in SHAPES.items():
        writer.add_tensor(name, np.full(shape, NUMBERS[name], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
