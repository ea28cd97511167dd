"""What the command lines of stages and tools share: flags, defaults, start and end of a script."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from joblib import cpu_count

from deepmi import curriculum
from deepmi.exit_status import status_of
from deepmi.process import STOP_SIGNALS, UserError, num_ranks, one_line, rank, stop
from deepmi.seeds import SEED, UNLABELED_SEED

ATTRIBUTES = ("Act", "Dom", "Val")
POOLINGS = ("mean", "mean+std")  # of the frames of a speech encoder


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default that is not None, and the description as it was written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return action.help if action.default is None else super()._get_help_string(action)


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose help shows the script's docstring and every default."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def _whole_number(lowest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (text.isdecimal() and len(text) <= 18 and int(text) >= lowest):
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {lowest}, found {text[:40]}")
        return int(text)

    return convert


non_negative_int = _whole_number(0)
positive_int = _whole_number(1)
batch_int = _whole_number(2)  # the CCC of one sample has no gradient


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text}")
    return value


def encoder_layer(text: str) -> str:
    """The number of a layer as text, or `mean`."""
    if text == "weighted":
        raise argparse.ArgumentTypeError(
            "the weights of such a sum are learned with a task, but features are made once, before any training; mean "
            "gives all layers the same weight"
        )
    return text if text == "mean" else str(non_negative_int(text))


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, found {text}")
    return value


def positive_share(text: str) -> float:
    """A number above 0 and up to 1."""
    value = fraction(text)
    if value == 0:
        raise argparse.ArgumentTypeError("expected a number above 0 and up to 1, found 0")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Flags. `several` makes a flag take several values; its default is then a list.


def _add(parser: argparse._ActionsContainer, *flags: str, several: bool = False, **options) -> None:
    default = options.pop("default", None)
    if several:
        options["nargs"], default = "+", None if default is None else [default]
    parser.add_argument(*flags, default=default, **options)


def _add_path(
    parser: argparse._ActionsContainer, flag: str, metavar: str, help: str, default: str | None = None, several=False
) -> None:
    path = Path(default) if default else None
    _add(parser, flag, type=Path, metavar=metavar, default=path, help=help, several=several)


def add_corpus_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--corpus, --features, --labels, --norm-dir, --workers, --skip-missing; `several` corpora and --norm-dir."""
    group, corpus = parser.add_argument_group("corpus"), os.environ.get("DEEPMI_CORPUS")
    help = ("one or several corpora" if several else "corpus") + " in MSP-Podcast's layout; by default $DEEPMI_CORPUS"
    _add_path(group, "--corpus", "DIR", help, corpus, several)
    _add_path(group, "--features", "DIR", "folder of the .mat feature files, if not the feat_mat folder of the corpus")
    _add_path(group, "--labels", "FILE", "consensus label file (.csv or .json), if not the one in the corpus")
    which = "; of the training corpus, or the test corpus's own; one for all corpora or one for each" if several else ""
    add_norm_dir_argument(group, f"folder of the normalisation statistics{which}", several)
    _add_workers(group, "processes that read feature files; more than the cores helps only on a network drive")
    help = "leave out utterances without a feature file, with a warning, instead of stopping"
    group.add_argument("--skip-missing", action="store_true", help=help)


def add_norm_dir_argument(
    parser: argparse._ActionsContainer, help: str, several: bool = False, default: str | None = "NormTerm"
) -> None:
    """--norm-dir."""
    _add_path(parser, "--norm-dir", "DIR", help, default, several)


def _add_workers(parser: argparse._ActionsContainer, help: str) -> None:
    parser.add_argument("--workers", type=positive_int, default=cpu_count(), metavar="N", help=help)


def add_attribute_argument(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """-emo/--emo_attr."""
    help = "emotion attribute: arousal, dominance or valence" + "; several run one after the other" * several
    _add(parser, "-emo", "--emo_attr", choices=ATTRIBUTES, default="Val", help=help, several=several)


def add_training_arguments(
    parser: argparse.ArgumentParser, epochs: int, trained_before: str = "", several: bool = False
) -> None:
    """-ep, -batch, -emo (`several`).

    Args:
        parser: the parser to extend.
        epochs: default of -ep.
        trained_before: what was trained with them, for a script that only reads its result.
        several: whether the script runs for several attributes.
    """
    of = f" that {trained_before} was trained with" if trained_before else ""
    parser.add_argument("-ep", "--epoch", type=positive_int, default=epochs, metavar="N", help=f"number of epochs{of}")
    help = f"utterances per training step{of}"
    parser.add_argument("-batch", "--batch_size", type=batch_int, default=512, metavar="N", help=help)
    add_attribute_argument(parser, several)


def add_clusters_argument(parser: argparse.ArgumentParser, help: str = "", several: bool = False) -> None:
    """-nc/--num_clusters."""
    help = help or "number of acoustic clusters; fewer for a small corpus (10 for a few hundred utterances)"
    _add(parser, "-nc", "--num_clusters", type=positive_int, default=50, metavar="K", help=help, several=several)


def add_unlabeled_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--unlabeled, --unlabeled-size (`several`), --unlabeled-seed."""
    group = parser.add_argument_group("unlabeled set")
    help = "unlabeled set: laid out like a corpus, or a folder of .mat files; by default $DEEPMI_UNLABELED"
    _add_path(group, "--unlabeled", "DIR", help, os.environ.get("DEEPMI_UNLABELED"))
    help = "utterances drawn from it at random (all of them if it has fewer); 0 trains on the labeled set only"
    _add(group, "--unlabeled-size", type=non_negative_int, default=90000, metavar="N", help=help, several=several)
    help = "which utterances are drawn; independent of --seed, so that runs of all seeds share one packed file"
    group.add_argument("--unlabeled-seed", type=non_negative_int, default=UNLABELED_SEED, metavar="N", help=help)


def add_metric_argument(parser: argparse.ArgumentParser) -> None:
    """--metric."""
    _add_path(parser, "--metric", "FILE", "DeepMI file to use instead of the one that -nc and --metric-dir name")


def add_label_quality_argument(parser: argparse.ArgumentParser) -> None:
    """--label-quality."""
    _add_path(parser, "--label-quality", "FILE", "file of tools.label_quality; adds its scores to the table")


def add_schedule_arguments(parser: argparse.ArgumentParser, several: bool = False, rates: bool = True) -> None:
    """--pacing, --rate-decay (`several`; only if `rates`), --bins, --epochs-per-bin."""
    group = parser.add_argument_group("schedule")
    help = (
        "how the training set grows from its first bin to all of it: the paper's steps, or a family of Wu, Dyer & "
        "Neyshabur (2021)"
    )
    group.add_argument("--pacing", choices=curriculum.PACINGS, default=curriculum.PACINGS[0], help=help)
    help = (
        "when the learning rate is halved: in the last epoch of every bin (paper), or only once the whole set is in "
        "use (late), for training sets of less than about 10,000 utterances"
    )
    if rates:
        _add(group, "--rate-decay", choices=curriculum.RATE_DECAYS, default="paper", help=help, several=several)
    for flag, default, help in (
        ("--bins", curriculum.NUM_BINS, "bins of the training set"),
        ("--epochs-per-bin", curriculum.EPOCHS_PER_BIN, "epochs before the next bin is added"),
    ):
        group.add_argument(flag, type=positive_int, default=default, metavar="N", help=help)


def add_keep_argument(parser: argparse._ActionsContainer, several: bool = False) -> None:
    """--keep."""
    help = "train only on this share of the utterances, those of highest DeepMI in each emotion level"
    if several:
        help += "; selftaught, agreement and prediction keep those of their own highest score"
    _add(parser, "--keep", type=positive_share, default=1.0, metavar="SHARE", help=help, several=several)


def add_cluster_source_arguments(parser: argparse._ActionsContainer, several: bool = False) -> None:
    """--clusters (by default None where it takes `several`) and --restarts."""
    help = (
        "where the clusters come from: the cluster head (the paper's, the default), or k-means on the 256-d features "
        "of Train, which uses all clusters even on a small corpus"
    )
    default = None if several else "head"
    _add(parser, "--clusters", choices=("head", "kmeans"), default=default, help=help, several=several)
    help = "with --clusters kmeans: number of clusterings over which DeepMI is averaged; 20 give fewer ties"
    parser.add_argument("--restarts", type=positive_int, default=1, metavar="R", help=help)


def refuse_idle_restarts(args: argparse.Namespace) -> None:
    """Raise `UserError` if --restarts is given without --clusters kmeans."""
    if args.restarts > 1 and "kmeans" not in (args.clusters or ()):
        raise UserError("--restarts: has no effect on the cluster head; add --clusters kmeans.")


def schedule(args: argparse.Namespace) -> curriculum.Schedule:
    """The schedule that the flags name."""
    return curriculum.Schedule(args.pacing, args.rate_decay, args.bins, args.epochs_per_bin)


def add_model_dir_argument(parser: argparse.ArgumentParser) -> None:
    """--model-dir."""
    _add_path(parser, "--model-dir", "DIR", "folder of the trained models", "Models")


def add_metric_dir_argument(parser: argparse.ArgumentParser) -> None:
    """--metric-dir."""
    help = "folder of the DeepMI files (the published ones: curriculum_metric_v1.8)"
    _add_path(parser, "--metric-dir", "DIR", help, "curriculum_metric")


def add_label_scale_argument(parser: argparse.ArgumentParser, which: str = "") -> None:
    """--label-scale of the corpora that `which` names."""
    help = (
        f"lowest and highest possible label{which}, if not 1 7; labels are rescaled linearly to 1-7. One pair for all "
        "corpora or one for each. A corpus from tools.prepare_corpus needs none, because its labels are on 1-7"
    )
    parser.add_argument("--label-scale", type=float, nargs="+", metavar="LO HI", help=help)


def add_results_dir_argument(parser: argparse.ArgumentParser, help: str = "folder of the results") -> None:
    """--results-dir."""
    _add_path(parser, "--results-dir", "DIR", help, "results")


def add_trial_arguments(parser: argparse._ActionsContainer) -> None:
    """--jobs and --results-dir of tools that train many times."""
    help = "trainings at a time, each on one CPU thread; by default as many as there are cores, and one on a GPU"
    parser.add_argument("--jobs", type=positive_int, metavar="N", help=help)
    help = "folder of tables and pictures; its folder trials keeps finished trainings, which are not run again"
    add_results_dir_argument(parser, help)


def add_feature_set_argument(parser: argparse.ArgumentParser, help: str, default: str | None = "IS13") -> None:
    """--set, --revision, --layer, --pool."""
    parser.add_argument("--set", dest="feature_set", default=default, metavar="NAME|FOLDER", help=help)
    help = "branch, tag or commit of an encoder of the hub; by default its main branch, or the copy in the local cache"
    parser.add_argument("--revision", metavar="REVISION", help=help)
    help = (
        "layer of an encoder: its number (0 is the input of the first layer), or mean for all of them with the same "
        "weight; by default the last one"
    )
    parser.add_argument("--layer", type=encoder_layer, metavar="N|mean", help=help)
    help = "what becomes of the frames of an encoder: their mean (the default), or mean and standard deviation"
    parser.add_argument("--pool", choices=POOLINGS, help=help)


def add_device_argument(parser: argparse._ActionsContainer, computes: str = "to compute") -> None:
    """--device."""
    help = f"where {computes}; auto uses a GPU if there is one"
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:N]|mps", help=help)


def add_compute_arguments(parser: argparse.ArgumentParser, seed_help: str, compiles: bool = False) -> None:
    """--device, --precision, --compile (only if `compiles`), --seed, --cache-dir."""
    group = parser.add_argument_group("computing")
    add_device_argument(group)
    help = "bf16 computes matrix products in bfloat16: faster on processors that support it, slightly different results"
    group.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=help)
    if compiles:
        help = "compile the network with torch.compile; needs a CUDA GPU and a single process"
        group.add_argument("--compile", action="store_true", help=help)
    add_seed_arguments(group, seed_help)


def add_seed_arguments(parser: argparse._ActionsContainer, seed_help: str) -> None:
    """--seed, --cache-dir."""
    parser.add_argument("--seed", type=non_negative_int, default=SEED, metavar="N", help=seed_help)
    help = "folder of the packed features (4 bytes per feature and utterance); may be deleted at any time"
    _add_path(parser, "--cache-dir", "DIR", help, "feature_cache")


def add_extraction_arguments(parser: argparse.ArgumentParser, computes: str) -> None:
    """--workers and --device of a tool that makes features from recordings; `computes` names the device's work."""
    _add_workers(parser, "recordings processed at a time")
    add_device_argument(parser, computes)


def add_resume_argument(parser: argparse.ArgumentParser) -> None:
    """--resume / --no-resume."""
    help = "continue a killed run from its last saved state; --no-resume discards that state and starts again"
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=help)


def chosen(args: argparse.Namespace, *more: str) -> dict:
    """The arguments that decide the result of a training run."""
    return {name: getattr(args, name) for name in ("epoch", "batch_size", "emo_attr", "seed", "precision", *more)}


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Lines of an aligned table; the first row is the header."""
    rows = [[one_line(cell).replace("|", "\\|") for cell in line] for line in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# Start and end of a script


def for_each_attribute(work: Callable[[argparse.Namespace], list[dict]], args: argparse.Namespace) -> None:
    """Do the work of a stage for each attribute of -emo, and print one table of the results if there are several.

    Args:
        work: takes the arguments with one attribute in `emo_attr`; returns rows of the table, column -> text.
        args: the command line.
    Raises:
        UserError: several attributes, and a file that belongs to one of them.
    """
    attributes = [args.emo_attr] if isinstance(args.emo_attr, str) else list(dict.fromkeys(args.emo_attr))
    if len(attributes) == 1:
        work(argparse.Namespace(**vars(args) | {"emo_attr": attributes[0]}))
        return
    for flag in ("metric", "model", "table"):
        if getattr(args, flag, None):
            raise UserError(f"--{flag}: names the file of one attribute, but -emo names {len(attributes)}.")
    rows = []
    for attribute in attributes:
        print(f"\n{attribute}:")
        found = work(argparse.Namespace(**vars(args) | {"emo_attr": attribute}))
        rows += [{"attribute": attribute, **row} for row in found]
    if rows:  # under torchrun only rank 0 has some
        print("\n".join(["", *markdown_table([list(rows[0]), *(list(row.values()) for row in rows)])]))


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line of a script before its heavy imports, so that --help answers at once.

    Until `run`, signals are only noted.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no warnings repeated by each rank; torch reads it once
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's encoding lacks must not end the program
            stream.reconfigure(errors="backslashreplace")
    args = parser.parse_args(argv)
    if num_ranks() > 1:
        for number in STOP_SIGNALS:  # a rank that waits for another one in C++ would run no handler of Python
            signal.signal(number, signal.SIG_DFL)
    else:
        stop.listen()
        stop.importing = True
    return args


def run(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> None:
    """Run a script and leave with its exit status: 0, 2 for bad input (one message), 130 or 143 if stopped.

    Args:
        main: the script. Under torchrun it must be decorated with `ranks.on_every_rank`.
        args: its parsed command line.
    """
    if rank() > 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # rank 0 prints for all
    stop.importing = False
    status = status_of(main, args, Path(sys.argv[0]).name, sys.stderr if rank() == 0 else sys.__stderr__)
    if num_ranks() > 1:  # a thread of gloo that frees its last tensor while Python ends would abort the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
