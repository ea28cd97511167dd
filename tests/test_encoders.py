"""Features from a speech encoder, against the encoder called by hand on one clip at a time."""

import functools
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


def save_whisper(folder):
    """A tiny Whisper with random weights, which hears 1 s at once."""
    torch.manual_seed(2)
    config = transformers.WhisperConfig(
        d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=16, max_source_positions=50, vocab_size=100,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    return folder


def normalised(signal):
    """As the feature extractor of wav2vec 2.0 does it."""
    return torch.from_numpy((signal - signal.mean()) / np.sqrt(signal.var() + 1e-7))[None]


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
        with torch.inference_mode():
            expected = model(normalised(signal)).last_hidden_state.mean(dim=1)[0]
        found = features.read_feature(tmp_path / "mat" / f"clip{number}.mat")
        assert found.shape == (24,) and np.allclose(found, expected, atol=1e-5)


def test_a_long_recording_is_heard_in_pieces_of_equal_length(tmp_path, monkeypatch):
    opened = feature_sets.open_set(str(save_encoder(tmp_path / "encoder")), "cpu")
    signal = np.random.default_rng(1).normal(size=RATE).astype(np.float32)
    halves = opened.features_of([signal[: RATE // 2], signal[RATE // 2 :]])
    monkeypatch.setattr(opened, "_longest", 0.5)
    (found,) = opened.features_of([signal])
    assert found.shape == (1, 24) and np.allclose(found, np.mean(halves, axis=0), atol=1e-6)


def test_a_layer_or_the_mean_of_all_with_mean_and_standard_deviation_over_time(audio, tmp_path):
    folder = save_encoder(tmp_path / "encoder", "WavLM")
    signal = soundfile.read(audio / "clip0.wav", dtype="float32")[0]
    with torch.inference_mode():
        output = transformers.AutoModel.from_pretrained(folder).eval()(normalised(signal), output_hidden_states=True)
    for layer, states in (
        ("0", output.hidden_states[0]),
        ("1", output.hidden_states[1]),
        ("2", output.last_hidden_state),
        ("mean", torch.stack(output.hidden_states).mean(dim=0)),
    ):
        name = feature_sets.with_options(str(folder), None, layer, "mean+std")
        (found,) = feature_sets.open_set(name, "cpu").features_of([signal])
        expected = torch.cat([states[0].mean(dim=0), states[0].std(dim=0, correction=0)])
        assert found.shape == (1, 48) and np.allclose(found, expected, atol=1e-5)
    names = [feature_sets.open_set(f"{folder}#layer={layer}", "cpu").name for layer in "12"]
    assert names[0] == f"{names[1]}#layer=1"  # 2 is the last one, and its set is that of no --layer


@pytest.mark.parametrize("seconds", [0.8, 2.5])
def test_whisper_hears_a_clip_in_pieces_and_silence_after_it_is_not_pooled(seconds, tmp_path):
    folder = save_whisper(tmp_path / "whisper")
    signal = np.random.default_rng(3).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)
    prepare = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    model = transformers.WhisperModel.from_pretrained(folder).encoder.eval()
    frames = []
    for piece in np.array_split(signal, int(np.ceil(seconds))):
        heard = prepare(piece, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            frames.append(model(**heard).last_hidden_state[0][: (len(piece) // 160 + 1) // 2])
    frames = torch.cat(frames)
    expected = torch.cat([frames.mean(dim=0), frames.std(dim=0, correction=0)])
    opened = feature_sets.open_set(f"{folder}#pool=mean+std", "cpu")
    found, none = opened.features_of([signal, signal[:100]])
    assert none is None and np.allclose(found, expected, atol=2e-3 if seconds > 1 else 1e-5)  # pieces of unequal length
    assert opened.name.startswith("whisper-") and opened.name.endswith("#pool=mean+std")


def test_layers_that_an_encoder_or_a_set_lacks_are_refused(audio, tmp_path, bench):
    folder = save_encoder(tmp_path / "encoder")
    run = functools.partial(bench.run, "tools.extract_features", audio, tmp_path / "mat", "--set")
    bench.refuses(run(folder, "--layer", 3), "--layer 3", "layers 0 (its input) to 2")
    bench.refuses(run("IS13", "--pool", "mean+std"), "--pool", "IS13 is a set of openSMILE")
    bench.refuses(run(folder, "--revision", "main"), "--revision", "only for encoders of the Hugging Face hub")
    code, _, err = run(folder, "--layer", "weighted")
    assert code == 2 and "learned with a task" in err


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
