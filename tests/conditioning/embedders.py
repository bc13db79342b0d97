"""A small trainable embedder, for tests of the conditioner."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cogvideox.conditioning.conditioner import Embedder


class LengthEmbedder(Embedder):
    """Texts → (B,N,D) or (B,D): the text's length in every place, times a weight."""

    def __init__(self, width: int = 3, tokens: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.tokens = tokens
        self.calls = 0

    def forward(self, texts: list[str]) -> Tensor:
        self.calls += 1
        lengths = torch.tensor([float(len(text)) for text in texts])
        embedding = lengths[:, None, None] * self.weight.expand(self.tokens, -1)
        return embedding if self.tokens > 1 else embedding[:, 0]


class NotAnEmbedder(nn.Module):
    """What emb_models must not name."""


def node(
    input_key: str = "txt",
    name: str = "LengthEmbedder",
    is_trainable: bool = False,
    ucg_rate: float = 0.0,
    **params: int,
) -> dict:
    return {
        "target": f"tests.conditioning.embedders.{name}",
        "params": params,
        "input_key": input_key,
        "is_trainable": is_trainable,
        "ucg_rate": ucg_rate,
    }
