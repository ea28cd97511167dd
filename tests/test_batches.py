"""Batches and passes over packed rows."""

import pytest
import torch

import model
from deepmi import batches, runtime
from deepmi.process import UserError

CPU = torch.device("cpu")
WIDTH = 37


@pytest.fixture
def packed() -> torch.Tensor:
    return torch.randn(53, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["gathered", "resident"])
def rows(request, packed, monkeypatch) -> batches.Rows:
    """On a CPU; `resident` is how a GPU keeps them."""
    monkeypatch.setattr(batches, "PASS_ROWS", 8)
    found = batches.Rows(packed.numpy(), CPU, "fp32")
    if request.param == "resident":
        found.resident = found._upload(torch.float32)
    return found


def test_batches_are_the_rows_at_their_positions_and_aligned(rows, packed):
    positions = torch.randperm(53).split(8)
    for batch, at in zip(rows.batches(positions), positions, strict=True):
        assert torch.equal(batch, packed[at])
        assert batch.stride() == (64, 1)
    assert list(rows.batches([])) == []


def test_blocks_are_the_rows_of_a_share_in_order(rows, packed):
    for share in (slice(0, 53), slice(5, 23), slice(9, 9)):
        assert torch.equal(torch.cat(list(rows.blocks(share))), packed[share])
    assert [block.shape for block in rows.blocks(slice(9, 9))] == [(0, WIDTH)]


@pytest.fixture
def network() -> model.DenseResNet:
    runtime.seed_everything(0)
    return model.DenseResNet(WIDTH, 6)


def test_a_pass_gives_all_rows_in_order_and_restores_the_mode(network, rows, packed):
    network.train()
    logits, attribute = batches.in_batches(network, network, rows, "fp32")
    assert network.training and logits.shape == (53, 6) and attribute.shape == (53,)
    network.eval()
    assert torch.allclose(network(packed)[0], logits, atol=1e-6)


def test_bf16_is_close_to_fp32(network, rows):
    (exact,) = batches.in_batches(network, network.predict_attribute, rows, "fp32")
    (rough,) = batches.in_batches(network, network.predict_attribute, rows, "bf16")
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert torch.allclose(rough, exact, atol=0.05)


def test_bf16_becomes_fp32_with_a_note_if_the_processor_lacks_it(monkeypatch, capsys):
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")
    for able, precision in (({"avx512_bf16": True}, "bf16"), ({"avx512_f": True, "amx_bf16": False}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"cpu_name": "Some CPU", **able})
        assert runtime.choose_precision(CPU, "bf16") == precision
        assert ("Some CPU" in capsys.readouterr().out) == (precision == "fp32")
    assert runtime.choose_precision(CPU, "fp32") == "fp32"


def test_compile_is_refused_without_triton(monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--compile.*triton"):
        runtime.check_compile(torch.device("cuda"))
