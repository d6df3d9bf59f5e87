"""What happens to each key that Transformers 2 to 5 write into a checkpoint's files.

Nothing that could change what the model computes, or when it stops, is dropped in silence: a key is used, or it has no
effect here, or its value is named in a warning, or it is refused. A key that is on no list gets a line, unless its
value says nothing (null, false, 0 or empty).
"""

import logging
from collections.abc import Mapping
from typing import Any

from dgpt2_quant.core.errors import CheckpointError

_log = logging.getLogger(__name__)
_SHOWN = 60  # characters of a value


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What Transformers' `generate` and its pipelines take from a file, unless the caller says otherwise.
_SAMPLING = _keys(
    """do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    max_length max_new_tokens min_length min_new_tokens max_time stop_strings early_stopping num_beams num_beam_groups
    diversity_penalty penalty_alpha forced_bos_token_id forced_eos_token_id forced_decoder_ids suppress_tokens
    begin_suppress_tokens sequence_bias guidance_scale constraints force_words_ids renormalize_logits
    exponential_decay_length_penalty watermarking_config token_healing dola_layers num_return_sequences"""
)
# Their defaults, which older versions wrote into every config.json.
_NEUTRAL: Mapping[str, Any] = {
    **{"temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0},
    **{"encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "max_length": 20, "num_beams": 1},
    **{"num_beam_groups": 1, "num_return_sequences": 1, "guidance_scale": 1.0},
    "do_sample": True,  # as a request does by default
}
_GENERATION_HAS_NO_EFFECT = _keys(
    """_from_model_config transformers_version use_cache cache_implementation cache_config max_cache_len low_memory
    output_attentions output_hidden_states output_scores output_logits return_dict_in_generate remove_invalid_values
    return_legacy_cache is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type use_mtp compile_config disable_compile continuous_batching_config
    prefill_chunk_size generation_kwargs trust_remote_code _commit_hash use_model_defaults"""
)
_ROLES = _keys("bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id")

USED: Mapping[str, frozenset[str]] = {
    "config.json": _ROLES
    | _keys(
        """model_type architectures activation_function n_embd hidden_size n_head num_attention_heads n_layer
        num_hidden_layers n_positions max_position_embeddings n_ctx n_inner vocab_size layer_norm_epsilon
        scale_attn_weights scale_attn_by_inverse_layer_idx tie_word_embeddings tokenizer_class num_labels id2label
        label2id problem_type summary_type summary_use_proj summary_activation summary_proj_to_labels"""
    ),
    "generation_config.json": _ROLES,
    "tokenizer_config.json": _keys(
        """tokenizer_class add_prefix_space add_bos_token add_eos_token added_tokens_decoder additional_special_tokens
        extra_special_tokens chat_template split_special_tokens bos_token eos_token unk_token sep_token pad_token
        cls_token mask_token model_specific_special_tokens"""
    ),
    "tokenizer.json": _keys("version added_tokens normalizer pre_tokenizer post_processor decoder model"),
}
WITHOUT_EFFECT: Mapping[str, frozenset[str]] = {
    "config.json": _GENERATION_HAS_NO_EFFECT
    | _keys(
        """resid_pdrop embd_pdrop attn_pdrop summary_first_dropout initializer_range gradient_checkpointing
        reorder_and_upcast_attn torch_dtype dtype use_bfloat16 torchscript return_dict use_return_dict
        output_past tf_legacy_loss chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
        finetuning_task task_specific_params _name_or_path name_or_path _num_labels is_decoder predict_special_tokens
        embedding_dropout attention_dropout hidden_dropout classifier_dropout attn_implementation loss_type
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal experts_implementation
        mem_len max_seq_length seq_length multi_query use_xla xla_device nce n_special"""
    ),
    "generation_config.json": _GENERATION_HAS_NO_EFFECT,
    "tokenizer_config.json": _keys(
        """model_max_length max_len max_length errors name_or_path special_tokens_map_file tokenizer_file
        clean_up_tokenization_spaces padding_side truncation_side stride truncation_strategy pad_to_multiple_of
        pad_token_type_id model_input_names backend is_local local_files_only processor_class legacy use_fast
        trim_offsets vocab_file merges_file _commit_hash init_inputs spaces_between_special_tokens
        return_token_type_ids padding truncation from_slow full_tokenizer_file use_default_system_prompt
        response_schema fix_mistral_regex add_special_tokens verbose"""
    ),
    "tokenizer.json": _keys("truncation padding"),
}
WARNED: Mapping[str, Mapping[str, str]] = {  # a key, and what follows from it
    "config.json": {
        **dict.fromkeys(_SAMPLING, "set it in each request"),
        "prefix": "put it before each prompt",
        "auto_map": "the code that it names is not run",
    },
    "generation_config.json": dict.fromkeys(_SAMPLING, "set it in each request"),
    "tokenizer_config.json": {
        "do_lower_case": "texts keep their case",
        "strip_accents": "texts keep their accents",
        "auto_map": "the code that it names is not run",
    },
    "tokenizer.json": {},
}
_QUANTIZED = (
    "its weights are quantized already, and would lose quality twice",
    "Convert the original model, or save this one dequantized: `model.dequantize().save_pretrained(folder)`.",
)
REFUSED: Mapping[str, Mapping[str, tuple[str, str]]] = {  # a key, why, and the next step
    "config.json": {
        "add_cross_attention": ("llama.cpp's GPT-2 has no cross-attention", ""),
        "is_encoder_decoder": ("llama.cpp's GPT-2 has no encoder", ""),
        "pruned_heads": (
            "llama.cpp's GPT-2 has the same number of heads in each layer",
            "Convert the model before its heads were pruned.",
        ),
        "quantization_config": _QUANTIZED,
        "compression_config": _QUANTIZED,
    },
    "generation_config.json": {},
    "tokenizer_config.json": {},
    "tokenizer.json": {},
}


def check_keys(file: str, content: Mapping[str, Any]) -> None:
    """Refuses, or names in one warning, what the file `config.json`, ... says that a GGUF file cannot carry.

    Raises `CheckpointError`.
    """
    lost: list[str] = []
    for key, value in content.items():
        if key == "model_input_names" and isinstance(value, list) and "token_type_ids" in value:
            _log.warning(
                "%s: token_type_ids in model_input_names: Transformers adds the embedding of token 0 to each position,"
                " and this file does not; scores can differ",
                file,
            )
        if not value or _NEUTRAL.get(key) == value or key in USED[file] or key in WITHOUT_EFFECT[file]:
            continue
        shown = str(value) if len(str(value)) <= _SHOWN else f"{str(value)[:_SHOWN]}..."
        if refusal := REFUSED[file].get(key):
            why, hint = refusal
            raise CheckpointError(f"{file} has {key}: {why}", hint)
        if key.endswith("_token") and file == "tokenizer_config.json":
            continue  # names a special token
        lost.append(
            f"{key} {shown} ({WARNED[file].get(key, 'unknown here')})".encode("utf-8", "backslashreplace").decode()
        )
    if lost:
        _log.warning("%s: not carried over: %s", file, "; ".join(lost))
