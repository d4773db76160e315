"""`fakes` puts the small parts of spec_fakes.py in the tables; `raw` is a spec of them that has no fault."""

from __future__ import annotations

import pytest
from spec_fakes import make_raw

from slm_lab.spec import lab_spec, parts


@pytest.fixture
def fakes(monkeypatch):
    tables = [
        (parts.ALGORITHM, {"PPO": "PPO", "DQN": "DQN"}),
        (parts.MEMORY, {"OnPolicyBatchReplay": "OnPolicyBatchReplay", "Replay": "Replay"}),
        (parts.NET, {"MLP": "MLP"}),
        (parts.CORE, {"none": "NoCore", "GRU": "GRU"}),
        (lab_spec.ENV, {name: name for name in ("EnvSpec", "env_problems", "make_env")}),
    ]
    for registry, table in tables:
        monkeypatch.setattr(registry, "_table", {name: f"spec_fakes:{cls}" for name, cls in table.items()})


@pytest.fixture
def raw():
    return make_raw()
