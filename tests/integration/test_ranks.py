"""Ranks that wait for one another: longer than the process group's timeout, and no longer once one has failed."""

import ast

from integration.launch import run, torchrun

SCRIPT = """
import sys, time
from datetime import timedelta
sys.path.insert(0, "code")
from torch import distributed as dist
from training.ranks import together

def work(seconds, error=None):
    time.sleep(seconds)
    if error is not None:
        raise error
    return "done"

dist.init_process_group("gloo", timeout=timedelta(seconds=1))
first = dist.get_rank() == 0
results = [together(lambda: work(3), only=first), together(lambda: work(0), only=not first)]
try:
    together(lambda: work(2, ValueError("no such file")), only=first)
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
