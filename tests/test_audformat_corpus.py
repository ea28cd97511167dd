"""Databases that the library audformat has written, brought into the project's layout."""

import audformat
import numpy as np
import pandas as pd
import pytest
import soundfile

import utils
from deepmi import label_scales

TOOL = "tools.prepare_corpus"
FILES = [f"audio/s{speaker}/{number}.wav" for speaker in range(3) for number in range(2)]
SPEAKERS = [file.split("/")[1] for file in FILES]
LABELS = {"arousal": [-1.0, -0.5, 0.0, 0.25, 0.5, 1.0], "valence": [0.1, 0.2, 0.3, np.nan, 0.5, 0.6]}


@pytest.fixture
def root(tmp_path):
    for number, file in enumerate(FILES):
        (tmp_path / "db" / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "db" / file, np.random.default_rng(number).normal(0, 0.05, 8000), 16000)
    return tmp_path / "db"


def add_table(database, name, files, scheme_of, split=None, index=audformat.filewise_index, **columns):
    """A table; `scheme_of` names the scheme of each column that has one."""
    database[name] = audformat.Table(index(files), split_id=split)
    for column, values in columns.items():
        database[name][column] = audformat.Column(scheme_id=scheme_of.get(column))
        database[name][column].set(values)


def database_of(ends=(-1, 1)):
    """A database with two schemes, speakers with genders, and nothing else."""
    database = audformat.Database("mine")
    low, high = ends
    for name in LABELS:
        database.schemes[name] = audformat.Scheme(audformat.define.DataType.FLOAT, minimum=low, maximum=high)
    genders = {f"s{number}": {"gender": "female" if number else "male"} for number in range(3)}
    database.schemes["speaker"] = audformat.Scheme(labels=genders)
    return database


SCHEMES = {"arousal": "arousal", "valence": "valence", "speaker": "speaker"}


def prepare(bench, root, *more):
    return bench.run(TOOL, "audformat", root, "--out", bench.folder / "out", "--no-features", *more)


def labels(bench):
    return utils.read_labels(bench.folder / "out/Labels/labels_consensus.csv").set_index("FileName").sort_index()


@pytest.mark.parametrize("storage_format", ["csv", "parquet"])
def test_tables_of_splits_with_schemes_and_speakers_become_a_corpus(root, bench, storage_format):
    database = database_of()
    for number, split in enumerate(("train", "dev", "test")):
        database.splits[split] = audformat.Split(split)
        rows = slice(2 * number, 2 * number + 2)
        columns = {name: values[rows] for name, values in LABELS.items()}
        add_table(database, f"emotion.{split}", FILES[rows], SCHEMES, split, **columns)
    add_table(database, "files", FILES, SCHEMES, speaker=SPEAKERS)
    database.save(root, storage_format=storage_format)
    code, out, err = prepare(bench, root)
    assert code == 0, err
    assert "6 utterances, 3 speakers" in out and "from -1 to 1 to 1-7" in out
    assert "warning" not in out + err
    found = labels(bench)
    assert found["EmoAct"].astype(float).tolist() == [1, 2.5, 4, 4.75, 5.5, 7]
    assert found["EmoVal"].tolist()[3] == "" and set(found["EmoDom"]) == {""}
    assert found["Split_Set"].tolist() == ["Train"] * 2 + ["Validation"] * 2 + ["Test1"] * 2
    assert found["SpkrID"].tolist() == SPEAKERS and found["Gender"].tolist() == ["Male"] * 2 + ["Female"] * 4
    assert label_scales.prepared_scale(bench.folder / "out/Labels/labels_consensus.csv") == (-1, 1)
    recording = bench.folder / "out/Audios" / found.index[5]
    assert recording.resolve() == root / FILES[5]


def test_splits_and_genders_of_a_table_of_speakers_and_columns_of_other_names(root, bench):
    database = database_of()
    database.misc_tables["people"] = audformat.MiscTable(pd.Index(["s0", "s1", "s2"], name="name"))
    for column, values in (("sex", ["m", "f", "f"]), ("split", ["train", "dev", "test-2"])):
        database.misc_tables["people"][column] = audformat.Column()
        database.misc_tables["people"][column].set(values)
    database.schemes["person"] = audformat.Scheme("str", labels="people")
    columns = {"act": LABELS["arousal"], "who": SPEAKERS, "valence": [9.0] * 6}
    add_table(database, "gold", FILES, {"act": "arousal", "who": "person"}, **columns)
    database.save(root)
    code, _, err = prepare(bench, root, "--arousal-column", "act", "--speaker-column", "who")
    assert code == 0, err
    found = labels(bench)
    assert found["Split_Set"].tolist() == ["Train"] * 2 + ["Validation"] * 2 + ["Test2"] * 2
    assert found["Gender"].tolist() == ["Male"] * 2 + ["Female"] * 4
    assert set(found["EmoVal"]) == {""}  # only the attributes that flags name
    split = ("--split-by-speaker", 0.4, 0.3, 0.3, "--replace")
    assert prepare(bench, root, "--arousal-column", "act", "--speaker-column", "who", *split)[0] == 0
    assert set(labels(bench)["Split_Set"]) == {"Train", "Validation", "Test1"}


def test_tables_are_chosen_where_they_contradict_each_other(root, bench):
    database = database_of()
    add_table(database, "gold", FILES, SCHEMES, arousal=LABELS["arousal"])
    add_table(database, "raw", FILES, SCHEMES, arousal=[0.0] * 6)
    add_table(database, "valence", FILES, SCHEMES, valence=LABELS["valence"])
    database.save(root)
    bench.refuses(prepare(bench, root), f"EmoAct of {FILES[0]} is -1.0, 0.0 in different tables", "--table")
    code, _, err = prepare(bench, root, "--table", "gold", "valence")
    assert code == 0, err
    assert labels(bench)["EmoAct"].tolist()[0] == "1" and labels(bench)["EmoVal"].tolist()[0] == "4.3"
    assert set(labels(bench)["SpkrID"]) == {"Unknown"} and set(labels(bench)["Split_Set"]) == {"Test1"}


def test_databases_that_cannot_be_used_are_refused(root, bench):
    def refuses(database, *words, more=()):
        for file in root.glob("db.*"):
            file.unlink()
        database.save(root)
        bench.refuses(prepare(bench, root, *more), *words)

    bench.refuses(prepare(bench, root), "no db.yaml")
    database = database_of()
    add_table(database, "emotion", FILES, {}, emotion=["anger"] * 6)
    refuses(database, "no column arousal, valence or dominance", "emotion: emotion", "--arousal-column")
    refuses(database, "no column act in its tables", more=("--arousal-column", "act"))
    refuses(database, "no table gold", more=("--table", "gold"))
    database = database_of(ends=(None, None))
    add_table(database, "gold", FILES, SCHEMES, arousal=LABELS["arousal"])
    refuses(database, "the scheme of arousal (gold) has no minimum", "--label-scale")
    assert prepare(bench, root, "--label-scale", -1, 1)[0] == 0
    database = database_of()
    database.schemes["five"] = audformat.Scheme("float", minimum=1, maximum=5)
    columns = {"arousal": LABELS["arousal"], "valence": [2.0] * 6}
    add_table(database, "gold", FILES, {"arousal": "arousal", "valence": "five"}, **columns)
    refuses(database, "arousal -1 to 1, valence 1-5", "--valence-column")
    database = database_of()
    segments = audformat.segmented_index(FILES[:1] * 2, ["0s", "0.2s"], ["0.2s", "0.4s"])
    add_table(database, "gold", segments, SCHEMES, index=lambda index: index, arousal=[0.1, 0.2])
    refuses(database, "several segments of audio/s0/0.wav")
    database = database_of()
    add_table(database, "gold", [*FILES, "audio/gone.wav"], SCHEMES, arousal=[*LABELS["arousal"], 0.0])
    refuses(database, "1 of 7 recordings not found", "audio/gone.wav", "--skip-missing")
