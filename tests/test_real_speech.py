"""The chain on real speech, short: recordings of EmoDB and nEMO, features, all stages."""

import csv
import json
import shutil

import pytest
from conftest import SHARED, needs_shared

import utils

pytestmark = needs_shared
PER_SPLIT = {"Train": 60, "Development": 24, "Test1": 24}
UNLABELED = 20


@pytest.fixture
def speech(bench):
    """A part of EmoDB with its first clips of each split taken evenly, and some nEMO clips."""
    source = SHARED / "corpora"
    with (source / "emodb/Labels/labels_consensus.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    corpus = bench.folder / "emodb"
    (corpus / "Labels").mkdir(parents=True)
    (corpus / "Audios").mkdir()
    kept = []
    for split, count in PER_SPLIT.items():
        members = [row for row in rows if row["Split_Set"] == split]
        kept += members[:: len(members) // count][:count]
    with (corpus / "Labels/labels_consensus.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    for row in kept:
        name = row["FileName"].replace(".wav", ".flac")
        shutil.copy(source / "emodb/Audios" / name, corpus / "Audios" / name)
    (bench.folder / "nemo").mkdir()
    for path in sorted((source / "nemo_unlabeled/Audios").iterdir())[:UNLABELED]:
        shutil.copy(path, bench.folder / "nemo" / path.name)
    return corpus


def test_wav_to_ccc(bench, speech):
    feature_dir, pool = speech / utils.FEATURE_FOLDER, bench.folder / "nemo_features"
    assert bench.run("tools.extract_features", speech / "Audios", feature_dir)[0] == 0
    assert bench.run("tools.extract_features", bench.folder / "nemo", pool)[0] == 0
    corpus, small = ["--corpus", speech], ["-batch", 32, "-emo", "Act"]
    commands = [
        ("norm_para",),
        ("training_DeepEmoCluster", "-ep", 3, *small, "-nc", 5, "--unlabeled", pool),
        ("extract_DeepMI", "-ep", 3, *small, "-nc", 5),
        ("training_Curriculum", "-ep", 50, *small, "-nc", 5),
        ("testing_Curriculum", "-ep", 50, *small),
    ]
    for stage, *argv in commands:
        code, out, err = bench.run(stage, *corpus, *argv)
        assert code == 0, err
    result = json.loads((bench.folder / "results/SimpleEmoRegressor_DeepMI@_Act_Test1.json").read_text())
    # Arousal of acted speech is easy: 60 clips are enough to be far above chance.
    assert result["ccc"] > 0.4 and result["n"] == 24
    assert "Act (CCC): " in out
