"""What positions are measured by, and where records go beside the jsonl files."""

import math
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from arguments import KDArguments, parse_train_arguments
from criterions import StepTokens, build_criterion
from criterions.fused import ResponsePositions
from criterions.measures import Measures, hellinger, means, measure, sample_sums
from data_utils.batches import Example, collate
from distiller import Distiller
from models.heads import LanguageModelHead
from models.probes import split
from teacher.states import LiveTeacher, negative_log_likelihood
from tiny import llama
from training.diagnosis import GROUPS, diagnose
from training.writers import check_trackers, open_trackers, record_writers


def positions_of(count: int, taught: bool = True) -> ResponsePositions:
    torch.manual_seed(count)
    heads = [LanguageModelHead(torch.nn.Linear(size, 11, bias=False).double()) for size in (4, 6)]
    hidden_ND, teacher_hidden_NE = torch.randn(count, 4).double(), torch.randn(count, 6).double() * 3
    labels_N = torch.randint(11, (count,))
    teacher = (teacher_hidden_NE, heads[1]) if taught else ()
    return ResponsePositions(hidden_ND, heads[0], labels_N, 10**6, *teacher)


def test_measures_are_their_equations():
    """Entry by entry, as docs/telemetry.md states them; an id that one model lacks counts for neither."""
    torch.manual_seed(0)
    student_NV, teacher_NV = torch.randn(5, 7).double(), 2 * torch.randn(5, 7).double()
    found = Measures(*measure(student_NV, teacher_NV, labels_N := torch.arange(5)))
    for i, label in enumerate(labels_N.tolist()):
        q, p = student_NV[i].softmax(-1).tolist(), teacher_NV[i].softmax(-1).tolist()
        w = [b / (a + b) for a, b in zip(q, p)]
        expected = Measures(
            nll=-math.log(q[label]),
            student_entropy=-sum(a * math.log(a) for a in q),
            correct=q[label] == max(q),
            teacher_entropy=-sum(b * math.log(b) for b in p),
            agreement=q.index(max(q)) == p.index(max(p)),
            overlap=sum(map(min, q, p)),
            forward_kl=sum(b * math.log(b / a) for a, b in zip(q, p)),
            reverse_kl=sum(a * math.log(a / b) for a, b in zip(q, p)),
            todi_forward=sum(c * b * abs(math.log(b / a)) for a, b, c in zip(q, p, w)),
            todi_reverse=sum((1 - c) * a * abs(math.log(b / a)) for a, b, c in zip(q, p, w)),
        )
        assert [float(values[i]) for values in found] == pytest.approx([float(value) for value in expected])
    teacher_NV[:, 6] = -torch.inf
    assert all(values.isfinite().all() for values in measure(student_NV, teacher_NV, labels_N))


@pytest.mark.parametrize("count", [0, 1, 3, 50, 1000])
def test_a_sample_is_a_quarter_of_the_positions_and_at_most_64(count):
    sums = sample_sums(positions_of(count)).tolist()
    assert sums[0] <= 64 and (sums[0] == 0) == (count == 0)
    assert sums[0] >= min(60, count // 4)
    record = means(sums)
    assert record == {} if count == 0 else all(0 <= record[name] <= 1 for name in ("overlap", "agreement"))
    assert count == 0 or record["todi_forward_share"] + record["todi_reverse_share"] == pytest.approx(1)
    assert set(means(sample_sums(positions_of(9, taught=False)).tolist())) == {"student_entropy", "token_accuracy"}


@pytest.mark.parametrize("objective", ["sft", "todi", "adakd"])
def test_observing_a_step_leaves_its_loss_and_gradient_to_the_bit(one_thread, objective):
    examples = [Example(list(range(p)), list(range(r))) for p, r in ((6, 5), (3, 9), (10, 12))]
    batch, seen = collate(examples, 0, 64, "padded", positions_per_rank=(26,)), []
    teacher = LiveTeacher(split(llama(61, hidden=24, layers=1, tied=False, seed=0).eval()))

    def step(observer) -> list[torch.Tensor]:
        criterion = build_criterion(objective, KDArguments(kd_objective=objective))
        distiller = Distiller(split(llama(61, hidden=16, layers=1, tied=True, seed=1)), criterion)
        criterion.start_step(StepTokens((26,)))
        with distiller.observed_by(observer):
            sums = distiller(batch, teacher.states(batch) if criterion.needs_teacher else None)
        sums.loss.backward()
        return [*(x.detach() for x in sums), *(p.grad.to_dense() for p in distiller.parameters() if p.grad is not None)]

    expected, got = step(lambda positions: None), step(lambda positions: seen.append(sample_sums(positions)))
    assert len(seen) == 1 and len(expected) > 3
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("objective", ["todi", "adakd"])
def test_a_diagnosis_is_that_of_the_heads_gradients(objective):
    """Against the gradients themselves; the criterion's state stays as it was."""
    torch.manual_seed(0)
    positions = positions_of(9)
    head, teacher = positions.head, positions.teacher_head
    criterion = build_criterion(objective, KDArguments(kd_objective=objective, kd_temperature=2.0))
    found, state = diagnose(positions, criterion), criterion.state_dict()
    teacher_NV = positions.teacher_hidden_NE @ teacher.parameters()[0].T

    def gradient(loss_N, member_N) -> torch.Tensor:
        (weight_VD,) = torch.autograd.grad(loss_N[member_N].sum(), head.parameters()[0], retain_graph=True)
        return weight_VD.detach().flatten()

    student_NV = positions.hidden_ND @ head.parameters()[0].T
    difficulty_N = hellinger(student_NV.detach(), teacher_NV.detach())
    tau_N1 = criterion.plan(difficulty_N).temperature_N[:, None] if criterion.selects else torch.full((9, 1), 2.0)
    kd_N = tau_N1[:, 0] ** 2 * criterion.token_loss(student_NV / tau_N1, teacher_NV.detach() / tau_N1)
    sft = gradient(torch.nn.functional.cross_entropy(student_NV, positions.labels_N, reduction="none"), slice(None))
    kd = {name: gradient(kd_N, difficulty_N.argsort()[3 * i : 3 * i + 3]) for i, name in enumerate(GROUPS)}
    cosines = {name: torch.cosine_similarity(value, sft, dim=0).item() for name, value in kd.items()}
    shares = {name: (value.norm() / sum(other.norm() for other in kd.values())).item() for name, value in kd.items()}
    assert found["cosine_with_sft"] == pytest.approx(cosines, rel=2e-3)
    assert found["gradient_share"] == pytest.approx(shares, rel=2e-3)
    assert criterion.state_dict() == state and head.parameters()[0].grad is None


def test_the_teachers_nll_is_that_of_its_logits():
    model = llama(61, hidden=24, layers=1, tied=False, seed=0).eval()
    batch = collate([Example([3, 4, 5], [6, 7, 8])], 0, 16, "padded")
    logits_NV = model(input_ids=batch.input_ids_RT).logits[0, 2:5].detach()
    expected = torch.nn.functional.cross_entropy(logits_NV, batch.labels_N, reduction="sum")
    torch.testing.assert_close(negative_log_likelihood(LiveTeacher(split(model)), batch, 10**6), expected)


# --- trackers --------------------------------------------------------------------------------------------------------


RECORDS = [{"step": 10, "loss": 2.5, "nll_loss": float("nan")}, {"step": 20, "loss": 1.5, "nll_loss": None}]


def report(names: list[str], save_dir, step: int = 0, records=RECORDS) -> None:
    """What a run does from its start to its end or its death."""
    (save_dir / "resume").mkdir(exist_ok=True)
    trackers = open_trackers(names, save_dir, {"lr": 0.1, "data_dir": "x" * 600}, step)
    for name in ("metrics", "dev_metrics"):
        for record in records:
            for writer in record_writers(save_dir, name, trackers):
                writer.write(record)


def test_tensorboard_has_every_step_once_also_after_a_resumption(tmp_path):
    report(["tensorboard"], tmp_path)
    report(["tensorboard"], tmp_path, step=10, records=[{"step": 20, "loss": 1.25}])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["dev/loss", "train/loss"]
    for name in ("train/loss", "dev/loss"):
        assert [(event.step, event.value) for event in events.Scalars(name)] == [(10, 2.5), (20, 1.25)]


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := mock.Mock())
    for _ in range(2):
        report(["wandb"], tmp_path)
    first, second = (call.kwargs for call in wandb.init.call_args_list)
    assert first == second and first["resume"] == "allow" and first["id"] and first["name"] == tmp_path.name
    expected = [mock.call({"train/loss": loss}, step=step) for step, loss in ((10, 2.5), (20, 1.5))]
    assert wandb.init().log.call_args_list[:2] == expected


def test_mlflow_continues_its_run_and_logs_parameters_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", mlflow := mock.Mock())
    mlflow.start_run.return_value = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    for _ in range(2):
        report(["mlflow"], tmp_path)
    starts = mock.call(run_id=None, run_name=tmp_path.name), mock.call(run_id="abc", run_name=None)
    assert mlflow.start_run.call_args_list == list(starts)
    mlflow.log_params.assert_called_once_with({"lr": "0.1", "data_dir": "x" * 500})
    assert mlflow.log_metrics.call_args == mock.call({"dev/loss": 1.5}, step=20, synchronous=False)


def test_other_ranks_report_nothing_and_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("training.writers.is_main_process", lambda: False)
    assert open_trackers(["tensorboard"], tmp_path, {}, 0) == [] == record_writers(tmp_path, "metrics", [mock.Mock()])
    monkeypatch.setattr("training.writers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--report-to wandb: the package is not installed; pip install wandb"):
        check_trackers(parse_train_arguments("--model-path m --data-dir d --report-to wandb".split()).train.report_to)
