"""From a batch's captions to what the network is conditioned on.

# B batch, N text tokens, D width
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cogvideox import parallel
from cogvideox.config import instantiate
from cogvideox.errors import UserError

logger = logging.getLogger(__name__)

NODE_KEYS = ("target", "params", "is_trainable", "ucg_rate", "input_key")

# An embedding's number of dimensions → its entry of the conditioning, and the dimension along which several are joined.
ENTRIES = {2: "vector", 3: "crossattn", 4: "concat", 5: "concat"}
JOIN_DIM = {"vector": 1, "crossattn": 2, "concat": 1}


class Embedder(nn.Module):
    """Base of what `emb_models` may name: `forward(batch[input_key])` → an embedding (B,…) of 2 to 5 dimensions."""

    is_trainable: bool = False
    ucg_rate: float = 0.0
    input_key: str = ""


class AbsentEmbedder(Embedder):
    """Stands where all embeddings come with the batch, so that no encoder is built."""

    def forward(self, values: Any) -> Tensor:
        """UserError: something was not embedded before."""
        raise UserError(
            f"the batch has no {self.input_key}_embedding, and with --cache there is no encoder to make it from "
            f"{values!r}: leave --cache out"
        )


def without_encoders(config: Mapping[str, Any]) -> dict[str, Any]:
    """A conditioner's config with nothing in the embedders' places; dropout rates and keys stay."""
    absent = f"{AbsentEmbedder.__module__}.{AbsentEmbedder.__name__}"
    params = config["params"]
    nodes = [{**node, "target": absent, "params": {}} for node in params["emb_models"]]
    return {**config, "params": {**params, "emb_models": nodes}}


class GeneralConditioner(nn.Module):
    """Runs the embedders that `emb_models` lists and drops embeddings of whole samples in training.

    Each entry is `{target, params, input_key}` with `ucg_rate` (the probability that a sample's embedding is zeroed)
    and `is_trainable`. The embedders at the places `cor_embs` are dropped together instead: `cor_p` has the probability
    of each combination, bit i of its place (lowest first) being set where the i-th of `cor_embs` is dropped.
    """

    def __init__(
        self, emb_models: Sequence[Mapping[str, Any]], cor_embs: Sequence[int] = (), cor_p: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.embedders = nn.ModuleList(build_embedder(place, node) for place, node in enumerate(emb_models))
        if cor_embs and len(cor_p) != 2 ** len(cor_embs):
            raise UserError(f"cor_p has {len(cor_p)} values for {len(cor_embs)} cor_embs: give {2 ** len(cor_embs)}")
        self.cor_embs = tuple(cor_embs)
        self.cor_p = tuple(cor_p)

    def forward(
        self, batch: Mapping[str, Any], force_zero_embeddings: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The conditioning: `crossattn` (B,N,D) for text. Caption dropout happens in training mode only.

        An embedding that the batch has already, as `<input_key>_embedding`, is taken as it is.
        Embeddings whose input key is in `force_zero_embeddings` are zeros.
        """
        embeddings = self._embed(batch)
        if self.training:
            embeddings = self._drop(embeddings)
        return self._join(embeddings, force_zero_embeddings or ())

    def get_unconditional_conditioning(
        self,
        batch: Mapping[str, Any],
        batch_uc: Mapping[str, Any] | None = None,
        force_uc_zero_embeddings: Sequence[str] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The conditioning and the unconditional one (of `batch_uc` where given), both without dropout."""
        embeddings = self._embed(batch)
        embeddings_uc = embeddings if batch_uc is None else self._embed(batch_uc)
        return self._join(embeddings, ()), self._join(embeddings_uc, force_uc_zero_embeddings or ())

    def train(self, mode: bool = True) -> GeneralConditioner:
        """Training mode for itself and for the trainable embedders; the frozen ones stay in evaluation mode."""
        super().train(mode)
        for embedder in self._embedders():
            embedder.train(mode and embedder.is_trainable)
        return self

    def _embedders(self) -> list[Embedder]:
        return [embedder for embedder in self.embedders if isinstance(embedder, Embedder)]

    def _embed(self, batch: Mapping[str, Any]) -> list[Tensor]:
        embeddings = []
        for embedder in self._embedders():
            if (ready := batch.get(f"{embedder.input_key}_embedding")) is not None:
                embeddings.append(ready)
                continue
            if embedder.input_key not in batch:
                raise UserError(
                    f"the batch has no `{embedder.input_key}` (conditioner_config: input_key), it has {sorted(batch)}: "
                    "correct input_key or let the data set supply it"
                )
            with contextlib.nullcontext() if embedder.is_trainable else torch.no_grad():
                embeddings.append(embedder(batch[embedder.input_key]))
        return embeddings

    def _drop(self, embeddings: list[Tensor]) -> list[Tensor]:
        together = self._draw_combination(embeddings)
        kept = []
        for place, (embedder, embedding) in enumerate(zip(self._embedders(), embeddings, strict=True)):
            if place in self.cor_embs:
                dropped = (together >> self.cor_embs.index(place)) & 1 == 1
            elif embedder.ucg_rate > 0:
                draw = torch.rand(embedding.shape[0], device=embedding.device)
                dropped = parallel.current().model.broadcast(draw) < embedder.ucg_rate
            else:
                kept.append(embedding)
                continue
            kept.append(embedding.masked_fill(dropped.reshape(-1, *[1] * (embedding.ndim - 1)), 0))
        return kept

    def _draw_combination(self, embeddings: list[Tensor]) -> Tensor:
        if not self.cor_embs:
            return torch.empty(0, dtype=torch.int64)
        first = embeddings[0]
        probability = torch.tensor(self.cor_p, device=first.device)
        return parallel.current().model.broadcast(torch.multinomial(probability, first.shape[0], replacement=True))

    def _join(self, embeddings: list[Tensor], zeroed: Sequence[str]) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for embedder, embedding in zip(self._embedders(), embeddings, strict=True):
            part = torch.zeros_like(embedding) if embedder.input_key in zeroed else embedding
            parts.setdefault(ENTRIES[part.ndim], []).append(part)
        return {key: torch.cat(same, JOIN_DIM[key]) if len(same) > 1 else same[0] for key, same in parts.items()}


def build_embedder(place: int, node: Mapping[str, Any]) -> Embedder:
    """The embedder of one entry of `emb_models`, frozen unless it is trainable. Raises UserError."""
    where = f"conditioner_config: emb_models[{place}]"
    unknown = sorted(set(node) - set(NODE_KEYS))
    if unknown:
        raise UserError(f"{where} has unknown keys {', '.join(unknown)}: it takes {', '.join(NODE_KEYS)}")
    if not node.get("input_key"):
        raise UserError(f"{where} has no input_key: name the entry of the batch that it embeds, e.g. `input_key: txt`")
    ucg_rate = float(node.get("ucg_rate", 0.0))
    if not 0 <= ucg_rate <= 1:
        raise UserError(f"{where}: ucg_rate is {ucg_rate}, but it is a probability: set it from 0 to 1")

    embedder = instantiate({"target": node.get("target"), "params": node.get("params") or {}})
    if not isinstance(embedder, Embedder):
        raise UserError(
            f"{where}: {node['target']} is no cogvideox.conditioning.conditioner.Embedder: derive it from that"
        )
    embedder.input_key = node["input_key"]
    embedder.ucg_rate = ucg_rate
    embedder.is_trainable = bool(node.get("is_trainable", False))
    if not embedder.is_trainable:
        embedder.requires_grad_(False).eval()
    elif not any(parameter.requires_grad for parameter in embedder.parameters()):
        logger.warning("%s is trainable, but all its parameters are frozen: set its `freeze: false`", where)
    return embedder
