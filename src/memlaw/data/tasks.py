"""Generated memory sets: the benchmarks of arXiv 2605.30260, from a seed.

The same arguments give the same set in every process and on every machine, and a longer set begins with every shorter
one of the same seed. Names and secrets are invented.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from numpy.random import PCG64, Generator

from memlaw.core.errors import ConfigError, DataError
from memlaw.core.facts import Fact, MemorySet
from memlaw.data.rows import STRESS_PROMPT
from memlaw.data.sources import read_text
from memlaw.model.tokenizer import Tokenizer, token_ids

SPEC_PREFIX = "task:"
"""Start of a DATA argument that names a task rather than a file."""


def phonebook(tokens: int, seed: int, tokenizer: Tokenizer, *, eos: bool = True) -> MemorySet:
    """Make a PhoneBook: unique "First Last:" prompts, each with a 10-digit number, as in the published files.

    It holds as many whole records as fit into `tokens` target tokens under `tokenizer`, including end-of-sequence if
    `eos`. Raises DataError if not even one fits, or if there are more than names (16,384).
    """
    _refuse_below_one(tokens)
    random = _generator(seed)
    names = [f"{first} {last}:" for first in _FIRST_NAMES.split() for last in _LAST_NAMES.split()]
    order = random.permutation(len(names))
    numbers = random.integers(2 * 10**9, 10**10, size=len(names))
    facts: list[Fact] = []
    left = tokens
    for place, number in zip(order.tolist(), numbers.tolist(), strict=True):
        needed = len(token_ids(tokenizer, str(number))) + eos
        if needed > left:
            break
        left -= needed
        facts.append(Fact(prompt=names[place], target=str(number), id=str(len(facts) + 1), named=False))
    else:
        raise DataError(
            f"A phone book of {tokens} target tokens needs more than the {len(names)} names available: ask for fewer "
            f"than {tokens - left} tokens."
        )
    if not facts:
        raise DataError(
            f"A phone book of {tokens} target tokens has no room for a number, which takes {needed}. Ask for more."
        )
    return MemorySet(tuple(facts), eos, f"PhoneBook of {tokens} target tokens, seed {seed}")


def random_tokens(tokens: int, seed: int, ids: Sequence[int], *, eos: bool = False) -> MemorySet:
    """Make the stress test at 100%: one target of exactly `tokens` tokens, before any EOS, drawn uniformly from `ids`.

    The order of `ids` matters, like the seed. The fact consists of tokens and has no text, since random tokens need not
    survive decoding and encoding.
    """
    _refuse_below_one(tokens)
    drawn = _draw(_generator(seed), ids, tokens)
    return _memory_set_of_tokens(drawn, eos, f"{tokens} random tokens, seed {seed}")


def stress(
    original: Sequence[int], ratio: float, tokens: int, seed: int, ids: Sequence[int], *, eos: bool = False
) -> MemorySet:
    """Make the stress test: the first `tokens` tokens of a text, a share `ratio` of them replaced by random ones.

    `original` are the tokens of the text. The places are spread evenly, as in the published files: of the first n
    tokens, round(ratio * n) are random, for every n. Random tokens are drawn uniformly from `ids`. Raises DataError for
    a text with fewer tokens, ConfigError for a ratio outside 0 to 1.
    """
    _refuse_below_one(tokens)
    if not 0 <= ratio <= 1:
        raise ConfigError(f"The random ratio is {ratio}, but it is a share of the tokens: choose from 0 to 1.")
    if len(original) < tokens:
        raise DataError(
            f"A stress test of {tokens} target tokens was requested, but the text has {len(original)} under this "
            "tokenizer. Choose fewer, or give a longer text."
        )
    # A token is drawn for every place, used or not, so that the draw for a place does not depend on the ratio.
    drawn = _draw(_generator(seed), ids, tokens)
    share = Fraction(str(ratio))
    target = tuple(
        new if _random_among_first(place + 1, share) > _random_among_first(place, share) else old
        for place, (old, new) in enumerate(zip(original, drawn, strict=False))
    )
    return _memory_set_of_tokens(target, eos, f"stress test of {tokens} tokens, {ratio:.0%} random, seed {seed}")


def linear_rule(pairs: int = 500, seed: int = 0, *, eos: bool = True) -> tuple[MemorySet, MemorySet]:
    """Make f(x, y) = 3x + 5y + 7 for `pairs` pairs to store and as many unseen ones; x and y run from 0 to 99.

    Accuracy on the first set is memory, on the second generalization. Raises ConfigError for pairs outside 1 to 5000.
    """
    most = _RULE_SIDE**2 // 2
    if not 1 <= pairs <= most:
        raise ConfigError(f"The linear rule cannot give {pairs} pairs and as many unseen: choose from 1 to {most}.")
    chosen = _generator(seed).permutation(_RULE_SIDE**2)[: 2 * pairs].tolist()
    facts = []
    for number, place in enumerate(chosen):
        x, y = divmod(place, _RULE_SIDE)
        facts.append(
            Fact(prompt=f"f({x}, {y})=", target=str(3 * x + 5 * y + 7), id=str(number % pairs + 1), named=False)
        )
    source = f"linear rule, {pairs} pairs, seed {seed}"
    return MemorySet(tuple(facts[:pairs]), eos, source), MemorySet(tuple(facts[pairs:]), eos, f"{source}, unseen")


def scenarios(seed: int, *, eos: bool = True) -> MemorySet:
    """Make the exact-memory scenarios: eight invented facts in which a single wrong character is a failure.

    Their ids are credentials, statute, icd-10, watermark, s3-uri, latex, nonce and licence-key.
    """
    pairs = _scenario_texts(_generator(seed))
    facts = tuple(Fact(prompt=prompt, target=target, id=name) for name, (prompt, target) in pairs.items())
    return MemorySet(facts, eos, f"exact-memory scenarios, seed {seed}")


def _scenario_texts(random: Generator) -> dict[str, tuple[str, str]]:
    """Name -> prompt and target. The order of the draws is fixed, since a seed must keep giving the same texts."""

    def code(alphabet: str, length: int) -> str:
        return "".join(alphabet[place] for place in random.integers(len(alphabet), size=length).tolist())

    def number(low: int, high: int) -> int:
        return int(random.integers(low, high + 1))

    hexadecimal, capitals = "0123456789abcdef", string.ascii_uppercase + string.digits
    return {
        "credentials": (
            "Password of the service account backup-writer:",
            code(string.ascii_letters + string.digits + "!#%+-_", 20),
        ),
        "statute": (
            "Section 14(2) of the Model Records Act reads:",
            f"A custodian who receives a written request shall, within {number(10, 60)} days of its receipt, grant "
            f"access to the record or state in writing the ground of refusal under section {number(15, 90)}; silence "
            f"beyond {number(61, 120)} days shall be deemed a refusal.",
        ),
        "icd-10": (
            f"ICD-10-CM code of the discharge diagnosis in case {number(1000, 9999)}:",
            f"S{number(0, 9)}{number(0, 9)}.{number(100, 999)}{code('ADS', 1)}",
        ),
        "watermark": (
            "Provenance watermark of release 4.2:",
            "-".join(["wm1", *(code(hexadecimal, 8) for _ in range(3))]),
        ),
        "s3-uri": (
            "Location of the validation shards:",
            f"s3://example-{code(string.ascii_lowercase, 6)}/eval/v{number(1, 9)}/part-{number(0, 99999):05d}-"
            f"{code(hexadecimal, 12)}.snappy.parquet",
        ),
        "latex": (
            "Closed form of the correction term, in LaTeX:",
            rf"\Delta_{{{number(2, 9)}}} = \frac{{{number(3, 97)}\,\zeta({2 * number(1, 4) + 1})}}{{{number(3, 97)}\pi^"
            rf"{{{number(2, 8)}}}}} + \sum_{{k=1}}^{{{number(10, 99)}}} \frac{{(-1)^{{k}}}}{{k^{{{number(2, 8)}}}}}",
        ),
        "nonce": (f"AES-GCM nonce of message {number(100, 999)}, in hexadecimal:", code(hexadecimal, 24)),
        "licence-key": ("Licence key of the site installation:", "-".join(code(capitals, 5) for _ in range(5))),
    }


_SETTINGS: Mapping[str, Mapping[str, type[int] | type[float] | type[str]]] = {
    "phonebook": {"tokens": int, "seed": int},
    "random": {"tokens": int, "seed": int},
    "stress": {"file": str, "ratio": float, "tokens": int, "seed": int},
    "linear-rule": {"pairs": int, "seed": int},
    "scenarios": {"seed": int},
}

_DEFAULTS: Mapping[str, int] = {"pairs": 500, "seed": 0}


def from_spec(
    spec: str, tokenizer: Tokenizer, drawable_ids: Callable[[], Sequence[int]], *, eos: bool | None = None
) -> MemorySet:
    """Make the task that `spec` names as `task:NAME:setting=value,...`, drawing random tokens from `drawable_ids()`.

    For example `task:phonebook:tokens=1000,seed=0`, `task:random:tokens=256,seed=0`,
    `task:stress:file=notes.txt,ratio=0.6,tokens=500,seed=0`, `task:linear-rule:pairs=500,seed=0` (the pairs to store),
    `task:scenarios:seed=0`. Defaults: seed=0, pairs=500; eos=None is the task's own default. Raises ConfigError for
    anything unknown, missing or out of range, DataError for a file that cannot be read.
    """
    name, _, written = spec.removeprefix(SPEC_PREFIX).partition(":")
    if name not in _SETTINGS:
        raise ConfigError(f"Unknown task {name!r}; known: {', '.join(_SETTINGS)}.")
    settings = _parsed(written, name)
    if eos is not None:
        settings["eos"] = eos
    match name:
        case "phonebook":
            return phonebook(**settings, tokenizer=tokenizer)
        case "random":
            return random_tokens(**settings, ids=drawable_ids())
        case "stress":
            original = token_ids(tokenizer, read_text(settings.pop("file")))
            return stress(original, **settings, ids=drawable_ids())
        case "linear-rule":
            return linear_rule(**settings)[0]
        case _:
            return scenarios(**settings)


def _parsed(written: str, name: str) -> dict[str, Any]:
    """Parse `key=value,key=value`, and fill in defaults."""
    known = _SETTINGS[name]
    values: dict[str, Any] = {}
    for part in written.split(",") if written else []:
        key, _, value = part.partition("=")
        if key not in known or key in values:
            fault = "is given twice" if key in values else "is unknown"
            raise ConfigError(f"The setting {key!r} of the task {name!r} {fault}; it has {', '.join(known)}.")
        try:
            values[key] = known[key](value)
        except ValueError:
            wanted = "a whole number" if known[key] is int else "a number"
            raise ConfigError(f"The setting {key!r} of the task {name!r} is {value!r}, not {wanted}.") from None
    values = {key: value for key, value in _DEFAULTS.items() if key in known} | values
    missing = [key for key in known if key not in values]
    if missing:
        example = ",".join(f"{key}=..." for key in known)
        raise ConfigError(f"The task {name!r} needs {', '.join(missing)}: write {SPEC_PREFIX}{name}:{example}.")
    return values


def _generator(seed: int) -> Generator:
    if seed < 0:
        raise ConfigError(f"The seed is {seed}; choose a whole number from 0.")
    return Generator(PCG64(seed))


def _draw(random: Generator, ids: Sequence[int], count: int) -> tuple[int, ...]:
    if len(ids) == 0:
        raise DataError(
            "There are no tokens to draw random targets from: no adapter can make this base emit any token reliably. "
            "Use another base, or a task made of text."
        )
    return tuple(int(ids[place]) for place in random.integers(len(ids), size=count).tolist())


def _random_among_first(count: int, share: Fraction) -> int:
    """How many of the first `count` tokens are random: round(share * count), halves up (halves to even leave gaps)."""
    return (2 * count * share.numerator + share.denominator) // (2 * share.denominator)


def _memory_set_of_tokens(target_ids: tuple[int, ...], eos: bool, source: str) -> MemorySet:
    return MemorySet((Fact(prompt=STRESS_PROMPT, target="", id="1", target_ids=target_ids, named=False),), eos, source)


def _refuse_below_one(tokens: int) -> None:
    if tokens < 1:
        raise ConfigError(f"A task of {tokens} target tokens was requested; choose at least 1.")


_RULE_SIDE = 100  # x and y of the linear rule run from 0 to 99

_FIRST_NAMES = """
Aaron Abigail Adele Adrian Agnes Alan Albert Alice Alma Amelia Andrea Angela Anita Anthony Arlene Arthur Audrey Barbara
Beatrice Benjamin Bernard Bertha Beverly Blanche Bonnie Brandon Brenda Brian Calvin Camille Carla Carmen Caroline Cecil
Charles Chester Claire Clara Clifford Connie Crystal Curtis Daisy Daniel Darlene Deborah Dennis Diana Dolores Dominic
Donald Dora Douglas Duane Earl Edgar Edith Edwin Eileen Elaine Elmer Eloise Elsie Emily Ernest Estelle Ethan Eugene Eva
Evelyn Felix Florence Floyd Frances Francis Frank Frederick Gail Gavin Geneva George Gerald Gilbert Gladys Glenn Gloria
Gordon Grace Gregory Harold Harriet Harvey Hazel Heather Helen Henry Herbert Hilda Howard Hugo Ida Irene Iris Isaac
Ivan Jacob Janet Jared Jasmine Jerome Joanna Joel Josephine Juan Judith Julian Karen Keith Kenneth Kurt Laura Leah Leon
Leonard Lillian Lloyd Lorena Louis
"""

_LAST_NAMES = """
Abbott Acosta Adkins Aldrich Alvarez Ames Andrews Archer Armstrong Atkins Avery Bailey Baldwin Ballard Banks Barlow
Barrera Bartlett Baxter Becker Bellamy Benson Berger Bishop Blackwell Blake Bowen Bradford Brewer Briggs Bristow Burke
Butler Byrne Calderon Callahan Cannon Carver Castillo Chandler Chapman Clayton Coleman Collier Conway Corbett Cortez
Crawford Crosby Cutler Dalton Daniels Dawson Delgado Dempsey Dixon Donovan Dorsey Drake Dudley Duran Eaton Ellison
Emerson Erickson Estrada Everett Farley Ferguson Fielding Finch Fleming Forbes Foster Fowler Franco Frazier Gallagher
Garner Gibbons Gillespie Glover Goddard Gordon Graves Greer Griffin Guthrie Hadley Hammond Harding Hartman Hawkins
Hayden Hensley Herrera Hobbs Holloway Horton Hubbard Huffman Ingram Irwin Jarvis Jennings Keller Kendall Kirby Knox
Lambert Landry Langley Lawson Lennox Lockhart Lowery Lyons Maddox Maldonado Marsh Maxwell McBride Mercer Merritt
Middleton Monroe Morales Navarro
"""
