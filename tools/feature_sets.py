"""What makes a vector of acoustic features out of a recording: openSMILE's sets, or a speech encoder from a folder.

Recordings are mixed to mono and brought to 16 kHz first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray

from deepmi.process import UserError, workers_without_interrupt
from deepmi.runtime import choose_device
from deepmi.storage import read_json_object
from tools import headers

LOWEST_RATE = 1000  # Hz; below, there is no speech, and a short file would become hours at 16 kHz
LONGEST_CLIP = 7200  # seconds
UNKNOWN_LENGTH = 2**62  # samples and more: how libsndfile says that a header, as of a stream, has no length
PIECE_SAMPLES = 2**23  # of all channels, that are decoded at a time: nearly every clip is one piece
FULL_SCALE = 4.0  # times; lossy codecs and resampling pass full scale, but not by this much
SAMPLING_RATE = 16000  # Hz; the features depend on the bandwidth, and MSP-Podcast is at this rate
BATCH_SECONDS = 64  # of audio that an encoder hears together, with the silence that fills shorter clips up
LONGEST_PIECE = 60  # seconds that an encoder hears at once: the memory that it needs grows with their square
# openSMILE leaves the other threads free in all but a fourteenth of its time (measured), so a few threads do as well as
# processes and need no start-up; many would wait for each other.
MOST_THREADS = 8
LARGEST_SIZE, MOST_LAYERS = 2**20, 1000  # that an encoder's configuration may ask for
MAY_LACK = "masked_spec_embed"  # a weight that only training uses


class Clip(NamedTuple):
    """A recording, or a part of it.

    Attributes:
        recording: the file.
        start: in seconds.
        stop: in seconds, None for the end of the recording.
    """

    recording: Path
    start: float = 0.0
    stop: float | None = None


class Features(NamedTuple):
    """What comes of a clip.

    Attributes:
        vector: float64, shape (1, D), None where the clip has none.
        remark: why it has none, or what makes it doubtful; empty where all is well.
    """

    vector: NDArray[np.float64] | None
    remark: str = ""


def read_signal(clip: Clip, remarks: list[str] | None = None) -> NDArray[np.float32]:
    """The samples of a clip at 16 kHz in [-1, 1], shape (samples,).

    Args:
        clip: a recording or a part of it.
        remarks: where to append what makes the clip doubtful, such as a recording that was cut off.

    Raises:
        UserError: unreadable or empty, in words fit for a list.
    """
    import audresample

    remarks = [] if remarks is None else remarks
    try:
        with _opened(clip.recording, remarks) as stream:
            rate = stream.samplerate
            start = min(round(clip.start * rate), stream.frames)
            frames = (stream.frames if clip.stop is None else round(clip.stop * rate)) - start
            if frames > LONGEST_CLIP * rate:
                raise UserError(f"{frames / rate / 3600:.1f} hours; expected {LONGEST_CLIP / 3600:g} at most, cut it")
            _go_to(stream, start)
            mono, peak = _read_mono(stream, frames)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"not readable as audio ({str(error).rsplit(':', 1)[-1].strip()})") from None
    missing = headers.incomplete(len(mono) / rate, frames / rate)
    if missing and not remarks:
        remarks.append(missing)
    if peak > FULL_SCALE:
        remarks.append(f"over full scale: samples up to {peak:,.0f} are clipped to 1; divide 16-bit samples by 32768")
    if rate != SAMPLING_RATE and len(mono):
        mono = audresample.resample(mono, rate, SAMPLING_RATE)[0]
    if len(mono) == 0:
        raise UserError("no samples in it")
    if not np.isfinite(mono).all():  # also the mean of samples near the end of float32's range
        raise UserError("NaN or infinite samples")
    # opensmile makes 16-bit numbers of samples, which wrap round at full scale; resampling overshoots.
    return mono.clip(-1, 1 - 2**-15)


@contextlib.contextmanager
def _opened(recording: Path, remarks: list[str]) -> Iterator:
    """A recording as an open `soundfile.SoundFile`; what is missing from it is appended to the remarks.

    Raises:
        UserError: it is empty, or its header can't be true, or it is no speech.
        soundfile.LibsndfileError, RuntimeError, OSError: it can't be read.
    """
    size = recording.stat().st_size
    if size == 0:  # before it is opened: a pipe would wait for its writer
        raise UserError("empty file (0 bytes)")
    with contextlib.ExitStack() as stack:
        # Opened by Python: soundfile takes no name that is not UTF-8.
        raw = stack.enter_context(recording.open("rb"))
        stream = stack.enter_context(soundfile.SoundFile(raw.fileno(), closefd=False))
        if stream.samplerate < LOWEST_RATE:
            raise UserError(f"{stream.samplerate} Hz; expected {LOWEST_RATE} Hz or more")
        if stream.frames >= UNKNOWN_LENGTH:
            raise UserError("its header does not say how long it is; convert it")
        if stream.frames > size * stream.samplerate:
            raise UserError(
                f"{stream.frames / stream.samplerate / 3600:,.0f} hours by its header, which {size:,} bytes can't hold"
            )
        mended, missing = headers.examine(recording, stream)
        if missing:
            remarks.append(missing)
        yield stack.enter_context(soundfile.SoundFile(io.BytesIO(mended))) if mended else stream


def _go_to(stream, start: int) -> None:
    """Pass over the first samples of a sound file; many codecs of telephony can only be read from their beginning."""
    if stream.seekable():
        stream.seek(start)  # to 0 as well: it changes the last bits of what mp3 decodes to
        return
    while start > 0:
        passed = len(stream.read(min(start, PIECE_SAMPLES), "float32"))
        start = start - passed if passed else 0


def _read_mono(stream, frames: int) -> tuple[NDArray[np.float32], float]:
    """The next samples of a sound file, up to so many, the mean of its channels; and the largest of any channel.

    Read piece by piece: a header may claim any number of samples, and memory would be taken for all of them.
    """
    pieces, count, peak = [], 0, 0.0
    while count < frames:
        piece = stream.read(min(frames - count, 1 + PIECE_SAMPLES // stream.channels), "float32", always_2d=True)
        if not len(piece):
            break
        with np.errstate(over="ignore", invalid="ignore"):  # told by the caller
            pieces.append(piece.mean(axis=1))  # (samples, channels) -> (samples,)
        peak = max(peak, float(piece.max()), -float(piece.min()))
        count += len(piece)
    return np.concatenate(pieces) if pieces else np.empty(0, np.float32), peak


def seconds_of(recording: Path) -> float:
    """Length of a recording; 0 where it can't be read, which `features_of` reports when its turn comes."""
    try:
        with _opened(recording, []) as stream:
            return stream.frames / stream.samplerate
    except (soundfile.LibsndfileError, RuntimeError, OSError, UserError):
        return 0.0


class OpenSmileSet:
    """Functionals of openSMILE."""

    alone = True  # whether the features of a clip are the same to the last bit whatever it is in a batch with

    def __init__(self, name: str):
        """
        Args:
            name: in `opensmile.FeatureSet`.
        """
        import opensmile

        self.name = name
        self._smile = opensmile.Smile(
            feature_set=getattr(opensmile.FeatureSet, name),
            feature_level=opensmile.FeatureLevel.Functionals,
            sampling_rate=SAMPLING_RATE,
        )
        self.num_features = self._smile.num_features
        warnings.filterwarnings("ignore", "Segment too short", UserWarning)  # `features_of` says it by None

    @property
    def feature_names(self) -> list[str]:
        """openSMILE's name of each feature."""
        return self._smile.feature_names

    def batches(self, clips: Sequence[Clip], size: int) -> list[list[Clip]]:
        """`size` clips a task; they gain nothing from each other."""
        return [list(clips[start : start + size]) for start in range(0, len(clips), size)]

    def workers(self, asked: int) -> int:
        """Tasks at a time."""
        return asked

    def features_of(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """For each signal, as from `read_signal`, float64 (1, D), or None where it is too short."""
        found = [self._smile.process_signal(signal, SAMPLING_RATE).to_numpy(dtype=np.float64) for signal in signals]
        return [None if np.isnan(features).all() else features for features in found]


class EncoderSet:
    """The mean over time of the last hidden state of a wav2vec 2.0, HuBERT, WavLM or like encoder.

    Source: the encoders of Hugging Face's transformers that take a waveform.
    """

    alone = False

    def __init__(self, folder: Path, device):
        """
        Args:
            folder: the encoder as transformers saves it: configuration, weights, preprocessor_config.json.
            device: a `torch.device`.
        Raises:
            UserError: transformers is not installed, or the folder holds no such encoder.
        """
        try:
            import transformers
        except ImportError:
            raise UserError(
                f"{folder}: an encoder needs the package transformers: `pip install transformers`."
            ) from None
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)  # WavLM's affair
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        for file in ("config.json", "preprocessor_config.json"):
            if not (folder / file).is_file():
                raise UserError(f"{folder}: no {file} in it; expected an encoder as transformers saves it.")
            _check_config(folder / file)
        safe = {"local_files_only": True, "trust_remote_code": False}  # without the latter it would ask on the terminal
        try:
            _check_size(folder, transformers.AutoConfig.from_pretrained(folder, **safe))
            self._prepare = transformers.AutoFeatureExtractor.from_pretrained(folder, **safe)
            model, told = transformers.AutoModel.from_pretrained(
                folder, **safe, weights_only=True, output_loading_info=True
            )
            takes_waveforms = self._prepare.model_input_names[0] == "input_values"
        except UserError:
            raise
        except Exception as error:  # whatever its loaders raise over a damaged file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{folder}: no encoder that transformers can load ({reason}).") from None
        lacking = sorted(set(told["missing_keys"]) - {MAY_LACK})
        if lacking:
            raise UserError(f"{folder}: the weights of {len(lacking)} layers are not there, the first {lacking[0]}.")
        if not (takes_waveforms and hasattr(model, "_get_feat_extract_output_lengths")):
            raise UserError(
                f"{folder}: {model.config.model_type} takes no waveform; expected one like wav2vec2 or WavLM."
            )
        if self._prepare.sampling_rate != SAMPLING_RATE:
            raise UserError(f"{folder}: made for {self._prepare.sampling_rate} Hz; expected {SAMPLING_RATE} Hz.")
        self.device = device
        self._model = model.float().eval().to(device)  # in float32 whatever the file has
        self.num_features = model.config.hidden_size
        self.name = f"{model.config.model_type}-{_digest_of(folder)}"

    def batches(self, clips: Sequence[Clip], size: int) -> list[list[Clip]]:
        """Clips of like length together, whatever the size asked for."""
        lengths = [(seconds_of(clip.recording) if clip.stop is None else clip.stop) - clip.start for clip in clips]
        batches: list[list[Clip]] = [[]]
        for length, clip in sorted(zip(lengths, clips)):
            if batches[-1] and length * (len(batches[-1]) + 1) > BATCH_SECONDS:
                batches.append([])
            batches[-1].append(clip)
        return batches

    def workers(self, asked: int) -> int:
        """Tasks at a time: threads read for a GPU while it computes; a CPU is busy with one batch."""
        return 1 if self.device.type == "cpu" else min(asked, MOST_THREADS)

    def features_of(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """For each signal, as from `read_signal`, float64 (1, D), or None where it is too short."""
        longest = LONGEST_PIECE * SAMPLING_RATE
        if max(map(len, signals)) <= longest:
            return self._pool(signals)
        found = []
        for signal in signals:
            # Pieces of one clip are as long as each other to the sample, and count the same.
            pieces = np.array_split(signal, -(-len(signal) // longest))
            means = [mean for piece in pieces for mean in self._pool([piece])]
            found.append(None if any(mean is None for mean in means) else np.mean(means, axis=0))
        return found

    def _pool(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """The pooled hidden states of signals of up to LONGEST_PIECE, float64 (1, D), None where there is no frame."""
        if not signals:
            return []
        # Encoders with a group norm (wav2vec2-base) know no mask: silence beside a clip would change its features.
        if not self._prepare.return_attention_mask and len({len(signal) for signal in signals}) > 1:
            return [self._pool([signal])[0] for signal in signals]

        lengths = torch.tensor([len(signal) for signal in signals])
        frames = self._model._get_feat_extract_output_lengths(lengths).tolist()
        if min(frames) < 1:
            kept = iter(self._pool([signal for signal, count in zip(signals, frames) if count > 0]))
            return [next(kept) if count > 0 else None for count in frames]
        inputs = self._prepare(list(signals), sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(**inputs.to(self.device)).last_hidden_state  # (B, frames, D)
            means = torch.stack([of[:count].mean(dim=0) for of, count in zip(hidden, frames)])
        return [mean[None] for mean in means.cpu().numpy().astype(np.float64)]


def _check_config(file: Path) -> None:
    """Raise `UserError` where a configuration names code to run, or what would have to be fetched."""
    config = read_json_object(file)
    for name in ("auto_map", "quantization_config"):
        if config.get(name):
            raise UserError(f"{file}: has {name}, code of its own; expected an encoder that transformers knows.")
    for name, value in config.items():
        if "attn_implementation" in name and "/" in str(value):
            raise UserError(f"{file}: {name} {str(value)[:80]} would be fetched; expected none, or a built-in one.")
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, int) and abs(number) > LARGEST_SIZE for number in numbers):
            raise UserError(f"{file}: {name} is {str(value)[:80]}; expected numbers up to {LARGEST_SIZE:,}.")
        if name.endswith("_layers") and isinstance(value, int) and value > MOST_LAYERS:
            raise UserError(f"{file}: {name} is {str(value)[:80]}; expected up to {MOST_LAYERS}.")


def _check_size(folder: Path, config) -> None:
    """Raise `UserError` where a network of this configuration has more weights than the folder has bytes of them."""
    import transformers

    with torch.device("meta"):  # without memory
        network = transformers.AutoModel.from_config(config, trust_remote_code=False)
    count = sum(weights.numel() for weights in network.parameters())
    there = sum(file.stat().st_size for file in _weight_files(folder))
    if count > there:
        raise UserError(f"{folder}: {count:,} weights by its config.json, in files of {there:,} bytes.")


def _weight_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin") and file.is_file()]


def _digest_of(folder: Path) -> str:
    """Twelve digits that tell an encoder from every other, whatever its folder is called."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", folder / "preprocessor_config.json", *_weight_files(folder)]):
        with file.open("rb") as stream:
            while data := stream.read(2**20):
                digest.update(data)
    return digest.hexdigest()[:12]


def _known_sets() -> list[str]:
    import opensmile

    return [name for name in vars(opensmile.FeatureSet) if not name.startswith("_")]


def is_opensmile_set(name: str) -> bool:
    """Whether openSMILE has a feature set of this name."""
    return name in _known_sets()


@functools.cache  # setting up takes longer than a clip; a process keeps what it has
def open_set(feature_set: str, device: str = "auto") -> OpenSmileSet | EncoderSet:
    """What makes the features of a set.

    Args:
        feature_set: a name in `opensmile.FeatureSet`, or the folder of an encoder.
        device: where an encoder computes, as `--device`.
    Raises:
        UserError: no such set. It is checked here, since openSMILE ends the process over some names.
    """
    if is_opensmile_set(feature_set):
        return OpenSmileSet(feature_set)
    if Path(feature_set).is_dir():
        return EncoderSet(Path(feature_set), choose_device(device))
    raise UserError(
        f"--set {feature_set}: no folder of an encoder (nothing is downloaded), and no openSMILE feature set; those "
        f"are {', '.join(_known_sets())}."
    )


def feature_names(feature_set: str, count: int) -> list[str]:
    """What the features of a set are called.

    Args:
        feature_set: a name in `opensmile.FeatureSet`; any other has no names.
        count: D.
    Returns:
        openSMILE's names, or `feature 0`, `feature 1`, ... where the set has none or is not of D features.
    """
    if is_opensmile_set(feature_set):
        names = open_set(feature_set).feature_names
        if len(names) == count:
            return names
    return [f"feature {number}" for number in range(count)]


def features_of(clips: Sequence[Clip], feature_set: str, device: str = "auto") -> list[Features]:
    """The features of some clips.

    Args:
        clips: recordings or parts of them.
        feature_set: as `open_set`.
        device: as `open_set`.
    Returns:
        For each clip its features, or why it has none.
    """
    found: list = [None] * len(clips)
    signals, remarks = {}, [[] for _ in clips]
    for number, clip in enumerate(clips):
        try:
            signals[number] = read_signal(clip, remarks[number])
        except UserError as error:
            found[number] = Features(None, "; ".join([str(error), *remarks[number]]))
        except OSError as error:
            found[number] = Features(None, error.strerror or str(error))
    if signals:
        for number, vector in zip(signals, open_set(feature_set, device).features_of(list(signals.values()))):
            if vector is None:
                remarks[number].insert(0, f"too short ({1000 * len(signals[number]) / SAMPLING_RATE:.0f} ms)")
            elif np.isnan(vector).all():
                vector, remarks[number] = None, ["the encoder returns only NaN"]
            found[number] = Features(vector, "; ".join(remarks[number]))
    return found


def in_parallel(work: Callable, tasks: Sequence[tuple], workers: int) -> Iterator:
    """Results of `work(*task)` in the order of the tasks.

    Args:
        work: a function of a module of this program, fit for threads.
        tasks: its arguments.
        workers: tasks at a time; up to MOST_THREADS in threads, above in processes.
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
