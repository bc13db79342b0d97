"""Build the model, load its weights, hand it to DeepSpeed: in place of three functions of SAT's."""

from __future__ import annotations

import argparse
import copy
import logging
import shlex
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from cogvideox.checkpoint.loading import checkpoint_folder, read_chain, read_starting_weights
from cogvideox.checkpoint.lora_names import holds_adapters_alone
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import current_device
from cogvideox.sat_bridge import importing  # noqa: F401  (makes `import sat` work)
from cogvideox.sat_bridge.distributed import seed_everything
from cogvideox.sat_bridge.optimizer import optimizer_factory

from sat import mpu  # isort: skip
from sat.model.base_model import BaseModel  # isort: skip
from sat.training.deepspeed_training import get_optimizer_param_groups  # isort: skip

logger = logging.getLogger(__name__)


def training_dtype(args: argparse.Namespace) -> torch.dtype:
    """The dtype that `args.fp16` and `args.bf16` ask for."""
    if args.fp16:
        return torch.float16
    return torch.bfloat16 if args.bf16 else torch.float32


def get_model(args: argparse.Namespace, model_cls: type[nn.Module], **kwargs: Any) -> nn.Module:
    """Build on the CPU, plainly, then cast and move; DeepSpeed partitions later, at any stage.

    SAT builds under `deepspeed.zero.Init` at stage 3, which clashes with an argument named `module`, and lets its
    constructor reseed everything to 1234: here `--seed` decides the initial weights.
    """
    seed_everything(args.seed)
    dtype = training_dtype(args)
    model = model_cls(args, params_dtype=dtype, **kwargs).to(dtype=dtype).to(current_device())
    logger.info("%s: %s parameters", model_cls.__name__, f"{sum(p.numel() for p in model.parameters()):,}")
    return model


def load_checkpoint(model: Any, args: argparse.Namespace) -> int:
    """Load `args.load` strictly and return the iteration to start at: 0 in `finetune` mode.

    A checkpoint of adapters alone goes on top of the base that it names. `args.force_train` tolerates missing weights
    (they keep their initial values), never other ones.

    Raises:
        UserError: a file is missing, unreadable, does not fit the model, or holds adapters for weights that it does not
            name: those would stay random.
    """
    ranks = current().model
    path = Path(args.load)
    if args.resume:  # the very weights that its adapters were trained on, whatever `latest` of `load` says by now
        path = read_starting_weights(args.resume, ranks.rank, ranks.size).base or path
    args.base_weights = str((checkpoint_folder(path) or path).resolve())
    chain = read_chain(args.base_weights, ranks.rank, ranks.size)
    first = chain[0]
    if holds_adapters_alone(first.state_dict):
        raise UserError(
            f"{first.source} holds adapters alone and does not name the weights that they are for; make a checkpoint "
            f"that does: python tools/convert_checkpoint.py {shlex.quote(str(first.source))} DIR --lora import "
            "--base-weights WEIGHTS"
        )
    for weights in chain:
        model.load_weights(weights, allow_missing=args.force_train or weights.base is not None)
    return chain[-1].iteration if args.mode == "pretrain" else 0


def setup_model_untrainable_params_and_optimizer(
    args: argparse.Namespace, model: nn.Module
) -> tuple[Any, torch.optim.Optimizer]:
    """Freeze what does not train, group parameters as SAT does, and wrap the model in a DeepSpeed engine.

    DeepSpeed's own Adam compiles an extension unless an optimizer is handed to it, so one always is. It broadcasts the
    initial weights itself.
    """
    model.disable_untrainable_params()  # type: ignore[operator]
    config = copy.deepcopy(args.deepspeed_config)
    factory = optimizer_factory(config.pop("optimizer", {}))
    args.deepspeed_config = None  # DeepSpeed refuses a config in two places
    try:
        engine, optimizer, _, _ = deepspeed.initialize(
            args=args,
            model=model,
            model_parameters=get_optimizer_param_groups(model),
            optimizer=factory,
            config=config,
            mpu=mpu,
            dist_init_required=False,
        )
    finally:
        args.deepspeed_config = config
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        _forget_rehearsal(optimizer)
    if engine.zero_optimization_partition_weights():
        _register_external_parameters(engine.module)
    return engine, optimizer


def _forget_rehearsal(optimizer: FP16_UnfusedOptimizer) -> None:
    """Undo the step on zero gradients that DeepSpeed takes at ZeRO 0 in half precision to allocate its states.

    It counts as a step in Adam's bias correction, so that the first real ones come out up to a quarter too small.
    """
    optimizer.optimizer.state.clear()
    for halves, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for half, master in zip(halves, masters, strict=True):
            master.data.copy_(half.data)


def _register_external_parameters(model: nn.Module) -> None:
    """Tell ZeRO 3 of parameters that are used by another module's forward than their own, so that it gathers them.

    Those are the entries of parameter lists (LoRA) and what SAT's mixins hold, whose hooks the transformer calls.
    """
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ParameterList):
                for parameter in child:
                    deepspeed.zero.register_external_parameter(module, parameter)
        if isinstance(module, BaseModel):
            for mixin in module.mixins.values():
                for parameter in mixin.parameters(recurse=False):
                    deepspeed.zero.register_external_parameter(module, parameter)
