"""The parameters of a target's signature, and how a YAML `params:` mapping binds to them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cogvideox.config.fitting import Misfit, fit
from cogvideox.config.inert import inert_reason
from cogvideox.config.nearest import did_you_mean


@dataclass(frozen=True)
class Parameter:
    """One settable key: its annotation, and whether it must be given."""

    annotation: Any
    is_required: bool


@dataclass(frozen=True)
class Signature:
    """What a target can be given. `takes_any`: the target has `**kwargs`, so unknown keys are its own business."""

    name: str
    parameters: Mapping[str, Parameter]
    supplied_by_parent: Collection[str]
    takes_any: bool


@dataclass(frozen=True)
class Fault:
    """A `params:` key that does not bind, what is wrong with it, and what to do about it."""

    key: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Bound:
    """The converted values, the inert keys left out (with reasons), and every fault."""

    values: dict[str, Any]
    inert: dict[str, str]
    faults: list[Fault]


def signature_of(target: Any) -> Signature:
    """Read the signature of a class or function, annotations resolved where they can be."""
    owner: Any = target
    function = owner.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    parameters: dict[str, Parameter] = {}
    takes_any = False
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            parameters[name] = Parameter(hints.get(name, Any), parameter.default is inspect.Parameter.empty)
    supplied = getattr(target, "SUPPLIED_BY_PARENT", ())
    return Signature(f"{target.__module__}.{target.__qualname__}", parameters, tuple(supplied), takes_any)


def bind(signature: Signature, params: Mapping[str, Any], supplied: Collection[str]) -> Bound:
    """Bind `params` to `signature`. `supplied` names the arguments that come from the caller, not from the YAML."""
    values: dict[str, Any] = {}
    inert: dict[str, str] = {}
    faults: list[Fault] = []
    for key, value in params.items():
        if key in supplied:
            faults.append(Fault(key, f"is set by the part of the model that owns {signature.name}", "remove it"))
        elif key in signature.parameters:
            _bind_one(key, value, signature.parameters[key], values, faults)
        elif (reason := inert_reason(signature.name, key)) is not None:
            inert[key] = reason
        elif signature.takes_any:
            values[key] = value
        else:
            settable = [name for name in signature.parameters if name not in supplied]
            faults.append(Fault(key, f"unknown key: {signature.name} has none", did_you_mean(key, settable)))
    for name, parameter in signature.parameters.items():
        if parameter.is_required and name not in params and name not in supplied:
            faults.append(Fault(name, f"missing: {signature.name} needs it", f"add `{name}:`"))
    return Bound(values, inert, faults)


def _bind_one(key: str, value: Any, parameter: Parameter, values: dict[str, Any], faults: list[Fault]) -> None:
    try:
        values[key] = fit(value, parameter.annotation)
    except Misfit as wanted:
        faults.append(Fault(key, f"is {value!r}", f"give {wanted}"))
