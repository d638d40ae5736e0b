from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.train import fakes
from unforge import paths
from unforge.train import checkpoint, loop
from unforge.train.data import Arrays
from unforge.train.distributed import World

Fit = Callable[..., loop.Fitted]
ROOT = Path(__file__).resolve().parents[3]
RECIPE = replace(fakes.RECIPE, ema=0.9, clip=1.0, accumulate=2)

KILLED = """
import sys, time
from pathlib import Path
import torch
from tests.unit.train import fakes, test_resume
from unforge.profiles import Machine
from unforge.train import distributed, loop
resume, weights, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
data = fakes.samples()
load = data.load
data.load = lambda *position: (time.sleep(pause), load(*position))[1]
model = fakes.Tiny()
with distributed.world(Machine(device="cpu", dtype="float32", threads=1, workers=0)) as world:
    fitted = loop.fit(
        model, data, test_resume.validate, test_resume.RECIPE, world=world, steps=40, batch=4, seed=0,
        validate_every=7, checkpoint_every=3, resume=resume,
    )
torch.save({"model": model.state_dict(), "log": fitted.log, "step": fitted.step, "resumed": fitted.resumed}, weights)
"""


def validate(model: nn.Module, world: World) -> tuple[str, float]:
    """Best early, so that a resumed run must remember it."""
    return "sum", -float(sum(p.double().abs().sum() for p in model.parameters()))


def _run(resume: Path, weights: Path, pause: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(resume), str(weights), str(pause)], env=environment, cwd=ROOT
    )


def test_a_killed_process_continues_to_the_same_weights(tmp_path: Path) -> None:
    resume, killed, whole = tmp_path / "resume" / "x", tmp_path / "killed.pt", tmp_path / "whole.pt"
    uninterrupted = _run(tmp_path / "resume" / "other", whole, 0.0)
    process = _run(resume, killed, 0.05)
    deadline = time.monotonic() + 120
    while checkpoint.load(resume) is None or checkpoint.load(resume)["run"]["step"] < 9:  # type: ignore[index]
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not killed.exists()
    assert _run(resume, killed, 0.0).wait(120) == 0
    assert uninterrupted.wait(120) == 0
    continued, expected = torch.load(killed), torch.load(whole)
    assert expected["resumed"] == 0
    assert 9 <= continued["resumed"] < 40
    assert continued["log"] == expected["log"]
    assert continued["step"] == expected["step"]
    assert all(torch.equal(continued["model"][k], expected["model"][k]) for k in expected["model"])


class _Interrupted:
    """Samples that fail at a step, like a machine that goes down."""

    def __init__(self, at: int) -> None:
        self.data, self.at = fakes.samples(), at

    def load(self, step: int, first: int, count: int) -> Arrays:
        if step == self.at:
            raise ConnectionError(f"step {step}")
        return self.data.load(step, first, count)


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_continues_bit_for_bit_from_any_step(fit: Fit, tmp_path: Path, at: int, dtype: str) -> None:
    recipe = replace(RECIPE, dtype=dtype)
    whole, model = fakes.Tiny(), fakes.Tiny()
    expected = fit(whole, recipe=recipe, validate=validate, validate_every=3)
    with pytest.raises(ConnectionError):
        fit(model, recipe=recipe, validate=validate, validate_every=3, data=_Interrupted(at), resume=tmp_path / "state")
    continued = fakes.Tiny(seed=5)  # its own start does not matter once there is a state
    if at < 4:
        assert checkpoint.load(tmp_path / "state") is None
        continued = fakes.Tiny()
    fitted = fit(continued, recipe=recipe, validate=validate, validate_every=3, resume=tmp_path / "state")
    assert fitted.resumed == at // 4 * 4
    assert fitted.log == expected.log
    assert fakes.equal(continued, whole)


CONFIG: Mapping[str, Any] = {"lr": 0.1, "steps": 10}


@pytest.mark.parametrize(
    ("config", "inputs"),
    [({"lr": 0.2, "steps": 10}, {"set": "abc"}), (CONFIG, {"set": "abd"}), ({"lr": 0.1}, {"set": "abc"})],
)
def test_a_changed_configuration_has_another_folder(config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    folder = checkpoint.folder("train/a/b", CONFIG, {"set": "abc"})
    assert checkpoint.folder("train/a/b", config, inputs) != folder
    assert checkpoint.folder("train/a/b", dict(reversed(CONFIG.items())), {"set": "abc"}) == folder
    assert folder.parent == Path(".unforge/resume/train~a~b")


def test_changed_code_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint.folder("train/a", CONFIG, {})
    loaded = checkpoint.code()
    assert loaded["unforge.train.loop"] == paths.sha256(Path(loop.__file__))
    monkeypatch.setattr(checkpoint, "code", lambda: {**loaded, "unforge.train.loop": "other"})
    assert checkpoint.folder("train/a", CONFIG, {}) != folder


def test_a_write_that_fails_leaves_the_old_state(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "s", {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path / "s", {"step": (i for i in range(3))})
    assert checkpoint.load(tmp_path / "s") == {"step": 1}


def test_removing_takes_the_stages_folder_only_when_it_is_empty(tmp_path: Path) -> None:
    for name in ("one", "two"):
        checkpoint.save(tmp_path / "stage" / name, {"step": 1})
    checkpoint.remove(tmp_path / "stage" / "one")
    assert checkpoint.load(tmp_path / "stage" / "two") == {"step": 1}
    checkpoint.remove(tmp_path / "stage" / "two")
    assert not (tmp_path / "stage").exists()
    checkpoint.remove(tmp_path / "stage" / "two")
