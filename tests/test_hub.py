"""Encoders of the Hugging Face hub, from a cache that is laid out here: nothing is downloaded."""

import pytest
import soundfile
import torch
from conftest import voice

import model
import utils
from deepmi import features
from tools import encoders, feature_sets

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
huggingface_hub = pytest.importorskip("huggingface_hub")
from test_encoders import save_encoder  # noqa: E402

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
NAME = "someone/wavlm-tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache with two commits of an encoder, main and a branch, on a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    feature_sets.open_set.cache_clear()
    folder = tmp_path / "hub/models--someone--wavlm-tiny"
    for number, (branch, commit) in enumerate((("main", COMMIT), ("refs/pr/2", OTHER))):
        save_encoder(folder / "snapshots" / commit, "WavLM", seed=number)
        ref = folder / "refs" / branch
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return folder


@pytest.fixture
def clips(bench):
    """Three recordings, and regressors and statistics for features of the encoder's width."""
    (bench.folder / "clips").mkdir()
    for number in range(3):
        soundfile.write(bench.folder / f"clips/{number}.wav", voice(pitch=100 + 40 * number), 16000)
    return bench


def test_an_encoder_of_the_hub_is_recorded_with_its_commit_layer_and_pooling(hub, clips):
    extract = ("tools.extract_features", "clips", "mat", "--set", NAME, "--layer", 1, "--pool", "mean+std")
    code, out, err = clips.run(*extract)
    assert code == 0 and "3 recordings extracted" in out, err
    recorded = features.read_feature_set(clips.folder / "mat")
    assert recorded == f"{NAME}@{COMMIT}#layer=1,pool=mean+std"
    assert features.read_feature(clips.folder / "mat/0.mat").shape == (48,)
    (hub / "refs/main").write_text(OTHER)  # main moves on: the recorded name still means the same encoder
    feature_sets.open_set.cache_clear()
    code, out, _ = clips.run("tools.extract_features", "clips", "mat", "--set", recorded)
    assert code == 0 and "0 recordings extracted, 3 there before" in out
    clips.refuses(clips.run(*extract), COMMIT, OTHER, "different folder")
    for more in (("--revision", "refs/pr/2"), ("--revision", OTHER)):
        assert clips.run("tools.extract_features", "clips", "other", "--set", NAME, *more)[0] == 0
        assert features.read_feature_set(clips.folder / "other") == f"{NAME}@{OTHER}"


def test_predictions_take_the_revision_layer_and_pooling_that_were_recorded(hub, clips):
    recorded = f"{NAME}@{OTHER}#layer=mean,pool=mean+std"
    (clips.folder / "NormTerm").mkdir()
    utils.write_norm_stats(clips.folder / "NormTerm", (torch.zeros(48), torch.ones(48)), feature_set=recorded)
    utils.write_norm_stats(clips.folder / "NormTerm", None, {"Val": (4.0, 1.0)})
    file = clips.regressor
    file.parent.mkdir()
    model.save_regressor(file, model.DenseNet(48).state_dict(), {"emo_attr": "Val", "feature_set": recorded})
    predict = ("tools.predict", "clips", "--model", file, "--device", "cpu")
    tables = []
    for more in ((), ("--set", NAME), ("--set", recorded), ("--set", NAME, "--layer", "mean", "--pool", "mean+std")):
        code, _, err = clips.run(*predict, *more)
        assert code == 0, err
        tables.append((clips.folder / "predictions.csv").read_text())
    assert len(set(tables)) == 1
    for more in (("--revision", "main"), ("--layer", 1), ("--pool", "mean")):
        clips.refuses(clips.run(*predict, "--set", NAME, *more), "feature set", recorded)
    (hub / "snapshots" / OTHER / "model.safetensors").unlink()
    clips.refuses(clips.run(*predict), recorded, f"name it with --set {NAME} to download it")


def test_names_that_the_hub_or_the_cache_lacks_are_refused(hub, clips):
    def refuses(name, *words, more=()):
        clips.refuses(clips.run("tools.extract_features", "clips", "mat", "--set", name, *more), *words)

    refuses("someone/other", "not in the cache", "Connect to the network")
    refuses(NAME, "@v9", "not in the cache", more=("--revision", "v9"))
    refuses("other", "nor an encoder of the Hugging Face hub (OWNER/NAME)")
    weights = hub / "snapshots" / COMMIT / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    refuses(NAME, "no weights as safetensors", "--revision", "refs/pr/N")
    assert not list((clips.folder / "mat").glob("*.mat"))


def test_errors_of_the_hub_become_one_message(hub, monkeypatch):
    errors = huggingface_hub.errors
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()

    def fail(*_, local_files_only=False, **__):
        raise errors.LocalEntryNotFoundError("not here") if local_files_only else kind("no", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for kind, words in (
        (errors.RepositoryNotFoundError, "no such public model"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.GatedRepoError, "restricts access"),
    ):
        with pytest.raises(encoders.UserError, match=words):
            feature_sets.open_set(f"someone/gone-{kind.__name__}")


def test_a_download_asks_for_configuration_and_safetensors_alone(hub, monkeypatch):
    asked = []

    def download(repo, *, local_files_only=False, **options):
        if local_files_only and not asked:
            raise FileNotFoundError
        asked.append(options)
        return str(hub / "snapshots" / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert feature_sets.open_set("someone/new").name == f"someone/new@{COMMIT}"
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked[0]["allow_patterns"])


def test_a_corpus_is_prepared_with_an_encoder_of_the_hub(hub, clips):
    (clips.folder / "t.csv").write_text("file,act\n0.wav,1\n1.wav,2\n2.wav,3\n")
    argv = ("csv", "t.csv", "--audio", "clips", "--out", "out", "--file-column", "file", "--arousal-column", "act")
    code, _, err = clips.run("tools.prepare_corpus", *argv, "--label-scale", 1, 5, "--set", NAME, "--pool", "mean+std")
    assert code == 0, err
    folder = clips.folder / f"out/Features/someone--wavlm-tiny@{COMMIT}#pool=mean+std/feat_mat"
    assert len(list(folder.glob("*.mat"))) == 3 and utils.find_corpus(clips.folder / "out").features == folder
