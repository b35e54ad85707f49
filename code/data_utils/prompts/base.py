"""What a prompt template is, and the registry that finds one by its name."""

from collections.abc import Callable

_REGISTRY: dict[str, type["PromptTemplate"]] = {}


class PromptTemplate:
    """Writes the prompt of a row that has none of its own.

    ending: the text that ends every prompt and must survive the cut of a long one.
    """

    ending: str = ""

    def render(self, instruction: str, input_text: str) -> str:
        """The text that the response follows directly. input_text: empty where the row has none."""
        raise NotImplementedError


def register(name: str) -> Callable[[type[PromptTemplate]], type[PromptTemplate]]:
    """Class decorator: makes a template known to --prompt-template as `name`."""

    def add(template: type[PromptTemplate]) -> type[PromptTemplate]:
        if name in _REGISTRY:
            raise ValueError(f"prompt template {name!r} is already registered by {_REGISTRY[name].__name__}")
        for input_text in ("", "input"):
            prompt = template().render("instruction", input_text)
            if not prompt.endswith(template.ending):
                raise ValueError(
                    f"prompt template {name!r}: {prompt!r} does not end with its ending {template.ending!r}"
                )
        _REGISTRY[name] = template
        return template

    return add


def prompt_template(name: str) -> PromptTemplate:
    """The template `name`. Raises ValueError naming the flag and the known names for any other name."""
    if name not in _REGISTRY:
        raise ValueError(f"--prompt-template {name}: unknown template; choose one of {', '.join(_REGISTRY)}")
    return _REGISTRY[name]()
