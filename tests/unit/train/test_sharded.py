"""Two real processes train sharded to what one process trains to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.train import fakes, sharded_toys
from unforge.train import loop, sharded
from unforge.train.distributed import World

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {"steps": 12, "batch": 4, "seed": 0, "validate_every": 4, "checkpoint_every": 3}

SCRIPT = """
import sys, time
from dataclasses import replace
from pathlib import Path
import torch
from tests.unit.train import sharded_toys as toys, test_sharded
from unforge.profiles import Machine
from unforge.train import distributed
target, name, dtype, pause = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
data = toys.Sequences()
load = data.load
data.load = lambda *position: (time.sleep(pause), load(*position))[1]
model = getattr(toys, name)()
with distributed.world(Machine(device="cpu", dtype="float32", threads=1, workers=0)) as world:
    fitted = model.fit(
        model, data, toys.validate, replace(toys.RECIPE, dtype=dtype), world=world, resume=target / "resume",
        **test_sharded.OPTIONS,
    )
    state = {"log": fitted.log, "step": fitted.step, "resumed": fitted.resumed, "size": world.size}
    if world.first:
        state["model"] = model.state_dict()
        with torch.no_grad():
            state["logits"] = model.logits(toys.Sequences().load(0, 0, 2).ids)
        state["modules"] = [type(module).__name__ for module in model.modules()]
        state["parameters"] = len(list(model.parameters()))
    else:
        state["kept"] = sum(p.numel() for p in model.parameters() if not p.is_meta)
    torch.save(state, target / f"rank{world.rank}.pt")
"""


def _start(target: Path, name: str, dtype: str = "float32", pause: float = 0.0) -> list[subprocess.Popen[bytes]]:
    """Two processes with the environment torchrun gives."""
    target.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(target), name, dtype, str(pause)]
    return [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}, cwd=ROOT)
        for rank in ("0", "1")
    ]


def _result(target: Path, rank: int = 0) -> dict[str, Any]:
    return torch.load(target / f"rank{rank}.pt", weights_only=True)


def _alone(name: str, folder: Path) -> tuple[Any, loop.Fitted]:
    """One process, the plain loop."""
    model = getattr(sharded_toys, name)()
    fitted = loop.fit(
        model, sharded_toys.Sequences(), sharded_toys.validate, sharded_toys.RECIPE,
        world=World(device=torch.device("cpu")), resume=folder / "alone", **OPTIONS,
    )  # fmt: skip
    return model, fitted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    assert [process.wait(300) for process in _start(folder, "Chain")] == [0, 0]
    return folder


def _same(two: dict[str, Any], model: Any, fitted: loop.Fitted) -> None:
    """Two sharded processes did what one did: weights, log, choice; and the model is as it was given."""
    assert two["size"] == 2
    start, own = type(model)().state_dict(), model.state_dict()
    assert sorted(two["model"]) == sorted(own)
    for key, value in own.items():
        torch.testing.assert_close(two["model"][key], value, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(start["bias"], own["bias"], atol=1e-3)
    assert [row[:2] for row in two["log"]] == [row[:2] for row in fitted.log]
    assert [row[2] for row in two["log"]] == pytest.approx([row[2] for row in fitted.log], rel=1e-3, abs=1e-5)
    assert two["step"] == fitted.step < OPTIONS["steps"]
    assert two["modules"] == [type(module).__name__ for module in model.modules()]
    assert two["parameters"] == len(list(model.parameters()))
    assert all(type(value) is torch.Tensor and value.dtype == torch.float32 for value in two["model"].values())
    with torch.no_grad():
        expected = model.logits(sharded_toys.Sequences().load(0, 0, 2).ids)
    torch.testing.assert_close(two["logits"], expected, atol=1e-4, rtol=1e-3)


def test_two_sharded_processes_do_what_one_does(run: Path, tmp_path: Path) -> None:
    first, second = _result(run), _result(run, 1)
    _same(first, *_alone("Chain", tmp_path))
    assert {"total", "language", "gradient_norm", "validation/small"} <= {row[1] for row in first["log"]}
    assert first["log"] == second["log"]
    assert second["kept"] == 0


def test_one_whole_checkpoint_is_left(run: Path) -> None:
    assert [path.name for path in (run / "resume").iterdir()] == ["step000000009"]
    assert (run / "resume" / "step000000009" / ".metadata").is_file()


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_weights(run: Path, tmp_path: Path) -> None:
    processes = _start(tmp_path, "Chain", pause=0.4)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "resume").glob("step*")):
        assert all(process.poll() is None for process in processes), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    assert [process.wait(60) for process in processes] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "rank0.pt").exists()
    assert [process.wait(300) for process in _start(tmp_path, "Chain")] == [0, 0]
    continued, whole = _result(tmp_path), _result(run)
    assert 3 <= continued["resumed"] < OPTIONS["steps"]
    assert continued["log"] == whole["log"]
    assert continued["step"] == whole["step"]
    assert all(torch.equal(continued["model"][k], whole["model"][k]) for k in whole["model"])


@pytest.mark.slow
def test_a_transformers_model_with_gradient_checkpointing(tmp_path: Path) -> None:
    assert [process.wait(300) for process in _start(tmp_path, "Speaker")] == [0, 0]
    _same(_result(tmp_path), *_alone("Speaker", tmp_path))


@pytest.mark.slow
def test_bfloat16_learns_about_the_same(run: Path, tmp_path: Path) -> None:
    assert [process.wait(300) for process in _start(tmp_path, "Chain", "bfloat16")] == [0, 0]
    half, whole = _result(tmp_path), _result(run)
    losses = [[row[2] for row in result["log"] if row[1] == "language"] for result in (half, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert {row[2] for row in half["log"] if row[1] == "rounded"} == {0.0}, "the batch is not rounded"
    assert all(value.dtype == torch.float32 for value in half["model"].values())


def _fit(model: Any, **changes: Any) -> Any:
    recipe = replace(fakes.RECIPE, **changes)
    return sharded.fit(
        model, sharded_toys.Sequences(), None, recipe, world=World(device=torch.device("cpu")), steps=2, batch=2,
        seed=0, validate_every=1, checkpoint_every=5, resume=Path("nowhere"),
    )  # fmt: skip


def test_a_single_process_runs_the_plain_loop() -> None:
    model = sharded_toys.Chain()
    assert _fit(model).step == 2
    assert type(model) is sharded_toys.Chain
    assert float(model.seen) == 2


def test_refused_settings() -> None:
    with pytest.raises(ValueError, match=r"'float16'.*bfloat16"):
        _fit(sharded_toys.Chain(), dtype="float16")
    with pytest.raises(ValueError, match=r"Tiny has no shard_units"):
        _fit(fakes.Tiny())
