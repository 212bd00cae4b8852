"""Under which names, and how laid out, do files keep our parameters?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Where one of our parameters is found in a file.

    `hf` and `gguf` are tensor names, `{layer}` and `{expert}` standing for their numbers; a name
    without `{expert}` is of a tensor that holds all experts. `layout` says how the file has the
    dimensions of one of these, in our logical axes: `(q_heads head_dim) embed` is a matrix whose
    rows are the heads one after another.
    """

    name: str
    hf: str
    gguf: str
    layout: str


IGNORED = ("rotary_emb.inv_freq", "rope_freqs.weight")
"""Ends of names of tensors that the computation does not need: old files hold the rotary
frequencies, which the config gives; llama.cpp's factors are read as part of the config."""


def _outer(name: str, hf: str, gguf: str, layout: str) -> Weight:
    return Weight(name=name, hf=f"{hf}.weight", gguf=f"{gguf}.weight", layout=layout)


def inner(name: str, hf: str, gguf: str, layout: str, kind: str = "weight") -> Weight:
    """A parameter of every layer; `hf` and `gguf` are its tensors' names within a layer."""
    return Weight(
        name=name,
        hf=f"model.layers.{{layer}}.{hf}.{kind}",
        gguf=f"blk.{{layer}}.{gguf}.{kind}",
        layout=layout,
    )


def _matrix(name: str, hf: str, gguf: str, layout: str) -> tuple[Weight, Weight]:
    """A matrix and its bias, which has the axes of the file's first dimension."""
    outputs = layout[: layout.index(")") + 1] if layout.startswith("(") else layout.split()[0]
    return (
        inner(name, hf, gguf, layout),
        inner(f"{name}_bias", hf, gguf, outputs, "bias"),
    )


OUTSIDE = (
    _outer("embed", "model.embed_tokens", "token_embd", "vocab embed"),
    _outer("final_norm", "model.norm", "output_norm", "embed"),
    _outer("unembed", "lm_head", "output", "vocab embed"),
)
ATTENTION = (
    inner("attention_norm", "input_layernorm", "attn_norm", "embed"),
    *_matrix("q", "self_attn.q_proj", "attn_q", "(q_heads head_dim) embed"),
    *_matrix("k", "self_attn.k_proj", "attn_k", "(kv_heads head_dim) embed"),
    *_matrix("v", "self_attn.v_proj", "attn_v", "(kv_heads head_dim) embed"),
    *_matrix("o", "self_attn.o_proj", "attn_output", "embed (q_heads head_dim)"),
    inner("q_norm", "self_attn.q_norm", "attn_q_norm", "head_dim"),
    inner("k_norm", "self_attn.k_norm", "attn_k_norm", "head_dim"),
)
_MLP_NORM = (inner("mlp_norm", "post_attention_layernorm", "ffn_norm", "embed"),)
MLP = (
    *_matrix("gate", "mlp.gate_proj", "ffn_gate", "mlp embed"),
    *_matrix("up", "mlp.up_proj", "ffn_up", "mlp embed"),
    *_matrix("down", "mlp.down_proj", "ffn_down", "embed mlp"),
)


def mixture(home: str, gate: str, up: str, down: str) -> tuple[Weight, ...]:
    """The experts' matrices under the HF name `home`; `gate`, `up` and `down` are the names that
    the family has for them."""
    return (
        inner("router", f"{home}.gate", "ffn_gate_inp", "experts embed"),
        inner("expert_gate", f"{home}.experts.{{expert}}.{gate}", "ffn_gate_exps", "mlp embed"),
        inner("expert_up", f"{home}.experts.{{expert}}.{up}", "ffn_up_exps", "mlp embed"),
        inner("expert_down", f"{home}.experts.{{expert}}.{down}", "ffn_down_exps", "embed mlp"),
    )


BEFORE_MLP = (*OUTSIDE, *ATTENTION, *_MLP_NORM)
"""All weights but the MLPs' of a family with one norm before attention and one before the MLP."""
DENSE = (*BEFORE_MLP, *MLP)
"""What most families without experts have."""
