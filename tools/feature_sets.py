"""Feature sets: openSMILE's functionals, or a speech encoder. Each turns a recording into one vector."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import opensmile
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray

from deepmi.process import UserError, workers_without_interrupt
from deepmi.runtime import choose_device
from deepmi.storage import read_json_object, update_with_file
from tools.finetuned import FinetunedSet, is_finetuned, open_finetuned
from tools.sound import SAMPLING_RATE, Clip, read_signal, seconds_of

BATCH_SECONDS = 64  # of audio in one batch of an encoder, including the silence that pads shorter clips
LONGEST_PIECE = 60  # seconds that an encoder hears at once; its memory grows with their square
# openSMILE releases Python's lock for all but a fourteenth of its time (measured), so a few threads are as fast as
# processes and start at once; many threads would wait for each other.
MOST_THREADS = 8
CONFIG_FILES = ("config.json", "preprocessor_config.json")
FOREIGN_CODE = ("auto_map", "quantization_config")  # configuration entries that make transformers import more code
TRAINING_ONLY = "masked_spec_embed"  # a weight that may be missing
OPENSMILE_SETS = list(opensmile.FeatureSet.__members__)


class Features(NamedTuple):
    """The features of a clip."""

    vector: NDArray[np.float64] | None  # shape (1, D); None if the clip has none
    remark: str = ""  # why it has none, or what makes it doubtful


class OpenSmileSet:
    """Functionals of openSMILE, by a name in `opensmile.FeatureSet`."""

    alone = True  # the features of a clip do not depend, even in their last bits, on the clips in its batch
    most_workers = math.inf  # batches at a time

    def __init__(self, name: str):
        self.name = name
        self._smile = opensmile.Smile(
            feature_set=opensmile.FeatureSet[name],
            feature_level=opensmile.FeatureLevel.Functionals,
            sampling_rate=SAMPLING_RATE,
        )
        self.num_features = self._smile.num_features
        self.feature_names = self._smile.feature_names
        warnings.filterwarnings("ignore", "Segment too short", UserWarning)  # `features_of` reports it

    def batches(self, clips: Sequence[Clip], size: int) -> list[list[Clip]]:
        """`size` clips per batch."""
        return [list(clips[start : start + size]) for start in range(0, len(clips), size)]

    def features_of(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """The features of each signal of `read_signal`, shape (1, D), or None if it is too short."""
        found = [self._smile.process_signal(signal, SAMPLING_RATE).to_numpy(dtype=np.float64) for signal in signals]
        return [None if np.isnan(features).all() else features for features in found]


class EncoderSet:
    """The last hidden states of a speech encoder (wav2vec 2.0, HuBERT, WavLM), averaged over time.

    Args:
        folder: the encoder as Hugging Face's transformers saves it: configuration, weights, preprocessor_config.json.
        device: where to compute.
    Raises:
        UserError: transformers is not installed, or the folder holds no such encoder, or foreign code.
    """

    alone = False

    def __init__(self, folder: Path, device: torch.device):
        try:
            import transformers  # optional
        except ImportError:
            raise UserError(f"{folder}: encoders need the package transformers: `pip install transformers`.") from None
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)  # WavLM's own code
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        for name in CONFIG_FILES:
            _refuse_foreign_code(folder / name)
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
        if not (takes_waveforms and hasattr(model, "_get_feat_extract_output_lengths")):
            raise UserError(
                f"{folder}: {model.config.model_type} takes no waveform; expected an encoder like wav2vec2 or WavLM."
            )
        if self._prepare.sampling_rate != SAMPLING_RATE:
            raise UserError(f"{folder}: made for {self._prepare.sampling_rate} Hz; expected {SAMPLING_RATE} Hz.")
        self.device = device
        self.most_workers = 1 if device.type == "cpu" else MOST_THREADS  # threads read for a GPU while it computes
        self._model = model.float().eval().to(device)  # float32, even if the weights are saved in half precision
        self.num_features = model.config.hidden_size
        self.name = f"{model.config.model_type}-{_digest_of(folder)}"

    def batches(self, clips: Sequence[Clip], size: int) -> list[list[Clip]]:
        """Clips of similar length together, BATCH_SECONDS per batch; `size` has no effect."""
        lengths = [(seconds_of(clip.recording) if clip.stop is None else clip.stop) - clip.start for clip in clips]
        batches: list[list[Clip]] = [[]]
        for length, clip in sorted(zip(lengths, clips)):
            if batches[-1] and length * (len(batches[-1]) + 1) > BATCH_SECONDS:
                batches.append([])
            batches[-1].append(clip)
        return batches

    def features_of(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """The features of each signal of `read_signal`, shape (1, D), or None if it is too short."""
        longest = LONGEST_PIECE * SAMPLING_RATE
        if max(map(len, signals)) <= longest:
            return self._pool(signals)
        found = []
        for signal in signals:
            pieces = np.array_split(signal, -(-len(signal) // longest))  # of equal length, so of equal weight
            means = [self._pool([piece])[0] for piece in pieces]
            found.append(None if any(mean is None for mean in means) else np.mean(means, axis=0))
        return found

    def _pool(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """Averaged hidden states of signals of up to LONGEST_PIECE, shape (1, D); None if a signal has no frame."""
        # Encoders with a group norm (wav2vec2-base) have no mask: silence beside a clip would change its features.
        if not self._prepare.return_attention_mask and len({len(signal) for signal in signals}) > 1:
            return [self._pool([signal])[0] for signal in signals]
        frames = self._model._get_feat_extract_output_lengths(torch.tensor([len(signal) for signal in signals]))
        heard = [signal for signal, count in zip(signals, frames) if count > 0]
        if not heard:
            return [None] * len(signals)
        inputs = self._prepare(heard, sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(**inputs.to(self.device)).last_hidden_state  # (B, frames, D)
            means = [states[:count].mean(dim=0) for states, count in zip(hidden, frames[frames > 0].tolist())]
            pooled = iter(torch.stack(means).cpu().numpy().astype(np.float64))
        return [next(pooled)[None] if count > 0 else None for count in frames]


def _refuse_foreign_code(file: Path) -> None:
    """Raise `UserError` if a configuration is missing, or names code to import or to download."""
    if not file.is_file():
        raise UserError(f"{file.parent}: no {file.name} in it; expected an encoder as transformers saves it.")
    for name, value in read_json_object(file).items():
        if (name in FOREIGN_CODE and value) or ("attn_implementation" in name and "/" in str(value)):
            raise UserError(
                f"{file}: {name} loads code from outside transformers; expected an encoder that is part of it."
            )


def _digest_of(folder: Path) -> str:
    """Twelve digits that identify an encoder by its content."""
    weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin") and file.is_file()]
    digest = hashlib.sha256()
    for file in sorted([*(folder / name for name in CONFIG_FILES), *weights]):
        update_with_file(digest, file)
    return digest.hexdigest()[:12]


@functools.cache  # opening a set takes longer than a clip
def open_set(feature_set: str, device: str = "auto") -> OpenSmileSet | EncoderSet | FinetunedSet:
    """Open a feature set.

    Args:
        feature_set: a name in `opensmile.FeatureSet`, the folder of an encoder, or the file of a fine-tuned one.
        device: where an encoder computes, as `--device`.
    Raises:
        UserError: no such set. (openSMILE itself ends the process over some names.)
    """
    if feature_set in OPENSMILE_SETS:
        return OpenSmileSet(feature_set)
    if Path(feature_set).is_dir():
        return EncoderSet(Path(feature_set), choose_device(device))
    if is_finetuned(Path(feature_set)):
        return open_finetuned(Path(feature_set), choose_device(device))
    raise UserError(
        f"--set {feature_set}: neither the folder of an encoder (nothing is downloaded) nor a feature set of "
        f"openSMILE: {', '.join(OPENSMILE_SETS)}."
    )


def feature_names(feature_set: str, count: int) -> list[str]:
    """openSMILE's names of the features of a set of `count` features; else `feature 0`, `feature 1`, ..."""
    names = open_set(feature_set).feature_names if feature_set in OPENSMILE_SETS else []
    return names if len(names) == count else [f"feature {number}" for number in range(count)]


def features_of(clips: Sequence[Clip], feature_set: str, device: str = "auto") -> list[Features]:
    """The features of each clip, or why it has none.

    Args:
        clips: recordings or parts of them.
        feature_set: as for `open_set`.
        device: as for `open_set`.
    """
    signals, vectors = {}, {}
    remarks: list[list[str]] = [[] for _ in clips]
    for number, clip in enumerate(clips):
        try:
            signals[number] = read_signal(clip, remarks[number])
        except UserError as error:
            remarks[number].insert(0, str(error))
        except OSError as error:
            remarks[number] = [error.strerror or str(error)]
    if signals:
        vectors = dict(zip(signals, open_set(feature_set, device).features_of(list(signals.values()))))
    for number, vector in vectors.items():
        if vector is None:
            remarks[number].insert(0, f"too short ({1000 * len(signals[number]) / SAMPLING_RATE:.0f} ms)")
        elif np.isnan(vector).all():
            vectors[number], remarks[number] = None, ["the encoder returns only NaN"]
    return [Features(vectors.get(number), "; ".join(found)) for number, found in enumerate(remarks)]


def in_parallel(work: Callable, tasks: Sequence[tuple], workers: int) -> Iterator:
    """Results of `work(*task)` in the order of the tasks, so many at a time.

    Up to MOST_THREADS workers are threads; more are processes, for which `work` must be in an importable module.
    """
    if workers > MOST_THREADS:
        pool = Parallel(n_jobs=min(workers, len(tasks)), return_as="generator")
        with workers_without_interrupt():
            results = pool(delayed(work)(*task) for task in tasks)
        yield from results
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(work, *zip(*tasks))
    finally:  # a thread that is still within openSMILE when Python ends would abort the process
        pool.shutdown(cancel_futures=True)
