"""Whatever bytes a file holds: a right result or a message, never a traceback, a hang or a wrong number.

    python -m benchmarks.fuzz --inputs 20000
    python -m benchmarks.fuzz --targets labels_csv --engine atheris

feeds every reader of files from elsewhere with damaged copies of good files: bytes changed, cut, repeated, mixed with
others, numbers made extreme. The engine atheris (pip install atheris) is led by the code that its inputs reach;
`random` needs nothing. A find stops the target and is written to --finds.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmarks.sections import machine, replace_section, split_section
from deepmi import cli, matfile, run_log
from deepmi.process import UserError

SECONDS = 10  # that one input may take
MEGABYTES = 500  # that it may add to the process's memory
SMALL_TRUNK = (8, 6, 4)  # widths of a DenseResNet whose files are short
STATUS = Path("/proc/self/status")
NASTY = (
    b"nan",
    b"inf",
    b"-1",
    b"1e309",
    b"99999999999999999999",
    b"\x00",
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
    b'"',
    b",",
)


class Wrong(Exception):
    """A reader returned what it must not return."""


def expect(condition: object, what: str) -> None:
    """Raise `Wrong` unless the condition holds."""
    if not condition:
        raise Wrong(what)


@dataclass
class Target:
    """A reader of files.

    Attributes:
        ending: of its files.
        good: makes the content of good files, to start from.
        read: reads one and checks what comes out; `runtime.UserError` is a good answer.
    """

    ending: str
    good: Callable[[], list[bytes]]
    read: Callable[[Path], None]


# ---------------------------------------------------------------------------------------------------------------------
# Targets


def _label_rows() -> list[dict[str, str]]:
    fields = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
    values = [
        ("a.wav", "N", "4.2", "1.5", "6.9", "1", "Female", "Train"),
        ("b.flac", "A", "", "7", "1", "Unknown", "Male", "Test1"),
    ]
    return [dict(zip(fields, row)) for row in values]


def _csv(rows: list[dict[str, str]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _labels(path: Path) -> None:
    import numpy as np

    import utils

    table = utils.read_labels(path)
    for name in table["FileName"]:
        expect(name and "/" not in name and "\0" not in name and name not in (".", ".."), f"file name {name!r}")
    expect(table["FileName"].is_unique, "a file name twice")
    for attribute in cli.ATTRIBUTES:
        with contextlib.suppress(UserError):
            values = utils.attribute_labels(table, attribute, path).to_numpy()
            expect(np.isfinite(values).all() and values.min() >= 1 and values.max() <= 7, f"labels {values}")


def _detailed(path: Path) -> None:
    import utils

    table = utils.read_detailed_labels(path)
    expect(len(table) and all(isinstance(name, str) and name for name in table["FileName"]), "rows without a name")
    for attribute in cli.ATTRIBUTES:
        with contextlib.suppress(UserError):
            expect((utils.rater_spread(path, attribute) >= 0).all(), "a spread that is no number")


def _metric(path: Path) -> None:
    from deepmi.metric import read_metric

    values = read_metric(path)
    expect(
        all(isinstance(value, float) and abs(value) < 1e300 for value in values.values()), "a value that is no number"
    )
    expect(values == json.loads(path.read_bytes().decode("utf-8-sig")), "other values than those that stand there")


def _feature(path: Path) -> None:
    from deepmi import features

    vector = features.read_feature(path)
    expect(vector.ndim == 1 and vector.size and vector.dtype == "float64", f"{vector.shape}, {vector.dtype}")


def _mats() -> list[bytes]:
    import numpy as np
    from scipy.io import savemat

    found = []
    for value, pressed in ((np.linspace(-1, 1, 12)[None], False), (np.ones((1, 5), np.float32), True)):
        stream = io.BytesIO()
        savemat(stream, {"Audio_data": value}, do_compression=pressed)
        found.append(stream.getvalue())
    return found


def _checkpoint(path: Path) -> None:
    import torch

    from model import load_regressor

    network, info = load_regressor(path, 12)
    expect(network.num_features == 12 and isinstance(info, dict), "another network")
    with torch.inference_mode():
        expect(network(torch.zeros(2, 12)).shape == (2,), "another shape of predictions")


def _checkpoints() -> list[bytes]:
    import torch

    from model import DenseNet, save_regressor

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pt.tar"
        weights = DenseNet(12, width=4).state_dict()
        save_regressor(path, weights, {"epoch": 1, "emo_attr": "Val"})
        found = [path.read_bytes()]
        torch.save(weights, path, _use_new_zipfile_serialization=False)  # without checksums: damage goes further
        return [*found, path.read_bytes()]


def _ssl_checkpoint(path: Path) -> None:
    import torch

    import model

    with mock.patch.object(model, "TRUNK_WIDTHS", SMALL_TRUNK):
        network, info = model.load_ssl_checkpoint(path, 12, 3, "Val")
    expect(network.num_features == 12 and isinstance(info, dict), "another network")
    with torch.inference_mode():
        logits, attribute = network(torch.zeros(2, 12))
    expect(logits.shape == (2, 3) and attribute.shape == (2,), "another shape of outputs")


def _ssl_checkpoints() -> list[bytes]:
    import torch

    import model

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(model, "TRUNK_WIDTHS", SMALL_TRUNK):
        path = Path(folder) / "x.pth.tar"
        model.save_ssl_checkpoint(path, model.DenseResNet(12, 3).state_dict(), {"epoch": 1, "emo_attr": "Val"})
        return [path.read_bytes()]


def _run_of(checkpoint: Path) -> run_log.TrainingRun:
    return run_log.TrainingRun(checkpoint, {"epoch": 2, "seed": 31}, {"Train": "a"}, {}, True)


def _resume(path: Path) -> None:
    run = _run_of(path.with_name(path.name.removesuffix(".resume")))
    state = run._read_state()
    expect(isinstance(state, dict) and len(run.history) == 1, "another state")


def _resumes() -> list[bytes]:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        run = _run_of(Path(folder) / "x.pt.tar")
        run.history, weights = [{"epoch": 0}], {"a": torch.ones(3)}
        run.best = {"loss": 0.5, "epoch": 0, "weights": weights}
        run.save({"weights": weights}, lambda: None)
        return [run.resume_file.read_bytes()]


def _log(path: Path) -> None:
    run = _run_of(path.with_name("input.pt.tar"))
    run.checkpoint.touch()
    expect(run.is_finished() in (True, False), "neither finished nor not")
    run._note_replaced_run()


def _logs() -> list[bytes]:
    first = {"run": _run_of(Path("input.pt.tar")).identity, "counts": {"Train": 3}}
    lines = [first, {"epoch": 0, "validation_ccc_loss": 0.5}, {"finished": True, "best_epoch": 0}]
    return ["".join(json.dumps(line) + "\n" for line in lines).encode()]


def _norm(path: Path) -> None:
    import utils

    path.replace(path.with_name("val_norm_means.mat"))
    path.with_name("val_norm_stds.mat").write_bytes(_norms()[0])
    mean, std = utils.read_label_norm(path.parent, "Val")
    expect(1 <= mean <= 7 and 0 < std <= 6, f"mean {mean}, std {std}")


def _norms() -> list[bytes]:
    import numpy as np

    return [matfile.mat_bytes("normal_para", np.array([[1.5]]))]


def _packed(path: Path) -> None:
    from deepmi import features

    names = ["a.wav", "b.wav"]
    features.write_index(path, "0" * 64, names)
    found = features._open_cache(path, names, 3)
    if found is None:
        raise UserError("it is packed again")
    rows = found.rows
    expect(rows.shape == (2, 3) and rows.dtype == "float32", f"{rows.shape}, {rows.dtype}")
    expect(len(rows.tobytes()) == 24, "rows that can't be read")


def _packeds() -> list[bytes]:
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, np.arange(6, dtype=np.float32).reshape(2, 3))
    return [stream.getvalue()]


def _prepared(table) -> None:
    """Check a table that tools.prepare_corpus has read."""
    import numpy as np

    import utils
    from tools import corpora

    for column in corpora.ATTRIBUTE_COLUMNS:
        values = table[column].dropna()
        expect((np.abs(values) < utils.LARGEST_LABEL).all(), f"labels {list(values)}")
    expect((table["FileName"] != "").all(), "a row without a name")


def _table(path: Path) -> None:
    from tools import corpora

    _prepared(corpora.read_table(path, {"FileName": "file", "EmoAct": "act", "SpkrID": "who", "Split_Set": "part"}))


def _partitions(path: Path) -> None:
    from tools import corpora

    expect(all(corpora.read_partitions(path).values()), "no split")


def _iemocap(path: Path) -> None:
    from tools import corpora

    folder = path.parent / "Session1/dialog/EmoEvaluation"
    folder.mkdir(parents=True, exist_ok=True)
    path.replace(folder / "Ses01F_impro01.txt")
    for table in corpora.read_iemocap(path.parent):
        _prepared(table)


def _improv(path: Path) -> None:
    from tools import corpora

    path.replace(path.with_name("Evalution.txt"))
    for table in corpora.read_improv(path.parent):
        _prepared(table)


IEMOCAP = b"""% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
A-E3:\tval 3; act 2; dom  2;\t()
A-F1:\tval 4; act 1; dom 1;\t()
"""
IMPROV = b"""UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3.0; V:3.5; D:3.0 ; N:4.0;
WORKER01; Neutral; Neutral,Other; A:3; V:nan; D:2; N:4;
"""


def _signal(path: Path) -> None:
    import numpy as np

    from tools.feature_sets import Clip, read_signal

    samples = read_signal(Clip(path))
    expect(samples.ndim == 1 and samples.size and np.isfinite(samples).all(), "samples that are no numbers")
    expect(abs(samples).max() <= 1, f"samples up to {abs(samples).max()}")


def _sounds() -> list[bytes]:
    import numpy as np
    import soundfile

    time_axis = np.arange(800) / 8000
    found = []
    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "FLOAT")):
        stream = io.BytesIO()
        soundfile.write(stream, 0.3 * np.sin(2 * np.pi * 200 * time_axis), 8000, format=kind, subtype=subtype)
        found.append(stream.getvalue())
    return found


def _detailed_texts() -> list[bytes]:
    separate = {"FileName": "a.wav", "WorkerID": "W1", "EmoClass_Major": "Happy", "EmoClass_Second": "", "EmoAct": "3"}
    detail = (
        'FileName,EmoDetail\na.wav,"WORKER1; Happy; Joy,Calm; A:3; V:nan; D:2.5;"\na.wav,WORKER2; Sad; A:4; V:1; D:2;\n'
    )
    return [detail.encode(), _csv([separate | {"EmoVal": "nan", "EmoDom": "7"}])]


TARGETS = {
    "labels_csv": Target(".csv", lambda: [_csv(_label_rows())], _labels),
    "labels_json": Target(
        ".json", lambda: [json.dumps({row.pop("FileName"): row for row in _label_rows()}).encode()], _labels
    ),
    "detailed_csv": Target(".csv", _detailed_texts, _detailed),
    "detailed_json": Target(
        ".json",
        lambda: [b'{"a.wav": {"W1": {"EmoClass_Major": "N", "EmoAct": "3", "EmoVal": 2.5, "EmoDom": null}}}'],
        _detailed,
    ),
    "table": Target(
        ".csv",
        lambda: [b"file;act;who;part\na/b.wav;12.5;s1;train\nc;;s2;\n", b"act,file,part,who\n1e1,x,T,2\n"],
        _table,
    ),
    "partitions": Target(".txt", lambda: [b"Train; MSP-PODCAST_0001_0001.wav\nb.wav Test1\n"], _partitions),
    "iemocap": Target(".txt", lambda: [IEMOCAP], _iemocap),
    "improv": Target(".txt", lambda: [IMPROV], _improv),
    "metric": Target(".json", lambda: [b'{"a.wav": 0.01031, "b.wav": -0.5, "c.wav": 3}'], _metric),
    "mat": Target(".mat", _mats, _feature),
    "checkpoint": Target(".pt.tar", _checkpoints, _checkpoint),
    "ssl_checkpoint": Target(".pth.tar", _ssl_checkpoints, _ssl_checkpoint),
    "resume": Target(".pt.tar.resume", _resumes, _resume),
    "log": Target(".log.jsonl", _logs, _log),
    "norm": Target(".mat", _norms, _norm),
    "packed": Target(".npy", _packeds, _packed),
    "sound": Target(".wav", _sounds, _signal),
}


# ---------------------------------------------------------------------------------------------------------------------
# One input


def feed(target: Target, data: bytes, folder: Path) -> str:
    """Let a target read these bytes.

    Returns:
        `read`, or `refused` where it said what is wrong.
    Raises:
        Exception: whatever is a find: `Wrong`, or what the reader let through.
    """
    path = folder / f"input{target.ending}"
    path.write_bytes(data)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            target.read(path)
    except UserError as error:
        expect(0 < len(str(error)) < 2000, f"a message of {len(str(error))} characters")
        return "refused"
    return "read"


def _peak() -> int:
    """The most memory that this process has had, in kB."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())[1])


def _peak_anew() -> int:
    """The memory of now in kB, from which `_peak` grows again where the system knows how (Linux)."""
    with contextlib.suppress(OSError):
        STATUS.with_name("clear_refs").write_text("5")
    return _peak()


@contextlib.contextmanager
def within_limits() -> Iterator[None]:
    """Raise `Wrong` where the block takes longer, or more memory, than an input may."""

    def too_long(signum: int, frame: object) -> None:
        raise Wrong(f"takes more than {SECONDS} s")

    before = _peak_anew()
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    more = (_peak() - before) / 1024
    expect(more < MEGABYTES, f"takes {more:.0f} MB")


def damaged(good: list[bytes], rng: random.Random) -> bytes:
    """A good file with one to eight things done to it."""
    data = bytearray(rng.choice(good))
    for _ in range(rng.randint(1, 8)):
        place, length = rng.randint(0, len(data)), rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] = rng.randrange(256)
        elif kind == 1:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            data[place : place + rng.choice((0, 1, 4, 8))] = rng.choice(NASTY)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length] * rng.choice((1, 3, 50))
        elif rng.random() < 0.3:
            del data[place:]
        else:
            other = rng.choice(good)
            data[place:] = other[rng.randint(0, len(other)) :]
    return bytes(data)


# ---------------------------------------------------------------------------------------------------------------------
# Engines


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="what to feed")
    parser.add_argument("--inputs", type=cli.positive_int, default=20_000, metavar="N", help="inputs a target")
    parser.add_argument("--engine", choices=("random", "atheris"), default="random", help="what makes the inputs")
    parser.add_argument("--seed", type=cli.non_negative_int, default=1, metavar="N", help="seed of the inputs")
    parser.add_argument(
        "--finds", type=Path, default=Path("fuzz_finds"), metavar="DIR", help="folder of the inputs that did harm"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="Markdown file whose section is replaced")
    return parser


def try_one(name: str, data: bytes, folder: Path, finds: Path, counts: dict[str, int]) -> str:
    """Feed a target within the limits and count its answer; a find in words, empty where there is none."""
    try:
        with within_limits():
            counts[feed(TARGETS[name], data, folder)] += 1
    except Exception as error:
        finds.mkdir(parents=True, exist_ok=True)
        (finds / f"{name}{TARGETS[name].ending}").write_bytes(data)
        return f"{type(error).__name__}: {error}"
    return ""


def run_random(name: str, args: argparse.Namespace, folder: Path) -> tuple[dict[str, int], str]:
    """(inputs by answer, the find or an empty text) of a target."""
    from tqdm import tqdm

    rng = random.Random(f"{args.seed} {name}")
    good, counts = TARGETS[name].good(), {"read": 0, "refused": 0}
    for data in good:  # libraries load themselves now, and good files must be read
        expect(feed(TARGETS[name], data, folder) == "read", f"{name}: a good file is refused")
    for _ in tqdm(range(args.inputs), desc=name, disable=None):
        if find := try_one(name, damaged(good, rng), folder, args.finds, counts):
            return counts, find
    return counts, ""


def run_atheris(name: str, args: argparse.Namespace, folder: Path) -> tuple[dict[str, int], str]:
    """The same, in a process of its own: atheris ends the one that it runs in."""
    counts = {"read": 0, "refused": 0}
    seeds, report = folder / "seeds", folder / "report.json"
    seeds.mkdir(exist_ok=True)

    def write_seeds() -> None:
        for number, data in enumerate(TARGETS[name].good()):
            (seeds / str(number)).write_bytes(data)

    # In a process of its own too: what this one had imported, atheris could not follow any more.
    _in_child(write_seeds)
    status = _in_child(lambda: _fuzz_here(name, args, folder, seeds, report))
    found = json.loads(report.read_text()) if report.exists() else {}
    return counts | found.get("counts", {}), found.get("find", "" if status == 0 else f"ended with status {status}")


def _in_child(work: Callable[[], None]) -> int:
    """Do something in a copy of this process; how that ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def _fuzz_here(name: str, args: argparse.Namespace, folder: Path, seeds: Path, report: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["utils", "deepmi", "model", "tools.corpora"]):
        import model  # noqa: F401
        import utils  # noqa: F401
        from deepmi import features  # noqa: F401
        from deepmi.metric import read_metric  # noqa: F401
        from tools import corpora, feature_sets  # noqa: F401
    counts, last = {"read": 0, "refused": 0}, time.monotonic()

    def one(data: bytes) -> None:
        nonlocal last
        find = try_one(name, data, folder, args.finds, counts)
        if find or time.monotonic() - last > 1 or sum(counts.values()) >= args.inputs:
            report.write_text(json.dumps({"counts": counts, "find": find}))
            last = time.monotonic()
        if find or sum(counts.values()) >= args.inputs:
            os._exit(0)

    atheris.Setup([sys.argv[0], f"-seed={args.seed + 1}", "-rss_limit_mb=0", str(seeds)], one)
    atheris.Fuzz()


def main(args: argparse.Namespace) -> int:
    """Feed every target; 1 where something was found."""
    section = f"fuzz {args.engine}"
    if args.results:
        split_section(args.results, section)
    engine = {"random": run_random, "atheris": run_atheris}[args.engine]
    rows, finds, inputs = [["target", "inputs", "read", "refused", "found"]], 0, 0
    for name in args.targets:
        with tempfile.TemporaryDirectory() as folder:
            counts, find = engine(name, args, Path(folder))
        finds += bool(find)
        rows.append(
            [name, f"{sum(counts.values()):,}", f"{counts['read']:,}", f"{counts['refused']:,}", find[:200] or "-"]
        )
        inputs += sum(counts.values())
    text = "\n".join([*cli.markdown_table(rows), "", f"{inputs:,} inputs, seed {args.seed}, on {machine()}."])
    print(text)
    if args.results:
        replace_section(args.results, section, text)
    return int(finds > 0)


if __name__ == "__main__":
    cli.run(main, cli.parse(get_args_parser()))
