"""Ranks that wait for one another: longer than the process group's timeout, and no longer once one has failed."""

import ast
import os
import socket
import subprocess
import sys

from integration.launch import run, torchrun

SCRIPT = """
import sys, time
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
try:
    with all_ranks():
        if first:
            work(2, ValueError("no such file"))
except ValueError as error:
    results.append(str(error))
ends = [None, None]
dist.all_gather_object(ends, results)
if first:
    print(ends)
"""


def test_a_rank_may_work_longer_alone_than_a_collective_waits(tmp_path):
    file = tmp_path / "ranks.py"
    file.write_text(SCRIPT)
    done = run(torchrun(2, str(file)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert ast.literal_eval(done.stdout) == [["done", None, "no such file"], [None, "done", "no such file"]]


FAILING = """
import os, sys, time
sys.path.insert(0, "code")
from torch import distributed as dist
from runtime.ranks import all_ranks

def fail():
    time.sleep(3)  # by then the other rank looks at the store twice a second only
    raise ValueError("no such file")

dist.init_process_group("gloo")
try:
    with all_ranks():
        if dist.get_rank() == 0:
            fail()
except ValueError:
    os._exit(2)
"""


def test_the_rank_that_holds_the_store_ends_last(root, tmp_path):
    """Without torchrun, whose agent holds it."""
    (tmp_path / "ranks.py").write_text(FAILING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "ranks.py")]
    ranks = [subprocess.Popen(command, cwd=root, env={**os.environ, **place, "RANK": str(rank)}) for rank in (0, 1)]
    assert [process.wait(60) for process in ranks] == [2, 2]
