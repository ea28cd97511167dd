"""Speech encoders of transformers: from a folder or the Hugging Face hub, one layer or their mean, pooled over time."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deepmi.cli import POOLINGS
from deepmi.process import UserError
from deepmi.storage import read_json_object, update_with_file
from tools.sound import SAMPLING_RATE, Clip, seconds_of

BATCH_SECONDS = 64  # of audio in one batch of an encoder, including the silence that pads shorter clips
LONGEST_PIECE = 60  # seconds that an encoder hears at once; its memory grows with their square
GPU_WORKERS = 8  # batches at a time, in threads, which read recordings while a GPU computes
CONFIG_FILES = ("config.json", "preprocessor_config.json")
INDEX_FILE = "model.safetensors.index.json"  # of weights in several files
# What is downloaded: no code, no pickled weights, and no second copy of the weights in a different precision
HUB_FILES = [*CONFIG_FILES, "model.safetensors", "model-*.safetensors", INDEX_FILE]
FOREIGN_CODE = ("auto_map", "quantization_config")  # configuration entries that make transformers import more code
TRAINING_ONLY = "masked_spec_embed"  # a weight that may be missing
_SET_NAME = re.compile(
    r"(?P<source>.*?)(@(?P<revision>[^#@]+))?(#(layer=(?P<layer>\d{1,18}|mean))?,?(pool=(?P<pool>mean\+std))?)?",
    re.ASCII | re.DOTALL,
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


# ---------------------------------------------------------------------------------------------------------------------
# The name of a set


class SetName(NamedTuple):
    """What identifies a feature set: `microsoft/wavlm-base-plus@4c66d48#layer=6,pool=mean+std`.

    Attributes:
        source: name in openSMILE, folder of an encoder, or name of an encoder on the hub.
        revision: branch, tag or commit on the hub; empty for its default.
        layer: number of a layer as text, or `mean`; empty for the last one.
        pool: one of POOLINGS; empty for the mean.
    """

    source: str
    revision: str = ""
    layer: str = ""
    pool: str = ""

    @classmethod
    def parse(cls, text: str) -> SetName:
        """The parts of a name as `str` writes it; a text of any other form is a source."""
        match = _SET_NAME.fullmatch(text)
        if Path(text).is_dir() or (match["revision"] and not _HUB_NAME.fullmatch(match["source"])):
            return cls(text)
        return cls(**{name: value or "" for name, value in match.groupdict().items()})

    def __str__(self) -> str:
        options = {"layer": self.layer, "pool": "" if self.pool == POOLINGS[0] else self.pool}
        given = ",".join(f"{name}={value}" for name, value in options.items() if value)
        return self.source + (f"@{self.revision}" if self.revision else "") + (f"#{given}" if given else "")

    @property
    def on_hub(self) -> bool:
        """Whether the source is a name on the hub. An existing folder of the same name comes first."""
        return bool(_HUB_NAME.fullmatch(self.source)) and not Path(self.source).is_dir()

    @property
    def is_commit(self) -> bool:
        """Whether it names a commit on the hub, as the record of a feature set does."""
        return self.on_hub and bool(re.fullmatch(r"[0-9a-f]{40}", self.revision))


# ---------------------------------------------------------------------------------------------------------------------
# The hub


def _import_optional(package: str):
    try:
        return __import__(package)
    except ImportError:
        raise UserError(f"encoders need the package {package}: `pip install -r requirements-optional.txt`.") from None


def import_transformers():
    """The optional package transformers, silenced; `UserError` if it is not installed."""
    transformers = _import_optional("transformers")
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)  # WavLM's own code
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def cached_folder(name: SetName) -> Path | None:
    """The folder of an encoder in the local cache of the hub; None if it is not there, or not all of it."""
    hub = _import_optional("huggingface_hub")
    try:
        found = hub.snapshot_download(name.source, revision=name.revision or None, local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(found) if _is_complete(Path(found)) else None


def _is_complete(folder: Path) -> bool:
    """Whether a folder has the configuration and all weights as safetensors."""
    files = {"model.safetensors"}
    if (folder / INDEX_FILE).is_file():
        files = set(read_json_object(folder / INDEX_FILE).get("weight_map", {}).values())
    return all((folder / file).is_file() for file in (*CONFIG_FILES, *files))


def hub_folder(name: SetName) -> Path:
    """The folder of an encoder of the hub: from the local cache, or else downloaded into it.

    Args:
        name: its name and revision.
    Returns:
        The snapshot in the cache; its name is the commit.
    Raises:
        UserError: the hub cannot be reached, or it has no such encoder, or not as safetensors.
    """
    if found := cached_folder(name):
        return found
    hub, wanted = _import_optional("huggingface_hub"), str(name._replace(layer="", pool=""))
    try:
        found = hub.snapshot_download(name.source, revision=name.revision or None, allow_patterns=HUB_FILES)
    except hub.errors.RevisionNotFoundError:
        raise UserError(f"--set {wanted}: no such revision on the hub; correct --revision.") from None
    except hub.errors.GatedRepoError:
        raise UserError(
            f"--set {wanted}: its owner restricts access; request it on the hub, then `hf auth login`."
        ) from None
    except hub.errors.RepositoryNotFoundError:
        raise UserError(
            f"--set {wanted}: no such folder, and no such public model on the Hugging Face hub; correct the name."
        ) from None
    except Exception as error:  # errors of the network come from several packages
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"--set {wanted}: no such folder, not in the cache {hub.constants.HF_HUB_CACHE}, and the download failed "
            f"({reason}). Connect to the network, or copy the model's folder here and name that with --set."
        ) from None
    folder = Path(found)
    if not _is_complete(folder):
        present = {path.name for path in folder.iterdir()}
        if any(name.endswith(".safetensors") for name in present) and present.issuperset(CONFIG_FILES):
            raise UserError(f"--set {wanted}: the download is not complete; run the same command again.")
        lacking = [name for name in CONFIG_FILES if name not in present] or ["weights as safetensors"]
        raise UserError(
            f"--set {wanted}: no {' and no '.join(lacking)} in it ({folder}). Name a --revision that has them (pull "
            "requests on the hub are refs/pr/N), or save the model with transformers and name its folder."
        )
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# The encoder


class EncoderSet:
    """Hidden states of a speech encoder (wav2vec 2.0, HuBERT, WavLM, Whisper), pooled over time.

    Args:
        folder: the encoder as Hugging Face's transformers saves it: configuration, weights, preprocessor_config.json.
        device: where to compute.
        name: layer and pooling; and the source and revision for an encoder of the hub.
    Raises:
        UserError: transformers is not installed, or the folder holds no such encoder, or foreign code, or the encoder
            has no such layer.
    """

    alone = False  # the last bits of the features of a clip depend on the clips in its batch

    def __init__(self, folder: Path, device: torch.device, name: SetName | None = None):
        transformers = import_transformers()
        for file in CONFIG_FILES:
            if not (folder / file).is_file():
                raise UserError(f"{folder}: no {file} in it; expected an encoder as transformers saves it.")
            refuse_foreign_code(folder / file, read_json_object(folder / file))
        safe = {"local_files_only": True, "trust_remote_code": False}  # by default it would ask on the terminal
        try:
            self._prepare = transformers.AutoFeatureExtractor.from_pretrained(folder, **safe)
            safe |= {"weights_only": True, "output_loading_info": True}
            model, report = transformers.AutoModel.from_pretrained(folder, **safe)
            takes_waveforms = self._prepare.model_input_names[0] == "input_values"
        except Exception as error:  # its loaders raise errors of many kinds over a damaged file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{folder}: not an encoder that transformers can load ({reason}).") from None
        missing = sorted(set(report["missing_keys"]) - {TRAINING_ONLY})
        if missing:
            raise UserError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}.")
        self._is_whisper = model.config.model_type == "whisper"
        if takes_waveforms == self._is_whisper or not hasattr(model, "_get_feat_extract_output_lengths"):
            raise UserError(
                f"{folder}: {model.config.model_type} takes no waveform; expected an encoder like wav2vec2, WavLM or "
                "Whisper."
            )
        if self._prepare.sampling_rate != SAMPLING_RATE:
            raise UserError(f"{folder}: made for {self._prepare.sampling_rate} Hz; expected {SAMPLING_RATE} Hz.")
        self.device = device
        self.most_workers = 1 if device.type == "cpu" else GPU_WORKERS
        model = model.encoder if self._is_whisper else model
        self._model = model.float().eval().to(device)  # float32, even if the weights are saved in half precision
        self._longest = min(LONGEST_PIECE, self._prepare.chunk_length) if self._is_whisper else LONGEST_PIECE
        self._choose(name or SetName(str(folder)), folder, model.config)

    def _choose(self, name: SetName, folder: Path, config) -> None:
        """Set layer, pooling, number of features, and the name that is recorded."""
        layers = config.encoder_layers if self._is_whisper else config.num_hidden_layers
        if name.layer.isdecimal() and int(name.layer) > layers:
            raise UserError(f"--layer {name.layer}: {name.source} has layers 0 (its input) to {layers}, or mean.")
        self.layer = "" if name.layer == str(layers) else name.layer  # the last layer has one name
        self.pool = name.pool or POOLINGS[0]
        self.num_features = config.hidden_size * len(self.pool.split("+"))
        source = name.source if name.revision else f"{config.model_type}-{_digest_of(folder)}"
        self.name = str(SetName(source, name.revision, self.layer, self.pool))
        self.opened_as = str(name)  # what `open_set` takes, in any process, to open the same set

    def batches(self, clips: Sequence[Clip], size: int) -> list[list[Clip]]:
        """Clips of similar length together, BATCH_SECONDS per batch; `size` has no effect."""
        lengths = [(seconds_of(clip.recording) if clip.stop is None else clip.stop) - clip.start for clip in clips]
        batches: list[list[Clip]] = [[]]
        for length, clip in sorted(zip(lengths, clips)):
            padded = max(length, self._longest) if self._is_whisper else length
            if batches[-1] and padded * (len(batches[-1]) + 1) > BATCH_SECONDS:
                batches.append([])
            batches[-1].append(clip)
        return batches

    def features_of(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """The features of each signal of `read_signal`, shape (1, D), or None if it is too short."""
        longest = int(self._longest * SAMPLING_RATE)
        if max(map(len, signals)) <= longest:
            return [self._joined([moments]) for moments in self._moments(signals)]
        found = []
        for signal in signals:
            found.append(self._joined([self._moments([piece])[0] for piece in pieces_of(signal, longest)]))
        return found

    def _joined(self, pieces: list[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
        """Features of a signal, shape (1, D), from mean and variance of each piece; None if a piece has no frame."""
        if any(piece is None for piece in pieces):
            return None
        means, variances = np.stack(pieces, axis=1)  # (pieces, hidden size) each
        mean = means.mean(axis=0)
        if self.pool == "mean":
            return mean[None]
        std = np.sqrt(variances.mean(axis=0) + means.var(axis=0))
        return np.concatenate([mean, std])[None]

    def _moments(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """Mean and variance over the frames of signals of up to the longest piece, shape (2, hidden size) each.

        None if a signal has no frame.
        """
        config = self._model.config
        masks = self._is_whisper or (self._prepare.return_attention_mask and ignores_padding(config))
        if not masks and len({len(signal) for signal in signals}) > 1:
            return [self._moments([signal])[0] for signal in signals]
        lengths = torch.tensor([len(signal) for signal in signals])
        # Whisper counts frames of its spectrogram, and always hears 30 s: silence after a clip is not pooled.
        lengths = lengths // self._prepare.hop_length if self._is_whisper else lengths
        frames = self._model._get_feat_extract_output_lengths(lengths)
        heard = [signal for signal, count in zip(signals, frames) if count > 0]
        if not heard:
            return [None] * len(signals)
        padding = "max_length" if self._is_whisper else True
        inputs = self._prepare(heard, sampling_rate=SAMPLING_RATE, padding=padding, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._hidden_states(inputs.to(self.device))  # (B, frames, hidden size)
            moments = [_moments_of(states[:count]) for states, count in zip(hidden, frames[frames > 0].tolist())]
            pooled = iter(torch.stack(moments).cpu().numpy().astype(np.float64))
        return [next(pooled) if count > 0 else None for count in frames]

    def _hidden_states(self, inputs) -> torch.Tensor:
        """Hidden states of the chosen layer, or the mean of all layers and the input of the first one."""
        if not self.layer:
            return self._model(**inputs).last_hidden_state
        output = self._model(**inputs, output_hidden_states=True)
        # Large encoders normalise what their last layer returns; `last_hidden_state` has that, `hidden_states` doesn't.
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        return torch.stack(states).mean(dim=0) if self.layer == "mean" else states[int(self.layer)]


def pieces_of(signal: NDArray[np.float32], longest: int) -> list[NDArray[np.float32]]:
    """A signal in as few pieces as possible of at most `longest` samples, of equal length, so of equal weight."""
    return np.array_split(signal, -(-len(signal) // longest))


def _moments_of(states: torch.Tensor) -> torch.Tensor:
    """Mean and population variance over time, shape (2, hidden size), of states of shape (frames, hidden size)."""
    return torch.stack([states.mean(dim=0), states.var(dim=0, correction=0)])


def ignores_padding(config: object) -> bool:
    """Whether an encoder that is given a mask of the padding makes the same of a clip beside longer ones.

    Its first layer with a group norm (wav2vec2-base, wavlm-base) averages over the padding, with a mask too.
    """
    return getattr(config, "feat_extract_norm", None) == "layer"


def refuse_foreign_code(source: object, config: Mapping[str, object]) -> None:
    """Raise `UserError` if a configuration names code to import or to download."""
    for name, value in config.items():
        if (name in FOREIGN_CODE and value) or ("attn_implementation" in name and "/" in str(value)):
            raise UserError(
                f"{source}: {name} loads code from outside transformers; expected an encoder that is part of it."
            )


def _digest_of(folder: Path) -> str:
    """Twelve digits that identify an encoder by its content."""
    weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin") and file.is_file()]
    digest = hashlib.sha256()
    for file in sorted([*(folder / name for name in CONFIG_FILES), *weights]):
        update_with_file(digest, file)
    return digest.hexdigest()[:12]
