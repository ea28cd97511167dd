"""The chain on real speech, short: recordings of EmoDB and nEMO, features, all stages."""

import json
import shutil

import pandas as pd
import pytest
from conftest import SHARED, needs_shared

import utils

pytestmark = needs_shared
PER_SPLIT = {"Train": 60, "Development": 24, "Test1": 24}
UNLABELED = 20


@pytest.fixture
def speech(bench):
    """A part of EmoDB with clips of each split taken evenly, and some nEMO clips."""
    source, corpus = SHARED / "corpora", bench.folder / "emodb"
    for folder in (corpus / "Labels", corpus / "Audios", bench.folder / "nemo"):
        folder.mkdir(parents=True)
    table = pd.read_csv(source / "emodb/Labels/labels_consensus.csv", dtype=str)
    parts = [table[table["Split_Set"] == split] for split in PER_SPLIT]
    kept = pd.concat([part[:: len(part) // n][:n] for part, n in zip(parts, PER_SPLIT.values())])
    kept.to_csv(corpus / "Labels/labels_consensus.csv", index=False)
    for name in kept["FileName"].str.replace(".wav", ".flac"):
        shutil.copy(source / "emodb/Audios" / name, corpus / "Audios")
    for path in sorted((source / "nemo_unlabeled/Audios").iterdir())[:UNLABELED]:
        shutil.copy(path, bench.folder / "nemo")
    return corpus


def test_wav_to_ccc(bench, speech):
    pool = bench.folder / "nemo_features"
    bench.runs("tools.extract_features", speech / "Audios", speech / utils.FEATURE_FOLDER)
    bench.runs("tools.extract_features", bench.folder / "nemo", pool)
    corpus, small = ["--corpus", speech], ["-batch", 32, "-emo", "Act"]
    bench.runs("norm_para", *corpus)
    bench.runs("training_DeepEmoCluster", *corpus, "-ep", 3, *small, "-nc", 5, "--unlabeled", pool)
    bench.runs("extract_DeepMI", *corpus, "-ep", 3, *small, "-nc", 5)
    bench.runs("training_Curriculum", *corpus, "-ep", 50, *small, "-nc", 5)
    out, _ = bench.runs("testing_Curriculum", *corpus, "-ep", 50, *small)
    result = json.loads((bench.folder / "results/SimpleEmoRegressor_DeepMI@_Act_Test1.json").read_text())
    # Arousal of acted speech is easy: 60 clips are enough to be far above chance.
    assert result["ccc"] > 0.4 and result["n"] == 24
    assert "Act (CCC): " in out
