"""The mean divergence of a student from its teacher on dev responses, in nats per response token.

    python scripts/smollm2/divergence.py RUN_OR_CKPT TEACHER DATA

Prints one line of JSON: `forward_kl`, KL(p || q), and `reverse_kl`, KL(q || p), of the whole vocabulary at temperature
1, p the teacher's distribution and q the student's.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
import torch

from arguments import DataArguments, KDArguments
from criterions import build_criterion
from data_utils.batches import batches_by_length, collate
from data_utils.dataset import load_instruction_data
from models.folders import find_checkpoint
from models.loading import load_checkpoint
from models.packing import response_logits

TOKENS_PER_BATCH = 2048


@torch.no_grad()
def mean_divergences(student_path: str, teacher_path: str, data_dir: str) -> dict[str, float]:
    student, tokenizer = load_checkpoint(find_checkpoint("RUN_OR_CKPT", student_path), dtype="float32")
    teacher, _ = load_checkpoint(find_checkpoint("TEACHER", teacher_path), dtype="float32")
    dev = load_instruction_data(Path(data_dir) / "dev.jsonl", tokenizer, DataArguments(data_dir=data_dir), -1)
    objectives = {f"{name}_kl": build_criterion(f"{name}_kl", KDArguments()) for name in ("forward", "reverse")}
    totals, count = dict.fromkeys(objectives, 0.0), 0
    for indices in batches_by_length(dev.lengths, TOKENS_PER_BATCH):
        batch = collate([dev[i] for i in indices], tokenizer.pad_token_id, 512, "padded")
        student_NV, teacher_NV = (response_logits(model, batch) for model in (student, teacher))
        for name, objective in objectives.items():
            totals[name] += objective.token_loss(student_NV, teacher_NV).sum().item()
        count += len(batch.labels_N)
    return {name: round(total / count, 4) for name, total in totals.items()}


if __name__ == "__main__":
    print(json.dumps(mean_divergences(*sys.argv[1:])))
