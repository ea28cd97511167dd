"""Run a stage with dropout off, so that runs whose random streams differ can be compared.

python tests/without_dropout.py STAGE ARGUMENT...
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from deepmi import cli

if __name__ == "__main__":
    model.DROPOUT = 0.0
    stage = importlib.import_module(sys.argv[1])
    cli.run(stage.main, cli.parse(stage.get_args_parser(), sys.argv[2:]))
