"""Run folders as training, probing and evaluation leave them, made without a model: `make_run(folder, kind)`."""

import json
import math

import numpy as np

TEXTS = (
    "The whale lives in the ocean and breathes air.\nIt sings to its family.",
    "Families recycle glass because it saves energy.",
    "Once a calm dragon was afraid of the dark. In the end the dragon learned to love the stars, and slept.",
    "Use a sharp knife, cut away from your hand, and keep <b>children</b> at a distance.",
    "Vienna is the capital of Austria; its river is the Danube.",
)
HOSTILE = "<script>alert(1)</script>"
STEPS, PER_EPOCH = 60, 20
FLAGS = {
    "sft": {"kd_objective": "cross_entropy", "kd_rate": 0.0},
    "todi": {"kd_objective": "todi", "kd_rate": 0.5, "teacher_model_path": "outputs/teacher"},
    "adakd": {
        "kd_objective": "adakd+todi",
        "kd_rate": 1.0,
        "teacher_model_path": "outputs/teacher",
        "adakd_epsilon": 0.05,
    },
}
QUALITY = {"sft": 0.55, "todi": 0.8, "adakd": 0.9}  # how close to the teacher it ends


def make_run(folder, kind, *, rows=6, epochs=3, seed=10, probe=True, evaluated=True, text=None):
    """kind: sft, todi or adakd. text: stands in prompts, answers and tokens."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng([seed, sum(map(ord, kind))])
    command = ["code/distillation.py", "--data-dir", "data/dolly", "--save-dir", str(folder)]
    flags = {
        "seed": seed,
        "data_dir": "data/dolly",
        "save_dir": str(folder),
        **FLAGS[kind],
        "run": {"command": command},
    }
    (folder / "args.json").write_text(json.dumps(flags))
    (folder / "train.log").write_text(
        "2026-01-01 10:00:00 run folder x\n2026-01-01 10:01:00 warning: a notable thing\n"
    )
    write(folder / "metrics.jsonl", (metrics(kind, step, draw) for step in range(1, STEPS + 1)))
    quality = QUALITY[kind]
    dev = [
        {
            "step": PER_EPOCH * epoch,
            "epoch": epoch,
            "loss": 2.0 + 2 * math.exp(-epoch) - 0.3 * quality + draw.normal(0, 0.01),
        }
        for epoch in range(epochs + 1)
    ]
    write(folder / "dev_metrics.jsonl", [{**dev[0], **({} if kind == "sft" else {"teacher_loss": 1.7})}, *dev[1:]])
    texts = [TEXTS[i % len(TEXTS)] if text is None else f"{text} {TEXTS[i % len(TEXTS)]}" for i in range(rows)]
    if probe:
        write(
            folder / "probe.jsonl",
            (probed(kind, e, i, t, epochs) for e in range(epochs + 1) for i, t in enumerate(texts)),
        )
    if evaluated:
        evaluate(folder, texts, quality, draw)
    return folder


def metrics(kind, step, draw):
    done = step / STEPS
    loss = 2 + 2 * math.exp(-4 * done) + draw.normal(0, 0.1)
    kd = kind != "sft"
    record = {
        **{"step": step, "epoch": 1 + (step - 1) // PER_EPOCH, "loss": loss, "nll_loss": loss},
        **{"kd_loss": kd * loss / 2, "lr": 1e-3 * (1 - done), "grad_norm": 1 + draw.random(), "skipped_steps": 0},
        **{
            "padding": 0.02,
            "step_time": 1.2 + kd + draw.random() / 9,
            "tokens_per_s": 4e3,
            "peak_memory_mb": 2500 + 900 * kd,
        },
        **{"student_entropy": 2.4 - done, "token_accuracy": 0.3 + 0.3 * done},
    }
    if kd:
        record |= {"teacher_entropy": 1.2, "agreement": 0.4 + 0.3 * done, "overlap": 0.5 + 0.3 * done}
        record |= {"todi_forward_share": 0.4 + 0.1 * done, "todi_reverse_share": 0.6 - 0.1 * done}
    if kind == "adakd":
        record |= {"adakd_ratio": max(0.5, 1.0 - 0.05 * (step // 10)), "adakd_average_loss": 2 * math.exp(-done)}
        record |= {"adakd_reference_loss": 2 * math.exp(-(step // 10) / 6), "adakd_selected_loss": loss}
        record |= {"adakd_all_token_loss": 0.7 * loss}
        for name, middle in (("tau", 1.0), ("difficulty", 0.4)):
            record |= {f"adakd_{name}_q{q:02}": middle + (q - 50) / 200 * (1 - done / 2) for q in (5, 50, 95)}
    return record


def probed(kind, epoch, i, text, epochs):
    tokens = [word if n == 0 else f" {word}" for n, word in enumerate(text.replace("\n", " \n ").split(" "))] + ["</s>"]
    vocabulary = list(dict.fromkeys([*tokens, " a", " of", " to", " is", " was", " in", " that", " it", " for", " as"]))
    draw = np.random.default_rng(i)  # the same teacher in every epoch and run
    right = [vocabulary.index(token) for token in tokens]
    spread = draw.uniform(0.8, 3, (len(tokens), 1))
    teacher = spread * draw.normal(size=(len(tokens), len(vocabulary)))
    start = 0.3 * teacher + draw.normal(size=teacher.shape)
    teacher[range(len(tokens)), right] += draw.uniform(1, 6, len(tokens))
    near = 0.75 * QUALITY[kind] * (1 - math.exp(-1.5 * epoch)) if epochs else 0
    q, p = softmax((1 - near) * start + near * teacher), softmax(teacher)
    ratio = np.log(p / q)
    w = 1 / (1 + np.exp(-ratio))
    forward, reverse = abs(w * p * ratio).sum(1), abs((1 - w) * q * ratio).sum(1)
    record = {
        **{"epoch": epoch, "step": PER_EPOCH * epoch, "row": i, "place": f"data/dolly/dev.jsonl:{i + 1}"},
        **{
            "prompt": f"### Instruction:\nExplain this in one sentence: {text[:60]}\n\n### Response:\n",
            "tokens": tokens,
        },
        **{"nll": -np.log(q[range(len(tokens)), right]), "student_entropy": -(q * np.log(q)).sum(1)},
        **dict.fromkeys(("forward_kl", "reverse_kl", "teacher_entropy", "agreement", "todi_weight", "teacher_top")),
        **dict.fromkeys(("difficulty", "selected", "temperature")),
        "student_top": [
            [[vocabulary[v], q[n, v], None, None] for v in (-q[n]).argsort()[:5]] for n in range(len(tokens))
        ],
    }
    if kind != "sft":
        record |= {"forward_kl": (p * ratio).sum(1), "reverse_kl": -(q * ratio).sum(1)}
        record |= {"teacher_entropy": -(p * np.log(p)).sum(1), "agreement": (q.argmax(1) == p.argmax(1)).tolist()}
        record |= {"todi_weight": forward / (forward + reverse)}
        for name, of_model in (("student", q), ("teacher", p)):
            top = [(-of_model[n]).argsort()[:5] for n in range(len(tokens))]
            record[f"{name}_top"] = [
                [[vocabulary[v], q[n, v], p[n, v], w[n, v]] for v in best] for n, best in enumerate(top)
            ]
    if kind == "adakd":
        difficulty = np.sqrt(0.5 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(1))
        median = np.median(difficulty)
        record |= {"difficulty": difficulty, "selected": (difficulty >= np.quantile(difficulty, 0.15 * epoch)).tolist()}
        record |= {"temperature": np.exp(-0.5 * np.tanh(np.log(difficulty / median)))}
    return record


def evaluate(folder, texts, quality, draw):
    checkpoint = folder / "epoch3_step60_loss2.0"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1000, 1234], "data_offsets": [0, 0]}}).encode()
    (checkpoint / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    place = folder / "eval" / checkpoint.name / "dolly-valid" / f"abc{int(100 * quality)}"
    place.mkdir(parents=True)
    (place / "settings.json").write_text(
        json.dumps({"weights": {"model": str(quality)}, "rows": {"count": len(texts)}})
    )
    for seed in (10, 20):
        (place / f"seed{seed}").mkdir()
        write(
            place / f"seed{seed}/answers.jsonl",
            (
                {
                    **{
                        "prompt": f"Explain: {text}",
                        "answer": " ".join(text.split()[: int(12 * quality)]),
                        "references": [text],
                    },
                    "rougeL": float(np.clip(20 + 40 * quality + draw.normal(0, 12), 0, 100)),
                }
                for text in texts
            ),
        )
        made = {"seed": seed, "seconds": 3.5, "made": "2026-01-01", "rows": len(texts)}
        (place / f"seed{seed}/metrics.json").write_text(json.dumps(made))


def softmax(logits):
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def write(path, records):
    def plain(value):
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, np.ndarray | list):
            return [plain(part) for part in value]
        return value.item() if isinstance(value, np.generic) else value

    lines = [json.dumps({name: plain(value) for name, value in record.items()}) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines))
