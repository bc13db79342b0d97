"""The CogVideoX diffusion transformer, on SwissArmyTransformer's model classes."""

import cogvideox.sat_bridge.importing  # noqa: F401  (this package's modules import sat)
