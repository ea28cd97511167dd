"""What the command lines of the stages and tools share: flags, defaults, and how an error reaches the user."""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from deepmi import ranks, run_log
from deepmi.process import UserError, num_ranks, one_line, rank
from deepmi.seeds import UNLABELED_SEED

ATTRIBUTES = ("Act", "Dom", "Val")
CONTROL_GROUP = Path("/sys/fs/cgroup")  # holds a container's limit: microseconds of CPU time per period
STOP_SOON = 0.1  # seconds after which a signal that came within an import is looked at again
STOP_PATIENCE = 5  # seconds that a training has from a signal to the end of its epoch, which is saved then
STOP_AGAIN = 10  # seconds after which a signal that some library swallowed is raised again; cleaning up takes less
RANK_PATIENCE = 10  # seconds that another rank waits for rank 0 before it tells of an error itself
FULL_DISK = ("ENOSPC", "EDQUOT", "EFBIG", "EIO")  # a write to standard output fails so without a file name
PATH_ERRORS = ("ENOENT", "ENOTDIR", "EISDIR")
LOST_CONNECTION = r"connection.*(closed|reset)|broken pipe"  # what gloo says where another rank has ended


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that there are, and the description as it was written."""

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


def cpu_count() -> int:
    """Processors that this process may use, by its affinity and by the limit of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2, version 1
        with contextlib.suppress(OSError, ValueError):  # not this version, or no limit ("max")
            quota, period = (int(text) for file in files for text in (CONTROL_GROUP / file).read_text().split())
            count = min(count, math.ceil(quota / period)) if quota > 0 else count
    return count


def _optional_path(variable: str) -> Path | None:
    return Path(os.environ[variable]) if os.environ.get(variable) else None


def add_corpus_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--corpus, --features, --labels, --norm-dir, --workers, --skip-missing.

    Args:
        parser: where they go.
        several: whether --corpus and --norm-dir take several folders, and are lists.
    """
    group = parser.add_argument_group("corpus")
    corpus, terms, many = _optional_path("DEEPMI_CORPUS"), Path("NormTerm"), {"nargs": "+"} if several else {}
    group.add_argument(
        "--corpus",
        type=Path,
        default=[corpus] if several and corpus else corpus,
        metavar="DIR",
        help=("one or several corpora" if several else "corpus")
        + " in MSP-Podcast's layout; by default the environment variable DEEPMI_CORPUS",
        **many,
    )
    group.add_argument(
        "--features",
        type=Path,
        metavar="DIR",
        help="folder of the .mat feature files, where it is not the corpus' own feat_mat",
    )
    group.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="consensus label file (.csv or .json), where it is not the corpus' own",
    )
    group.add_argument(
        "--norm-dir",
        type=Path,
        default=[terms] if several else terms,
        metavar="DIR",
        help="folder of the z-norm terms"
        + (
            ": those of the training corpus, or the tested one's own; one for all corpora or one each"
            if several
            else ""
        ),
        **many,
    )
    group.add_argument(
        "--workers",
        type=positive_int,
        default=cpu_count(),
        metavar="N",
        help="processes that read feature files; more than the cores helps only on a network drive",
    )
    group.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out utterances without a feature file, with a warning, instead of stopping",
    )


def add_attribute_argument(parser: argparse.ArgumentParser) -> None:
    """-emo/--emo_attr."""
    parser.add_argument(
        "-emo",
        "--emo_attr",
        choices=ATTRIBUTES,
        default="Val",
        help="emotion attribute: arousal, dominance or valence",
    )


def add_training_arguments(parser: argparse.ArgumentParser, epochs: int, trained_before: str = "") -> None:
    """-ep, -batch, -emo.

    Args:
        epochs: default of -ep.
        trained_before: what was trained with them, where this stage only uses it.
    """
    of = f" that {trained_before} was trained with" if trained_before else ""
    parser.add_argument("-ep", "--epoch", type=positive_int, default=epochs, metavar="N", help=f"number of epochs{of}")
    parser.add_argument(
        "-batch",
        "--batch_size",
        type=batch_int,
        default=512,
        metavar="N",
        help=f"utterances a training step{of}",
    )
    add_attribute_argument(parser)


def add_clusters_argument(parser: argparse.ArgumentParser, what: str = "", several: bool = False) -> None:
    """-nc/--num_clusters, with what it chooses where that is not the number itself; a list where it takes several."""
    parser.add_argument(
        "-nc",
        "--num_clusters",
        type=positive_int,
        default=[50] if several else 50,
        metavar="K",
        help=what or "number of acoustic clusters; fewer for a small corpus (10 for some hundred utterances)",
        **({"nargs": "+"} if several else {}),
    )


def add_unlabeled_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--unlabeled, --unlabeled-size; the size is a list where it takes several."""
    group = parser.add_argument_group("unlabeled set")
    group.add_argument(
        "--unlabeled",
        type=Path,
        default=_optional_path("DEEPMI_UNLABELED"),
        metavar="DIR",
        help="unlabeled set: laid out like a corpus, or a folder of .mat files; by default the environment variable "
        "DEEPMI_UNLABELED",
    )
    group.add_argument(
        "--unlabeled-size",
        type=non_negative_int,
        default=[90000] if several else 90000,
        metavar="N",
        help="utterances drawn from it at random (all, where there are fewer); 0 trains on the labeled set only",
        **({"nargs": "+"} if several else {}),
    )
    group.add_argument(
        "--unlabeled-seed",
        type=non_negative_int,
        default=UNLABELED_SEED,
        metavar="N",
        help="which utterances are drawn; independent of --seed, so that runs of all seeds share one packed file",
    )


def chosen(args: argparse.Namespace, *more: str) -> dict:
    """The arguments that change what a training run ends with."""
    return {name: getattr(args, name) for name in ("epoch", "batch_size", "emo_attr", "seed", "precision", *more)}


def add_pacing_argument(parser: argparse.ArgumentParser) -> None:
    """--pacing."""
    from deepmi import curriculum

    parser.add_argument(
        "--pacing",
        choices=curriculum.PACINGS,
        default=curriculum.PACINGS[0],
        help="how the training set grows from its first tenth to all of it at epoch 45: the paper's ten steps, or a "
        "family of Wu, Dyer & Neyshabur (2021)",
    )


def add_model_dir_argument(parser: argparse.ArgumentParser) -> None:
    """--model-dir."""
    parser.add_argument(
        "--model-dir", type=Path, default=Path("Models"), metavar="DIR", help="folder of the trained models"
    )


def add_metric_dir_argument(parser: argparse.ArgumentParser) -> None:
    """--metric-dir."""
    parser.add_argument(
        "--metric-dir",
        type=Path,
        default=Path("curriculum_metric"),
        metavar="DIR",
        help="folder of the DeepMI files (the published ones: curriculum_metric_v1.8)",
    )


def _add_device(parser: argparse._ActionsContainer, computes: str) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda[:N]|mps",
        help=f"where {computes}; auto takes a GPU if there is one",
    )


def add_compute_arguments(parser: argparse.ArgumentParser, seed_help: str) -> None:
    """--device, --precision, --seed, --cache-dir."""
    group = parser.add_argument_group("computing")
    _add_device(group, "to compute")
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16 runs the matrix products in bfloat16: faster where the processor has it, slightly other figures",
    )
    group.add_argument("--seed", type=non_negative_int, default=31, metavar="N", help=seed_help)
    group.add_argument(
        "--cache-dir",
        type=Path,
        default=Path("feature_cache"),
        metavar="DIR",
        help="folder of the packed features (4 bytes a feature and utterance); may be deleted at any time",
    )


def add_extraction_arguments(parser: argparse.ArgumentParser, computes: str) -> None:
    """--workers, --device of a tool that makes features from recordings; `computes` says what is on the device."""
    parser.add_argument("--workers", type=positive_int, default=cpu_count(), metavar="N", help="clips at a time")
    _add_device(parser, computes)


def add_resume_argument(parser: argparse.ArgumentParser) -> None:
    """--resume / --no-resume."""
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where a killed run stopped; --no-resume starts anew and gives up what was unfinished",
    )


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Lines of a table, its columns aligned; the first row is the header. No cell ends its line or its column."""
    rows = [[one_line(cell).replace("|", "\\|") for cell in line] for line in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]


class _Terminated(BaseException):
    """SIGTERM, as a cluster sends it to a job whose time is up."""


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or below it."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _stop_by(what: type[BaseException]) -> Callable[[int, FrameType | None], None]:
    """A signal's handler that raises `what`, and again until `run` has heard it.

    Once is not enough: what is raised within a library's callback or its `except:` can be lost there. And while modules
    are imported it waits, since an exception within torch's import aborts the process, and so it does for the end of a
    training's epoch, unless that is far off or a second signal comes.
    """

    def handler(signum: int, frame: FrameType | None) -> None:
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, handler)
            training = run_log.TrainingRun.current
            if _is_importing(frame):
                signal.setitimer(signal.ITIMER_REAL, STOP_SOON)
                return
            if training and training.stops_within(STOP_PATIENCE):
                signal.setitimer(signal.ITIMER_REAL, STOP_PATIENCE)
                return
            signal.setitimer(signal.ITIMER_REAL, STOP_AGAIN)
        raise what

    return handler


def _what_remains(args: argparse.Namespace) -> str:
    if not hasattr(args, "resume"):
        return "No file is half written; the same command does what is left."
    again = "The same command" if args.resume else "The same command without --no-resume"
    training = run_log.TrainingRun.current
    if training is None:
        return f"{again} goes on from the last saved state, if there is one."
    if not training.saved_epochs:
        return "Nothing was saved yet; the same command begins anew."
    return f"{again} goes on after {training.saved_epochs} epochs."


@contextlib.contextmanager
def _ending_where_deaf(prog: str) -> Iterator[None]:
    """Within the block, this rank ends some seconds after a signal that its main thread does not hear.

    A collective that waits for another rank, which may never come, runs no signal handler of Python.
    """
    heard = threading.Event()
    listening, waking = os.pipe()
    os.set_blocking(waking, False)
    before = signal.set_wakeup_fd(waking)

    def watch() -> None:
        number = None
        while number not in (signal.SIGINT, signal.SIGTERM):
            number = next(iter(os.read(listening, 1)), signal.SIGTERM)  # nothing to read: the block has ended
        if heard.wait(STOP_PATIENCE):
            return
        print(f"\n{prog}: stopped while it waited for another process.", file=sys.stderr, flush=True)
        os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        heard.set()
        signal.set_wakeup_fd(before)
        os.close(waking)


def _can_be_mended(error: OSError, args: argparse.Namespace) -> bool:
    """Whether an error is the machine's, or that of a missing file below a path that the user named.

    Any other is the program's own: one without a file, or a file that is missing where the program looks by itself.
    """
    kind = errno.errorcode.get(error.errno)
    files = [Path(os.fsdecode(name)).absolute() for name in (error.filename, error.filename2) if name]
    if kind not in PATH_ERRORS:
        return kind in FULL_DISK or (kind is not None and bool(files))
    given = [value for of in vars(args).values() for value in (of if isinstance(of, (list, tuple)) else [of])]
    named = [value.absolute() for value in given if isinstance(value, Path)]
    return any(file.is_relative_to(folder) for file in files for folder in named)


def _message_of(error: OSError) -> str:
    """What the user reads of an error of the operating system."""
    name = error.filename2 or error.filename  # of two names the second is where something was to go
    if name is None and error.errno in (errno.ENOSPC, errno.EFBIG):
        name = "standard output"  # writing a file adds its name
        _drop_output()
    return one_line(f"{name or 'a file'}: {error.strerror or error}.")


def _leave_rank(status: int) -> None:
    """End a rank at once: a thread of gloo that frees its last tensor while Python ends would abort the process."""
    run_log.TrainingRun.release_files()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _drop_output() -> None:
    """Write standard output nowhere from now on: what it still holds must not make Python complain at its end."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_on_ranks(main: Callable, args: argparse.Namespace, prog: str, with_ranks: bool) -> int | None:
    """What `main` returns, run as one of several processes."""
    if not with_ranks:
        raise UserError("runs as one process; start it without torchrun.")
    with _ending_where_deaf(prog):
        ranks.join_ranks()
        status = main(args)
        ranks.leave_ranks()
    return status


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: list | None = None,
    with_ranks: bool = False,
) -> None:
    """Parse, run, and leave with an exit status: 0, 2 for bad input (one message, no traceback), 130/143 if stopped.

    Args:
        main: what to run.
        parser: its command line.
        argv: arguments, where they are not the process's own.
        with_ranks: whether it can run as several processes under torchrun.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's encoding lacks must not end the program
            stream.reconfigure(errors="backslashreplace")
    if rank() > 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # rank 0 speaks for all
    args = parser.parse_args(argv)
    run_log.TrainingRun.current = None  # there is one where this process has trained before
    signal.signal(signal.SIGTERM, _stop_by(_Terminated))
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, _stop_by(KeyboardInterrupt))
    errors = sys.stderr if rank() == 0 else sys.__stderr__
    try:
        status = _run_on_ranks(main, args, parser.prog, with_ranks) if num_ranks() > 1 else main(args)
        if sys.stdout:  # there is none where it was closed
            sys.stdout.flush()  # a full disk behind it shows here, not when Python ends
        status = status or 0
    except UserError as error:
        if rank() == 0:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
        else:
            # torchrun ends all at the first that fails: rank 0 may have the same to say, and says it better.
            time.sleep(RANK_PATIENCE)
            print(f"{parser.prog}: rank {rank()}: error: {error}", file=errors)
        status = 2
    except BrokenPipeError:
        _drop_output()  # the reader of our output (head, less) left; nothing is wrong
        status = 141
    except OSError as error:
        sys.stderr = errors
        if not _can_be_mended(error, args):
            raise
        print(f"{parser.prog}: error: {_message_of(error)}", file=errors)
        status = 2
    except (KeyboardInterrupt, _Terminated) as stop:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # it is ending
        print(f"\n{parser.prog}: stopped. {_what_remains(args)}", file=sys.stderr)
        status = 130 if isinstance(stop, KeyboardInterrupt) else 143
    except Exception as error:
        sys.stderr = errors
        if num_ranks() == 1 or not re.search(LOST_CONNECTION, str(error), re.IGNORECASE):
            raise
        # Another rank has failed and says why; what reaches this one is only that the connection broke.
        print(f"{parser.prog}: rank {rank()}: another process has ended.", file=errors)
        status = 1
    if num_ranks() > 1:
        _leave_rank(status)
    sys.exit(status)
