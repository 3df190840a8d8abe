"""The API starts, and answers, on a machine that has none of the worker's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CODE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "safetensors", "av", "worker", "client"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from api.app import create_app
from shared.settings import Settings
app = create_app(Settings(data_dir=sys.argv[1]))
assert "numpy" not in sys.modules
print(len(app.openapi()["paths"]))
"""


def test_the_api_never_imports_torch_or_the_worker(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 5
