"""Encoders and decoders: what their nets see, and what their families make of it."""

import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae.model.conditional import Conditional, Decoder, Encoder, beside, distribution, width

X, C, Y = torch.randn(5, 3), torch.randn(5, 2), torch.eye(4)[[0, 3, 1, 1, 2]]


class Halves(nn.Module):
    """Loc and log scale of each feature."""

    outputs = 2

    def forward(self, loc, raw):
        return dist.Normal(loc, raw.exp()).to_event(1)


class Whole(nn.Module):
    """All numbers at once: the first is the scale of the rest."""

    width = 3

    def forward(self, raw):
        return dist.Normal(raw[..., 1:], raw[..., :1].exp()).to_event(1)


def test_features_stand_side_by_side_at_any_leading_shape():
    assert torch.equal(beside(X, None, C), torch.cat([X, C], 1)) and beside(None, X) is X
    found = beside(X.expand(7, 5, 3), C, Y[:, None].transpose(0, 1))
    assert found.shape == (7, 5, 9) and torch.equal(found[6], torch.cat([X, C, Y], 1))


def test_both_protocols_of_a_family():
    raw = torch.randn(5, 6)
    assert width(Halves(), 3) == 6 and width(Whole(), 3) == 3
    halves = distribution(Halves(), raw)
    assert torch.equal(halves.mean, raw[:, :3]) and torch.equal(halves.stddev, raw[:, 3:].exp())
    whole = distribution(Whole(), raw[:, :3])
    assert torch.equal(whole.mean, raw[:, 1:3]) and torch.equal(whole.stddev, raw[:, :1].exp().expand(5, 2))
    net = nn.Linear(3, 6)
    assert torch.equal(Conditional(net, Halves())(X).mean, net(X)[:, :3])


def test_encoder_and_decoder_see_covariates_and_classes_in_this_order():
    def inputs(x, mask=None):
        return x if mask is None else torch.cat([x, mask.to(x)], -1)

    def doubled(c):
        return 2 * c

    mask = X > 0
    encoder = Encoder(inputs, nn.Linear(3 + 3 + 2 + 4, 4), Halves(), doubled)
    expected = encoder.net(torch.cat([X, mask.to(X), 2 * C, Y], 1))
    assert torch.equal(encoder(X, mask, C, Y).mean, expected[:, :2])
    assert torch.equal(encoder.at(torch.cat([X, mask.to(X), 2 * C, Y], 1)).mean, expected[:, :2])
    z = torch.randn(6, 5, 2)
    decoder = Decoder(nn.Linear(2 + 2 + 4, 6), Halves(), doubled)
    expected = decoder.net(torch.cat([z, *(part.expand(6, *part.shape) for part in (2 * C, Y))], -1))
    assert torch.allclose(decoder(z, C, Y).mean, expected[..., :3])


def test_shared_sites_are_those_of_the_module_given():
    encoder = Encoder(lambda x, mask: x, nn.Linear(3, 4), Halves(), shared=lambda: {"w": 1})
    assert encoder.global_sites() == {"w": 1}
    assert Encoder(lambda x, mask: x, nn.Linear(3, 4), Halves()).global_sites() is None
