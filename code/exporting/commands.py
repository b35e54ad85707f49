"""The commands that serve an exported model, for the terminal. None of these programs is started here."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from models.folders import locate


def serving_commands(folder: Path, run: Mapping, gguf: Path | None) -> str:
    """vLLM, vLLM with the model as the draft of its teacher, llama.cpp. Paths are absolute, so they work anywhere.

    run: args.json, which names the teacher. gguf: the file that was written.
    """
    out, teacher = folder.absolute(), run.get("teacher_model_path")
    if run.get("teacher_peft_path"):
        teacher = "EXPORTED_TEACHER"  # its adapter has to be merged, too
    lines = ["vLLM:", f"  vllm serve {shlex.quote(str(out))}"]
    if teacher is not None:
        draft = f'{{"method": "draft_model", "model": "{out}", "num_speculative_tokens": 5}}'
        lines += [
            "vLLM, as the draft model of its teacher (speculative decoding; both need one vocabulary):",
            f"  vllm serve {shlex.quote(absolute(teacher))} --speculative-config {shlex.quote(draft)}",
        ]
    file = gguf.absolute() if gguf is not None else out / f"{out.name}.gguf"
    lines.append("llama.cpp:")
    if gguf is None:
        lines.append(f"  python convert_hf_to_gguf.py {shlex.quote(str(out))} --outfile {shlex.quote(str(file))}")
    lines.append(f"  llama-server -m {shlex.quote(str(file))}")
    if teacher is not None:
        lines.append(f"  llama-server -m TEACHER.gguf -md {shlex.quote(str(file))}")
    return "\n".join(lines)


def absolute(path: str) -> str:
    """A folder by its absolute path; a hub id as it is."""
    return str(locate(path).absolute()) if locate(path).is_dir() else path
