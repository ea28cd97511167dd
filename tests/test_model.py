"""DenseResNet and the regressor against numpy, their layers and their checkpoints."""

import numpy as np
import pytest
import torch

import model
from deepmi import runtime
from deepmi.layers import Dropout, InputLinear
from deepmi.process import UserError

pytestmark = pytest.mark.as_published


def relu(x):
    return np.maximum(x, 0)


def linear(state, key, x):
    return x @ state[f"{key}.weight"].T + state[f"{key}.bias"]


def numpy_dense_resnet(state, x):
    """Eval-mode forward written from the description of the network."""
    for first in (0, 4, 8):
        x = linear(state, f"dnn_features.{first}", x)
        for block in (first + 2, first + 3):
            hidden = relu(linear(state, f"dnn_features.{block}.dense1", x))
            x = relu(linear(state, f"dnn_features.{block}.dense2", hidden) + x)
    logits = linear(state, "top_layer_class", relu(linear(state, "classifier.0", x)))
    attribute = linear(state, "emo_regressor.2", relu(linear(state, "emo_regressor.0", x)))
    return logits, attribute[:, 0], linear(state, "classifier.0", x)


@pytest.fixture
def network():
    runtime.seed_everything(5)
    return model.DenseResNet(37, 6)


def test_forward_is_the_numpy_forward_and_the_size_is_the_papers(network):
    assert sum(p.numel() for p in model.DenseResNet(6373, 50).parameters()) == pytest.approx(12.84e6, rel=1e-3)
    x = torch.randn(11, 37)
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}
    expected = numpy_dense_resnet(state, x.double().numpy())
    network.eval()
    with torch.no_grad():
        found = *network(x), network.cluster_features(x)
        again = network.forward(x, clusters_only=True)[0], network.predict_attribute(x)
    for one, other in zip(found, expected):
        assert np.allclose(one.numpy(), other, atol=1e-5)
    assert torch.equal(again[0], found[0]) and torch.equal(again[1], found[1])
    network.train()
    assert not torch.equal(network(x)[0], network(x)[0])  # dropout


def numpy_regressor(state, x):
    """Eval-mode forward of the regressor."""
    x = relu(linear(state, "dense_net.2", linear(state, "dense_net.0", x)))
    return linear(state, "dense_net.7", relu(linear(state, "dense_net.5", x)))[:, 0]


def test_regressor_is_the_numpy_forward():
    network, x = model.DenseNet(20).eval(), torch.randn(9, 20)
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}
    with torch.no_grad():
        assert np.allclose(network(x).numpy(), numpy_regressor(state, x.double().numpy()), atol=1e-5)


def test_dropout_has_the_rate_and_the_mean_and_follows_the_seed():
    layer, x = Dropout(0.3), torch.ones(4000, 64, requires_grad=True)
    runtime.seed_everything(3)
    first = layer(x)
    kept = (first > 0).double()
    error = 5 / x.numel() ** 0.5  # five standard errors
    assert sorted(set(first.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    assert kept.mean().item() == pytest.approx(0.7, abs=error * 0.21**0.5)
    assert (torch.corrcoef(kept.t()) - torch.eye(64)).abs().max() < 5.5 / 4000**0.5  # units are independent
    assert torch.corrcoef(torch.stack([kept.flatten()[1:], kept.flatten()[:-1]]))[0, 1].abs() < error
    first.sum().backward()
    assert torch.equal(x.grad, first)
    assert not torch.equal(first, layer(x))
    runtime.seed_everything(3)
    assert torch.equal(first, layer(x))
    assert torch.equal(layer.eval()(x), x)


def test_the_input_layer_behaves_as_a_linear_layer():
    runtime.seed_everything(6)
    ours, theirs = InputLinear(7, 5), torch.nn.Linear(7, 5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    assert torch.allclose(ours.weight.grad.t(), theirs.weight.grad, atol=1e-5)
    again = InputLinear(7, 5)
    again.load_state_dict(theirs.state_dict())
    assert torch.equal(again.weight, ours.weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        again.load_state_dict({"weight": torch.zeros(7, 5), "bias": torch.zeros(5)})


def test_top_layer_is_renewed(network):
    runtime.seed_everything(1)
    network.renew_top_layer()
    assert network.top_layer_class.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert (network.top_layer_class.bias == 0).all()


ORIGINAL_KEYS = (
    [f"dnn_features.module.{n}" for n in (0, 4, 8)]
    + [f"dnn_features.module.{n}.dense{d}" for n in (2, 3, 6, 7, 10, 11) for d in (1, 2)]
    + ["classifier.0", "top_layer_class", "emo_regressor.0", "emo_regressor.2"]
)


def test_checkpoint_has_the_originals_layout(network, tmp_path):
    model.save_ssl_checkpoint(tmp_path / "c.pth.tar", network.state_dict(), {"emo_attr": "Val"})
    content = torch.load(tmp_path / "c.pth.tar", weights_only=True)
    assert content["arch"] == "resnet"
    assert sorted(content["state_dict"]) == sorted(f"{k}.{part}" for k in ORIGINAL_KEYS for part in ("weight", "bias"))


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_checkpoints_of_the_original_load_with_and_without_module(network, tmp_path, prefix):
    weights = network.state_dict()
    renamed = {key.replace("dnn_features.", f"dnn_features.{prefix}"): value for key, value in weights.items()}
    torch.save({"arch": "resnet", "state_dict": renamed}, tmp_path / "c.pth.tar")
    loaded, info = model.load_ssl_checkpoint(tmp_path / "c.pth.tar", 37, 6, "Val")
    assert info == {} and not loaded.training
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in weights.items())


class Exploit:
    """Unpickling this would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize(("load", "more"), [(model.load_ssl_checkpoint, (6, "Val")), (model.load_regressor, ())])
def test_a_checkpoint_that_would_run_code_is_refused_without_running_it(tmp_path, load, more):
    torch.save({"state_dict": Exploit(tmp_path / "pwned")}, tmp_path / "c.tar")
    with pytest.raises(UserError, match="run code"):
        load(tmp_path / "c.tar", 37, *more)
    assert not (tmp_path / "pwned").exists()


def test_regressor_is_a_bare_state_dict_that_still_knows_its_attribute(tmp_path):
    network = model.DenseNet(20)
    model.save_regressor(tmp_path / "r.pt.tar", network.state_dict(), {"emo_attr": "Val", "epoch": 70})
    bare = torch.load(tmp_path / "r.pt.tar", weights_only=True)
    assert list(bare) == [f"dense_net.{n}.{part}" for n in (0, 2, 5, 7) for part in ("weight", "bias")]
    torch.save(network.state_dict(), tmp_path / "original.pt.tar")
    assert model.load_regressor(tmp_path / "original.pt.tar", 20, "Val")[1] == {}
    loaded, info = model.load_regressor(tmp_path / "r.pt.tar", 20, "Val")
    assert info["epoch"] == 70
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in bare.items())
    with pytest.raises(UserError, match="trained for Val"):
        model.load_regressor(tmp_path / "r.pt.tar", 20, "Act")
    with pytest.raises(UserError, match="20 features"):
        model.load_regressor(tmp_path / "r.pt.tar", 21, "Val")


def test_the_same_weights_give_the_same_bytes_under_any_name(network, tmp_path):
    for name in ("one.pth.tar", "another.pth.tar"):
        model.save_ssl_checkpoint(tmp_path / name, network.state_dict(), {"seed": 1})
    assert (tmp_path / "one.pth.tar").read_bytes() == (tmp_path / "another.pth.tar").read_bytes()
