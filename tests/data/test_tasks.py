"""Generated memory sets: reproducible, nested in length, of the requested size, or refused with a reason."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.paths import FIXTURES, TESTS
from helpers.slow_data import TEXT, byte_level
from memlaw.core.errors import ConfigError, DataError
from memlaw.data import STRESS_PROMPT, encode, read, take, target_tokens
from memlaw.data.tasks import from_spec, linear_rule, phonebook, random_tokens, scenarios, stress
from memlaw.model.tokenizer import token_ids

OFFICIAL = FIXTURES / "official"

TOKENIZER = byte_level()

REACHABLE = tuple(range(20, 120))

LONG_TEXT = TEXT * 20
TOKENS = token_ids(TOKENIZER, LONG_TEXT)


@pytest.mark.parametrize(("eos", "a_number"), [(True, 11), (False, 10)])
@pytest.mark.parametrize("tokens", [11, 100, 1000, 1005])
def test_a_phone_book_is_whole_records_of_at_most_the_tokens_asked_for(tokens, eos, a_number):
    book = phonebook(tokens, 0, TOKENIZER, eos=eos)
    assert book.eos == eos
    assert len(book.facts) == tokens // a_number
    assert target_tokens(encode(book, TOKENIZER, context=64)) == tokens // a_number * a_number


def test_a_phone_book_looks_like_the_published_one():
    published = read(OFFICIAL / "phonebook" / "qwen" / "PB1000.jsonl")
    for book in (published, phonebook(1000, 3, TOKENIZER)):
        assert all(re.fullmatch(r"[A-Z]\S+ [A-Z]\S+:", fact.prompt) for fact in book.facts)
        assert all(re.fullmatch(r"[1-9]\d{9}", fact.target) for fact in book.facts)


def test_the_largest_published_phone_book_has_unique_names_prompts_and_ids():
    book = phonebook(32_000, 0, TOKENIZER, eos=False)
    assert len(book.facts) == 3200
    assert len({fact.prompt for fact in book.facts}) == len({fact.id for fact in book.facts}) == 3200
    assert len(encode(book, TOKENIZER, context=64)) == 3200


def test_a_longer_phone_book_begins_with_the_shorter_one():
    assert phonebook(4000, 5, TOKENIZER).facts[:90] == phonebook(1000, 5, TOKENIZER).facts
    assert phonebook(4000, 5, TOKENIZER).facts[:90] != phonebook(1000, 6, TOKENIZER).facts


def test_a_prefix_of_a_phone_book_is_the_phone_book_of_that_length():
    long, short = (encode(phonebook(tokens, 1, TOKENIZER), TOKENIZER, context=None) for tokens in (500, 200))
    assert take(long, 200) == short


def test_a_phone_book_too_small_for_one_number_or_too_large_for_the_names_is_refused():
    with pytest.raises(DataError, match="of 10 target tokens has no room for a number, which takes 11"):
        phonebook(10, 0, TOKENIZER)
    with pytest.raises(DataError, match="more than the 16384 names available"):
        phonebook(11 * 16_385, 0, TOKENIZER)


def test_random_tokens_are_one_target_drawn_from_the_reachable_ids_only():
    memory_set = random_tokens(256, 0, REACHABLE)
    (fact,) = memory_set.facts
    assert fact.prompt == STRESS_PROMPT
    assert not memory_set.eos
    assert fact.target_ids is not None
    assert len(fact.target_ids) == 256
    assert set(fact.target_ids) <= set(REACHABLE)
    assert encode(memory_set, TOKENIZER, context=None)[0].target == fact.target_ids


def test_random_tokens_are_uniform():
    (fact,) = random_tokens(20_000, 0, REACHABLE).facts
    counts = [fact.target_ids.count(token) for token in REACHABLE]
    mean = 20_000 / len(REACHABLE)
    chi_squared = sum((count - mean) ** 2 / mean for count in counts)
    degrees = len(REACHABLE) - 1
    assert abs(chi_squared - degrees) < 4 * (2 * degrees) ** 0.5


@given(short=st.integers(1, 200), more=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_more_random_tokens_begin_with_fewer(short, more, seed):
    few, many = (random_tokens(count, seed, REACHABLE).facts[0].target_ids for count in (short, short + more))
    assert many[:short] == few


@given(
    short=st.integers(1, 200),
    more=st.integers(0, 200),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_a_longer_stress_test_begins_with_the_shorter_one(short, more, ratio, seed):
    few, many = (stress(TOKENS, ratio, count, seed, REACHABLE).facts[0].target_ids for count in (short, short + more))
    assert len(few) == short
    assert many[:short] == few


def places_replaced(ratio: float, tokens: int) -> list[int]:
    """Where a stress test differs from its text, using a random token that does not occur in the text."""
    foreign = next(token for token in range(len(TOKENIZER)) if token not in TOKENS)
    (fact,) = stress(TOKENS, ratio, tokens, 0, [foreign]).facts
    replaced = [place for place, token in enumerate(fact.target_ids) if token == foreign]
    kept = set(range(tokens)) - set(replaced)
    assert all(fact.target_ids[place] == TOKENS[place] for place in kept)
    return replaced


def test_random_tokens_stand_where_the_published_file_has_them():
    path = OFFICIAL / "long_context" / "sample_0_tok29709_noise_60.jsonl"
    published = json.loads(path.read_text("utf-8"))
    positions = published["noise_positions"]
    assert places_replaced(published["noise_ratio"], positions[-1] + 1) == positions


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.01, 1 / 3])
def test_every_prefix_has_its_share_of_random_tokens(ratio):
    replaced = places_replaced(ratio, 600)
    for count in range(1, 601):
        assert abs(sum(place < count for place in replaced) - ratio * count) <= 0.5 + 1e-9


def test_what_is_drawn_for_a_place_does_not_depend_on_the_ratio():
    (half,), (whole,) = (stress(TOKENS, ratio, 300, 0, REACHABLE).facts for ratio in (0.5, 1.0))
    assert all(half.target_ids[place] == whole.target_ids[place] for place in range(0, 300, 2))


def test_a_stress_test_beyond_its_text_is_refused_with_both_numbers():
    available = len(TOKENS)
    with pytest.raises(
        DataError, match=f"of {available + 1} target tokens was requested, but the text has {available}"
    ):
        stress(TOKENS, 0.5, available + 1, 0, REACHABLE)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"random ratio is .* choose from 0 to 1"):
        stress(TOKENS, ratio, 10, 0, REACHABLE)


def test_without_reachable_tokens_nothing_is_drawn():
    with pytest.raises(DataError, match="no tokens to draw random targets from"):
        random_tokens(5, 0, [])


@pytest.mark.parametrize("tokens", [0, -3])
def test_no_tokens_at_all_is_refused(tokens):
    for make in (
        lambda: phonebook(tokens, 0, TOKENIZER),
        lambda: random_tokens(tokens, 0, REACHABLE),
        lambda: stress(TOKENS, 0.5, tokens, 0, REACHABLE),
    ):
        with pytest.raises(ConfigError, match=f"task of {tokens} target tokens"):
            make()


@pytest.mark.parametrize("pairs", [1, 500, 5000])
def test_the_linear_rule_has_right_answers_and_unseen_pairs_it_never_stores(pairs):
    stored, unseen = linear_rule(pairs, seed=2)
    assert len(stored.facts) == len(unseen.facts) == pairs
    assert len({fact.prompt for fact in (*stored.facts, *unseen.facts)}) == 2 * pairs
    assert [fact.id for fact in stored.facts] == [fact.id for fact in unseen.facts]
    assert unseen.facts[-1].id == str(pairs)
    for fact in (*stored.facts, *unseen.facts):
        x, y = map(int, re.fullmatch(r"f\((\d+), (\d+)\)=", fact.prompt).groups())
        assert int(fact.target) == 3 * x + 5 * y + 7


@pytest.mark.parametrize("pairs", [0, 5001])
def test_more_pairs_than_the_rule_has_are_refused(pairs):
    with pytest.raises(ConfigError, match=f"cannot give {pairs} pairs and as many unseen: choose from 1 to 5000"):
        linear_rule(pairs)


def test_the_eight_scenarios_have_the_form_of_what_they_imitate():
    forms = {
        "credentials": r"\S{20}",
        "statute": r"A custodian .* within \d+ days .* section \d+; .* refusal\.",
        "icd-10": r"[A-Z]\d\d\.\d{3}[ADS]",
        "watermark": r"wm1(-[0-9a-f]{8}){3}",
        "s3-uri": r"s3://[a-z-]+/eval/v\d/part-\d{5}-[0-9a-f]{12}\.snappy\.parquet",
        "latex": r"\\Delta_\{\d\} = \\frac\{.*\}",
        "nonce": r"[0-9a-f]{24}",
        "licence-key": r"[A-Z0-9]{5}(-[A-Z0-9]{5}){4}",
    }
    for seed in range(20):
        memory_set = scenarios(seed)
        assert [fact.id for fact in memory_set.facts] == list(forms)
        for fact in memory_set.facts:
            assert re.fullmatch(forms[fact.id], fact.target)
        latex = memory_set.facts[5].target
        assert latex.count("{") == latex.count("}")
        assert len(encode(memory_set, TOKENIZER, context=400)) == 8


def test_no_two_seeds_share_a_secret():
    targets = [fact.target for seed in range(50) for fact in scenarios(seed).facts if fact.id == "credentials"]
    assert len(set(targets)) == 50


SPECS = [
    "task:phonebook:tokens=300,seed=1",
    "task:random:tokens=64,seed=1",
    "task:stress:file={file},ratio=0.6,tokens=200,seed=1",
    "task:linear-rule:pairs=20,seed=1",
    "task:scenarios:seed=1",
]


def task(spec, **how):
    return from_spec(spec, TOKENIZER, lambda: REACHABLE, **how)


def test_a_task_is_the_same_in_every_process_whatever_its_hash_seed(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(LONG_TEXT, "utf-8")
    specs = [spec.format(file=path) for spec in SPECS]
    program = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from helpers.slow_data import byte_level\nfrom memlaw.data.tasks import from_spec\nimport json\n"
        f"print(json.dumps([from_spec(spec, byte_level(), lambda: range(20, 120)).fingerprint for spec in {specs!r}]))"
    )
    here = [task(spec).fingerprint for spec in specs]
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
        assert json.loads(done.stdout) == here


def test_the_stored_sets_are_pinned():
    """Journals identify data by fingerprint, so a change in what a seed gives must be deliberate."""
    assert scenarios(0).facts[6].target == "a945b985c65e43b9016d6c53"
    assert phonebook(11, 0, TOKENIZER).facts[0].prompt == "Ida Griffin:"
    assert phonebook(11, 0, TOKENIZER).facts[0].target == "2678556256"
    assert linear_rule(1)[0].facts[0].target == str(3 * 35 + 5 * 77 + 7)
    assert random_tokens(5, 0, range(100)).facts[0].target_ids == (85, 63, 51, 26, 30)


def test_a_specification_builds_what_the_function_builds(tmp_path):
    path = tmp_path / "a:b=c.txt"
    path.write_text(LONG_TEXT, "utf-8")
    assert task("task:phonebook:tokens=300,seed=1") == phonebook(300, 1, TOKENIZER)
    assert task("task:random:seed=2,tokens=64") == random_tokens(64, 2, REACHABLE)
    assert task(f"task:stress:file={path},ratio=0.6,tokens=200,seed=1") == stress(TOKENS, 0.6, 200, 1, REACHABLE)
    assert task("task:linear-rule:pairs=20,seed=1") == linear_rule(20, 1)[0]
    assert task("task:scenarios:seed=1") == scenarios(1)


def test_drawable_tokens_are_searched_only_for_tasks_that_draw():
    def refuse():
        raise AssertionError("nothing is drawn here")

    for spec in ("task:phonebook:tokens=300", "task:linear-rule", "task:scenarios"):
        assert from_spec(spec, TOKENIZER, refuse) == task(spec)


def test_seed_and_pairs_have_defaults():
    assert task("task:random:tokens=9") == random_tokens(9, 0, REACHABLE)
    assert task("task:linear-rule") == linear_rule()[0]
    assert task("task:scenarios:") == scenarios(0)


@pytest.mark.parametrize("eos", [True, False])
def test_the_end_of_sequence_rule_of_a_task_can_be_chosen(tmp_path, eos):
    path = tmp_path / "text.txt"
    path.write_text(LONG_TEXT, "utf-8")
    for spec in SPECS:
        assert task(spec.format(file=path), eos=eos).eos == eos


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("task:phone", "Unknown task 'phone'; known: phonebook, random, stress, linear-rule, scenarios"),
        ("task:", "Unknown task ''; known: phonebook"),
        ("task:random:tokens=5,rank=2", "setting 'rank' of the task 'random' is unknown; it has tokens, seed"),
        ("task:random:tokens=5,", "setting '' of the task 'random' is unknown"),
        ("task:random:tokens=5,tokens=6", "setting 'tokens' of the task 'random' is given twice"),
        ("task:random:tokens=five", "setting 'tokens' of the task 'random' is 'five', not a whole number"),
        ("task:random:tokens", "setting 'tokens' of the task 'random' is '', not a whole number"),
        ("task:stress:file=a,ratio=x,tokens=5", "setting 'ratio' of the task 'stress' is 'x', not a number"),
        ("task:random", r"'random' needs tokens: write task:random:tokens=\.\.\.,seed=\.\.\."),
        ("task:stress:tokens=5", "'stress' needs file, ratio"),
        ("task:scenarios:seed=-1", "seed is -1; choose a whole number from 0"),
        ("task:random:tokens=0", "task of 0 target tokens"),
    ],
)
def test_an_invalid_specification_is_refused_and_lists_what_is_known(spec, message):
    with pytest.raises(ConfigError, match=message):
        task(spec)


def test_a_stress_test_of_a_missing_file_is_refused():
    with pytest.raises(DataError, match="The file 'missing.*does not exist"):
        task("task:stress:file=missing.txt,ratio=0.5,tokens=5")
