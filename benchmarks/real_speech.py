"""Run all stages on real speech for several attributes and seeds, and compare the result with a ridge regression.

    python -m benchmarks.real_speech LABELED UNLABELED --results benchmarks/RESULTS.md

LABELED is a corpus in MSP-Podcast's layout with Labels and Audios, UNLABELED a folder of recordings. The features are
extracted once. Then the five stages run once per attribute and seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from tqdm import tqdm

import utils
from benchmarks.sections import add_results_argument, fill_section, machine, run
from deepmi import cli
from deepmi.ccc import concordance_cc
from tools.trials import ridge_predictions

# Test1 CCC of the original program on EmoDB with nEMO as unlabeled set (its published code, changed to run on a CPU):
# 20 SSL epochs, 70 curriculum epochs, 10 clusters, batch 64, seeds 1, 2, 3.
ORIGINAL = {"Act": [0.825, 0.884, 0.864], "Val": [0.297, 0.244, 0.280]}


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    number = cli.positive_int
    parser.add_argument("labeled", type=Path, metavar="LABELED", help="corpus with Labels and Audios")
    parser.add_argument("unlabeled", type=Path, metavar="UNLABELED", help="folder of unlabeled recordings")
    parser.add_argument("--attributes", nargs="+", choices=cli.ATTRIBUTES, default=["Act", "Val"], help="attributes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="seeds")
    parser.add_argument("--ssl-epochs", type=number, default=20, metavar="N", help="DeepEmoCluster epochs")
    parser.add_argument("--epochs", type=number, default=70, metavar="N", help="curriculum epochs")
    parser.add_argument("--clusters", type=number, default=10, metavar="K", help="clusters")
    parser.add_argument("--batch", type=number, default=64, metavar="N", help="utterances per training step")
    parser.add_argument("--work", type=Path, default=Path("real_speech"), metavar="DIR", help="folder for all outputs")
    add_results_argument(parser)
    return parser


def chain(args: argparse.Namespace, attribute: str, seed: int) -> dict:
    """Run stages 1 to 4 for one attribute and seed and return the content of the results file."""
    folder = args.work / f"seed{seed}"
    common = ["-batch", args.batch, "-emo", attribute, "--seed", seed, "--device", "cpu", "--model-dir", folder]
    common += ["--corpus", args.work / "corpus", "--norm-dir", args.work / "NormTerm"]
    common += ["--cache-dir", args.work / "feature_cache"]
    ssl, metric = ["-ep", args.ssl_epochs, "-nc", args.clusters], ["--metric-dir", folder]
    run("training_DeepEmoCluster.py", *ssl, *common, "--unlabeled", args.work / "unlabeled")
    run("extract_DeepMI.py", *ssl, *common, *metric)
    run("training_Curriculum.py", "-ep", args.epochs, "-nc", args.clusters, *common, *metric)
    run("testing_Curriculum.py", "-ep", args.epochs, *common, "--results-dir", folder)
    return json.loads((folder / f"SimpleEmoRegressor_DeepMI@_{attribute}_Test1.json").read_text())


def ridge(args: argparse.Namespace, attribute: str) -> float:
    """Test1 CCC of scikit-learn's RidgeCV on the same normalised features."""
    files = utils.find_corpus(args.work / "corpus")
    folders = args.work / "NormTerm", args.work / "feature_cache"
    corpus = utils.LabeledCorpus(files, attribute, *folders, cli.cpu_count())
    train, test = corpus.load("Train"), corpus.load("Test1")
    return concordance_cc(test.labels, *ridge_predictions(train.rows, train.labels, test.rows))


def table(args: argparse.Namespace, results: dict[str, list[dict]], ridges: dict[str, float], seconds: float) -> str:
    """The Markdown section: a table of CCCs, intervals, settings and machine."""
    rows = [["attribute", "program", *(f"seed {seed}" for seed in args.seeds), "mean"]]
    notes = []
    for attribute, runs in results.items():
        programs = {"this program": [result["ccc"] for result in runs]}
        if attribute in ORIGINAL and args.seeds == [1, 2, 3]:
            programs["the original"] = ORIGINAL[attribute]
        for program, cccs in programs.items():
            mean = f"**{sum(cccs) / len(cccs):.3f}**"
            rows.append([attribute, program, *(f"{ccc:.3f}" for ccc in cccs), mean])
        rows.append([attribute, "RidgeCV, no network", *[""] * len(args.seeds), f"**{ridges[attribute]:.3f}**"])
        intervals = ", ".join("{:.3f}..{:.3f}".format(*result["interval_95"]) for result in runs)
        notes.append(f"- {attribute}: n = {runs[0]['n']}, 95 % bootstrap intervals of this program's runs {intervals}.")
    notes.append(
        f"- {args.ssl_epochs} SSL epochs, {args.epochs} curriculum epochs, {args.clusters} clusters, batch {args.batch}"
        f"; {seconds:.0f} s for all runs, including the extraction of missing features, on {machine()}."
    )
    return "\n".join([*cli.markdown_table(rows), "", *notes])


def main(args: argparse.Namespace) -> None:
    """Run everything and print the table."""
    fill_section(args.results, "real_speech")
    args.work, labeled = args.work.resolve(), args.labeled.resolve()  # the stages run in the folder of the program
    begin = time.monotonic()
    shutil.copytree(labeled / "Labels", args.work / "corpus/Labels", dirs_exist_ok=True)
    for audio, part in ((labeled / "Audios", "corpus"), (args.unlabeled.resolve(), "unlabeled")):
        run("-m", "tools.extract_features", audio, args.work / part / utils.FEATURE_FOLDER)
    run("norm_para.py", "--corpus", args.work / "corpus", "--norm-dir", args.work / "NormTerm")
    results: dict[str, list[dict]] = {attribute: [] for attribute in args.attributes}
    for attribute, seed in tqdm([(a, s) for a in args.attributes for s in args.seeds], unit="run", disable=None):
        results[attribute].append(chain(args, attribute, seed))
        tqdm.write(f"{attribute}, seed {seed}: Test1 CCC {results[attribute][-1]['ccc']:.3f}")
    ridges = {attribute: ridge(args, attribute) for attribute in args.attributes}
    text = table(args, results, ridges, time.monotonic() - begin)
    print(text)
    fill_section(args.results, "real_speech", text)


if __name__ == "__main__":
    cli.run(main, cli.parse(get_args_parser()))
