"""Run stages one after the other, with narrow networks.

python tests/narrow_stage.py STAGE ARGUMENT... [-- STAGE ARGUMENT...]...

Environment variables: DROPOUT=0 makes runs of one and of two ranks comparable, KILLED=1 ends the last run just before
it would finish.
"""

import functools
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from deepmi import cli, clustering, plots, process, ranks, run_log


def without_dropout() -> None:
    """Let a stage do the same on any number of ranks."""
    model.DROPOUT = 0.0
    # One process would take faiss, whose initial centroids are different.
    clustering._kmeans_faiss = lambda points, k, seed, _: clustering._kmeans_torch(points, len(points), k, seed)


def run_stages(argv: list[str]) -> None:
    ranks.join_ranks, ranks.leave_ranks = functools.cache(ranks.join_ranks), ranks._meet  # together from first to last
    while "--" in argv:
        end = argv.index("--")
        stage = importlib.import_module(argv[0])
        stage.main(cli.parse(stage.get_args_parser(), argv[1:end]))
        argv = argv[end + 1 :]
    if "KILLED" in os.environ:
        run_log.TrainingRun.finish = lambda *_: os._exit(0)
    stage = importlib.import_module(argv[0])
    cli.run(stage.main, cli.parse(stage.get_args_parser(), argv[1:]))


if __name__ == "__main__":
    model.TRUNK_WIDTHS, model.REGRESSOR_WIDTH = (32, 24, 16), 16
    plots.draw_ssl_run = plots.draw_curriculum_run = lambda history, path, title: path.write_bytes(b"a picture")
    if os.environ.get("DROPOUT") == "0":
        without_dropout()
    if process.rank() > 0:
        sys.stdout = Path(os.devnull).open("w")
    run_stages(sys.argv[1:])
