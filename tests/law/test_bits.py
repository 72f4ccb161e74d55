"""Bits are counted relative to a predictor without memory: learning what kind of text it is counts for nothing."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import slow_bits as reference_bits
from helpers.sample import cell, diverged
from memlaw.core.errors import DataError
from memlaw.core.recall import LN2
from memlaw.law import published
from memlaw.law.bits import ANCHORS, MemoryBits, in_bits, memory_bits, memoryless_loss, unigram_loss

TEXTS = st.integers(2, 40).flatmap(
    lambda vocabulary: st.tuples(
        st.lists(st.lists(st.integers(0, vocabulary - 1), max_size=20), min_size=1, max_size=5).filter(any),
        st.just(vocabulary),
    )
)


@given(TEXTS)
def test_the_closed_form_is_the_sequential_code(text):
    targets, vocabulary = text
    tokens = list(itertools.chain.from_iterable(targets))
    assert unigram_loss(targets, vocabulary) == pytest.approx(reference_bits.unigram_loss(tokens, vocabulary))


@given(TEXTS, st.randoms())
def test_the_order_of_tokens_and_their_records_mean_nothing(text, chance):
    targets, vocabulary = text
    tokens = list(itertools.chain.from_iterable(targets))
    chance.shuffle(tokens)
    assert unigram_loss([tokens], vocabulary) == pytest.approx(unigram_loss(targets, vocabulary))


@pytest.mark.parametrize(("vocabulary", "length"), [(2, 1), (2, 8), (3, 5), (5, 3)])
def test_a_code_for_all_texts_spends_no_more_than_all_probability(vocabulary, length):
    """Kraft: else it would not be a code, and its loss would be too good to be true."""
    texts = itertools.product(range(vocabulary), repeat=length)
    spent = math.fsum(math.exp(-length * unigram_loss([text], vocabulary)) for text in texts)
    assert 0.2 < spent <= 1


@given(TEXTS, st.floats(0.01, 20))
def test_the_memoryless_loss_is_the_best_of_its_predictors(text, loss_init):
    targets, vocabulary = text
    found = memoryless_loss(targets, loss_init, vocabulary)
    assert found <= min(loss_init, math.log(vocabulary), unigram_loss(targets, vocabulary))
    assert found in (loss_init, math.log(vocabulary), unigram_loss(targets, vocabulary))


def test_on_random_tokens_all_tokens_alike_is_the_best_guess():
    tokens = random.Random(0).choices(range(151_936), k=1000)
    assert memoryless_loss([tokens], 12.4, 151_936) == math.log(151_936)
    assert unigram_loss([tokens], 151_936) > math.log(151_936)


@pytest.mark.parametrize("vocabulary", [1024, 151_936])
def test_on_digits_their_distribution_is_soon_learned(vocabulary):
    digits = random.Random(0).choices(range(10), k=4000)
    records = [digits[start : start + 10] for start in range(0, 4000, 10)]
    assert memoryless_loss(records, 4.4, vocabulary) == pytest.approx(math.log(10), rel=0.02)


def test_on_text_that_the_base_understands_its_own_loss_is_the_best():
    assert memoryless_loss([range(50)], 1.2, 1024) == 1.2


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [([[3, 8], [1]], "The targets have a token 8, but the model has 8 logits"), ([[], []], "have no token at all")],
)
def test_tokens_of_another_model_are_refused(targets, sentence):
    with pytest.raises(DataError, match=f"{sentence}.* Pass the targets as this model's tokens"):
        memoryless_loss(targets, 5.0, 8)


def test_a_nat_is_a_bit_and_a_half():
    assert in_bits(1, LN2) == 1
    assert in_bits(100, math.log(1024)) == pytest.approx(1000)


def test_a_cell_holds_what_its_loss_fell_below_the_memoryless_one():
    result = cell(2, 64, 4 * LN2, loss_memoryless=10 * LN2, certified_tokens=16)
    assert memory_bits(result) == MemoryBits(
        pytest.approx(64 * 6), pytest.approx(16 * 10), pytest.approx(64 * 6 / (256 * 2))
    )


@given(st.floats(0, 20), st.floats(0, 20), st.integers(1, 1000))
def test_stored_bits_are_never_negative_nor_more_than_the_text_has(memoryless, final, length):
    bits = memory_bits(cell(1, length, final, loss_memoryless=memoryless, certified_tokens=0))
    assert 0 <= bits.stored_bits <= in_bits(length, memoryless)
    assert (bits.stored_bits == 0) == (final >= memoryless)
    assert bits.certified_bits == 0


def test_learning_that_targets_are_digits_stores_nothing():
    digits = [random.Random(0).choices(range(10), k=4000)]
    memoryless = memoryless_loss(digits, 4.4, 1024)
    knows_digits = cell(1, 4000, math.log(10), loss_memoryless=memoryless, certified_tokens=0)
    assert memory_bits(knows_digits).stored_bits < 0.02 * in_bits(4000, 4.4 - math.log(10))


def test_certified_records_count_in_full_although_their_loss_is_not_zero():
    bits = memory_bits(cell(1, 32, 0.1, loss_memoryless=6.9, certified_tokens=32))
    assert bits.certified_bits == pytest.approx(in_bits(32, 6.9))
    assert bits.certified_bits > bits.stored_bits


def test_what_was_not_measured_has_no_bits():
    assert memory_bits(cell(1, 16)) == MemoryBits(None, None, None)
    assert memory_bits(diverged(1, 16)) == MemoryBits(None, None, None)


def test_the_published_adapters_are_less_dense_than_whole_models():
    """arXiv 2605.30260 against the anchors: no point of the law reaches 2 bits a parameter."""
    lowest = min(anchor.low for anchor in ANCHORS)
    for point in published.points():
        memoryless = min(point.loss_init, math.log(151_936))
        assert 0.3 < in_bits(point.length, memoryless - point.final_loss) / point.parameters < lowest


def test_anchors_say_their_numbers_and_sources():
    assert [(anchor.range, anchor.url) for anchor in ANCHORS] == [
        ("2", "https://arxiv.org/abs/2404.05405"),
        ("3.5 to 3.8", "https://arxiv.org/abs/2505.24832"),
    ]
