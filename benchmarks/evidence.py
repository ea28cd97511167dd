"""The tables and the picture of runs/evidence.sh: which curriculum helps, and under which labels.

    python -m benchmarks.evidence evidence_whisper/results evidence_is13/results --picture images/label_noise.png

reads the tables of tools.compare_curricula in each folder and prints
1. the CCC of every curriculum by attribute and kind of labels,
2. the recipe: the DeepMI curriculum of highest mean validation CCC under noisy labels; Test1 plays no part in it,
3. its differences to random order and to all at once, with p-values corrected by Holm over that table.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks.sections import add_results_argument, fill_section
from deepmi import cli
from deepmi.process import UserError

LABELS = {  # as tools.compare_curricula names its files
    "": "consensus",
    "_noise10": "10 % replaced",
    "_noise30": "30 % replaced",
    "_noise50": "50 % replaced",
    "_single-rater": "single rater",
}


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folders, one per set of features")
    add_results_argument(parser)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the CCC by label noise (.png)")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deepmi.plots import save
from tools.compare_curricula import number
from tools.seed_statistics import holm, paired_p

CELL = ["features", "attribute", "labels"]


def read_tables(folders: list[Path]) -> pd.DataFrame:
    """All rows of all comparisons, with the columns features (the folder above), attribute, labels and decay.

    Raises:
        UserError: a folder has no comparison, or one that runs/evidence.sh does not make.
    """
    tables = []
    for folder in folders:
        files = sorted(folder.glob("compare_*.csv"))
        if not files:
            raise UserError(f"{folder}: no tables of tools.compare_curricula; run runs/evidence.sh first.")
        for file in files:
            attribute, noise = re.fullmatch(r"compare_([A-Za-z]+)(.*)", file.stem).groups()
            if noise not in LABELS:  # it would count in the ranking and appear in no table
                raise UserError(f"{file}: not a table of runs/evidence.sh; move it to a different folder.")
            facts = {"features": folder.absolute().parent.name, "attribute": attribute, "labels": LABELS[noise]}
            tables.append(pd.read_csv(file).assign(**facts))
    table = pd.concat(tables, ignore_index=True)
    parts = table["order"].str.split(", ")
    table["decay"] = parts.map(lambda words: words[1] if len(words) > 1 else "")
    table["curriculum"] = parts.map(lambda words: ", ".join([words[0], *words[2:]]))
    table["labels"] = pd.Categorical(table["labels"], LABELS.values(), ordered=True)
    return table


def ccc_tables(table: pd.DataFrame) -> list[str]:
    """One Markdown table per set of features and column (test and validation CCC): rows are cells, columns orders."""
    lines = []
    names = table["curriculum"].drop_duplicates().tolist()
    for features, part in table.groupby("features", sort=False):
        for value, title in (("ccc", "Test1 CCC"), ("validation", "validation CCC")):
            rows = [["attribute", "labels", "decay", *names]]
            for (attribute, labels), cell in part.groupby(["attribute", "labels"], observed=True):
                for decay in ("paper", "late"):
                    found = cell[cell["decay"].isin((decay, ""))].set_index("curriculum")[value]
                    rows.append([attribute, labels, decay, *(number(found.get(name, np.nan)) for name in names)])
            lines += ["", f"{features}, {title}, mean over seeds:", "", *cli.markdown_table(rows)]
    return lines


def rank_by_validation(table: pd.DataFrame) -> pd.Series:
    """Mean validation CCC under noisy labels of each DeepMI curriculum with its decay, the highest first."""
    noisy = table[(table["labels"] != "consensus") & table["curriculum"].str.startswith("deepmi")]
    return noisy.groupby("order")["validation"].mean().sort_values(ascending=False)


def differences(table: pd.DataFrame, recipe: str) -> pd.DataFrame:
    """The recipe minus each control of the same decay, by cell, with Holm's correction over all of them."""
    decay, rows = recipe.split(", ")[1], []
    seeds = [column for column in table if re.fullmatch(r"ccc_seed\d+", column)]
    for cell, part in table.groupby(CELL, observed=True):
        by_order = part.set_index("order")
        for control in ("random", "none"):
            found = by_order.loc[recipe]
            gain = (found[seeds] - by_order.loc[f"{control}, {decay}", seeds]).to_numpy(float)
            bounds = {end: found[f"minus_{control}_{end}"] for end in ("low", "high")}
            facts = {"control": control, "ccc": found["ccc"], "gain": gain.mean(), "p": paired_p(gain, "t")}
            rows.append(dict(zip(CELL, cell)) | facts | bounds)
    return pd.DataFrame(rows).assign(p_holm=lambda frame: holm(frame["p"].tolist()))


def difference_lines(found: pd.DataFrame, recipe: str) -> list[str]:
    """A Markdown table of `differences`."""
    rows = [["features", "attribute", "labels", "CCC", "minus random [95 %], p", "minus none [95 %], p"]]
    for cell, part in found.groupby(CELL, observed=True):
        gains = [
            f"{number(row.gain)} [{number(row.low)} .. {number(row.high)}], "
            + (f"p {number(row.p_holm)}" if row.p_holm >= 0.001 else "p < .001")
            for row in part.itertuples()
        ]
        rows.append([*map(str, cell), number(part["ccc"].iloc[0]), *gains])
    return ["", f"{recipe}, minus the controls of the same decay:", "", *cli.markdown_table(rows)]


def draw_label_noise(table: pd.DataFrame, recipe: str, path: Path) -> None:
    """Draw the Test1 CCC against the share of replaced labels: the recipe, its controls and the published order."""
    shown = [recipe, *(f"{control}, {recipe.split(', ')[1]}" for control in ("random", "none")), "deepmi, paper, head"]
    noise = {"consensus": 0, "10 % replaced": 10, "30 % replaced": 30, "50 % replaced": 50}
    panels = table[["features", "attribute"]].drop_duplicates().itertuples(index=False)
    panels = sorted(map(tuple, panels))
    figure = Figure(figsize=(4.2 * len(panels), 4), layout="constrained")
    for axes, (features, attribute) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        part = table[(table["features"] == features) & (table["attribute"] == attribute) & table["labels"].isin(noise)]
        for order in dict.fromkeys(shown):
            line = part[part["order"] == order].sort_values("labels")
            places = line["labels"].astype(str).map(noise)
            axes.errorbar(places, line["ccc"], line["sd"], marker="o", capsize=3, label=order)
        axes.set(
            xlabel="Train labels replaced, %",
            title=f"{features}, {attribute}",
            ylabel="Test1 CCC, mean and sd of seeds",
        )
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(shown))
    save(figure, path)


def main(args: argparse.Namespace) -> None:
    """Print the tables; draw the picture where asked."""
    fill_section(args.results, "evidence")
    table = read_tables(args.folders)
    ranking = rank_by_validation(table)
    recipe = ranking.index[0]
    rows = [["curriculum", "mean validation CCC under noisy labels"]]
    rows += [[name, number(value, 4)] for name, value in ranking.items()]
    lines = [*cli.markdown_table(rows), "", f"Recipe: {recipe}."]
    lines += [*difference_lines(differences(table, recipe), recipe), *ccc_tables(table)]
    print("\n".join(lines))
    fill_section(args.results, "evidence", "\n".join(lines))
    if args.picture:
        draw_label_noise(table, recipe, args.picture)
        print(f"wrote {args.picture}")


if __name__ == "__main__":
    cli.run(main, ARGS)
