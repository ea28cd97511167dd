"""Features of other programs become a feature folder that the stages read."""

import audformat
import numpy as np
import opensmile
import pandas as pd
import pytest
import soundfile
from conftest import voice

import utils
from deepmi import features
from tools import audformat_files

TOOL = "tools.import_features"
WIDTH = 6


@pytest.fixture
def vectors(bench):
    """Features of each utterance of the corpus."""
    names = utils.read_labels(bench.labels)["FileName"]
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=WIDTH) for name in names}


def save_arrays(folder, vectors):
    folder.mkdir()
    for number, (name, vector) in enumerate(vectors.items()):
        array = vector.astype(np.float32)
        np.save(folder / name.replace(".wav", ".npy"), array if number % 2 else array[None])
    return folder


def frame_of(vectors, folder="/data/clips"):
    rows = {f"{folder}/{name}": vector for name, vector in vectors.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[f"f{number}" for number in range(WIDTH)])
    frame.index.name = "file"
    return frame


def database_of(vectors, root, storage_format="parquet"):
    database = audformat.Database("features")
    frame = frame_of(vectors, "clips")
    database["features"] = audformat.Table(audformat.filewise_index(frame.index))
    for column in frame:
        database["features"][column] = audformat.Column()
        database["features"][column].set(frame[column])
    database.save(root, storage_format=storage_format)
    return root


def table_of(bench, vectors, kind):
    if kind == "npy":
        return save_arrays(bench.folder / "arrays", vectors), ()
    if kind.startswith("audformat"):
        return database_of(vectors, bench.folder / "db", kind.split()[1]), ("--table", "features")
    file, frame = bench.folder / f"features.{kind.split()[0]}", frame_of(vectors)
    if kind == "csv segmented":
        frame = frame.set_index(audformat.segmented_index(frame.index, ["0s"] * len(frame), ["1s"] * len(frame)))
    if kind == "csv untitled":
        frame = frame.rename_axis(index=None)
    frame.to_parquet(file) if kind == "parquet" else frame.to_csv(file, sep=";" if "untitled" in kind else ",")
    return file, ()


@pytest.mark.parametrize(
    "kind", ["npy", "csv", "csv segmented", "csv untitled", "parquet", "audformat csv", "audformat parquet"]
)
def test_features_of_another_program_serve_the_stages(vectors, bench, kind):
    source, more = table_of(bench, vectors, kind)
    code, out, err = bench.run(TOOL, source, "mat", "--name", "theirs", "--corpus", bench.corpus, *more)
    assert code == 0 and not err, err
    assert f"108 utterances of {WIDTH} features (theirs); wrote mat" in out
    for name, vector in vectors.items():
        assert np.allclose(features.read_feature(features.feature_file(bench.folder / "mat", name)), vector, atol=1e-6)
    assert features.read_feature_set(bench.folder / "mat") == "theirs"
    assert bench.run("norm_para", "--corpus", bench.corpus, "--features", "mat")[0] == 0
    assert features.read_feature_set(bench.folder / "NormTerm") == "theirs"


def test_what_opensmile_writes_is_read_as_it_is(bench):
    soundfile.write(bench.folder / "a.wav", voice(), 16000)
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02)
    frame = smile.process_files([str(bench.folder / "a.wav")])
    frame.to_csv(bench.folder / "smile.csv")
    assert bench.run(TOOL, "smile.csv", "mat", "--name", "eGeMAPSv02")[0] == 0
    assert np.allclose(features.read_feature(bench.folder / "mat/a.mat"), frame.to_numpy()[0], rtol=1e-6)


def test_rows_and_utterances_without_a_partner_are_reported(vectors, bench):
    first, second, *_ = vectors
    del vectors[first]
    frame = frame_of(vectors | {"other.wav": np.zeros(WIDTH)})
    frame.loc[f"/data/clips/{second}"] = np.nan
    frame.iloc[5, 2] = np.nan
    frame.to_csv(bench.folder / "f.csv")
    code, out, err = bench.run(TOOL, "f.csv", "mat", "--name", "theirs", "--labels", bench.labels)
    assert code == 0 and "106 utterances" in out
    for words in (
        "left out 1 row not in the labels (/data/clips/other.wav)",
        f"no row for 1 utterance ({first})",
        f"left out 1 row (/data/clips/{second}) in which every feature is NaN",
        "NaN in some features of 1 row",
    ):
        assert words in err
    assert len(err.splitlines()) == 4 and not (bench.folder / "mat/other.mat").exists()
    assert bench.run(TOOL, "f.csv", "all", "--name", "theirs")[0] == 0 and (bench.folder / "all/other.mat").exists()


def test_recordings_of_one_name_in_several_folders_are_told_apart_as_prepare_corpus_names_them(bench):
    (bench.folder / "l.csv").write_text("FileName,Split_Set\ns1_a.wav,Train\ns2_a.wav,Train\n")
    for speaker in (1, 2):
        (bench.folder / f"arrays/s{speaker}").mkdir(parents=True)
        np.save(bench.folder / f"arrays/s{speaker}/a.wav.npy", np.full(3, speaker))
    assert bench.run(TOOL, "arrays", "mat", "--name", "theirs", "--labels", "l.csv")[0] == 0
    assert features.read_feature(bench.folder / "mat/s2_a.mat").tolist() == [2, 2, 2]
    bench.refuses(bench.run(TOOL, "arrays", "more", "--name", "theirs"), "s1/a.wav and s2/a.wav are both a")


def test_frames_are_pooled_only_where_asked(bench):
    frames = np.random.default_rng(1).normal(size=(7, 3))
    (bench.folder / "arrays").mkdir()
    np.save(bench.folder / "arrays/a.npy", frames)
    bench.refuses(bench.run(TOOL, "arrays", "mat", "--name", "x"), "(7, 3)", "--pool mean")
    assert bench.run(TOOL, "arrays", "mat", "--name", "x", "--pool", "mean+std")[0] == 0
    expected = [*frames.mean(axis=0), *frames.std(axis=0)]
    assert np.allclose(features.read_feature(bench.folder / "mat/a.mat"), expected)
    np.save(bench.folder / "arrays/b.npy", frames[0])
    bench.refuses(bench.run(TOOL, "arrays", "mat", "--name", "x", "--pool", "mean"), "b.npy", "--pool expects")


def test_bad_arrays_are_refused(vectors, bench):
    folder = save_arrays(bench.folder / "arrays", vectors)
    odd = folder / "odd.npy"

    def refuses(content, *words):
        np.save(odd, content, allow_pickle=True) if isinstance(content, np.ndarray) else odd.write_bytes(content)
        bench.refuses(bench.run(TOOL, "arrays", "mat", "--name", "theirs"), *words)

    refuses(np.zeros(WIDTH + 1), "1 file (odd.npy) of different width", "7 features; the others have 6")
    refuses(np.array([{1}]), "odd.npy: not an array of numbers")
    refuses(np.array(["a"] * WIDTH), "odd.npy", "expected numbers")
    refuses(np.zeros((1, 2, WIDTH)), "odd.npy: shape (1, 2, 6)")
    refuses(np.full(WIDTH, np.inf), "infinite values in 1 row (odd)")
    refuses(
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (900000000000,)}\n", "not an array"
    )
    refuses(b"PK\x03\x04", "odd.npy: not an array of numbers")
    assert not (bench.folder / "mat").exists()
    bench.refuses(bench.run(TOOL, "corpus", "mat", "--name", "theirs"), "no .npy files")
    odd.unlink()
    bench.refuses(bench.run(TOOL, "arrays", "mat", "--name", "theirs", "--table", "f"), "no db.yaml")
    argv = (TOOL, "arrays", bench.corpus / utils.FEATURE_FOLDER, "--name", "theirs")
    bench.refuses(bench.run(*argv), "holds features of an unnamed set", "FEAT_DIR")


def test_bad_tables_are_refused(bench, monkeypatch):
    def refuses(text, *words, more=()):
        (bench.folder / "t.csv").write_text(text)
        result = bench.run(TOOL, "t.csv", "mat", "--name", "theirs", "--corpus", bench.corpus, *more)
        bench.refuses(result, "t.csv", *words)

    name = "MSP-PODCAST_0000_0000"
    refuses("file,x,speaker\na.wav,1,anna\n", "1 column without numbers: speaker", "--drop speaker")
    refuses(f"file,x\n{name}.wav,1\n{name}.flac,2\n", "are both", "expected one row per utterance")
    refuses("file,x\na.wav,1\n", "no row belongs to an utterance", "a.wav", name)
    refuses("file,x\na.wav,1,2\n", "not a table")
    refuses("file,x,x\na.wav,1,2\n", "duplicate column x")
    refuses("file,x\n", "no rows")
    refuses("", "not a table")
    refuses("a,b\n1,2\n", "no column with file names", "--file-column")
    refuses("file,x\na.wav,1\n,2\n", "row 2 below the header names no file")
    refuses("file,x\na.wav,2\n", "no column speaker", more=("--drop", "speaker"))
    refuses("file,start\na.wav,2\n", "no features")
    refuses("file,x\na.wav,2\n", "--pool", more=("--pool", "mean"))
    (bench.folder / "t.pkl").write_bytes(b"")
    bench.refuses(bench.run(TOOL, "t.pkl", "mat", "--name", "theirs"), "could run code")
    (bench.folder / "t.parquet").write_bytes(b"PAR1")
    bench.refuses(bench.run(TOOL, "t.parquet", "mat", "--name", "theirs"), "t.parquet: not a table")
    monkeypatch.setattr(audformat_files, "SMALL", 2**20)
    pd.DataFrame({"file": ["a"] * 10**5, "x": 0.0}).to_parquet(bench.folder / "t.parquet")
    bench.refuses(bench.run(TOOL, "t.parquet", "mat", "--name", "theirs"), "more than its size justifies")
    bench.refuses(bench.run(TOOL, "t.pq", "mat", "--name", "theirs"), "no such file or folder")
    (bench.folder / "t.xlsx").touch()
    bench.refuses(bench.run(TOOL, "t.xlsx", "mat", "--name", "theirs"), "expected a table ending in .csv")
    assert not (bench.folder / "mat").exists()


def test_a_database_is_read_without_running_what_it_holds(vectors, bench):
    database = database_of(vectors, bench.folder / "db", "pkl")
    run = (TOOL, database, "mat", "--name", "theirs")
    bench.refuses(bench.run(*run), "--table", "features")
    bench.refuses(bench.run(*run, "--table", "other"), "no table other; found features")
    bench.refuses(bench.run(*run, "--table", "features"), "only as pickle")
    (database / "db.yaml").write_text("name: !!python/object/apply:os.mkdir [ran]\n")
    bench.refuses(bench.run(*run, "--table", "features"), "db.yaml: not a header")
    assert not (bench.folder / "ran").exists()
    (database / "db.yaml").write_text("tables: [1, 2]\n")
    bench.refuses(bench.run(*run, "--table", "features"), "not a dict of dicts")
