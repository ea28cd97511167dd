"""DeepEmoCluster checkpoints in the published layout, with random weights: predictions against plain NumPy."""

import json

import numpy as np
import opensmile
import pandas as pd
import pytest
import soundfile
import torch
from conftest import voice

import model
import utils
from deepmi import matfile
from deepmi.moments import describe_clipped

RATE = 16000
NAME = "ResNetDeepEmoCluster_epoch200_batch512_50clusters_{}.pth.tar"
LABEL_NORMS = {"Act": (4.4, 1.0), "Dom": (4.6, 0.9), "Val": (3.9, 1.1)}


def published(folder, attribute, num_features):
    """A checkpoint as published: the state dict with `module.` in the trunk, and nothing about its training."""
    torch.manual_seed(ord(attribute[0]))
    weights = model.DenseResNet(num_features, 50).state_dict()
    weights = {key.replace("dnn_features.", "dnn_features.module."): value for key, value in weights.items()}
    folder.mkdir(exist_ok=True)
    torch.save({"arch": "resnet", "state_dict": weights}, folder / NAME.format(attribute))
    return weights


def forward(weights, x):
    """The z-normalised attribute of one utterance, x of shape (D,)."""

    def dense(name, x):
        return weights[f"{name}.weight"].double().numpy() @ x + weights[f"{name}.bias"].double().numpy()

    for layer in (0, 4, 8):
        x = dense(f"dnn_features.module.{layer}", x)
        for block in (layer + 2, layer + 3):
            hidden = np.maximum(dense(f"dnn_features.module.{block}.dense1", x), 0)
            x = np.maximum(dense(f"dnn_features.module.{block}.dense2", hidden) + x, 0)
    return dense("emo_regressor.2", np.maximum(dense("emo_regressor.0", x), 0))[0]


@pytest.mark.as_published
def test_predict_takes_the_three_published_checkpoints_from_wav_to_label_units(bench):
    smile = opensmile.Smile(opensmile.FeatureSet.ComParE_2016)
    clips = bench.folder / "clips"
    clips.mkdir()
    for number in range(3):
        soundfile.write(clips / f"{number}.wav", voice(pitch=110 + 40 * number), RATE)
    vectors = np.concatenate([smile.process_file(file).to_numpy(np.float64) for file in sorted(clips.iterdir())])
    mean, std = vectors.mean(axis=0), vectors.std(axis=0) / 4  # so that some values are clipped
    norm_dir = bench.folder / "NormTerm/v1.8"
    norm_dir.mkdir(parents=True)
    utils.write_norm_stats(norm_dir, (mean, std), LABEL_NORMS)
    weights = {name: published(bench.folder / "trained", name, len(mean)) for name in LABEL_NORMS}

    models = sorted((bench.folder / "trained").iterdir())
    code, _, err = bench.run(
        "tools.predict", "clips", "--model", *models, "--norm-dir", norm_dir, "--set", "ComParE_2016", "--device", "cpu"
    )
    assert code == 0, err
    table = pd.read_csv("predictions.csv")
    assert list(table) == ["FileName", "EmoAct", "EmoDom", "EmoVal"]
    mean, std = (matfile.read_mat(norm_dir / f"feat_norm_{kind}.mat", "normal_para")[0] for kind in ("means", "stds"))
    x = np.nan_to_num(np.clip((vectors - mean) / np.where(std == 0, np.inf, std), -3, 3))
    for attribute, (label_mean, label_std) in LABEL_NORMS.items():
        expected = [forward(weights[attribute], row) * label_std + label_mean for row in x]
        assert table[f"Emo{attribute}"].to_numpy() == pytest.approx(np.array(expected), abs=1e-3)
    assert describe_clipped((np.abs(x) == 3).mean()) in err and "warning" in err


def test_stage_4_tests_the_attribute_head_of_a_checkpoint_of_stage_1(trained):
    code, _, err = trained.stage(4, "--model", trained.ssl_checkpoint)
    assert code == 0, err
    stem = trained.ssl_checkpoint.name.removesuffix(".pth.tar")
    table = pd.read_csv(f"results/{stem}_Test1.csv")
    corpus = utils.LabeledCorpus(
        utils.find_corpus(trained.corpus), "Val", trained.folder / "NormTerm", trained.folder / "feature_cache", 1
    )
    rows, (mean, std) = corpus.load("Test1").rows, corpus.label_norm
    network, _ = model.load_ssl_checkpoint(trained.ssl_checkpoint, rows.shape[1], 5, "Val")
    with torch.no_grad():
        expected = network(torch.from_numpy(np.array(rows)))[1].numpy() * std + mean
    assert table["prediction"].to_numpy() == pytest.approx(expected, abs=1e-5)
    result = json.loads((trained.folder / f"results/{stem}_Test1.json").read_text())
    assert result["clipped_share"] == pytest.approx((np.abs(rows) == 3).mean())


def test_a_published_checkpoint_of_another_attribute_is_refused_by_its_name(prepared):
    published(prepared.folder / "trained", "Act", 40)
    prepared.refuses(
        prepared.stage(4, "--model", "trained/" + NAME.format("Act")), "trained for Act", "-emo asks for Val"
    )
