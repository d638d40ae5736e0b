"""The templates in infrastructure/ can be parsed, and name what exists. They are not run."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flows import deploy

ROOT = Path(__file__).resolve().parents[3]
PLACE = ROOT / "infrastructure"


def placeholders(value: Any) -> set[str]:
    return set(re.findall(r"\{\{ *([a-z_]+) *\}\}", json.dumps(value)))


def test_the_deployments_are_those_that_the_docs_name() -> None:
    whole = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    found = {d["name"]: d for d in whole["deployments"]}
    assert set(found) == {"reproduce", "reproduce-nodes", "gpu", "publish", "watch"}
    assert {d["work_pool"]["name"] for d in found.values()} == set(deploy.POOLS)
    assert [name for name, d in found.items() if d.get("schedules")] == ["reproduce", "watch"]
    for entry in found.values():
        assert "concurrency_limit" not in entry, "a zombie would hold it"
        file, _, function = entry["entrypoint"].partition(":")
        assert f"\ndef {function}(" in (ROOT / file).read_text()
        beat = int(entry["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert 3 * beat == deploy.SILENT.total_seconds()


@pytest.mark.parametrize("path", sorted(PLACE.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_has_no_secrets_and_parses(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    assert all(documents)
    for name in ("AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD", "AUTH_STRING"):
        for line in path.read_text().splitlines():
            if re.match(rf"\s*{name}: *[^$ ]", line):
                pytest.fail(f"a value of {name}: {line}")


def test_kubernetes_objects_are_whole() -> None:
    objects = list(yaml.safe_load_all((PLACE / "kubernetes" / "unforge.yaml").read_text()))
    for entry in objects:
        assert {"apiVersion", "kind", "metadata"} <= set(entry)
        if entry["kind"] in ("Deployment", "StatefulSet"):
            labels = entry["spec"]["template"]["metadata"]["labels"]
            assert entry["spec"]["selector"]["matchLabels"] == labels
            assert all(c["image"] for c in entry["spec"]["template"]["spec"]["containers"])
    accounts = {o["metadata"]["name"] for o in objects if o["kind"] == "ServiceAccount"}
    template = json.loads((PLACE / "kubernetes" / "gpu-pool.json").read_text())
    assert template["variables"]["properties"]["service_account_name"]["default"] in accounts


def test_the_job_of_the_gpu_pool_fits_prefects_kubernetes_worker() -> None:
    """Prefect brings the template of each kind of worker; ours adds to it and leaves nothing out."""
    template = json.loads((PLACE / "kubernetes" / "gpu-pool.json").read_text())
    source = files("prefect.server.api.collections_data.views") / "aggregate-worker-metadata.json"
    theirs = json.loads(source.read_text())["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    jsonschema.Draft202012Validator.check_schema(template["variables"])
    assert set(template["job_configuration"]) == set(theirs["job_configuration"])
    assert placeholders(theirs["job_configuration"]) <= placeholders(template["job_configuration"])
    assert placeholders(template["job_configuration"]) == set(template["variables"]["properties"])
    container = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"


def test_shell_scripts_parse() -> None:
    script = PLACE / "slurm" / "worker.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    run = subprocess.run(["bash", str(script)], env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}, capture_output=True)
    assert b"submit this with sbatch" in run.stderr


def test_what_the_image_copies_is_there() -> None:
    text = (PLACE / "docker" / "Dockerfile").read_text()
    for line in re.findall(r"(?m)^COPY (.*) \S+$", text):
        assert all((ROOT / name).exists() for name in line.split()), line
    known = ("#", "FROM ", "RUN ", "ARG ", "WORKDIR ", "COPY ", "USER ", "ENV ", "CMD ", " ")
    assert all(line.startswith(known) for line in text.splitlines() if line)
    assert "USER unforge" in text


def test_compose_mounts_what_it_declares() -> None:
    whole = yaml.safe_load((PLACE / "docker" / "compose.yaml").read_text())
    assert set(whole["services"]) == {"database", "server", "s3", "cpu", "gpu"}
    named = {v.split(":")[0] for s in whole["services"].values() for v in s.get("volumes", []) if not v.startswith("$")}
    assert named == set(whole["volumes"])
    for service in whole["services"].values():
        assert set(service.get("depends_on", {})) <= set(whole["services"])
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
