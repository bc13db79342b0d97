"""GeneralConditioner: dropout, zeroing, joining, freezing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from cogvideox.conditioning.conditioner import GeneralConditioner, without_encoders
from cogvideox.config import allowed_modules, instantiate
from cogvideox.errors import UserError
from tests.conditioning.embedders import node
from tests.diffusion.ranks import on_both_ranks


@pytest.fixture(autouse=True)
def allow_targets_of_tests() -> Iterator[None]:
    before = list(allowed_modules.names)
    allowed_modules.allow("tests")
    yield
    allowed_modules.names[:] = before


def conditioner(*nodes: dict[str, Any], **params: Any) -> GeneralConditioner:
    return instantiate({"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": list(nodes), **params}})


BATCH = {"txt": ["a"] * 20_000}


def test_dropout_zeroes_whole_samples_at_the_rate():
    """Truth: identity. Every sample is all zero or untouched; the count is binomial (n 20,000, p 0.1)."""
    torch.manual_seed(0)
    embedding = conditioner(node(ucg_rate=0.1))(BATCH)["crossattn"]
    zero, whole = (embedding == 0).all((1, 2)), (embedding == 1).all((1, 2))
    assert (zero ^ whole).all()
    assert binomtest(int(zero.sum()), 20_000, 0.1).pvalue > 1e-4


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_at_the_ends(rate, expected):
    """Truth: identity. Rate 0 drops none, rate 1 all."""
    assert float(conditioner(node(ucg_rate=rate))(BATCH)["crossattn"].mean()) == expected


def test_no_dropout_in_evaluation_or_for_sampling():
    """Truth: identity. Rate 1 drops nothing in eval mode, nor in the pair for sampling even in training mode."""
    module = conditioner(node(ucg_rate=1.0))
    c, uc = module.get_unconditional_conditioning({"txt": ["abc", "de"]}, force_uc_zero_embeddings=["txt"])
    assert c["crossattn"][:, 0, 0].tolist() == [3, 2] and uc["crossattn"].abs().sum() == 0
    assert float(module.eval()(BATCH)["crossattn"].mean()) == 1.0
    assert float(module.train()(BATCH)["crossattn"].mean()) == 0.0


def test_unconditional_batch_and_encoding_once():
    """Truth: identity. `batch_uc` is embedded where given; without it captions are embedded once for both."""
    module = conditioner(node())
    c, uc = module.get_unconditional_conditioning({"txt": ["abc"]}, {"txt": ["x"]})
    assert (c["crossattn"][0, 0, 0], uc["crossattn"][0, 0, 0]) == (3, 1)
    before = module.embedders[0].calls
    c, uc = module.get_unconditional_conditioning({"txt": ["abc"]})
    assert torch.equal(c["crossattn"], uc["crossattn"]) and module.embedders[0].calls == before + 1


def test_forced_zero_embeddings():
    """Truth: identity. Named input keys give zeros, others do not."""
    module = conditioner(node("txt"), node("title", tokens=1)).eval()
    out = module({"txt": ["abc"], "title": ["de"]}, force_zero_embeddings=["txt"])
    assert out["crossattn"].abs().sum() == 0 and out["vector"].tolist() == [[2, 2, 2]]


def test_embeddings_of_one_kind_are_joined():
    """Truth: identity. (B,N,D) joins along D, (B,D) along D, in the order of the list."""
    module = conditioner(node("txt"), node("title"), node("txt", tokens=1), node("title", tokens=1)).eval()
    out = module({"txt": ["abc"], "title": ["de"]})
    assert out["crossattn"].tolist() == [[[3, 3, 3, 2, 2, 2]] * 2] and out["vector"].tolist() == [[3, 3, 3, 2, 2, 2]]


def test_correlated_dropout_follows_its_table():
    """Truth: identity. The four combinations of two embedders come with the probabilities of `cor_p`."""
    torch.manual_seed(0)
    probabilities = [0.5, 0.1, 0.15, 0.25]
    module = conditioner(node("txt", tokens=1), node("title", tokens=1), cor_embs=[0, 1], cor_p=probabilities)
    out = module({"txt": ["a"] * 20_000, "title": ["b"] * 20_000})["vector"]
    combination = (out[:, 0] == 0).long() + 2 * (out[:, 3] == 0).long()
    for place, probability in enumerate(probabilities):
        assert binomtest(int((combination == place).sum()), 20_000, probability).pvalue > 1e-4


def test_frozen_embedders_give_no_gradient_and_stay_in_eval():
    """Truth: identity. `is_trainable` decides on requires_grad, on the graph and on the mode after `.train()`."""
    module = conditioner(node(is_trainable=True), node("title")).train()
    trained, frozen = module.embedders
    assert (trained.training, frozen.training) == (True, False)
    assert (trained.weight.requires_grad, frozen.weight.requires_grad) == (True, False)
    module({"txt": ["abc"], "title": ["de"]})["crossattn"].sum().backward()
    assert trained.weight.grad is not None and frozen.weight.grad is None
    assert not conditioner(node())({"txt": ["abc"]})["crossattn"].requires_grad


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (node(ucg_rate=1.5), r"emb_models\[0\]: ucg_rate is 1.5"),
        (node(input_key=""), r"emb_models\[0\] has no input_key"),
        (node() | {"ucg_rat": 0.1}, r"emb_models\[0\] has unknown keys ucg_rat"),
        (node(name="NotAnEmbedder"), "is no .*Embedder"),
    ],
)
def test_mistakes_in_the_config_are_named(entry, message):
    """Truth: the message names place, key and value."""
    with pytest.raises(UserError, match=message):
        conditioner(entry)


def test_mistakes_in_cor_p_and_batch_are_named():
    """Truth: the message gives both numbers, or the key and what there is."""
    with pytest.raises(UserError, match="cor_p has 2 values for 2 cor_embs: give 4"):
        conditioner(node(), node("title"), cor_embs=[0, 1], cor_p=[0.5, 0.5])
    with pytest.raises(UserError, match=r"no `txt`.*\['caption'\]"):
        conditioner(node())({"caption": ["a"]})


@pytest.mark.parametrize("together", [False, True])
def test_model_parallel_ranks_drop_the_same_captions(together):
    """Truth: identity. The dropped samples of rank 0 hold on every rank of its model-parallel group."""
    params = {"cor_embs": [0], "cor_p": [0.5, 0.5]} if together else {}
    module = conditioner(node(ucg_rate=0.5), **params)
    first, second = on_both_ranks(lambda: module({"txt": ["a"] * 64})["crossattn"])
    assert torch.equal(first, second) and 0 < first.mean() < 1


def test_an_embedding_that_the_batch_has_is_taken_as_it_is_and_dropped_like_any_other():
    """Truth: identity. Nothing is embedded; the dropout's draws are those of embedding."""
    config = {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": [node(ucg_rate=0.5)]}}
    built, absent = instantiate(config), instantiate(without_encoders(config))
    ready = built.eval()({"txt": ["a"] * 8})["crossattn"]
    torch.manual_seed(1)
    expected = built.train()({"txt": ["a"] * 8})["crossattn"]
    torch.manual_seed(1)
    batch = {"txt": ["a"] * 8, "txt_embedding": ready}
    assert torch.equal(absent.train()(batch)["crossattn"], expected) and 0 < float(expected.mean()) < 1
    with pytest.raises(UserError, match="no txt_embedding"):
        absent({"txt": ["a"]})
