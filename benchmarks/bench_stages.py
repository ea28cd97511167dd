"""How close each stage comes to what the machine can do: one table.

    python -m benchmarks.bench_stages --sizes small --results benchmarks/RESULTS.md
    python -m benchmarks.bench_stages --sizes v1.8 --device cuda --precision bf16 --epochs 10

makes a synthetic corpus in a temporary folder and runs each stage on it, as a user does, in a process of its own. A
training stage's limit is the rate of matrix products of 2,048 x 2,048 (8,192 x 8,192 on a GPU), measured between its
epochs in the same precision; operations are counted from the sizes of the layers. The limit of the reading stages is
scipy's loadmat on all cores, that of openSMILE the speed of one recording at a time, times the cores.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.real_speech import ROOT, machine, replace_section, split_section
from deepmi import batches, cli, matfile, run_log, runtime, storage
from deepmi.process import UserError

WIDTH = 6373
CLUSTERS = 50
BATCH = 512
SIZES = {
    "tiny": {"Train": 96, "Validation": 32, "unlabeled": 128},  # to see that this benchmark works
    "small": {"Train": 2048, "Validation": 512, "unlabeled": 4096},
    "v1.8": {"Train": 44879, "Validation": 7800, "unlabeled": 90000},
}
STAGES = ("norms", "packing", "ssl", "deepmi", "curriculum", "opensmile", "start-up")
SCRIPTS = ("norm_para", "training_DeepEmoCluster", "extract_DeepMI", "training_Curriculum", "testing_Curriculum")
HEADER = ("stage", "s", "utterances/s", "GFLOP/s", "limit", "ratio", "memory MB")


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--sizes", choices=SIZES, default="small", help="size of the corpus")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to measure")
    parser.add_argument("--epochs", type=cli.positive_int, default=12, metavar="N", help="SSL epochs to run")
    parser.add_argument(
        "--growth",
        type=cli.positive_int,
        nargs="+",
        metavar="N",
        help="measure instead how time and memory of an SSL epoch grow over these unlabeled sizes",
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:N]|mps", help="where to compute")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of matrix products")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for what is made, in place of a temporary one")
    parser.add_argument("--results", type=Path, metavar="FILE", help="Markdown file whose section is replaced")
    return parser


# ---------------------------------------------------------------------------------------------------------------------
# A synthetic corpus


def make_corpus(root: Path, sizes: dict[str, int]) -> None:
    """Labels, norm terms and packed features of random numbers; the .mat files that they would come from are empty."""
    import numpy as np

    import utils
    from deepmi import features

    rng = np.random.default_rng(0)
    names = {part: [f"{part}_{number:08d}.wav" for number in range(count)] for part, count in sizes.items()}
    rows = [
        f"{name},N,{label:.3f},{label:.3f},{label:.3f},Unknown,Male,{part}"
        for part in sizes
        if part != "unlabeled"
        for name, label in zip(names[part], np.clip(rng.normal(4, 1.2, sizes[part]), 1, 7))
    ]
    (root / "corpus/Labels").mkdir(parents=True)
    header = ",".join(utils.CONSENSUS_COLUMNS)
    (root / "corpus/Labels/labels_consensus.csv").write_text("\n".join([header, *rows, ""]))
    (root / "NormTerm").mkdir()
    norm = np.zeros(WIDTH), np.ones(WIDTH)
    utils.write_norm_stats(root / "NormTerm", norm, {"Val": (4.0, 1.2)})
    for part, count in sizes.items():
        folder = root / ("unlabeled" if part == "unlabeled" else f"corpus/{utils.FEATURE_FOLDER}")
        folder.mkdir(parents=True, exist_ok=True)
        files = [features.feature_name(name) for name in names[part]]
        for file in files:
            (folder / file).touch()
        # The unlabeled set is known by its files, the labeled one by its label file.
        known = files if part == "unlabeled" else names[part]
        cache = features.cache_file(folder, known, *norm, root / "feature_cache")
        cache.parent.mkdir(exist_ok=True)
        packed = np.lib.format.open_memmap(cache, mode="w+", dtype=np.float32, shape=(count, WIDTH))
        for first in range(0, count, 4096):
            block = packed[first : first + 4096]
            np.clip(rng.standard_normal(block.shape, dtype=np.float32), -3, 3, out=block)
        packed.flush()
        features.write_index(cache, storage.digest(known), known)


def make_metric(root: Path, sizes: dict[str, int]) -> None:
    """A DeepMI file of random values."""
    import numpy as np

    import utils
    from deepmi.metric import write_metric

    values = np.random.default_rng(1).normal(size=sizes["Train"]).round(5).tolist()
    target = utils.metric_file(root / "curriculum_metric", CLUSTERS, "Val")
    target.parent.mkdir(exist_ok=True)
    write_metric(target, {f"Train_{number:08d}.wav": value for number, value in enumerate(values)})


# ---------------------------------------------------------------------------------------------------------------------
# Operations, counted from the layers


def operations(model, rows: int, trained: bool) -> float:
    """Floating point operations of the matrix products for some rows: forward, and where trained backward.

    The first layer needs no gradient of its input.
    """
    weights = [parameter.numel() for parameter in model.parameters() if parameter.ndim == 2]
    return 2.0 * rows * (sum(weights) + trained * (2 * sum(weights) - weights[0]))


def ssl_epoch_operations(sizes: dict[str, int]) -> float:
    """Operations of one DeepEmoCluster epoch."""
    from torch import nn

    from model import DenseResNet

    whole = DenseResNet(WIDTH, CLUSTERS)
    clusters_only = nn.ModuleList([whole.dnn_features, whole.classifier, whole.top_layer_class])
    to_points = nn.ModuleList([whole.dnn_features, whole.classifier])
    to_attribute = nn.ModuleList([whole.dnn_features, whole.emo_regressor])
    return (
        operations(to_points, sizes["unlabeled"] + sizes["Train"], False)
        + operations(clusters_only, sizes["unlabeled"], True)
        + operations(whole, sizes["Train"], True)
        + operations(to_attribute, sizes["Validation"], False)
    )


def curriculum_operations(sizes: dict[str, int], epochs: int) -> float:
    """Operations of a whole curriculum training."""
    from deepmi import curriculum
    from model import DenseNet

    model = DenseNet(WIDTH)
    trained = sum(curriculum.training_size("deepmi", epoch, sizes["Train"]) for epoch in range(epochs))
    return operations(model, trained, True) + operations(model, epochs * sizes["Validation"], False)


# ---------------------------------------------------------------------------------------------------------------------
# Inside the process of a stage


def product_rate(device, precision: str, seconds: float) -> list[float]:
    """Rates of matrix products one after another, operations/s."""
    import torch

    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(a)
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or not rates:
        begin = time.perf_counter()
        for _ in range(10 if device.type == "cuda" else 1):
            torch.mm(a, a, out=product)
        _wait(device)
        rates.append((10 if device.type == "cuda" else 1) * 2 * size**3 / (time.perf_counter() - begin))
    return rates


def _wait(device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


class Memory(threading.Thread):
    """The most memory of its own, mapped files aside, that this process has had."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0.0
        self.start()

    def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path("/proc/self/status").read_text().splitlines()
                own = next(line for line in lines if line.startswith("RssAnon"))
                self.peak = max(self.peak, int(own.split()[1]) / 1024)
            time.sleep(0.02)


def run_inside(stage: str, argv: list[str], target: Path) -> None:
    """Run a stage in this process and write what was measured, without its imports."""
    import torch

    module = importlib.import_module(stage)
    args = module.get_args_parser().parse_args(argv)
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    rates = [product_rate(device, precision, 1.0)]  # before the first epoch, and after each
    measured = {"passes": 0.0}
    memory = Memory()
    on_gpu = [0.0]  # peaks of the stage, the products between its epochs left out

    def rates_aside(seconds: float) -> list[float]:
        if device.type != "cuda":
            return product_rate(device, precision, seconds)
        on_gpu.append(torch.cuda.max_memory_allocated(device) / 2**20)
        rates = product_rate(device, precision, seconds)
        torch.cuda.reset_peak_memory_stats(device)
        return rates

    end_epoch, in_batches = run_log.TrainingRun.end_epoch, batches.in_batches

    def measured_end_epoch(self, record: dict, weights: dict) -> None:
        end_epoch(self, record, weights)
        # Between the epochs, and for as long as they take, so that both see the same machine.
        seconds = min(1.0, record.get("seconds", 0) / 2)
        rates.append(rates_aside(seconds))

    def measured_in_batches(*given: object, **more: object):
        begin = time.perf_counter()
        found = in_batches(*given, **more)
        _wait(device)
        measured["passes"] += time.perf_counter() - begin
        return found

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run_log.TrainingRun.end_epoch, module.in_batches = measured_end_epoch, measured_in_batches
    begin = time.perf_counter()
    module.main(args)
    _wait(device)
    measured["seconds"] = time.perf_counter() - begin
    measured["around"] = [statistics.median(before + after) for before, after in itertools.pairwise(rates)]
    rates.append(rates_aside(1.0))
    measured["rate"] = statistics.median(itertools.chain(*rates))
    measured["memory"] = memory.peak
    if device.type == "cuda":
        measured["memory"] = max(on_gpu)
    target.write_text(json.dumps(measured))


def run_stage(args: argparse.Namespace, root: Path, stage: str, *argv: object) -> dict:
    """Run a stage in a process of its own; what was measured there."""
    target = root / "measured.json"
    given = ["--corpus", "corpus", "--device", args.device, "--precision", args.precision]
    command = [sys.executable, "-m", "benchmarks.bench_stages", "--inside", stage, str(target), *given, "-emo", "Val"]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    with (root / "output.txt").open("w") as output:
        done = subprocess.run([*command, *map(str, argv)], cwd=root, env=variables, stdout=output, stderr=output)
    if done.returncode:
        raise UserError(f"{stage} ended with status {done.returncode}: {(root / 'output.txt').read_text()}")
    return json.loads(target.read_text())


def middle_of(runs: list[dict], seconds: str) -> dict:
    """The one of the middle ratio, not of the middle time: the machine's own rate moves from one to the next."""
    return sorted(runs, key=lambda run: run[seconds] * run["rate"])[len(runs) // 2]


def middle_turn(bare: list[float], whole: list[float]) -> tuple[float, float]:
    """The turn of the middle ratio, since the machine's speed moves; without the first, which loads openSMILE."""
    turns = sorted(zip(bare[1:], whole[1:]), key=lambda turn: turn[0] / turn[1])
    return turns[len(turns) // 2]


def epoch_seconds(root: Path, pattern: str) -> list[float]:
    """Seconds of each epoch in a run's log."""
    (log,) = root.glob(f"Models/{pattern}.log.jsonl")
    return [record["seconds"] for record in map(json.loads, log.read_text().splitlines()) if "seconds" in record]


# ---------------------------------------------------------------------------------------------------------------------
# The stages; each gives a row of the table


def against_rate(name: str, seconds: float, utterances: int, flops: float, measured: dict) -> list[str]:
    """A row of a stage whose limit is the rate of matrix products."""
    rate = flops / seconds
    ratio = rate / measured["rate"]
    limit = f"{measured['rate'] / 1e9:.0f} GFLOP/s"
    return [
        name,
        f"{seconds:.3g}",
        f"{utterances / seconds:,.0f}",
        f"{rate / 1e9:.0f}",
        limit,
        f"{ratio:.2f}",
        f"{measured['memory']:.0f}",
    ]


def bench_ssl(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """An epoch of DeepEmoCluster: the middle one after the first, which sets up."""
    argv = ["-ep", args.epochs, "-batch", BATCH, "-nc", CLUSTERS, "--unlabeled", "unlabeled", "--no-resume"]
    measured = run_stage(args, root, "training_DeepEmoCluster", *argv)
    epochs = [
        measured | {"seconds": seconds, "rate": rate}
        for seconds, rate in zip(epoch_seconds(root, "ResNet*"), measured["around"])
    ]
    middle = middle_of(epochs[1:] or epochs, "seconds")
    yield against_rate("SSL epoch", middle["seconds"], sum(sizes.values()), ssl_epoch_operations(sizes), middle)


def bench_deepmi(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """The forward pass over Train, and all else that extraction does once its libraries are loaded."""
    from model import DenseResNet, save_ssl_checkpoint
    from utils import ssl_checkpoint

    model = DenseResNet(WIDTH, CLUSTERS)
    (root / "Models").mkdir(exist_ok=True)
    save_ssl_checkpoint(ssl_checkpoint(root / "Models", 999, BATCH, CLUSTERS, "Val"), model.state_dict(), {})
    argv = ["-ep", 999, "-batch", BATCH, "-nc", CLUSTERS, "--metric-dir", "extracted"]
    runs = [run_stage(args, root, "extract_DeepMI", *argv) for _ in range(5)]
    flops = operations(model, sizes["Train"], False)
    middle = middle_of(runs, "passes")
    yield against_rate("DeepMI, forward pass", middle["passes"], sizes["Train"], flops, middle)
    rest = statistics.median(one["seconds"] - one["passes"] for one in runs)
    yield ["DeepMI, all else", f"{rest:.3f}", f"{sizes['Train'] / rest:,.0f}", "", "", "", ""]


def bench_curriculum(args: argparse.Namespace, root: Path, sizes: dict[str, int]) -> Iterator[list[str]]:
    """A whole curriculum training."""
    epochs = 70
    make_metric(root, sizes)
    argv = ["-ep", epochs, "-batch", BATCH, "-nc", CLUSTERS, "--no-resume"]
    measured = run_stage(args, root, "training_Curriculum", *argv)
    seconds = sum(epoch_seconds(root, "SimpleEmo*"))
    flops = curriculum_operations(sizes, epochs)
    yield against_rate(f"curriculum, {epochs} epochs", seconds, epochs * sizes["Train"], flops, measured)


def make_mat_files(root: Path, count: int) -> list[Path]:
    """Feature files of random numbers."""
    import numpy as np

    from deepmi import features

    folder = root / "mat"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(2)
    paths = [folder / f"Train_{number:08d}.mat" for number in range(count)]
    for path in paths:
        matfile.write_mat(path, features.FEATURE_KEY, rng.normal(size=(1, WIDTH)))
    return paths


def _load_some(paths: list[str]) -> None:
    from scipy.io import loadmat

    for path in paths:
        loadmat(path)


def bench_reading(root: Path, sizes: dict[str, int], stages: list[str]) -> Iterator[list[str]]:
    """Norm terms and packing beside bare loadmat in as many processes, in turns, each three times."""
    import numpy as np
    from joblib import Parallel, delayed

    from deepmi import features

    paths = make_mat_files(root, sizes["Train"])
    names = [path.name for path in paths]
    parts = [[str(path) for path in paths[first : first + 64]] for first in range(0, len(paths), 64)]
    cores = cli.cpu_count()
    seconds: dict[str, list[float]] = {"loadmat": [], "norms": [], "packing": []}

    def timed(name: str, work: Callable[[], object]) -> None:
        begin = time.perf_counter()
        work()
        seconds[name].append(time.perf_counter() - begin)

    for turn in range(3):
        # The pool of processes is there from the first turn on: loadmat pays for no start-up.
        timed("loadmat", lambda: Parallel(n_jobs=cores)(delayed(_load_some)(part) for part in parts))
        timed("norms", lambda: features.feature_moments(paths, cores))
        cache = root / f"packing_{turn}"
        timed(
            "packing",
            lambda cache=cache: features.pack_features(
                root / "mat", names, np.zeros(WIDTH), np.ones(WIDTH), cache, cores
            ),
        )
    bare = min(seconds["loadmat"])
    for stage in ("norms", "packing"):
        if stage in stages:
            best = min(seconds[stage])
            limit = f"{len(paths) / bare:,.0f} files/s"
            yield [stage, f"{best:.3g}", f"{len(paths) / best:,.0f}", "", limit, f"{bare / best:.2f}", ""]


def bench_opensmile(root: Path) -> Iterator[list[str]]:
    """Features from audio: one recording at a time against one a core; then predictions against the features alone."""
    import numpy as np
    import soundfile
    import torch

    from model import DenseNet
    from tools.extract_features import extract_folder
    from tools.feature_sets import Clip
    from tools.predict import Predictor, Regressor, predict

    cores, clips = cli.cpu_count(), 64 * cli.cpu_count()
    (root / "audio").mkdir()
    rng = np.random.default_rng(3)
    for number in range(clips):
        soundfile.write(root / f"audio/clip_{number:04d}.wav", rng.normal(0, 0.1, 48000).astype(np.float32), 16000)
    terms = np.zeros(WIDTH), np.ones(WIDTH)
    regressors = {attribute: Regressor(DenseNet(WIDTH), root, (4.0, 1.0)) for attribute in cli.ATTRIBUTES}
    predictor = Predictor(regressors, terms, "IS13", torch.device("cpu"), "")
    settings = argparse.Namespace(segment=None, workers=cores, device="cpu")
    named = {Clip(path): path.name for path in sorted((root / "audio").iterdir())}
    seconds: dict[int, list[float]] = {1: [], cores: []}
    predicting = []
    for turn in range(4):
        for workers, times in seconds.items():
            begin = time.perf_counter()
            extract_folder(root / "audio", root / f"features_{workers}_{turn}", workers=workers)
            times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        list(predict(predictor, named, settings))
        predicting.append(time.perf_counter() - begin)
    one, all_ = middle_turn(seconds[1], seconds[cores])
    yield [
        f"openSMILE, {clips} clips of 3 s, {cores} at a time",
        f"{all_:.3g}",
        f"{clips / all_:,.1f}",
        "",
        f"{cores * clips / one:,.1f} clips/s",
        f"{one / all_ / cores:.2f}",
        "",
    ]
    bare, whole = middle_turn(seconds[cores], predicting)
    limit = f"{clips / bare:,.1f} clips/s"
    yield [
        "prediction of the same clips",
        f"{whole:.3g}",
        f"{clips / whole:,.1f}",
        "",
        limit,
        f"{bare / whole:.2f}",
        "",
    ]


def bench_start_up() -> Iterator[list[str]]:
    """--help of each stage."""
    for script in SCRIPTS:
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, str(ROOT / f"{script}.py"), "--help"], stdout=subprocess.DEVNULL, check=True
            )
            seconds.append(time.perf_counter() - begin)
        yield [f"{script}.py --help", f"{statistics.median(seconds):.2f}", "", "", "", "", ""]


def bench_growth(args: argparse.Namespace, root: Path) -> Iterator[list[str]]:
    """SSL epochs over growing unlabeled sets."""
    for size in args.growth:
        folder = root / f"growth_{size}"
        sizes = SIZES["small"] | {"unlabeled": size}
        make_corpus(folder, sizes)
        argv = ["-ep", 2, "-batch", BATCH, "-nc", CLUSTERS, "--unlabeled", "unlabeled", "--unlabeled-size", size]
        measured = run_stage(args, folder, "training_DeepEmoCluster", *argv)
        epoch = epoch_seconds(folder, "ResNet*")[-1]
        around = measured | {"rate": measured["around"][-1]}
        yield against_rate(
            f"SSL epoch, {size:,} unlabeled", epoch, sum(sizes.values()), ssl_epoch_operations(sizes), around
        )
        for file in (folder / "feature_cache").iterdir():
            file.unlink()  # 25 KB an utterance


def _tell(stage: str) -> None:
    print(f"measuring {stage} ...", file=sys.stderr)


def rows_of(args: argparse.Namespace, root: Path) -> Iterator[list[str]]:
    """All rows that were asked for."""
    if args.growth:
        yield from bench_growth(args, root)
        return
    sizes = SIZES[args.sizes]
    if {"ssl", "deepmi", "curriculum"} & set(args.stages):
        make_corpus(root, sizes)
    if {"norms", "packing"} & set(args.stages):
        _tell("norms and packing")
        yield from bench_reading(root, sizes, args.stages)
    for stage, bench in (("ssl", bench_ssl), ("deepmi", bench_deepmi), ("curriculum", bench_curriculum)):
        if stage in args.stages:
            _tell(stage)
            yield from bench(args, root, sizes)
    if "opensmile" in args.stages:
        _tell("opensmile")
        yield from bench_opensmile(root)
    if "start-up" in args.stages:
        _tell("start-up")
        yield from bench_start_up()


def main(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    section = f"bench_stages {'growth' if args.growth else f'{args.sizes} {device.type} {precision}'}"
    if args.results:
        split_section(args.results, section)
    lines = [f"| {' | '.join(HEADER)} |", "| --- " + "| ---: " * (len(HEADER) - 1) + "|"]
    print("\n".join(lines), flush=True)
    with contextlib.ExitStack() as stack:
        root = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        for row in rows_of(args, root.resolve()):
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    sizes = SIZES["small"] if args.growth else SIZES[args.sizes]
    counts = ", ".join(
        f"{count:,} {part}" for part, count in sizes.items() if not (args.growth and part == "unlabeled")
    )
    lines += ["", f"{counts}, {WIDTH:,} features, K {CLUSTERS}, batch {BATCH}, {precision}, on {on_machine(device)}."]
    print("\n".join(lines[-2:]))
    if args.results:
        replace_section(args.results, section, "\n".join(lines))


def on_machine(device) -> str:
    """The machine in words, its GPU too."""
    if device.type != "cuda":
        return machine()
    import torch

    return f"{torch.cuda.get_device_name(device)}, {machine()}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        run_inside(sys.argv[2], sys.argv[4:], Path(sys.argv[3]))
    else:
        cli.run(main, cli.parse(get_args_parser()))
