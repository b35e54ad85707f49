"""How a process ends after a collective: with its exit code, whatever the threads of the process group still do."""

import socket
import subprocess
import sys

import pytest

from integration.launch import ENVIRONMENT

# Without a switch, a thread that waits for the interpreter gets it when the main thread waits or ends: what happens
# once in hundreds of starts happens here in every fifth.
ENTRY = """
import sys, torch
from torch import distributed as dist
from runtime.exit_codes import run_entry
sys.setswitchinterval(100)
rank, port, way = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def main(words):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for _ in range(10):
        dist.all_gather_object([None, None], "x" * 200)
    print("printed")
    if way == "error":
        raise RuntimeError("a bug")
    sys.exit(int(way) if way != "None" else None)
run_entry(main)
"""


@pytest.mark.parametrize(("way", "code"), [("75", 75), ("None", 0), ("error", 1)])
def test_an_exit_code_survives_the_threads_of_the_group(root, way, code):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"env": ENVIRONMENT | {"PYTHONPATH": str(root / "code")}, "stdout": subprocess.PIPE, "text": True}
    commands = ([sys.executable, "-c", ENTRY, str(rank), str(port), way] for rank in range(2))
    ranks = [subprocess.Popen(command, stderr=subprocess.PIPE, **options) for command in commands]
    for rank in ranks:
        output, errors = rank.communicate(timeout=120)
        assert (rank.returncode, output) == (code, "printed\n"), errors
        assert ("RuntimeError: a bug" in errors) == (way == "error")
