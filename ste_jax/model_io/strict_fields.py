"""How are the fields of a Hugging Face `config.json` read, so that none is passed over?

A field that would change the computation in a way that is not known here is refused by name: a
model that loads is the model that was meant. What families have in common is read here: the sizes,
and the rotary embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ste_jax.errors import RequestError
from ste_jax.models.config import LayerKind, RopeScaling

_WITHOUT_EFFECT = {
    "where it comes from and how it is stored and run": """
        architectures base_model base_model_name base_model_name_or_path dtype model_name
        model_type name_or_path _name_or_path _commit_hash torch_dtype transformers_version
        transformers_weights use_bfloat16 use_float16 is_llama_config unsloth_fixed
        unsloth_version _unsloth unsloth_optimized model_revision revision license library_name
        pipeline_tag tags cache_implementation use_cache attn_implementation
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal
        _flash_attn_2_enabled use_flash_attention use_flash_attention_2 use_flash_attn
        flash_attention flash_attn use_sdpa use_memory_efficient_attention use_xformers
        experts_implementation _experts_implementation _experts_implementation_internal
        pretraining_tp torchscript transformers.js_config onnx return_dict output_attentions
        output_hidden_states output_router_logits keys_to_ignore_at_inference is_decoder
        chunk_size_feed_forward
    """,
    "how it was or is to be trained": """
        initializer_range initializer_factor attention_dropout attention_probs_dropout_prob
        attn_dropout attn_pdrop classifier_dropout dropout embd_pdrop embed_dropout
        embedding_dropout ffn_dropout hidden_dropout hidden_dropout_prob resid_dropout
        resid_pdrop gradient_checkpointing use_gradient_checkpointing
        gradient_checkpointing_use_reentrant neftune_noise_alpha mup router_aux_loss_coef
        router_jitter_noise router_z_loss_coef max_sequence_length max_seq_length max_seq_len
        seq_length seq_len train_seq_len model_max_length training_sequence_length loss_type
        z_loss z_loss_coefficient label_smoothing
    """,
    "what it was to be used for: other heads, a tokenizer": """
        id2label label2id num_labels problem_type finetuning_task task_specific_params
        tokenizer_class tokenizer_padding_side padding_side truncation_side bos_token eos_token
        pad_token unk_token sep_token bos_token_id eos_token_id pad_token_id unk_token_id
        sep_token_id decoder_start_token_id prefix additional_special_tokens chat_template
        ignore_index
    """,
    "how text is to be sampled, which a request says itself": """
        generation_config do_sample temperature top_k top_p top_h min_p typical_p epsilon_cutoff
        eta_cutoff num_beams num_beam_groups early_stopping penalty_alpha diversity_penalty
        repetition_penalty length_penalty encoder_repetition_penalty no_repeat_ngram_size
        encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens
        forced_bos_token_id forced_eos_token_id forced_decoder_ids force_words_ids sequence_bias
        remove_invalid_values renormalize_logits exponential_decay_length_penalty guidance_scale
        max_length max_new_tokens max_time min_length min_new_tokens num_return_sequences
        num_assistant_tokens num_assistant_tokens_schedule stop_strings output_scores
        output_logits return_dict_in_generate use_model_defaults watermarking_config low_memory
        prompt_lookup_num_tokens
    """,
    "which layers have a window, in families that do not go by it": """
        _sliding_window_pattern max_window_layers
    """,
}
"""Fields by which no family's model in `transformers` computes its logits, by what they say."""


class Fields:
    """The fields of a config, of which every one is to be read or known to be without effect."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._read = set(" ".join(_WITHOUT_EFFECT.values()).split())
        self.where = where

    def take(self, key: str, default: Any = None) -> Any:
        """The field's value; `default` where it is missing or null."""
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The field's value. Raises `RequestError` where there is none."""
        value = self.take(key)
        if value is None:
            raise RequestError(f"{self.where}: {key} is missing")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """The field's value, a positive integer. Raises `RequestError` for another."""
        value = self.need(key) if default is None else self.take(key, default)
        return whole(value, key, f"{self.where}:")

    def number(self, key: str, default: float | None = None) -> float:
        """The field's value, a positive number. Raises `RequestError` for another."""
        value = self.need(key) if default is None else self.take(key, default)
        return positive(value, key, f"{self.where}:")

    def flag(self, key: str, default: bool = False) -> bool:
        """The field's value, true or false. Raises `RequestError` for another."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false is needed")
        return value

    def group(self, key: str) -> dict[str, Any]:
        """The field's value, an object; empty where there is none."""
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self.refuse(key, "an object is expected")
        return dict(value)

    def words(self, key: str) -> list[str] | None:
        """The field's value, a list of texts; None where there is none."""
        value = self.take(key)
        if value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value)):
            return value
        raise self.refuse(key, "a list of texts is needed")

    def nullable(self, key: str, default: Any) -> Any:
        """The field's value, null among them; `default` only where it is missing."""
        self._read.add(key)
        return self._values.get(key, default)

    def capped(self, key: str, default: float | None) -> float | None:
        """A soft cap: null is none."""
        value = self.nullable(key, default)
        return None if value is None else positive(value, key, f"{self.where}:")

    def window(self, default: int | None, *, needed: bool = False) -> int | None:
        """The window of local layers; null is none. Raises `RequestError` where one is needed."""
        if self.nullable("sliding_window", default) is not None:
            return self.size("sliding_window", default)
        if needed:
            raise self.refuse("sliding_window", "and this family's local layers need one")
        return None

    def refuse(self, key: str, why: str) -> RequestError:
        """The error that names the field."""
        return RequestError(f"{self.where}: {key} is {self._values.get(key)!r}, {why}")

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses the field where it is there and none of `allowed`."""
        if self.take(key, allowed[0]) not in allowed:
            told = " or ".join(map(str, allowed))
            raise self.refuse(key, f"only {told} is supported")

    def finish(self) -> None:
        """Refuses what nobody has read. A field that is off (null, false, 0, empty) says that
        nothing unusual is asked for."""
        for key, value in self._values.items():
            if key not in self._read and value:
                raise self.refuse(key, "a field that is not known here and may change the result")


def read_shape(fields: Fields, **defaults: Any) -> dict[str, Any]:
    """What all families have; `defaults` of fields by name, others must be there."""

    hidden = fields.size("hidden_size", defaults.get("hidden_size"))
    heads = fields.size("num_attention_heads", defaults.get("num_attention_heads"))
    if fields.take("head_dim", defaults.get("head_dim")) is not None:
        head_dim = fields.size("head_dim", defaults.get("head_dim"))
    elif hidden % heads:
        raise fields.refuse("hidden_size", f"not a multiple of num_attention_heads {heads}")
    else:
        head_dim = hidden // heads
    kv_heads = heads
    if fields.nullable("num_key_value_heads", defaults.get("num_key_value_heads")) is not None:
        kv_heads = fields.size("num_key_value_heads", defaults.get("num_key_value_heads"))
    if heads % kv_heads:
        raise RequestError(
            f"{fields.where}: num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{kv_heads}"
        )
    if head_dim % 2:
        raise RequestError(
            f"{fields.where}: head_dim is {head_dim}, odd, and rotary embedding turns pairs"
        )
    fields.only("partial_rotary_factor", 1)
    return {
        "vocab_size": fields.size("vocab_size", defaults.get("vocab_size")),
        "hidden_size": hidden,
        "num_layers": fields.size("num_hidden_layers", defaults.get("num_hidden_layers")),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_position": fields.size(
            "max_position_embeddings", defaults.get("max_position_embeddings", 2048)
        ),
        "norm_eps": fields.number("rms_norm_eps", defaults.get("rms_norm_eps")),
        "tie_embeddings": fields.flag(
            "tie_word_embeddings", defaults.get("tie_word_embeddings", False)
        ),
    }


def only_silu(fields: Fields) -> None:
    """Refuses any other activation."""
    fields.only("hidden_act", "silu")


# ---------------------------------------------------------------------------------------------
# Rotary embedding


def read_rope(fields: Fields, max_position: int, theta: float = 10000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a model that has one kind of rotary embedding."""
    # transformers 5 has one mapping for all that is rotary, before it there were two fields.
    told, scaling = fields.group("rope_parameters"), fields.group("rope_scaling")
    thetas = [each.pop("rope_theta", None) for each in (told, scaling)]
    thetas = [each for each in (*thetas, fields.take("rope_theta")) if each is not None]
    if len(set(thetas)) > 1:
        raise fields.refuse("rope_theta", "and another place says otherwise")
    if told and scaling and told != scaling:
        raise fields.refuse("rope_scaling", "and rope_parameters says otherwise")
    rope, theta = scaling or told, thetas[0] if thetas else theta
    outside = fields.take("original_max_position_embeddings")
    if kind_of_rope(rope) == "llama3" and outside is not None:
        inside = rope.setdefault("original_max_position_embeddings", outside)
        if inside != outside:
            raise fields.refuse("original_max_position_embeddings", f"in rope scaling {inside}")
    return {
        "rope_theta": positive(theta, "rope_theta", f"{fields.where}:"),
        "rope_scaling": read_rope_scaling(rope, max_position, fields.where),
    }


def kind_of_rope(rope: Mapping[str, Any]) -> Any:
    """What a rotary mapping says of its kind."""
    return rope.get("rope_type") or rope.get("type") or "default"


def positive(value: Any, key: str, where: str) -> float:
    """The value of `key`. Raises `RequestError`, led by `where`, where it is no number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e38:
        raise RequestError(f"{where} {key} is {value!r:.100}, a number above 0 is needed")
    return float(value)


def whole(value: Any, key: str, where: str) -> int:
    """The value of `key`. Raises `RequestError`, led by `where`, where it is no integer above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise RequestError(f"{where} {key} is {value!r:.100}, a positive integer is needed")
    return value


def read_rope_scaling(rope: dict[str, Any], max_position: int, where: str) -> RopeScaling | None:
    """The scaling that a rotary mapping asks for. Raises `RequestError` for one not known here."""
    kind = kind_of_rope(rope)
    rope = {key: value for key, value in rope.items() if key not in ("rope_type", "type")}
    original = rope.pop("original_max_position_embeddings", None)
    if original is None:
        original = max_position
    if isinstance(original, bool) or not isinstance(original, int) or original < 1:
        raise RequestError(
            f"{where}: original_max_position_embeddings is {original!r}, a positive integer is "
            "needed"
        )

    def number(key: str) -> float:
        if key not in rope:
            raise RequestError(f"{where}: rope scaling {kind!r} lacks {key}")
        return positive(rope.pop(key), key, f"{where}: rope scaling {kind!r}:")

    known: dict[str, Callable[[], RopeScaling | None]] = {
        "default": lambda: None,
        "linear": lambda: RopeScaling(kind="linear", factor=number("factor")),
        "llama3": lambda: RopeScaling(
            kind="llama3",
            factor=number("factor"),
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
            original_max_position=original,
        ),
    }
    if kind not in known:
        raise RequestError(
            f"{where}: rope scaling of type {kind!r} is not supported; known are {', '.join(known)}"
        )
    if rope.get("partial_rotary_factor") == 1:
        rope.pop("partial_rotary_factor")
    scaling = known[kind]()
    if scaling and scaling.kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise RequestError(
            f"{where}: rope scaling 'llama3': high_freq_factor is not the higher one"
        )
    left = {key: value for key, value in rope.items() if value is not None}
    if left:
        key, value = next(iter(left.items()))
        raise RequestError(
            f"{where}: rope scaling {kind!r} has {key} {value!r}, which is not supported"
        )
    return scaling


def rope_to_hf(kind: LayerKind) -> dict[str, Any]:
    """In the form that all versions of transformers read."""
    return {"rope_theta": kind.rope_theta, "rope_scaling": _scaling_to_hf(kind.rope_scaling)}


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.kind == "factors":
        raise RequestError(
            "rope scaling by a table of factors (from a GGUF file) has no form in a Hugging Face "
            "config, so this model cannot be written as one"
        )
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return rope
