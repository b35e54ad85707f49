"""How to prompt a checkpoint, for its card: the text of a prompt, and a Transformers snippet that runs.

In: the prompt template that it was trained with. Out: markdown.
"""

from data_utils.prompts import PromptTemplate

QUESTION = "Name the three primary colours."
LENGTH = 256  # tokens of an answer where the run does not say
LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or the model's id on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)"""
ASK_TEXT = 'inputs = tokenizer(prompt, return_tensors="pt")'
ASK_CHAT = """inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
ANSWER = """answer = model.generate(**inputs, max_new_tokens={length})
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def usage(template: PromptTemplate, answer_length: int | None, adapter: bool) -> str:
    """The section of the card. answer_length: in tokens. adapter: the folder holds a LoRA adapter alone."""
    if template.takes_chats:
        question = f"messages = {[{'role': 'user', 'content': QUESTION}]!r}\n{ASK_CHAT}"
        prompts = [template.text([{"role": "user", "content": "{question}"}], ask=True)]
    else:
        question = f"prompt = {_literal(template.render(QUESTION, ''))}\n{ASK_TEXT}"
        prompts = [template.render("{instruction}", ""), template.render("{instruction}", "{input}")]
    titles = ("The prompt of a question:", "With an input:")
    code = "\n".join((LOAD, question, ANSWER.format(length=answer_length or LENGTH)))
    blocks = [f"{title}\n\n~~~~text\n{prompt}\n~~~~" for title, prompt in zip(titles, prompts)]
    note = "Training rows with a `prompt` of their own were used as they are, without this template."
    needs = ["This is a LoRA adapter: loading it needs the package `peft` and its base model."] if adapter else []
    return "\n\n".join((*needs, f"```python\n{code}\n```", *blocks, note))


def _literal(text: str) -> str:
    """A Python expression for a text, one line of it per line."""
    lines = "".join(f"    {line!r}\n" for line in text.splitlines(keepends=True))
    return f"(\n{lines})"
