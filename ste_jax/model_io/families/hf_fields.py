"""Which fields do the `config.json` of all families have in common?

Defaults are those of `transformers`, since files leave out what is a default there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import ModelConfig
from ste_jax.system.errors import RequestError

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
"""By what they say: fields that change no logits in any family's model in `transformers`."""


def hf_fields(values: Mapping[str, Any], where: str) -> Fields:
    """The fields of a `config.json`, or of a part of one."""
    return Fields(values, where, known=" ".join(_WITHOUT_EFFECT.values()).split())


def read_shape(fields: Fields, **defaults: Any) -> dict[str, Any]:
    """The fields of `ModelConfig` that all families have.

    `defaults` are values of fields that may be missing; the others must be there.
    """
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
    """Refuses a config with another activation than SiLU."""
    fields.only("hidden_act", "silu")


def common_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What a `config.json` of every family says."""
    return {
        "architectures": [architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
    }
