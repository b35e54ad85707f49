"""The cache on disk: what it refuses, what survives an interruption, what it reads back.

Shapes: N response positions, E hidden size of the teacher.
"""

import json
import logging
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from arguments import DataArguments, TeacherArguments
from data_utils.batches import Example, collate
from data_utils.dataset import load_instruction_data
from data_utils.epoch_plan import EpochPlan
from models import files
from models.loading import load_teacher, load_tokenizer
from models.probes import split
from runtime.atomic import WriteError
from runtime.locks import Held
from runtime.log import logger
from teacher import cache as cache_module
from teacher import filling
from teacher.cache import ShardWriter, TeacherCache, fingerprint
from teacher.filling import CacheFiller
from teacher.states import CachedTeacher, LiveTeacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tiny, rows, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("processed"))
    args = DataArguments(str(rows), max_length=128, max_prompt_length=64, processed_data_dir=folder)
    return load_instruction_data(rows / "train.jsonl", load_tokenizer(str(tiny / "teacher")), args)


@pytest.fixture(scope="module")
def teacher(tiny):
    return split(load_teacher(TeacherArguments(str(tiny / "teacher")), torch.float32))


def made_by(tiny, **changes) -> dict[str, str]:
    args = {"teacher_model_path": str(tiny / "teacher"), "teacher_peft_path": None} | changes
    return fingerprint(TeacherArguments(**args), torch.float32)


def fill(cache, teacher, data, layout="packed"):
    if not cache.exists:
        cache.start(teacher.head, "teacher")
    args = DataArguments("data", max_length=128, max_prompt_length=64)
    CacheFiller(cache, [data], args, pad_id=0, device=CPU).compute(teacher, cache.missing([data]), layout)


def test_it_gives_back_what_the_teacher_said(tiny, data, teacher, tmp_path):
    cache = TeacherCache(str(tmp_path / "cache"), made_by(tiny))
    fill(cache, teacher, data)
    cached = CachedTeacher(TeacherCache(str(tmp_path / "cache"), made_by(tiny)), CPU)
    for layout in ("packed", "padded"):
        batch = collate([data[i] for i in (3, 0, 17, 5, 5)], 0, 128, layout)
        ours, live = cached.states(batch), LiveTeacher(teacher).states(batch)
        torch.testing.assert_close(ours.states_NE, live.states_NE, rtol=1e-4, atol=1e-5)
        assert torch.equal(ours.head.linear.weight, live.head.linear.weight)
    assert cached.states(collate([], 0, 128, "packed")).states_NE.shape == (0, 48)


def test_every_position_is_read_back_in_the_teachers_dtype(tiny, teacher, tmp_path):
    """Also those of examples without a prompt or a response."""
    lengths = [(2, 2), (0, 3), (0, 1), (0, 0), (2, 0)]
    examples = [Example([7] * prompt, [i] * response) for i, (prompt, response) in enumerate(lengths)]
    cache = TeacherCache(str(tmp_path), made_by(tiny))
    cache.start(teacher.head, "teacher")
    batch, writer = collate(examples, 0, 128, "packed"), ShardWriter(cache)
    live = LiveTeacher(teacher).states(batch).states_NE.bfloat16()
    writer.add(batch.examples, live)
    writer.close()
    cached = CachedTeacher(TeacherCache(str(tmp_path), made_by(tiny)), CPU)
    assert torch.equal(cached.states(batch).states_NE, live)
    assert sum(example.predicted for example in examples) == len(batch.labels_N)


def test_a_prompt_of_eos_is_counted_as_it_is_cached(tiny, tmp_path):
    row = {"prompt": "<eos>", "output": "red stone"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    args = DataArguments(str(tmp_path), processed_data_dir=str(tmp_path / "processed"))
    data = load_instruction_data(tmp_path / "train.jsonl", load_tokenizer(str(tiny / "teacher")), args)
    plan = EpochPlan(data.lengths, data.responses, batch_size=1, accumulation_steps=1, world_size=1, seed=0)
    batch = collate([data[0]], 0, 128, "packed")
    assert plan.steps(1)[0].tokens == ((len(batch.labels_N),),) == ((data[0].predicted,),) == ((3,),)


def test_keys_of_a_data_set_are_those_of_its_examples(data):
    keys = data.keys()
    assert keys == [data[i].key for i in range(len(data))]
    assert len(set(keys)) == len(data)
    ids = np.arange(5)
    assert Example(ids[:2], ids[2:]).key != Example(ids[:3], ids[3:]).key, "where the response starts counts"
    assert Example([0, 1], [2]).key == Example(np.array([0, 1], dtype=np.int64), [2]).key


def test_an_interrupted_pass_goes_on_where_it_stopped(tiny, data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 1)  # a shard a batch
    monkeypatch.setattr(filling, "TOKENS_PER_BATCH", 150)
    batches = filling.token_batches(TeacherCache(str(tmp_path), made_by(tiny)).missing([data]), 150)
    assert len(batches) > 5
    calls = []

    def states(batch):
        calls.append(batch.examples)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return type(teacher).states(teacher, batch)

    breaking = SimpleNamespace(head=teacher.head, states=states)
    with pytest.raises(KeyboardInterrupt):
        fill(TeacherCache(str(tmp_path), made_by(tiny)), breaking, data)
    cache = TeacherCache(str(tmp_path), made_by(tiny))
    assert len(cache.missing([data])) == len(data) - sum(map(len, batches[:3]))
    fill(cache, breaking, data)
    assert len(calls) == 4 + len(batches) - 3
    assert not cache.missing([data])


def test_another_teacher_is_refused_by_name(tiny, teacher, tmp_path):
    folder = tmp_path / "cache"
    TeacherCache(str(folder), made_by(tiny)).start(teacher.head, "teacher")
    changed = tmp_path / "changed"
    shutil.copytree(tiny / "teacher", changed)
    with (changed / "model.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"x")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    for other, name in (
        (made_by(tiny, teacher_model_path=str(changed)), "weights"),
        (made_by(tiny, teacher_peft_path=str(adapter)), "adapter"),
        (made_by(tiny) | {"dtype": "bfloat16"}, "dtype float32, not bfloat16"),
    ):
        message = f"--teacher-cache {folder}: made by another teacher .{name}.*another folder"
        with pytest.raises(ValueError, match=message):
            TeacherCache(str(folder), other)


def test_a_large_weight_file_is_sampled_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SAMPLES", 5)
    monkeypatch.setattr(files, "SAMPLE_BYTES", 10)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(200))
    before = files.digest([file])
    for place in (0, 199, 95):
        file.write_bytes(bytes(place) + b"x" + bytes(199 - place))
        assert files.digest([file]) != before


def test_a_damaged_shard_is_named(tiny, data, teacher, tmp_path):
    fill(TeacherCache(str(tmp_path), made_by(tiny)), teacher, data)
    (shard,) = tmp_path.glob("states-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{shard.name}: damaged .*delete this file and run again"):
        TeacherCache(str(tmp_path), made_by(tiny))


def test_a_disk_too_small_is_named_before_the_pass(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    cache = TeacherCache(str(tmp_path / "not/there/yet"), made_by(tiny))
    cache.check_room(10**9)
    with pytest.raises(
        ValueError, match=r"--teacher-cache .*yet: takes 2\.00 GB more, and the disk has 1\.00 GB; pass"
    ):
        cache.check_room(2 * 10**9)


def test_states_without_a_manifest_are_refused(tiny, teacher, tmp_path):
    (tmp_path / "states-1.safetensors").touch()
    with pytest.raises(ValueError, match=r"has states but no manifest\.json; delete the folder"):
        TeacherCache(str(tmp_path), made_by(tiny)).start(teacher.head, "teacher")


def test_a_failed_write_is_raised_at_the_end_of_the_pass(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 1)
    monkeypatch.setattr(cache_module, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    writer = ShardWriter(TeacherCache(str(tmp_path), made_by(tiny)))
    for _ in range(2):
        writer.add([Example([1], [2, 3])], torch.zeros(2, 8))
    with pytest.raises(WriteError, match="No space left"):
        writer.close()
    assert not list(tmp_path.glob("states-*"))


def test_one_run_fills_it_at_a_time_and_removes_what_a_killed_one_left(tiny, tmp_path, monkeypatch, caplog):
    (tmp_path / ".states-1.safetensors.tmp").touch()
    cache = TeacherCache(str(tmp_path), made_by(tiny))
    cache.lock().close()
    assert not list(tmp_path.glob(".*.tmp"))
    monkeypatch.setattr(cache_module, "SECONDS_BETWEEN_LOOKS", 0.0)
    attempts = Mock(side_effect=[Held("host a, pid 7"), Held("host a, pid 7"), (Mock(), None)])
    monkeypatch.setattr(cache_module, "lock", attempts)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, logger="distillation"):
        cache.lock()
    assert attempts.call_count == 3
    assert caplog.text.count("another run is filling it (host a, pid 7); waits for it") == 1
