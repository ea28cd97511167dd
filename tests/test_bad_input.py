"""Bad input: one message that says what is wrong and what to do, exit status 2, nothing half written."""

import shutil

import numpy as np
import pytest
import torch
from conftest import STAGES

import utils
from deepmi import features, matfile


@pytest.mark.parametrize("script", STAGES)
def test_no_corpus_names_both_ways_and_the_demo(bench, script):
    more = ["--unlabeled-size", 0] if script == "training_DeepEmoCluster" else []
    bench.refuses(bench.run(script, *more), "--corpus", "DEEPMI_CORPUS", "make demo")


def test_files_and_folders_that_are_not_there(prepared):
    result = prepared.run("training_DeepEmoCluster", "--corpus", prepared.corpus)
    prepared.refuses(result, "--unlabeled", "DEEPMI_UNLABELED", "--unlabeled-size 0")
    prepared.refuses(prepared.stage(2), "ResNetDeepEmoCluster_epoch2", "training_DeepEmoCluster.py")
    shutil.rmtree("NormTerm")
    for number in (1, 2, 3, 4):
        prepared.refuses(prepared.stage(number), "NormTerm", "norm_para.py")
    prepared.refuses(prepared.run("norm_para", "--corpus", "nowhere"), "nowhere", "no such folder")
    prepared.refuses(prepared.stage(0, "--labels", "x.csv"), "x.csv", "no such label file")
    (prepared.corpus / "Features").rename(prepared.corpus / "away")
    prepared.refuses(prepared.stage(0), "no such folder", "tools.extract_features")
    prepared.labels.unlink()
    prepared.refuses(prepared.stage(0), "labels_consensus", "labels_concensus", "--labels")


def cell(number, column, value):
    """A change of one cell of a label table, whose row 0 is the header."""

    def change(rows):
        rows[number][rows[0].index(column)] = value

    return change


def cells(*values):
    """A change of line 5, whose class becomes these values."""

    def change(rows):
        rows[4] = [rows[4][0], *values, *rows[4][2 : 8 * len(values)]]

    return change


def keep_first(split):
    """A change of a label table that moves all utterances of a split but its first into another."""

    def change(rows):
        for row in [row for row in rows if row[-1] == split][1:]:
            row[-1] = "Test2"

    return change


LABEL_TABLES = [  # (change of its rows, words of the message)
    (cell(0, "FileName", "Other"), ["no column FileName", "found", "Other"]),
    (cell(0, "Split_Set", "Other"), ["no column Split_Set", "found", "Other"]),
    (lambda rows: rows.__delitem__(slice(1, None)), ["no utterances"]),
    (lambda rows: rows.__delitem__(slice(1, 61)), ["no rows in split Train", "Test1 24"]),
    (cell(3, "EmoVal", "7.5"), ["EmoVal", "MSP-PODCAST_0002_0002.wav", "outside 1..7"]),
    (cell(3, "EmoVal", "0.99"), ["EmoVal", "MSP-PODCAST_0002_0002.wav", "outside 1..7"]),
    (cell(3, "EmoVal", "high"), ["EmoVal", "MSP-PODCAST_0002_0002.wav", "expected a number"]),
    (cell(5, "FileName", "MSP-PODCAST_0003_0003.wav"), ["MSP-PODCAST_0003_0003.wav", "duplicate"]),
    (cell(5, "FileName", "MSP-PODCAST_0003_0003.flac"), ["0003.wav", "share one feature file"]),
    (cells("Angry", "Sad"), ["line 5 has 9 fields, the header 8", "comma"]),
    (cells(), ["line 5 has 1 fields, the header 8"]),
    (lambda rows: [row.append("EmoVal ") for row in rows], ["column EmoVal", "more than once"]),
]


@pytest.mark.parametrize(("change", "words"), LABEL_TABLES, ids=[words[-1] for _, words in LABEL_TABLES])
def test_a_label_table_that_cannot_be_used(bench, change, words):
    bench.edit_labels(change)
    bench.refuses(bench.stage(0), *words)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("l.csv", text) for text in (b"", b"\xff\xfe\x00\x01", b'FileName,Split_Set\n"a.wav,Train\n', b"\0\0\0")),
        *(("l.json", text) for text in (b"", b"[]", b"{", b'{"a.wav": 3}', b'{"a.wav": {}, "a.wav": {}}')),
        ("l.json", b"[" * 100_000),
    ],
)
def test_a_label_file_without_a_table(bench, name, content):
    (bench.folder / name).write_bytes(content)
    bench.refuses(bench.stage(0, "--labels", name), name)


def test_labels_that_are_not_used_are_not_judged(trained):
    trained.edit_labels(cell(-1, "EmoVal", "hidden"))  # of Test1
    assert [trained.stage(number)[0] for number in (0, 2, 4)] == [0, 0, 2]
    trained.edit_labels(cell(0, "EmoVal", "Other"))
    trained.runs(0)


def in_labels(change):
    return lambda bench: bench.edit_labels(change)


def in_features(values, count=None):
    return lambda bench: [matfile.write_mat(file, "Audio_data", values[None]) for file in bench.feature_files[:count]]


def other_stats(bench):
    (bench.folder / "other").mkdir()
    utils.write_norm_stats(bench.folder / "other", (np.zeros(39), np.ones(39)), {"Val": (4, 1)})


def checkpoint_as(name):
    return lambda bench: shutil.copy(bench.ssl_checkpoint, f"Models/ResNetDeepEmoCluster_{name}.pth.tar")


def checkpoint_of(content):
    return lambda bench: torch.save(content, bench.ssl_checkpoint)


def nothing(bench):
    pass


def in_the_way(bench):
    (bench.folder / "file").touch()


SSL_CHECKPOINT = "Models/ResNetDeepEmoCluster_epoch2_batch16_5clusters_Val.pth.tar"
REFUSED = [  # (change of a bench on which stages 0 to 3 have run, stage, its flags, words of the message)
    (in_labels(cell(0, "EmoVal", "Other")), 1, "", ["no column EmoVal"]),
    (in_labels(keep_first("Development")), 1, "", ["all 1 EmoVal labels of Validation"]),
    (in_features(np.ones(12)), 1, "", ["12 features", "made for 40", "norm_para.py"]),
    (in_features(np.full(40, 1e200), 1), 0, "", ["too large", "1e+200"]),
    (nothing, 1, "-nc 61", ["-nc 61", "60 utterances"]),
    (nothing, 1, "-nc 55", ["-nc 55", "50 utterances"]),
    (nothing, 1, "--compile --device cpu", ["--compile", "CUDA GPU"]),
    (nothing, 3, "--compile --device cpu", ["--compile", "CUDA GPU"]),
    (nothing, 2, "--device tpu", ["tpu", "auto, cpu, cuda"]),
    (nothing, 2, "--device cuda:99999999999999999999", ["CUDA GPUs"]),
    (nothing, 4, "--label-scale 7 1", ["lowest label first"]),
    (nothing, 4, "--label-scale 1 inf", ["two numbers"]),
    (nothing, 4, "--split Test9", ["Test9", "Train 60", "Development 24", "Test1 24"]),
    (nothing, 3, "-nc 6", ["DeepMI_6clusters@_Val.json", "there are DeepMI_5clusters@_Val.json (-nc"]),
    (lambda bench: bench.metric.unlink(), 3, "", ["DeepMI_5clusters@_Val.json", "extract_DeepMI.py"]),
    (checkpoint_as("epoch2_batch16_7clusters_Val"), 2, "-nc 7", ["5 clusters", "-nc asks for 7"]),
    (checkpoint_as("epoch2_batch16_5clusters_Act"), 2, "-emo Act", ["trained for Val", "-emo asks for Act"]),
    (checkpoint_of({"state_dict": {"a": torch.ones(2)}}), 2, "", [SSL_CHECKPOINT, "a different network"]),
    (checkpoint_of([1, 2]), 2, "", [SSL_CHECKPOINT, "no state_dict"]),
    (nothing, 4, f"--model {SSL_CHECKPOINT}", ["not a regressor"]),
    (other_stats, 2, "--norm-dir other", ["40 features", "39"]),
    (other_stats, 4, "--norm-dir other", ["40 features", "39"]),
    (in_the_way, 0, "--norm-dir file/below", ["file/below", "can't be written"]),
    (in_the_way, 1, "--model-dir file/below", ["file/below", "can't be written"]),
    (in_the_way, 2, "--metric-dir file/below", ["file/below", "can't be written"]),
    (in_the_way, 3, "--model-dir file/below", ["file/below", "can't be written"]),
    (in_the_way, 4, "--results-dir file/below", ["file/below", "can't be written"]),
]


@pytest.mark.parametrize(("change", "stage", "flags", "words"), REFUSED, ids=[words[0] for *_, words in REFUSED])
def test_what_a_stage_cannot_use_is_refused_and_nothing_is_written(trained, change, stage, flags, words):
    def files():
        files = (file for file in trained.folder.rglob("*") if file.is_file() and file.suffix != ".lock")
        return {file for file in files if file.parent.name != "feature_cache"}

    change(trained)
    before = files()
    trained.refuses(trained.stage(stage, *flags.split()), *words)
    assert files() == before


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
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:150]), "damaged"),
        (lambda path: matfile.write_mat(path, "Audio_data", np.ones((1, 39))), "39 features"),
        (lambda path: matfile.write_mat(path, "Audio_data", np.full((1, 40), np.nan)), "every feature is NaN"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_bad_feature_file(trained, spoil, words):
    path = trained.feature_files[9]
    spoil(path)
    statistics = [file.read_bytes() for file in trained.folder.glob("NormTerm/*")]
    for result in (trained.stage(0), trained.stage(1, "-ep", 3)):
        trained.refuses(result, path.name, words)
    assert [file.read_bytes() for file in trained.folder.glob("NormTerm/*")] == statistics
    assert not list(trained.folder.rglob("*.npy")) and not list(trained.folder.rglob("*.tmp"))


@pytest.mark.parametrize(("what", "value"), [("means", np.inf), ("means", np.nan), ("stds", np.inf), ("stds", -1.0)])
def test_statistics_that_are_not_finite_or_negative(prepared, what, value):
    for name in ("feat", "val"):
        file = prepared.folder / "NormTerm" / f"{name}_norm_{what}.mat"
        good = file.read_bytes()
        matfile.write_mat(file, "normal_para", np.full((1, 40 if name == "feat" else 1), value))
        prepared.refuses(prepared.stage(1), f"statistics of {name}", "norm_para.py")
        file.write_bytes(good)


def test_a_checkpoint_that_is_damaged_or_missing(trained):
    for number, file, maker in ((2, trained.ssl_checkpoint, ""), (4, trained.regressor, "training_Curriculum.py")):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        trained.refuses(trained.stage(number), file.name, "damaged")
        file.unlink()
        trained.refuses(trained.stage(number), file.name, maker)


@pytest.mark.parametrize(
    "argv", ["-ep 0", "-nc -3", "-batch x", "-batch 1", "-emo Joy", "--seed -1", "--precision fp8"]
)
def test_an_argument_of_the_wrong_kind(bench, argv):
    code, _, err = bench.run("training_DeepEmoCluster", *argv.split())
    assert code == 2 and argv.split()[0] in err and "Traceback" not in err


def test_a_network_that_predicts_no_numbers(trained):
    for number, file, bias in (
        (4, trained.regressor, "dense_net.7.bias"),
        (2, trained.ssl_checkpoint, "emo_regressor.2.bias"),
    ):
        content = torch.load(file, weights_only=True)
        content.get("state_dict", content)[bias].fill_(float("nan"))
        torch.save(content, file)
        trained.refuses(trained.stage(number), file.name, "NaN or infinity")
    assert not list(trained.folder.glob("results/*"))


def test_a_test_of_one_utterance_says_what_its_ccc_is_worth(trained):
    trained.edit_labels(keep_first("Test1"))
    out, _ = trained.runs(4)
    assert "Val (CCC): 0.000" in out and "0 whatever is predicted" in out


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
