"""Bad input: one message that says what is wrong and what to do, exit status 2, nothing half written."""

import json

import numpy as np
import pytest
import torch
from conftest import read_rows, write_labels

import utils
from deepmi import features, matfile


@pytest.fixture
def rows(bench):
    return read_rows(bench.labels)


def rewrite(bench, rows):
    write_labels(bench.labels, rows[1:], rows[0])


def test_no_corpus_names_both_ways_and_the_demo(bench):
    for script in (
        "norm_para",
        "training_DeepEmoCluster",
        "extract_DeepMI",
        "training_Curriculum",
        "testing_Curriculum",
    ):
        more = ["--unlabeled-size", 0] if script == "training_DeepEmoCluster" else []
        bench.refuses(bench.run(script, *more), "--corpus", "DEEPMI_CORPUS", "make demo")


def test_no_unlabeled_set_names_every_way(bench):
    bench.stage(0)
    result = bench.run("training_DeepEmoCluster", "--corpus", bench.corpus)
    bench.refuses(result, "--unlabeled", "DEEPMI_UNLABELED", "--unlabeled-size 0")


def test_corpus_that_is_not_there(bench):
    bench.refuses(bench.run("norm_para", "--corpus", "nowhere"), "nowhere", "no such folder")


def test_missing_label_file_tells_both_spellings(bench):
    bench.labels.unlink()
    bench.refuses(bench.stage(0), "labels_consensus", "labels_concensus", "--labels")


def test_label_file_named_but_not_there(bench):
    bench.refuses(bench.stage(0, "--labels", "x.csv"), "x.csv", "no such label file")


def test_missing_feature_folder_tells_how_to_make_it(bench):
    (bench.corpus / "Features").rename(bench.corpus / "away")
    bench.refuses(bench.stage(0), "no such folder", "tools.extract_features")


@pytest.mark.parametrize("column", ["FileName", "Split_Set"])
def test_missing_column(bench, rows, column):
    rows[0][rows[0].index(column)] = "Other"
    rewrite(bench, rows)
    bench.refuses(bench.stage(0), f"no column {column}", "found", "Other")


def test_missing_attribute_column_where_it_is_asked_for(bench, rows):
    bench.stage(0)
    rows[0][rows[0].index("EmoVal")] = "Other"
    rewrite(bench, rows)
    bench.refuses(bench.stage(1), "no column EmoVal")


def test_unknown_split_shows_those_found_and_their_counts(trained):
    trained.refuses(trained.stage(4, "--split", "Test9"), "Test9", "Train 60", "Development 24", "Test1 24")


def test_no_training_rows(bench, rows):
    rewrite(bench, [rows[0]] + [row for row in rows[1:] if row[-1] != "Train"])
    bench.refuses(bench.stage(0), "no rows in split Train", "Test1 24")


def test_no_rows_at_all(bench, rows):
    rewrite(bench, rows[:1])
    bench.refuses(bench.stage(0), "no utterances")


@pytest.mark.parametrize(
    ("value", "words"), [("7.5", "outside 1..7"), ("0.99", "outside 1..7"), ("high", "expected a number")]
)
def test_labels_outside_the_scale_or_no_numbers(bench, rows, value, words):
    rows[3][rows[0].index("EmoVal")] = value
    rewrite(bench, rows)
    bench.refuses(bench.stage(0), "EmoVal", rows[3][0], words)


def test_labels_of_a_split_that_is_not_used_are_not_judged(trained, rows):
    rows[-1][rows[0].index("EmoVal")] = "hidden"
    assert rows[-1][-1] == "Test1"
    rewrite(trained, rows)
    assert [trained.stage(number)[0] for number in (0, 2, 4)] == [0, 0, 2]


def test_duplicate_file_names(bench, rows):
    rows[5][0] = rows[4][0]
    rewrite(bench, rows)
    bench.refuses(bench.stage(0), rows[4][0], "duplicate")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b'FileName,Split_Set\n"a.wav,Train\n', b"\0\0\0"])
def test_label_file_that_is_no_table(bench, content):
    bench.labels.write_bytes(content)
    bench.refuses(bench.stage(0), "labels_concensus.csv")


def test_ragged_rows_are_refused_by_line(bench, rows):
    rewrite(bench, [*rows[:4], [*rows[4][:1], "Angry", "Sad", *rows[4][2:]], *rows[5:]])  # an unquoted comma
    bench.refuses(bench.stage(0), "line 5 has 9 fields, the header 8", "comma")
    rewrite(bench, [*rows[:4], rows[4][:1], *rows[5:]])
    bench.refuses(bench.stage(0), "line 5 has 1 fields, the header 8")


def test_a_column_twice(bench, rows):
    rewrite(bench, [[*rows[0], "EmoVal "], *([*row, "4"] for row in rows[1:])])
    bench.refuses(bench.stage(0), "column EmoVal", "more than once")


def test_rows_without_a_split_are_told(bench, rows):
    rows[3][-1] = ""
    rewrite(bench, rows)
    code, out, err = bench.stage(0)
    assert code == 0 and f"1 rows have no Split_Set, the first {rows[3][0]}" in err and "59 training" in out


def test_two_recordings_of_one_feature_file(bench, rows):
    rows[5][0] = rows[4][0].replace(".wav", ".flac")
    rewrite(bench, rows)
    bench.refuses(bench.stage(0), rows[4][0], rows[5][0], "share one feature file")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a.wav": 3}', '{"a.wav": {}, "a.wav": {}}', "[" * 100000])
def test_label_json_that_is_no_label_file(bench, content):
    (bench.folder / "l.json").write_text(content)
    bench.refuses(bench.stage(0, "--labels", "l.json"), "l.json")


def test_missing_feature_files_are_counted_and_the_flag_is_named(bench):
    for path in bench.feature_files[:7]:
        path.unlink()
    first = bench.feature_files[0].stem
    bench.refuses(bench.stage(0), "7 of 60", "MSP-PODCAST_0004_0004.wav, ...", "--skip-missing")
    assert first not in bench.stage(0)[2]


def test_all_feature_files_missing_is_refused_even_when_skipping(bench):
    for path in bench.feature_files:
        path.unlink()
    bench.refuses(bench.stage(0, "--skip-missing"), "60 of 60")


BAD_FEATURES = {  # kind -> (what it does to a file, words of the message)
    "empty": (lambda path: path.write_bytes(b""), "empty (0 bytes)"),
    "damaged": (lambda path: path.write_bytes(path.read_bytes()[:150]), "damaged"),
    "key": (lambda path: matfile.write_mat(path, "Other", np.ones((1, 40))), "found Other"),
    "width": (lambda path: matfile.write_mat(path, "Audio_data", np.ones((1, 39))), "39 features"),
    "nan": (lambda path: matfile.write_mat(path, "Audio_data", np.full((1, 40), np.nan)), "every feature is NaN"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "hdf5": (lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF"), "v7.3"),
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


def test_features_of_another_width_than_the_norm_terms(bench):
    bench.stage(0)
    for path in bench.feature_files:
        matfile.write_mat(path, "Audio_data", np.ones((1, 12)))
    bench.refuses(bench.stage(1), "12 features", "made for 40", "norm_para.py")


def test_norm_terms_missing(bench):
    for number in (1, 2, 3, 4):
        bench.refuses(bench.stage(number), "NormTerm", "norm_para.py")


@pytest.mark.parametrize(("what", "value"), [("means", np.inf), ("means", np.nan), ("stds", np.inf), ("stds", -1.0)])
def test_norm_terms_that_are_no_norm_terms(bench, what, value):
    bench.stage(0)
    for name in ("feat", "val"):
        file = bench.folder / "NormTerm" / f"{name}_norm_{what}.mat"
        good = file.read_bytes()
        matfile.write_mat(file, "normal_para", np.full((1, 40 if name == "feat" else 1), value))
        bench.refuses(bench.stage(1), f"statistics of {name}", "norm_para.py")
        file.write_bytes(good)


def test_values_too_large_for_a_standard_deviation(bench):
    matfile.write_mat(bench.feature_files[4], "Audio_data", np.full((1, 40), 1e200))
    bench.refuses(bench.stage(0), "too large", "1e+200")
    assert not list(bench.folder.glob("NormTerm/*"))


def test_more_clusters_than_samples(bench):
    bench.stage(0)
    bench.refuses(bench.stage(1, "-nc", 61), "-nc 61", "60 utterances")
    bench.refuses(bench.stage(1, "-nc", 55), "-nc 55", "50 utterances")
    assert not list(bench.folder.glob("Models/*"))


def test_checkpoint_missing(bench):
    bench.stage(0)
    bench.refuses(bench.stage(2), "ResNetDeepEmoCluster_epoch2", "training_DeepEmoCluster.py")


def test_checkpoint_of_another_k_attribute_or_width(trained):
    models = trained.folder / "Models"
    for wrong in ("epoch2_batch16_7clusters_Val", "epoch2_batch16_5clusters_Act"):
        (models / f"ResNetDeepEmoCluster_{wrong}.pth.tar").write_bytes(trained.ssl_checkpoint.read_bytes())
    trained.refuses(trained.stage(2, "-nc", 7), "5 clusters", "-nc asks for 7")
    trained.refuses(trained.stage(2, "-emo", "Act"), "trained for Val", "-emo asks for Act")
    (trained.folder / "other").mkdir()
    utils.write_norm_stats(trained.folder / "other", (np.zeros(39), np.ones(39)), {"Val": (4, 1)})
    trained.refuses(trained.stage(2, "--norm-dir", "other"), "40 features", "39")
    trained.refuses(trained.stage(4, "--norm-dir", "other"), "40 features", "39")


def test_checkpoint_damaged_or_of_another_network(trained):
    content = trained.ssl_checkpoint.read_bytes()
    trained.ssl_checkpoint.write_bytes(content[: len(content) // 2])
    trained.refuses(trained.stage(2), trained.ssl_checkpoint.name, "damaged")
    torch.save({"state_dict": {"a": torch.ones(2)}}, trained.ssl_checkpoint)
    trained.refuses(trained.stage(2), trained.ssl_checkpoint.name, "different network")
    torch.save([1, 2], trained.ssl_checkpoint)
    trained.refuses(trained.stage(2), "no state_dict")


def test_regressor_missing_damaged_or_another(trained):
    trained.regressor.write_bytes(b"broken")
    trained.refuses(trained.stage(4), trained.regressor.name, "damaged")
    trained.regressor.unlink()
    trained.refuses(trained.stage(4), trained.regressor.name, "training_Curriculum.py")
    trained.refuses(trained.stage(4, "--model", trained.ssl_checkpoint), "not a regressor")


def test_metric_missing_or_for_other_files(trained):
    values = json.loads(trained.metric.read_text())
    first, second, *_ = values
    fewer = {name: value for name, value in values.items() if name not in (first, second)}
    trained.metric.write_text(json.dumps(fewer))
    trained.refuses(trained.stage(3), "lacks 2", first, "extract_DeepMI.py")
    trained.metric.write_text(json.dumps(values | {"stranger.wav": 1.0}))
    trained.refuses(trained.stage(3), "has 1 besides", "stranger.wav")
    trained.refuses(
        trained.stage(3, "-nc", 6), "DeepMI_6clusters@_Val.json", "there are DeepMI_5clusters@_Val.json (-nc"
    )
    trained.metric.unlink()
    trained.refuses(trained.stage(3), trained.metric.name, "extract_DeepMI.py")


@pytest.mark.parametrize("stage", [0, 1, 2, 3, 4])
def test_output_folder_that_cannot_be_written(trained, stage):
    (trained.folder / "file").write_text("in the way")
    flag = ("--norm-dir", "--model-dir", "--metric-dir", "--model-dir", "--results-dir")[stage]
    more = ["-ep", 3] if stage == 1 else []
    trained.refuses(trained.stage(stage, flag, "file/below", *more), "file/below", "can't be written")


def test_unknown_device(trained):
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


def test_label_scale_that_is_none(trained):
    trained.refuses(trained.stage(4, "--label-scale", 7, 1), "lowest label first")
    trained.refuses(trained.stage(4, "--label-scale", 1, "inf"), "two numbers")


def test_a_network_that_predicts_no_numbers(trained):
    weights = torch.load(trained.regressor, weights_only=True)
    weights["dense_net.7.bias"].fill_(float("nan"))
    torch.save(weights, trained.regressor)
    trained.refuses(trained.stage(4), trained.regressor.name, "NaN or infinity")
    content = torch.load(trained.ssl_checkpoint, weights_only=True)
    content["state_dict"]["emo_regressor.2.bias"].fill_(float("nan"))
    torch.save(content, trained.ssl_checkpoint)
    trained.refuses(trained.stage(2), trained.ssl_checkpoint.name, "NaN or infinity")
    assert not list(trained.folder.glob("results/*"))


def test_a_log_that_is_no_log_is_written_anew(trained):
    log = trained.folder / "Models/SimpleEmoRegressor_DeepMI@_Val.log.jsonl"
    for content in ("null\n1\n", "{", ""):
        log.write_text(content)
        assert trained.stage(3)[0] == 0
        assert json.loads(log.read_text().splitlines()[-1])["finished"]


@pytest.mark.parametrize(
    "argv",
    [
        ["-ep", "0"],
        ["-nc", "-3"],
        ["-batch", "x"],
        ["-batch", "1"],
        ["-emo", "Joy"],
        ["--seed", "-1"],
        ["--precision", "fp8"],
    ],
)
def test_argument_of_the_wrong_kind(bench, argv):
    code, _, err = bench.run("training_DeepEmoCluster", *argv)
    assert code == 2 and argv[0] in err and "Traceback" not in err


def keep_first(bench, rows, split):
    """Move all utterances of a split but its first into another."""
    first = next(row for row in rows if row[-1] == split)
    rewrite(bench, [row if row[-1] != split or row is first else [*row[:-1], "Test2"] for row in rows])


def test_a_validation_set_without_spread_is_refused_before_any_training(bench, rows):
    keep_first(bench, rows, "Development")
    bench.stage(0)
    bench.refuses(bench.stage(1), "all 1 EmoVal labels of Validation", "no epoch would be better")


def test_train_labels_without_spread_are_refused(bench, rows):
    keep_first(bench, rows, "Train")
    assert bench.stage(0)[0] == 0
    bench.refuses(bench.stage(1), "std 0", "Train labels the same")


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
