"""Weights with eight bits: what comes back, and how much is lost."""

import torch
from medsam2_core.engine.eight_bits import from_eight_bits, main, to_eight_bits
from safetensors import safe_open
from safetensors.torch import save_file


def a_state():
    torch.manual_seed(0)
    return {
        "kernel": torch.randn(64, 32, 3, 3) * torch.logspace(-3, 1, 64)[:, None, None, None],
        "matrix": torch.randn(128, 64),
        "bias": torch.randn(64),
        "table": torch.randn(3, 4),
        "empty row": torch.cat([torch.zeros(1, 5000), torch.randn(1, 5000)]),
    }


def test_each_channel_keeps_its_own_precision():
    state = a_state()
    back = from_eight_bits(to_eight_bits(state))
    assert back.keys() == state.keys()
    for name in ("kernel", "matrix", "empty row"):
        rows, found = state[name].flatten(1), back[name].flatten(1)
        largest = rows.abs().amax(1, keepdim=True)
        assert ((rows - found).abs() <= largest / 63 * 0.51 + 1e-7).all(), name
    assert torch.equal(back["bias"], state["bias"].half().float())
    assert torch.equal(back["table"], state["table"].half().float())


def test_it_is_half_as_large_as_half_precision_and_stable():
    state = a_state()
    stored = to_eight_bits(state)
    size = sum(value.numel() * value.element_size() for value in stored.values())
    assert size < 0.52 * sum(2 * value.numel() for value in state.values())
    again = to_eight_bits(from_eight_bits(stored))
    assert all(torch.equal(stored[name], again[name]) for name in stored)


def test_other_states_only_become_float():
    half = {"weight": torch.ones(3, 3).half(), "norm": torch.ones(3), "norm.scale": torch.ones(2)}
    back = from_eight_bits(half)
    assert back.keys() == half.keys() and back["weight"].dtype == torch.float32


def test_a_file_keeps_its_metadata(tmp_path):
    save_file(a_state(), tmp_path / "a.safetensors", {"base_key": "abc"})
    main(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    with safe_open(tmp_path / "b.safetensors", "pt") as opened:
        assert opened.metadata() == {"base_key": "abc"}
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert from_eight_bits(stored).keys() == a_state().keys()
