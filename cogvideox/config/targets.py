"""Which class a `target:` names: the alias table for the reference's dotted paths, and what may be imported.

A config file may come from anybody, and chooses both the class and what it is called with. So a target resolves to what
builds a network and to nothing else: a class that is defined in our own source, a `torch.nn.Module` of torch.nn or of
sat.model, or what a module defines that the user named by `--allow-target`. The rest of torch and of SAT holds classes
that start programs (torch.distributed.elastic's SubprocessHandler), compile sources or write files when they are made;
and what a module has imported (`torch.os`, `from subprocess import Popen`) is not its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from cogvideox.config.nearest import nearest
from cogvideox.errors import UserError

_DIFFUSION = "sgm.modules.diffusionmodules"

# The reference's path → ours.
ALIASES: dict[str, str] = {
    f"{_DIFFUSION}.denoiser.DiscreteDenoiser": "cogvideox.diffusion.denoiser.DiscreteDenoiser",
    f"{_DIFFUSION}.denoiser_weighting.EpsWeighting": "cogvideox.diffusion.denoiser.EpsWeighting",
    f"{_DIFFUSION}.denoiser_scaling.VideoScaling": "cogvideox.diffusion.denoiser.VideoScaling",
    f"{_DIFFUSION}.discretizer.ZeroSNRDDPMDiscretization": "cogvideox.diffusion.schedule.ZeroSNRDDPMDiscretization",
    f"{_DIFFUSION}.loss.VideoDiffusionLoss": "cogvideox.diffusion.loss.VideoDiffusionLoss",
    f"{_DIFFUSION}.sigma_sampling.DiscreteSampling": "cogvideox.diffusion.timesteps.DiscreteSampling",
    f"{_DIFFUSION}.sampling.VPSDEDPMPP2MSampler": "cogvideox.diffusion.sampler.VPSDEDPMPP2MSampler",
    f"{_DIFFUSION}.sampling.VideoDDIMSampler": "cogvideox.diffusion.sampler.VideoDDIMSampler",
    f"{_DIFFUSION}.guiders.DynamicCFG": "cogvideox.diffusion.guidance.DynamicCFG",
    f"{_DIFFUSION}.guiders.VanillaCFG": "cogvideox.diffusion.guidance.VanillaCFG",
    "sgm.modules.GeneralConditioner": "cogvideox.conditioning.conditioner.GeneralConditioner",
    "sgm.modules.encoders.modules.FrozenT5Embedder": "cogvideox.conditioning.t5.FrozenT5Embedder",
    "dit_video_concat.DiffusionTransformer": "cogvideox.transformer.model.DiffusionTransformer",
    "dit_video_concat.Basic3DPositionEmbeddingMixin": "cogvideox.transformer.positions.Basic3DPositionEmbeddingMixin",
    "dit_video_concat.Rotary3DPositionEmbeddingMixin": "cogvideox.transformer.positions.Rotary3DPositionEmbeddingMixin",
    "dit_video_concat.ImagePatchEmbeddingMixin": "cogvideox.transformer.patching.ImagePatchEmbeddingMixin",
    "dit_video_concat.AdaLNMixin": "cogvideox.transformer.adaln.AdaLNMixin",
    "dit_video_concat.FinalLayerMixin": "cogvideox.transformer.patching.FinalLayerMixin",
    "sat.model.finetune.lora2.LoraMixin": "cogvideox.transformer.lora.LoraMixin",
    "vae_modules.autoencoder.VideoAutoencoderInferenceWrapper": (
        "cogvideox.vae.autoencoder.VideoAutoencoderInferenceWrapper"
    ),
    "vae_modules.regularizers.DiagonalGaussianRegularizer": "cogvideox.vae.posterior.DiagonalGaussianRegularizer",
    "vae_modules.cp_enc_dec.ContextParallelEncoder3D": "cogvideox.vae.encoder.ContextParallelEncoder3D",
    "vae_modules.cp_enc_dec.ContextParallelDecoder3D": "cogvideox.vae.decoder.ContextParallelDecoder3D",
}

OWN_MODULES = ("cogvideox", "data_video", "diffusion_video")
# Of ours, those that hold parts of a model.
MODEL_ROOMS = tuple(f"cogvideox.{room}" for room in ("conditioning", "diffusion", "transformer", "vae"))
# Where torch and SAT keep networks; their other modules are not even imported for a config.
LIBRARY_MODULES = ("sat.model", "torch.nn")

# `deepspeed.optimizer.type`, in any case → the optimizer that runs. SAT's FusedEmaAdam needs nvcc at run time; ours is
# torch's AdamW with an average of the weights beside it.
EMA_ADAMW = "EmaAdamW"
OPTIMIZER_TYPES: dict[str, str] = {
    "sat.ops.fusedemaadam": EMA_ADAMW,
    "fusedemaadam": EMA_ADAMW,
    "emaadamw": EMA_ADAMW,
    "adam": "AdamW",  # as in DeepSpeed, whose Adam decouples weight decay
    "fusedadam": "AdamW",
    "adamw": "AdamW",
    "torchadam": "Adam",
    "adagrad": "Adagrad",
    "sgd": "SGD",
}


@dataclass
class AllowedModules:
    """The modules that `--allow-target` opened for this process."""

    names: list[str] = field(default_factory=list)

    def allow(self, name: str) -> None:
        """Let targets from module `name` and below it resolve."""
        if name not in self.names:
            self.names.append(name)

    def covers(self, path: str) -> bool:
        return is_in(path, self.names)


allowed_modules = AllowedModules()


def is_in(path: str, modules: Iterable[str]) -> bool:
    """Whether a dotted path is one of `modules` or lies below one."""
    return any(path == name or path.startswith(name + ".") for name in modules)


def resolve_target(path: str) -> Any:
    """The class (or, in a module of `--allow-target`, the function) that a dotted `path` names.

    Raises UserError when it is not allowed, does not import, or is not there.
    """
    real = ALIASES.get(path, path)
    check_allowed(path, real)
    module_name, _, name = real.rpartition(".")
    module = _import(path, module_name)
    found = vars(module).get(name)
    if found is None:
        near = nearest(name, [each for each in vars(module) if not each.startswith("_")])
        raise UserError(
            f"target `{path}`: {module_name} has no `{name}`; "
            + (f"did you mean `{near}`?" if near else "correct the name")
        )
    _check_defined(path, found)
    return found


def _check_defined(path: str, found: Any) -> None:
    """Raise UserError unless `found` is a class or function *defined* where targets may come from."""
    home = found.__module__ if isinstance(found, type | FunctionType) else ""
    if allowed_modules.covers(home):
        return
    if isinstance(found, type) and is_in(home, OWN_MODULES):
        return
    if isinstance(found, type) and is_in(home, LIBRARY_MODULES):
        from torch.nn import Module  # only now: it takes seconds

        if issubclass(found, Module):
            return
    what = f"is defined in {home}" if home else f"is a {type(found).__name__}, no class"
    raise UserError(f"target `{path}` {what}: name a class of a network, in the module that defines it")


def check_builds_a_model(path: str, target: Any) -> None:
    """Raise UserError where a resolved target is one of ours that is no part of a model, as a data set that reads."""
    home = target.__module__
    if is_in(home, OWN_MODULES) and not is_in(home, MODEL_ROOMS) and not allowed_modules.covers(home):
        raise UserError(f"target `{path}` is no part of a model: name a class of {', '.join(MODEL_ROOMS)}")


def check_allowed(path: str, real: str) -> None:
    """Raise UserError unless a target written `path`, meaning `real`, is one that we have and that may be imported."""
    if "." not in real or not all(part.isidentifier() for part in real.split(".")):
        raise UserError(f"target `{path}` is not a dotted path: write `module.ClassName`")
    if is_in(real.rpartition(".")[0], (*OWN_MODULES, *LIBRARY_MODULES)) or allowed_modules.covers(real):
        return
    top = real.split(".")[0]
    if top in sys.stdlib_module_names or top in ("sat", "torch"):
        raise UserError(f"target `{path}` may not be named: give a class of {', '.join(LIBRARY_MODULES)} or your own")
    near = nearest(path, ALIASES)
    remedy = f"did you mean `{near}`? If it is your own module, add" if near else "if it is your own module, add"
    raise UserError(f"target `{path}` is not known here: {remedy} `--allow-target {top}`")


def _import(path: str, module_name: str) -> Any:
    if module_name.split(".")[0] == "sat":
        importlib.import_module("cogvideox.sat_bridge.importing")
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"target `{path}` does not import ({error}): correct the path, or install the package it needs"
        ) from error
