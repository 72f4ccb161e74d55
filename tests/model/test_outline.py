from __future__ import annotations

from helpers import tiny
from memlaw.model.outline_from_module import outline_of_model


def test_a_digest_tells_architectures_apart_but_not_fine_tunes() -> None:
    digests = [outline_of_model(tiny.model(family)).digest for family in tiny.FAMILIES]
    # A tied head changes no shape, and the two Gemmas differ in what they compute with the same names.
    assert len(set(digests)) == len(digests) - 1
    mark = outline_of_model(tiny.model()).digest
    assert outline_of_model(tiny.model(seed=1), name="a-fine-tune").digest == mark
    assert outline_of_model(tiny.model(max_position_embeddings=256)).digest == mark
    for changes in (
        {"num_hidden_layers": 5},
        {"intermediate_size": 64},
        {"vocab_size": 97},
        {"num_key_value_heads": 4},
    ):
        assert outline_of_model(tiny.model(**changes)).digest != mark
