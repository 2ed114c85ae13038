"""Python in a process of its own, which finds what the tests find."""

import os
import subprocess
import sys
from pathlib import Path

HERE, ROOT = Path(__file__).parents[1], Path(__file__).parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` with its environment changed; it has ended well."""
    paths = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done
