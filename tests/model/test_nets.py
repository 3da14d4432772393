import pytest
import torch
from torch import nn

from ppl_vae.errors import OptionError
from ppl_vae.model.nets import ACTIVATIONS, conv_decoder, conv_encoder, mlp


def test_mlp_without_hidden_layers_is_one_linear_map():
    net = mlp(5, 3, ())
    assert [type(layer) for layer in net] == [nn.Linear]
    x, y = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.allclose(net(x + y) - net(y), net(x) - net(torch.zeros(2, 5)), atol=1e-5)


def test_mlp_is_kingma_and_wellings_c1():
    net = mlp(4, 6, (7,))
    z = torch.randn(3, 4)
    by_hand = torch.tanh(z @ net[0].weight.T + net[0].bias) @ net[2].weight.T + net[2].bias
    assert torch.allclose(net(z), by_hand, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_trains(activation):
    net = mlp(4, 2, (8,), activation)
    net(torch.randn(5, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (28, 20), (7, 5), (3, 9, 6)])
@pytest.mark.parametrize("lead", [(4,), (2, 4), (1,)])
def test_convolutions_keep_leading_dimensions_and_any_image_size(shape, lead):
    d = torch.Size(shape).numel()
    encoder, decoder = conv_encoder(shape, 6, (10,)), conv_decoder(3, shape, 2 * d, (10,))
    assert encoder(torch.randn(*lead, d)).shape == (*lead, 6)
    assert decoder(torch.randn(*lead, 3)).shape == (*lead, 2 * d)


def test_a_convolution_sees_a_row_alone():
    encoder = conv_encoder((8, 8), 6)
    x = torch.randn(2, 5, 64)
    assert torch.allclose(encoder(x)[1, 3], encoder(x[1, 3:4])[0], atol=1e-6)


def test_bad_options_name_what_was_got():
    with pytest.raises(OptionError, match="'gelu'"):
        mlp(2, 2, (3,), "gelu")
    with pytest.raises(OptionError, match=r"rows of shape \(64,\)"):
        conv_encoder((64,), 2)
    with pytest.raises(OptionError, match="channels"):
        conv_decoder(2, (8, 8), 64, channels=())
