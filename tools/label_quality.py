"""Which training labels look wrong? A quality score of each label, from predictions that did not see it.

    python -m tools.label_quality -emo Act --corpus corpora/emodb

A ridge regression predicts each training utterance from the acoustic features of other speakers (five folds). cleanlab
turns label and prediction into a score from 0 (suspicious) to 1. The tool prints the lowest scores and writes
results/label_quality_Act.json (file name -> score), and a table (.csv) with label, prediction and residual.

With --label-quality FILE.json the report shows the score beside DeepMI and the recording, and extract_DeepMI.py adds
it to its --table.

Source: Zhou et al., "Detecting Errors in Numerical Data via any Regression Model" (2023); for predictions across folds,
Northcutt, Jiang & Chuang, JAIR 70 (2021).
"""

from __future__ import annotations

import argparse

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    cli.add_attribute_argument(parser)
    help = "labels to print, those of lowest quality"
    parser.add_argument("--lowest", type=cli.non_negative_int, default=10, metavar="N", help=help)
    cli.add_corpus_arguments(parser)
    cli.add_results_dir_argument(parser)
    cli.add_seed_arguments(parser, "seed of the folds")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import PredefinedSplit, cross_val_predict

import utils
from deepmi import storage
from deepmi.ccc import UNKNOWN_SPEAKER
from deepmi.metric import rounded
from deepmi.process import UserError
from tools.trials import RIDGE_ALPHAS, folds_by_speaker

FEWEST = 10  # utterances: two per fold


def cross_fitted(rows: NDArray[np.float32], labels: NDArray[np.float64], folds: NDArray[np.int64]) -> NDArray:
    """Predictions of each fold by a ridge regression on the other folds.

    Args:
        rows: normalised features, shape (N, D).
        labels: shape (N,).
        folds: fold of each utterance, shape (N,).
    Returns:
        In the unit of the labels, shape (N,).
    """
    return cross_val_predict(RidgeCV(alphas=RIDGE_ALPHAS), rows, labels, cv=PredefinedSplit(folds))


def label_quality(labels: NDArray[np.float64], predictions: NDArray[np.float64]) -> NDArray[np.float64]:
    """cleanlab's score of each label, 0 (suspicious) to 1, shape (N,).

    Raises:
        UserError: cleanlab is not installed.
    """
    try:
        from cleanlab.regression.rank import get_label_quality_scores  # an optional requirement
    except ImportError:
        raise UserError("this needs cleanlab: pip install -r requirements-optional.txt") from None
    return rounded(get_label_quality_scores(labels, predictions))


def main(args: argparse.Namespace) -> None:
    """Predict across folds, score, write and print."""
    utils.make_output_folders(args.results_dir, args.cache_dir)
    train = utils.open_corpus(args).load("Train")
    if len(train.names) < FEWEST:
        raise UserError(f"{len(train.names)} Train utterances; expected at least {FEWEST}.")
    if (known := len({*train.speakers} - {UNKNOWN_SPEAKER})) < 2 or UNKNOWN_SPEAKER in train.speakers:
        print(f"note: {known} known speakers; the folds divide utterances of unknown speakers, or of a single one.")
    folds = folds_by_speaker(train.speakers, train.names, args.seed)
    prediction = cross_fitted(train.rows, train.labels, folds)
    scores = label_quality(train.labels, prediction)
    columns = {"quality": scores, "label": train.labels, "prediction": prediction}
    columns |= {"residual": prediction - train.labels, "SpkrID": train.speakers}
    table = pd.DataFrame(columns, index=pd.Index(train.names, name="FileName")).sort_values("quality", kind="stable")
    print(f"{len(table)} training labels of {args.emo_attr}, {folds.max() + 1} folds; lowest quality first:")
    print("\n".join(cli.markdown_table(_text(table[: args.lowest]))))
    files = [args.results_dir / f"label_quality_{args.emo_attr}{ending}" for ending in (".json", ".csv")]
    storage.write_json(files[0], dict(zip(train.names, scores.tolist())))
    storage.write_text(files[1], table.to_csv())
    print("\n".join(f"wrote {file}" for file in files))


def _text(table: pd.DataFrame) -> list[list[str]]:
    rows = [[name, *(f"{value:.3f}" for value in row[:-1]), row[-1]] for name, *row in table.itertuples()]
    return [["file", *table.columns], *rows]


if __name__ == "__main__":
    cli.run(main, ARGS)
