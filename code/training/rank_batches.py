"""The batches of this rank, made in a background thread while the ones before them run.

In: the steps of an epoch, a step of sampled rows, or the number of dev rows. Out: batches on the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from data_utils.batches import Batch, Example, ExampleTable, Layout, batches_by_length, collate
from data_utils.epoch_plan import Step
from runtime.ranks import rank, world_size
from training.prefetch import prefetched
from training.sources import LoadedStep


@dataclass(frozen=True)
class RankBatches:
    """This rank's batches: train in the order of the plan, dev by length. Close the iterators (`closing`)."""

    train: ExampleTable
    dev: ExampleTable | None
    pad_id: int
    max_length: int
    layout: Layout
    device: torch.device

    def of_steps(self, steps: Sequence[Step]) -> Iterator[Batch]:
        """One batch of data per micro-step of `steps`."""
        parts = (part for step in steps for part in _parts(step))
        return prefetched(lambda part: self._batch(self.train, *part), parts, self.device)

    def of_loaded(self, loaded: LoadedStep) -> Iterator[Batch]:
        """One batch per micro-step."""
        for part, kind in zip(_parts(loaded.step), loaded.kinds):
            yield replace(self._batch(loaded.rows, *part), supervised=kind == "data")

    def of_dev(self, rows: int, tokens_per_batch: int) -> Iterator[Batch]:
        """Batches of the first `rows`; equally many on every rank, which ZeRO-3 requires."""
        of_all_ranks = batches_by_length(self.dev.lengths[:rows], tokens_per_batch, world_size())
        mine = (indices[rank() :: world_size()] for indices in of_all_ranks)
        return prefetched(lambda indices: self._batch(self.dev, indices, (0,)), mine, self.device)

    def _batch(
        self, data: ExampleTable | Sequence[Example], indices: Sequence[int], positions_per_rank: tuple[int, ...]
    ) -> Batch:
        examples = [data[i] for i in indices]
        return collate(examples, self.pad_id, self.max_length, self.layout, positions_per_rank).to(self.device)


def _parts(step: Step) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of each micro-step: this rank's examples, and the response tokens of every rank."""
    return ((examples[rank()], tokens) for examples, tokens in zip(step.examples, step.tokens))
