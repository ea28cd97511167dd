"""Damaged files: every reader gives a correct result or one message; never a traceback, a crash or a wrong number.

    python -m benchmarks.fuzz --inputs 100000
    python -m benchmarks.fuzz --inputs 100000 --targets scipy_mat --keep-going

Each reader of files from elsewhere gets copies of valid files with bytes changed, removed, repeated, mixed with a
different file, or replaced by extreme numbers. Each target runs in a separate process, so that crashes are noticed. An
input that does harm is a find: it is kept in --finds, and its target stops unless --keep-going.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import random
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from benchmarks.fuzz_targets import TARGETS, Target, Wrong, expect
from benchmarks.sections import add_results_argument, fill_section, machine, megabytes
from deepmi import cli
from deepmi.process import UserError

SECONDS = 10  # allowed per input
MEGABYTES = 500  # of memory that one input may add
ANSWERS = {"read", "refused"}  # any other answer is a find


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument(
        "--targets", nargs="+", choices=TARGETS, metavar="NAME", help="readers; by default all except scipy_mat"
    )
    parser.add_argument("--inputs", type=cli.positive_int, default=20_000, metavar="N", help="inputs per target")
    parser.add_argument("--seed", type=cli.non_negative_int, default=1, metavar="N", help="seed of the inputs")
    parser.add_argument("--keep-going", action="store_true", help="count all finds of a target")
    parser.add_argument("--finds", type=Path, default=Path("fuzz_finds"), metavar="DIR", help="folder for the finds")
    add_results_argument(parser)
    return parser


NASTY = (b"nan", b"inf", b"-1", b"1e309", b"9" * 20, b"\0", b"\xff\xff\xff\x7f", b"\xff" * 8, b'"', b",")


def damaged(good: list[bytes], rng: random.Random) -> bytes:
    """A valid file with one to eight changes."""
    data = bytearray(rng.choice(good))
    for _ in range(rng.randint(1, 8)):
        place, length = rng.randint(0, len(data)), rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            data[place : place + rng.choice((0, 1, 4, 8))] = rng.choice(NASTY)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length] * rng.choice((1, 3, 50))
        else:
            other = rng.choice(good)
            data[place:] = other[rng.randint(0, len(other)) :] if rng.random() < 0.7 else b""
    return bytes(data)


def feed(target: Target, data: bytes, folder: Path) -> str:
    """Let a target read these bytes.

    Returns:
        `read`, or `refused` if it reports an error.
    Raises:
        Exception: a find: `Wrong`, or an error of the reader.
    """
    path = folder / f"input{target.ending}"
    path.write_bytes(data)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            target.read(path)
    except UserError as error:
        expect(0 < len(str(error)) < 2000, f"a message of {len(str(error))} characters")
        return "refused"
    except target.refusals:
        return "refused"
    return "read"


@contextlib.contextmanager
def within_limits() -> Iterator[None]:
    """Raise `Wrong` if the block takes more than the allowed time or memory."""

    def too_long(signum: int, frame: object) -> None:
        raise Wrong(f"takes more than {SECONDS} s")

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = megabytes("VmHWM")
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    more = megabytes("VmHWM") - before
    expect(more < MEGABYTES, f"takes {more:.0f} MB")


def answer_to(name: str, data: bytes, folder: Path) -> str:
    """The answer of a target to these bytes: `read`, `refused` or a find in words."""
    try:
        with within_limits():
            return feed(TARGETS[name], data, folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def new_pool() -> ProcessPoolExecutor:
    """A separate process, so that a crash is noticed; it has the modules of this one, and its targets."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("fork"))


def run_target(name: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """The answer to each input, until a find or to the last one; finds are kept."""
    target, answers, pool = TARGETS[name], [], new_pool()
    good = target.good()
    for data in good:
        expect(feed(target, data, folder) == "read", "a valid file is refused")
    for number in tqdm(range(args.inputs), name, disable=None):
        data = damaged(good, random.Random(f"{args.seed} {name} {number}"))
        try:
            answers.append(pool.submit(answer_to, name, data, folder).result())
        except BrokenProcessPool:
            answers.append("the process crashed")
            pool = new_pool()
        if answers[-1] not in ANSWERS:
            args.finds.mkdir(parents=True, exist_ok=True)
            (args.finds / f"{name}_{number}{target.ending}").write_bytes(data)
            if not args.keep_going:
                break
    pool.shutdown()
    return answers


def main(args: argparse.Namespace) -> int:
    """Feed every target and print a table; 1 if there are finds."""
    fill_section(args.results, "fuzz")
    rows, inputs, finds = [["target", "inputs", "read", "refused", "finds", "the first"]], 0, 0
    for name in args.targets or [name for name in TARGETS if name != "scipy_mat"]:
        with tempfile.TemporaryDirectory() as folder:
            answers = run_target(name, args, Path(folder))
        found = [answer for answer in answers if answer not in ANSWERS]
        numbers = len(answers), answers.count("read"), answers.count("refused"), len(found)
        rows.append([name, *(f"{number:,}" for number in numbers), found[0][:200] if found else "-"])
        inputs, finds = inputs + len(answers), finds + len(found)
    text = "\n".join([*cli.markdown_table(rows), "", f"{inputs:,} inputs, seed {args.seed}, on {machine()}."])
    print(text)
    fill_section(args.results, "fuzz", text)
    return int(finds > 0)


if __name__ == "__main__":
    cli.run(main, cli.parse(get_args_parser()))
