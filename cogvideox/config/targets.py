"""Which class a `target:` names: the alias table for the reference's dotted paths, and what may be imported.

A target resolves when it stands in the alias table, or when its module is ours, SAT's, torch's, or one that the user
named by `--allow-target`. Anything else is refused, so that a config file cannot run code that nobody chose.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
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
LIBRARY_MODULES = ("sat", "torch")

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
        return any(path == name or path.startswith(name + ".") for name in self.names)


allowed_modules = AllowedModules()


def resolve_target(path: str) -> Any:
    """The class (or, for an `--allow-target` module, any callable) that a dotted `path` names.

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
            f"target `{path}`: {module_name} has no `{name}`" + (f"; did you mean `{near}`?" if near else "")
        )
    if allowed_modules.covers(real):
        is_fit = callable(found)
    else:
        is_fit = isinstance(found, type) and found.__module__.split(".")[0] in OWN_MODULES + LIBRARY_MODULES
    if not is_fit:
        raise UserError(f"target `{path}` is not a class of {module_name}: name a class defined there")
    return found


def check_allowed(path: str, real: str) -> None:
    """Raise UserError unless a target written `path`, meaning `real`, is one that we have and that may be imported."""
    top = real.split(".")[0]
    if "." not in real:
        raise UserError(f"target `{path}` is not a dotted path: write `module.ClassName`")
    if top in OWN_MODULES + LIBRARY_MODULES or allowed_modules.covers(real):
        return
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
