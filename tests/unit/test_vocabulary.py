"""Which ids student and teacher share, and which pairs of them are refused."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from models.vocabulary import shared_vocabulary

WORDS = "<unk> red blue green small large <eos>".split()


def tokenizer(vocabulary, added=(), eos="<eos>"):
    """Of {token: id}, or of tokens with the ids from 0 on; `added` come after them as special tokens."""
    if not isinstance(vocabulary, dict):
        vocabulary = {token: i for i, token in enumerate(vocabulary)}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), eos_token=eos
    )
    made.add_tokens(list(added), special_tokens=True)
    return made


def shared(student, teacher, student_size=7, teacher_size=7):
    return shared_vocabulary(student, teacher, student_size, teacher_size)


@pytest.mark.parametrize("sizes", [(7, 7), (16, 10), (151936, 152064)])
def test_equal_tokenizers_share_the_smaller_head(sizes):
    assert shared(tokenizer(WORDS), tokenizer(WORDS), *sizes) == min(sizes)


def test_tokens_that_only_the_teacher_has_end_the_shared_ids():
    teacher = tokenizer([*WORDS, "river", "hill"])
    assert shared(tokenizer(WORDS), teacher, 16, 16) == shared(tokenizer(WORDS), teacher, 7, 9) == 7


def test_an_added_token_that_only_the_student_has_is_cut_off():
    """For example a [PAD]: no loss reads it."""
    assert shared(tokenizer(WORDS, added=["<pad>"]), tokenizer(WORDS), 8, 8) == 7


def test_holes_in_both_vocabularies_are_shared():
    ids = {token: 2 * i for i, token in enumerate(WORDS)}
    assert shared(tokenizer(ids), tokenizer(ids), 16, 20) == 16


def refused(student, teacher, *sizes):
    with pytest.raises(ValueError, match=r"^--teacher-model-path: ") as error:
        shared(student, teacher, *sizes)
    assert "choose a teacher of the student's family" in str(error.value)
    return str(error.value)


def test_an_id_that_means_two_tokens():
    message = refused(tokenizer(WORDS), tokenizer("<unk> red green blue small large <eos>".split()))
    assert "id 2 is 'green' to the teacher and 'blue' to the student (2 such ids)" in message


def test_a_clash_beyond_the_smaller_head_is_a_clash_still():
    """Another tokenizer gives other prompts, wherever the two differ."""
    message = refused(tokenizer([*WORDS, "hill"]), tokenizer([*WORDS, "river"]), 7, 7)
    assert "id 7 is 'river' to the teacher and 'hill' to the student" in message


def test_a_student_that_uses_ids_that_the_teacher_does_not_have():
    message = refused(tokenizer([*WORDS, "river", "hill"]), tokenizer(WORDS), 16, 16)
    assert "share the ids below 7 only" in message and "up to 8 ('hill')" in message


def test_a_teacher_head_smaller_than_the_students_tokenizer():
    assert "share the ids below 5 only" in refused(tokenizer(WORDS), tokenizer(WORDS), 7, 5)


def test_a_hole_on_one_side_among_the_used_ids():
    teacher = tokenizer({token: i for i, token in enumerate(WORDS) if token != "green"})
    assert "share the ids below 3 only" in refused(tokenizer(WORDS), teacher)


def test_an_added_eos_is_used():
    """EOS is learnt, so it must be shared, although it is an added token."""
    student = tokenizer(WORDS[:-1], added=["<eos>"])
    assert student.eos_token_id == 6
    assert shared(student, tokenizer(WORDS)) == 7
    assert "up to 6 ('<eos>')" in refused(student, tokenizer(WORDS[:-1], eos="large"))
