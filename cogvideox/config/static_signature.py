"""Signatures of our own classes, read from their source without importing it.

Importing the transformer imports SAT and DeepSpeed, which takes ten seconds; a config error must show before that.
Only what the validator needs is read: the parameters of `__init__`, their annotations, and `SUPPLIED_BY_PARENT`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

from cogvideox.config.binding import Parameter, Signature

REPOSITORY = Path(__file__).resolve().parents[2]

_NAMES: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "None": None, "list": list, "List": list, "tuple": tuple,
    "Tuple": tuple, "set": set, "dict": dict, "Dict": dict, "Mapping": Mapping, "Sequence": Sequence,
    "Iterable": Iterable, "Path": Path, "Any": Any,
}  # fmt: skip


@cache
def module_tree(module: str) -> ast.Module | None:
    """The parsed source of one of our modules, or `None` if there is no such file."""
    base = REPOSITORY.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return None


def class_names(module: str) -> list[str]:
    """The classes that a module of ours defines."""
    tree = module_tree(module)
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)] if tree else []


def static_signature(module: str, name: str) -> Signature | None:
    """The signature of class `name` of our `module`; `None` where the source alone does not tell."""
    found = _find_class(module, name)
    if found is None:
        return None
    home, node = found
    initializer = _inherited(home, node, _own_initializer)
    supplied = _inherited(home, node, _own_supplied)
    if initializer is None:
        return None
    parameters, takes_any = _parameters(initializer)
    return Signature(f"{module}.{name}", parameters, supplied or (), takes_any)


def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    tree = module_tree(module)
    for node in tree.body if tree else []:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find_class(node.module, alias.name)
    return None


def _inherited(module: str, node: ast.ClassDef, look: Any) -> Any:
    """What `look` finds in the class, else in its bases of ours, in order."""
    found = look(node)
    if found is not None:
        return found
    for base in node.bases:
        parent = _find_class(module, base.id) if isinstance(base, ast.Name) else None
        if parent is not None and (found := _inherited(*parent, look)) is not None:
            return found
    return None


def _own_initializer(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)


def _own_supplied(node: ast.ClassDef) -> tuple[str, ...] | None:
    for each in node.body:
        targets = (
            each.targets if isinstance(each, ast.Assign) else [each.target] if isinstance(each, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "SUPPLIED_BY_PARENT" for target in targets):
            assert isinstance(each, (ast.Assign, ast.AnnAssign)) and each.value is not None
            return tuple(ast.literal_eval(each.value))
    return None


def _parameters(function: ast.FunctionDef) -> tuple[dict[str, Parameter], bool]:
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args][1:]
    without_default = len(positional) - len(spec.defaults)
    parameters = {
        argument.arg: Parameter(_annotation(argument.annotation), index < without_default)
        for index, argument in enumerate(positional)
    }
    for argument, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
        parameters[argument.arg] = Parameter(_annotation(argument.annotation), default is None)
    return parameters, spec.kwarg is not None


def _annotation(node: ast.expr | None) -> Any:
    """The annotation as an object; `Any` for every name that is not in the table."""
    if isinstance(node, ast.Constant):
        return _annotation(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node.value
    if isinstance(node, ast.Name):
        return _NAMES.get(node.id, Any)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Union[_annotation(node.left), _annotation(node.right)]  # noqa: UP007 (built at run time)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _subscripted(node.value.id, items)
    return Any


def _subscripted(name: str, items: list[ast.expr]) -> Any:
    if name == "Literal":
        return Literal.__getitem__(tuple(ast.literal_eval(item) for item in items))
    arguments = tuple(_annotation(item) for item in items)
    if name == "Optional":
        return Union[arguments[0], None]  # noqa: UP007 (built at run time)
    if name == "Union":
        return Union.__getitem__(arguments)
    container = _NAMES.get(name, Any)
    return Any if container is Any else container[arguments]
