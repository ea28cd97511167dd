"""Other corpora brought into the project's layout, from small files in the formats as distributed."""

import os

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import read_rows, voice

import utils
from deepmi import features, label_scales, matfile
from deepmi.process import UserError
from tools import corpora

RATE = 16000
TOOL = "tools.prepare_corpus"
SET = "eGeMAPSv02"


def clip(path, seed=0):
    """Half a second of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.05, RATE // 2).clip(-1, 1), RATE)


def labels(out):
    """Rows of a prepared corpus by file name."""
    return utils.read_labels(out / "Labels" / "labels_consensus.csv").set_index("FileName")


def ratings(out):
    """Labels of each rater of a prepared corpus."""
    return utils.read_detailed_labels(out / "Labels/labels_detailed.csv")


@pytest.fixture
def table(tmp_path):
    """Twelve clips, two per folder of a speaker; a table with semicolons."""
    lines = ["path;act;who;part"]
    for speaker in range(6):
        for number in range(2):
            clip(tmp_path / f"clips/s{speaker}/{number}.wav", seed=speaker)
            part = ("train", "dev", "test")[speaker % 3]
            lines.append(f"s{speaker}/{number}.wav;{10 * speaker + number};s{speaker};{part}")
    file = tmp_path / "table.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def csv_argv(table, *more, audio="clips", with_features=False):
    """Arguments for `table`."""
    argv = ["csv", table, "--audio", table.parent / audio, "--out", table.parent / "out", "--file-column", "path"]
    argv += ["--arousal-column", "act", "--label-scale", 0, 100]
    return [*argv, *(["--set", SET, "--workers", 1] if with_features else ["--no-features"]), *more]


def test_a_table_becomes_a_corpus_that_the_stages_read(table, bench):
    argv = csv_argv(table, "--split-column", "part", "--norm-dir", "at_once", with_features=True)
    code, out, err = bench.run(TOOL, *argv)
    assert code == 0, err
    assert "12 utterances" in out and "Train: 4 utterances" in out and "from 0-100 to 1-7" in out
    found = labels(table.parent / "out")
    assert found.loc["s3_1.wav", "EmoAct"] == "2.86" and found.loc["s3_1.wav", "Split_Set"] == "Train"
    assert sorted(set(found["Split_Set"])) == ["Test1", "Train", "Validation"]
    assert features.read_feature(table.parent / f"out/Features/{SET}/feat_mat/s3_1.mat").size == 88
    assert label_scales.prepared_scale(table.parent / "out/Labels/labels_consensus.csv") == (0, 100)
    assert bench.run("norm_para", "--corpus", table.parent / "out")[0] == 0
    assert features.read_feature_set(bench.folder / "at_once") == SET
    for path in (bench.folder / "NormTerm").iterdir():
        assert path.read_bytes() == (bench.folder / "at_once" / path.name).read_bytes()


def test_other_flags_do_not_replace_what_was_prepared(table, bench):
    bench.refuses(bench.run(TOOL, *csv_argv(table), "--norm-dir", "NormTerm"), "no rows in split Train")
    bench.refuses(bench.run(TOOL, *csv_argv(table, with_features=True), "--set", "IS99"), "IS99")
    assert not (table.parent / "out").exists()
    argv = csv_argv(table, "--split-column", "part")
    assert bench.run(TOOL, *argv)[0] == 0
    before = (table.parent / "out/Labels/labels_consensus.csv").read_bytes()
    bench.refuses(bench.run(TOOL, *csv_argv(table)), "split_column was part", "--replace")
    bench.refuses(bench.run(TOOL, *argv, "--flip-arousal"), "flip_arousal")
    assert bench.run(TOOL, *argv, "--workers", 1, "--copy")[0] == 0
    assert (table.parent / "out/Labels/labels_consensus.csv").read_bytes() == before
    assert bench.run(TOOL, *csv_argv(table), "--replace")[0] == 0
    found = labels(table.parent / "out")
    assert set(found["Split_Set"]) == {"Test1"} and set(found["SpkrID"]) == {"Unknown"} and set(found["EmoVal"]) == {""}


def test_splits_by_speaker_are_disjoint_seeded_and_of_the_fractions(table, bench):
    argv = csv_argv(table, "--speaker-column", "who", "--split-by-speaker", 0.5, 0.2, 0.3)
    assert bench.run(TOOL, *argv)[0] == 0
    assert labels(table.parent / "out")["Split_Set"].value_counts().to_dict() == {
        "Train": 6,
        "Test1": 4,
        "Validation": 2,
    }
    rows = pd.DataFrame({"FileName": map(str, range(60)), "SpkrID": [f"s{row // 3}" for row in range(60)]})
    for seed in (0, 31, 2**40):
        rows["split"] = corpora.split_by_speaker(rows, (0.6, 0.25, 0.15), seed, "t")
        assert (rows.groupby("SpkrID")["split"].nunique() == 1).all()
        assert rows["split"].value_counts().to_dict() == {"Train": 36, "Validation": 15, "Test1": 9}
        assert rows["split"].tolist() == corpora.split_by_speaker(rows, (0.6, 0.25, 0.15), seed, "t")
    assert set(corpora.split_by_speaker(rows[:9], (0.9, 0.05, 0.05), 1, "t")) == {"Train", "Validation", "Test1"}
    with pytest.raises(UserError, match="2 speakers"):
        corpora.split_by_speaker(rows[:6], (0.6, 0.2, 0.2), 1, "t")


def test_bad_tables_are_refused(table, bench):
    def refuses(text, *words, more=()):
        table.write_text(text)
        bench.refuses(bench.run(TOOL, *csv_argv(table), *more), *words)

    refuses("path;act\ns0/0.wav;113\n", "EmoAct", "113 of 0.wav", "0-100")
    refuses("path;act\ns0/0.wav;loud\n", "'loud'", "expected a number")
    refuses("path;acts\ns0/0.wav;1\n", "no column act", "acts")
    refuses("path;act\ns9/0.wav;1\ns0/0.wav;1\n", "1 of 2 recordings", "s9/0.wav", "s0/0.wav", "--skip-missing")
    refuses("path;act\n;1\n", "names no file")
    refuses("path;act\n", "no rows")
    refuses("", "empty")
    refuses("path;act\n0.wav;1\n", "with their folders")
    refuses("path;act\ns0/0.wav;1\ns0/0.wav;2\n", "same recording")
    by_speaker = ["--speaker-column", "who", "--split-by-speaker", 0.6, 0.2, 0.2]
    rows = "".join(f"s{n}/0.wav;1;{who}\n" for n, who in enumerate(("1", "2", "3", "nan", "", "Unknown")))
    refuses("path;act;who\n" + rows, "3 of 6 rows have no speaker", more=by_speaker)
    refuses("path;act\ns0/0.wav;1\n", "sum to 1", more=["--split-by-speaker", 0.6, 0.2, 0.3])
    refuses("path;act\ns0/0.wav;1\n", "lowest label first", more=["--label-scale", 5, 1])
    no_attribute = [argument for argument in csv_argv(table) if argument not in ("--arousal-column", "act")]
    bench.refuses(bench.run(TOOL, *no_attribute), "--valence-column")
    paths = [f"s{speaker}/{number}.wav" for speaker in range(6) for number in (0, 1)]
    refuses("\n".join(["path;act", "s0/0.wav;50", *(f"{path};101" for path in paths[1:])]), "11 of 12 labels", "scale")
    table.write_text("path;act\ns0/0.wav;1\n")
    foreign = table.parent / "out/Labels"
    foreign.mkdir(parents=True)
    (foreign / "labels_consensus.csv").write_text("mine")
    bench.refuses(bench.run(TOOL, *csv_argv(table)), "did not write")
    assert (foreign / "labels_consensus.csv").read_text() == "mine"


def test_missing_recordings_are_left_out_and_labels_a_little_outside_the_scale_come_to_its_end(table, bench):
    table.write_text("path;act\nnone.wav;1\ns0/0.wav;-12.5\ns0/1.wav;101\ns1/0.wav;50\n")
    code, _, err = bench.run(TOOL, *csv_argv(table, "--skip-missing"))
    assert code == 0 and "1 of 4 recordings" in err and "none.wav" in err
    assert "2 labels of EmoAct outside" in err and "0.wav -12.5" in err
    assert labels(table.parent / "out")["EmoAct"].to_dict() == {"s0_0.wav": "1", "s0_1.wav": "7", "s1_0.wav": "4"}


@pytest.mark.parametrize("word", ["", "NaN", "unknown"])
def test_rows_without_a_split_or_speaker_are_not_given_one(table, bench, word):
    table.write_text(f"path;act;who;part\ns0/0.wav;1;{word};train\ns1/0.wav;2;s1;{word}\ns2/0.wav;3;s2;test\n")
    argv = csv_argv(table, "--speaker-column", "who", "--split-column", "part")
    code, out, err = bench.run(TOOL, *argv)
    assert code == 0 and "1 of 3 rows without a split (s1/0.wav)" in err
    found = labels(table.parent / "out")
    assert found["Split_Set"].to_dict() == {"s0_0.wav": "Train", "s2_0.wav": "Test1"}
    assert found["SpkrID"].tolist() == ["Unknown", "s2"] and "1 utterance of unknown ones" in out
    table.write_text(f"path;act;who;part\ns0/0.wav;1;;{word}\n")
    bench.refuses(bench.run(TOOL, *argv), "no row has a split")


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


def test_a_table_that_could_be_read_in_two_ways_is_refused_and_a_speaker_may_be_a_fraction(tmp_path):
    (tmp_path / "t.csv").write_text("path;act;who\na;1;1.0\nb;1;1\nc;1;1.5\n")
    columns = {"FileName": "path", "EmoAct": "act", "SpkrID": "who"}
    assert corpora.read_table(tmp_path / "t.csv", columns)["SpkrID"].tolist() == ["1", "1", "1.5"]
    for text, words in (
        ("path;act;;\na.wav;1;;x\n", "no title|fields"),
        ('path,act\na.wav,"4,5"\n', "expected a number"),
        ("path;act\na.wav;1,200\nb.wav;4.5\n", "expected a number"),  # the comma may stand for thousands
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            corpora.read_table(tmp_path / "t.csv", {"FileName": "path", "EmoAct": "act"})


IEMOCAP_FILE = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 3.5000, 1.5000]
C-E2:\tNeutral;\t()
C-F1:\tNeutral;\t()
A-E3:\tval  3; act 2; dom  2;\t()
A-E4:\tval 2; act 5; dom NaN;\t(mumbled)
A-F1:\tval 5; act 5; dom  5;\t()

[10.0100  -  11.3925]\tSes01F_impro01_M001\tang\t[5.5000, 5.0000, NaN]
A-E3:\tval 6; act 5; dom  ;\t()
% [1.0 - 2.0]\tSes01F_impro01_F009\tneu\t[2.5000, 3.5000, 1.5000]
"""


def test_iemocap_as_distributed(tmp_path, bench):
    root = tmp_path / "IEMOCAP_full_release"
    evaluation = root / "Session1/dialog/EmoEvaluation"
    argv = ["iemocap", root, "--out", tmp_path / "out", "--no-features"]
    (evaluation / "Self-evaluation").mkdir(parents=True)
    bench.refuses(bench.run(TOOL, *argv), "no Session*")
    file = evaluation / "Ses01F_impro01.txt"
    for text, word in (("", "no turns"), ("[0.1 - 0.9]\tSes01F_impro01_F000\tneu\t[2.5, 3]\n", "[2.5, 3]")):
        file.write_text(text)
        bench.refuses(bench.run(TOOL, *argv), word)
    file.write_text(IEMOCAP_FILE)
    (evaluation / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    (evaluation / "Self-evaluation/Ses01F_impro01_f.txt").write_text(
        "[0.0 - 1.0]\tSes01F_impro01_F000\tang\t[5, 5, 5]\n"
    )
    for turn in ("Ses01F_impro01_F000", "Ses01F_impro01_M001", "._Ses01F_impro01_F000"):
        clip(root / f"Session1/sentences/wav/Ses01F_impro01/{turn}.wav")
    code, _, err = bench.run(TOOL, *argv)
    assert code == 0 and "Ses01F_impro01_M001.wav 5.5" in err and "Ses01F_impro01_M001.wav 6" in err
    found = labels(tmp_path / "out")
    # V, A, D: 2.5, 3.5, 1.5 of 1-5
    first = found.loc["Ses01F_impro01_F000.wav"]
    assert first[["EmoVal", "EmoAct", "EmoDom"]].tolist() == ["3.25", "4.75", "1.75"]
    assert first[["EmoClass", "SpkrID", "Gender", "Split_Set"]].tolist() == ["N", "Ses01F", "Female", "Test1"]
    second = found.loc["Ses01F_impro01_M001.wav"]
    assert second[["EmoVal", "EmoAct", "EmoDom", "SpkrID", "Gender"]].tolist() == ["7", "7", "", "Ses01M", "Male"]
    assert len(found) == 2
    raters = ratings(tmp_path / "out")
    assert raters["Worker"].tolist() == ["E3", "E4", "E3"]  # not F1: an actor's own
    assert raters["EmoAct"].tolist() == [2.5, 7.0, 7.0] and raters["EmoVal"].tolist() == [4.0, 2.5, 7.0]
    assert np.isnan(raters["EmoDom"]).tolist() == [False, True, True]


IMPROV_FILE = """UTD-IMPROV-S01A-F01-P-FM01.avi; A; A:1.5; V:2.0;  D:3.0 ; N:4.0;
ANON1;  Angry; Frustrated, Other; A:1.000000; V:2.000000; D:3.000000; N:4.0;
ANON2; Angry; ; A:2.000000; V:2.000000; D:NaN; N:4.0;

UTD-IMPROV-S02A-M03-R-FM02.avi; S;  A:4.5; V:2.0; D:NaN ; N:4.0;
"""


def test_msp_improv_as_distributed_and_its_arousal_reversed(tmp_path, bench):
    root = tmp_path / "MSP-IMPROV"
    argv = ["msp-improv", root, "--out", tmp_path / "out", "--no-features"]
    for name in ("S01A-F01-P-FM01", "S02A-M03-R-FM02"):
        clip(root / f"Audio/session1/{name[:4]}/P/MSP-IMPROV-{name}.wav")
    bench.refuses(bench.run(TOOL, *argv), "no Evalution.txt")
    (root / "Evalution.txt").write_text("a; b\n")
    bench.refuses(bench.run(TOOL, *argv), "no utterances")
    (root / "Evalution.txt").write_text(IMPROV_FILE)
    code, out, _ = bench.run(TOOL, *argv)
    assert code == 0 and "mean arousal of anger 1.75" in out and "--flip-arousal" in out
    found = labels(tmp_path / "out")
    angry = found.loc["MSP-IMPROV-S01A-F01-P-FM01.wav"]
    assert angry[["EmoAct", "EmoVal", "EmoDom", "SpkrID"]].tolist() == ["1.75", "2.5", "4", "F01"]
    assert found.loc["MSP-IMPROV-S02A-M03-R-FM02.wav", ["EmoDom", "SpkrID", "Gender"]].tolist() == ["", "M03", "Male"]
    (root / "Evalution.txt").rename(root / "Evaluation.txt")
    code, out, _ = bench.run(TOOL, *argv, "--flip-arousal", "--replace")
    assert code == 0 and "--flip-arousal" not in out
    assert labels(tmp_path / "out").loc["MSP-IMPROV-S01A-F01-P-FM01.wav", "EmoAct"] == "6.25"
    raters = ratings(tmp_path / "out")
    assert raters["EmoAct"].tolist() == [7.0, 5.5] and raters["EmoClass_Second"].tolist() == ["Frustrated, Other", ""]


def test_raters_become_consensus_labels(tmp_path, bench):
    for name in ("a", "b", "c"):
        clip(tmp_path / f"clips/{name}.wav")
    detailed = tmp_path / "labels_detailed.csv"
    detailed.write_text(
        "FileName,EmoDetail\n"
        "a.wav,W1; Happy; ; A:1; V:2; D:nan;\n"
        "a.wav,W2; Happy; ; A:3; V:2; D:nan;\n"
        "a.wav,W3; Sad; ; A:5.5; V:nan; D:nan;\n"
        "b.wav,W1; Sad; ; A:4; V:4; D:4;\n"
        "c.wav,W1; Sad; ; A:4; V:4; D:4;\n"
        "c.wav,W2; Happy; ; A:4; V:4; D:4;\n"
    )
    consensus = tmp_path / "known.csv"
    argv = ["raters", detailed, "--audio", tmp_path / "clips", "--out", tmp_path / "out", "--label-scale", 1, 5]
    argv += ["--no-features", "--min-raters", 2, "--consensus", consensus]
    consensus.write_text("FileName,SpkrID,Split_Set\na.wav,s1,dev\n")
    bench.refuses(bench.run(TOOL, *argv), "2 rated utterances", "b.wav")
    consensus.write_text("FileName,SpkrID,Split_Set\nc.wav,s3,\nb.wav,s2,Train\na.wav,s1,dev\n")
    code, _, err = bench.run(TOOL, *argv)
    assert code == 0 and "a.wav 5.5" in err and "1 of 3 rows without a split (c.wav)" in err
    header, *rows = read_rows(tmp_path / "out/Labels/labels_consensus.csv")
    first, second = (dict(zip(header, row)) for row in rows)
    assert (first["EmoAct"], first["EmoAct_n"], first["EmoClass"], first["EmoDom"]) == ("4", "3", "Happy", "")
    assert float(first["EmoAct_std"]) == pytest.approx(np.std([1, 3, 5]) * 6 / 4)
    assert (second["EmoAct"], second["EmoAct_n"], second["SpkrID"], second["Split_Set"]) == ("", "1", "s2", "Train")
    table = corpora.consensus_of(utils.read_detailed_labels(detailed))
    assert table["EmoClass"].tolist() == ["Happy", "Sad", "X"]


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
    return tmp_path / "table.csv"


def test_features_follow_the_recordings(two_versions, bench):
    folder = two_versions.parent / f"out/Features/{SET}/feat_mat"
    assert bench.run(TOOL, *csv_argv(two_versions, audio="raw", with_features=True))[0] == 0
    pitch, kept_since = features.read_feature(folder / "a.mat")[0], (folder / "b.mat").stat().st_mtime_ns
    code, out, err = bench.run(TOOL, *csv_argv(two_versions, audio="clean", with_features=True))
    assert code == 0 and "1 feature file of changed recordings (a.mat)" in err and "1 there before" in out
    assert features.read_feature(folder / "a.mat")[0] > pitch + 10
    assert bench.run(TOOL, *csv_argv(two_versions, audio="raw"))[0] == 0
    assert not (folder / "a.mat").exists() and (folder / "b.mat").stat().st_mtime_ns == kept_since
    (folder / "recordings.json").write_text("[")
    bench.refuses(bench.run(TOOL, *csv_argv(two_versions, audio="raw")), "recordings.json", "Remove it")


def test_a_copy_of_another_recording_is_not_taken_for_one_of_this(two_versions, bench):
    argv = csv_argv(two_versions, "--copy", audio="raw")
    assert bench.run(TOOL, *argv)[0] == 0 and bench.run(TOOL, *argv)[0] == 0
    copy, original = (two_versions.parent / folder / "a.wav" for folder in ("out/Audios", "clean"))
    assert not copy.is_symlink()
    os.utime(original, (2e9, 2e9))
    argv = csv_argv(two_versions, "--copy", audio="clean")
    bench.refuses(bench.run(TOOL, *argv), "a.wav: not the same", "--replace")
    assert bench.run(TOOL, *argv, "--replace")[0] == 0
    assert copy.read_bytes() == original.read_bytes()


@pytest.mark.parametrize("more", [(), ("--copy",)])
def test_a_prepared_corpus_may_lie_among_the_recordings_and_follows_them(two_versions, bench, more):
    raw = two_versions.parent / "raw"
    argv = csv_argv(two_versions, "--out", raw / "prepared", audio="raw")
    assert bench.run(TOOL, *argv, *more)[0] == 0 and bench.run(TOOL, *argv, *more)[0] == 0
    assert sorted(labels(raw / "prepared").index) == ["a.wav", "b.wav"]
    if not more:
        soundfile.write(raw / "a.flac", voice(), RATE)
        (raw / "a.wav").unlink()
        assert bench.run(TOOL, *argv)[0] == 0
        assert sorted(path.name for path in (raw / "prepared/Audios").iterdir()) == ["a.flac", "b.wav"]


@pytest.fixture
def release(tmp_path):
    """A release with features, and splits in Partitions.txt only."""
    root = tmp_path / "release"
    (root / "labels").mkdir(parents=True)
    (root / utils.FEATURE_FOLDER).mkdir(parents=True)
    lines = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom"]
    splits = ["Train", "train", "Development", "test1", "none"]
    for number in range(len(splits)):
        clip(root / f"Audio/{number}.wav", seed=number)
        values = np.random.default_rng(number).normal(size=(1, 6373))
        matfile.write_mat(root / utils.FEATURE_FOLDER / f"{number}.mat", features.FEATURE_KEY, values)
        lines.append(f"{number}.wav,N,{number + 1},4,4")
    (root / "labels/labels_concensus.csv").write_text("\n".join(lines) + "\n")
    (root / "Partitions.txt").write_text("".join(f"{split}; {n}.wav\n" for n, split in enumerate(splits)))
    return root


def test_splits_of_partitions_need_a_corpus_that_the_stages_read(release, bench):
    bench.refuses(bench.run(TOOL, "msp-podcast", release), "Partitions.txt", "--out DIR")
    (release / utils.FEATURE_FOLDER / "2.mat").unlink()
    before = {path: path.stat().st_mtime_ns for path in sorted(release.rglob("*"))}
    for there in (3, 4):
        code, out, err = bench.run(TOOL, "msp-podcast", release, "--out", "out", "--workers", 1)
        assert code == 0 and "1 of 5 rows without a split (4.wav)" in err and f"{there} there before" in out, err
        assert labels(bench.folder / "out")["Split_Set"].tolist() == ["Train", "Train", "Validation", "Test1"]
        assert {path: path.stat().st_mtime_ns for path in sorted(release.rglob("*"))} == before
    files = {number: bench.folder / "out" / utils.FEATURE_FOLDER / f"{number}.mat" for number in (1, 2)}
    assert files[1].is_symlink() and not files[2].is_symlink()
    assert bench.run("norm_para", "--corpus", "out")[0] == 0
    for text, word in (("Train 0.wav 1.wav\n", "line 1"), ("Train 0.wav\n\nTest1 0.wav\n", "in Train and in Test1")):
        (release / "Partitions.txt").write_text(text)
        bench.refuses(bench.run(TOOL, "msp-podcast", release, "--out", "out"), word)
    (release / "Partitions.txt").unlink()
    bench.refuses(bench.run(TOOL, "msp-podcast", release), "no Split_Set", "Partitions.txt")


def test_a_release_with_splits_gets_features_in_place(release, bench):
    file = release / "labels/labels_concensus.csv"
    file.write_text("FileName,EmoAct,Split_Set\n0.wav,7.2,Train\n1.wav,4,Test1\n")
    bench.refuses(bench.run(TOOL, "msp-podcast", release), "7.2 of 0.wav", "--out DIR")
    assert bench.run(TOOL, "msp-podcast", release, "--out", "out", "--no-features")[0] == 0
    assert labels(bench.folder / "out")["EmoAct"].tolist() == ["7", "4"]
    file.write_text("FileName,EmoAct,Split_Set\n0.wav,7,Train\n1.wav,4,Test1\n")
    before = file.read_bytes()
    assert bench.run(TOOL, "msp-podcast", release, "--set", SET)[0] == 0
    assert file.read_bytes() == before and (release / f"Features/{SET}/feat_mat/0.mat").is_file()
    (release / "Audio").rename(release / "Sounds")
    bench.refuses(bench.run(TOOL, "msp-podcast", release), "no folder Audios")
