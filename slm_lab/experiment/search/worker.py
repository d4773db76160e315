"""The process that plays trials for Ray Tune. It imports what they need and no more: each one pays for that once."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.tune import Trainable

from slm_lab.experiment.cluster import stand_in
from slm_lab.experiment.search.work import Work, make_work

SLICE = 1.0  # seconds of training between two reports of a trial


class Worker(Trainable):
    """A process that plays trials, one after another: what it has imported serves them all."""

    work: Work | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._take(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.cleanup()
        self._take(config)
        return True

    def step(self) -> dict[str, Any]:
        assert self.work is not None
        report = self.work.advance(SLICE)
        node = f"{ray.util.get_node_ip_address()} {ray.get_runtime_context().get_node_id()[:6]}"  # type: ignore[no-untyped-call]
        where = {"node": node, "pid": os.getpid()}
        return {**report, **where, "done": report["status"] in ("done", "failed", "full")}

    def cleanup(self) -> None:
        if self.work is not None:
            self.work.close()

    def _take(self, config: dict[str, Any]) -> None:
        stand_in(config["cwd"])
        self.work = make_work(config["run"], config["trial"], config["metric"], config["retries"])
