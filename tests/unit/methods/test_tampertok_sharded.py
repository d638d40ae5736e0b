"""The small multimodal model, sharded over two real processes, learns what one process learns."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.methods import test_tampertok
from tests.unit.train import fakes
from unforge.backbones import internvl
from unforge.train import loop, sharded
from unforge.train.distributed import World
from unforge.types import Batch

ROOT = Path(__file__).resolve().parents[3]
RECIPE = dataclasses.replace(fakes.RECIPE, clip=1.0, lr=2e-3)
OPTIONS = {"steps": 4, "batch": 2, "seed": 0, "validate_every": 2, "checkpoint_every": 2}

SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.unit.methods import test_tampertok_sharded as test
from unforge.profiles import Machine
from unforge.train import distributed
with distributed.world(Machine(device="cpu", dtype="float32", threads=1, workers=0)) as world:
    model = test.made()
    fitted = model.fit(
        model, test.Images(), test.validate, test.RECIPE, world=world, resume=Path(sys.argv[1]) / "resume",
        **test.OPTIONS,
    )
    if world.first:
        torch.save({"model": model.state_dict(), "log": fitted.log}, Path(sys.argv[1]) / "result.pt")
"""


@dataclasses.dataclass
class Part:
    rows: list[int]

    def batch(self, device: torch.device) -> Batch:
        """Forged images only: an answer has as many words as any other, so means over parts are means over all."""
        whole = test_tampertok.batch(4)
        assert whole.mask is not None
        names = tuple("abcd"[i] for i in self.rows)
        return dataclasses.replace(
            whole, image=whole.image[self.rows], mask=whole.mask[:1].roll(3, 3).repeat(len(names), 1, 1, 1),
            label=torch.ones(len(names), dtype=torch.int64), key=names, unit=names, source=tuple((n,) for n in names),
        )  # fmt: skip


class Images:
    """Sample i of step t depends on both only."""

    def load(self, step: int, first: int, count: int) -> Part:
        return Part([(step + i) % 4 for i in range(first, first + count)])


def validate(model: Any, world: World) -> tuple[str, float]:
    """Generates with whole weights."""
    return "mean", float(model.predict(test_tampertok.batch(1).image).mask.mean())


def made() -> Any:
    """Nothing random is left in a step: no imitated samples, no turned ones."""
    internvl.turned = lambda values, mask, *maps: (values, mask, *maps)
    return test_tampertok.small(imitated=0.0, sharded=True)


@pytest.mark.slow
def test_two_sharded_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internvl, "turned", internvl.turned)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}, cwd=ROOT,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    model = made()
    assert model.fit is sharded.fit
    start = {name: value.clone() for name, value in model.state_dict().items()}
    world = World(device=torch.device("cpu"))
    fitted = loop.fit(model, Images(), validate, RECIPE, world=world, resume=tmp_path / "alone", **OPTIONS)
    assert [process.wait(300) for process in processes] == [0, 0]
    two = torch.load(tmp_path / "result.pt", weights_only=True)
    own = model.state_dict()
    assert sorted(two["model"]) == sorted(own)
    for name, value in own.items():
        torch.testing.assert_close(two["model"][name], value, atol=1e-4, rtol=1e-3)
    moved = [name for name, value in own.items() if not torch.equal(value, start[name])]
    assert any("vision_tower" in name for name in moved)
    assert any("language_model" in name for name in moved)
    assert any("injection" in name for name in moved)
    assert [row[2] for row in two["log"]] == pytest.approx([row[2] for row in fitted.log], rel=1e-2, abs=1e-4)
