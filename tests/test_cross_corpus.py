"""Testing on other corpora than the one of the training, and keeping feature sets apart."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import write_corpus

import utils
from deepmi import features
from deepmi.ccc import concordance_cc


@pytest.fixture
def other(trained):
    """A second corpus with labels of 1..5 in its file, and one that says it was prepared from such."""
    for name, seed in (("other", 5), ("ready", 6)):
        write_corpus(trained.folder / name, seed)
    file, ready = trained.folder / "other/Labels/labels_concensus.csv", trained.folder / "ready/Labels"
    table = pd.read_csv(file)
    table[["EmoAct", "EmoVal", "EmoDom"]] = 1 + (table[["EmoAct", "EmoVal", "EmoDom"]] - 1) * 4 / 6
    table.to_csv(file, index=False)
    (ready / "labels_concensus.csv").rename(ready / "labels_consensus.csv")
    (ready / "prepared.json").write_text('{"label_scale": [1, 5]}')
    return trained


def labels_in(folder):
    """The valence in the label file of a corpus, by file name."""
    (file,) = folder.glob("Labels/*.csv")
    return pd.read_csv(file).set_index("FileName")["EmoVal"]


def score(bench, *more):
    return bench.run("testing_Curriculum", "-ep", 8, "-batch", 16, "-emo", "Val", *more)


def scored(bench, *more):
    """The stage succeeds: standard output."""
    return bench.runs("testing_Curriculum", "-ep", 8, "-batch", 16, "-emo", "Val", *more)[0]


def test_several_corpora_give_one_table(other):
    splits, scales = ("Test1", "all", "Development"), (1, 7, 1, 5, 1, 5)
    out = scored(other, "--corpus", "corpus", "other", "ready", "--split", *splits, "--label-scale", *scales)
    stem = "SimpleEmoRegressor_DeepMI@_Val"
    results = json.loads((other.folder / f"results/{stem}_corpora.json").read_text())
    table = (other.folder / f"results/{stem}_corpora.md").read_text()
    assert table in out and len(table.splitlines()) == 5
    assert [result["n"] for result in results] == [24, 108, 24]
    assert [result["label_scale"] for result in results] == [[1, 7], [1, 5], [1, 5]]
    for name, split, result, line in zip(("corpus", "other", "ready"), splits, results, table.splitlines()[2:]):
        written, rows = other.result(split=f"{name}_{split}")
        assert written == result
        assert concordance_cc(rows["label"], rows["prediction"]) == pytest.approx(result["ccc"])
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:3] == [name, split, str(result["n"])]
        assert cells[4:6] == ["NormTerm", f"{result['ccc']:.3f}"]
        assert cells[6] == " .. ".join(f"{bound:.3f}" for bound in result["interval_95"])
    labels = labels_in(other.folder / "other")
    rows = other.result(split="other_all")[1].set_index("FileName")
    assert np.allclose(rows["label"], 1 + (labels[rows.index] - 1) * 6 / 4)


def test_a_prepared_corpus_is_not_scaled_twice(other):
    labels = labels_in(other.folder / "ready")
    for more in ((), ("--label-scale", 1, 5), ("--label-scale", 1, 7)):
        assert "labels rescaled linearly from 1-5 to 1-7" in scored(other, "--corpus", "ready", *more)
        rows = other.result()[1].set_index("FileName")
        assert np.allclose(rows["label"], labels[rows.index])
    other.refuses(score(other, "--corpus", "ready", "--label-scale", 0, 100), "prepared from labels of 1..5", "0..100")
    for scale in ("3", "[NaN, 5]", "[true, false]", "[5, 1]"):
        (other.folder / "ready/Labels/prepared.json").write_text(f'{{"label_scale": {scale}}}')
        other.refuses(score(other, "--corpus", "ready"), "prepared.json", "no valid label_scale")


def test_a_corpus_own_norm_terms(other):
    other.runs("norm_para", "--corpus", "ready", "--norm-dir", "own")
    found = {}
    for norm_dir in ("NormTerm", "own"):
        scored(other, "--corpus", "ready", "--norm-dir", norm_dir)
        result, table = other.result()
        assert result["norm_dir"] == norm_dir
        found[norm_dir] = table["prediction"]
    assert not np.allclose(found["NormTerm"], found["own"], atol=1e-3)
    assert "| own " in scored(other, "--corpus", "corpus", "ready", "--norm-dir", "NormTerm", "own")
    assert np.allclose(other.result(split="ready_Test1")[1]["prediction"], found["own"])


def test_corpora_of_one_name_are_told_apart(other):
    (other.folder / "more").mkdir()
    shutil.copytree(other.folder / "ready", other.folder / "more/corpus")
    scored(other, "--corpus", "corpus", "more/corpus")
    assert (other.folder / "results/SimpleEmoRegressor_DeepMI@_Val_more_corpus_Test1.json").is_file()
    scored(other, "--corpus", "corpus", "corpus", "--norm-dir", "NormTerm", "NormTerm")
    name = f"results/SimpleEmoRegressor_DeepMI@_Val_{other.folder.name}_corpus"
    assert all((other.folder / f"{name}{which}_Test1.json").is_file() for which in ("", "_2"))


def test_flags_that_do_not_fit_the_corpora(other):
    many = ("--corpus", "corpus", "other", "ready")
    other.refuses(score(other, *many, "--split", "all", "Test1"), "--split: 2 given for 3 corpora")
    other.refuses(score(other, *many, "--label-scale", 1, 5, 1), "3 numbers", "pairs")
    other.refuses(score(other, *many, "--split", "../x"), "--split ../x", "part of a file name")
    other.refuses(score(other, *many, "--labels", "corpus/Labels/labels_concensus.csv"), "--labels", "one corpus")
    other.refuses(score(other, "--corpus", "corpus", "nowhere"), "nowhere", "no such folder")
    next((other.folder / "ready" / utils.FEATURE_FOLDER).glob("*_0001.mat")).unlink()
    other.refuses(score(other, "--corpus", "corpus", "ready", "--split", "all"), "1 of 108 feature files are missing")
    assert not list((other.folder / "results").iterdir())


def test_normalisation_statistics_of_another_corpus_are_reported(other):
    assert "different normalisation statistics" not in scored(other, "--corpus", "corpus")
    other.runs("norm_para", "--corpus", "ready")  # into the NormTerm of the training
    reported = "was trained with different normalisation statistics"
    assert f"{other.regressor.name} {reported}" in scored(other, "--corpus", "corpus")
    assert reported in other.runs(2)[0]


def mark(bench, name):
    for folder in (bench.corpus / utils.FEATURE_FOLDER, bench.folder / "corpus_unlabeled"):
        features.write_feature_set(folder, name)


def test_norm_terms_and_checkpoints_remember_the_feature_set(bench):
    mark(bench, "setA")
    for number in range(5):
        bench.runs(number)
    assert features.read_feature_set(bench.folder / "NormTerm") == "setA"
    # Of the same width, so that nothing but the name tells them apart.
    mark(bench, "setB")
    for number in range(1, 5):
        bench.refuses(bench.stage(number), "setA", "setB", "NormTerm")
    before = (bench.folder / "NormTerm/feat_norm_means.mat").read_bytes()
    bench.refuses(bench.stage(0), "setA", "setB", "NormTerm")  # nor does it write over what another set needs
    assert (bench.folder / "NormTerm/feat_norm_means.mat").read_bytes() == before
    shutil.rmtree(bench.folder / "NormTerm")
    bench.runs(0)
    for number, checkpoint in ((2, bench.ssl_checkpoint), (4, bench.regressor)):
        bench.refuses(bench.stage(number), f"{checkpoint.name}: of the feature set setA", "setB")
    features.write_feature_set(bench.folder / "corpus_unlabeled", "setC")
    bench.refuses(bench.stage(1, "--no-resume"), "corpus_unlabeled: of the feature set setC", "setB")
    # A folder that does not say is taken at its word, as the features of MSP-Podcast are.
    mark(bench, "")
    bench.runs(0)
    assert not (bench.folder / "NormTerm" / features.SET_FILE).exists()
    bench.runs(2)
    (bench.corpus / utils.FEATURE_FOLDER / features.SET_FILE).write_text('{"set": 1}')
    bench.refuses(bench.stage(0), "feature_set.json", "no feature_set")


def test_the_only_features_of_a_corpus_are_found_under_any_set(bench):
    folder = bench.corpus / utils.FEATURE_FOLDER
    other = bench.corpus / "Features/eGeMAPSv02/feat_mat"
    other.parent.mkdir()
    folder.rename(other)
    assert utils.find_corpus(bench.corpus).features == other
    (bench.corpus / "Features/more/feat_mat").mkdir(parents=True)
    bench.refuses(bench.stage(0), "eGeMAPSv02/feat_mat", "more/feat_mat", "--features DIR")
