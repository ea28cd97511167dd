"""Fine-tuning a tiny encoder: the CCC of whole batches, resuming, ranks, and predictions from the file."""

import argparse
import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import Killed, kill, log_of, read_rows
from test_ranks import on_two_ranks

from deepmi import ccc_loss, tensors
from deepmi.process import UserError
from tools import finetuned

transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")
from test_encoders import save_encoder  # noqa: E402  (it needs transformers)

from examples import finetune_encoder as tool  # noqa: E402

RATE = 16000
NORMS = {"Act": (4.0, 1.5), "Val": (3.5, 1.0)}
SMALL = ("-emo", "Val", "Act", "--metric", "metric.json", "-ep", 3, "--bins", 2, "-batch", 16, "--workers", 0)
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")


def with_settings(folder, file="config.json", **settings):
    """An encoder's folder, with some settings changed."""
    file = folder / file
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def without_dropout(folder):
    """An encoder's folder, with every dropout set to 0."""
    return with_settings(folder, **dict.fromkeys(DROPOUTS, 0.0))


def signals(count, seed=0):
    """Noise of different lengths."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=2000 + 400 * n).astype(np.float32)) for n in range(count)]


@pytest.fixture
def speech(bench):
    """The bench with a recording per utterance, a metric and a tiny encoder; labels decide the recordings' loudness."""
    _, *rows = read_rows(bench.labels)
    audio = bench.corpus / "Audios"
    audio.mkdir()
    rng = np.random.default_rng(0)
    for name, _, act, *_ in rows:
        soundfile.write(audio / name, rng.normal(size=3000) * float(act) / 40, RATE)
    metric = {row[0]: float(row[3]) for row in rows if row[7] == "Train"}
    (bench.folder / "metric.json").write_text(json.dumps(metric))
    save_encoder(bench.folder / "encoder")
    return bench


def finetune(bench, *more, code=0, encoder="encoder"):
    """Run the example; its exit status must be `code`."""
    result = bench.run("examples.finetune_encoder", encoder, "--corpus", bench.corpus, *SMALL, *more)
    assert result[0] == code, result[2]
    return result


def checkpoint(bench, folder="Models"):
    return bench.folder / folder / "FinetunedEncoder_deepmi@_Act-Val.pt.tar"


# ---------------------------------------------------------------------------------------------------------------------
# The network


@pytest.mark.parametrize(("kind", "norm"), [("Wav2Vec2", "layer"), ("WavLM", "layer"), ("Hubert", "group")])
def test_a_file_gives_back_the_network(kind, norm, tmp_path):
    source = save_encoder(tmp_path / "encoder", kind, norm=norm)
    network = finetuned.from_pretrained(str(source), NORMS).eval()
    finetuned.save_finetuned(tmp_path / "x.pt.tar", network, network.state_dict(), {"seed": "1"})
    shutil.rmtree(source)  # the file is all that is needed
    again = finetuned.load_finetuned(tmp_path / "x.pt.tar")
    assert finetuned.is_finetuned(tmp_path / "x.pt.tar")
    assert (again.masks, again.label_norm) == (norm == "layer", NORMS)
    with torch.inference_mode():
        assert torch.equal(network(signals(1)), again(signals(1)))


def test_padding_is_not_heard(tmp_path):
    network = finetuned.from_pretrained(str(save_encoder(tmp_path / "encoder", "WavLM")), NORMS).eval()
    with torch.inference_mode():
        together, alone = network(signals(3)), torch.cat([network([signal]) for signal in signals(3)])
    assert torch.allclose(together, alone, atol=1e-5) and together.std(dim=0).min() > 1e-3


def test_a_group_norm_does_not_hear_the_padding(tmp_path):
    source = save_encoder(tmp_path / "encoder", "WavLM", norm="group")
    with_settings(source, "preprocessor_config.json", return_attention_mask=True)  # as wavlm-base-plus has it
    network = finetuned.from_pretrained(str(without_dropout(source)), NORMS)
    losses = []
    for micro_batch in (1, 4):
        args = argparse.Namespace(micro_batch=micro_batch, seed=1, precision="fp32")
        losses.append(tool.backward(network, signals(4), torch.arange(8.0).reshape(4, 2), args, 0, 0).item())
    assert losses[0] == losses[1] and not network.masks


def test_settings_of_classes_and_outputs_have_no_effect(tmp_path):
    source = with_settings(save_encoder(tmp_path / "encoder", "WavLM"), num_labels=10**9, return_dict=False)
    network = finetuned.from_pretrained(str(source), NORMS).eval()
    finetuned.save_finetuned(tmp_path / "x.pt", network, network.state_dict(), {})
    content = tensors.load_tensors(tmp_path / "x.pt")
    content["config"] = json.dumps(json.loads(content["config"]) | {"num_labels": 10**9, "return_dict": False})
    tensors.save_tensors(content, tmp_path / "x.pt")
    with torch.inference_mode():
        assert torch.equal(finetuned.load_finetuned(tmp_path / "x.pt")(signals(1)), network(signals(1)))


def test_attentive_statistics_are_mean_and_deviation_under_equal_weights():
    pool = finetuned.AttentiveStatistics(3)
    torch.nn.init.zeros_(pool.score[2].weight)
    states, heard = torch.randn(2, 5, 3), torch.tensor([[True] * 5, [True, True, False, False, False]])
    for found, some in zip(pool(states, heard), (states[0], states[1, :2])):
        expected = torch.cat([some.mean(dim=0), (some.var(dim=0, correction=0) + 1e-6).sqrt()])
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_have_the_gradient_of_the_whole_batch(micro_batch, tmp_path):
    source = without_dropout(save_encoder(tmp_path / "encoder"))
    network = finetuned.from_pretrained(str(source), NORMS).train()
    targets = torch.randn(8, 2)
    args = argparse.Namespace(micro_batch=micro_batch, seed=1, precision="fp32")
    loss = tool.backward(network, signals(8), targets, args, 0, 0)
    found = {name: value.grad for name, value in network.named_parameters()}
    network.zero_grad()
    z = network(signals(8))
    whole = (ccc_loss(z[:, 0], targets[:, 0]) + ccc_loss(z[:, 1], targets[:, 1])) / 2
    whole.backward()
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    assert found["encoder.encoder.layers.0.attention.k_proj.weight"].abs().max() > 0
    for name, value in network.named_parameters():
        assert value.grad is None or torch.allclose(found[name], value.grad, atol=1e-5), name


def test_both_passes_drop_the_same_units(tmp_path):
    network = finetuned.from_pretrained(str(save_encoder(tmp_path / "encoder")), NORMS).train()
    outputs = []
    network.register_forward_hook(lambda _, inputs, output: outputs.append(output.detach()))
    args = argparse.Namespace(micro_batch=2, seed=1, precision="fp32")
    for step in range(2):
        tool.backward(network, signals(6), torch.randn(6, 2), args, 0, step)
    assert all(torch.equal(outputs[i], outputs[i + 3]) for i in (0, 1, 2, 6, 7, 8))
    assert not torch.equal(outputs[0], outputs[6])


def test_bf16_trains(tmp_path):
    network = finetuned.from_pretrained(str(save_encoder(tmp_path / "encoder")), NORMS).train()
    args = argparse.Namespace(micro_batch=2, seed=1, precision="bf16")
    assert 0 < tool.backward(network, signals(4), torch.randn(4, 2), args, 0, 0) < 2
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_it_trains_in_the_order_of_the_metric_and_keeps_the_best_epoch(speech):
    _, out, _ = finetune(speech, "--rate", "1e-3", "--head-rate", "1e-2", "-ep", 6)
    lines = log_of(checkpoint(speech))
    assert [line["utterances"] for line in lines[1:-1]] == [30, 60, 60, 60, 60, 60]
    assert lines[-2]["ccc_loss"] < lines[2]["ccc_loss"] and "validation CCC Act" in out
    best = min(lines[1:-1], key=lambda line: line["validation_ccc_loss"])
    assert lines[-1]["best_epoch"] == best["epoch"]
    code, _, _ = speech.run("tools.predict", speech.corpus / "Audios", "--model", checkpoint(speech))
    rows = pd.read_csv(speech.folder / "predictions.csv").merge(pd.read_csv(speech.labels), on="FileName")
    development = rows[rows["Split_Set"] == "Development"]
    assert code == 0 and list(rows)[:3] == ["FileName", "EmoAct_x", "EmoVal_x"]
    for attribute in ("Act", "Val"):
        truth, prediction = development[f"Emo{attribute}_y"], development[f"Emo{attribute}_x"]
        expected = best[f"validation_ccc_{attribute}"]
        assert float(ccc_loss(*map(torch.tensor, (prediction.values, truth.values)))) == pytest.approx(
            1 - expected, abs=1e-3
        )


def test_a_killed_run_continues_to_the_same_bytes(speech, monkeypatch):
    finetune(speech)
    whole = tool.train_epoch

    def killed_in_epoch_1(*arguments):
        return kill() if arguments[4].epoch == 1 else whole(*arguments)

    monkeypatch.setattr(tool, "train_epoch", killed_in_epoch_1)
    with pytest.raises(Killed):
        finetune(speech, "--model-dir", "M")
    monkeypatch.setattr(tool, "train_epoch", whole)
    _, out, _ = finetune(speech, "--model-dir", "M")
    assert "resuming after 1 epochs" in out
    assert checkpoint(speech, "M").read_bytes() == checkpoint(speech).read_bytes()
    assert "already trained" in finetune(speech)[1]
    first = sorted((speech.corpus / "Audios").iterdir())[0]
    soundfile.write(first, np.full(3000, 0.1), RATE)
    assert "already trained" not in finetune(speech)[1]


def test_missing_recordings_and_values_are_left_out_on_request(speech):
    metric = json.loads((speech.folder / "metric.json").read_text())
    first, second, *_ = sorted(metric)
    (speech.corpus / "Audios" / first).unlink()
    del metric[second]
    (speech.folder / "metric.json").write_text(json.dumps(metric))
    speech.refuses(finetune(speech, code=2), "no recording of 1 of 60", first, "--skip-missing")
    _, _, err = finetune(speech, "--skip-missing")
    assert first in err and second in err and log_of(checkpoint(speech))[-2]["utterances"] == 58


def test_two_ranks_have_the_loss_of_one(speech):
    without_dropout(speech.folder / "encoder")
    more = ("--rate", "1e-3", "--device", "cpu", "-batch", 13)  # the last batches cannot be split evenly
    finetune(speech, *more, "--micro-batch", 16)
    command = ("-m", "examples.finetune_encoder", "encoder", "--corpus", "corpus", *SMALL, *more)
    done = on_two_ranks(*command, "--micro-batch", 4, "--model-dir", "M2", folder=speech.folder)
    assert done.returncode == 0 and done.stdout.count("epoch   0") == 1, done.stderr
    one, two = (log_of(checkpoint(speech, folder)) for folder in ("Models", "M2"))
    assert (one[0]["ranks"], two[0]["ranks"]) == (1, 2)
    for alone, shared in zip(one[1:-1], two[1:-1], strict=True):
        for name in ("ccc_loss", "validation_ccc_Act", "validation_ccc_Val"):
            assert shared[name] == pytest.approx(alone[name], abs=1e-4)


def test_bad_input_gets_one_message(speech):
    def refuses(*argv, words, encoder="encoder"):
        speech.refuses(speech.run("examples.finetune_encoder", encoder, "--corpus", "corpus", *argv), *words)

    refuses(words=("--order deepmi", "--metric"))
    (speech.folder / "other.json").write_text('{"a.wav": 1.0}')
    refuses("--metric", "other.json", words=("lacks 60", "--skip-missing"))
    for text in ("nan", "0", "inf"):
        code, _, err = speech.run("examples.finetune_encoder", "encoder", "--corpus", "corpus", "--seconds", text)
        assert code == 2 and "a finite number above 0" in err
    table = pd.read_csv(speech.labels)
    table.loc[table["Split_Set"] == "Development", "EmoVal"] = 4.0
    table.to_csv(speech.folder / "flat.csv", index=False)
    refuses("--metric", "metric.json", "--labels", "flat.csv", words=("Validation have the same label of Val",))
    refuses("--metric", "metric.json", words=("no/such/encoder", "no such folder"), encoder="no/such/encoder")
    refuses("--metric", "metric.json", "--audio", "nowhere", words=("nowhere", "no such folder"))
    first = sorted((speech.corpus / "Audios").iterdir())[0]
    first.write_bytes(b"text")
    refuses("--metric", "metric.json", "--workers", 1, words=(first.name, "not readable"))
    first.unlink()
    refuses("--metric", "metric.json", words=("no recording of 1 of 60", first.name))
    for key, value, words in (("auto_map", {"a": "b"}, "loads code"), ("model_type", "whisper", "kind whisper")):
        folder = with_settings(save_encoder(speech.folder / key), **{key: value})
        with pytest.raises(UserError, match=words):
            finetuned.from_pretrained(str(folder), NORMS)


# ---------------------------------------------------------------------------------------------------------------------
# Predicting


@pytest.fixture
def model_file(tmp_path):
    """A fine-tuned encoder with random weights."""
    network = finetuned.from_pretrained(str(save_encoder(tmp_path / "source")), NORMS)
    finetuned.save_finetuned(tmp_path / "any_name.pt", network, network.state_dict(), {})
    return tmp_path / "any_name.pt"


def test_predictions_are_the_network_in_label_units(bench, model_file, monkeypatch):
    (bench.folder / "clips").mkdir()
    for number, signal in enumerate(signals(4)):
        soundfile.write(bench.folder / f"clips/{number}.wav", signal.numpy() / 8, RATE, subtype="FLOAT")
    soundfile.write(bench.folder / "clips/short.wav", np.full(300, 0.1), RATE)
    monkeypatch.setattr(finetuned, "LONGEST_PIECE", 0.18)  # seconds: the last two are heard in two pieces
    code, _, err = bench.run("tools.predict", "clips", "--model", model_file)
    assert code == 1 and "short.wav: too short (19 ms)" in err and "training mean" not in err
    with (bench.folder / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    network = finetuned.load_finetuned(model_file)
    for row, signal in zip(rows, signals(4), strict=True):
        pieces = np.array_split(signal.numpy() / 8, 1 if len(signal) <= 0.18 * RATE else 2)
        with torch.inference_mode():
            pooled = torch.cat([network.embed([torch.from_numpy(piece)]) for piece in pieces]).mean(dim=0)
            z = network.head(pooled)
        for value, (attribute, (mean, std)) in zip(z, NORMS.items(), strict=True):
            assert float(row[f"Emo{attribute}"]) == pytest.approx(value.item() * std + mean, abs=1e-3)


def test_a_file_that_is_damaged_or_not_alone_is_refused(bench, model_file):
    (bench.folder / "clips").mkdir()
    soundfile.write(bench.folder / "clips/a.wav", np.full(3000, 0.1), RATE)
    content = tensors.load_tensors(model_file)
    settings = json.loads(content["config"])
    for change, words in (
        ({"config": "{}"}, "kind None"),
        ({"config": json.dumps(settings | {"auto_map": {"AutoModel": "x--y.Z"}})}, "loads code"),
        ({"config": json.dumps(settings | {"num_hidden_layers": 10**9})}, "layers without weights"),
        ({"config": json.dumps(settings | {"add_adapter": True, "num_adapter_layers": 10**9})}, "add_adapter"),
        ({"config": json.dumps(settings | {"hidden_size": 48})}, "damaged"),
        ({"label_norm": {"Act": [4.0, 0.0]}}, "statistics of labels"),
        ({"state_dict": {}}, "damaged"),
    ):
        file = bench.folder / f"{words}.pt"
        tensors.save_tensors(content | change, file)
        bench.refuses(bench.run("tools.predict", "clips", "--model", file), words)
    bench.refuses(bench.run("tools.predict", "clips", "--model", model_file, "x.pt.tar"), "give it alone")
