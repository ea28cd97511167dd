"""The benchmark counts rightly and runs; what it measures is not tested."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import model
from benchmarks import bench_stages, coverage
from deepmi.ccc import concordance_cc


@pytest.mark.parametrize("make", [lambda: model.DenseResNet(bench_stages.WIDTH, 50), lambda: model.DenseNet(40)])
@pytest.mark.parametrize("trained", [False, True])
def test_operations_are_those_that_torch_counts(make, trained):
    network = make()
    with FlopCounterMode(display=False) as counter:
        outputs = network(torch.randn(8, network.num_features))
        if trained:
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            sum(output.sum() for output in outputs).backward()
    assert bench_stages.operations(network, 8, trained) == counter.get_total_flops()


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
