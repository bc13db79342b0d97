"""The norm of each layer's gradients in one backward, on this rank alone: before ranks add theirs, at any stage."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

# `…layers.3.attention.dense.weight` → `…layers.3`; where nothing is numbered, the module that has the parameter.
_LAYER = re.compile(r".*?\.\d+(?=\.)")


class GradientNorms:
    """Measures, inside a `with`, the gradients that reach the parameters of `module` which train."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        self._squares: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> GradientNorms:
        for name, parameter in self._parameters:
            self._hooks.append(parameter.register_hook(self._noting(layer_of(name))))
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def by_layer(self) -> dict[str, float]:
        """L2 norms, in the order of the parameters; of layers that a gradient reached."""
        layers = dict.fromkeys(layer_of(name) for name, _ in self._parameters)
        return {layer: float(self._squares[layer].sqrt()) for layer in layers if layer in self._squares}

    def _noting(self, layer: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            square = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32) ** 2
            self._squares[layer] = self._squares[layer] + square if layer in self._squares else square

        return note


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to, by its name."""
    found = _LAYER.match(parameter)
    return found[0] if found else parameter.rpartition(".")[0]
