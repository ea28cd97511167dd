"""Speech encoders that examples.finetune_encoder fine-tuned: the network, its file, and what it makes of a recording.

B is the batch, T the number of frames, D the encoder's width, A the number of attributes.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deepmi import run_log, storage, tensors
from deepmi.cli import ATTRIBUTES
from deepmi.norm_stats import denormalise
from deepmi.process import UserError
from tools.encoders import (
    LONGEST_PIECE,
    SetName,
    hub_folder,
    ignores_padding,
    import_transformers,
    pieces_of,
    refuse_foreign_code,
)
from tools.sound import SAMPLING_RATE, Clip

MARK = "deepmi_finetuned_encoder"  # the first key of the file
KINDS = ("wav2vec2", "hubert", "wavlm")
CLASS_SETTINGS = ("num_labels", "id2label", "label2id")  # of classifiers; transformers makes a name for each class
SHORTEST = SAMPLING_RATE // 20  # samples; an encoder needs 25 ms for a frame
SCORE_WIDTH = 128


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over time, weighted by a small network.

    Source: Okabe, Koshinaka & Shinoda, Attentive Statistics Pooling for Deep Speaker Embedding, Interspeech 2018.
    """

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, SCORE_WIDTH), nn.Tanh(), nn.Linear(SCORE_WIDTH, 1))

    def forward(self, states: Tensor, heard: Tensor) -> Tensor:
        """(B, T, D), and which frames are not padding, (B, T) -> (B, 2 D)."""
        scores = self.score(states).float().masked_fill(~heard[:, :, None], -math.inf)
        weights, states = scores.softmax(dim=1), states.float()  # (B, T, 1), (B, T, D)
        mean = (weights * states).sum(dim=1)
        variance = (weights * (states - mean[:, None]) ** 2).sum(dim=1)
        return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)


class FinetunedEncoder(nn.Module):
    """An encoder, attentive statistics, and a head with one output per attribute.

    Args:
        encoder: wav2vec 2.0, HuBERT or WavLM, of transformers.
        standardises: whether it expects signals of mean 0 and variance 1.
        masks: whether it was trained with a mask of the padding.
        label_norm: attribute -> mean and standard deviation of its Train labels.
    """

    def __init__(
        self, encoder: nn.Module, standardises: bool, masks: bool, label_norm: Mapping[str, tuple[float, float]]
    ):
        super().__init__()
        self.standardises, self.label_norm = standardises, dict(label_norm)
        self.masks = masks and ignores_padding(encoder.config)
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.pool = AttentiveStatistics(width)
        dropout = nn.Dropout(encoder.config.final_dropout)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), dropout, nn.Linear(width, len(label_norm)))

    def embed(self, signals: Sequence[Tensor]) -> Tensor:
        """Signals at 16 kHz, of shape (samples,) each -> pooled statistics (B, 2 D)."""
        if len(signals) > 1 and not self.masks:  # it would hear the padding
            return torch.cat([self.embed([signal]) for signal in signals])
        lengths = torch.tensor([max(len(signal), SHORTEST) for signal in signals])
        if self.standardises:
            signals = [(x - x.mean()) / (x.var(correction=0) + 1e-7).sqrt() for x in signals]
        filler = signals[0].new_zeros(SHORTEST)
        padded = pad_sequence([*signals, filler], batch_first=True)[:-1]  # (B, samples)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(padded.device) if self.masks else None
        states = self.encoder(padded, attention_mask=mask, return_dict=True).last_hidden_state  # (B, T, D)
        frames = self.encoder._get_feat_extract_output_lengths(lengths)
        heard = torch.arange(states.shape[1]) < frames[:, None]
        return self.pool(states, heard.to(states.device))

    def forward(self, signals: Sequence[Tensor]) -> Tensor:
        """Signals at 16 kHz, of shape (samples,) each -> z-normalised attributes (B, A)."""
        return self.head(self.embed(signals))


# ---------------------------------------------------------------------------------------------------------------------
# From a pretrained encoder, and to and from a file


def _settings_of(source: object, config: Mapping[str, object]) -> dict[str, object]:
    """A configuration without what only classifiers need.

    Raises:
        UserError: the encoder is of an unknown kind, or has adapters, or its configuration names code to import.
    """
    if config.get("model_type") not in KINDS:
        raise UserError(f"{source}: an encoder of kind {config.get('model_type')}; expected one of {', '.join(KINDS)}.")
    if config.get("add_adapter"):
        raise UserError(f"{source}: an encoder with adapters (add_adapter); expected one without.")
    refuse_foreign_code(source, config)
    return {name: value for name, value in config.items() if name not in CLASS_SETTINGS}


def from_pretrained(source: str, label_norm: Mapping[str, tuple[float, float]]) -> FinetunedEncoder:
    """A network to fine-tune, its pooling and head initialised at random.

    Args:
        source: folder of an encoder as transformers saves it, or its name on the Hugging Face hub.
        label_norm: attribute -> mean and standard deviation of its Train labels.
    Raises:
        UserError: transformers is not installed, or there is no such encoder.
    """
    transformers = import_transformers()
    folder = Path(source) if Path(source).is_dir() else hub_folder(SetName.parse(source))
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        settings = _settings_of(source, transformers.PreTrainedConfig.get_config_dict(folder)[0])
        prepare = transformers.AutoFeatureExtractor.from_pretrained(folder, **safe)
        # SpecAugment and layer dropout draw from numpy, and clips may be shorter than the spans that are masked.
        settings |= {"apply_spec_augment": False, "layerdrop": 0.0}
        safe |= {"config": transformers.AutoConfig.for_model(**settings), "weights_only": True}
        options = {"dtype": torch.float32, "output_loading_info": True}
        encoder, report = transformers.AutoModel.from_pretrained(folder, **safe, **options)
    except UserError:
        raise
    except Exception as error:  # its loaders raise errors of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{source}: not an encoder that transformers can load ({reason}).") from None
    if missing := sorted(set(report["missing_keys"]) - {"masked_spec_embed"}):
        raise UserError(f"{source}: {len(missing)} weights are missing, the first is {missing[0]}.")
    if prepare.sampling_rate != SAMPLING_RATE:
        raise UserError(f"{source}: made for {prepare.sampling_rate} Hz; expected {SAMPLING_RATE} Hz.")
    return FinetunedEncoder(encoder, bool(prepare.do_normalize), bool(prepare.return_attention_mask), label_norm)


def save_finetuned(path: Path, network: FinetunedEncoder, weights: Mapping[str, Tensor], facts: dict) -> None:
    """Write a network with these weights, and what `load_finetuned` needs to build it; facts are for the reader."""
    content = {
        MARK: 1,
        "config": network.encoder.config.to_json_string(use_diff=False),
        "standardises": network.standardises,
        "masks": network.masks,
        "label_norm": network.label_norm,
        "facts": facts,
        "state_dict": {key: value.detach().cpu().contiguous() for key, value in weights.items()},
    }
    tensors.save_tensors(content, path)


def is_finetuned(path: Path) -> bool:
    """Whether a file is one of `save_finetuned`, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return MARK.encode() in stream.read(1024)


def load_finetuned(path: Path) -> FinetunedEncoder:
    """Read a network of `save_finetuned`, on the CPU in eval mode.

    Raises:
        UserError: transformers is not installed; the file is missing, damaged, or would run code.
    """
    content = tensors.load_tensors(path)
    transformers = import_transformers()
    try:
        settings, weights = _settings_of(path, json.loads(content["config"])), content["state_dict"]
        label_norm = {name: content["label_norm"][name] for name in ATTRIBUTES if name in content["label_norm"]}
        if not label_norm or not all(math.isfinite(mean) and 0 < std < math.inf for mean, std in label_norm.values()):
            raise ValueError("no statistics of labels")
        if settings["num_hidden_layers"] > len(weights):  # or building them could take forever
            raise ValueError("layers without weights")
        config = transformers.AutoConfig.for_model(**settings)
        with torch.device("meta"):  # memory is taken by the weights alone
            encoder = transformers.AutoModel.from_config(config, trust_remote_code=False)
            network = FinetunedEncoder(encoder, content["standardises"], content["masks"], label_norm)
        network.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    except UserError:
        raise
    except Exception as error:  # transformers raises errors of many kinds over a damaged configuration
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: a damaged fine-tuned encoder ({reason}); train it again.") from None
    return network.eval()


# ---------------------------------------------------------------------------------------------------------------------
# For tools.predict


class FinetunedSet:
    """The pooled statistics of a fine-tuned encoder as a feature set, like the sets of `tools.feature_sets`."""

    alone = True  # the features of a clip do not depend, even in their last bits, on the clips in its batch

    def __init__(self, path: Path, device: torch.device):
        self.network = load_finetuned(path).to(device)
        self.device = device
        self.most_workers = 1 if device.type == "cpu" else 4  # threads that read for a GPU while it computes
        self.num_features = 2 * self.network.encoder.config.hidden_size
        self.name = f"finetuned-{storage.digest(path.read_bytes())[:12]}"

    def batches(self, clips: Sequence[Clip], size: int) -> list[list[Clip]]:
        """One clip per batch: not every encoder can ignore the padding of shorter ones."""
        return [[clip] for clip in clips]

    def features_of(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """The statistics of each signal of `read_signal`, shape (1, 2 D), or None if it is too short."""
        return [self._features(signal) if len(signal) >= SHORTEST else None for signal in signals]

    @torch.inference_mode()
    def _features(self, signal: NDArray[np.float32]) -> NDArray[np.float64]:
        pieces = pieces_of(signal, LONGEST_PIECE * SAMPLING_RATE)
        found = [self.network.embed([torch.from_numpy(piece).to(self.device)]) for piece in pieces]
        return torch.cat(found).mean(dim=0, keepdim=True).cpu().numpy().astype(np.float64)


class FinetunedPredictor(NamedTuple):
    """A fine-tuned encoder in the place of the regressors of `tools.predict`."""

    regressors: dict[str, Path]  # the file, by attribute
    feature_set: str
    key: str  # digest of everything that the predictions depend on, except the recordings
    device: torch.device

    def labels_of(self, vectors: Sequence[NDArray[np.float64]]) -> tuple[list[list[float]], float]:
        """Predict from pooled statistics.

        Args:
            vectors: statistics, shape (1, 2 D) each.
        Returns:
            Labels 1..7, one row per vector, one column per attribute; 0, because no features are clipped.
        """
        if not vectors:
            return [], 0.0
        file = Path(self.feature_set)
        network = open_finetuned(file, self.device).network
        with torch.inference_mode():
            z = network.head(torch.from_numpy(np.concatenate(vectors)).float().to(self.device)).cpu().numpy()  # (N, A)
        columns = [denormalise(z[:, number], norm, file) for number, norm in enumerate(network.label_norm.values())]
        return np.stack(columns, axis=1).tolist(), 0.0


@functools.cache
def open_finetuned(path: Path, device: torch.device) -> FinetunedSet:
    """The feature set of a file; read once."""
    return FinetunedSet(path, device)


def load_predictor(models: Sequence[Path], device: torch.device) -> FinetunedPredictor:
    """What `tools.predict` uses for a fine-tuned encoder.

    Raises:
        UserError: there are several models, or the file is damaged.
    """
    if len(models) > 1:
        file = next(filter(is_finetuned, models))
        raise UserError(f"{file}: a fine-tuned encoder predicts all its attributes; give it alone to --model.")
    (file,) = models
    run_log.note_if_unfinished(file)
    opened = open_finetuned(file, device)
    return FinetunedPredictor(dict.fromkeys(opened.network.label_norm, file), str(file), opened.name, device)
