"""The curriculum as a sampler: the same utterances per epoch as stage 3, in any trainer."""

import doctest
import importlib.util
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, read_rows
from test_docs import fenced
from torch.utils.data import DataLoader

import deepmi
import training_Curriculum as stage
from deepmi import curriculum, sampler
from deepmi.curriculum import Schedule
from deepmi.process import UserError

NAMES = [f"{number:03d}.wav" for number in np.random.default_rng(3).permutation(53)]
METRIC = {name: float(np.round(np.sin(int(name[:3])), 1)) for name in sorted(NAMES)}  # with ties
LEVELS = np.arange(53) % 4
SHORT = {"bins": 4, "epochs_per_bin": 2, "seed": 5}


def new(order="deepmi", **more):
    return deepmi.CurriculumSampler(METRIC, NAMES, order, levels=LEVELS, **SHORT | more)


@pytest.fixture
def trained_by_stage_3(prepared, monkeypatch):
    """Runs stage 3 with SHORT and an order; returns the file names of each batch, one list of batches per epoch."""

    def run(order):
        epochs = []

        def rows_batches(rows, positions):
            epochs.append([[prepared.names[i] for i in batch.tolist()] for batch in positions])
            return whole(rows, positions)

        def train_epoch(learner, rows, names, *arguments):
            prepared.names = names
            return train(learner, rows, names, *arguments)

        whole, train = stage.Rows.batches, stage.train_epoch
        monkeypatch.setattr(stage.Rows, "batches", rows_batches)
        monkeypatch.setattr(stage, "train_epoch", train_epoch)
        flags = ["--bins", 4, "--epochs-per-bin", 2, "--seed", 5, "--device", "cpu", "--order", order]
        flags += ["--metric", "metric.json"] if order in curriculum.METRIC_ORDERS else []
        code, _, err = prepared.stage(3, *flags)
        assert code == 0, err
        return epochs

    return run


@pytest.fixture
def corpus_metric(prepared):
    """A metric for the corpus of the bench, with its levels: (names in an order of their own, levels)."""
    table = {row[0]: float(row[3]) for row in read_rows(prepared.labels)[1:] if row[7] == "Train"}
    metric = {name: round(np.cos(number), 1) for number, name in enumerate(table)}
    (prepared.folder / "metric.json").write_text(json.dumps(metric))
    names = list(np.random.default_rng(0).permutation(list(table)))
    return names, deepmi.emotion_levels([table[name] for name in names])


@pytest.mark.parametrize("order", curriculum.ORDERS)
def test_a_data_loader_has_the_batches_of_stage_3(order, corpus_metric, trained_by_stage_3):
    names, levels = corpus_metric
    epochs = trained_by_stage_3(order)
    made = deepmi.CurriculumSampler("metric.json", names, order, levels=levels, **SHORT)
    loader = DataLoader(names, batch_size=16, sampler=made)
    assert len(epochs) == 8
    for epoch, batches in enumerate(epochs):
        made.set_epoch(epoch)
        assert len(loader) == -(-len(made) // 16)
        assert [batch for batch in loader if len(batch) > 1] == batches


def test_two_ranks_share_each_batch_of_one():
    whole = new()
    for epoch in range(8):
        whole.set_epoch(epoch)
        parts = [new(num_replicas=2, rank=rank) for rank in range(2)]
        for part in parts:
            part.set_epoch(epoch)
        assert len({len(part) for part in parts}) == 1
        one = list(DataLoader(range(53), batch_size=8, sampler=whole))
        both = zip(*(DataLoader(range(53), batch_size=4, sampler=part) for part in parts))
        for alone, shared in zip(one, both):
            together = torch.cat(shared).tolist()
            assert set(together) >= set(alone.tolist()) and len(together) - len(alone) <= 1


@pytest.mark.parametrize("drop_last", [False, True])
def test_all_ranks_get_the_same_number(drop_last):
    parts = [new(num_replicas=4, rank=rank, drop_last=drop_last) for rank in range(4)]
    for epoch, size in enumerate(Schedule(bins=4, epochs_per_bin=2).size("deepmi", epoch, 53) for epoch in range(8)):
        drawn = [part.positions(epoch).tolist() for part in parts]
        assert {len(part) for part in drawn} == {size // 4 if drop_last else -(-size // 4)}
        assert len({position for part in drawn for position in part}) == (size // 4 * 4 if drop_last else size)


def test_a_rank_without_an_utterance_repeats_one():
    parts = [deepmi.CurriculumSampler({"a": 1.0, "b": 0.0}, ["a", "b"], num_replicas=3, rank=rank) for rank in range(3)]
    assert [list(part) for part in parts] == [[0], [0], [0]]


def test_all_epochs_are_the_epochs_one_after_the_other():
    made = new()
    whole = made.all_epochs(8)
    assert list(whole) == [position for epoch in range(8) for position in made.positions(epoch)]
    assert len(whole) == len(list(whole))


def test_the_metric_may_be_larger_but_not_smaller_than_the_dataset():
    made = deepmi.CurriculumSampler(METRIC, NAMES[:20], bins=1)
    assert sorted(made) == list(range(20))
    with pytest.raises(UserError, match=r"metric: .* 1 of 54 .*\(new.wav\); a name .* 000.wav.*skip_missing=True"):
        deepmi.CurriculumSampler(METRIC, [*NAMES, "new.wav"])
    made = deepmi.CurriculumSampler(METRIC, [*NAMES, "new.wav"], bins=1, skip_missing=True)
    assert sorted(made) == list(range(53))


def test_values_that_are_not_finite_are_missing():
    metric = pd.Series(METRIC)
    metric[NAMES[3]], metric[NAMES[5]] = np.nan, np.inf
    with pytest.raises(UserError, match="2 of 53"):
        deepmi.CurriculumSampler(metric, NAMES)
    made = deepmi.CurriculumSampler(metric, NAMES, bins=1, skip_missing=True)
    assert sorted(made) == [position for position in range(53) if position not in (3, 5)]


def test_wrong_arguments_are_refused():
    for options, words in (
        ({"order": "depmi"}, "depmi"),
        ({"pacing": "fast"}, "fast"),
        ({"metric": None}, "needs a metric"),
        ({"order": "deepmi-balanced"}, "levels"),
        ({"levels": LEVELS[1:]}, "52 levels for 53 names"),
        ({"bins": 0}, "0 bins"),
        ({"epochs_per_bin": 0}, "0 epochs"),
        ({"num_replicas": 2, "rank": 2}, "rank 2 of 2"),
    ):
        with pytest.raises(ValueError, match=words):
            deepmi.CurriculumSampler(**{"metric": METRIC, "names": NAMES} | options)
    assert sorted(deepmi.CurriculumSampler(None, NAMES, "none")) == list(range(53))


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    assert not hasattr(deepmi, "no_such_name")


def test_importing_all_names_needs_no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepmi.sampler", None)  # as where torch is not installed
    exec("from deepmi import *", {})


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(sampler).failed == 0


# ---------------------------------------------------------------------------------------------------------------------
# The trainers of docs/other-trainers.md

needs_trainer = pytest.mark.skipif(
    not (importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate")),
    reason="the optional packages transformers and accelerate are not installed",
)
DOCS_METRIC = "curriculum_metric/DeepMI_50clusters@_Val.json"
# What the snippets need: their dataset, and a model that notes the positions of what it is trained on.
BEFORE = f"""
import json, torch
names = {NAMES}
dataset = [{{"features": torch.randn(4), "labels": float(i % 7), "position": i}} for i in range(len(names))]
class Model(torch.nn.Linear):
    seen = []
    def forward(self, features, position=None):
        self.seen.append(position.tolist())
        return super().forward(features)
model = Model(4, 1)
"""
AFTER = """
import os
with open(f"seen{os.environ.get('RANK', 0)}.json", "w") as stream:
    json.dump(Model.seen, stream)
"""


def snippet(number):
    """A block of Python of the page."""
    blocks = fenced(ROOT / "docs/other-trainers.md", "py").split("from deepmi import")[1:]
    return "from deepmi import" + blocks[number]


@pytest.fixture
def docs_metric(tmp_path, monkeypatch):
    """The metric of the page, with METRIC's values, in the current folder; returns what stage 3 would train on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curriculum_metric").mkdir()
    (tmp_path / DOCS_METRIC).write_text(json.dumps(METRIC))
    made = deepmi.CurriculumSampler(METRIC, NAMES)
    return [made.positions(epoch).tolist() for epoch in range(70)]


def test_the_data_loader_of_the_docs_trains_on_every_epoch(docs_metric):
    loop = snippet(0).replace('model(batch["features"])', 'model(batch["features"], batch["position"])')
    space = {}
    exec(f"{BEFORE}\noptimizer = torch.optim.SGD(model.parameters(), 0.1)\n{loop}", space)
    seen = iter(space["Model"].seen)
    for positions in docs_metric:
        for start in range(0, len(positions), 32):
            assert next(seen) == positions[start : start + 32]


@needs_trainer
def test_the_trainer_of_the_docs_trains_on_every_epoch(docs_metric):
    space = {}
    exec(f"{BEFORE}\n{snippet(1)}", space)
    seen = [position for batch in space["Model"].seen for position in batch]
    assert seen == [position for positions in docs_metric for position in positions]


# ---------------------------------------------------------------------------------------------------------------------
# tools.export_curriculum

FLAGS = ("--bins", 4, "--epochs-per-bin", 2, "--seed", 5, "-ep", 8)


def test_the_exported_table_is_what_the_sampler_draws(bench):
    (bench.folder / "m.json").write_text(json.dumps(METRIC))
    code, out, err = bench.run("tools.export_curriculum", "m.json", *FLAGS, "--out", "new/c.csv")
    assert code == 0 and "53 utterances, 53 in the last of 8 epochs" in out, err
    header, *rows = read_rows(bench.folder / "new/c.csv")
    made = new()
    assert header == ["epoch", "FileName"]
    assert rows == [[str(epoch), NAMES[i]] for epoch in range(8) for i in made.positions(epoch)]


@pytest.mark.parametrize("pacing", curriculum.PACINGS)
def test_bins_give_back_every_epoch(bench, pacing):
    (bench.folder / "m.json").write_text(json.dumps(METRIC))
    code, _, err = bench.run("tools.export_curriculum", "m.json", *FLAGS, "--bins-only", "--pacing", pacing)
    assert code == 0, err
    _, *rows = read_rows(bench.folder / "curriculum.csv")
    made = new(pacing=pacing)
    for epoch in range(8):
        in_use = {name for _, first, name in rows if int(first) <= epoch}
        assert in_use == {NAMES[i] for i in made.positions(epoch)}
    if pacing == "paper":
        assert [int(number) for number, *_ in rows] == sorted([1] * 13 + [2] * 13 + [3] * 13 + [4] * 14)


def test_balanced_takes_the_levels_from_the_label_file(bench, prepared, corpus_metric):
    names, levels = corpus_metric
    arguments = ("metric.json", "--order", "deepmi-balanced", "--bins-only")
    bench.refuses(bench.run("tools.export_curriculum", *arguments), "--labels")
    assert bench.run("tools.export_curriculum", *arguments, "--labels", bench.labels)[0] == 0
    made = deepmi.CurriculumSampler("metric.json", names, "deepmi-balanced", levels=levels)
    assert [row[2] for row in read_rows(bench.folder / "curriculum.csv")[1:]] == [names[i] for i in made.ranked]


def test_a_metric_that_cannot_be_exported_is_refused(bench):
    (bench.folder / "empty.json").write_text("{}")
    (bench.folder / "m.json").write_text(json.dumps(METRIC))
    bench.refuses(bench.run("tools.export_curriculum", "empty.json"), "no utterances")
    bench.refuses(bench.run("tools.export_curriculum", "no.json"), "no.json")
    bench.refuses(bench.run("tools.export_curriculum", "m.json", "--out", "m.json"), "one of the inputs")
    balanced = ("m.json", "--order", "deepmi-balanced", "--labels", bench.labels)
    bench.refuses(bench.run("tools.export_curriculum", *balanced), "no EmoVal for 53 of 53 utterances")
