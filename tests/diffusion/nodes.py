"""Config nodes that the tests of this room share."""

from __future__ import annotations

from typing import Any


def discretization(**params: Any) -> dict[str, Any]:
    return {"target": "cogvideox.diffusion.schedule.ZeroSNRDDPMDiscretization", "params": params}


def timesteps(**params: Any) -> dict[str, Any]:
    params = {"num_idx": 1000, "discretization_config": discretization(), **params}
    return {"target": "cogvideox.diffusion.timesteps.DiscreteSampling", "params": params}


SCALING = {"target": "cogvideox.diffusion.denoiser.VideoScaling"}
