"""Which model families are known, and under which names do their files keep our parameters?

A family is a mapping of configs (`hf_config.py`, `gguf.py`) and a table of weight names; the
computation is one (`decoder.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ste_jax.errors import RequestError
from ste_jax.model_io import hf_config
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import ModelConfig


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


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular to a family."""

    config_from_hf: Callable[[Fields], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    weights: tuple[Weight, ...]
    root: str = ""
    """What stands before all HF names."""
    foreign: tuple[str, ...] = ()
    """Beginnings of names of tensors that are of another part of a larger model."""

    def read_config(self, values: Mapping[str, Any], where: str) -> ModelConfig:
        """Our config of the contents of a `config.json` at `where`.

        Raises `RequestError` for a field that is missing, wrong, or not known here and on.
        """
        fields = Fields(values, where)
        try:
            config = self.config_from_hf(fields)
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise RequestError(f"{where}: {error}") from error
        fields.finish()
        return config


IGNORED = ("rotary_emb.inv_freq", "rope_freqs.weight")
"""Ends of names of tensors that the computation does not need: old files hold the rotary
frequencies, which the config gives; llama.cpp's factors are read as part of the config."""


def _outer(name: str, hf: str, gguf: str, layout: str) -> Weight:
    return Weight(name=name, hf=f"{hf}.weight", gguf=f"{gguf}.weight", layout=layout)


def _inner(name: str, hf: str, gguf: str, layout: str, kind: str = "weight") -> Weight:
    return Weight(
        name=name,
        hf=f"model.layers.{{layer}}.{hf}.{kind}",
        gguf=f"blk.{{layer}}.{gguf}.{kind}",
        layout=layout,
    )


def _matrix(name: str, hf: str, gguf: str, layout: str) -> tuple[Weight, Weight]:
    """A matrix and its bias, which is of the file's first dimension."""
    outputs = layout[: layout.index(")") + 1] if layout.startswith("(") else layout.split()[0]
    return (
        _inner(name, hf, gguf, layout),
        _inner(f"{name}_bias", hf, gguf, outputs, "bias"),
    )


_OUTSIDE = (
    _outer("embed", "model.embed_tokens", "token_embd", "vocab embed"),
    _outer("final_norm", "model.norm", "output_norm", "embed"),
    _outer("unembed", "lm_head", "output", "vocab embed"),
)
_ATTENTION = (
    _inner("attention_norm", "input_layernorm", "attn_norm", "embed"),
    *_matrix("q", "self_attn.q_proj", "attn_q", "(q_heads head_dim) embed"),
    *_matrix("k", "self_attn.k_proj", "attn_k", "(kv_heads head_dim) embed"),
    *_matrix("v", "self_attn.v_proj", "attn_v", "(kv_heads head_dim) embed"),
    *_matrix("o", "self_attn.o_proj", "attn_output", "embed (q_heads head_dim)"),
    _inner("q_norm", "self_attn.q_norm", "attn_q_norm", "head_dim"),
    _inner("k_norm", "self_attn.k_norm", "attn_k_norm", "head_dim"),
)
_MLP_NORM = (_inner("mlp_norm", "post_attention_layernorm", "ffn_norm", "embed"),)
_MLP = (
    *_matrix("gate", "mlp.gate_proj", "ffn_gate", "mlp embed"),
    *_matrix("up", "mlp.up_proj", "ffn_up", "mlp embed"),
    *_matrix("down", "mlp.down_proj", "ffn_down", "embed mlp"),
)
_GEMMA_NORMS = (
    _inner("attention_post_norm", "post_attention_layernorm", "post_attention_norm", "embed"),
    _inner("mlp_norm", "pre_feedforward_layernorm", "ffn_norm", "embed"),
    _inner("mlp_post_norm", "post_feedforward_layernorm", "post_ffw_norm", "embed"),
)


def _mixture(home: str, gate: str, up: str, down: str) -> tuple[Weight, ...]:
    """The experts at `home`, by what the family calls an expert's matrices."""
    return (
        _inner("router", f"{home}.gate", "ffn_gate_inp", "experts embed"),
        _inner("expert_gate", f"{home}.experts.{{expert}}.{gate}", "ffn_gate_exps", "mlp embed"),
        _inner("expert_up", f"{home}.experts.{{expert}}.{up}", "ffn_up_exps", "mlp embed"),
        _inner("expert_down", f"{home}.experts.{{expert}}.{down}", "ffn_down_exps", "embed mlp"),
    )


_DENSE = (*_OUTSIDE, *_ATTENTION, *_MLP_NORM, *_MLP)
_MIXTRAL = (
    *_OUTSIDE,
    *_ATTENTION,
    *_MLP_NORM,
    *_mixture("block_sparse_moe", "w1", "w3", "w2"),
)
_QWEN_MOE = (
    *_OUTSIDE,
    *_ATTENTION,
    *_MLP_NORM,
    *_mixture("mlp", "gate_proj", "up_proj", "down_proj"),
)
_GEMMA = (*_OUTSIDE, *_ATTENTION, *_GEMMA_NORMS, *_MLP)

FAMILIES: dict[str, Family] = {
    "llama": Family(
        config_from_hf=hf_config.llama_from_hf,
        config_to_hf=hf_config.llama_to_hf,
        weights=_DENSE,
    ),
    "mistral": Family(
        config_from_hf=hf_config.mistral_from_hf,
        config_to_hf=hf_config.mistral_to_hf,
        weights=_DENSE,
    ),
    "qwen2": Family(
        config_from_hf=hf_config.qwen2_from_hf,
        config_to_hf=hf_config.qwen2_to_hf,
        weights=_DENSE,
    ),
    "qwen3": Family(
        config_from_hf=hf_config.qwen3_from_hf,
        config_to_hf=hf_config.qwen3_to_hf,
        weights=_DENSE,
    ),
    "gemma2": Family(
        config_from_hf=hf_config.gemma2_from_hf,
        config_to_hf=hf_config.gemma2_to_hf,
        weights=_GEMMA,
    ),
    "gemma3_text": Family(
        config_from_hf=hf_config.gemma3_from_hf,
        config_to_hf=hf_config.gemma3_to_hf,
        weights=_GEMMA,
    ),
    # The text model of a Gemma 3 that sees; what is read of it is a `gemma3_text`.
    "gemma3": Family(
        config_from_hf=hf_config.text_of_gemma3_from_hf,
        config_to_hf=hf_config.gemma3_to_hf,
        weights=_GEMMA,
        root="language_model.",
        foreign=("vision_tower.", "multi_modal_projector."),
    ),
    "mixtral": Family(
        config_from_hf=hf_config.mixtral_from_hf,
        config_to_hf=hf_config.mixtral_to_hf,
        weights=_MIXTRAL,
    ),
    "qwen3_moe": Family(
        config_from_hf=hf_config.qwen3_moe_from_hf,
        config_to_hf=hf_config.qwen3_moe_to_hf,
        weights=_QWEN_MOE,
    ),
}


def family_of(model_type: Any, where: str) -> Family:
    """The family of that name. Raises `RequestError` naming `where` for one that is not known."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise RequestError(
            f"{where}: architecture {model_type!r} is not supported; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
