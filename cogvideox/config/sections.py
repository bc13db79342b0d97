"""The keys of `model:`, of `transformer_args:` and of `deepspeed:`, with their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

SECTIONS = ("args", "model", "data", "deepspeed")


class Node:
    """Marks a key whose value is `{target, params}`."""


# `model:`, read by SATVideoDiffusionEngine.
MODEL_KEYS: dict[str, Any] = {
    "network_config": Node,
    "denoiser_config": Node,
    "conditioner_config": Node,
    "first_stage_config": Node,
    "loss_fn_config": Node,
    "sampler_config": Node,
    "network_wrapper": str | None,
    "scale_factor": float,
    "image_scale_factor": float | None,
    "input_key": str,
    "log_keys": list[str] | None,
    "not_trainable_prefixes": list[str],
    "latent_input": bool,
    "disable_first_stage_autocast": bool,
    "en_and_decode_n_samples_a_time": int | None,
    "compile_model": bool,
    "lr_scale": float | None,
    "noised_image_input": bool,
    "noised_image_all_concat": bool,
    "noised_image_dropout": float,
}
REQUIRED_NODES = ("network_config", "denoiser_config", "conditioner_config", "first_stage_config", "loss_fn_config")

# Beside `target` and `params` in a node of `emb_models`: how the conditioner uses the embedder.
EMBEDDER_KEYS: dict[str, Any] = {"input_key": str, "ucg_rate": float, "is_trainable": bool}

# `transformer_args:` of the transformer.
TRANSFORMER_ARGS: dict[str, Any] = {
    "checkpoint_activations": bool,
    "layernorm_order": Literal["pre"],
    "skip_init": bool,
    "model_parallel_size": int,
    "is_decoder": Literal[False],
}

TRANSFORMER_MODULES = (
    "pos_embed_config",
    "patch_embed_config",
    "adaln_layer_config",
    "final_layer_config",
    "lora_config",
)

_OFFLOAD_OPTIMIZER = {
    "device": Literal["none", "cpu", "nvme"], "nvme_path": str | None, "buffer_count": int, "pin_memory": bool,
    "pipeline_read": bool, "pipeline_write": bool, "fast_init": bool, "ratio": float, "super_offload": bool,
    "cpuadam_cores_perc": float,
}  # fmt: skip
_OFFLOAD_PARAM = {
    "device": Literal["none", "cpu", "nvme"], "nvme_path": str | None, "buffer_count": int, "buffer_size": int,
    "max_in_cpu": int, "pin_memory": bool,
}  # fmt: skip

_ZERO_OPTIMIZATION = {
    "stage": Literal[0, 1, 2, 3], "contiguous_gradients": bool, "reduce_scatter": bool, "reduce_bucket_size": int,
    "use_multi_rank_bucket_allreduce": bool, "allgather_partitions": bool, "allgather_bucket_size": int,
    "overlap_comm": bool | None, "compute_grad_norm": bool, "load_from_fp32_weights": bool, "elastic_checkpoint": bool,
    "offload_param": _OFFLOAD_PARAM, "offload_optimizer": _OFFLOAD_OPTIMIZER, "zenflow": Any, "sub_group_size": int,
    "cpu_offload_param": bool | None, "cpu_offload_use_pin_memory": bool | None, "cpu_offload": bool | None,
    "stage3_prefetch_bucket_size": int, "stage3_param_persistence_threshold": int,
    "stage3_model_persistence_threshold": int, "stage3_max_live_parameters": int, "stage3_max_reuse_distance": int,
    "stage3_gather_16bit_weights_on_model_save": bool, "stage3_gather_fp16_weights_on_model_save": bool,
    "stage3_module_granularity_threshold": int, "stage3_use_all_reduce_for_fetch_params": bool,
    "stage3_allgather_sequential": bool, "ignore_unused_parameters": bool, "legacy_stage1": bool,
    "round_robin_gradients": bool, "parameter_alignment": bool, "zero_hpz_partition_size": int,
    "zero_quantized_weights": bool, "zero_quantized_nontrainable_weights": bool, "zero_quantized_gradients": bool,
    "memory_efficient_linear": bool, "pipeline_loading_checkpoint": bool, "override_module_apply": bool,
    "log_trace_cache_warnings": bool, "enable_sanity_checks": bool, "save_muon_momentum_buffer_in_memory": bool,
    "leaf_module": Any,
}  # fmt: skip

_FP16 = {
    "enabled": bool, "auto_cast": bool, "loss_scale": float, "initial_scale_power": int, "loss_scale_window": int,
    "hysteresis": int, "consecutive_hysteresis": bool, "min_loss_scale": float, "fp16_master_weights_and_grads": bool,
}  # fmt: skip
_BF16 = {
    "enabled": bool, "immediate_grad_update": bool, "check_grad_overflow": bool, "bf16_master_weights_and_grads": bool,
    "bf16_optimizer_states": bool,
}  # fmt: skip
_ACTIVATION_CHECKPOINTING = {
    "partition_activations": bool, "number_checkpoints": int | None, "contiguous_memory_optimization": bool,
    "synchronize_checkpoint_boundary": bool, "profile": bool, "cpu_checkpointing": bool,
}  # fmt: skip

# `deepspeed:`, as DeepSpeed 0.19 reads it. A nested dict is a nested table; `Any`: DeepSpeed checks it itself.
DEEPSPEED_KEYS: dict[str, Any] = {
    "train_batch_size": int | None, "train_micro_batch_size_per_gpu": int, "gradient_accumulation_steps": int,
    "managed_gradient_accumulation": bool, "gradient_clipping": float, "prescale_gradients": bool,
    "gradient_predivide_factor": float, "gradient_allreduce_op": Literal["mean", "sum"],
    "optimizer": {"type": str, "params": Any, "legacy_fusion": bool},
    "scheduler": {"type": str, "params": Any},
    "zero_optimization": _ZERO_OPTIMIZATION, "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": bool, "fp16": _FP16, "bf16": _BF16, "bfloat16": _BF16,
    "torch_autocast": {"enabled": bool, "dtype": str, "lower_precision_safe_modules": list[str]},
    "activation_checkpointing": _ACTIVATION_CHECKPOINTING, "steps_per_print": int | None, "dump_state": bool,
    "disable_python_gc": bool, "disable_allgather": bool, "wall_clock_breakdown": bool, "memory_breakdown": bool,
    "communication_data_type": str | None, "seq_parallel_communication_data_type": str, "dataloader_drop_last": bool,
    "log_level": str, "use_data_before_expert_parallelism": bool, "comms_logger": Any, "tensorboard": Any, "wandb": Any,
    "csv_monitor": Any, "comet": Any, "flops_profiler": Any, "autotuning": Any, "hybrid_engine": Any, "aio": Any,
    "checkpoint": Any, "data_types": Any, "data_efficiency": Any, "weight_quantization": Any, "compile": Any,
    "timers": Any, "tensor_parallel": Any, "expert_parallel": Any, "pipeline": Any, "datastates": Any,
    # SAT's own files have it here, where DeepSpeed does not look; `zero_optimization.offload_optimizer` is the place.
    "offload_optimizer": _OFFLOAD_OPTIMIZER,
}  # fmt: skip

OPTIMIZER_PARAMS: dict[str, Any] = {
    "lr": float, "betas": tuple[float, float], "eps": float, "weight_decay": float, "bias_correction": bool,
    "adam_w_mode": bool, "amsgrad": bool, "torch_adam": bool, "set_grad_none": bool, "ema_decay": float,
    "momentum": float, "nesterov": bool, "lr_decay": float,
}  # fmt: skip

# Keys of `fp16:` that old configs have beside it.
SCALER_KEYS = ("loss_scale", "loss_scale_window", "hysteresis", "min_loss_scale", "initial_scale_power")


def is_table(kind: Any) -> bool:
    """Whether a table's entry is a nested table."""
    return isinstance(kind, Mapping)
