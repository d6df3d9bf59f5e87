"""The engine `ray`: failures of a node are results, and a cluster writes the bytes of one machine."""

import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import DgptQuantError, RuntimeFailure, UsageError
from dgpt2_quant.core.versions import tool_version
from dgpt2_quant.jobs.batch import batch
from dgpt2_quant.jobs.job_files import errors_path
from dgpt2_quant.jobs.lines import Line
from dgpt2_quant.jobs.ray_engine import NodeJob, SliceActor
from dgpt2_quant.jobs.slices import JobSettings, SliceRunner
from dgpt2_quant.quantize.checkpoint.folder import file_sha256
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.native.build import native_build

from .conftest import some_lines, write_lines

LINES = [Line(number, json.dumps(line).encode()) for number, line in enumerate(some_lines(9), 1)]


@pytest.fixture
def job(tiny: Path) -> NodeJob:
    build = native_build()
    common = {"version": tool_version(), "llama_cpp": build.llama_cpp, "instructions": build.instructions}
    return NodeJob(str(tiny), None, None, tiny, file_sha256(tiny), JobSettings(("tiny",)), None, common)


def asked(job: NodeJob) -> dict[str, Any]:
    return SliceActor(job, threads=1)({"slice": 4, "lines": pickle.dumps(LINES)})


def test_an_actor_gives_the_answers_of_this_process(job: NodeJob, model: Model) -> None:
    found = asked(job)
    assert (found["slice"], found["failure"]) == (4, "")
    expected = SliceRunner(model, job.settings)(LINES)
    assert [tuple(answer) for answer in json.loads(found["answers"])] == expected


def test_a_node_finds_the_model_by_its_hash_or_converts_it(job: NodeJob, tiny: Path, tmp_path: Path) -> None:
    missing = replace(job, path=tmp_path / "none.gguf", model=str(tmp_path / "none.gguf"))
    assert f"none.gguf with the SHA-256 {job.sha256} is not on this node" in asked(missing)["failure"]
    assert "is not on this node" in asked(replace(missing, path=tiny, sha256="0" * 64))["failure"]
    assert asked(replace(missing, model=str(tiny.parent / "checkpoint"), type="f32"))["failure"] == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [("version", "version of dgpt2-quant"), ("llama_cpp", "build of llama.cpp"), ("instructions", "instruction set")],
)
def test_an_unlike_node_is_refused_by_what_differs(job: NodeJob, name: str, words: str) -> None:
    failure = asked(replace(job, common={**job.common, name: "other"}))["failure"]
    assert f"another {words} than the first machine's" in failure
    assert "`allow_mixed`" in failure


def test_flags_of_ray_need_the_engine_and_the_engine_its_extra(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "in.jsonl", some_lines(2))
    with pytest.raises(UsageError, match="have no effect without `engine` ray"):
        batch(source, tmp_path / "out.jsonl", model=str(tiny), ray_address="auto")
    if find_spec("ray"):
        with pytest.raises(RuntimeFailure, match=r"no Ray cluster at 127.0.0.1:1: .*refused"):
            batch(source, tmp_path / "out.jsonl", model=str(tiny), engine="ray", ray_address="127.0.0.1:1")
    monkeypatch.setattr("dgpt2_quant.jobs.ray_engine.find_spec", lambda name: None)
    batch(source, tmp_path / "out.jsonl", model=str(tiny))
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(DgptQuantError, match="needs Ray Data") as caught:
        batch(source, tmp_path / "out.jsonl", model=str(tiny), engine="ray", restart=True)
    assert "pip install 'dgpt2-quant[ray]'" in caught.value.hint
    assert (tmp_path / "out.jsonl").read_bytes() == before


# two nodes of one core each; `kill` is the number of answered lines after which the second one is killed, or 0
CLUSTER = """
import json, logging, os, sys, threading, time
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal")
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from dgpt2_quant.jobs.batch import batch

source, output, model, kill = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
cluster.wait_for_nodes()

def answered():
    return json.loads(record.read_text())["input"]["lines"] if record.exists() else 0

def remove():
    while answered() < kill:
        time.sleep(0.02)
    cluster.remove_node(second, allow_graceful=False)
    print("killed after", answered(), file=sys.__stdout__)  # a job on Ray redirects stdout

record = Path(output + ".job.json")
killer = threading.Thread(target=remove)
if kill:
    killer.start()
batch(source, output, model=model, slice=16, parallel=3, engine="ray")
if kill:
    killer.join()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [0, 64])
def test_two_nodes_write_the_bytes_of_one_machine_also_if_one_is_killed(tiny: Path, tmp_path: Path, kill: int) -> None:
    source = write_lines(tmp_path / "in.jsonl", some_lines(800))
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    batch(source, whole, model=str(tiny), slice=16, parallel=3)
    command = [sys.executable, "-c", CLUSTER, str(source), str(output), str(tiny), str(kill)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    if kill:
        (killed_after,) = re.findall(r"^killed after (\d+)$", done.stdout, re.MULTILINE)
        assert kill <= int(killed_after) < 800
    assert output.read_bytes() == whole.read_bytes()
    assert errors_path(output).read_bytes() == errors_path(whole).read_bytes()
    # the record is that of one machine
    assert batch(source, output, model=str(tiny), slice=16, parallel=3).before == 800
