"""The token ids that student and teacher share: models of one family may have different numbers of ids."""

from transformers import PreTrainedTokenizerBase


def shared_vocabulary(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_size: int,
    teacher_size: int,
) -> int:
    """The number of ids, from 0 on, that mean the same token to both models; both heads are cut to them.

    student_size, teacher_size: ids of each head, which may be padded beyond its tokenizer (Qwen2.5: 151936, 152064).
    Raises ValueError if an id stands for two tokens, or if the student uses ids that the teacher does not have.
    """
    student_tokens = {i: token for token, i in student_tokenizer.get_vocab().items()}
    teacher_tokens = {i: token for token, i in teacher_tokenizer.get_vocab().items()}
    shared = min(student_size, teacher_size)
    clashes = [i for i in student_tokens.keys() & teacher_tokens.keys() if student_tokens[i] != teacher_tokens[i]]
    if clashes:
        first = min(clashes)
        raise ValueError(
            f"--teacher-model-path: id {first} is {teacher_tokens[first]!r} to the teacher and "
            f"{student_tokens[first]!r} to the student ({len(clashes)} such ids); "
            "the objectives compare equal ids: choose a teacher of the student's family, with its tokenizer"
        )
    one_sided = [i for i in student_tokens.keys() ^ teacher_tokens.keys() if i < shared]
    shared = min(one_sided, default=shared)
    used = max((i for i in student_tokens if i not in student_tokenizer.added_tokens_decoder), default=0)
    used = max(used, student_tokenizer.eos_token_id)
    if used >= shared:
        raise ValueError(
            f"--teacher-model-path: student and teacher share the ids below {shared} only, and the student uses ids up "
            f"to {used} ({student_tokens[used]!r}); choose a teacher of the student's family, with its tokenizer"
        )
    return shared
