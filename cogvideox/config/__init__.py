"""From YAML files and flags to checked settings, and from settings to objects."""

from cogvideox.config.instantiate import data_set_class, instantiate, plain
from cogvideox.config.targets import ALIASES, OPTIMIZER_TYPES, allowed_modules, resolve_target

__all__ = ["ALIASES", "OPTIMIZER_TYPES", "allowed_modules", "data_set_class", "instantiate", "plain", "resolve_target"]
