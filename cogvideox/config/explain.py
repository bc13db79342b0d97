"""`--explain KEY`: the value of a setting, who set it, and what it overrode."""

from __future__ import annotations

from typing import Any

from cogvideox.config.flags import YAML_KEYS
from cogvideox.config.nearest import did_you_mean
from cogvideox.config.settings import COMMAND_LINE, MISSING, Settings, leaves
from cogvideox.errors import UserError


def explain(settings: Settings, key: str) -> str:
    """Lines for every leaf at or below `key`; a flag's name stands for its key below `args`. Raises UserError."""
    name = key.lstrip("-").replace("-", "_")
    key = f"args.{name}" if name in YAML_KEYS and settings.get(key, MISSING) is MISSING else key
    value = settings.get(key, MISSING)
    if value is MISSING:
        known = {*settings.history, *(each.rpartition(".")[0] for each in settings.history), *YAML_KEYS} - {""}
        raise UserError(f"{COMMAND_LINE}: --explain {key}: nothing has this key; {did_you_mean(key, known)}")
    lines: list[str] = []
    for leaf, _ in leaves(value, key):
        *earlier, current = settings.history[leaf]
        lines += [f"{leaf} = {_shown(current.value)}", f"    set by {current.source}"]
        lines += [f"    over {_shown(each.value)} of {each.source}" for each in reversed(earlier)]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)
