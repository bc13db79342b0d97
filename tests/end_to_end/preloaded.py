"""What a training run imports, for a process that others are forked from."""

import transformers  # noqa: F401

import data_video  # noqa: F401
import diffusion_video  # noqa: F401
from cogvideox.sat_bridge import importing

importing.prepare()

import deepspeed  # noqa: E402, F401
import sat.training.deepspeed_training  # noqa: E402, F401

import cogvideox.sat_bridge.bridge  # noqa: E402, F401
