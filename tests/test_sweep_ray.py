"""Sweeps on Ray: a cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from robust.errors import MissingDependencyError
from robust.sweep import Event, SweepConfig, run_sweep
from robust.sweep.executors import InProcess
from robust.sweep.on_ray import Ray, require_ray

PLAN = {
    "data": "builtin:digits",
    "train": "builtin:digits:train",
    "limit": 240,
    "shard": 40,
    "models": [{"spec": "builtin:digits-mlp"}],
    "defenses": [{"name": "none", "training": {"epochs": 2}}],
    "threats": ["linf:0.05", "l2:0.5"],
    "suites": ["quick"],
}
SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}  # about the least that Ray takes
QUICK_TO_NOTICE = {  # that a node is gone: seconds where Ray takes half a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"robust-harness\[ray\]"):
        require_ray()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, the driver on the first; with the second to be killed."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={**SMALL, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE},
    )
    try:
        second = made.add_node(**SMALL)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made, second
    finally:
        ray.shutdown()
        made.shutdown()
        gc.collect()  # Ray leaves processes and files to the collector, which warns of them: here, not in other tests


class Outage:
    """Takes a node down, without a word to it, once some shards are back."""

    def __init__(self, cluster: Any, node: Any, after: int) -> None:
        self.cluster, self.node, self.left = cluster, node, after
        self.lost: list[str] = []
        self.computed: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "retry":
            self.lost.append(event.fields["reason"])
        if event.kind != "shard":
            return
        self.computed.append(event.task)
        self.left -= 1
        if self.left == 0:
            self.cluster.remove_node(self.node, allow_graceful=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed file .*ray:ResourceWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray.*")
def test_a_node_that_dies_costs_nothing_but_its_shard(cluster: Any, tmp_path: Path) -> None:
    plan = SweepConfig.model_validate(PLAN)
    outage = Outage(*cluster, after=3)
    found = run_sweep(plan, tmp_path / "ray", executor=lambda: Ray(device="cpu"), listener=outage)
    assert (found.failures, found.missing, found.stopped) == ([], [], None), outage.lost
    assert len(outage.lost) >= 1, "the node that was killed had no work"
    assert len(outage.computed) == len(set(outage.computed)) == 12, "no shard came back twice"
    threads = torch.get_num_threads()
    try:
        whole = run_sweep(plan, tmp_path / "whole", executor=lambda: InProcess("cpu", threads=1))
    finally:
        torch.set_num_threads(threads)
    assert sorted(record.id for record in found.records) == sorted(record.id for record in whole.records)
    assert tables(tmp_path / "ray") == tables(tmp_path / "whole")


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "verdicts").iterdir()}
