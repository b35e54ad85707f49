"""Packing, collation and the plan of an epoch: nothing is lost or doubled, and a resumed run finds its place."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.batches import Batch, Example, Layout, batches_by_length, collate, pack
from data_utils.epoch_plan import EpochPlan
from pretend_device import DEVICE, Rehearsal

PAD = 0
quick = settings(max_examples=150, deadline=None)
token_ids = st.integers(1, 50)
example_lists = st.lists(
    st.builds(
        Example,
        st.lists(token_ids, min_size=1, max_size=30).map(np.array),
        st.lists(token_ids, min_size=1, max_size=30).map(np.array),
    ),
    min_size=1,
    max_size=9,
)
max_lengths = st.integers(1, 90)
LAYOUTS = get_args(Layout)


def predictions(batch: Batch) -> list[tuple[tuple[int, ...], int]]:
    """What the loss reads at each position: the tokens that the prediction sees, and the label."""
    width = batch.input_ids_RT.shape[1]
    seen = []
    for position, label in zip(batch.response_positions.tolist(), batch.labels_N.tolist()):
        r, t = divmod(position, width)
        if batch.position_ids_RT is not None:
            start = t - int(batch.position_ids_RT[r, t])
        else:
            assert batch.attention_mask_RT[r, : t + 1].all()
            start = 0
        seen.append((tuple(batch.input_ids_RT[r, start : t + 1].tolist()), label))
    return seen


def wanted_predictions(examples: list[Example]) -> list[tuple[tuple[int, ...], int]]:
    """Every response token from all that stands before it in its own example."""
    wanted = []
    for example in examples:
        ids = [*example.prompt_ids, *example.response_ids]
        wanted += [(tuple(ids[:t]), ids[t]) for t in range(len(example.prompt_ids), len(ids))]
    return wanted


# --- pack ------------------------------------------------------------------------------------------------------------


def area_of(rows: list[list[int]], lengths: list[int]) -> int:
    return len(rows) * max(sum(lengths[i] for i in row) for row in rows)


@quick
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), max_length=max_lengths)
def test_packed_rows_are_bounded_and_never_larger_than_padded_ones(lengths, max_length):
    rows = pack(lengths, max_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= max(max_length, *lengths) for row in rows)
    assert sum(lengths) <= area_of(rows, lengths) <= len(lengths) * max(lengths)


def test_packing_finds_the_small_area():
    for lengths, max_length, area in (([10, 9, 1], 10, 20), ([100, 30, 30, 40], 100, 200), ([8, 8, 8], 15, 24)):
        assert area_of(pack(lengths, max_length), lengths) == area


def test_of_equal_areas_the_shorter_rows_win():
    assert sorted(map(len, pack([5, 5, 5, 5], 100))) == [1, 1, 1, 1]


# --- collate ---------------------------------------------------------------------------------------------------------


@quick
@given(examples=example_lists, max_length=max_lengths, layout=st.sampled_from(LAYOUTS))
def test_the_loss_reads_exactly_the_response_tokens(examples, max_length, layout):
    batch = collate(examples, PAD, max_length, layout)
    assert sorted(predictions(batch)) == sorted(wanted_predictions(examples))
    assert len(set(batch.response_positions.tolist())) == len(batch.labels_N)
    lengths = [len(example) for example in examples]
    assert batch.tokens == int((batch.input_ids_RT != PAD).sum()) == sum(lengths)
    rows, width = batch.input_ids_RT.shape
    if layout == "padded":
        assert (rows, width) == (len(examples), max(lengths)) and batch.position_ids_RT is None
        assert batch.attention_mask_RT.tolist() == [[1] * n + [0] * (width - n) for n in lengths]
    else:
        assert width <= max(max_length, *lengths) if layout == "packed" else (rows, width) == (1, sum(lengths))
        assert batch.attention_mask_RT is None


def test_pads_inside_the_text_are_tokens():
    """PAD may be the EOS: lengths say where an example ends, not the ids."""
    batch = collate([Example([PAD, 5], [6, PAD]), Example([7], [PAD])], PAD, 6, "padded")
    assert sorted(batch.labels_N.tolist()) == [PAD, PAD, 6]
    assert batch.attention_mask_RT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_an_example_may_lack_its_prompt_or_its_response():
    for layout in LAYOUTS:
        assert predictions(collate([Example([], [5, 6, 7])], PAD, 10, layout)) == [((5,), 6), ((5, 6), 7)]
        assert predictions(collate([Example([5, 6], []), Example([7], [8])], PAD, 10, layout)) == [((7,), 8)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch_keeps_the_rank_in_step(layout):
    batch = collate([], PAD, 16, layout, positions_per_rank=(4, 0))
    assert batch.input_ids_RT.tolist() == [[PAD]]
    assert batch.response_positions.tolist() == batch.labels_N.tolist() == []
    assert batch.response_positions.dtype == batch.labels_N.dtype == torch.int64
    assert (batch.tokens, batch.positions_per_rank) == (0, (4, 0))
    assert batch.attention_mask_RT.tolist() == [[1]] if layout == "padded" else batch.position_ids_RT is not None


def test_batches_move_whole():
    batch = collate([Example([5], [6])], PAD, 16, "packed", positions_per_rank=(1,))
    with Rehearsal() as rehearsal:
        moved = batch.to(DEVICE)
    for name in ("input_ids_RT", "labels_N", "response_positions", "position_ids_RT", "cu_seqlens"):
        assert getattr(moved, name).device == DEVICE, name
    assert moved.attention_mask_RT is None and (moved.tokens, moved.longest, moved.positions_per_rank) == (2, 2, (1,))
    assert not rehearsal.waits
    with rehearsal:
        assert moved.to(DEVICE).labels_N.device == DEVICE, "a batch that is there may be moved again"


@pytest.mark.parametrize("layout", LAYOUTS)
@quick
@given(lengths=st.lists(st.integers(1, 30), max_size=8))
def test_the_boundaries_are_where_positions_restart(layout, lengths):
    batch = collate([Example([1] * length, []) for length in lengths], PAD, 40, layout)
    if layout == "padded":
        assert batch.cu_seqlens is None and not batch.shares_rows
        return
    starts = (batch.position_ids_RT.flatten() == 0).nonzero()[:, 0].tolist()
    assert batch.cu_seqlens.tolist() == [*starts, batch.input_ids_RT.numel()] and batch.cu_seqlens.dtype == torch.int32
    assert batch.longest == max(int(batch.position_ids_RT.max()) + 1, 1)
    assert batch.shares_rows == bool((batch.position_ids_RT[:, 1:] == 0).any())


# --- batches by length -----------------------------------------------------------------------------------------------


def fewest(lengths, fits) -> int:
    """Batches of a partition of the sorted lengths, by trying every size of the first batch."""
    sizes = [size for size in range(1, len(lengths) + 1) if fits(lengths[:size])]
    return 1 + min(fewest(lengths[size:], fits) for size in sizes) if lengths else 0


@quick
@given(lengths=st.lists(st.integers(1, 30), max_size=8), tokens=st.integers(1, 100), ranks=st.integers(1, 3))
def test_batches_by_length_fit_and_are_the_fewest(lengths, tokens, ranks):
    def fits(batch):
        return len(batch) <= max(1, tokens // batch[0]) * ranks

    batches = batches_by_length(lengths, tokens, ranks)
    of_lengths = [[lengths[i] for i in batch] for batch in batches]
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [length for batch in of_lengths for length in batch] == sorted(lengths, reverse=True)
    assert all(fits(batch) for batch in of_lengths)
    assert len(batches) == fewest(sorted(lengths, reverse=True), fits)


def test_one_long_prompt_does_not_pad_the_short_ones():
    assert batches_by_length([10] * 9 + [60], 100) == [[9], list(range(9))]


# --- epoch plan ------------------------------------------------------------------------------------------------------


LONGEST = 98


def make_plan(
    count=37, batch_size=4, accumulation_steps=2, world_size=2, seed=3, tokens=None, layout="packed"
) -> EpochPlan:
    draw = np.random.default_rng(count)
    responses = draw.integers(1, 50, count)
    lengths = responses + draw.integers(1, 50, count)
    assert lengths.max() <= LONGEST
    return EpochPlan(lengths, responses, batch_size, accumulation_steps, world_size, seed, tokens, layout)


shapes = {
    "count": st.integers(1, 60),
    "accumulation_steps": st.integers(1, 4),
    "world_size": st.integers(1, 4),
    "seed": st.integers(0, 2**40),
}
plans_by_number = st.builds(make_plan, batch_size=st.integers(1, 5), **shapes)
plans_by_tokens = st.builds(
    make_plan, tokens=st.integers(LONGEST, 1000), layout=st.sampled_from(["packed", "padded"]), **shapes
)
plans = plans_by_number | plans_by_tokens


def order(plan: EpochPlan, epoch: int = 1) -> list[list[list[int]]]:
    """The set of examples of each micro-step of each step."""
    return [[sorted(i for rank in ranks for i in rank) for ranks in step.examples] for step in plan.steps(epoch)]


@quick
@given(plan=plans, epoch=st.integers(1, 5), start=st.integers(0, 70))
def test_an_epoch_takes_each_example_once_and_a_resumed_one_the_rest(plan, epoch, start):
    steps = plan.steps(epoch)
    taken = [i for step in steps for ranks in step.examples for rank in ranks for i in rank]
    assert sorted(taken) == list(range(len(plan.lengths)))
    assert len(steps) == plan.steps_per_epoch == len(plan)
    for step in steps:
        assert 0 < len(step.examples) <= plan.accumulation_steps and all(map(any, step.examples))
        assert step.tokens == tuple(
            tuple(sum(int(plan.responses[i]) for i in rank) for rank in ranks) for ranks in step.examples
        )
    assert plan.steps(epoch, start) == steps[start:]


@quick
@given(plan=plans_by_number)
def test_only_the_last_step_is_short(plan):
    sizes = [[[len(rank) for rank in ranks] for ranks in step.examples] for step in plan.steps(1)]
    full = [plan.batch_size] * plan.world_size
    assert sizes[:-1] == [[full] * plan.accumulation_steps] * (len(sizes) - 1)
    *before, last = sizes[-1]
    assert before == [full] * len(before)
    assert len(last) == plan.world_size and max(last) - min(last) <= 1 and 0 < max(last) <= plan.batch_size


@pytest.mark.parametrize("count", [37, 64, 3])
@pytest.mark.parametrize("tokens", [None, 300])
def test_ranks_and_accumulation_share_the_micro_batches_of_one_process(count, tokens):
    def steps(batch_size: int, accumulation_steps: int, world_size: int) -> list[list[int]]:
        plan = make_plan(count, batch_size, accumulation_steps, world_size, tokens=tokens)
        return [sorted(i for micro_step in step for i in micro_step) for step in order(plan, epoch=2)]

    assert steps(2, 4, 1) == steps(2, 2, 2) == steps(2, 1, 4)
    if tokens is None:
        assert steps(8, 1, 1) == steps(2, 2, 2)
        assert order(make_plan(count, 2, 2, 4)) == order(make_plan(count, 4, 2, 2)) == order(make_plan(count, 8, 2, 1))


@pytest.mark.parametrize("tokens", [None, 500])
def test_the_order_depends_on_seed_and_epoch_alone(tokens):
    plan = make_plan(tokens=tokens)
    assert plan.steps(1) == make_plan(tokens=tokens).steps(1)
    orders = [str(order(make_plan(seed=seed, tokens=tokens), epoch)) for seed in (0, 1) for epoch in (1, 2)]
    assert len(set(orders)) == 4
    assert plan.steps(2) == make_plan(tokens=tokens).steps(2)  # whatever was asked for before


@pytest.mark.parametrize("tokens", [None, 1000])
def test_ranks_get_nearly_equal_work(tokens):
    plan = make_plan(count=512, batch_size=16, accumulation_steps=1, world_size=4, tokens=tokens)
    for step in plan.steps(1):
        work = [sum(int(plan.lengths[i] + plan.responses[i]) for i in rank) for rank in step.examples[0]]
        assert max(work) - min(work) <= 0.05 * max(work)


# --- token budgets ---------------------------------------------------------------------------------------------------


def micro_batches(plan: EpochPlan, epoch: int = 1) -> list[list[int]]:
    """The lengths of the examples of each micro-batch."""
    steps = plan.steps(epoch)
    return [[int(plan.lengths[i]) for i in rank] for step in steps for ranks in step.examples for rank in ranks]


@quick
@given(plan=plans_by_tokens, epoch=st.integers(1, 3))
def test_micro_batches_of_a_token_budget_keep_to_it_and_are_alike(plan, epoch):
    batches = micro_batches(plan, epoch)
    for lengths in filter(None, batches):
        tokens = len(lengths) * max(lengths) if plan.layout == "padded" else sum(lengths)
        assert tokens <= plan.tokens_per_micro_batch
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert max(map(sum, batches)) - min(map(sum, batches)) <= LONGEST
    if len(plan.lengths) >= len(plan) * plan.micro_batches_per_step:  # one for every micro-batch: then no step is short
        assert {len(step.examples) for step in plan.steps(epoch)} == {plan.accumulation_steps}


@pytest.mark.parametrize(("layout", "least"), [("packed", 0.9), ("padded", 0.5)])
def test_a_token_budget_is_used(layout, least):
    plan = make_plan(count=512, accumulation_steps=1, world_size=1, tokens=1000, layout=layout)
    assert least * 1000 <= np.mean([sum(lengths) for lengths in micro_batches(plan)])


def test_a_full_micro_batch_fits_exactly():
    """Eight examples of ten tokens: forty tokens hold four of them, one token less holds three."""
    for tokens, steps in ((80, 1), (79, 2), (40, 2), (39, 3), (20, 4), (10, 8)):
        plan = EpochPlan(np.full(8, 10), np.full(8, 5), 1, 1, 1, 0, tokens)
        assert len(plan) == len(plan.steps(1)) == steps


def test_every_epoch_of_a_token_budget_mixes_anew():
    plan = make_plan(count=300, tokens=500)
    first, second = (
        {frozenset(rank) for step in plan.steps(epoch) for ranks in step.examples for rank in ranks} for epoch in (1, 2)
    )
    assert not first & second
