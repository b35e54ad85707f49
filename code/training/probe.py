"""What both models predict at every response position of a few dev rows, epoch by epoch: probe.jsonl.

In: the engine, and the first --probe-rows rows of dev. Out: one line of JSON per epoch and row, before the first step
(epoch 0) and after each epoch; fields and equations are in docs/telemetry.md.

Shapes: N response positions of a batch or of a row, V shared vocabulary, K most likely tokens, P values of each.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor
from torch import distributed as dist
from transformers import PreTrainedTokenizerBase

from criterions.base import log_probabilities
from criterions.fused import ResponsePositions
from criterions.measures import STUDENTS_MEASURES, Measures, measure
from data_utils.batches import Batch
from data_utils.dataset import Row
from models.heads import ModelLogits
from runtime.atomic import write_text
from runtime.ranks import is_main_process, world_size
from teacher.states import Teacher, TeacherStates
from training.rank_batches import RankBatches
from training.writers import rounded

K = 5
FIELDS = tuple(
    "nll forward_kl reverse_kl student_entropy teacher_entropy agreement todi_weight difficulty selected temperature "
    "student_top teacher_top".split()
)
Values = dict[str, Tensor]  # on the CPU; the first dimension is N


@dataclass(frozen=True)
class Probe:
    """rows: the dev rows that are looked at, as text. tokens_per_batch: as of dev batches."""

    engine: DeepSpeedEngine
    teacher: Teacher | None
    tokenizer: PreTrainedTokenizerBase
    batches: RankBatches
    rows: Sequence[Row]
    path: Path
    tokens_per_batch: int
    _texts: dict[int, str] = field(default_factory=dict)
    _hidden: list[Tensor] = field(default_factory=list)  # of the teacher, per batch

    def write(self, epoch: int, step: int) -> None:
        """Adds the records of the epoch to the file, all of them or none. Collective. Raises WriteError."""
        self.engine.eval()
        by_key: list[dict[bytes, Values]] = [{} for _ in range(world_size())]
        dist.all_gather_object(by_key, self._measure())
        if not is_main_process():
            return
        values = {key: of_row for of_rank in by_key for key, of_row in of_rank.items()}
        of_rows = [dict(values[self.batches.dev[row].key]) for row in range(len(self.rows))]
        self._plan(of_rows)
        lines = [self._record(epoch, step, row, of_row) for row, of_row in enumerate(of_rows)]
        before = self.path.read_text() if self.path.is_file() else ""
        write_text(self.path, before + "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))

    def _measure(self) -> dict[bytes, Values]:
        """Of the examples of this rank, by `Example.key`: equal rows have equal values."""
        found: dict[bytes, Values] = {}
        seen: list[Values] = []
        with (
            torch.no_grad(),
            self.engine.module.observed_by(lambda positions: seen.append(self._look(positions))),
            closing(self.batches.of_dev(len(self.rows), self.tokens_per_batch)) as batches,
        ):
            for number, batch in enumerate(batches):
                self.engine(batch=batch, teacher=self._teacher_states(number, batch))
                values = seen.pop()
                counts = [example.predicted for example in batch.examples]
                for example, *parts in zip(batch.examples, *(value.split(counts) for value in values.values())):
                    found[example.key] = {name: part.clone() for name, part in zip(values, parts)}
        return found

    def _teacher_states(self, number: int, batch: Batch) -> TeacherStates | None:
        """Of the batch with this number, which is the same in every epoch: hidden states are kept on the host."""
        if self.teacher is None:
            return None
        if number < len(self._hidden):
            return TeacherStates(self._hidden[number].to(self.engine.device), self.teacher.head)
        states = self.teacher.states(batch)
        if not isinstance(states.head, ModelLogits):  # logits would be too large
            self._hidden.append(states.states_NE.cpu())
        return states

    def _look(self, positions: ResponsePositions) -> Values:
        criterion, names = self.engine.module.criterion, list(Measures._fields if self.teacher else STUDENTS_MEASURES)
        names += ["difficulty"] if criterion.selects else []
        names += ["student_top_ids", "student_top", "teacher_top_ids", "teacher_top"][: 4 if self.teacher else 2]

        def everything(*logits_and_labels: Tensor) -> tuple[Tensor, ...]:  # in one pass over the logits
            difficulty = (criterion.difficulty(*logits_and_labels),) if criterion.selects else ()
            return *measure(*logits_and_labels), *difficulty, *_most_likely(*logits_and_labels[:2])

        values = dict(zip(names, positions.score(everything), strict=True)) | {"labels": positions.labels_N}
        if self.teacher is not None:
            mass_N = values["todi_forward"] + values["todi_reverse"]
            values["todi_weight"] = (values["todi_forward"] / mass_N).where(mass_N > 0, 0.5)
        return {name: value.cpu() for name, value in values.items()}

    def _plan(self, of_rows: Sequence[Values]) -> None:
        """Which positions would train, and at which temperature, if these rows were one micro-step."""
        criterion = self.engine.module.criterion
        if not criterion.selects:
            return
        counts = [len(of_row["labels"]) for of_row in of_rows]
        plan = criterion.plan(torch.cat([of_row["difficulty"] for of_row in of_rows]))
        for of_row, selected_N, temperature_N in zip(of_rows, *(part.split(counts) for part in plan)):
            of_row |= {"selected": selected_N, "temperature": temperature_N}

    def _record(self, epoch: int, step: int, row: int, values: Values) -> dict:
        lists = {name: rounded(values[name].tolist()) if name in values else None for name in FIELDS}
        for name in ("student_top", "teacher_top"):
            if lists[name] is not None:
                texts = [self._texts_of(ids) for ids in values[f"{name}_ids"].tolist()]
                lists[name] = [
                    [[text, *entry] for text, entry in zip(*position)] for position in zip(texts, lists[name])
                ]
        source = self.rows[row]
        tokens = self._texts_of(values["labels"].tolist())
        place = {"epoch": epoch, "step": step, "row": row, "place": source.place, "prompt": source.prompt}
        return place | {"tokens": tokens} | lists

    def _texts_of(self, ids: Sequence[int]) -> list[str]:
        """The text of each token with the space before it, which some tokenizers drop where a text begins."""
        missing = sorted(set(ids) - self._texts.keys())
        if missing:
            first = self.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
            start = len(self.tokenizer.decode(first))
            decoded = self.tokenizer.batch_decode([[*first, id] for id in missing])
            self._texts.update((id, text[start:]) for id, text in zip(missing, decoded))
        return [self._texts[id] for id in ids]


def _most_likely(student_logits_NV: Tensor, teacher_logits_NV: Tensor | None) -> tuple[Tensor, ...]:
    """ids_NK and entries (q, p, ToDi's w)_NKP of the student's most likely tokens, then of the teacher's.

    Without a teacher, only the student's, with NaN for p and w.
    """
    count = min(K, student_logits_NV.shape[-1])
    if teacher_logits_NV is None:
        q_NK, ids_NK = student_logits_NV.softmax(-1).topk(count)
        unknown_NK = torch.full_like(q_NK, torch.nan)
        return ids_NK, torch.stack((q_NK, unknown_NK, unknown_NK), -1)
    log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    found = []
    for log_r_NV in (log_q_NV, log_p_NV):
        ids_NK = log_r_NV.topk(count).indices
        log_q_NK, log_p_NK = log_q_NV.gather(-1, ids_NK), log_p_NV.gather(-1, ids_NK)
        entries = log_q_NK.exp(), log_p_NK.exp(), (log_p_NK - log_q_NK).sigmoid()
        found += [ids_NK, torch.stack(entries, -1)]
    return tuple(found)
