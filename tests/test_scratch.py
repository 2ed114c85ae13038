"""What a service holds of users on a machine's disk goes with its process."""

import os
import signal
import subprocess
import sys

from adgen.on_ray.serving.scratch import ScratchFolder

OTHER = """
import sys
from pathlib import Path
from adgen.on_ray.serving.scratch import ScratchFolder
folder = ScratchFolder(Path(sys.argv[1]))
(folder.path / "histories").write_text("u1")
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_stays(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        mine = ScratchFolder(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        os.kill(other.pid, signal.SIGKILL)
    ScratchFolder(tmp_path).close()
    assert list(tmp_path.iterdir()) == [mine.path]
    assert mine.path.stat().st_mode & 0o077 == 0
    mine.close()
    assert list(tmp_path.iterdir()) == []
