"""Token ids of prompts and responses, and the cut of long prompts."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, at least one, without the EOS that some tokenizers add.

    If the tokenizer starts texts with BOS, the prompt starts with exactly one, even if the text (a rendered chat
    template) brings its own. Any other special token in the text is content.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    sample = tokenizer("a")["input_ids"]
    adds_bos, adds_eos = sample[:1] == [bos], sample[-1:] == [eos]
    encoded = []
    for ids in tokenizer(list(prompts))["input_ids"]:
        while adds_bos and ids[1:2] == [bos]:
            ids = ids[1:]
        if adds_eos and ids[-1:] == [eos]:
            ids = ids[:-1]
        encoded.append(ids or [eos])  # the first response token is predicted from the token before it
    return encoded


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], cut: Sequence[bool] = ()
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each prompt, and of its response as it follows the prompt, with EOS unless the response is `cut`.

    Prompt and response are encoded as one text, since tokens depend on what precedes them. Where one token would span
    both, they are encoded apart.
    """
    prompt_ids = encode_prompts(tokenizer, prompts)
    joint_ids = encode_prompts(tokenizer, [prompt + response for prompt, response in zip(prompts, responses)])
    response_ids = []
    for before, joint, response, is_cut in zip(prompt_ids, joint_ids, responses, cut or [False] * len(prompts)):
        if joint[: len(before)] == before:
            ids = joint[len(before) :]
        else:
            ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        if not is_cut and ids[-1:] != [tokenizer.eos_token_id]:
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
