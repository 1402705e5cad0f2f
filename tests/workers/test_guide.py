"""The files of the cluster guide are what their systems read, and the guide's code is right."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from subnet_search.cli import app

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "examples" / "cluster"
GUIDE = (ROOT / "docs" / "guides" / "cluster.md").read_text("utf-8")
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install subnet-search[ray]")


def options_of(command: str) -> set[str]:
    return set(
        re.findall(r"--[a-z-]+", CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output)
    )


def test_every_command_of_the_guide_and_its_files_has_these_options() -> None:
    texts = [GUIDE, *(path.read_text("utf-8").replace("\\\n", " ") for path in PLACE.iterdir())]
    lines = [line for text in texts for line in re.findall(r"subnet-search (\w+) ([^\n`]*)", text)]
    assert {command for command, _ in lines} == {"search", "run", "resume", "finetune"}
    for command, rest in lines:
        assert set(re.findall(r"--[a-z-]+", rest)) <= options_of(command)


def test_the_cluster_file_is_what_ray_accepts() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    ray = importlib.util.find_spec("ray")
    if ray is None or ray.origin is None:
        pytest.skip("Ray is not installed: pip install subnet-search[ray]")
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((PLACE / "ray-cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert any("/shared" in line for line in cluster["setup_commands"])


def test_the_kubernetes_job_mounts_what_it_reads_and_has_room_for_its_workers() -> None:
    job = yaml.safe_load((PLACE / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1
    for pod in pods:
        mounts = {mount["name"]: mount["mountPath"] for c in pod["containers"] for mount in c["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        assert any(path in job["spec"]["entrypoint"] for path in mounts.values())
    [workers] = map(int, re.findall(r"--workers (\d+)", job["spec"]["entrypoint"]))
    assert workers <= spec["workerGroupSpecs"][0]["maxReplicas"]
    assert spec["workerGroupSpecs"][0]["minReplicas"] >= 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_the_slurm_script_is_bash_and_says_how_it_is_used() -> None:
    script = PLACE / "slurm.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: sbatch slurm.sh RECIPE" in done.stderr


def test_what_the_guide_imports_exists_and_its_code_parses() -> None:
    for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module != "ray":
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)
    name = re.search(r"`subnet_search\.(\w+):(\w+)`", GUIDE)
    assert name is not None
    source = (ROOT / "subnet_search" / f"{name[1]}.py").read_text()
    assert f"def {name[2]}(" in source
