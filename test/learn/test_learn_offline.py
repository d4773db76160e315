"""CartPole from a file alone (docs/offline.md), and its control: the same file with its actions shuffled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_learn_fast import trained

from slm_lab.env.dataset import Dataset, write_dataset
from slm_lab.experiment.export import export

pytestmark = pytest.mark.learn
SPECS = "specs/offline/cartpole.json"


def shuffled(source: Path, path: Path) -> Path:
    data = Dataset(source)
    columns = data.columns()
    columns["action"] = np.random.default_rng(0).permutation(columns["action"].ravel()).reshape(data.rows, -1)
    facts = {name: data.file.facts[name] for name in ("rows", "lead", "played", "action_dtype", "wrappers", "env")}
    write_dataset(path, data.world, facts, columns.items())
    return path


def test_cartpole_is_learned_from_a_file(tmp_path: Path) -> None:
    player = trained(tmp_path, SPECS, "player", 0)
    file = export(player.run_dir, Console(quiet=True))
    scores = []
    for path in (file, shuffled(file, tmp_path / "shuffled.npz")):
        session = trained(tmp_path, SPECS, "reader", 0, f"env.dataset={path}", "env.max_frame=20000")
        scores.append(np.mean([row["total_reward"] for row in session.eval_rows[-3:]]))
    assert scores[0] > 150
    assert scores[1] < scores[0] / 2
