"""DenseResNet and the curriculum regressor, and reading and writing their checkpoints.

B is the batch, D the number of features (6,373 for IS13 ComParE), K the number of clusters.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deepmi import tensors
from deepmi.features import common_feature_set
from deepmi.layers import Dropout, InputLinear
from deepmi.process import UserError

DROPOUT = 0.3
TRUNK_WIDTHS = (1024, 512, 256)
REGRESSOR_WIDTH = 512
LONGEST_FACT = 1000  # characters of a fact about the training
INFO_KEY = "deepmi"  # key of the facts about the training in a checkpoint


class ResidualBlock(nn.Module):
    """relu(dense2(dropout(relu(dense1(x)))) + x); input and output have the same width."""

    def __init__(self, width: int):
        super().__init__()
        self.dense1 = nn.Linear(width, width)
        self.dropout = Dropout(DROPOUT)
        self.dense2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # In the original this dropout stays on when DeepMI is extracted; here eval mode turns it off.
        hidden = self.dropout(self.dense1(x).relu_())
        return self.dense2(hidden).add_(x).relu_()


class DenseResNet(nn.Module):
    """Trunk with a cluster head and an attribute head.

    Source: Lin, Sridhar & Busso (2024), and the layers in the checkpoints of the original.
    """

    def __init__(self, num_features: int, num_clusters: int):
        super().__init__()
        layers: list[nn.Module] = []
        width_in = num_features
        for width in TRUNK_WIDTHS:
            layers += [
                nn.Linear(width_in, width) if layers else InputLinear(width_in, width),
                Dropout(DROPOUT),
                ResidualBlock(width),
                ResidualBlock(width),
            ]
            width_in = width
        self.dnn_features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(width_in, width_in), nn.ReLU())
        self.top_layer_class = nn.Linear(width_in, num_clusters)
        self.emo_regressor = nn.Sequential(nn.Linear(width_in, width_in), nn.ReLU(), nn.Linear(width_in, 1))

    @property
    def num_features(self) -> int:
        """D."""
        return self.dnn_features[0].in_features

    @property
    def num_clusters(self) -> int:
        """K."""
        return self.top_layer_class.out_features

    def forward(self, x: Tensor, clusters_only: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, D) -> cluster logits (B, K) and z-normalised attribute (B,), or None if `clusters_only`."""
        hidden = self.dnn_features(x)  # (B, 256)
        attribute = None if clusters_only else self.emo_regressor(hidden).squeeze(1)
        return self.top_layer_class(self.classifier(hidden)), attribute

    def cluster_features(self, x: Tensor) -> Tensor:
        """The input of k-means: (B, D) -> (B, 256), the linear output of the classifier before its ReLU."""
        return self.classifier[0](self.dnn_features(x))

    def predict_attribute(self, x: Tensor) -> Tensor:
        """(B, D) -> z-normalised attribute (B,)."""
        return self.emo_regressor(self.dnn_features(x)).squeeze(1)

    def renew_top_layer(self) -> None:
        """Reset the top layer for new pseudo-labels: weights from N(0, 0.01), bias 0."""
        nn.init.normal_(self.top_layer_class.weight, 0.0, 0.01)
        nn.init.zeros_(self.top_layer_class.bias)


class AttributeHead(nn.Module):
    """The attribute prediction of a DenseResNet as a network: (B, D) -> z-normalised attribute (B,)."""

    def __init__(self, network: DenseResNet):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.predict_attribute(x)


class DenseNet(nn.Module):
    """The curriculum regressor; no ReLU after its first layer, as in the original.

    Source: Lin, Sridhar & Busso (2024), and the layers in the checkpoints of the original.
    """

    def __init__(self, num_features: int, width: int = 0):
        super().__init__()
        width = width or REGRESSOR_WIDTH
        self.dense_net = nn.Sequential(
            InputLinear(num_features, width),
            Dropout(DROPOUT),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            Dropout(DROPOUT),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, 1),
        )

    @property
    def num_features(self) -> int:
        """D."""
        return self.dense_net[0].in_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> z-normalised attribute (B,)."""
        return self.dense_net(x).squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def save_ssl_checkpoint(path: Path, state: Mapping[str, Tensor], info: dict) -> None:
    """Write a DenseResNet in the layout of the original.

    Args:
        path: file to write.
        state: state dict of the network. Trunk keys get `module.`, because the original wraps it in DataParallel.
        info: plain values (attribute, epochs, ...) saved beside the weights; the original ignores them.
    """
    weights = {
        key.replace("dnn_features.", "dnn_features.module.", 1): value.detach().cpu().contiguous()
        for key, value in state.items()
    }
    tensors.save_tensors({"arch": "resnet", "state_dict": weights, INFO_KEY: info}, path)


def load_ssl_checkpoint(
    path: Path, num_features: int, num_clusters: int, emo_attr: str, feature_set: str = ""
) -> tuple[DenseResNet, dict]:
    """Read a DenseResNet of this program or of the original, with or without `module.` in its keys.

    Args:
        path: the checkpoint.
        num_features: D of the data.
        num_clusters: expected K.
        emo_attr: expected attribute.
        feature_set: feature set of the data; empty if unknown.
    Returns:
        (network on the CPU in eval mode, info saved with it; empty for files of the original).
    Raises:
        UserError: missing, damaged, would run code, or made for a different network, width, K, attribute or feature
            set.
    """
    content = _load(
        path,
        "no such checkpoint. Run training_DeepEmoCluster.py with the same -ep, -batch, -emo and -nc first (published "
        "checkpoints: --model-dir trained_SSLmodels_v1.8).",
    )
    model, info = _dense_resnet(path, content, num_features, emo_attr, feature_set)
    if model.num_clusters != num_clusters:
        raise UserError(f"{path}: {model.num_clusters} clusters; -nc asks for {num_clusters}.")
    return model, info


def _load(path: Path, if_missing: str) -> object:
    if not Path(path).is_file():
        raise UserError(f"{path}: {if_missing}")
    return tensors.load_tensors(path)


def _dense_resnet(
    path: Path, content: object, num_features: int, emo_attr: str, feature_set: str
) -> tuple[DenseResNet, dict]:
    """The network in the content of a checkpoint of DeepEmoCluster, and the info saved with it."""
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path}: no state_dict in it; expected a DenseResNet checkpoint.")
    state = {str(key).replace("module.", ""): value for key, value in state.items()}
    info = _checked_info(path, content.get(INFO_KEY), emo_attr, feature_set)
    num_clusters, _ = _shape(path, state, "top_layer_class.weight")
    _refuse_width(path, _shape(path, state, "dnn_features.0.weight")[1], num_features)
    return _with_weights(path, DenseResNet, (num_features, num_clusters), state), info


def save_regressor(path: Path, state: Mapping[str, Tensor], info: dict) -> None:
    """Write the curriculum regressor as a bare state dict, as the original does.

    `info` goes into the metadata of the state dict, which other programs ignore.
    """
    weights = OrderedDict((key, value.detach().cpu().contiguous()) for key, value in state.items())
    weights._metadata = {"": {"version": 1, INFO_KEY: info}}
    tensors.save_tensors(weights, path)


def load_regressor(path: Path, num_features: int, emo_attr: str = "", feature_set: str = "") -> tuple[nn.Module, dict]:
    """Read a network that predicts an attribute, of this program or of the original.

    Args:
        path: a curriculum regressor, or a checkpoint of DeepEmoCluster, whose attribute head predicts.
        num_features: D of the data.
        emo_attr: expected attribute; empty accepts any.
        feature_set: feature set of the data; empty if unknown.
    Returns:
        (network (B, D) -> (B,) on the CPU in eval mode, info saved with it; empty for files of the original).
    Raises:
        UserError: missing, damaged, would run code, or made for a different network, width, attribute or feature set.
    """
    state = _load(
        path,
        "no such regressor. training_Curriculum.py writes regressors such as SimpleEmoRegressor_DeepMI@_Val.pt.tar to "
        "its --model-dir.",
    )
    if not isinstance(state, dict):
        raise UserError(f"{path}: expected the state dict of a curriculum regressor, found {type(state).__name__}.")
    if "state_dict" in state:
        network, info = _dense_resnet(path, state, num_features, emo_attr, feature_set)
        return AttributeHead(network), info
    info = getattr(state, "_metadata", None)
    for key in ("", INFO_KEY):  # module name, "" for the whole network; then ours
        info = info.get(key) if isinstance(info, dict) else None
    info = _checked_info(path, info, emo_attr, feature_set)
    width, found = _shape(path, state, "dense_net.0.weight")
    _refuse_width(path, found, num_features)
    return _with_weights(path, DenseNet, (num_features, width), state), info


def attribute_of(path: Path, info: dict) -> str:
    """The attribute that a network predicts: the one saved with it, else the one in its file name, else ""."""
    named = re.findall(r"(?<![A-Za-z])(Act|Dom|Val)(?![A-Za-z])", Path(path).name)
    return info.get("emo_attr") or (named[-1] if named else "")


def _checked_info(path: Path, info: object, emo_attr: str, feature_set: str) -> dict:
    """The facts saved with a network, if any; refuses foreign content, a different attribute or feature set."""

    def is_ours(name: object, value: object) -> bool:
        kinds = str if name in ("emo_attr", "feature_set", "norm_terms") else tensors.PLAIN
        fits = math.isfinite(value) if isinstance(value, float) else len(str(value)) <= LONGEST_FACT
        return isinstance(name, str) and isinstance(value, kinds) and fits

    info = {} if info is None else info
    if not isinstance(info, dict) or not all(is_ours(*fact) for fact in info.items()):
        raise UserError(f"{path}: the facts about its training are damaged; download or train it again.")
    attribute = attribute_of(path, info)
    if emo_attr and attribute and attribute != emo_attr:
        raise UserError(f"{path}: trained for {attribute}; -emo asks for {emo_attr}.")
    common_feature_set({"--features and --norm-dir": feature_set, path: info.get("feature_set", "")})
    return info


def _shape(path: Path, state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    value = state.get(key)
    if not isinstance(value, Tensor) or value.ndim != 2:
        raise UserError(f"{path}: no layer {key}; the file belongs to a different network.")
    return value.shape[0], value.shape[1]


def _refuse_width(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"{path}: made for {found} features, but the normalisation statistics are of {expected}; name those of "
            "this network with --norm-dir."
        )


def _with_weights(path: Path, network: type[nn.Module], sizes: tuple[int, int], state: Mapping) -> nn.Module:
    """A network of these sizes with these weights, in eval mode."""
    with torch.device("meta"):  # skips the initialisation, which takes as long as reading the weights
        model = network(*sizes)
    for key, value in state.items():
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            raise UserError(
                f"{path}: {str(key)[:80]} is not a floating-point tensor; expected the weights of a network."
            )
    try:
        model.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f"{path}: does not match this network ({first[0].strip()[:160]}).") from None
    return model.eval()
