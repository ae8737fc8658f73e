"""The rule by which two answers are the same, itself under test."""

import pytest
import torch

from blyan_tile.create import architecture_of, initial_parameters
from blyan_tile.model.transformer import LocalModel
from tests.agreement import GAP, assert_same, gaps

PROMPT = list(range(9))


def model(**changed):
    architecture = architecture_of("tiny")
    made = initial_parameters(architecture, 1)
    parameters = {name: torch.from_numpy(one.copy()) for name, one in made.items()}
    parameters["head.weight"] *= 100  # apart from each other
    for name, one in changed.items():
        parameters[name.replace("__", ".")] = one
    return LocalModel(architecture, parameters)


def test_answers_that_part_without_a_reason_are_not_the_same():
    one = model()
    logits, router = gaps(one, PROMPT)
    assert GAP < logits
    if router >= GAP:
        with pytest.raises(AssertionError, match="token 0 is 1 and 2"):
            assert_same(one, PROMPT, [1, 2], [2, 2])
    assert_same(one, PROMPT, [1, 2], [1, 2])
    with pytest.raises(AssertionError):
        assert_same(one, PROMPT, [1, 2], [1])


def test_they_may_part_at_a_tie_of_tokens_or_of_experts():
    shape = architecture_of("tiny")
    equal_tokens = model(head__weight=torch.ones(shape.vocabulary, shape.width))
    assert gaps(equal_tokens, PROMPT)[0] == 0
    assert_same(equal_tokens, PROMPT, [1, 2], [1, 3])
    router = torch.ones(shape.experts, shape.width)
    equal_experts = model(layer1__router__weight=router)
    assert gaps(equal_experts, PROMPT)[1] == 0
    assert_same(equal_experts, PROMPT, [1, 2], [2, 2])
