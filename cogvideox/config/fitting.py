"""Does a YAML value fit an annotation? Read by the validator (as a report) and by `instantiate` (as a conversion)."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable)
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


class Misfit(Exception):
    """A value does not fit; the text says what was wanted."""


def fit(value: Any, annotation: Any) -> Any:
    """`value` as the annotated type (3.0 → 3 for int, list → tuple, …). Raises Misfit. Unknown annotations fit all."""
    if annotation is Any or annotation is None and value is None or isinstance(annotation, (str, typing.TypeVar)):
        return value
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _fit_any_of(value, annotation, arguments)
    if origin is typing.Literal:
        return _require(value in arguments, value, annotation)
    if origin in (bool, int, float, str, type(None)):
        return _fit_scalar(value, origin)
    if origin is Path:
        return Path(_require(isinstance(value, (str, Path)), value, annotation))
    if origin in (dict, Mapping):
        return _require(isinstance(value, Mapping), value, annotation)
    if origin in _SEQUENCES:
        return _fit_sequence(value, annotation, origin, arguments)
    return value


def describe(annotation: Any) -> str:
    """An annotation in words that a YAML writer reads."""
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(each) for each in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(each) for each in arguments)
    if origin in _NAMES:
        return _NAMES[origin]
    if origin is Path:
        return "a path"
    if origin in (dict, Mapping):
        return "a mapping"
    if origin in _SEQUENCES:
        inner = [each for each in arguments if each is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments and inner:
            return f"a list of {len(inner)} ({', '.join(describe(each) for each in inner)})"
        return "a list" + (f" of: {describe(inner[0])}" if inner else "")
    return getattr(annotation, "__name__", str(annotation))


def _require(is_fit: bool, value: Any, annotation: Any) -> Any:
    if not is_fit:
        raise Misfit(describe(annotation))
    return value


def _fit_any_of(value: Any, annotation: Any, options: tuple[Any, ...]) -> Any:
    for option in sorted(options, key=lambda each: each is not type(value)):
        try:
            return fit(value, option)
        except Misfit:
            continue
    raise Misfit(describe(annotation))


def _fit_scalar(value: Any, kind: Any) -> Any:
    is_bool = isinstance(value, bool)
    if kind is float:
        return float(_require(isinstance(value, (int, float)) and not is_bool, value, kind))
    if kind is int:
        is_whole = isinstance(value, int) or isinstance(value, float) and value.is_integer()
        return int(_require(is_whole and not is_bool, value, kind))
    return _require(isinstance(value, kind), value, kind)


def _fit_sequence(value: Any, annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    _require(isinstance(value, (list, tuple)), value, annotation)
    try:
        if origin is tuple and arguments and Ellipsis not in arguments:
            _require(len(value) == len(arguments), value, annotation)
            items = [fit(item, kind) for item, kind in zip(value, arguments, strict=True)]
        else:
            items = [fit(item, arguments[0] if arguments else Any) for item in value]
    except Misfit:
        raise Misfit(describe(annotation)) from None
    as_kind: Callable[[list[Any]], Any] = origin if origin in (tuple, set, frozenset) else list
    return as_kind(items)
