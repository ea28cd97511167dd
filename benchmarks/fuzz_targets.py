"""The readers that `benchmarks.fuzz` tests, valid files for each, and what a correct result is."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import scipy.io
import soundfile
import torch

import model
import utils
from deepmi import cli, features, matfile, metric, run_log
from deepmi.process import UserError
from deepmi.tables import LARGEST_LABEL
from tools import audformat_corpus, audformat_files, corpora, feature_sets, finetuned, import_features


class Wrong(Exception):
    """A reader returned a wrong result."""


def expect(condition: object, what: str) -> None:
    """Raise `Wrong` unless the condition holds."""
    if not condition:
        raise Wrong(what)


@dataclass
class Target:
    """A reader of files.

    Attributes:
        ending: file name ending.
        good: makes the content of valid files.
        read: reads a file and checks the result; `UserError` is a correct answer.
        refusals: further exceptions that are a correct answer.
    """

    ending: str
    good: Callable[[], list[bytes]]
    read: Callable[[Path], None]
    refusals: tuple[type[Exception], ...] = ()


def stored(save: Callable[[Path], object], name: str = "x.bin") -> bytes:
    """What `save` writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        save(path)
        return path.read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Labels and tables

FIELDS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
ROWS = (
    ("a.wav", "N", "4.2", "1.5", "6.9", "1", "Female", "Train"),
    ("b.flac", "A", "", "7", "1", "Unknown", "Male", "Test1"),
)
LABELS = "".join(",".join(row) + "\r\n" for row in (FIELDS, *ROWS)).encode()
LABELS_JSON = json.dumps({row[0]: dict(zip(FIELDS, row)) for row in ROWS}).encode()
TABLES = [b"file;act;who;part\na/b.wav;12.5;s1;train\nc;;s2;\n", b"act,file,part,who\n1e1,x,T,2\n"]
COLUMNS = {"FileName": "file", "EmoAct": "act", "SpkrID": "who", "Split_Set": "part"}
PARTITIONS = b"Train; MSP-PODCAST_0001_0001.wav\nb.wav Test1\n"
DETAIL = (
    b'FileName,EmoDetail\na.wav,"WORKER1; Happy; Joy,Calm; A:3; V:nan; D:2.5;"\na.wav,WORKER2; Sad; A:4; V:1; D:2;\n'
)
RATINGS = b"FileName,WorkerID,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom\na.wav,W1,Happy,,3,nan,7\n"
RATINGS_JSON = b'{"a.wav": {"W1": {"EmoClass_Major": "N", "EmoAct": "3", "EmoVal": 2.5, "EmoDom": null}}}'
IEMOCAP = b"""% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
A-E3:\tval 3; act 2; dom  2;\t()
A-F1:\tval 4; act 1; dom 1;\t()
"""
IMPROV = b"""UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3.0; V:3.5; D:3.0 ; N:4.0;
WORKER01; Neutral; Neutral,Other; A:3; V:nan; D:2; N:4;
"""


def read_labels(path: Path) -> None:
    """Consensus labels: safe unique names, labels 1..7."""
    table = utils.read_labels(path)
    for name in table["FileName"]:
        expect(name and not {"/", "\0"} & {*name} and name not in (".", ".."), f"file name {name!r}")
    expect(table["FileName"].is_unique, "a duplicate file name")
    for attribute in cli.ATTRIBUTES:
        with contextlib.suppress(UserError):
            values = utils.attribute_labels(table, attribute, path).to_numpy()
            expect(np.isfinite(values).all() and values.min() >= 1 and values.max() <= 7, f"labels {values}")


def read_ratings(path: Path) -> None:
    """Individual ratings: every row has a name, no standard deviation is negative or NaN."""
    expect(all(utils.read_detailed_labels(path)["FileName"]), "rows without a name")
    for attribute in cli.ATTRIBUTES:
        with contextlib.suppress(UserError):
            expect((utils.rater_spread(path, attribute) >= 0).all(), "a standard deviation that is not a number")


def check_tables(*tables) -> None:
    """Labels of a different corpus: numbers, and a name in every row."""
    for table in tables:
        for column in corpora.ATTRIBUTE_COLUMNS:
            expect((table[column].dropna().abs() < LARGEST_LABEL).all(), f"labels {list(table[column])}")
        expect((table["FileName"] != "").all(), "a row without a name")


def read_iemocap(path: Path) -> None:
    """The label file of a dialog."""
    target = path.parent / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    check_tables(*corpora.read_iemocap(path.replace(target).parents[3]))


def read_improv(path: Path) -> None:
    """The label file of MSP-IMPROV."""
    check_tables(*corpora.read_improv(path.replace(path.with_name("Evalution.txt")).parent))


def read_metric(path: Path) -> None:
    """DeepMI values: the numbers in the JSON file."""
    values, text = metric.read_metric(path), path.read_bytes().decode("utf-8-sig")
    expect(values == json.loads(text, parse_int=float), "values that differ from the file")
    expect(all(isinstance(value, float) and abs(value) < 1e300 for value in values.values()), "not numbers")


# ---------------------------------------------------------------------------------------------------------------------
# Features, networks, runs, sounds


def mat_files() -> list[bytes]:
    """Feature files, uncompressed and compressed."""
    found = []
    for value, compressed in ((np.linspace(-1, 1, 12)[None], False), (np.ones((1, 5), np.float32), True)):
        stream = io.BytesIO()
        scipy.io.savemat(stream, {"Audio_data": value}, do_compression=compressed)
        found.append(stream.getvalue())
    return found


def read_feature(path: Path) -> None:
    """A feature file: one float64 vector."""
    vector = features.read_feature(path)
    expect(vector.ndim == 1 and vector.size and vector.dtype == np.float64, f"{vector.shape}, {vector.dtype}")


def read_norm(path: Path) -> None:
    """Statistics of an attribute: within the range of labels."""
    path.replace(path.with_name("val_norm_means.mat"))
    path.with_name("val_norm_stds.mat").write_bytes(matfile.mat_bytes(utils.NORM_KEY, np.array([[1.5]])))
    mean, std = utils.read_label_norm(path.parent, "Val")
    expect(1 <= mean <= 7 and 0 < std <= 6, f"mean {mean}, std {std}")


def regressors() -> list[bytes]:
    """A curriculum regressor, in torch's current format and in its old one, which has no checksums."""
    torch.manual_seed(0)
    weights = model.DenseNet(12, width=4).state_dict()
    return [
        stored(lambda path: model.save_regressor(path, weights, {"epoch": 1, "emo_attr": "Val"}), "x.pt.tar"),
        stored(lambda path: torch.save(weights, path, _use_new_zipfile_serialization=False)),
    ]


def read_regressor(path: Path) -> None:
    """A curriculum regressor: one prediction per row."""
    network, info = model.load_regressor(path, 12)
    expect(network.num_features == 12 and isinstance(info, dict), "a different network")
    with torch.inference_mode():
        expect(network(torch.zeros(2, 12)).shape == (2,), "a different shape of predictions")


small_trunk = mock.patch.object(model, "TRUNK_WIDTHS", (8, 6, 4))


@small_trunk
def ssl_checkpoints() -> list[bytes]:
    """A small DeepEmoCluster."""
    torch.manual_seed(0)
    state, info = model.DenseResNet(12, 3).state_dict(), {"epoch": 1, "emo_attr": "Val"}
    return [stored(lambda path: model.save_ssl_checkpoint(path, state, info), "x.pth.tar")]


@small_trunk
def read_ssl_checkpoint(path: Path) -> None:
    """A DeepEmoCluster: logits and one prediction per row."""
    network, info = model.load_ssl_checkpoint(path, 12, 3, "Val")
    expect(network.num_features == 12 and isinstance(info, dict), "a different network")
    with torch.inference_mode():
        logits, attribute = network(torch.zeros(2, 12))
    expect(logits.shape == (2, 3) and attribute.shape == (2,), "a different shape of outputs")


def finetuned_encoder() -> bytes:
    """The file of a small encoder with random weights."""
    import transformers  # optional

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 8)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    encoder = transformers.WavLMModel(transformers.WavLMConfig(**sizes, **convolutions, **positions, vocab_size=8))
    network = finetuned.FinetunedEncoder(encoder, True, False, {"Act": (4.0, 1.0), "Val": (3.0, 1.0)})
    return stored(lambda path: finetuned.save_finetuned(path, network, network.state_dict(), {"epoch": "1"}))


def read_finetuned(path: Path) -> None:
    """A fine-tuned encoder: one number per attribute."""
    network = finetuned.load_finetuned(path)
    with torch.inference_mode():
        z = network([torch.ones(1600)])
    expect(z.shape == (1, len(network.label_norm)), "a different shape of outputs")


def run_of(checkpoint: Path) -> run_log.TrainingRun:
    """A training of two epochs."""
    return run_log.TrainingRun(checkpoint, {"epoch": 2, "seed": 31}, {"Train": "a"}, {}, True)


def resume_file() -> bytes:
    """The resume file of a training after one epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(Path(folder) / "x.pt.tar")
        run.history, weights = [{"epoch": 0}], {"a": torch.ones(3)}
        run.best = {"loss": 0.5, "epoch": 0, "weights": weights}
        run.save({"weights": weights}, lambda: None)
        return run.resume_file.read_bytes()


def read_resume(path: Path) -> None:
    """A resume file: the epochs of the training that wrote it."""
    run = run_of(path.with_name(path.name.removesuffix(".resume")))
    state = run._read_state()
    expect(isinstance(state, dict) and len(run.history) == 1, "a different state")


def log_file() -> bytes:
    """The log of a finished training."""
    first = {"run": run_of(Path("input.pt.tar")).identity, "counts": {"Train": 3}}
    lines = [first, {"epoch": 0, "validation_ccc_loss": 0.5}, {"finished": True, "best_epoch": 0}]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_log(path: Path) -> None:
    """A log: a run counts as finished only if its log says so."""
    run = run_of(path.with_name("input.pt.tar"))
    run.checkpoint.touch()
    if run.is_finished():
        expect(json.loads(path.read_text().splitlines()[-1])["finished"] is True, "not a finished run")
    run._note_replaced_run()


def sounds() -> list[bytes]:
    """Recordings in several formats."""
    tone, found = 0.3 * np.sin(2 * np.pi * 200 * np.arange(800) / 8000), []
    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "FLOAT")):
        stream = io.BytesIO()
        soundfile.write(stream, tone, 8000, format=kind, subtype=subtype)
        found.append(stream.getvalue())
    return found


def read_sound(path: Path) -> None:
    """A recording: samples from -1 to 1."""
    samples = feature_sets.read_signal(feature_sets.Clip(path))
    expect(samples.ndim == 1 and samples.size and np.isfinite(samples).all(), "samples that are not numbers")
    expect(abs(samples).max() <= 1, f"samples up to {abs(samples).max()}")


# ---------------------------------------------------------------------------------------------------------------------
# Features and databases of other programs

NUMBERS = pd.DataFrame({"file": ["a/b.wav", "c.wav"], "start": [0, 0], "x": [1.5, -2.0], "y": [1, 2]})
HEADER = b"""name: mine
splits:
  train: {type: train}
schemes:
  arousal: {dtype: float, minimum: 0, maximum: 1}
  speaker: {labels: {1: {gender: female}, 2: {gender: male}}}
tables:
  gold:
    type: filewise
    split_id: train
    columns:
      arousal: {scheme_id: arousal}
      speaker: {scheme_id: speaker}
"""


def read_array(path: Path) -> None:
    """A .npy file of one vector."""
    expect(import_features.open_array(path, has_frames=False).size, "no numbers")


def read_numbers(path: Path) -> None:
    """A table of features."""
    frame = audformat_files.read_frame(path)
    expect(len(frame) and len(set(frame.columns)) == len(frame.columns), "no rows, or a column twice")


def read_database(path: Path) -> None:
    """A database whose header is the file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / audformat_files.HEADER).write_bytes(path.read_bytes())
        (Path(folder) / "db.gold.csv").write_text("file,arousal,speaker\na.wav,0.5,1\n")
        table, scale = audformat_corpus.read_database(Path(folder), {}, (), None)
        expect(len(table) == 1 and scale[0] < scale[1], f"{len(table)} rows on the scale {scale}")


TARGETS = {
    "npy": Target(".npy", lambda: [stored(lambda path: np.save(path, np.arange(4.0)), "x.npy")], read_array),
    "numbers_csv": Target(".csv", lambda: [NUMBERS.to_csv(index=False).encode()], read_numbers),
    "numbers_parquet": Target(".parquet", lambda: [stored(NUMBERS.to_parquet)], read_numbers),
    "audformat": Target(".yaml", lambda: [HEADER], read_database),
    "labels_csv": Target(".csv", lambda: [LABELS], read_labels),
    "labels_json": Target(".json", lambda: [LABELS_JSON], read_labels),
    "detailed_csv": Target(".csv", lambda: [DETAIL, RATINGS], read_ratings),
    "detailed_json": Target(".json", lambda: [RATINGS_JSON], read_ratings),
    "table": Target(".csv", lambda: TABLES, lambda path: check_tables(corpora.read_table(path, COLUMNS))),
    "partitions": Target(
        ".txt", lambda: [PARTITIONS], lambda path: expect(all(corpora.read_partitions(path).values()), "no split")
    ),
    "iemocap": Target(".txt", lambda: [IEMOCAP], read_iemocap),
    "improv": Target(".txt", lambda: [IMPROV], read_improv),
    "metric": Target(".json", lambda: [b'{"a.wav": 0.01031, "b.wav": -0.5, "c.wav": 3}'], read_metric),
    "mat": Target(".mat", mat_files, read_feature),
    "checkpoint": Target(".pt.tar", regressors, read_regressor),
    "ssl_checkpoint": Target(".pth.tar", ssl_checkpoints, read_ssl_checkpoint),
    "resume": Target(".pt.tar.resume", lambda: [resume_file()], read_resume),
    "log": Target(".log.jsonl", lambda: [log_file()], read_log),
    "norm": Target(".mat", lambda: [matfile.mat_bytes(utils.NORM_KEY, np.array([[1.5]]))], read_norm),
    "sound": Target(".wav", sounds, read_sound),
    # For comparison: the reason for the parser in deepmi/matfile.py
    "scipy_mat": Target(".mat", mat_files, scipy.io.loadmat, refusals=(Exception,)),
}
if importlib.util.find_spec("transformers"):  # an optional package
    TARGETS["finetuned"] = Target(".pt.tar", lambda: [finetuned_encoder()], read_finetuned)
