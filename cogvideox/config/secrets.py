"""What of the environment a config may hold: no secrets, since the config is written into the run's folder."""

from __future__ import annotations

import re
import warnings

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

# A part of the name, between underscores, that ends so.
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(_|$)", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether an environment variable is, by its name, a key, a token or a password."""
    return _SECRET.search(name) is not None


def guard_environment() -> None:
    """Let `${oc.env:NAME,default}` refuse the names of secrets, in this process from now on.

    Written unresolved instead, a run's own training_config.yaml would ask for it on other machines; and no setting here
    needs one: wandb, S3 and the hub's client read the environment themselves.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 2.4 calls the name old that 2.3 has alone
        OmegaConf.register_new_resolver("oc.env", _variable, replace=True)


def _variable(name: str, *default: str | None) -> str | None:
    """A variable's value. ValueError, which OmegaConf reports: it is a secret by its name."""
    if is_secret(name):
        raise ValueError(
            f"{name} is a secret by its name, and settings are written into the run's folder: what needs it reads it "
            "from the environment itself"
        )
    return oc.env(name, *default)
