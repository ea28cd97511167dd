"""Bad input: one message that says what is wrong and what to do, exit status 2, nothing half written."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STAGES, contents

import utils
from deepmi import features, matfile
from deepmi.metric import read_metric, write_metric


@pytest.mark.parametrize("script", STAGES)
def test_no_corpus_names_both_ways_and_the_demo(bench, script):
    more = ["--unlabeled-size", 0] if script == "training_DeepEmoCluster" else []
    bench.refuses(bench.run(script, *more), "--corpus", "DEEPMI_CORPUS", "make demo")


def test_no_unlabeled_set_names_every_way_to_give_one_or_do_without(prepared):
    result = prepared.run("training_DeepEmoCluster", "--corpus", prepared.corpus)
    prepared.refuses(result, "--unlabeled", "DEEPMI_UNLABELED", "--unlabeled-size 0")


# Ways to damage a bench on which stages 0 to 3 have run. Its folder is the current one.


def nothing(bench):
    pass


def labels(change):
    """Change the rows of the label file, of which the first is the header."""
    return lambda bench: bench.edit_labels(change)


def cell(number, column, value):
    """Change one cell of the label file."""
    return labels(lambda rows: rows[number].__setitem__(rows[0].index(column), value))


def keep_first(split):
    """Move all utterances of a split but its first into a split that is not used."""
    return labels(lambda rows: [row.__setitem__(-1, "Test2") for row in [r for r in rows if r[-1] == split][1:]])


def metric(change):
    """Change the DeepMI values."""

    def damage(bench):
        values = read_metric(METRIC)
        change(values)
        write_metric(METRIC, values)

    return damage


def feature_files(values):
    return lambda bench: [matfile.write_mat(file, "Audio_data", values[None]) for file in bench.feature_files]


def feature_file(values):
    return lambda bench: matfile.write_mat(Path(FEATURE), "Audio_data", values[None])


def statistics(name, what, value):
    file, width = f"NormTerm/{name}_norm_{what}.mat", 40 if name == "feat" else 1
    return lambda bench: matfile.write_mat(Path(file), "normal_para", np.full((1, width), value))


def other_statistics(bench):
    Path("other").mkdir()
    utils.write_norm_stats(Path("other"), (np.zeros(39), np.ones(39)), {"Val": (4, 1)})


def written(file, content):
    return lambda bench: Path(file).write_bytes(content)


def saved(file, content):
    return lambda bench: torch.save(content, file)


def copied(file, target):
    return lambda bench: shutil.copy(file, target)


def cut(file):
    return lambda bench: Path(file).write_bytes(Path(file).read_bytes()[:150])


def removed(path):
    return lambda bench: Path(path).unlink() if Path(path).is_file() else shutil.rmtree(path)


def with_nan(file, bias):
    """A checkpoint whose network predicts NaN."""

    def damage(bench):
        content = torch.load(file, weights_only=True)
        content.get("state_dict", content)[bias].fill_(float("nan"))
        torch.save(content, file)

    return damage


SSL = "Models/ResNetDeepEmoCluster_epoch2_batch16_5clusters_Val.pth.tar"
SSL_OF_7, SSL_OF_ACT = SSL.replace("5clusters", "7clusters"), SSL.replace("Val", "Act")
REGRESSOR = "Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar"
METRIC = Path("curriculum_metric/DeepMI_5clusters@_Val.json")
LABELS = "corpus/Labels/labels_concensus.csv"
FEATURE = f"corpus/{utils.FEATURE_FOLDER}/MSP-PODCAST_0009_0009.mat"
REFUSED = [  # (damage, stage, its flags, words of the message)
    (nothing, 0, "--corpus nowhere", ["nowhere", "no such folder"]),
    (nothing, 0, "--labels x.csv", ["x.csv", "no such label file"]),
    (removed("corpus/Features"), 0, "", ["no such folder", "tools.extract_features"]),
    (removed(LABELS), 0, "", ["labels_consensus", "labels_concensus", "--labels"]),
    *((removed("NormTerm"), stage, "", ["NormTerm", "norm_para.py"]) for stage in (1, 2, 3, 4)),
    (removed(SSL), 2, "", [SSL, "training_DeepEmoCluster.py"]),
    (removed(METRIC), 3, "", [METRIC.name, "extract_DeepMI.py"]),
    (removed(REGRESSOR), 4, "", [REGRESSOR, "training_Curriculum.py"]),
    # labels
    *(
        (written("l.csv", text), 0, "--labels l.csv", ["l.csv"])
        for text in (b"", b"\xff\xfe\0\1", b'FileName\n"a', b"\0\0")
    ),
    *((written("l.json", text), 0, "--labels l.json", ["l.json"]) for text in (b"", b"[]", b"{", b"[" * 100_000)),
    *((written("l.json", text), 0, "--labels l.json", ["l.json"]) for text in (b'{"a": 3}', b'{"a": {}, "a": {}}')),
    (cell(0, "FileName", "Other"), 0, "", ["no column FileName", "found", "Other"]),
    (cell(0, "Split_Set", "Other"), 0, "", ["no column Split_Set", "found", "Other"]),
    (cell(0, "EmoVal", "Other"), 1, "", ["no column EmoVal"]),
    (labels(lambda rows: [row.append("EmoVal ") for row in rows]), 0, "", ["column EmoVal", "more than once"]),
    (labels(lambda rows: rows.__delitem__(slice(1, None))), 0, "", ["no utterances"]),
    (labels(lambda rows: rows.__delitem__(slice(1, 61))), 0, "", ["no rows in split Train", "Test1 24"]),
    (labels(lambda rows: rows[4].insert(1, "Angry")), 0, "", ["line 5 has 9 fields, the header 8", "comma"]),
    (labels(lambda rows: rows[4].__delitem__(slice(1, None))), 0, "", ["line 5 has 1 fields, the header 8"]),
    (cell(3, "EmoVal", "7.5"), 0, "", ["EmoVal", "MSP-PODCAST_0002_0002.wav", "outside 1..7"]),
    (cell(3, "EmoVal", "0.99"), 0, "", ["EmoVal", "MSP-PODCAST_0002_0002.wav", "outside 1..7"]),
    (cell(3, "EmoVal", "high"), 0, "", ["EmoVal", "MSP-PODCAST_0002_0002.wav", "expected a number"]),
    (cell(5, "FileName", "MSP-PODCAST_0003_0003.wav"), 0, "", ["MSP-PODCAST_0003_0003.wav", "duplicate"]),
    (cell(5, "FileName", "MSP-PODCAST_0003_0003.flac"), 0, "", ["0003.wav", "share one feature file"]),
    (keep_first("Development"), 1, "", ["all 1 EmoVal labels of Validation"]),
    (nothing, 4, "--split Test9", ["Test9", "Train 60", "Development 24", "Test1 24"]),
    (nothing, 4, "--label-scale 7 1", ["lowest label first"]),
    (nothing, 4, "--label-scale 1 inf", ["two numbers"]),
    # features and their statistics
    *((cut(FEATURE), stage, "", [Path(FEATURE).name, "damaged"]) for stage in (0, 1)),
    *((feature_file(np.ones(39)), stage, "", ["39 features"]) for stage in (0, 1)),
    *((feature_file(np.full(40, np.nan)), stage, "", ["every feature is NaN"]) for stage in (0, 1)),
    (lambda bench: (removed(FEATURE)(bench), Path(FEATURE).mkdir()), 0, "", [FEATURE, "Is a directory"]),
    (feature_file(np.full(40, 1e200)), 0, "", ["too large", "1e+200"]),
    (feature_files(np.ones(12)), 1, "", ["12 features", "made for 40", "norm_para.py"]),
    *(
        (statistics(name, what, value), 1, "", [f"statistics of {name}", "norm_para.py"])
        for name in ("feat", "val")
        for what, value in (("means", np.inf), ("means", np.nan), ("stds", np.inf), ("stds", -1.0))
    ),
    *((other_statistics, stage, "--norm-dir other", ["40 features", "39"]) for stage in (2, 4)),
    # checkpoints and DeepMI
    (cut(SSL), 2, "", [SSL, "damaged"]),
    (cut(REGRESSOR), 4, "", [REGRESSOR, "damaged"]),
    (copied(SSL, SSL_OF_7), 2, "-nc 7", ["5 clusters", "-nc asks for 7"]),
    (copied(SSL, SSL_OF_ACT), 2, "-emo Act", ["trained for Val", "-emo asks for Act"]),
    (saved(SSL, {"state_dict": {"a": torch.ones(2)}}), 2, "", [SSL, "a different network"]),
    (saved(SSL, [1, 2]), 2, "", [SSL, "no state_dict"]),
    (with_nan(SSL, "emo_regressor.2.bias"), 2, "", [SSL, "NaN or infinity"]),
    (with_nan(REGRESSOR, "dense_net.7.bias"), 4, "", [REGRESSOR, "NaN or infinity"]),
    (nothing, 3, "-nc 6", ["DeepMI_6clusters@_Val.json", "there are DeepMI_5clusters@_Val.json (-nc"]),
    (metric(lambda values: values.update({"stranger.wav": 0.1})), 3, "--skip-missing", ["1 besides", "stranger.wav"]),
    (metric(lambda values: [values.pop(name) for name in sorted(values)[1:]]), 3, "--skip-missing", ["fewer than two"]),
    # settings
    (nothing, 1, "-nc 61", ["-nc 61", "60 utterances"]),
    (nothing, 1, "-nc 55", ["-nc 55", "50 utterances"]),
    *((nothing, stage, "--compile --device cpu", ["--compile", "CUDA GPU"]) for stage in (1, 3)),
    (nothing, 2, "--device tpu", ["tpu", "auto, cpu, cuda"]),
    (nothing, 2, "--device cuda:99999999999999999999", ["CUDA GPUs"]),
    *(
        (written("file", b""), stage, f"--{folder}-dir file/below", ["file/below", "can't be written"])
        for stage, folder in enumerate(("norm", "model", "metric", "model", "results"))
    ),
]


@pytest.mark.parametrize(("damage", "stage", "flags", "words"), REFUSED, ids=[words[-1] for *_, words in REFUSED])
def test_what_a_stage_cannot_use_is_refused_and_nothing_is_written(trained, damage, stage, flags, words):
    damage(trained)
    before = contents(trained.folder)
    trained.refuses(trained.stage(stage, *flags.split()), *words)
    assert contents(trained.folder) == before


def test_labels_that_are_not_used_are_not_judged(trained):
    cell(-1, "EmoVal", "hidden")(trained)  # of Test1
    assert [trained.stage(number)[0] for number in (0, 2, 4)] == [0, 0, 2]
    cell(0, "EmoVal", "Other")(trained)
    trained.runs(0)


def test_missing_feature_files_are_counted_and_the_flag_is_named(bench):
    files = bench.feature_files
    for path in files[:7]:
        path.unlink()
    result = bench.stage(0)
    bench.refuses(result, "7 of 60", "MSP-PODCAST_0004_0004.wav, ...", "--skip-missing")
    assert files[7].stem not in result[2]
    for path in files[7:]:
        path.unlink()
    bench.refuses(bench.stage(0, "--skip-missing"), "60 of 60")


@pytest.mark.parametrize(
    "argv", ["-ep 0", "-nc -3", "-batch x", "-batch 1", "-emo Joy", "--seed -1", "--precision fp8"]
)
def test_an_argument_of_the_wrong_kind(bench, argv):
    code, _, err = bench.run("training_DeepEmoCluster", *argv.split())
    assert code == 2 and argv.split()[0] in err and "Traceback" not in err


def test_a_test_of_one_utterance_says_what_its_ccc_is_worth(trained):
    keep_first("Test1")(trained)
    out, _ = trained.runs(4)
    assert "Val (CCC): 0.000" in out and "0 for any prediction" in out


def test_features_that_are_all_the_same_leave_one_cluster(bench):
    for file in bench.feature_files:
        matfile.write_mat(file, features.FEATURE_KEY, np.arange(40.0)[None])
    for number in range(5):
        out, err = bench.runs(number, *(["--unlabeled-size", 0] if number == 1 else []))
        assert ("one value for all 60 utterances" in err) == (number in (2, 3))
        if number == 2:
            assert "I(X;Y)  = 0.00000" in out and "H(X)    = 0.00000" in out


@pytest.mark.parametrize("batch", [59, 5000])
def test_a_last_batch_of_one_and_a_batch_larger_than_the_set(trained, batch):
    for number in (1, 3):
        trained.runs(number, "-batch", batch)
