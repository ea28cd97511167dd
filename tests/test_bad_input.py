"""Bad input: one message that says what is wrong and what to do, exit status 2, nothing half written."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import STAGES, read_rows, write_labels

import utils
from deepmi import features, matfile


@pytest.fixture
def rows(bench):
    return read_rows(bench.labels)


def rewrite(bench, rows):
    write_labels(bench.labels, rows[1:], rows[0])


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


def changed(number, column, value):
    """A change of one cell of a label table, whose row 0 is the header."""

    def change(rows):
        rows[number][rows[0].index(column)] = value.format(*(row[0] for row in rows))

    return change


def ragged(cells):
    def change(rows):
        rows[4] = [rows[4][0], *cells, *rows[4][2 : 8 * len(cells)]]

    return change


LABEL_TABLES = {  # kind -> (change of its rows, words of the message)
    "no file names": (changed(0, "FileName", "Other"), ["no column FileName", "found", "Other"]),
    "no splits": (changed(0, "Split_Set", "Other"), ["no column Split_Set", "found", "Other"]),
    "no rows": (lambda rows: rows.__delitem__(slice(1, None)), ["no utterances"]),
    "no Train": (lambda rows: rows.__delitem__(slice(1, 61)), ["no rows in split Train", "Test1 24"]),
    "above the scale": (changed(3, "EmoVal", "7.5"), ["EmoVal", "MSP-PODCAST_0002_0002.wav", "outside 1..7"]),
    "below the scale": (changed(3, "EmoVal", "0.99"), ["EmoVal", "MSP-PODCAST_0002_0002.wav", "outside 1..7"]),
    "a word": (changed(3, "EmoVal", "high"), ["EmoVal", "MSP-PODCAST_0002_0002.wav", "expected a number"]),
    "duplicate": (changed(5, "FileName", "{4}"), ["MSP-PODCAST_0003_0003.wav", "duplicate"]),
    "one feature file": (changed(5, "FileName", "MSP-PODCAST_0003_0003.flac"), ["0003.wav", "share one feature file"]),
    "a comma": (ragged(["Angry", "Sad"]), ["line 5 has 9 fields, the header 8", "comma"]),
    "a short line": (ragged([]), ["line 5 has 1 fields, the header 8"]),
    "a column twice": (lambda rows: [row.append("EmoVal ") for row in rows], ["column EmoVal", "more than once"]),
}


@pytest.mark.parametrize("kind", LABEL_TABLES)
def test_a_label_table_that_cannot_be_used(bench, rows, kind):
    change, words = LABEL_TABLES[kind]
    change(rows)
    rewrite(bench, rows)
    bench.refuses(bench.stage(0), *words)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b'FileName,Split_Set\n"a.wav,Train\n', b"\0\0\0"])
def test_a_label_file_that_is_no_table(bench, content):
    bench.labels.write_bytes(content)
    bench.refuses(bench.stage(0), "labels_concensus.csv")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a.wav": 3}', '{"a.wav": {}, "a.wav": {}}', "[" * 100000])
def test_a_json_file_without_labels(bench, content):
    (bench.folder / "l.json").write_text(content)
    bench.refuses(bench.stage(0, "--labels", "l.json"), "l.json")


def test_the_attribute_is_missed_only_where_it_is_asked_for(prepared, rows):
    rows[0][rows[0].index("EmoVal")] = "Other"
    rewrite(prepared, rows)
    assert prepared.stage(0)[0] == 0
    prepared.refuses(prepared.stage(1), "no column EmoVal")


def test_labels_of_a_split_that_is_not_used_are_not_judged(trained, rows):
    trained.refuses(trained.stage(4, "--split", "Test9"), "Test9", "Train 60", "Development 24", "Test1 24")
    rows[-1][rows[0].index("EmoVal")] = "hidden"
    assert rows[-1][-1] == "Test1"
    rewrite(trained, rows)
    assert [trained.stage(number)[0] for number in (0, 2, 4)] == [0, 0, 2]


def test_rows_without_a_split_are_reported(bench, rows):
    rows[3][-1] = ""
    rewrite(bench, rows)
    code, out, err = bench.stage(0)
    assert code == 0 and f"1 rows have no Split_Set, the first {rows[3][0]}" in err and "59 training" in out


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


BAD_FEATURES = {  # kind -> (what it does to a file, words of the message)
    "damaged": (lambda path: path.write_bytes(path.read_bytes()[:150]), "damaged"),
    "width": (lambda path: matfile.write_mat(path, "Audio_data", np.ones((1, 39))), "39 features"),
    "nan": (lambda path: matfile.write_mat(path, "Audio_data", np.full((1, 40), np.nan)), "every feature is NaN"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
}


@pytest.mark.parametrize("kind", BAD_FEATURES)
def test_bad_feature_file(trained, kind):
    spoil, words = BAD_FEATURES[kind]
    path = trained.feature_files[9]
    spoil(path)
    statistics = [file.read_bytes() for file in trained.folder.glob("NormTerm/*")]
    for result in (trained.stage(0), trained.stage(1, "-ep", 3)):
        trained.refuses(result, path.name, words)
    assert [file.read_bytes() for file in trained.folder.glob("NormTerm/*")] == statistics
    assert not list(trained.folder.rglob("*.npy")) and not list(trained.folder.rglob("*.tmp"))


def test_features_of_another_width_than_the_statistics(prepared):
    for path in prepared.feature_files:
        matfile.write_mat(path, "Audio_data", np.ones((1, 12)))
    prepared.refuses(prepared.stage(1), "12 features", "made for 40", "norm_para.py")


@pytest.mark.parametrize(("what", "value"), [("means", np.inf), ("means", np.nan), ("stds", np.inf), ("stds", -1.0)])
def test_statistics_that_are_not_finite_or_negative(prepared, what, value):
    for name in ("feat", "val"):
        file = prepared.folder / "NormTerm" / f"{name}_norm_{what}.mat"
        good = file.read_bytes()
        matfile.write_mat(file, "normal_para", np.full((1, 40 if name == "feat" else 1), value))
        prepared.refuses(prepared.stage(1), f"statistics of {name}", "norm_para.py")
        file.write_bytes(good)


def test_values_too_large_for_a_standard_deviation(bench):
    matfile.write_mat(bench.feature_files[4], "Audio_data", np.full((1, 40), 1e200))
    bench.refuses(bench.stage(0), "too large", "1e+200")
    assert not list(bench.folder.glob("NormTerm/*"))


def test_more_clusters_than_samples(prepared):
    prepared.refuses(prepared.stage(1, "-nc", 61), "-nc 61", "60 utterances")
    prepared.refuses(prepared.stage(1, "-nc", 55), "-nc 55", "50 utterances")
    assert not list(prepared.folder.glob("Models/*"))


def test_a_checkpoint_of_other_settings_or_of_another_network(trained):
    models = trained.folder / "Models"
    for wrong in ("epoch2_batch16_7clusters_Val", "epoch2_batch16_5clusters_Act"):
        (models / f"ResNetDeepEmoCluster_{wrong}.pth.tar").write_bytes(trained.ssl_checkpoint.read_bytes())
    trained.refuses(trained.stage(2, "-nc", 7), "5 clusters", "-nc asks for 7")
    trained.refuses(trained.stage(2, "-emo", "Act"), "trained for Val", "-emo asks for Act")
    (trained.folder / "other").mkdir()
    utils.write_norm_stats(trained.folder / "other", (np.zeros(39), np.ones(39)), {"Val": (4, 1)})
    for number in (2, 4):
        trained.refuses(trained.stage(number, "--norm-dir", "other"), "40 features", "39")
    for content, words in (({"state_dict": {"a": torch.ones(2)}}, "a different network"), ([1, 2], "no state_dict")):
        torch.save(content, trained.ssl_checkpoint)
        trained.refuses(trained.stage(2), trained.ssl_checkpoint.name, words)


def test_a_checkpoint_that_is_damaged_or_missing(trained):
    for number, file, maker in ((2, trained.ssl_checkpoint, ""), (4, trained.regressor, "training_Curriculum.py")):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        trained.refuses(trained.stage(number), file.name, "damaged")
        file.unlink()
        trained.refuses(trained.stage(number), file.name, maker)


def test_a_metric_that_is_missing_or_of_another_k(trained):
    words = "DeepMI_6clusters@_Val.json", "there are DeepMI_5clusters@_Val.json (-nc"
    trained.refuses(trained.stage(3, "-nc", 6), *words)
    trained.metric.unlink()
    trained.refuses(trained.stage(3), trained.metric.name, "extract_DeepMI.py")


@pytest.mark.parametrize("stage", [0, 1, 2, 3, 4])
def test_output_folder_that_cannot_be_written(trained, stage):
    (trained.folder / "file").write_text("in the way")
    flag = ("--norm-dir", "--model-dir", "--metric-dir", "--model-dir", "--results-dir")[stage]
    more = ["-ep", 3] if stage == 1 else []
    trained.refuses(trained.stage(stage, flag, "file/below", *more), "file/below", "can't be written")


def test_an_unknown_device_and_a_scale_that_is_none(trained):
    trained.refuses(trained.stage(4, "--label-scale", 7, 1), "lowest label first")
    trained.refuses(trained.stage(4, "--label-scale", 1, "inf"), "two numbers")
    trained.refuses(trained.stage(2, "--device", "tpu"), "tpu", "auto, cpu, cuda")
    trained.refuses(trained.stage(2, "--device", "cuda:99999999999999999999"), "CUDA GPUs")
    if not torch.cuda.is_available():
        trained.refuses(trained.stage(2, "--device", "cuda:3"), "cuda:3", "0 CUDA GPUs")


@pytest.mark.parametrize("stage", [1, 3])
def test_compile_without_a_gpu(bench, stage):
    bench.refuses(bench.stage(stage, "--compile", "--device", "cpu"), "--compile", "CUDA GPU")


def test_damaged_resume_file(trained):
    resume = trained.regressor.with_name(trained.regressor.name + ".resume")
    for content in (b"broken", trained.regressor.read_bytes()):
        resume.write_bytes(content)
        trained.refuses(trained.stage(3), resume.name, "--no-resume")
    assert trained.stage(3, "--no-resume")[0] == 0 and not resume.exists()


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


def test_a_log_that_is_no_log_is_written_anew(trained):
    log = trained.folder / "Models/SimpleEmoRegressor_DeepMI@_Val.log.jsonl"
    for content in ("null\n1\n", "{", ""):
        log.write_text(content)
        assert trained.stage(3)[0] == 0
        assert json.loads(log.read_text().splitlines()[-1])["finished"]


@pytest.mark.parametrize(
    "argv", ["-ep 0", "-nc -3", "-batch x", "-batch 1", "-emo Joy", "--seed -1", "--precision fp8"]
)
def test_an_argument_of_the_wrong_kind(bench, argv):
    code, _, err = bench.run("training_DeepEmoCluster", *argv.split())
    assert code == 2 and argv.split()[0] in err and "Traceback" not in err


def keep_first(bench, rows, split):
    """Move all utterances of a split but its first into another."""
    first = next(row for row in rows if row[-1] == split)
    rewrite(bench, [row if row[-1] != split or row is first else [*row[:-1], "Test2"] for row in rows])


@pytest.mark.parametrize(
    ("split", "words"), [("Development", "all 1 EmoVal labels of Validation"), ("Train", "Train labels the same")]
)
def test_labels_without_spread_are_refused_before_any_training(bench, rows, split, words):
    keep_first(bench, rows, split)
    assert bench.stage(0)[0] == 0
    bench.refuses(bench.stage(1), words)


def test_a_test_of_one_utterance_says_what_its_ccc_is_worth(trained, rows):
    keep_first(trained, rows, "Test1")
    code, out, _ = trained.stage(4)
    assert code == 0 and "Val (CCC): 0.000" in out and "0 whatever is predicted" in out


def test_features_that_are_all_the_same_leave_one_cluster(bench):
    for file in bench.feature_files:
        matfile.write_mat(file, features.FEATURE_KEY, np.arange(40.0)[None])
    for number in range(5):
        code, _, err = bench.stage(number, *(["--unlabeled-size", 0] if number == 1 else []))
        assert code == 0, err
        assert ("one value for all 60 utterances" in err) == (number in (2, 3))
    out = bench.stage(2)[1]
    assert "I(X;Y)  = 0.00000" in out and "H(X)    = 0.00000" in out


@pytest.mark.parametrize("batch", [59, 5000])
def test_a_last_batch_of_one_and_a_batch_larger_than_the_set(trained, batch):
    for number in (1, 3):
        code, _, err = trained.stage(number, "-batch", batch)
        assert code == 0, err
