"""DenseResNet and the regressor against plain numpy, and their checkpoints."""

import numpy as np
import pytest
import torch

import model
import runtime
from runtime import UserError

CPU = torch.device("cpu")


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


def test_forward_is_the_numpy_forward(network):
    x = torch.randn(11, 37)
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}
    expected = numpy_dense_resnet(state, x.double().numpy())
    network.eval()
    with torch.no_grad():
        found = *network(x), network.cluster_features(x)
        again = network.predict_clusters(x), network.predict_attribute(x)
    for one, other in zip(found, expected):
        assert np.allclose(one.numpy(), other, atol=1e-5)
    assert torch.equal(again[0], found[0]) and torch.equal(again[1], found[1])


def test_regressor_is_the_numpy_forward():
    network = model.DenseNet(20).eval()
    x = torch.randn(9, 20)
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}
    y = linear(state, "dense_net.0", x.double().numpy())
    y = relu(linear(state, "dense_net.2", y))
    y = relu(linear(state, "dense_net.5", y))
    with torch.no_grad():
        assert np.allclose(network(x).numpy(), linear(state, "dense_net.7", y)[:, 0], atol=1e-5)


def test_size_is_the_papers():
    assert sum(p.numel() for p in model.DenseResNet(6373, 50).parameters()) == pytest.approx(12.84e6, rel=1e-3)


def test_eval_mode_has_no_dropout_and_training_mode_has(network):
    x = torch.randn(50, 37)
    network.eval()
    assert torch.equal(network(x)[0], network(x)[0])
    block = network.dnn_features[2]
    block.train()  # the block's own dropout, which the original leaves on
    assert not torch.equal(network(x)[0], network(x)[0])


def test_in_batches_gives_all_rows_in_order_and_puts_the_mode_back(network, monkeypatch):
    monkeypatch.setattr(model, "PASS_ROWS", 4)
    rows = torch.randn(11, 37)
    network.train()
    logits, attribute = model.in_batches(network, network, rows, CPU, "fp32")
    assert network.training and logits.shape == (11, 6) and attribute.shape == (11,)
    network.eval()
    assert torch.allclose(network(rows)[0], logits, atol=1e-6)


def test_bf16_is_close_to_fp32(network):
    rows = torch.randn(30, 37)
    (exact,) = model.in_batches(network, network.predict_attribute, rows, CPU, "fp32")
    (rough,) = model.in_batches(network, network.predict_attribute, rows, CPU, "bf16")
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert torch.allclose(rough, exact, atol=0.05)


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


@pytest.mark.parametrize(
    ("asked", "words"), [((36, 6, "Val"), "37 features"), ((37, 7, "Val"), "6 clusters"), ((37, 6, "Act"), "Act")]
)
def test_a_checkpoint_of_another_width_k_or_attribute_is_refused(network, tmp_path, asked, words):
    model.save_ssl_checkpoint(tmp_path / "c.pth.tar", network.state_dict(), {"emo_attr": "Val"})
    with pytest.raises(UserError, match=words):
        model.load_ssl_checkpoint(tmp_path / "c.pth.tar", *asked)


class Exploit:
    """Unpickling this would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("load", ["ssl", "regressor"])
def test_a_checkpoint_that_would_run_code_is_refused_unrun(tmp_path, load):
    torch.save({"state_dict": Exploit(tmp_path / "pwned")}, tmp_path / "c.tar")
    with pytest.raises(UserError, match="run code"):
        if load == "ssl":
            model.load_ssl_checkpoint(tmp_path / "c.tar", 37, 6, "Val")
        else:
            model.load_regressor(tmp_path / "c.tar", 37, "Val")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04" + b"\0" * 40])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "c.tar").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        model.load_ssl_checkpoint(tmp_path / "c.tar", 37, 6, "Val")


def test_a_truncated_checkpoint_is_refused(network, tmp_path):
    path = tmp_path / "c.pth.tar"
    model.save_ssl_checkpoint(path, network.state_dict(), {})
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="damaged"):
        model.load_ssl_checkpoint(path, 37, 6, "Val")


def test_regressor_is_a_bare_state_dict_that_still_knows_its_attribute(tmp_path):
    network = model.DenseNet(20)
    model.save_regressor(tmp_path / "r.pt.tar", network.state_dict(), {"emo_attr": "Val", "epoch": 70})
    bare = torch.load(tmp_path / "r.pt.tar", weights_only=True)
    assert list(bare) == [f"dense_net.{n}.{part}" for n in (0, 2, 5, 7) for part in ("weight", "bias")]
    model.DenseNet(20).load_state_dict(bare)
    loaded, info = model.load_regressor(tmp_path / "r.pt.tar", 20, "Val")
    assert info["epoch"] == 70
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in bare.items())
    with pytest.raises(UserError, match="trained for Val"):
        model.load_regressor(tmp_path / "r.pt.tar", 20, "Act")
    with pytest.raises(UserError, match="20 features"):
        model.load_regressor(tmp_path / "r.pt.tar", 21, "Val")


def test_a_regressor_from_the_original_loads(tmp_path):
    network = model.DenseNet(20)
    torch.save(network.state_dict(), tmp_path / "r.pt.tar")
    assert model.load_regressor(tmp_path / "r.pt.tar", 20, "Val")[1] == {}


def test_the_same_weights_give_the_same_bytes_under_any_name(network, tmp_path):
    for name in ("one.pth.tar", "another.pth.tar"):
        model.save_ssl_checkpoint(tmp_path / name, network.state_dict(), {"seed": 1})
    assert (tmp_path / "one.pth.tar").read_bytes() == (tmp_path / "another.pth.tar").read_bytes()
