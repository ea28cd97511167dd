"""Files from strangers: they run no code, claim no memory beyond their size, and lead out of no folder."""

import collections
import functools
import io
import json
import os
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import stopped_before_the_end

import model
import utils
from benchmarks import fuzz
from deepmi import cli, features, runtime, tables
from deepmi.process import UserError, notify
from tools import corpora, encoders, sound

WIDTH = 12


@pytest.fixture
def regressor(tmp_path):
    """(file, its weights)."""
    runtime.seed_everything(1)
    weights = model.DenseNet(WIDTH, width=4).state_dict()
    model.save_regressor(tmp_path / "r.pt.tar", weights, {"emo_attr": "Val", "epoch": 3})
    return tmp_path / "r.pt.tar", collections.OrderedDict((key, value.clone()) for key, value in weights.items())


def refused(read, *words):
    """`read` raises a `UserError` with these words, in seconds and little memory."""
    with fuzz.within_limits(), pytest.raises(UserError) as error:
        read()
    for word in words:
        assert word in str(error.value), str(error.value)


def refuses(path, *words):
    refused(lambda: model.load_regressor(path, WIDTH), *words)


def repeated(rows, columns, kind=torch.float32):
    """A matrix of one number that lies in memory once."""
    return torch.ones(1, dtype=kind).as_strided((rows, columns), (0, 0))


def weight(value):
    return lambda weights: weights.update({"dense_net.2.weight": value})


def facts(value):
    """What a checkpoint says of its training."""
    return lambda weights: setattr(weights, "_metadata", {"": {"deepmi": value}})


ENDLESS = functools.reduce(lambda inner, _: (inner, inner, inner), range(40), ("x" * 100,))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (weight(repeated(10**6, 10**6)), "more than its"),
        (weight(repeated(10**5, 10**5, torch.float16)), "more than its"),
        (weight(torch.zeros(4, 4, device="meta")), "meta_tensor_no_storage"),
        (weight(torch.zeros(4, 4).to_sparse()), "_rebuild_sparse_tensor"),
        (weight(torch.zeros(4, 4, dtype=torch.complex64)), "unusual kind"),
        (weight(torch.zeros(4, 4, dtype=torch.int8)), "not a floating-point tensor"),
        (weight("weights"), "not a floating-point tensor"),
        (weight({1, 2}), "could run code"),
        (facts({"emo_attr": ["Val"]}), "facts about its training"),
        (facts({"emo_attr": "Val", "epoch": torch.zeros(2)}), "facts about its training"),
        (facts({"emo_attr": "Val", "epoch": "9" * 2000}), "facts about its training"),
        (facts({"emo_attr": "Val", "validation_ccc_loss": float("nan")}), "facts about its training"),
        (facts({"feature_set": 3}), "facts about its training"),
        (facts(["Val"]), "facts about its training"),
        (facts({"epoch": ENDLESS}), "more than its"),
    ],
)
def test_a_tensor_or_a_fact_that_is_none_of_ours_is_refused(regressor, spoil, words):
    path, weights = regressor
    spoil(weights)
    torch.save(weights, path)
    refuses(path, words)


@pytest.mark.parametrize("nothing", ["x", ["x"], {"": "x"}, {"": None}, {}])
def test_a_checkpoint_may_say_nothing_of_its_training(regressor, nothing):
    path, weights = regressor
    weights._metadata = nothing
    torch.save(weights, path)
    assert model.load_regressor(path, WIDTH)[1] == {}


def test_an_archive_that_unpacks_without_end_is_refused(regressor):
    path, weights = regressor
    weights["dense_net.0.weight"] = torch.zeros(2**21, 16)
    stream = io.BytesIO()
    torch.save(weights, stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part))
    del stream
    assert path.stat().st_size < 2**20
    refuses(path, "unpack to 134,")


@pytest.mark.parametrize("what", ["builtins\nbytearray", "torch\nones", "torch.nn.modules.linear\nLinear"])
@pytest.mark.parametrize("older", ["", "older", "older, an archive behind"])
def test_a_line_that_takes_memory_is_refused(regressor, what, older):
    path, weights = regressor
    data = b"\x80\x02c" + what.encode() + b"\n\x8a\x05\x00\xe8\x76\x48\x17\x85R."  # of 10**11
    if older:
        behind = path.read_bytes() if "behind" in older else b""
        torch.save(weights, path, _use_new_zipfile_serialization=False)
        start = path.read_bytes()
        path.write_bytes(start[: start.index(b"\x80\x02ccollections")] + data + behind)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", b"3")
    refuses(path, what.replace("\n", "."), "could run code")


def test_one_wrong_bit_of_a_weight_is_found(regressor):
    path, weights = regressor
    data = bytearray(path.read_bytes())
    place = data.index(weights["dense_net.2.weight"].numpy().tobytes())
    data[place + 5] ^= 4
    path.write_bytes(data)
    refuses(path, "checksum")


def test_torchs_older_format_is_read_and_held_to_its_size(regressor):
    path, weights = regressor
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert torch.equal(
        model.load_regressor(path, WIDTH)[0].state_dict()["dense_net.0.bias"], weights["dense_net.0.bias"]
    )
    count = b"K" + bytes([weights["dense_net.0.weight"].numel()])
    for claim in (10**9, 10**12):
        path.write_bytes(path.read_bytes().replace(count, b"\x8a\x08" + struct.pack("<q", claim), 1))
        refuses(path, "damaged")


def test_a_checkpoint_that_is_cut_anywhere_or_is_none_is_refused(regressor):
    path, _ = regressor
    data = path.read_bytes()
    for content in (*(data[:end] for end in (0, 3, 4, 900, -1)), b"no checkpoint at all", b"PK\x03\x04" + b"\0" * 40):
        path.write_bytes(content)
        refuses(path, "damaged")


@pytest.mark.parametrize("stage", [1, 3])
def test_a_resume_file_that_is_damaged_or_of_other_networks_is_refused(trained, stage):
    more = ["-ep", 3] if stage == 1 else ["-ep", 9]
    with stopped_before_the_end():
        assert trained.stage(stage, *more)[0] == 130
    (resume,) = trained.folder.glob("Models/*.resume")
    good = resume.read_bytes()
    optimizer = "adam" if stage == 1 else "optimizer"
    for spoil in (
        lambda saved: saved["state"]["weights"].popitem(),
        lambda saved: saved["state"].pop(optimizer),
        lambda saved: saved["state"][optimizer][0].update(exp_avg=torch.zeros(3)),
        lambda saved: saved.update(best=3),
        lambda saved: saved.update(history="[{}]"),
        lambda saved: saved.update(identity="[" * 10**5),
    ):
        saved = torch.load(io.BytesIO(good), weights_only=True)
        spoil(saved)
        torch.save(saved, resume)
        trained.refuses(trained.stage(stage, *more), resume.name, "--no-resume")
    for content in (b"broken", trained.regressor.read_bytes()):
        resume.write_bytes(content)
        trained.refuses(trained.stage(stage, *more), resume.name, "--no-resume")
    trained.runs(stage, *more, "--no-resume")
    assert not resume.exists()


def test_texts_without_end_and_pipes_are_refused_unread(tmp_path):
    endless, pipe = tmp_path / "labels_consensus.csv", tmp_path / "labels_detailed.csv"
    with endless.open("wb") as stream:
        stream.truncate(2**40)
    os.mkfifo(pipe)
    refused(lambda: utils.read_labels(endless), "1,099,511,627,776 bytes")
    refused(lambda: utils.read_detailed_labels(pipe), "not a regular file")


@pytest.mark.parametrize("claim", [2**36 - 1, 0])
def test_a_header_that_claims_hours_or_nothing_is_refused(tmp_path, claim):
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(800), 8000, format="FLAC")
    data = bytearray(stream.getvalue())
    place = data.index(b"fLaC") + 18
    (facts,) = struct.unpack_from(">Q", data, place)
    struct.pack_into(">Q", data, place, facts >> 36 << 36 | claim)
    (tmp_path / "a.flac").write_bytes(data)
    clip = sound.Clip(tmp_path / "a.flac")
    refused(lambda: sound.read_signal(clip), "header claims")
    assert sound.seconds_of(clip.recording) == 0


def test_hours_of_silence_in_few_bytes_are_refused_undecoded(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 1000, 1) as stream:
        for _ in range(8):
            stream.write(np.zeros(2**20))
    assert (tmp_path / "a.flac").stat().st_size < 50_000
    refused(lambda: sound.read_signal(sound.Clip(tmp_path / "a.flac")), "2.3 hours; expected at most 2")


def test_a_recording_is_read_in_pieces_and_to_its_limit(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (5000, 2))
    soundfile.write(tmp_path / "a.wav", noise, sound.SAMPLING_RATE, subtype="FLOAT")
    clips = [sound.Clip(tmp_path / "a.wav", *ends) for ends in ((), (0.1, 0.2), (0.1, None))]
    whole = [sound.read_signal(clip) for clip in clips]
    assert [len(signal) for signal in whole] == [5000, 1600, 3400]
    assert np.allclose(whole[0], noise.mean(axis=1), atol=1e-7)
    monkeypatch.setattr(sound, "PIECE_SAMPLES", 600)
    assert all(np.array_equal(sound.read_signal(clip), signal) for clip, signal in zip(clips, whole))
    monkeypatch.setattr(sound, "LONGEST_CLIP", 0.25)
    refused(lambda: sound.read_signal(clips[0]), "hours; expected", "split it")
    assert np.array_equal(sound.read_signal(clips[1]), whole[1])


@pytest.mark.parametrize(
    "entry",
    [
        *("../secret.wav", "sub/../../secret.wav", "{outside}/secret.wav", "/", "..", ".", "sub/..", "notes.txt"),
        *("x\0.wav", "x" * 5000, "a\nb"),
    ],
)
def test_no_entry_of_a_table_leads_out_of_the_folder(tmp_path, entry):
    clips, outside = tmp_path / "clips", tmp_path
    (clips / "sub").mkdir(parents=True)
    (clips / "notes.txt").touch()
    for path in (clips / "sub/in.wav", clips / "top.wav", outside / "secret.wav", outside / "top.wav"):
        soundfile.write(path, np.zeros(100), 16000)
    recordings = corpora.Recordings(clips)
    assert recordings.find("sub/../sub/in.flac") == clips / "sub" / "in.wav"
    assert recordings.find(f"{outside}/top.wav") == clips / "top.wav"  # the name counts, not the folder
    assert recordings.find(entry.format(outside=outside)) is None


@pytest.mark.parametrize("looked_at", [True, False])
def test_code_that_comes_with_an_encoder_is_not_run(tmp_path, monkeypatch, looked_at):
    pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    ran = tmp_path / "ran"
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    auto = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoFeatureExtractor": "code.Extractor"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "Mine", "sampling_rate": 16000, "auto_map": auto})
    )
    if not looked_at:  # transformers is told so as well
        monkeypatch.setattr(encoders, "refuse_foreign_code", lambda source, config: None)
    words = "auto_map" if looked_at else "transformers can load"
    refused(lambda: encoders.EncoderSet(folder, torch.device("cpu")), words)
    assert not ran.exists()


@pytest.mark.parametrize(
    "change", [{"attn_implementation": "someone/kernel"}, {"quantization_config": {"quant_method": "x"}}]
)
def test_an_encoder_that_names_code_elsewhere_is_refused(tmp_path, change):
    pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    from test_encoders import save_encoder

    folder = save_encoder(tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    refused(lambda: encoders.EncoderSet(folder, torch.device("cpu")), next(iter(change)))


def test_a_remembered_feature_set_opens_no_folder(trained, tmp_path):
    (tmp_path / "encoder").mkdir()
    features.write_feature_set(trained.folder / "NormTerm", str(tmp_path / "encoder"))
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    found = trained.run("tools.predict", tmp_path / "a.wav", "--model", trained.regressor)
    trained.refuses(found, "name its folder with --set")


@pytest.mark.parametrize("text", ["1_000", "٣", "\uff14", "inf", "1e400", "0x4", "4,5", "4.0abc", "True", "1e9"])
def test_a_rating_is_a_plain_number_or_refused(tmp_path, text):
    refused(lambda: tables.parse_rating(tmp_path, "a.wav", text), "expected a number")
    for plain, value in (("4", 4), (" 4.5 ", 4.5), ("+.4e1", 4), (3, 3), (2.5, 2.5), ("-2.", -2)):
        assert tables.parse_rating(tmp_path, "a.wav", plain) == value


def test_two_rows_never_share_a_name(tmp_path):
    for path in ("a/b_c.wav", "a_b/c.wav", "z/c.wav"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / path, np.zeros(100), 16000)
    table = pd.DataFrame({"FileName": ["a/b_c.wav", "a_b/c.wav", "z/c.wav"]})
    refused(lambda: corpora.join_recordings(table, corpora.Recordings(tmp_path), "t.csv"), "the same name")


def test_what_names_hold_does_nothing_to_a_terminal_or_a_table(capsys):
    notify("warning: a\x1b[31m\x9b\u202eb\udcff\n" + "x" * 5000)
    message = capsys.readouterr().err
    assert message.startswith(r"warning: a\x1b[31m\x9b\u202eb\udcff\nx") and len(message) < 1001
    assert str(UserError("a\nb\x1b[31m é\u2028")) == r"a\nb\x1b[31m é\u2028"
    assert 900 < len(str(UserError("x" * 5000))) < 1000
    assert cli.markdown_table([["a"], ["x|y\nz"]])[2] == r"| x\|y\nz |"
