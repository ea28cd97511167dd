"""Other corpora brought into the project's layout, from small files in the formats as distributed."""

import json
import os

import numpy as np
import pytest
import soundfile
from conftest import read_rows, voice

import utils
from deepmi import features, matfile
from deepmi.process import UserError
from tools import corpora

RATE = 16000
TOOL = "tools.prepare_corpus"


def clip(path, seconds=0.5, seed=0):
    """A noise of some length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.05, int(RATE * seconds)).clip(-1, 1), RATE)


def labels(out):
    """Rows of a prepared corpus by file name."""
    return utils.read_labels(out / "Labels" / "labels_consensus.csv").set_index("FileName")


@pytest.fixture
def table(tmp_path):
    """Twelve clips of six speakers, in a folder each; a table with semicolons."""
    lines = ["path;act;who;part"]
    for speaker in range(6):
        for number in range(2):
            clip(tmp_path / f"clips/s{speaker}/{number}.wav", seed=speaker)
            part = ("train", "dev", "test")[speaker % 3]
            lines.append(f"s{speaker}/{number}.wav;{10 * speaker + number};s{speaker};{part}")
    file = tmp_path / "table.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def csv_argv(table, *more):
    """Arguments for `table`, without features."""
    argv = ["csv", table, "--audio", table.parent / "clips", "--out", table.parent / "out", "--file-column", "path"]
    return [*argv, "--arousal-column", "act", "--label-scale", 0, 100, "--no-features", *more]


def test_a_table_becomes_a_corpus_that_the_stages_read(table, bench):
    code, out, err = bench.run(TOOL, *csv_argv(table)[:-1], "--split-column", "part", "--set", "eGeMAPSv02")
    assert code == 0, err
    assert "12 utterances" in out and "Train: 4 utterances" in out and "from 0-100 to 1-7" in out
    found = labels(table.parent / "out")
    assert found.loc["s3_1.wav", "EmoAct"] == "2.86" and found.loc["s3_1.wav", "Split_Set"] == "Train"
    assert sorted(set(found["Split_Set"])) == ["Test1", "Train", "Validation"]
    feature = table.parent / "out/Features/eGeMAPSv02/feat_mat/s3_1.mat"
    assert features.read_feature(feature).size == 88
    assert bench.run("norm_para", "--corpus", table.parent / "out")[0] == 0


def test_the_same_command_again_changes_nothing(table, bench):
    bench.run(TOOL, *csv_argv(table))
    before = (table.parent / "out/Labels/labels_consensus.csv").read_bytes()
    assert bench.run(TOOL, *csv_argv(table))[0] == 0
    assert (table.parent / "out/Labels/labels_consensus.csv").read_bytes() == before


def test_what_would_fail_late_is_refused_before_anything_is_written(table, bench):
    argv = csv_argv(table)
    bench.refuses(bench.run(TOOL, *argv[:-1], "--set", "IS99"), "IS99")
    bench.refuses(bench.run(TOOL, *argv, "--norm-dir", "NormTerm"), "no rows in split Train")
    assert not (table.parent / "out").exists()


def test_other_flags_do_not_replace_what_was_prepared(table, bench):
    assert bench.run(TOOL, *csv_argv(table, "--split-column", "part"))[0] == 0
    before = (table.parent / "out/Labels/labels_consensus.csv").read_bytes()
    bench.refuses(bench.run(TOOL, *csv_argv(table)), "split_column was part", "--replace")
    bench.refuses(bench.run(TOOL, *csv_argv(table, "--split-column", "part", "--flip-arousal")), "flip_arousal")
    assert (table.parent / "out/Labels/labels_consensus.csv").read_bytes() == before
    assert bench.run(TOOL, *csv_argv(table, "--split-column", "part", "--workers", 1, "--copy"))[0] == 0


def test_norm_terms_can_be_made_at_once(table, bench):
    argv = [*csv_argv(table)[:-1], "--split-column", "part", "--set", "eGeMAPSv02"]
    assert bench.run(TOOL, *argv, "--norm-dir", "at_once")[0] == 0
    assert bench.run("norm_para", "--corpus", table.parent / "out")[0] == 0
    assert features.read_feature_set(bench.folder / "at_once") == "eGeMAPSv02"
    for path in (bench.folder / "NormTerm").iterdir():
        assert path.read_bytes() == (bench.folder / "at_once" / path.name).read_bytes()


def test_recordings_can_be_copied(table, bench):
    assert bench.run(TOOL, *csv_argv(table, "--copy"))[0] == 0
    copied = table.parent / "out/Audios/s0_0.wav"
    assert not copied.is_symlink() and copied.read_bytes() == (table.parent / "clips/s0/0.wav").read_bytes()


def test_without_splits_all_is_test1_and_without_speakers_all_are_unknown(table, bench):
    bench.run(TOOL, *csv_argv(table))
    found = labels(table.parent / "out")
    assert set(found["Split_Set"]) == {"Test1"} and set(found["SpkrID"]) == {"Unknown"}
    assert set(found["EmoVal"]) == {""}
    mark = json.loads((table.parent / "out/Labels/prepared.json").read_text())
    assert mark["label_scale"] == [0, 100]


@pytest.mark.parametrize("seed", range(5))
def test_splits_by_speaker_are_disjoint_seeded_and_of_the_fractions(table, bench, seed):
    argv = csv_argv(table, "--speaker-column", "who", "--split-by-speaker", 0.5, 0.2, 0.3, "--seed", seed)
    assert bench.run(TOOL, *argv)[0] == 0
    first = labels(table.parent / "out")
    assert (first.groupby("SpkrID")["Split_Set"].nunique() == 1).all()
    assert first["Split_Set"].value_counts().to_dict() == {"Train": 6, "Test1": 4, "Validation": 2}
    assert bench.run(TOOL, *argv)[0] == 0
    assert labels(table.parent / "out").equals(first)


def test_three_speakers_give_a_split_each():
    import pandas as pd

    rows = pd.DataFrame({"FileName": list("uvwxyz"), "SpkrID": list("aabbcc")})
    assert set(corpora.split_by_speaker(rows, (0.9, 0.05, 0.05), 1, "t")) == {"Train", "Validation", "Test1"}


def test_the_audio_may_have_another_ending_and_lie_deeper(tmp_path, bench):
    clip(tmp_path / "clips/deep/er/a.flac")
    clip(tmp_path / "clips/b.wav")
    table = tmp_path / "t.csv"
    table.write_text("path,act\na.wav,1\nb,5\n")
    assert bench.run(TOOL, *csv_argv(table))[0] == 0
    assert list(labels(tmp_path / "out").index) == ["a.wav", "b.wav"]
    assert (tmp_path / "out/Audios/a.flac").resolve() == tmp_path / "clips/deep/er/a.flac"


def test_bad_tables_are_refused(table, bench):
    def refuses(text, *words, more=()):
        table.write_text(text)
        bench.refuses(bench.run(TOOL, *csv_argv(table), *more), *words)

    refuses("path;act\ns0/0.wav;113\n", "EmoAct", "113 of 0.wav", "0-100")
    refuses("path;act\ns0/0.wav;loud\n", "'loud'", "expected a number")
    refuses("path;acts\ns0/0.wav;1\n", "no column act", "acts")
    refuses("path;act\nnone.wav;1\ns0/0.wav;1\n", "1 of 2 recordings", "none.wav", "--skip-missing")
    refuses("path;act\n;1\n", "names no file")
    refuses("path;act\n", "no rows")
    refuses("", "empty")
    refuses("path;act\n0.wav;1\n", "with their folders")
    refuses("path;act\ns0/0.wav;1\ns0/0.wav;2\n", "one recording")
    refuses(
        "path;act;w\ns0/0.wav;1;\n", "no speaker", more=["--speaker-column", "w", "--split-by-speaker", 0.6, 0.2, 0.2]
    )
    refuses("path;act\ns0/0.wav;1\n", "sum to 1", more=["--split-by-speaker", 0.6, 0.2, 0.3])
    refuses("path;act\ns0/0.wav;1\n", "lowest label first", more=["--label-scale", 5, 1])
    table.write_text("path;act\ns0/0.wav;1\n")
    no_attribute = [argument for argument in csv_argv(table) if argument not in ("--arousal-column", "act")]
    bench.refuses(bench.run(TOOL, *no_attribute), "--valence-column")
    foreign = table.parent / "out/Labels"
    foreign.mkdir(parents=True)
    (foreign / "labels_consensus.csv").write_text("mine")
    bench.refuses(bench.run(TOOL, *csv_argv(table)), "did not write")
    assert (foreign / "labels_consensus.csv").read_text() == "mine"


def test_missing_recordings_can_be_left_out(table, bench):
    table.write_text("path;act\nnone.wav;1\ns0/0.wav;50\n")
    code, _, err = bench.run(TOOL, *csv_argv(table, "--skip-missing"))
    assert code == 0 and "1 of 2 recordings" in err
    assert labels(table.parent / "out")["EmoAct"].to_dict() == {"0.wav": "4"}


IEMOCAP_FILE = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 3.5000, 1.5000]
C-E2:\tNeutral;\t()
C-F1:\tNeutral;\t()
A-E3:\tval  3; act 2; dom  2;\t()
A-E4:\tval 2; act 5; dom NaN;\t(mumbled)
A-F1:\tval 5; act 5; dom  5;\t()

[10.0100  -  11.3925]\tSes01F_impro01_M001\tang\t[1.0000, 5.0000, NaN]
A-E3:\tval 1; act 5; dom  ;\t()
% [1.0 - 2.0]\tSes01F_impro01_F009\tneu\t[2.5000, 3.5000, 1.5000]
"""


def test_iemocap_as_distributed(tmp_path, bench):
    root = tmp_path / "IEMOCAP_full_release"
    evaluation = root / "Session1/dialog/EmoEvaluation"
    (evaluation / "Self-evaluation").mkdir(parents=True)
    (evaluation / "Ses01F_impro01.txt").write_text(IEMOCAP_FILE)
    (evaluation / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    (evaluation / "Self-evaluation/Ses01F_impro01_f.txt").write_text(
        "[0.0 - 1.0]\tSes01F_impro01_F000\tang\t[5, 5, 5]\n"
    )
    for turn in ("F000", "M001"):
        clip(root / f"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_{turn}.wav")
    clip(root / "Session1/sentences/wav/Ses01F_impro01/._Ses01F_impro01_F000.wav")
    code, _, err = bench.run(TOOL, "iemocap", root, "--out", tmp_path / "out", "--no-features")
    assert code == 0, err
    found = labels(tmp_path / "out")
    # V, A, D: 2.5, 3.5, 1.5 of 1..5
    first = found.loc["Ses01F_impro01_F000.wav"]
    assert first[["EmoVal", "EmoAct", "EmoDom"]].tolist() == ["3.25", "4.75", "1.75"]
    assert first[["EmoClass", "SpkrID", "Gender", "Split_Set"]].tolist() == ["N", "Ses01F", "Female", "Test1"]
    second = found.loc["Ses01F_impro01_M001.wav"]
    assert second[["EmoVal", "EmoAct", "EmoDom", "SpkrID", "Gender"]].tolist() == ["1", "7", "", "Ses01M", "Male"]
    assert len(found) == 2
    ratings = utils.read_detailed_labels(tmp_path / "out/Labels/labels_detailed.csv")
    assert ratings["Worker"].tolist() == ["E3", "E4", "E3"]  # not F1: an actor's own
    assert ratings["EmoAct"].tolist() == [2.5, 7.0, 7.0]
    assert np.isnan(ratings["EmoDom"]).tolist() == [False, True, True]


IMPROV_FILE = """UTD-IMPROV-S01A-F01-P-FM01.avi; A; A:1.5; V:2.0;  D:3.0 ; N:4.0;
ANON1;  Angry; Frustrated, Other; A:1.000000; V:2.000000; D:3.000000; N:4.0;
ANON2; Angry; ; A:2.000000; V:2.000000; D:NaN; N:4.0;

UTD-IMPROV-S02A-M03-R-FM02.avi; S;  A:4.5; V:2.0; D:NaN ; N:4.0;
"""


@pytest.mark.parametrize("spelling", ["Evalution.txt", "Evaluation.txt"])
def test_msp_improv_as_distributed_and_its_arousal_turned_round(tmp_path, bench, spelling):
    root = tmp_path / "MSP-IMPROV"
    root.mkdir()
    (root / spelling).write_text(IMPROV_FILE)
    for name in ("S01A-F01-P-FM01", "S02A-M03-R-FM02"):
        clip(root / f"Audio/session1/{name[:4]}/P/MSP-IMPROV-{name}.wav")
    argv = ["msp-improv", root, "--out", tmp_path / "out", "--no-features"]
    code, out, _ = bench.run(TOOL, *argv)
    assert code == 0
    assert "mean arousal of anger 1.75" in out and "--flip-arousal" in out
    found = labels(tmp_path / "out")
    angry = found.loc["MSP-IMPROV-S01A-F01-P-FM01.wav"]
    assert angry[["EmoAct", "EmoVal", "EmoDom", "SpkrID"]].tolist() == ["1.75", "2.5", "4", "F01"]
    assert found.loc["MSP-IMPROV-S02A-M03-R-FM02.wav", ["EmoDom", "SpkrID", "Gender"]].tolist() == ["", "M03", "Male"]
    code, out, _ = bench.run(TOOL, *argv, "--flip-arousal", "--replace")
    assert code == 0 and "seems to run" not in out
    assert labels(tmp_path / "out").loc["MSP-IMPROV-S01A-F01-P-FM01.wav", "EmoAct"] == "6.25"
    ratings = utils.read_detailed_labels(tmp_path / "out/Labels/labels_detailed.csv")
    assert ratings["EmoAct"].tolist() == [7.0, 5.5]
    assert ratings["EmoClass_Second"].tolist() == ["Frustrated, Other", ""]


def test_msp_podcast_gets_its_features_in_place(tmp_path, bench):
    root = tmp_path / "podcast"
    clip(root / "Audio/MSP-PODCAST_0001_0001.wav")
    (root / "labels").mkdir()
    file = root / "labels/labels_concensus.csv"
    file.write_text("FileName,EmoClass,EmoAct,EmoVal,EmoDom\nMSP-PODCAST_0001_0001.wav,N,4,4,4\n")
    bench.refuses(bench.run(TOOL, "msp-podcast", root, "--set", "eGeMAPSv02"), "no Split_Set", "Partitions.txt")
    (root / "Partitions.txt").write_text("Test2; MSP-PODCAST_0001_0001.wav\n")
    before = file.read_bytes()
    code, out, err = bench.run(TOOL, "msp-podcast", root, "--out", tmp_path / "out", "--set", "eGeMAPSv02")
    assert code == 0, err
    assert "Partitions.txt" in out and "Test2: 1 utterance," in out
    assert labels(tmp_path / "out")["Split_Set"].tolist() == ["Test2"]
    file.write_text("FileName,EmoClass,EmoAct,EmoVal,EmoDom,Split_Set\nMSP-PODCAST_0001_0001.wav,N,4,4,4,Train\n")
    before = file.read_bytes()
    assert bench.run(TOOL, "msp-podcast", root, "--set", "eGeMAPSv02")[0] == 0
    assert file.read_bytes() == before and (root / "Features/eGeMAPSv02/feat_mat/MSP-PODCAST_0001_0001.mat").is_file()


def test_raters_become_consensus_labels(tmp_path, bench):
    for name in ("a", "b"):
        clip(tmp_path / f"clips/{name}.wav")
    detailed = tmp_path / "labels_detailed.csv"
    detailed.write_text(
        "FileName,EmoDetail\n"
        "a.wav,W1; Happy; ; A:1; V:2; D:nan;\n"
        "a.wav,W2; Happy; ; A:3; V:2; D:nan;\n"
        "a.wav,W3; Sad; ; A:5; V:nan; D:nan;\n"
        "b.wav,W1; Sad; ; A:4; V:4; D:4;\n"
    )
    argv = ["raters", detailed, "--audio", tmp_path / "clips", "--out", tmp_path / "out", "--label-scale", 1, 5]
    assert bench.run(TOOL, *argv, "--no-features", "--min-raters", 2)[0] == 0
    header, *rows = read_rows(tmp_path / "out/Labels/labels_consensus.csv")
    first, second = (dict(zip(header, row)) for row in rows)
    assert (first["EmoAct"], first["EmoAct_n"], first["EmoClass"], first["EmoDom"]) == ("4", "3", "Happy", "")
    assert float(first["EmoAct_std"]) == pytest.approx(np.std([1, 3, 5]) * 6 / 4)
    assert (second["EmoAct"], second["EmoAct_n"]) == ("", "1")


# ---------------------------------------------------------------------------------------------------------------------
# What tables hold


def test_labels_a_little_outside_the_scale_come_to_its_end(table, bench):
    table.write_text("path;act\ns0/0.wav;-12.5\ns0/1.wav;101\ns1/0.wav;50\n")
    code, _, err = bench.run(TOOL, *csv_argv(table))
    assert code == 0 and "2 labels of EmoAct outside" in err and "0.wav -12.5" in err
    assert labels(table.parent / "out")["EmoAct"].tolist() == ["1", "7", "4"]


def test_iemocaps_labels_of_five_and_a_half_come_to_the_end_of_the_scale(tmp_path, bench):
    evaluation = tmp_path / "iemocap/Session1/dialog/EmoEvaluation"
    evaluation.mkdir(parents=True)
    text = IEMOCAP_FILE.replace("2.5000, 3.5000, 1.5000", "5.5000, 3.5000, 0.5000")
    (evaluation / "Ses01F_impro01.txt").write_text(text)
    for turn in ("F000", "M001"):
        clip(tmp_path / f"iemocap/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_{turn}.wav")
    code, _, err = bench.run(TOOL, "iemocap", tmp_path / "iemocap", "--out", tmp_path / "out", "--no-features")
    assert code == 0 and "Ses01F_impro01_F000.wav 5.5" in err
    first = labels(tmp_path / "out").loc["Ses01F_impro01_F000.wav"]
    assert first[["EmoVal", "EmoAct", "EmoDom"]].tolist() == ["7", "4.75", "1"]


def test_a_rating_of_six_behind_iemocaps_five_and_a_half_is_set_to_the_end_too(tmp_path, bench):
    evaluation = tmp_path / "iemocap/Session1/dialog/EmoEvaluation"
    evaluation.mkdir(parents=True)
    lines = ["[0.1 - 0.9]\tSes01F_impro01_F000\thap\t[5.5000, 3.0000, 3.0000]"]
    lines += [f"A-E{rater}:\tval  {value}; act  3; dom  3;\t()" for rater, value in ((1, 5), (2, 6))]
    (evaluation / "Ses01F_impro01.txt").write_text("\n".join(lines) + "\n")
    clip(tmp_path / "iemocap/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav")
    code, _, err = bench.run(TOOL, "iemocap", tmp_path / "iemocap", "--out", tmp_path / "out", "--no-features")
    assert code == 0 and "Ses01F_impro01_F000.wav 6" in err
    ratings = utils.read_detailed_labels(tmp_path / "out/Labels/labels_detailed.csv")
    assert ratings["EmoVal"].tolist() == [7, 7]


def test_many_labels_outside_the_scale_mean_another_scale(table, bench):
    labels = [101] * 11 + [50]
    paths = [f"s{speaker}/{number}.wav" for speaker in range(6) for number in range(2)]
    table.write_text("\n".join(["path;act", *(f"{path};{label}" for path, label in zip(paths, labels))]))
    bench.refuses(bench.run(TOOL, *csv_argv(table)), "11 of 12 labels", "right scale")


def test_raters_a_little_outside_the_scale_count_as_its_end(tmp_path, bench):
    clip(tmp_path / "clips/a.wav")
    detailed = tmp_path / "labels_detailed.csv"
    detailed.write_text("FileName,EmoDetail\na.wav,W1; N; ; A:5.5; V:2; D:3;\na.wav,W2; N; ; A:4; V:2; D:3;\n")
    argv = ["raters", detailed, "--audio", tmp_path / "clips", "--out", tmp_path / "out", "--label-scale", 1, 5]
    code, _, err = bench.run(TOOL, *argv, "--no-features")
    assert code == 0 and "a.wav 5.5" in err
    assert float(labels(tmp_path / "out").loc["a.wav", "EmoAct"]) == pytest.approx(1 + 3.5 * 6 / 4)


@pytest.mark.parametrize("word", ["", "nan", "NaN", "None", "null", "N/A", "<NA>", "-", "unknown"])
def test_rows_without_a_split_or_speaker_are_not_given_one(table, bench, word):
    rows = f"s0/0.wav;1;{word};train\ns1/0.wav;2;s1;{word}\ns2/0.wav;3;s2;test\n"
    table.write_text("path;act;who;part\n" + rows)
    argv = csv_argv(table, "--speaker-column", "who", "--split-column", "part")
    code, out, err = bench.run(TOOL, *argv)
    assert code == 0 and "1 of 3 rows without a split (s1/0.wav)" in err
    found = labels(table.parent / "out")
    assert found["Split_Set"].to_dict() == {"s0_0.wav": "Train", "s2_0.wav": "Test1"}
    assert found["SpkrID"].tolist() == ["Unknown", "s2"] and "1 utterance of unknown" in out
    table.write_text(f"path;act;part\ns0/0.wav;1;{word}\n")
    bench.refuses(bench.run(TOOL, *csv_argv(table, "--split-column", "part", "--replace")), "no row has a split")


def test_no_split_is_drawn_of_unknown_speakers(table, bench):
    rows = "".join(f"s{n}/0.wav;1;{who}\n" for n, who in enumerate(("1", "2", "3", "nan", "None", "Unknown")))
    table.write_text("path;act;who\n" + rows)
    argv = csv_argv(table, "--speaker-column", "who", "--split-by-speaker", 0.5, 0.25, 0.25)
    bench.refuses(bench.run(TOOL, *argv), "3 of 6 rows have no speaker")


def test_a_speaker_written_as_a_fraction_is_the_same_speaker(table):
    table.write_text("path;act;who\na;1;1.0\nb;1;1\nc;1;1.5\n")
    columns = {"FileName": "path", "EmoAct": "act", "SpkrID": "who"}
    assert corpora.read_table(table, columns)["SpkrID"].tolist() == ["1", "1", "1.5"]


@pytest.mark.parametrize(
    "text",
    [
        "path;act (1, 2, 3)\na.wav;4.5\nb.wav;3\n",
        "path;act (1, 2, 3);;\na.wav;4.5;;\nb.wav;3;;\n",
        "\n\npath;act (1, 2, 3)\n\na.wav;4.5\n;\nb.wav;3\n",
        "path;act (1, 2, 3)\na.wav;4,5\nb.wav;3\n",
        "sep=;\npath;act (1, 2, 3)\na.wav;4,5\nb.wav;3,0\n",
        'x,path,"act (1, 2, 3)"\n"1;2;3",a.wav,4.5\n"1;2;3",b.wav,3\n',
        "path\tact (1, 2, 3)\tnote; with; semicolons\na.wav\t 4.5 \t\nb.wav\t3\t\n",
        "path|act (1, 2, 3)\na.wav|4.5\nb.wav|3\n",
        '\ufeff"path";"act (1, 2, 3)"\r\n"a.wav";"4.5"\r\n"b.wav";"3"\r\n',
        "path;act (1, 2, 3)\ra.wav;4.5\rb.wav;3\r",
    ],
)
def test_tables_as_spreadsheets_write_them_are_read(tmp_path, text):
    (tmp_path / "t.csv").write_bytes(text.encode())
    found = corpora.read_table(tmp_path / "t.csv", {"FileName": "path", "EmoAct": "act (1, 2, 3)"})
    assert found["FileName"].tolist() == ["a.wav", "b.wav"] and found["EmoAct"].tolist() == [4.5, 3.0]


def test_content_without_a_title_at_the_end_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("path;act;;\na.wav;1;;x\n")
    with pytest.raises(UserError, match=r"no title|fields"):
        corpora.read_table(tmp_path / "t.csv", {"FileName": "path", "EmoAct": "act"})


def test_a_comma_is_no_decimal_point_where_it_may_stand_for_thousands(tmp_path):
    for text in ('path,act\na.wav,"4,5"\n', "path;act\na.wav;1,200\nb.wav;4.5\n"):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match="expected a number"):
            corpora.read_table(tmp_path / "t.csv", {"FileName": "path", "EmoAct": "act"})


# ---------------------------------------------------------------------------------------------------------------------
# A second run


def with_features(table, *more):
    """Arguments for `table`, with features."""
    return [*csv_argv(table)[:-1], "--set", "eGeMAPSv02", "--workers", 1, *more]


@pytest.fixture
def two_versions(tmp_path):
    """Two clips, in two versions of the same length and time of change."""
    for version, pitch in (("raw", 120), ("clean", 300)):
        for name in ("a", "b"):
            path = tmp_path / f"{version}/{name}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, voice(pitch=pitch if name == "a" else 200), RATE)
            os.utime(path, (1e9, 1e9))
    (tmp_path / "table.csv").write_text("path;act\na.wav;1\nb.wav;5\n")
    return tmp_path


def pitch_of(folder, name="a"):
    """The first of the features, in semitones."""
    return features.read_feature(folder / f"out/Features/eGeMAPSv02/feat_mat/{name}.mat")[0]


@pytest.mark.parametrize("more", [(), ("--replace",), ("--norm-dir", "N")])
def test_features_follow_the_recordings(two_versions, bench, more):
    argv = with_features(two_versions / "table.csv", *(() if "--norm-dir" in more else more))
    argv[3] = two_versions / "raw"
    assert bench.run(TOOL, *argv)[0] == 0
    first, same = pitch_of(two_versions), two_versions / "out/Features/eGeMAPSv02/feat_mat/b.mat"
    kept_since = same.stat().st_mtime_ns
    argv[3] = two_versions / "clean"
    code, out, err = bench.run(TOOL, *argv)
    assert code == 0 and "1 feature file of changed recordings (a.mat)" in err and "1 there before" in out
    assert pitch_of(two_versions) > first + 10 and same.stat().st_mtime_ns == kept_since


def test_features_of_other_recordings_do_not_stay_without_being_made_again(two_versions, bench):
    argv = with_features(two_versions / "table.csv")
    argv[3] = two_versions / "raw"
    assert bench.run(TOOL, *argv)[0] == 0
    argv[3] = two_versions / "clean"
    assert bench.run(TOOL, *argv, "--no-features")[0] == 0
    assert not (two_versions / "out/Features/eGeMAPSv02/feat_mat/a.mat").exists()


def test_a_copy_of_another_recording_is_not_taken_for_one_of_this(two_versions, bench):
    argv = csv_argv(two_versions / "table.csv", "--copy")
    argv[3] = two_versions / "raw"
    assert bench.run(TOOL, *argv)[0] == 0 and bench.run(TOOL, *argv)[0] == 0
    os.utime(two_versions / "clean/a.wav", (2e9, 2e9))
    argv[3] = two_versions / "clean"
    bench.refuses(bench.run(TOOL, *argv), "a.wav: not the same", "--replace")
    assert bench.run(TOOL, *argv, "--replace")[0] == 0
    copy, original = (two_versions / folder / "a.wav" for folder in ("out/Audios", "clean"))
    assert copy.read_bytes() == original.read_bytes()


def test_recordings_that_were_converted_replace_their_links(two_versions, bench):
    argv = csv_argv(two_versions / "table.csv")
    argv[3] = two_versions / "raw"
    assert bench.run(TOOL, *argv)[0] == 0
    soundfile.write(two_versions / "raw/a.flac", voice(), RATE)
    (two_versions / "raw/a.wav").unlink()
    assert bench.run(TOOL, *argv)[0] == 0
    assert sorted(path.name for path in (two_versions / "out/Audios").iterdir()) == ["a.flac", "b.wav"]


@pytest.mark.parametrize("more", [(), ("--copy",)])
def test_the_prepared_corpus_may_lie_among_the_recordings(two_versions, bench, more):
    argv = csv_argv(two_versions / "table.csv", *more)
    argv[3], argv[5] = two_versions / "raw", two_versions / "raw/prepared"
    for _ in range(2):
        assert bench.run(TOOL, *argv)[0] == 0
    assert sorted(labels(two_versions / "raw/prepared").index) == ["a.wav", "b.wav"]


# ---------------------------------------------------------------------------------------------------------------------
# MSP-Podcast whose label file has no splits


@pytest.fixture
def release(tmp_path):
    """A release with features, and splits in Partitions.txt only."""
    root = tmp_path / "release"
    (root / "Labels").mkdir(parents=True)
    lines = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom"]
    splits = ["Train", "train", "Development", "test1", "none"]
    for number in range(len(splits)):
        clip(root / f"Audios/{number}.wav", seed=number)
        values = np.random.default_rng(number).normal(size=(1, 6373))
        folder = root / utils.FEATURE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        matfile.write_mat(folder / f"{number}.mat", features.FEATURE_KEY, values)
        lines.append(f"{number}.wav,N,{number + 1},4,4")
    (root / "Labels/labels_consensus.csv").write_text("\n".join(lines) + "\n")
    (root / "Partitions.txt").write_text("".join(f"{split}; {n}.wav\n" for n, split in enumerate(splits)))
    return root


def test_splits_of_partitions_need_a_corpus_that_the_stages_read(release, bench):
    bench.refuses(bench.run(TOOL, "msp-podcast", release), "Partitions.txt", "--out DIR")
    code, out, err = bench.run(TOOL, "msp-podcast", release, "--out", "out", "--workers", 1)
    assert code == 0 and "1 of 5 rows without a split (4.wav)" in err, err
    assert "linked 4 feature files" in out and "0 recordings extracted, 4 there before" in out
    assert labels(bench.folder / "out")["Split_Set"].tolist() == ["Train", "Train", "Validation", "Test1"]
    assert bench.run("norm_para", "--corpus", "out")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in sorted(release.rglob("*"))}
    assert bench.run(TOOL, "msp-podcast", release, "--out", "out", "--workers", 1)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in sorted(release.rglob("*"))} == before


def test_features_that_a_release_lacks_are_not_put_into_it(release, bench):
    (release / utils.FEATURE_FOLDER / "2.mat").unlink()
    code, out, err = bench.run(TOOL, "msp-podcast", release, "--out", "out", "--workers", 1)
    assert code == 0 and "1 recordings extracted, 3 there before" in out, err
    assert not (release / utils.FEATURE_FOLDER / "2.mat").exists()
    assert not (bench.folder / "out" / utils.FEATURE_FOLDER / "2.mat").is_symlink()


def test_a_label_outside_the_scale_is_no_success_in_place(release, bench):
    file = release / "Labels/labels_consensus.csv"
    file.write_text("FileName,EmoAct,Split_Set\n0.wav,7.2,Train\n1.wav,4,Test1\n")
    bench.refuses(bench.run(TOOL, "msp-podcast", release), "7.2 of 0.wav", "--out DIR")
    assert bench.run(TOOL, "msp-podcast", release, "--out", "out", "--no-features")[0] == 0
    assert labels(bench.folder / "out")["EmoAct"].tolist() == ["7", "4"]
