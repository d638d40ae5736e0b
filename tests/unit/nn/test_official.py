import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unforge.nn import official


def test_files_and_directories_are_read(tmp_path) -> None:
    weight = torch.arange(3.0)
    torch.save({"state_dict": {"module.a": weight, "epoch": 3}}, tmp_path / "x.pth")
    save_file({"a": weight}, tmp_path / "model.safetensors")
    for path in (tmp_path / "x.pth", tmp_path / "model.safetensors", tmp_path):
        found = official.read(path)
        assert list(found) == ["a"]
        assert torch.equal(found["a"], weight)


def test_nothing_is_loaded_unless_all_fits() -> None:
    module = nn.Linear(2, 1)
    start = module.weight.detach().clone()
    weight, bias = torch.ones(1, 2), torch.ones(1)
    for given, message in (
        ({"weight": weight}, "missing: bias"),
        ({"weight": weight, "bias": torch.ones(2)}, r"another shape: bias \(2,\) for \(1,\)"),
        ({"weight": weight, "bias": bias, "head.x": bias}, r"unexpected: head\.x"),
    ):
        with pytest.raises(ValueError, match=message):
            official.fill(module, given, "a test")
        assert torch.equal(module.weight, start)
    assert official.fill(module, {"weight": weight, "bias": bias, "head.x": bias}, "a test", without=("head.",)) == (
        "head.x",
    )
    assert torch.equal(module.weight, weight)
