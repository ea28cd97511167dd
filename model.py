"""DenseResNet and the curriculum regressor, and reading and writing their checkpoints.

B is the batch, D the number of features (6,373 for IS13 ComParE), K the number of clusters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import runtime
from runtime import UserError

DROPOUT = 0.3
TRUNK_WIDTHS = (1024, 512, 256)
INFO_KEY = "deepmi"  # where a checkpoint keeps what it was trained for
PASS_ROWS = 2048  # utterances a step when nothing is trained


class ResidualBlock(nn.Module):
    """relu(dense2(dropout(relu(dense1(x)))) + x), width kept."""

    def __init__(self, width: int):
        super().__init__()
        self.dense1 = nn.Linear(width, width)
        self.dense2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # The original leaves this dropout on when it extracts DeepMI; here eval mode turns it off.
        hidden = F.dropout(F.relu(self.dense1(x)), DROPOUT, self.training)
        return F.relu(self.dense2(hidden) + x)


class DenseResNet(nn.Module):
    """Trunk with a cluster head and an attribute head.

    Source: Lin, Sridhar & Busso (2024), and the layers of the original's checkpoints.
    """

    def __init__(self, num_features: int, num_clusters: int):
        super().__init__()
        layers: list[nn.Module] = []
        width_in = num_features
        for width in TRUNK_WIDTHS:
            layers += [
                nn.Linear(width_in, width),
                nn.Dropout(DROPOUT),
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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) -> cluster logits (B, K) and z-normed attribute (B,)."""
        hidden = self.dnn_features(x)  # (B, 256)
        return self.top_layer_class(self.classifier(hidden)), self.emo_regressor(hidden).squeeze(1)

    def cluster_features(self, x: Tensor) -> Tensor:
        """What k-means sees: (B, D) -> (B, 256), the classifier's linear output before its ReLU."""
        return self.classifier[0](self.dnn_features(x))

    def predict_clusters(self, x: Tensor) -> Tensor:
        """(B, D) -> cluster logits (B, K); leaves the regressor out of the gradient."""
        return self.top_layer_class(self.classifier(self.dnn_features(x)))

    def predict_attribute(self, x: Tensor) -> Tensor:
        """(B, D) -> z-normed attribute (B,)."""
        return self.emo_regressor(self.dnn_features(x)).squeeze(1)

    def renew_top_layer(self) -> None:
        """Fresh top layer for fresh pseudo-labels: weight from N(0, 0.01), bias 0."""
        nn.init.normal_(self.top_layer_class.weight, 0.0, 0.01)
        nn.init.zeros_(self.top_layer_class.bias)


class DenseNet(nn.Module):
    """The curriculum regressor; no ReLU after its first layer, as in the original.

    Source: Lin, Sridhar & Busso (2024), and the layers of the original's checkpoints.
    """

    def __init__(self, num_features: int, width: int = 512):
        super().__init__()
        self.dense_net = nn.Sequential(
            nn.Linear(num_features, width),
            nn.Dropout(DROPOUT),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    @property
    def num_features(self) -> int:
        """D."""
        return self.dense_net[0].in_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> z-normed attribute (B,)."""
        return self.dense_net(x).squeeze(1)


def as_tensor(rows: NDArray[np.float32]) -> Tensor:
    """A tensor on the memory of the packed rows; nothing is read until a batch is."""
    return torch.from_numpy(np.asarray(rows))


def in_batches(
    model: nn.Module, function: Callable[[Tensor], object], rows: Tensor, device: torch.device, precision: str
) -> tuple[Tensor, ...]:
    """Apply a function of the network to all rows, in eval mode and without gradients.

    Args:
        model: the network; its mode is put back afterwards.
        function: (B, D) -> a tensor (B, ...) or a tuple of such.
        rows: float32, (N, D), on the CPU.
        device: where the network is.
        precision: `fp32` or `bf16`.
    Returns:
        For each output a float32 tensor (N, ...) on the CPU.
    """
    was_training = model.training
    model.eval()
    parts = []
    with torch.inference_mode(), runtime.autocast(device, precision):
        for batch in rows.split(PASS_ROWS):
            output = function(batch.to(device))
            parts.append(output if isinstance(output, tuple) else (output,))
    model.train(was_training)
    return tuple(torch.cat(column).float().cpu() for column in zip(*parts))


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def save_ssl_checkpoint(path: Path, state: Mapping[str, Tensor], info: dict) -> None:
    """Write a DenseResNet in the original's layout.

    Args:
        path: target.
        state: the network's state dict. The original's trunk sits in DataParallel, so its keys get `module.`.
        info: plain values (attribute, epochs, ...) kept beside the weights; the original ignores them.
    """
    keys = {key: key.replace("dnn_features.", "dnn_features.module.", 1) for key in state}
    weights = {keys[key]: value.detach().cpu() for key, value in state.items()}
    runtime.save_tensors({"arch": "resnet", "state_dict": weights, INFO_KEY: info}, path)


def load_ssl_checkpoint(path: Path, num_features: int, num_clusters: int, emo_attr: str) -> tuple[DenseResNet, dict]:
    """Read a DenseResNet, this program's or the original's, with or without `module.` in its keys.

    Args:
        path: the checkpoint.
        num_features: D that the data has.
        num_clusters: K that is asked for.
        emo_attr: the attribute that is asked for.
    Returns:
        (network on the CPU in eval mode, info saved with it; empty for the original's files).
    Raises:
        UserError: missing, damaged, needs code to be run, or made for another network, width, K or attribute.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint. Run training_DeepEmoCluster.py with the same -ep, -batch, -emo and -nc first "
            "(the published ones: --model-dir trained_SSLmodels_v1.8)."
        )
    content = runtime.load_tensors(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path}: no state_dict in it; expected a DenseResNet checkpoint.")
    state = {str(key).replace("module.", ""): value for key, value in state.items()}
    info = content.get(INFO_KEY) if isinstance(content.get(INFO_KEY), dict) else {}
    _refuse_attribute(path, info, emo_attr)
    found = _shape(path, state, "dnn_features.0.weight")[1], _shape(path, state, "top_layer_class.weight")[0]
    _refuse_width(path, found[0], num_features)
    if found[1] != num_clusters:
        raise UserError(f"{path}: {found[1]} clusters; -nc asks for {num_clusters}.")
    model = DenseResNet(num_features, num_clusters)
    _load_state(path, model, state)
    return model.eval(), info


def save_regressor(path: Path, state: Mapping[str, Tensor], info: dict) -> None:
    """Write the curriculum regressor as a bare state dict, as the original does.

    `info` goes into the metadata that a state dict carries, where it is in nobody's way.
    """
    weights = OrderedDict((key, value.detach().cpu()) for key, value in state.items())
    weights._metadata = {"": {"version": 1, INFO_KEY: info}}
    runtime.save_tensors(weights, path)


def load_regressor(path: Path, num_features: int, emo_attr: str) -> tuple[DenseNet, dict]:
    """Read a curriculum regressor, this program's or the original's.

    Returns:
        (network on the CPU in eval mode, info saved with it; empty for the original's files).
    Raises:
        UserError: missing, damaged, needs code to be run, or made for another network, width or attribute.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such regressor. Run training_Curriculum.py -emo {emo_attr} with the same --model-dir first."
        )
    state = runtime.load_tensors(path)
    if not isinstance(state, dict):
        raise UserError(f"{path}: expected the state dict of a curriculum regressor, found {type(state).__name__}.")
    info = (getattr(state, "_metadata", None) or {}).get("", {}).get(INFO_KEY, {})
    _refuse_attribute(path, info, emo_attr)
    width, found = _shape(path, state, "dense_net.0.weight")
    _refuse_width(path, found, num_features)
    model = DenseNet(num_features, width)
    _load_state(path, model, state)
    return model.eval(), info


def _shape(path: Path, state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    value = state.get(key)
    if not isinstance(value, Tensor) or value.ndim != 2:
        raise UserError(f"{path}: no layer {key}; the file is of another network.")
    return value.shape[0], value.shape[1]


def _refuse_attribute(path: Path, info: dict, emo_attr: str) -> None:
    if info.get("emo_attr", emo_attr) != emo_attr:
        raise UserError(f"{path}: trained for {info['emo_attr']}; -emo asks for {emo_attr}.")


def _refuse_width(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(f"{path}: made for {found} features, the corpus (by its norm terms) has {expected}.")


def _load_state(path: Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f"{path}: does not fit this network ({first[0].strip()[:160]}).") from None
