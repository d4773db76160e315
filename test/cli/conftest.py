"""`lab` types a command in a folder of small specs, good and broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_specs import raw_spec
from typed import SHORT, Lab, Said, save

from slm_lab.cli import main

BAD_ENV = """
import os
import gymnasium, numpy as np

class Bad(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    seen = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        self.seen += 1
        reward = 1.0
        if self.seen == 50:
            reward = self.trouble()
        return np.zeros(2, np.float32), reward, self.t >= 10, False, {}

class Raises(Bad):
    def trouble(self):
        raise ValueError("the [wheel] fell off")

class NaN(Bad):
    def trouble(self):
        return float("nan")

class Broken(Bad):
    def __init__(self):
        raise RuntimeError("no licence")

class Endless(Bad):
    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}

for cls in (Raises, NaN, Broken, Endless):
    gymnasium.registry.pop(cls.__name__ + "-v0", None)
    gymnasium.register(cls.__name__ + "-v0", entry_point=cls)
"""
OWN = """
from slm_lab.agent.memory.base import Memory
from slm_lab.agent.memory.replay import CER, Replay

class Mine:
    pass

class Bare(Memory):
    pass

class Late(Replay):
    @classmethod
    def problems(cls, spec, world):
        import a_package_nobody_has
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lab:
    """Type a command in an empty folder that has some spec files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bad_env.py").write_text(BAD_ENV)
    (tmp_path / "needs_more.py").write_text("import a_package_nobody_has")
    (tmp_path / "uses_needs_more.py").write_text("import needs_more")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "syntax.py").write_text("x = = 1")
    for name in ("bad_env", "own", "recent"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr("slm_lab.experiment.enjoy.GIF_FRAMES", 20)  # quantising pictures is slow
    save("ok.json", {"ok": raw_spec(**SHORT)})
    save("two.json", {"first": raw_spec(**SHORT), "second": raw_spec(**SHORT)})
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "broken.json").write_text('{"a": {\n  "agent": {,}\n}}')
    (tmp_path / "broken.yaml").write_text("a:\n  agent: {name: x\n  env: 3\n")
    (tmp_path / "text.yaml").write_text(
        "a:\n  agent: {algorithm: {name: PPO}, memory: {name: OnPolicyBatchReplay}, net: {name: MLP}}\n"
        "  env: {name: CartPole-v1, max_frame: 2e5}\n"
    )

    def type_(*words: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return type_
