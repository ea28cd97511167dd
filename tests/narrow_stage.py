"""Run a stage with narrow networks without dropout, so that runs of one and of two ranks can be compared.

python tests/narrow_stage.py STAGE ARGUMENT...
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from deepmi import cli, clustering

if __name__ == "__main__":
    model.DROPOUT, model.TRUNK_WIDTHS = 0.0, (32, 24, 16)
    # One process would take faiss, whose initial centroids are others.
    clustering._kmeans_faiss = lambda points, k, seed, _: clustering._kmeans_torch(points, len(points), k, seed)
    stage = importlib.import_module(sys.argv[1])
    cli.run(stage.main, cli.parse(stage.get_args_parser(), sys.argv[2:]))
