"""No template: the text of the row as it is."""

from data_utils.prompts.base import PromptTemplate, register


@register("none")
class NoTemplate(PromptTemplate):
    """The instruction and, after a blank line, the input; for rows that are formatted already."""

    def render(self, instruction: str, input_text: str) -> str:
        return f"{instruction}\n\n{input_text}" if input_text else instruction
