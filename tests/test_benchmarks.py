"""The benchmarks run; what they measure is not tested."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import coverage, evidence
from deepmi.ccc import concordance_cc
from deepmi.process import UserError
from tools.compare_curricula import CONTROLS


def test_the_benchmark_runs_and_fills_its_section(bench):
    (bench.folder / "R.md").write_text(
        "# R\n<!-- bench_stages tiny cpu fp32: begin -->\nold\n<!-- bench_stages tiny cpu fp32: end -->\nrest\n"
    )
    argv = ["--sizes", "tiny", "--stages", "packing", "ssl", "--epochs", 2, "--device", "cpu", "--results", "R.md"]
    code, out, err = bench.run("benchmarks.bench_stages", *argv)
    assert code == 0, err
    text = (bench.folder / "R.md").read_text()
    assert text.startswith("# R\n") and text.endswith("rest\n") and "old" not in text
    for row in ("| packing |", "| SSL epoch |", "96 Train, 32 Validation, 128 unlabeled"):
        assert row in out and row in text


@pytest.mark.parametrize("effect", coverage.EFFECTS)
def test_the_true_ccc_of_the_simulation_is_that_of_a_very_large_corpus(effect):
    rng = np.random.default_rng(0)
    corpus = coverage.draw_corpus(rng, 40_000, 4, False, effect)
    found = concordance_cc(corpus.labels, coverage.predict(rng, corpus, 0.6, 0.8))
    assert found == pytest.approx(coverage.population_ccc(effect, 0.6, 0.8), abs=0.01)


def test_the_recipe_is_chosen_by_validation_and_not_by_the_test(tmp_path, capsys):
    rows = {  # validation and test CCC of three seeds: the test would choose the cluster head
        "deepmi, late, head": (0.4, [0.9, 0.8, 0.9]),
        "deepmi, late, kmeans": (0.6, [0.7, 0.5, 0.8]),
        "random, late": (0.9, [0.5, 0.4, 0.4]),
        "none, late": (0.9, [0.6, 0.6, 0.6]),
    }
    folder = tmp_path / "speech" / "results"
    folder.mkdir(parents=True)
    columns = [f"minus_{control}_{end}" for control in ("random", "none") for end in ("low", "high")]
    for noise in ("", "_noise30"):
        table = pd.DataFrame(
            {"order": order, "validation": validation, "ccc": np.mean(cccs), "sd": 0.1}
            | dict.fromkeys(columns, 0.0)
            | {f"ccc_seed{seed}": ccc for seed, ccc in enumerate(cccs, 31)}
            for order, (validation, cccs) in rows.items()
        )
        table.to_csv(folder / f"compare_Act{noise}.csv", index=False)
    evidence.main(evidence.get_args_parser().parse_args([str(folder), "--picture", str(tmp_path / "noise.png")]))
    out = capsys.readouterr().out
    assert "Recipe: deepmi, late, kmeans.\n" in out and (tmp_path / "noise.png").stat().st_size > 10_000
    found = evidence.differences(evidence.read_tables([folder]), "deepmi, late, kmeans")
    assert found["labels"].tolist() == ["consensus"] * 2 + ["30 % replaced"] * 2
    assert found["gain"].tolist() == pytest.approx([7 / 30, 2 / 30] * 2)
    raw = [stats.ttest_rel(rows["deepmi, late, kmeans"][1], rows[f"{name}, late"][1]).pvalue for name in CONTROLS]
    assert found["p"].tolist() == pytest.approx(raw * 2)
    assert found["p_holm"].min() == pytest.approx(min(1, 4 * min(raw)))
    (folder / "compare_Act_noise20.csv").write_bytes((folder / "compare_Act.csv").read_bytes())
    with pytest.raises(UserError, match=r"compare_Act_noise20\.csv"):
        evidence.read_tables([folder])
