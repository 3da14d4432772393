"""A partly known class: its distributions by hand."""

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import one_hot

from ppl_vae.model.classes import Classes

X, LABEL = torch.randn(6, 3).double(), torch.tensor([2, -1, 0, -1, 1, -1])
KNOWN = LABEL >= 0


class AsTheyAre(nn.Module):
    """x as its features, 0 in holes."""

    def forward(self, x, mask=None):
        return x if mask is None else torch.where(mask, x, 0.0)


@pytest.fixture
def classes():
    made = Classes(AsTheyAre(), nn.Linear(3, 4), 4, weight=2.5).double()
    with torch.no_grad():
        made.logits.copy_(torch.tensor([0.5, 0.0, -1.0, 0.3]))
    return made


def test_prior_and_classifier_are_categorical(classes):
    assert torch.allclose(classes.prior().probs, classes.logits.softmax(0))
    assert torch.allclose(classes.posterior(X, None, None, None).probs, classes.net(X).softmax(-1))
    assert classes.posterior(X.expand(5, 6, 3), None, None, LABEL).batch_shape == (5, 6)


def test_the_posterior_is_certain_where_the_label_is_known_and_has_finite_gradients(classes):
    posterior = classes.posterior(X, None, None, LABEL)
    assert torch.equal(posterior.probs[KNOWN], one_hot(LABEL[KNOWN], 4).double())
    assert torch.allclose(posterior.probs[~KNOWN], classes.net(X[~KNOWN]).softmax(-1))
    posterior.entropy().sum().backward()
    assert torch.equal(posterior.entropy()[KNOWN], torch.zeros(3).double())
    assert all(torch.isfinite(p.grad).all() for p in classes.net.parameters())


def test_supervision_is_the_weighted_log_probability_of_known_labels(classes):
    def program():
        with pyro.plate("data", 6, dim=-1):
            classes.supervise(X, None, None, LABEL)

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    expected = 2.5 * classes.net(X).log_softmax(-1)[torch.arange(6), LABEL.clamp(min=0)] * KNOWN
    assert torch.allclose(trace.nodes["label"]["log_prob"], expected)


def test_hidden_cells_reach_no_classifier(classes):
    mask = torch.rand(6, 3) < 0.5
    logits = [classes.classify(torch.where(mask, X, hidden), mask, None) for hidden in (0.0, float("nan"), 1e30)]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
