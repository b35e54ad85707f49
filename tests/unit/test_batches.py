"""Packing, collation and the plan of an epoch: nothing is lost, nothing is doubled, and the restart finds its place."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.batches import Batch, Example, Layout, batches_by_length, collate, pack
from data_utils.epoch_plan import EpochPlan, Step
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
    rows, width = batch.input_ids_RT.shape
    seen = []
    for position, label in zip(batch.response_positions.tolist(), batch.labels_N.tolist()):
        r, t = divmod(position, width)
        if batch.position_ids_RT is not None:
            start = t - int(batch.position_ids_RT[r, t])
        else:
            assert batch.attention_mask_RT[r, : t + 1].all()
            start = 0
        seen.append((tuple(batch.input_ids_RT[r, start : t + 1].tolist()), label))
    assert rows * width == batch.input_ids_RT.numel()
    return seen


def wanted_predictions(examples: list[Example]) -> list[tuple[tuple[int, ...], int]]:
    """Every response token from all that stands before it in its own example."""
    wanted = []
    for example in examples:
        ids = [*example.prompt_ids, *example.response_ids]
        wanted += [(tuple(ids[:t]), ids[t]) for t in range(len(example.prompt_ids), len(ids))]
    return wanted


# --- pack ------------------------------------------------------------------------------------------------------------


@quick
@given(lengths=st.lists(st.integers(1, 60), max_size=12), max_length=max_lengths)
def test_pack_places_every_example_once_in_bounded_rows(lengths, max_length):
    rows = pack(lengths, max_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(rows)
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert all(total <= max(max_length, *lengths) for total in sums)


@quick
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), max_length=max_lengths)
def test_packing_is_never_larger_than_padding_to_the_longest(lengths, max_length):
    rows = pack(lengths, max_length)
    area = len(rows) * max(sum(lengths[i] for i in row) for row in rows)
    assert sum(lengths) <= area <= len(lengths) * max(lengths)


@pytest.mark.parametrize(
    ("lengths", "max_length", "area"),
    [([10, 9, 1], 10, 20), ([5, 5, 5, 5], 10, 20), ([100, 30, 30, 40], 100, 200), ([7], 100, 7), ([8, 8, 8], 15, 24)],
)
def test_packing_finds_the_small_area(lengths, max_length, area):
    rows = pack(lengths, max_length)
    assert len(rows) * max(sum(lengths[i] for i in row) for row in rows) == area


def test_of_equal_areas_the_shorter_rows_win():
    assert sorted(map(len, pack([5, 5, 5, 5], 100))) == [1, 1, 1, 1]


# --- collate ---------------------------------------------------------------------------------------------------------


@quick
@given(examples=example_lists, max_length=max_lengths, layout=st.sampled_from(LAYOUTS))
def test_the_loss_reads_exactly_the_response_tokens(examples, max_length, layout):
    batch = collate(examples, PAD, max_length, layout)
    assert sorted(predictions(batch)) == sorted(wanted_predictions(examples))
    assert batch.tokens == sum(map(len, examples))
    assert len(set(batch.response_positions.tolist())) == len(batch.labels_N) == len(batch.response_positions)


@quick
@given(examples=example_lists, max_length=max_lengths)
def test_packed_rows_hold_each_example_once_and_positions_restart(examples, max_length):
    batch = collate(examples, PAD, max_length, "packed")
    assert batch.attention_mask_RT is None
    found = []
    for ids, positions in zip(batch.input_ids_RT.tolist(), batch.position_ids_RT.tolist()):
        starts = [t for t, position in enumerate(positions) if position == 0]
        assert starts[0] == 0
        for start, end in zip(starts, [*starts[1:], len(ids)]):
            assert positions[start:end] == list(range(end - start))
            found.append(ids[start:end])
    real = sorted([*example.prompt_ids.tolist(), *example.response_ids.tolist()] for example in examples)
    assert sorted(ids for ids in found if any(ids)) == real  # what is left are row ends of pads
    longest = max(map(len, examples))
    assert batch.input_ids_RT.shape[1] <= max(max_length, longest)


@quick
@given(examples=example_lists, max_length=max_lengths)
def test_one_row_holds_all_examples(examples, max_length):
    batch = collate(examples, PAD, max_length, "packed into one row")
    assert batch.input_ids_RT.shape == (1, sum(map(len, examples)))  # nothing is padding
    assert int((batch.position_ids_RT == 0).sum()) == len(examples)
    assert sorted(predictions(batch)) == sorted(wanted_predictions(examples))


@quick
@given(examples=example_lists)
def test_padded_rows_are_the_examples_in_order(examples):
    batch = collate(examples, PAD, 10, "padded")
    assert batch.position_ids_RT is None
    lengths = [len(example) for example in examples]
    assert batch.input_ids_RT.shape == (len(examples), max(lengths))
    assert batch.attention_mask_RT.sum(1).tolist() == lengths
    for row, mask, example in zip(batch.input_ids_RT, batch.attention_mask_RT, examples):
        ids = [*example.prompt_ids, *example.response_ids]
        assert row.tolist() == ids + [PAD] * (max(lengths) - len(ids))
        assert mask.tolist() == [1] * len(ids) + [0] * (max(lengths) - len(ids))


def test_pads_inside_the_text_are_tokens():
    """PAD may be the EOS: lengths say where an example ends, not the ids."""
    batch = collate([Example([PAD, 5], [6, PAD]), Example([7], [PAD])], PAD, 6, "padded")
    assert sorted(batch.labels_N.tolist()) == [PAD, PAD, 6]
    assert batch.attention_mask_RT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_response_without_a_prompt_starts_at_its_second_token():
    for layout in LAYOUTS:
        batch = collate([Example([], [5, 6, 7])], PAD, 10, layout)
        assert (batch.response_positions.tolist(), batch.labels_N.tolist()) == ([0, 1], [6, 7])


def test_an_example_without_a_response_adds_no_loss():
    for layout in LAYOUTS:
        batch = collate([Example([5, 6], []), Example([7], [8])], PAD, 10, layout)
        assert predictions(batch) == [((7,), 8)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch_keeps_the_rank_in_step(layout):
    batch = collate([], PAD, 16, layout, rows_of_ranks=(4, 0))
    assert batch.input_ids_RT.tolist() == [[PAD]]
    assert batch.response_positions.tolist() == batch.labels_N.tolist() == []
    assert batch.response_positions.dtype == batch.labels_N.dtype == torch.int64
    assert (batch.tokens, batch.rows_of_ranks) == (0, (4, 0))
    assert batch.attention_mask_RT.tolist() == [[1]] if layout == "padded" else batch.position_ids_RT is not None


def test_batches_move_whole():
    batch = collate([Example([5], [6])], PAD, 16, "packed", rows_of_ranks=(1,))
    with Rehearsal() as rehearsal:
        moved = batch.to(DEVICE)
    for name in ("input_ids_RT", "labels_N", "response_positions", "position_ids_RT", "cu_seqlens"):
        assert getattr(moved, name).device == DEVICE, name
    assert moved.attention_mask_RT is None and (moved.tokens, moved.longest, moved.rows_of_ranks) == (2, 2, (1,))
    assert not rehearsal.waits


@pytest.mark.parametrize("layout", ["packed", "packed into one row", "padded"])
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
@given(plan=plans, epoch=st.integers(1, 5))
def test_an_epoch_takes_each_example_once(plan, epoch):
    steps = plan.steps(epoch)
    taken = [i for step in steps for ranks in step.examples for rank in ranks for i in rank]
    assert sorted(taken) == list(range(len(plan.lengths)))
    assert len(steps) == len(plan)
    assert all(any(rank for rank in ranks) for step in steps for ranks in step.examples) and all(
        0 < len(step.examples) <= plan.accumulation_steps for step in steps
    )


@quick
@given(plan=plans_by_number)
def test_only_the_last_step_is_short(plan):
    sizes = [[[len(rank) for rank in ranks] for ranks in step.examples] for step in plan.steps(1)]
    full = [[plan.batch_size] * plan.world_size] * plan.accumulation_steps
    assert sizes[:-1] == [full] * (len(sizes) - 1)
    for ranks in sizes[-1]:
        assert len(ranks) == plan.world_size
        assert max(ranks) - min(ranks) <= 1 and max(ranks) <= plan.batch_size
    assert all(sum(ranks) for ranks in sizes[-1])
    assert [sum(ranks) for ranks in sizes[-1][:-1]] == [plan.batch_size * plan.world_size] * (len(sizes[-1]) - 1)


@quick
@given(plan=plans)
def test_tokens_are_the_response_tokens_of_each_rank(plan):
    for step in plan.steps(2):
        assert step.tokens == tuple(
            tuple(sum(int(plan.responses[i]) for i in rank) for rank in ranks) for ranks in step.examples
        )


@quick
@given(plan=plans, epoch=st.integers(1, 3), start=st.integers(0, 70))
def test_a_restart_takes_the_rest_of_the_epoch(plan, epoch, start):
    assert plan.steps(epoch, start) == plan.steps(epoch)[start:]


@pytest.mark.parametrize("count", [37, 40, 8, 3])
def test_ranks_share_the_micro_steps_of_one_process(count):
    alone = make_plan(count, batch_size=8, accumulation_steps=2, world_size=1)
    assert order(make_plan(count, batch_size=4, accumulation_steps=2, world_size=2)) == order(alone)
    assert order(make_plan(count, batch_size=2, accumulation_steps=2, world_size=4)) == order(alone)


@pytest.mark.parametrize("count", [37, 64])
def test_accumulation_splits_the_steps_of_one_batch(count):
    def of_steps(**shape):
        return [sorted(i for micro_step in step for i in micro_step) for step in order(make_plan(count, **shape))]

    whole = of_steps(batch_size=8, accumulation_steps=1, world_size=1)
    assert of_steps(batch_size=2, accumulation_steps=4, world_size=1) == whole
    assert of_steps(batch_size=2, accumulation_steps=2, world_size=2) == whole


def test_the_order_depends_on_seed_and_epoch_alone():
    plan = make_plan()
    assert plan.steps(1) == make_plan().steps(1)
    orders = [str(order(make_plan(seed=seed), epoch)) for seed in (0, 1) for epoch in (1, 2)]
    assert len(set(orders)) == 4
    assert plan.steps(2) == make_plan().steps(2)  # whatever was asked for before


@pytest.mark.parametrize("tokens", [None, 1000])
def test_ranks_get_nearly_equal_work(tokens):
    plan = make_plan(count=512, batch_size=16, accumulation_steps=1, world_size=4, tokens=tokens)
    for step in plan.steps(1):
        work = [sum(int(plan.lengths[i] + plan.responses[i]) for i in rank) for rank in step.examples[0]]
        assert max(work) - min(work) <= 0.05 * max(work)


# --- token budgets ---------------------------------------------------------------------------------------------------


def tokens_of_hands(plan: EpochPlan, step: Step) -> list[int]:
    """Tokens of each micro-batch."""
    return [sum(int(plan.lengths[i]) for i in rank) for ranks in step.examples for rank in ranks]


@quick
@given(plan=plans_by_tokens, epoch=st.integers(1, 3))
def test_a_micro_batch_keeps_to_its_tokens(plan, epoch):
    for step in plan.steps(epoch):
        for rank in (rank for ranks in step.examples for rank in ranks if rank):
            lengths = [int(plan.lengths[i]) for i in rank]
            held = len(lengths) * max(lengths) if plan.layout == "padded" else sum(lengths)
            assert held <= plan.tokens_per_micro_batch


@quick
@given(plan=plans_by_tokens)
def test_all_micro_batches_are_alike(plan):
    steps = plan.steps(1)
    numbers = [len(rank) for step in steps for ranks in step.examples for rank in ranks]
    assert max(numbers) - min(numbers) <= 1
    work = [tokens for step in steps for tokens in tokens_of_hands(plan, step)]
    assert max(work) - min(work) <= LONGEST
    if len(plan.lengths) >= len(plan) * plan.micro_batches_per_step:  # one for every hand: then no step is short
        assert {len(step.examples) for step in steps} == {plan.accumulation_steps}


@pytest.mark.parametrize(("layout", "least"), [("packed", 0.9), ("padded", 0.5)])
def test_a_token_budget_is_used(layout, least):
    plan = make_plan(count=512, accumulation_steps=1, world_size=1, tokens=1000, layout=layout)
    work = [tokens for step in plan.steps(1) for tokens in tokens_of_hands(plan, step)]
    assert least * 1000 <= np.mean(work)


def test_a_full_hand_fits_exactly():
    """Eight examples of ten tokens: forty tokens hold four of them, one less holds three."""
    for tokens, steps in ((80, 1), (79, 2), (40, 2), (39, 3), (20, 4), (10, 8)):
        plan = EpochPlan(np.full(8, 10), np.full(8, 5), 1, 1, 1, 0, tokens)
        assert len(plan) == len(plan.steps(1)) == steps


@pytest.mark.parametrize("count", [37, 300, 5])
def test_ranks_and_accumulation_share_the_steps_of_a_token_budget(count):
    def of_steps(**shape):
        plan = make_plan(count, tokens=300, **shape)
        return [sorted(i for micro_step in step for i in micro_step) for step in order(plan, epoch=2)]

    alone = of_steps(accumulation_steps=4, world_size=1)
    assert of_steps(accumulation_steps=2, world_size=2) == of_steps(accumulation_steps=1, world_size=4) == alone


def test_every_epoch_of_a_token_budget_mixes_anew():
    plan = make_plan(count=300, tokens=500)
    together = [{frozenset(rank) for step in plan.steps(epoch) for ranks in step.examples for rank in ranks}
                for epoch in (1, 2)]  # fmt: skip
    assert not together[0] & together[1]
