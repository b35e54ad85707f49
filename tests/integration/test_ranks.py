"""Ranks that wait for one another: longer than the process group's timeout, and no longer once one has failed."""

import ast
import socket
import subprocess
import sys

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
    """Without torchrun, whose agent would hold the store: here rank 0 does, and ends last."""
    (tmp_path / "ranks.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "ranks.py")]
    ranks = [
        subprocess.Popen(command, cwd=root, env=ENVIRONMENT | place | {"RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in ranks]
    assert [process.returncode for process in ranks] == [2, 2]
    assert ast.literal_eval(outputs[0].pop(0)) == [["done", None], [None, "done"]]
    assert outputs == [["no such file"], ["no such file"]]
