"""Ranks that wait for one another: longer than the process group's timeout, and no longer once one has failed."""

import ast
import socket
import subprocess
import sys
from pathlib import Path

from integration.launch import ENVIRONMENT

SCRIPT = """
import os, sys, time
from datetime import timedelta
sys.path.insert(0, "code")
from torch import distributed as dist
from runtime.ranks import all_ranks

def work(seconds, error=None):
    time.sleep(seconds)
    if error is not None:
        raise error
    return "done"

dist.init_process_group("gloo", timeout=timedelta(seconds=3))
first = dist.get_rank() == 0
results = []
for seconds, works in ((5, first), (0, not first)):
    with all_ranks():
        results.append(work(seconds) if works else None)
ends = [None, None]
dist.all_gather_object(ends, results)
if first:
    print(ends, flush=True)
try:
    with all_ranks():
        if first:
            work(3, ValueError("no such file"))  # by then the other rank looks at the store twice a second only
except ValueError as error:
    print(error, flush=True)
    os._exit(2)
"""


def test_ranks_wait_as_long_as_one_works_and_fail_together(root, tmp_path):
    """Rank 0, which holds the store, ends last."""
    codes, outputs = on_two_ranks(SCRIPT, root, tmp_path)
    assert codes == [2, 2]
    assert ast.literal_eval(outputs[0].pop(0)) == [["done", None], [None, "done"]]
    assert outputs == [["no such file"], ["no such file"]]


NO_ROOM = """
import os, sys
sys.path.insert(0, "code")
from pathlib import Path
from torch import distributed as dist, nn
from runtime.atomic import WriteError
from training.checkpoints import save_checkpoint

dist.init_process_group("gloo")
try:
    save_checkpoint(nn.Linear(2, 2), None, Path(__file__) / "epoch1_step1")  # below a file: it cannot be written
except WriteError as error:
    print(error, flush=True)
    os._exit(74)
"""


def test_a_checkpoint_that_rank_0_cannot_write_ends_all_ranks(root, tmp_path):
    codes, outputs = on_two_ranks(NO_ROOM, root, tmp_path)
    assert codes == [74, 74] and outputs[0] == outputs[1]
    assert "epoch1_step1 was not written: Not a directory" in outputs[0][0]


def on_two_ranks(script: str, root: Path, tmp_path: Path) -> tuple[list[int], list[list[str]]]:
    """Exit codes and lines. Without torchrun, whose agent would hold the store, and end the ranks when one fails."""
    (tmp_path / "ranks.py").write_text(script)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "ranks.py")]
    ranks = [
        subprocess.Popen(command, cwd=root, env=ENVIRONMENT | place | {"RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in ranks]
    return [process.returncode for process in ranks], outputs
