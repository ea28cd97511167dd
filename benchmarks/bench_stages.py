"""Compare the speed of each stage with the limit of the machine: one table.

    python -m benchmarks.bench_stages --sizes small --results benchmarks/RESULTS.md
    python -m benchmarks.bench_stages --sizes v1.8 --device cuda --precision bf16 --epochs 10

It writes a synthetic corpus to a temporary folder and runs each stage on it in a separate process. The limits are:

- training and extraction: the rate of matrix products of 2,048 x 2,048 (8,192 x 8,192 on a GPU) in the same precision,
  measured in the same process between the epochs; operations are counted from the sizes of the layers
- normalisation statistics and packing: scipy's loadmat of the same files on all cores
- openSMILE: the speed of one recording at a time, times the number of cores
- predictions: the speed of feature extraction alone
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.sections import add_results_argument, fill_section, machine, run
from deepmi import cli

SIZES = {
    "tiny": {"Train": 96, "Validation": 32, "unlabeled": 128},  # to test this benchmark
    "small": {"Train": 2048, "Validation": 512, "unlabeled": 4096},
    "v1.8": {"Train": 44879, "Validation": 7800, "unlabeled": 90000},
}
STAGES = ("norms", "packing", "ssl", "deepmi", "curriculum", "opensmile", "start-up")


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--sizes", choices=SIZES, default="small", help="size of the corpus")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to measure")
    parser.add_argument("--epochs", type=cli.positive_int, default=12, metavar="N", help="DeepEmoCluster epochs to run")
    help = "measure instead how time and memory per DeepEmoCluster epoch grow with these sizes of the unlabeled set"
    parser.add_argument("--growth", type=cli.positive_int, nargs="+", metavar="N", help=help)
    cli.add_device_argument(parser)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of matrix products")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for all files; by default a temporary one")
    add_results_argument(parser)
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import contextlib
import io
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import soundfile
import torch
from joblib import Parallel, delayed
from scipy.io import loadmat
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import model
import utils
from deepmi import features, matfile, runtime
from tools import extract_features, predict

WIDTH = 6373
CLUSTERS = 50
BATCH = 512
DISTINCT = 2048  # feature files with different content; the rest are links to these
SCRIPTS = ("norm_para", "training_DeepEmoCluster", "extract_DeepMI", "training_Curriculum", "testing_Curriculum")
HEADER = ("stage", "s", "utterances/s", "GFLOP/s", "limit", "ratio", "memory MB")


def make_corpus(root: Path, sizes: dict[str, int]) -> None:
    """Write random labels and features of Train, Validation and the unlabeled set, and normalisation statistics."""
    rng = np.random.default_rng(0)
    labeled, unlabeled = root / "corpus" / utils.FEATURE_FOLDER, root / "unlabeled"
    for folder in (labeled, unlabeled, root / "corpus/Labels"):
        folder.mkdir(parents=True)
    rows, written = [], []
    for part, count in sizes.items():
        for number, label in enumerate(np.clip(rng.normal(4, 1.2, count), 1, 7)):
            file = (unlabeled if part == "unlabeled" else labeled) / f"{part}_{number:08d}.mat"
            if len(written) < DISTINCT:
                matfile.write_mat(file, features.FEATURE_KEY, rng.normal(size=(1, WIDTH)))
                written.append(file)
            else:
                file.hardlink_to(written[number % DISTINCT])
            if part != "unlabeled":
                rows.append((f"{file.stem}.wav", "N", label, label, label, "Unknown", "Male", part))
    table = pd.DataFrame(rows, columns=utils.CONSENSUS_COLUMNS)
    table.to_csv(root / "corpus/Labels/labels_consensus.csv", index=False, float_format="%.3f")
    run("norm_para.py", "--corpus", "corpus", folder=root)


def run_stage(args: argparse.Namespace, root: Path, stage: str, *argv: object) -> dict:
    """Run a stage in a separate process; returns what `measure_stage` measured, and the `epochs` in its log."""
    common = ["--corpus", "corpus", "--device", args.device, "--precision", args.precision, "-emo", "Val"]
    run("-m", "benchmarks.measure_stage", stage, "measured.json", *common, *argv, "-batch", BATCH, folder=root)
    return json.loads((root / "measured.json").read_text())


def operations(network: nn.Module, rows: int, trained: bool) -> float:
    """Floating-point operations of the matrix products for some rows: forward, and backward if trained."""
    with FlopCounterMode(display=False) as counter:
        outputs = network(torch.zeros(2, WIDTH))
        if trained:
            sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
    return counter.get_total_flops() / 2 * rows


def ssl_epoch_operations(sizes: dict[str, int]) -> float:
    """Operations of one DeepEmoCluster epoch."""
    whole = model.DenseResNet(WIDTH, CLUSTERS)
    trunk, head = whole.dnn_features, whole.classifier
    return (
        operations(nn.Sequential(trunk, head), sizes["unlabeled"] + sizes["Train"], False)  # k-means
        + operations(nn.Sequential(trunk, head, whole.top_layer_class), sizes["unlabeled"], True)
        + operations(whole, sizes["Train"], True)
        + operations(nn.Sequential(trunk, whole.emo_regressor), sizes["Validation"], False)
    )


def median_run(runs: pd.DataFrame, ratio: pd.Series) -> pd.Series:
    """The run with the median ratio, because the speed of the machine itself changes between runs."""
    return runs.loc[ratio.sort_values().index[len(runs) // 2]]


def timed_turns(work: dict[str, Callable[[int], object]], turns: int) -> pd.DataFrame:
    """Seconds of each piece of work (columns) in each turn (rows); the pieces run one after the other in every turn."""
    seconds = pd.DataFrame(index=range(turns), columns=list(work), dtype=float)
    for turn, name in itertools.product(seconds.index, work):
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            work[name](turn)
        seconds.loc[turn, name] = time.perf_counter() - begin
    return seconds


def row_of_products(name: str, seconds: float, utterances: int, flops: float, measured: dict) -> list[str]:
    """A row of the table, with the rate of matrix products as the limit."""
    rate, limit = flops / seconds / 1e9, measured["rate"] / 1e9
    numbers = f"{utterances / seconds:,.0f}", f"{rate:.0f}", f"{limit:.0f} GFLOP/s", f"{rate / limit:.2f}"
    return [name, f"{seconds:.3g}", *numbers, f"{measured['memory']:.0f}"]


def row_of_files(name: str, seconds: float, count: int, limit: float, unit: str) -> list[str]:
    """A row of the table; `limit` is the shortest possible time in seconds."""
    digits = ".0f" if unit == "files" else ".1f"
    rates = f"{count / seconds:,{digits}}", "", f"{count / limit:,{digits}} {unit}/s"
    return [name, f"{seconds:.3g}", *rates, f"{limit / seconds:.2f}"]


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def bench_reading(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """Normalisation statistics and packing of Train, three times in turn with loadmat."""
    folder, cores = root / "corpus" / utils.FEATURE_FOLDER, cli.cpu_count()
    paths = sorted(folder.glob("Train_*.mat"))
    names, norm = [path.name for path in paths], (np.zeros(WIDTH), np.ones(WIDTH))
    work = {
        "loadmat": lambda turn: Parallel(cores, batch_size=64)(delayed(load_mat)(path) for path in paths),
        "norms": lambda turn: features.feature_moments(folder, names, cores),
        "packing": lambda turn: features.pack_features(folder, names, *norm, root / f"packing_{turn}", cores),
    }
    seconds = timed_turns(work, 3).min()
    for stage in ("norms", "packing"):
        if stage in args.stages:
            yield row_of_files(stage, seconds[stage], len(paths), seconds["loadmat"], "files")


def load_mat(path: Path) -> None:
    """Read a .mat file with scipy and return nothing."""
    loadmat(path)


def bench_ssl(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """The median epoch of DeepEmoCluster, without the first one."""
    argv = ["-ep", 2 if args.growth else args.epochs, "-nc", CLUSTERS, "--no-resume"]
    argv += ["--unlabeled", "unlabeled", "--unlabeled-size", sizes["unlabeled"]]
    measured = run_stage(args, root, "training_DeepEmoCluster", *argv)
    epochs = pd.DataFrame(measured["epochs"]).assign(memory=measured["memory"])
    epochs = epochs[1:] if len(epochs) > 1 else epochs
    run = median_run(epochs, epochs["seconds"] * epochs["rate"])
    name = f"SSL epoch, {sizes['unlabeled']:,} unlabeled" if args.growth else "SSL epoch"
    yield row_of_products(name, run["seconds"], sum(sizes.values()), ssl_epoch_operations(sizes), run)


def bench_deepmi(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """The forward pass over Train, and the rest of stage 2 without imports."""
    network, epoch = model.DenseResNet(WIDTH, CLUSTERS), 999
    (root / "Models").mkdir(exist_ok=True)
    checkpoint = utils.ssl_checkpoint(root / "Models", epoch, BATCH, CLUSTERS, "Val")
    model.save_ssl_checkpoint(checkpoint, network.state_dict(), {})
    runs = pd.DataFrame(run_stage(args, root, "extract_DeepMI", "-ep", epoch, "-nc", CLUSTERS) for _ in range(5))
    run = median_run(runs, runs["passes"] * runs["rate"])
    flops = operations(network, sizes["Train"], False)
    yield row_of_products("DeepMI, forward pass", run["passes"], sizes["Train"], flops, run)
    rest = (runs["seconds"] - runs["passes"]).median()
    yield ["DeepMI, all else", f"{rest:.3f}", f"{sizes['Train'] / rest:,.0f}"]


def bench_curriculum(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """A whole curriculum training."""
    measured = run_stage(args, root, "training_Curriculum", "-ep", 70, "--order", "random", "--no-resume")
    epochs, network = pd.DataFrame(measured["epochs"]), model.DenseNet(WIDTH)
    flops = operations(network, epochs["utterances"].sum(), True)
    flops += operations(network, len(epochs) * sizes["Validation"], False)
    name, utterances = f"curriculum, {len(epochs)} epochs", len(epochs) * sizes["Train"]
    yield row_of_products(name, epochs["seconds"].sum(), utterances, flops, measured)


def bench_opensmile(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """Features from recordings, one at a time and one per core; then predictions from the same recordings."""
    cores, audio, rng = cli.cpu_count(), root / "audio", np.random.default_rng(3)
    count = 64 * cores
    audio.mkdir()
    for number in range(count):
        soundfile.write(audio / f"{number:04d}.wav", rng.normal(0, 0.1, 48000).astype(np.float32), 16000)
    regressors = [root / f"regressor@_{attribute}.pt.tar" for attribute in cli.ATTRIBUTES]
    for attribute, file in zip(cli.ATTRIBUTES, regressors):
        model.save_regressor(file, model.DenseNet(WIDTH).state_dict(), {"emo_attr": attribute})
    argv = [audio, "--norm-dir", root / "NormTerm", "--out", root / "predictions.csv", "--device", "cpu"]
    argv += ["--workers", cores, "--model", *regressors]
    prediction = predict.get_args_parser().parse_args(list(map(str, argv)))
    work = {
        "one": lambda turn: extract_features.extract_folder(audio, root / f"one_{turn}", workers=1),
        "all": lambda turn: extract_features.extract_folder(audio, root / f"all_{turn}", workers=cores),
        "predict": lambda turn: predict.main(prediction),
    }
    turns = timed_turns(work, 4)[1:]  # the first turn loads openSMILE
    turn = median_run(turns, turns["one"] / turns["all"])
    name = f"openSMILE, {count} recordings of 3 s, {cores} at a time"
    yield row_of_files(name, turn["all"], count, turn["one"] / cores, "recordings")
    turn = median_run(turns, turns["all"] / turns["predict"])
    yield row_of_files("prediction of the same recordings", turn["predict"], count, turn["all"], "recordings")


def bench_start_up(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """--help of each stage."""
    helps = {f"{script}.py": lambda turn, script=script: run(f"{script}.py", "--help") for script in SCRIPTS}
    for script, seconds in timed_turns(helps, 5).median().items():
        yield [f"{script} --help", f"{seconds:.2f}"]


BENCHES = {
    bench_reading: {"norms", "packing"},
    bench_ssl: {"ssl"},
    bench_deepmi: {"deepmi"},
    bench_curriculum: {"curriculum"},
    bench_opensmile: {"opensmile"},
    bench_start_up: {"start-up"},
}


def measured_rows(args: argparse.Namespace, root: Path) -> Iterator[list[str]]:
    """All rows that the command line asks for."""
    for size in args.growth or ():
        folder, sizes = root / f"growth_{size}", SIZES["small"] | {"unlabeled": size}
        make_corpus(folder, sizes)
        yield from bench_ssl(args, folder, sizes)
        shutil.rmtree(folder / "feature_cache")  # 25 KB per utterance
    if args.growth:
        return
    if set(args.stages) != {"start-up"}:
        make_corpus(root, SIZES[args.sizes])
    for bench, stages in BENCHES.items():
        if stages & set(args.stages):
            print(f"measuring {' and '.join(sorted(stages))} ...", file=sys.stderr)
            yield from bench(args, root, SIZES[args.sizes])


def main(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    section = f"bench_stages {'growth' if args.growth else f'{args.sizes} {device.type} {precision}'}"
    fill_section(args.results, section)
    lines = [f"| {' | '.join(HEADER)} |", "| --- " + "| ---: " * (len(HEADER) - 1) + "|"]
    print("\n".join(lines), flush=True)
    with contextlib.ExitStack() as stack:
        root = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        for row in measured_rows(args, root.resolve()):
            lines.append(f"| {' | '.join(row + [''] * (len(HEADER) - len(row)))} |")
            print(lines[-1], flush=True)
    sizes = SIZES["small"] if args.growth else SIZES[args.sizes]
    counts = ", ".join(f"{sizes[part]:,} {part}" for part in sizes if not (args.growth and part == "unlabeled"))
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    lines += ["", f"{counts}, {WIDTH:,} features, K {CLUSTERS}, batch {BATCH}, {precision}, on {gpu}{machine()}."]
    print("\n".join(lines[-2:]))
    fill_section(args.results, section, "\n".join(lines))


if __name__ == "__main__":
    cli.run(main, ARGS)
