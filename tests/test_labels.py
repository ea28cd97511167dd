"""Every label format of MSP-Podcast's releases, and where the files are found."""

import json
import unicodedata

import numpy as np
import pytest
from conftest import write_labels

import utils
from deepmi import cli, features, matfile
from deepmi.process import UserError

ROWS = [
    ["MSP-PODCAST_0001_0008.wav", "N", "5.2", "4", "4.4", "Unknown", "Unknown", "Train"],
    ["MSP-PODCAST_0001_0049_0002.wav", "A", "2.0", "6.25", "1", "17", "Female", "Development"],
    ["MSP-PODCAST_0002_0001.wav", "H", "7", "1.5", "3", "18", "Male", "Test1"],
]


def write_json(path, rows=ROWS, number=str):
    fields = utils.CONSENSUS_COLUMNS[1:]
    content = {row[0]: {"FileName": "not this", **dict(zip(fields, row[1:]))} for row in rows}  # the key counts
    for entry in content.values():
        entry.update({name: number(entry[name]) for name in ("EmoAct", "EmoVal", "EmoDom")})
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("folder", "name"),
    [("Labels", "labels_concensus.csv"), ("label", "labels_consensus.csv"), ("LABELS", "Labels_Consensus.CSV")],
)
def test_label_file_is_found_in_any_spelling(tmp_path, folder, name):
    (tmp_path / folder).mkdir()
    write_labels(tmp_path / folder / name, ROWS)
    assert utils.find_label_file(tmp_path).name == name
    names, labels = utils.getPaths_attri(tmp_path, "Validation", "Val")
    assert names.tolist() == ["MSP-PODCAST_0001_0049_0002.wav"] and labels.tolist() == [6.25]


@pytest.mark.parametrize("number", [str, float])
def test_csv_and_json_hold_the_same_labels(tmp_path, number):
    write_labels(tmp_path / "labels_consensus.csv", ROWS)
    write_json(tmp_path / "labels_consensus.json", number=number)
    for split in ("Train", "Development", "Test1"):
        for attribute in cli.ATTRIBUTES:
            from_csv = utils.getPaths_attri(tmp_path / "labels_consensus.csv", split, attribute)
            from_json = utils.getPaths_attri(tmp_path / "labels_consensus.json", split, attribute)
            assert from_csv[0].tolist() == from_json[0].tolist()
            assert from_csv[1].tolist() == from_json[1].tolist()


@pytest.mark.parametrize("written", ["Validation", "Development", "dev", "val"])
def test_validation_and_development_are_one_split(tmp_path, written):
    write_labels(tmp_path / "l.csv", [[*row[:7], row[7].replace("Development", written)] for row in ROWS])
    table = utils.read_labels(tmp_path / "l.csv")
    assert all(len(utils.select_split(table, asked)) == 1 for asked in ("Validation", "Development", "validation"))


def test_the_only_test_split_of_release_1_6_is_test1(tmp_path):
    write_labels(tmp_path / "l.csv", [[*row[:7], row[7].replace("Test1", "Test")] for row in ROWS])
    table = utils.read_labels(tmp_path / "l.csv")
    for asked in ("Test1", "test"):
        assert utils.select_split(table, asked)["FileName"].tolist() == ["MSP-PODCAST_0002_0001.wav"]
    assert len(utils.select_split(table, "all")) == 3
    table["Split_Set"] = ["Train", "Test1", "Test2"]
    with pytest.raises(UserError, match="split Test;"):
        utils.select_split(table, "Test")  # neither alone is meant


def test_blanks_byte_order_marks_windows_line_ends_and_empty_labels_are_read(tmp_path):
    text = "FileName, EmoAct ,Split_Set\r\n a.wav , 3.5 , Train \r\nb.wav,,Train\r\nc.wav,nan,Train\r\n"
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    names, labels = utils.getPaths_attri(tmp_path / "l.csv", "Train", "Act")
    assert names.tolist() == ["a.wav"] and labels.tolist() == [3.5]
    assert set(utils.read_labels(tmp_path / "l.csv")["SpkrID"]) == {"Unknown"}


@pytest.mark.parametrize("word", ["", "nan", "None", "<NA>", "n/a", "NULL", "unknown"])
def test_words_for_an_empty_field_are_no_split_and_no_speaker(tmp_path, capsys, word):
    rows = [["a.wav", "3", word, word], ["b.wav", "4", "s1", "Train"]]
    write_labels(tmp_path / "l.csv", rows, ("FileName", "EmoAct", "SpkrID", "Split_Set"))
    table = utils.read_labels(tmp_path / "l.csv")
    assert table["SpkrID"].tolist() == ["Unknown", "s1"] and table["Split_Set"].tolist() == ["", "Train"]
    assert "1 rows have no Split_Set" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_features_are_found_in_either_form_of_an_accent(tmp_path, form, written):
    name = unicodedata.normalize(written, "été.wav")
    matfile.write_mat(tmp_path / unicodedata.normalize(form, "été.mat"), features.FEATURE_KEY, np.ones((1, 3)))
    assert features.missing_features(tmp_path, [name, "other.wav"]) == ["other.wav"]
    assert features.read_feature(features.feature_file(tmp_path, name)).tolist() == [1, 1, 1]


EXPECTED_RATINGS = [
    ["a.wav", "WORKER1", "Neutral", "Neutral,Concerned", 4.0, 3.0, 5.0],
    ["a.wav", "WORKER2", "Happy", "", np.nan, 2.0, 6.0],
    ["b.wav", "WORKER1", "Sad", "Sad", 1.0, 1.0, 1.5],
]


def write_detailed(path, kind):
    if kind == "EmoDetail":
        path.write_text(
            "FileName, EmoDetail\n"
            "a.wav,WORKER1; Neutral; Neutral,Concerned; A:4; V:5.000000; D:3;\n"  # a comma inside, not quoted
            'a.wav,"WORKER2; Happy; ; A:nan; V:6; D:2;"\n'
            "b.wav, WORKER1; Sad; Sad; A:1; V:1.5; D:1;\n"
        )
    elif kind in ("Workers", "WorkerID"):
        header = ["FileName", kind, "EmoClass_Major", "EmoClass_Second", "EmoAct", "EmoVal", "EmoDom"]
        rows = [[n, w, m, s, "" if np.isnan(a) else a, v, d] for n, w, m, s, a, d, v in EXPECTED_RATINGS]
        write_labels(path, rows, header)
    else:
        content = {}
        for n, w, m, s, a, d, v in EXPECTED_RATINGS:
            fields = {"EmoClass_Major": m, "EmoClass_Second": s, "EmoAct": str(a), "EmoDom": d, "EmoVal": v}
            content.setdefault(n, {})[w] = fields
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["EmoDetail", "Workers", "WorkerID", "JSON"])
def test_every_detailed_format_gives_the_same_table(tmp_path, kind):
    path = tmp_path / ("labels_detailed.json" if kind == "JSON" else "labels_detailed.csv")
    write_detailed(path, kind)
    found = utils.read_detailed_labels(path)
    assert tuple(found.columns) == utils.DETAILED_COLUMNS
    assert found.astype(object).fillna("not rated").to_numpy().tolist() == [
        ["not rated" if value is np.nan else value for value in row] for row in EXPECTED_RATINGS
    ]
    assert all(found[column].dtype == np.float64 for column in ("EmoAct", "EmoDom", "EmoVal"))
    assert utils.find_detailed_file(tmp_path) == path


def test_a_detail_without_secondary_class_is_read_and_one_that_is_no_number_refused(tmp_path):
    (tmp_path / "d.csv").write_text("FileName,EmoDetail\na.wav,WORKER3; Angry; A:6; V:2; D:5;\n")
    row = utils.read_detailed_labels(tmp_path / "d.csv").iloc[0]
    assert row.tolist() == ["a.wav", "WORKER3", "Angry", "", 6.0, 5.0, 2.0]
    (tmp_path / "d.csv").write_text("FileName,EmoDetail\na.wav,W; N; A:high; V:2; D:5;\n")
    with pytest.raises(UserError, match=r"a\.wav is 'high'"):
        utils.read_detailed_labels(tmp_path / "d.csv")


@pytest.mark.parametrize("header", ["EmoDetail,FileName", "Part,EmoDetail,FileName"])
def test_detailed_labels_take_their_columns_by_name(tmp_path, header):
    row = {"FileName": "a.wav", "EmoDetail": "W1; Happy; Amused,Excited; A:5; V:6; D:4;", "Part": "x"}
    (tmp_path / "d.csv").write_text(f"{header}\n{','.join(row[name] for name in header.split(','))}\n")
    (found,) = utils.read_detailed_labels(tmp_path / "d.csv").to_dict("records")
    assert [found[name] for name in ("FileName", "Worker", "EmoVal")] == ["a.wav", "W1", 6]
    assert found["EmoClass_Second"] == "Amused,Excited"


@pytest.mark.parametrize(
    "name",
    [
        *("../../x.wav", "/etc/x.wav", "a\\b.wav", "", "..", "x" * 300 + ".wav", "\ud800.wav"),
        *("a\x9bb.wav", "a\u202eb.wav", "a\u2028b.wav"),
    ],
)
def test_file_names_that_lead_out_of_the_corpus_or_cannot_be_printed_are_refused(tmp_path, name):
    write_json(tmp_path / "l.json", [[name, *ROWS[0][1:]]])
    with pytest.raises(UserError, match=r"entry 1|file name|surrogates"):
        utils.read_labels(tmp_path / "l.json")


def test_a_dot_in_a_name_is_no_ending():
    names = ["X.wav", "X.y.WAV", "utt.1", "utt"]
    assert [features.feature_name(name) for name in names] == ["X.mat", "X.y.mat", "utt.1.mat", "utt.mat"]


def test_unlabeled_draw_is_its_seeds_and_takes_all_where_there_are_fewer(tmp_path):
    for number in range(20):
        (tmp_path / f"u{number:02d}.mat").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("no feature file")
    everything = utils.getPaths_unlabel_Podcast(tmp_path)
    assert [path.name for path in everything] == [f"u{n:02d}.mat" for n in range(20)]
    some = utils.getPaths_unlabel_Podcast(tmp_path, 7, seed=1)
    assert len(set(some)) == 7 and set(some) <= set(everything)
    assert some == utils.getPaths_unlabel_Podcast(tmp_path, 7, seed=1)
    assert some != utils.getPaths_unlabel_Podcast(tmp_path, 7, seed=2)
    folder = tmp_path / utils.FEATURE_FOLDER  # laid out like a corpus
    folder.mkdir(parents=True)
    (folder / "u.mat").write_bytes(b"x")
    assert utils.getPaths_unlabel_Podcast(tmp_path) == [folder / "u.mat"]


def test_statistics_are_read_as_written_unless_all_labels_are_the_same(tmp_path):
    utils.write_norm_stats(tmp_path, (np.array([1.0, 2e12]), np.array([0.0, 3.0])), {"Val": (4.15, 0.84)})
    assert [term.tolist() for term in utils.read_feature_norm(tmp_path)] == [[1.0, 2e12], [0.0, 3.0]]
    assert utils.read_label_norm(tmp_path, "Val") == (4.15, 0.84)
    utils.write_norm_stats(tmp_path, None, {"Val": (4.0, 0.0)})
    with pytest.raises(UserError, match="positive std"):
        utils.read_label_norm(tmp_path, "Val")
