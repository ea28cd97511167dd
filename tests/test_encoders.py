"""Features from a speech encoder, against the encoder called by hand on one clip at a time."""

import json

import numpy as np
import pytest
import soundfile
import torch

from deepmi import features
from deepmi.process import UserError
from tools import extract_features as tool
from tools import feature_sets

transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")
safetensors = pytest.importorskip("safetensors.torch")
RATE = feature_sets.SAMPLING_RATE
SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 8,
}  # fmt: skip


def save_encoder(folder, kind="Wav2Vec2", seed=1, norm="layer", rate=RATE):
    """A tiny encoder with random weights, as transformers saves it."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SMALL, feat_extract_norm=norm)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    masks = norm == "layer"
    transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=rate, do_normalize=True, return_attention_mask=masks
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def audio(tmp_path):
    """Clips of different lengths, one of a different rate, one too short for a frame."""
    folder = tmp_path / "Audios"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, seconds in enumerate((0.5, 0.31, 0.9, 0.31)):
        soundfile.write(folder / f"clip{number}.wav", 0.1 * rng.normal(size=int(seconds * RATE)), RATE)
    soundfile.write(folder / "other.flac", 0.1 * rng.normal(size=4410), 44100)
    soundfile.write(folder / "short.wav", 0.1 * rng.normal(size=16), RATE)
    return folder


@pytest.mark.parametrize(
    ("kind", "norm"), [("Wav2Vec2", "layer"), ("Wav2Vec2", "group"), ("WavLM", "layer"), ("Hubert", "group")]
)
def test_features_are_the_mean_of_the_last_hidden_states(kind, norm, audio, tmp_path):
    folder = save_encoder(tmp_path / "encoder", kind, norm=norm)
    summary = tool.extract_folder(audio, tmp_path / "mat", str(folder), workers=2)
    assert summary.extracted == 5 and [reason for _, reason in summary.failed] == ["too short (1 ms)"]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    for number in range(4):
        signal = soundfile.read(audio / f"clip{number}.wav", dtype="float32")[0]
        signal = (signal - signal.mean()) / np.sqrt(signal.var() + 1e-7)
        with torch.inference_mode():
            expected = model(torch.from_numpy(signal)[None]).last_hidden_state.mean(dim=1)[0]
        found = features.read_feature(tmp_path / "mat" / f"clip{number}.mat")
        assert found.shape == (24,) and np.allclose(found, expected, atol=1e-5)


def test_a_long_recording_is_heard_in_pieces_of_equal_length(tmp_path, monkeypatch):
    opened = feature_sets.open_set(str(save_encoder(tmp_path / "encoder")), "cpu")
    signal = np.random.default_rng(1).normal(size=RATE).astype(np.float32)
    halves = opened.features_of([signal[: RATE // 2], signal[RATE // 2 :]])
    monkeypatch.setattr(feature_sets, "LONGEST_PIECE", 0.5)
    (found,) = opened.features_of([signal])
    assert found.shape == (1, 24) and np.allclose(found, np.mean(halves, axis=0), atol=1e-6)


def test_a_run_that_continues_gives_the_same_bytes_and_mixes_no_encoders(audio, tmp_path):
    first, second = (save_encoder(tmp_path / f"encoder{seed}", seed=seed) for seed in (1, 2))
    for name in ("whole", "again"):
        tool.extract_folder(audio, tmp_path / name, str(first))
    (tmp_path / "again" / "clip1.mat").unlink()
    summary = tool.extract_folder(audio, tmp_path / "again", str(first))
    assert (summary.extracted, summary.kept) == (1, 4)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
    tool.extract_folder(audio, tmp_path / "again", str(first))  # short.wav is tried again, in a batch with the rest
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert features.read_feature_set(tmp_path / "again").startswith("wav2vec2-")
    with pytest.raises(UserError, match="different folder"):
        tool.extract_folder(audio, tmp_path / "again", str(second))


def test_folders_without_a_usable_encoder_are_refused(audio, tmp_path, bench):
    (tmp_path / "empty").mkdir()
    save_encoder(tmp_path / "other_rate", rate=8000)
    for folder in ("incomplete", "cut", "too_wide"):
        save_encoder(tmp_path / folder)
    weights = safetensors.load_file(tmp_path / "incomplete/model.safetensors")
    kept = {key: weights[key] for key in weights if "layers.1." not in key}
    safetensors.save_file(kept, tmp_path / "incomplete/model.safetensors")
    whole = (tmp_path / "cut/model.safetensors").read_bytes()
    (tmp_path / "cut/model.safetensors").write_bytes(whole[: len(whole) // 2])
    config = json.loads((tmp_path / "too_wide/config.json").read_text())
    (tmp_path / "too_wide/config.json").write_text(json.dumps(config | {"intermediate_size": 2**19}))
    for folder, words in (
        ("empty", "no config.json"),
        ("other_rate", "8000 Hz"),
        ("incomplete", "weights are missing"),
        ("cut", "not an encoder"),
        ("too_wide", "not an encoder"),
    ):
        bench.refuses(bench.run("tools.extract_features", audio, tmp_path / "mat", "--set", tmp_path / folder), words)
    assert not list((tmp_path / "mat").glob("*.mat"))
