"""Adapters: what is merged is what was trained, whatever they are on."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from arguments import ModelArguments, TeacherArguments
from models.loading import load_checkpoint, load_student, load_teacher, load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.arange(5, 45).reshape(2, 20)


def gpt2(folder, tokenizer):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, initializer_range=0.15)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", ["lm_head", "embed_tokens", "lm_head,embed_tokens", "q_proj", "wte"])
def test_a_merged_adapter_gives_the_logits_that_were_trained(tiny, tmp_path, targets):
    """Embedding and head are one weight in the base: a Llama, or for `wte` a GPT-2."""
    base = tiny / "student_tied"
    if targets == "wte":
        base = gpt2(tmp_path / "base", load_tokenizer(str(tiny / "student")))
    args = ModelArguments(str(base), peft="lora", peft_lora_target_modules=targets)
    student = load_student(args, torch.float32).eval()
    torch.manual_seed(0)
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trained = {name: tensor for name, tensor in student.state_dict(keep_vars=True).items() if tensor.requires_grad}
    student.save_pretrained(tmp_path / "adapter", state_dict=trained, save_embedding_layers=False)
    merged, _ = load_checkpoint(str(tmp_path / "adapter"))
    teacher = load_teacher(TeacherArguments(str(base), teacher_peft_path=str(tmp_path / "adapter")), torch.float32)
    merged.save_pretrained(tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        wanted = student(input_ids=IDS).logits
        for model in (merged, teacher, exported):
            torch.testing.assert_close(model(input_ids=IDS).logits, wanted, rtol=1e-3, atol=1e-3)
    assert exported.config.tie_word_embeddings == (targets == "q_proj")
