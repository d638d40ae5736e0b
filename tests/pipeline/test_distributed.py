"""Two processes on one machine, joined by torchrun, train to the weights one process trains to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unforge.profiles import Machine
from unforge.train import distributed

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch

from unforge.profiles import Machine
from unforge.train import distributed
from tests.unit.train import fakes
from unforge.profiles import Machine
from unforge.train import distributed, loop
from unforge.train.validate import Validation
target = Path(sys.argv[1])
recipe = replace(fakes.RECIPE, ema=0.9, clip=0.05, accumulate=2)
validate = Validation([fakes.member(fakes.FakeSet("val", 3))], count=None, size=16)
model = fakes.Tiny(dropout=0.0)
with distributed.world(Machine(device="cpu", dtype="float32", threads=1, workers=0)) as world:
    fitted = loop.fit(
        model, fakes.samples(), validate, recipe, world=world, steps=12, batch=4, seed=0, validate_every=4,
        checkpoint_every=5, resume=target / "resume",
    )
    state = {"model": model.state_dict(), "log": fitted.log, "step": fitted.step, "size": world.size}
    torch.save(state, target / f"rank{world.rank}.pt")
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("distributed")
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k not in {"WORLD_SIZE", "RANK", "LOCAL_RANK"}}
    environment |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torchrun = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    results: dict[str, dict[str, object]] = {}
    for name, launch in {"one": [], "two": [*torchrun, f"--master-port={_free_port()}"]}.items():
        target = folder / name
        target.mkdir()
        subprocess.run(
            [sys.executable, *launch, str(script), str(target)], env=environment, cwd=ROOT, check=True, timeout=300
        )
        for path in sorted(target.glob("*.pt")):
            results[f"{name} {path.stem}"] = torch.load(path, weights_only=True)
        assert (target / "resume" / "state.pt").is_file()
    return results


def test_two_processes_give_the_weights_of_one(runs: dict[str, dict[str, object]]) -> None:
    assert sorted(runs) == ["one rank0", "two rank0", "two rank1"]
    assert runs["two rank0"]["size"] == 2
    one, two = runs["one rank0"]["model"], runs["two rank0"]["model"]
    for name, value in one.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)  # type: ignore[index]


def test_both_processes_end_with_the_same_weights_and_log(runs: dict[str, dict[str, object]]) -> None:
    first, second = runs["two rank0"], runs["two rank1"]
    assert all(torch.equal(first["model"][k], second["model"][k]) for k in first["model"])  # type: ignore[index,attr-defined]
    assert first["log"] == second["log"]
    assert first["step"] == second["step"] == runs["one rank0"]["step"]


def test_the_log_is_that_of_the_whole_batch(runs: dict[str, dict[str, object]]) -> None:
    one, two = runs["one rank0"]["log"], runs["two rank0"]["log"]
    assert [row[:2] for row in one] == [row[:2] for row in two]  # type: ignore[attr-defined]
    assert [row[2] for row in one] == pytest.approx([row[2] for row in two], rel=1e-3, abs=1e-5)  # type: ignore[attr-defined]


LAUNCHED = """
import sys
from pathlib import Path
from unforge.profiles import Machine
from unforge.train import distributed
machine = Machine(device="cpu", dtype="float32", threads=1, workers=0, devices=int(sys.argv[2]))
distributed.launch(machine)
with distributed.world(machine) as world:
    (Path(sys.argv[1]) / f"rank{world.rank}of{world.size}").touch()
if sys.argv[3:]:
    sys.exit("this process fails")
"""


@pytest.mark.parametrize(("devices", "ranks"), [(1, ["rank0of1"]), (2, ["rank0of2", "rank1of2"])])
def test_a_stage_starts_one_process_a_device(tmp_path: Path, devices: int, ranks: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED, encoding="utf-8")
    target = tmp_path / "out"
    target.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in {"WORLD_SIZE", "RANK", "LOCAL_RANK"}}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), str(target), str(devices)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert sorted(path.name for path in target.iterdir()) == ranks
    assert subprocess.run([*command, "fail"], env=environment, capture_output=True, timeout=300).returncode == 1


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"asks for 4 devices, but torch .* sees 2"):
        distributed.launch(Machine(device="cuda", dtype="float32", threads=1, workers=0, devices=4))
