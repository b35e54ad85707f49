"""Token ids of prompts and responses, and the cut of long prompts."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, left open for a response; at least one.

    A tokenizer that starts texts with BOS starts them with exactly one, whether the text (a rendered chat template) has
    its own or not; any other special token in the text is content.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    of_any_text = tokenizer("a")["input_ids"]
    adds_bos, adds_eos = of_any_text[:1] == [bos], of_any_text[-1:] == [eos]
    encoded = []
    for ids in tokenizer(list(prompts))["input_ids"]:
        while adds_bos and ids[1:2] == [bos]:
            ids = ids[1:]
        if adds_eos and ids[-1:] == [eos]:
            ids = ids[:-1]
        encoded.append(ids or [eos])  # something has to predict the first token of the response
    return encoded


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each prompt, and of its response as it follows the prompt, with EOS.

    Both are encoded together, since a token may depend on what stands before it; apart only where one would span both.
    """
    prompt_ids = encode_prompts(tokenizer, prompts)
    joint_ids = encode_prompts(tokenizer, [prompt + response for prompt, response in zip(prompts, responses)])
    response_ids = []
    for before, joint, response in zip(prompt_ids, joint_ids, responses):
        if joint[: len(before)] == before:
            ids = joint[len(before) :]
        else:
            ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        if ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        response_ids.append(ids)
    return prompt_ids, response_ids


def cut_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], max_prompt_length: int, ending: str
) -> list[list[int]]:
    """Each prompt with at most `max_prompt_length` ids: its first three quarters and its end.

    ending: of the prompt template. The instruction stands first, so the middle of the input text is lost.
    """
    ending_length = len(tokenizer(ending, add_special_tokens=False)["input_ids"])
    tail = min(max(max_prompt_length // 4, ending_length), max_prompt_length)
    head = max_prompt_length - tail
    return [ids if len(ids) <= max_prompt_length else ids[:head] + ids[-tail:] for ids in prompts]
