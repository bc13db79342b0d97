"""What a training run imports, for a process that others are forked from."""

import gc
from importlib import import_module

from cogvideox.sat_bridge import importing

importing.prepare()

# The entry's own, then what those import only when a run gets there.
for name in (
    "diffusion_video",
    "data_video",
    "train_video",
    "cogvideox.sat_bridge.bridge",
    "cogvideox.conditioning.conditioner",
    "cogvideox.conditioning.t5",
    "cogvideox.diffusion.denoiser",
    "cogvideox.diffusion.loss",
    "cogvideox.diffusion.sampler",
    "cogvideox.telemetry.evaluation_samples",
    "cogvideox.transformer.wrapper",
    "cogvideox.transformer.model",
    "cogvideox.vae.autoencoder",
    "deepspeed.moe.ep_router",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "einops._torch_specific",
    "imageio.plugins.ffmpeg",
    "sat.training.deepspeed_training",
    "scipy.optimize",
    "sentencepiece.sentencepiece_model_pb2",
    "setuptools",
    "tensorboardX",
    "torch._inductor.compile_fx",
    "transformers.models.t5.modeling_t5",
    "transformers.models.t5.tokenization_t5",
    "transformers.generation",
    "transformers.quantizers.auto",
):
    import_module(name)

# Tables that a process builds when it first needs them.
import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("t5")
import_module("deepspeed.ops").__compatible_ops__  # noqa: B018  (looking is what fills it)

# A run collects garbage once before it trains; what is here already is none of its business.
gc.collect()
gc.freeze()
