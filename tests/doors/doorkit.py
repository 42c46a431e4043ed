"""What the tests of the command line share: a command run in this process or in a fresh one, and a model made in a
second.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from wayfield.cli import main

CONFIG = {
    "data": "digits",
    "net": {"net": "ResidualMLP", "width": 16, "blocks": 1},
    "path": {"path": "EDM", "sigma_max": 10.0},
    "kind": "edm",
    "sigma_data": 0.752,
    "time": "log_sigma/4",
    "train": {"steps": 6, "batch": 32, "log_every": 2},
}


def write_config(folder: Path, **changes) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return str(path)


def tiny_model(folder: Path) -> str:
    """The folder of a model of 8 x 8 digits that was hardly trained."""
    assert main(["train", write_config(folder), "--out", str(folder / "model")]) == 0
    return str(folder / "model")


def fresh(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`wayfield ARGS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "wayfield.cli", *args],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )
