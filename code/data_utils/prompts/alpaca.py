"""The Alpaca template."""

from data_utils.prompts.base import PromptTemplate, register

INTRODUCTION = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request.\n\n"
)
PAIRED = ", paired with an input that provides further context"
RESPONSE_MARKER = "### Response:\n"


@register("alpaca")
class Alpaca(PromptTemplate):
    """Instruction, input and response under headings. Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca."""

    ending = f"\n\n{RESPONSE_MARKER}"

    def render(self, instruction: str, input_text: str) -> str:
        introduction = INTRODUCTION.format(paired=PAIRED if input_text else "")
        input_section = f"### Input:\n{input_text}\n\n" if input_text else ""
        return f"{introduction}### Instruction:\n{instruction}\n\n{input_section}{RESPONSE_MARKER}"
