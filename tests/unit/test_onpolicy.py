"""Sampled rows: labels and EOS, draws by (seed, step, row), schedules, budgets, loss, and what stays as it was."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from arguments import KDArguments, ModelArguments, OnPolicyArguments, parse_train_arguments
from criterions import StepTokens, build_criterion
from criterions.pair import Pair
from data_utils.batches import Example, collate
from data_utils.epoch_plan import EpochPlan, Step
from data_utils.replay import ReplayBuffer
from distiller import Distiller
from generation import dropping, vllm_generator
from generation import sampler as sampler_module
from generation.sampler import Sampled, StudentSampler
from models.loading import load_student, load_tokenizer
from models.probes import split
from preflight.checks import Preflight, check
from preflight.defaults import with_rows
from teacher.cache import TeacherCache
from teacher.states import LiveTeacher, RoutedTeacher
from tiny import llama
from training import building
from training.guard import StepGuard
from training.kind_metrics import KindMetrics
from training.rank_batches import RankBatches
from training.sources import AdaptiveRows, DataRows, LoadedStep, MixedRows, PairRows, coin
from training.writers import TrackerWriter

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PROMPTS = {7: [5, 6, 7, 8], 3: [9, 10], 12: [11, 12, 13, 14, 15, 16]}


def on_policy(**flags) -> OnPolicyArguments:
    return OnPolicyArguments(**{"student_gen": True, "gen_max_new_tokens": 5, "gen_tokens_per_batch": 64} | flags)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(str(tiny / "student"))


@pytest.fixture(scope="module")
def student(tiny):
    return split(load_student(ModelArguments(model_path=str(tiny / "student")), torch.float32).train())


def sampler(student, tokenizer, max_length=64, seed=10, **flags) -> StudentSampler:
    return StudentSampler(student, tokenizer, on_policy(**flags), seed, 32, max_length, CPU)


# --- a sampled row is a row ------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch):
    """Answers by row, in place of the model's choice; the rest of the generation is real."""

    def answers(by_row: dict[int, list[int]]) -> None:
        monkeypatch.setattr(dropping, "row_generator", lambda seed, row, device: iter(by_row[row]))
        take = lambda self, scores: torch.tensor([next(tokens, 3) for tokens in self.draws])  # noqa: E731
        monkeypatch.setattr(dropping.RowDropping, "_next_tokens", take)

    return answers


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_sampled_row_is_the_same_text_as_data(tiny, student, scripted, pad_is_eos, layout):
    tokenizer = load_tokenizer(str(tiny / "student"))
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    eos = tokenizer.eos_token_id
    responses = {7: [20, 21, eos], 3: [eos], 12: [30, 31, 32, 33, 34]}  # the last one is cut
    scripted(responses)
    sampled = sampler(student, tokenizer).sample(PROMPTS, step=1)
    data = [Example(prompt, responses[i]) for i, prompt in PROMPTS.items()]
    assert sampled.rows == data and (sampled.cut, sampled.tokens) == (1, 9)
    batches = [collate(rows, tokenizer.pad_token_id, 64, layout) for rows in (sampled.rows, data)]
    for got, expected in zip(*(vars(batch).items() for batch in batches)):
        assert got[0] == expected[0] and np.array_equal(got[1], expected[1])
    # The first token of a response is learnt, and EOS.
    labels = batches[0].labels_N.tolist()
    assert sorted(labels) == sorted(token for ids in responses.values() for token in ids) and labels.count(eos) == 2


def test_an_answer_is_cut_to_max_length(student, tokenizer, scripted):
    scripted({7: [20, 21, 22, 23, 1], 3: [20, 21, 22, 23, 1], 12: [20, 1]})
    sampled = sampler(student, tokenizer, max_length=7).sample(PROMPTS, step=1)
    assert [list(row.response_ids) for row in sampled.rows] == [[20, 21, 22], [20, 21, 22, 23, 1], [20]]
    assert sampled.cut == 2


# --- draws -----------------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_step_and_row_alone(student, tokenizer):
    ids = lambda prompts, step=4, **more: {  # noqa: E731
        i: list(row.response_ids)
        for i, row in zip(prompts, sampler(student, tokenizer, **more).sample(prompts, step).rows)
    }
    all_rows = ids(PROMPTS)
    for few in ({3: PROMPTS[3]}, dict(reversed(PROMPTS.items()))):
        assert ids(few) == {i: all_rows[i] for i in few}
    assert ids(PROMPTS, gen_tokens_per_batch=1) == all_rows
    assert ids(PROMPTS, step=5) != all_rows != ids(PROMPTS, seed=11)
    twice = ids(dict.fromkeys((3, 4), PROMPTS[3]))
    assert twice[3] != twice[4]


@pytest.mark.parametrize("flags", [{}, {"gen_temperature": 0.6, "gen_top_p": 0.8}, {"gen_top_k": 6}], ids=str)
def test_first_tokens_follow_the_students_distribution(student, tokenizer, flags, monkeypatch):
    """Over the ids that the teacher has, too."""
    monkeypatch.setattr(student.head, "vocabulary_size", 60)
    prompt, rows = PROMPTS[7], 1500
    made = sampler(student, tokenizer, gen_max_new_tokens=1, gen_tokens_per_batch=10**5, **flags)
    counts = Counter(row.response_ids[0] for row in made.sample(dict.fromkeys(range(rows), prompt), 1).rows)
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([prompt])).logits[0, -1, :60] / flags.get("gen_temperature", 1)
    probabilities = logits.softmax(-1)
    order = probabilities.argsort(descending=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    kept = order[(before < flags.get("gen_top_p", 1)) & (torch.arange(60) < flags.get("gen_top_k", 60))]
    assert set(counts) <= set(kept.tolist())
    expected = (probabilities[kept] / probabilities[kept].sum()).double()
    likely = expected > 5 / rows
    groups = [(counts[int(i)], float(p)) for i, p in zip(kept[likely], expected[likely])]
    rest = 1 - sum(p for _, p in groups)
    if rest > 1e-9:
        groups.append((rows - sum(count for count, _ in groups), rest))
    observed, shares = zip(*groups)
    assert chisquare(observed, np.array(shares) / sum(shares) * rows).pvalue > 1e-3


# --- what sampling leaves alone --------------------------------------------------------------------------------------


def test_sampling_leaves_everything_as_it_was(tiny, tokenizer):
    torch.manual_seed(0)
    args = ModelArguments(model_path=str(tiny / "student"), peft="lora", peft_lora_dropout=0.5)
    model = split(load_student(args, torch.float32).train())
    for name, parameter in model.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    attention = model.causal_lm.config._attn_implementation

    def state():
        gradients = [None if p.grad is None else p.grad.clone() for p in model.model.parameters()]
        return [p.clone() for p in model.model.parameters()], gradients, [torch.get_rng_state()]

    before = state()
    first = sampler(model, tokenizer).sample(PROMPTS, 1).rows
    for old, new in zip(before, state()):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(old, new))
    assert all(module.training for module in model.model.modules())
    assert model.causal_lm.config._attn_implementation == attention
    assert model.causal_lm.generation_config.do_sample is not True
    torch.manual_seed(1)
    assert sampler(model, tokenizer).sample(PROMPTS, 1).rows == first, (
        "drawn with dropout, or from the global generator"
    )


def test_one_vllm_engine_has_room_for_all_answers_of_a_run(student, tokenizer, monkeypatch):
    """An answer may exceed --max-length before it is cut; a second engine would take the memory of training."""
    rooms = []
    monkeypatch.setattr(sampler_module, "refresh", lambda model, longest: rooms.append(longest))
    answers = {"generate": lambda prompts, seeds, rows: {seeds[0]: [[5] * 9 for _ in prompts]}}
    monkeypatch.setattr(sampler_module, "build_generator", lambda *_, **__: SimpleNamespace(**answers))
    sampled = sampler(student, tokenizer, max_length=36, gen_max_new_tokens=9, gen_engine="vllm")
    assert [len(row) for row in sampled.sample({0: [7] * 32}, 1).rows] == [36] and rooms == [32 + 9]


def test_the_engine_needs_no_more_positions_than_preflight_counts(monkeypatch):
    """vLLM refuses an engine for more tokens than the model has positions."""
    lengths = []
    monkeypatch.setattr(building, "StudentSampler", lambda *args: lengths.extend(args[4:6]))
    words = "--model-path m --data-dir d --gkd --max-length 128 --max-prompt-length 64".split()
    config = with_rows(parse_train_arguments(words))
    module = SimpleNamespace(split_student=None)
    engine = SimpleNamespace(module=module, zero_optimization_stage=lambda: 0, device=CPU)
    building._row_source(config, engine, None, TRAIN, plan_of())
    assert lengths == [7, 128], "tokens of the longest prompt, and of the longest row"


def test_the_whole_copy_samples_what_the_student_does(tiny, tokenizer):
    torch.manual_seed(0)
    for peft in (None, "lora"):
        model = split(load_student(ModelArguments(model_path=str(tiny / "student_tied"), peft=peft), torch.float32))
        copied = StudentSampler(model, tokenizer, on_policy(), 10, 32, 64, CPU, partitioned=True)
        for step in (1, 2):
            before = torch.get_rng_state()
            assert copied.sample(PROMPTS, step).rows == sampler(model, tokenizer).sample(PROMPTS, step).rows
            assert torch.equal(before, torch.get_rng_state()), "making the copy draws from the generator of training"
            with torch.no_grad():
                for parameter in model.model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter) * 0.1)


# --- schedules -------------------------------------------------------------------------------------------------------


class Table(list):
    lengths = property(lambda self: np.array([len(row) for row in self]))
    responses = property(lambda self: np.array([row.predicted for row in self]))


TRAIN = Table(Example([5 + i % 40] * (1 + i % 7), [3] * (1 + i % 5)) for i in range(24))


class Echo:
    """In place of a sampler: the answer to a prompt is its row's number and the step."""

    def sample(self, prompts, step) -> Sampled:
        return Sampled([Example(ids, [50 + step] * (1 + i % 9)) for i, ids in prompts.items()], 0, 0.0)


def plan_of(world_size=1, tokens=None, layout="packed", batch=4, accumulation=1) -> EpochPlan:
    return EpochPlan(TRAIN.lengths, TRAIN.responses, batch, accumulation, world_size, 10, tokens, layout)


def adaptive(total=60, **flags) -> AdaptiveRows:
    args = on_policy(**{"gen_schedule": "adaptive", "capacity": 10} | flags)
    return AdaptiveRows(TRAIN, plan_of(), Echo(), args, total)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_mixed_steps_have_their_share_and_one_coin(alpha):
    source = MixedRows(TRAIN, plan_of(), Echo(), on_policy(mixed_alpha=alpha))
    planned = plan_of().steps(1) * 100
    kinds = source.kinds(planned, 1)
    assert kinds[5:] == source.kinds(planned[5:], 6), "a resumed run has the same kinds"
    assert kinds.count("student") / len(kinds) == pytest.approx(alpha, abs=0.06)
    assert set(kinds) <= {"student", "data"}


@pytest.mark.parametrize("ratio", ["decreasing", "constant", "increasing"])
def test_adaptive_steps_are_the_pseudo_code_of_the_release(ratio):
    """Scripted dev losses; every step's kind, the buffer's rows and the threshold, as docs/onpolicy.md states them."""
    source = adaptive(replay_ratio=ratio, init_threshold=0.2, loss_eps=0.1)
    phi, reference, buffer = 0.2, 3.0, []
    source.observe(3.0)
    seen = Counter()
    for epoch, loss in enumerate((3.05, 3.2, 3.25, float("nan"), 2.0, 3.3, 3.5, 3.7, 3.9, 4.1), start=1):
        planned, first = plan_of().steps(epoch), 1 + 6 * (epoch - 1)
        for step, kind in zip(range(first, first + 6), source.kinds(planned, first)):
            r, t = coin(10, step), (step - 1) / 60
            a = phi * {"decreasing": 1 - t, "constant": 0.5, "increasing": t}[ratio]
            expected = "student" if r < a or (r < phi and len(buffer) < 10) else "replay" if r < phi else "data"
            assert kind == expected
            loaded = source.draw(planned[step - first], step, kind)
            rows = list(loaded.rows)
            if kind == "student":
                buffer = [*buffer, *rows][-10:]
                assert {token for row in rows for token in row.response_ids} == {50 + step}
            elif kind == "replay":
                assert len(rows) == 4 and all(row in buffer for row in rows)
            else:
                assert loaded.rows is TRAIN and loaded.step is planned[step - first]
            assert [row for _, row in source.buffer._rows] == buffer
            seen[kind] += 1
        source.observe(loss)
        if loss >= reference + 0.1:
            phi, reference = min(1, phi + 0.1), loss
        assert (source.threshold, source.reference) == (pytest.approx(phi), reference)
    assert min(seen[kind] for kind in ("data", "student", "replay")) > 2
    assert source.log(60)["gen_threshold"] == pytest.approx(0.7) and 0 < source.log(60)["buffer_age"] < 60


def test_a_buffer_is_first_in_first_out_and_survives_saving():
    buffer = ReplayBuffer(3)
    rows = [Example([i] * i, [i] * (5 - i)) for i in range(1, 5)]
    buffer.add(rows[:2], 1)
    buffer.add(rows[2:], 4)
    assert len(buffer) == 3 and buffer.mean_age(4) == 1.0
    again = ReplayBuffer(3)
    again.load_state_dict(buffer.state_dict())
    draws = [of.sample(5, np.random.default_rng(0)) for of in (buffer, again)]
    assert draws[0] == draws[1] and sorted(row.prompt_ids[0] for row in draws[0]) == [2, 3, 4]
    assert again.mean_age(4) == 1.0
    again.load_state_dict(ReplayBuffer(3).state_dict())
    assert len(again) == 0 and again.mean_age(4) is None


def test_state_of_a_schedule_comes_back():
    source, again = adaptive(init_threshold=0.5), adaptive(init_threshold=0.5)
    source.observe(1.0)
    source.observe(2.0)
    again.load_state_dict(source.state_dict())
    assert (again.threshold, again.reference) == (0.6, 2.0)
    assert DataRows(TRAIN).state_dict() == {}


# --- how sampled rows are dealt --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    world_size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    layout=st.sampled_from(["packed", "padded"]),
    tokens=st.sampled_from([None, 64, 150]),
    draw=st.integers(0, 999),
)
def test_every_row_is_dealt_once_within_the_budget(world_size, accumulation, layout, tokens, draw):
    plan = plan_of(world_size, tokens, layout, batch=2, accumulation=accumulation)
    random = np.random.default_rng(draw)
    for planned in plan.steps(1):
        count = sum(map(len, planned.micro_steps))
        responses = random.integers(1, 40, count)  # mostly longer than the data's
        lengths = responses + random.integers(0, 24, count)
        step = plan.deal_step(planned, lengths, responses)
        assert sorted(i for micro_step in step.micro_steps for i in micro_step) == list(range(count))
        assert step.tokens == tuple(tuple(sum(responses[i] for i in hand) for hand in hands) for hands in step.examples)
        if tokens is None:
            assert [*map(len, step.micro_steps)] == [*map(len, planned.micro_steps)]
            assert all(len(hand) <= 2 for hands in step.examples for hand in hands)
        for hand in (hand for hands in step.examples for hand in hands if tokens is not None):
            size = len(hand) * max(lengths[list(hand)], default=0) if layout == "padded" else lengths[list(hand)].sum()
            assert size <= tokens


def test_ranks_sample_the_same_prompts_in_the_same_order():
    asked = []
    recorder = SimpleNamespace(sample=lambda prompts, step: asked.append(list(prompts)) or Echo().sample(prompts, step))
    for ranks, batch in ((1, 4), (2, 2), (4, 1)):
        plan = plan_of(ranks, batch=batch)
        MixedRows(TRAIN, plan, recorder, on_policy()).draw(plan.steps(1)[0], 1, "student")
    assert asked[0] == asked[1] == asked[2] == sorted(asked[0])


# --- loss and teacher ------------------------------------------------------------------------------------------------

ROWS = [Example([5, 6, 7], [8, 9, 10, 1]), Example([11, 12], [13, 14])]


def loss_of(objective, supervised, **flags):
    """The sums of one step and the gradients. objective: a name or a criterion."""
    criterion = build_criterion(objective, KDArguments(**flags)) if isinstance(objective, str) else objective
    distiller = Distiller(split(llama(61, hidden=16, layers=1, tied=True, seed=1)), criterion)
    teacher = LiveTeacher(split(llama(61, hidden=24, layers=1, tied=False, seed=0).eval()))
    batch = replace(collate(ROWS, 0, 64, "padded", positions_per_rank=(6,)), supervised=supervised)
    distiller.criterion.start_step(StepTokens((6,)))
    sums = distiller(batch=batch, teacher=teacher.states(batch))
    sums.loss.backward()
    return sums, [p.grad for p in distiller.parameters()]


@pytest.mark.parametrize("objective", ["todi", "adakd+todi"])
def test_samples_train_kd_alone_and_kd_keeps_its_rate(objective):
    flags = {"adakd_latf": "fixed", "adakd_ratio": 0.5}
    data, _ = loss_of(objective, True, kd_rate=0.25, **flags)
    sampled, gradients = loss_of(objective, False, kd_rate=0.25, **flags)
    assert sampled.loss.item() == pytest.approx(0.25 * sampled.kd.item()) != pytest.approx(data.loss.item())
    assert data.loss.item() == pytest.approx(0.75 * data.ce.item() + 0.25 * data.kd.item())
    assert (sampled.ce, sampled.kd) == (data.ce, data.kd)
    _, kd_alone = loss_of(objective, True, kd_rate=1.0, **flags)
    for got, of_kd in zip(gradients, kd_alone):
        torch.testing.assert_close(got, 0.25 * of_kd, rtol=1e-5, atol=1e-7)


def test_a_pair_weighs_each_kind_by_its_own_objective():
    args = KDArguments(kd_rate=0.75)
    pair = Pair(*(build_criterion(name, args) for name in ("sfkl", "srkl")), weight=0.5)
    for supervised, name, weight in ((True, "sfkl", 1.5), (False, "srkl", 0.5)):
        (got, gradients), (alone, of_one) = loss_of(pair, supervised), loss_of(name, supervised, kd_rate=0.75)
        assert got.loss.item() == pytest.approx(weight * alone.loss.item()) and got.kd == alone.kd
        for one, other in zip(gradients, of_one):
            torch.testing.assert_close(one, weight * other, rtol=1e-5, atol=1e-7)
    assert {"kd_rate", "skew_lambda"} <= set(pair.used_arguments())
    for name in ("adakd", "sft"):
        with pytest.raises(ValueError, match=r"--student-kd-objective: this objective .* takes plain divergences"):
            Pair(build_criterion("fkl", args), build_criterion(name, args), 1.0)


def test_a_pair_step_has_both_answers_to_each_prompt():
    plan = plan_of(2, batch=2, accumulation=2)
    source = PairRows(TRAIN, plan, Echo(), on_policy(gen_schedule="pair"))
    planned = plan.steps(1)[1]
    loaded = source.draw(planned, 2, *source.kinds([planned], 2))
    assert loaded.kind == "pair" and loaded.kinds == ("data", "data", "student", "student")
    assert loaded.step.tokens[:2] == planned.tokens
    for examples, of_plan in zip(loaded.step.examples[:2], planned.examples):
        assert [[loaded.rows[i] for i in rank] for rank in examples] == [[TRAIN[i] for i in rank] for rank in of_plan]
    prompts = lambda micro_steps: sorted(  # noqa: E731
        tuple(loaded.rows[i].prompt_ids) for ranks in micro_steps for rank in ranks for i in rank
    )
    assert prompts(loaded.step.examples[:2]) == prompts(loaded.step.examples[2:])
    batches = RankBatches(TRAIN, None, 0, 64, "packed", CPU).of_loaded(loaded)
    assert [batch.supervised for batch in batches] == [True, True, False, False]


def test_a_routed_teacher_is_the_live_one(tmp_path):
    live = split(llama(61, hidden=24, layers=1, tied=False, seed=0).eval().requires_grad_(False))
    cache = TeacherCache(str(tmp_path / "cache"), {"made": "by a test"})
    data = collate(ROWS[:1], 0, 64, "padded")
    cache.start(live.head, "t")
    cache.write_shard([ROWS[0].key], [LiveTeacher(live).states(data).states_NE])
    cache.refresh()
    files = sorted(tmp_path.rglob("*"))
    routed = RoutedTeacher(live, None, cache, CPU)
    for rows, supervised in ((ROWS[:1], True), (ROWS, False), ([], True), ([], False)):
        batch = replace(collate(rows, 0, 64, "padded"), supervised=supervised)
        got, expected = routed.states(batch), LiveTeacher(live).states(batch)
        assert torch.equal(got.states_NE, expected.states_NE) and got.head is expected.head
    with pytest.raises(KeyError):  # data that the cache lacks would be a mistake; samples never go there
        routed.states(collate(ROWS[1:], 0, 64, "padded"))
    assert sorted(tmp_path.rglob("*")) == files


def reverse_kl_on_own_answers(alpha: float) -> float:
    """Per token of a student's samples, after 60 steps on rows of few tokens, of which a share `alpha` is sampled."""
    draw = np.random.default_rng(0)
    train = Table(Example(*draw.integers(5, 15, (2, 7)).tolist()) for _ in range(32))
    teacher = LiveTeacher(split(llama(61, hidden=24, layers=1, tied=False, seed=0, initializer_range=0.4).eval()))
    student = split(llama(61, hidden=24, layers=1, tied=False, seed=1))
    distiller = Distiller(student, build_criterion("rkl", KDArguments(kd_rate=1.0)))
    plan = EpochPlan(train.lengths, train.responses, 8, 1, 1, 10)
    args = on_policy(mixed_alpha=alpha, gen_max_new_tokens=8, gen_tokens_per_batch=4096)
    made = StudentSampler(student, SimpleNamespace(eos_token_id=1, pad_token_id=0), args, 10, 32, 64, CPU)
    source, batches = MixedRows(train, plan, made, args), RankBatches(train, None, 0, 64, "padded", CPU)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)

    def divergence(loaded: LoadedStep) -> torch.Tensor:
        (batch,) = batches.of_loaded(loaded)
        return distiller(batch=batch, teacher=teacher.states(batch)).loss / len(batch.labels_N)

    planned = [step for epoch in range(15) for step in plan.steps(epoch)]
    for number, (step, kind) in enumerate(zip(planned, source.kinds(planned, 1)), start=1):
        optimizer.zero_grad()
        divergence(source.draw(step, number, kind)).backward()
        optimizer.step()
    with torch.no_grad():
        own = [source.draw(step, number, "student") for number, step in enumerate(plan.steps(99), start=1000)]
        return float(np.mean([divergence(loaded).item() for loaded in own]))


def test_on_policy_rows_lower_the_divergence_on_the_students_own_answers():
    """At equal steps."""
    off, on = reverse_kl_on_own_answers(0.0), reverse_kl_on_own_answers(0.5)
    assert on < 0.85 * off, (on, off)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_by_kind(monkeypatch):
    monkeypatch.setattr("training.kind_metrics.dist.all_reduce", lambda tensor: None)
    metrics, planned = KindMetrics(CPU), plan_of().steps(1)[0]
    sums = lambda ce, kd: torch.tensor([0.0, ce, kd], dtype=torch.float64)  # noqa: E731
    sampled = Sampled([Example([5], [6, 7, 1]), Example([5], [6])], cut=1, seconds=1.5)
    metrics.add_step(LoadedStep(planned, TRAIN, ("data", "data")), [(sums(6.0, 2.0), 4), (sums(2.0, 2.0), 4)])
    metrics.add_step(LoadedStep(planned, sampled.rows, ("student",), sampled), [(sums(9.0, 3.0), 3)])
    metrics.add_step(LoadedStep(planned, sampled.rows, ("replay",)), [])  # was not applied
    state = metrics.state_dict()
    metrics = KindMetrics(CPU)
    metrics.load_state_dict(state)
    assert metrics.record() == {
        **{"rows_kind": "replay", "data_steps": 1, "student_steps": 1, "replay_steps": 0},
        **{"data_nll_loss": 1.0, "data_kd_loss": 0.5, "student_nll_loss": 3.0, "student_kd_loss": 1.0},
        **{"generation_s": 1.5, "generated_tokens": 4, "response_mean": 2.0, "cut_share": 0.5},
    }
    assert metrics.record()["generated_tokens"] == 0
    metrics.add_step(LoadedStep(planned, TRAIN, ("data", "student")), [(sums(6.0, 2.0), 4), (sums(2.0, 2.0), 4)])
    again = KindMetrics(CPU)
    again.load_state_dict(metrics.state_dict())
    assert again.summary() == "trained on data in 2 steps, on sampled answers in 2, on replayed ones in 0"
    sent = []
    TrackerWriter(SimpleNamespace(log=lambda *record: sent.append(record)), "train").write(
        {"step": 3, "rows_kind": "data", "loss": 1.5}
    )
    assert sent == [({"train/loss": 1.5}, 3)], "trackers take numbers"


def test_a_bad_row_is_kept_with_what_is_learnt_of_it(tmp_path):
    """Else another key, and other labels, would be replayed."""
    row = Example([5, 6], [7, 1, 8, 9, 1], [0, 2, 4, 5])
    loaded = LoadedStep(Step((((0,),),), ((3,),)), [row], ("data",))
    StepGuard(None, tmp_path, 1, None)._keep(tmp_path / "kept.json", 1, loaded, torch.tensor([float("nan")]))
    (kept,) = json.loads((tmp_path / "kept.json").read_text())["micro_steps"][0]["examples"]
    again = Example(kept["prompt_ids"], kept["response_ids"], kept["spans"])
    assert again.key == row.key and again.key.hex().startswith(kept["hash"])


# --- preflight -------------------------------------------------------------------------------------------------------


def checked(tiny, rows, *flags, teacher="teacher") -> Preflight:
    paths = ["--model-path", tiny / "student", "--data-dir", rows, "--teacher-model-path", tiny / teacher]
    limits = ["--max-length", "128", "--max-prompt-length", "64", "--kd-objective", "todi"]
    return check(parse_train_arguments([*map(str, paths), *limits, *flags]))


def described(*args, **kwargs) -> Preflight:
    preflight = checked(*args, **kwargs)
    preflight.describe_models()
    return preflight


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gkd", "--kd-objective", "sft"], "--student-gen: sft has no teacher"),
        (["--gkd", "--kd-rate", "0"], "--kd-rate 0.0: sampled rows .* train KD alone"),
        (["--distillm"], "--gen-schedule adaptive: follows the dev NLL"),
        (["--gkd", "--gen-engine", "vllm"], "--gen-engine vllm: vllm is not installed"),
    ],
)
def test_rows_that_would_teach_nothing_are_refused(tiny, rows, tmp_path, monkeypatch, flags, message):
    with (rows / "train.jsonl").open() as file:  # of one row, none is held out for dev
        (tmp_path / "train.jsonl").write_text(file.readline())
    monkeypatch.setattr(vllm_generator.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        checked(tiny, tmp_path, *flags)
    checked(tiny, tmp_path, "--gkd", "--lmbda", "0", "--kd-rate", "0")


def test_another_eos_is_an_error_with_sampled_rows(tiny, rows, tmp_path):
    teacher = tmp_path / "teacher"
    llama(400, hidden=48, layers=1, tied=False, seed=0).save_pretrained(teacher)
    other = load_tokenizer(str(tiny / "teacher"))
    other.eos_token = "a"
    other.save_pretrained(teacher)
    assert any("answers end with" in warning for warning in described(tiny, rows, teacher=teacher).report.warnings)
    (error,) = described(tiny, rows, "--gkd", teacher=teacher).report.errors
    assert error.startswith("--student-gen: answers end with '<eos>' (1) for the student and with 'a'")


def test_a_teacher_that_ends_no_turn_is_refused_for_chats_with_sampled_rows(tiny, rows, tmp_path):
    """The student's EOS is what ends a turn in its template; a teacher that knows none goes on."""
    template, teacher = tmp_path / "turns.jinja", tmp_path / "teacher"
    template.write_text("{% for turn in messages %}{{ turn.role }}: {{ turn.content }}<pad>{% endfor %}")
    shutil.copytree(tiny / "teacher", teacher)
    flags = ["--gkd", "--prompt-template", str(template)]
    (error,) = described(tiny, rows, *flags, teacher=teacher).report.errors
    assert error.startswith("--student-gen: answers end with '<pad>' (0) for the student and with '<eos>'")
    shutil.copy(template, teacher / "chat_template.jinja")
    assert described(tiny, rows, *flags, teacher=teacher).report.errors == []


def report_of(tiny, rows, monkeypatch, ranks, *flags) -> str:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    preflight = described(tiny, rows, *flags)
    preflight.estimate(Sized(TRAIN), None)
    return " ".join(str(preflight.report).split())


class Sized(Table):
    cut_prompts = cut_responses = cut_chats = unfinished = 0
    forms: ClassVar = {}


def test_the_report_counts_what_sampling_costs(tiny, rows, monkeypatch):
    flags = ["--gkd", "--lmbda", "0.3", "--batch-size", "3", "--gen-max-new-tokens", "10"]
    text = report_of(tiny, rows, monkeypatch, 4, *flags, "--gen-tokens-per-batch", "40")
    # A prompt has at most 7 tokens: 2 rows a group, 6 groups for 4 ranks.
    assert "30% of the steps are sampled" in text
    assert "12 answers of at most 10 tokens, in at most 6 groups" in text and "20 passes" in text
    # (2 layers + 1) x keys and values x 2 heads x 8 x 4 bytes, of --max-length 128 tokens
    assert "keys and values 49.2 kB" in text and "whole copy" not in text
    text = report_of(tiny, rows, monkeypatch, 4, *flags)
    assert "make 1 groups at --gen-tokens-per-batch 2,048, and there are 4 ranks" in text
    text = report_of(tiny, rows, monkeypatch, 1, "--distillm", "--batch-size", "8", "--capacity", "7")
    assert "error: --capacity 7: a step takes 8 rows" in text
    text = report_of(tiny, rows, monkeypatch, 1, "--distillm")
    assert "by --loss-eps 0.1; in the paper, the objective is a skewed KL (sfkl or srkl)" in text
    text = report_of(tiny, rows, monkeypatch, 1, "--gkd", "--gen-max-new-tokens", "510")
    assert "error: --gen-max-new-tokens 510: with its prompt an answer may have 517 tokens" in text, "positions: 512"


def test_shorthands_are_spelt_out_and_named():
    words = ["--model-path", "m", "--data-dir", "d"]
    config = with_rows(parse_train_arguments([*words, "--distillm"]))
    assert config == with_rows(parse_train_arguments([*words, "--student-gen", "--gen-schedule", "adaptive"]))
    assert config.flags["gen_max_new_tokens"] == 256 and config.flags["gen_tokens_per_batch"] == 16 * 512
    plain = parse_train_arguments(words)
    assert with_rows(plain) is plain
