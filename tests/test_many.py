"""Collecting on a Ray cluster of two nodes on this machine: everything once, a node's death or not."""

import json
import os
import sys
from collections import Counter

import pytest
from test_cpp_collector import DEFINITION, GOOD, QUICK, cpp
from typer.testing import CliRunner

from costmodel import workloads
from costmodel.cli import app
from costmodel.devices import detect
from costmodel.measure import many
from costmodel.measure.requests import choose
from costmodel.records import UserError
from costmodel.store import Store

KERNEL = DEFINITION.replace("UNROLL=(1, 2, 4)", "UNROLL=(1, 2, 3, 4, 5, 6, 7, 8)").replace(
    '"tiny": {"N": 3}', '"more": {"N": 5000}'
)


@pytest.fixture
def request_of(tmp_path):
    (tmp_path / "affine.py").write_text(KERNEL)
    (tmp_path / "affine.cpp").write_text(GOOD)
    workload = workloads.load(tmp_path / "affine.py", trust=True)
    return lambda **options: cpp.CollectRequest(
        workloads=(workload,), timing=QUICK, device=detect("cpu"), cache=tmp_path / "cache", **options
    )


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes; the second is the one to kill."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    size = {"num_cpus": 1, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    second = nodes.add_node(**size)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes, second
    ray.shutdown()
    nodes.shutdown()


def sittings(measurements):
    return Counter((m.variant, dict(m.counters)["pass"]) for m in measurements)


def wanted(request):
    return Counter((variant, number) for variant in choose(request, request.device) for number in range(request.passes))


def first_passes(found, request):
    """Without the third sittings of what two passes disagree about."""
    return Counter({key: count for key, count in found.items() if key[1] < request.passes})


def test_a_lost_nodes_work_is_done_again_and_nothing_twice(cluster, request_of, tmp_path):
    nodes, second = cluster
    request = request_of()
    received = []
    with many.Fleet("cpp") as fleet, Store(tmp_path / "store.sqlite") as store:
        assert len(fleet.hired) == 2
        assert fleet.devices == [request.device]
        doomed = next(worker for worker in fleet.hired if worker.node == second.node_id)
        for measurement in fleet.collect([request]):
            received.append(measurement)
            assert store.add([measurement]) == 1
            if len(received) == 6:
                nodes.remove_node(second, allow_graceful=False)
        assert doomed not in fleet.hired
        assert fleet.lost == 1
        assert fleet.again > 0
        assert {m.status for m in received} == {"ok"}
        assert first_passes(sittings(received), request) == wanted(request)
        assert first_passes(sittings(store.measurements()), request) == wanted(request)


def test_work_is_shared_streamed_and_not_repeated(cluster, request_of, tmp_path):
    request = request_of(passes=1)
    known = []
    with many.Fleet("cpp") as fleet:
        for measurement in fleet.collect([request]):
            known.append(measurement)
            if len(known) == 10:
                break
        fleet_again = list(fleet.collect([request_of(passes=1, skip=cpp.already(known))]))
        assert not set(sittings(known)) & set(sittings(fleet_again))
        assert first_passes(sittings([*known, *fleet_again]), request) == wanted(request)
        with pytest.raises(UserError, match="a set to skip"):
            next(fleet.collect([request_of(skip=[])]))
    assert fleet.lost == fleet.again == 0
    command = ["collect", str(tmp_path / "affine.py"), "--trust", "--configs", "2", "--passes", "1", "--workers", "ray"]
    command += ["--store", str(tmp_path / "cli.sqlite"), "--json"]
    for new in (6, 0):  # two configs on three problems, and the second time none
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert sum(json.loads(done.stdout)["measured"].values()) == new
    (tmp_path / "affine.cpp").write_text(GOOD.replace("run", "ran"))
    with many.Fleet("cpp") as fleet, pytest.raises(UserError, match="same version"):
        list(fleet.collect([request]))


def test_what_a_worker_skips():
    """All but its own, and of its own what is done."""
    rest = many.Rest(frozenset("ab"), frozenset({("a", 0)}))
    assert [sitting in rest for sitting in (("a", 0), ("a", 1), ("b", 0), ("c", 0), ("c", 1))] == [1, 0, 0, 1, 1]


def test_other_workers_are_refused():
    done = CliRunner().invoke(app, ["collect", "matmul", "--workers", "slurm"])
    assert isinstance(done.exception, UserError)
    assert "expected ray" in str(done.exception)


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'costmodel\[ray\]'"):
        many.Fleet("cpp")
