"""Points from tables and probes: read as written, and every fault reported in a sentence."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import TrainConfig
from memlaw.core.errors import FitError
from memlaw.core.points import LawPoint
from memlaw.law import fit_law, points_from_results, points_from_text, read_points


def test_points_are_read_as_written(tmp_path):
    file = tmp_path / "points.csv"
    file.write_bytes(
        b"\xef\xbb\xbfrank, length,delta_loss,loss_final,seed,parameters,note\r\n"
        b"1,100,2.5,7.5,0,256,fine\r\n\r\n2,100,-0.1,,1,,worse\r\n"
    )
    assert read_points(file) == (LawPoint(1, 100, 2.5, 7.5, 256, 0), LawPoint(2, 100, -0.1, None, None, 1))


cells = st.builds(
    LawPoint,
    st.integers(1, 4096),
    st.integers(1, 10**7),
    st.floats(-5, 20),
    st.none() | st.floats(0, 20),
    st.none() | st.integers(1, 10**9),
    st.none() | st.integers(0, 2**32 - 1),
)


@settings(deadline=None)
@given(
    st.lists(cells, min_size=1, max_size=8, unique_by=lambda p: (p.rank, p.length, p.parameters, p.seed)),
    st.permutations(["rank", "length", "delta_loss", "final_loss", "parameters", "seed"]),
)
def test_any_table_of_cells_is_read_back(points, columns):
    def row(point):
        return ",".join("" if (value := getattr(point, column)) is None else repr(value) for column in columns)

    text = "\n".join([",".join(columns), *map(row, points)])
    assert points_from_text(text, name="t.csv") == tuple(points)


HEAD = "rank,length,delta_loss\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank,length\n1,2\n", r"^t\.csv has no column delta_loss; its first line must be rank,length,delta_loss"),
        ("", "^t.csv has no column rank nor length nor delta_loss; its first line"),
        ('{"prompt": "key", "completion": "hunter2"}\n', r"^((?!hunter2).)*not to facts\.$"),
        (HEAD, "has a header but no points"),
        ("rank,length,delta_loss,rank\n1,2,3,4\n", "has two columns rank, so"),
        ("rank,length,delta_loss,final_loss,loss_final\n1,2,3,4,4\n", "has two columns final_loss, so"),
        (HEAD + "1,2,3\n1,2,high\n", r"t\.csv, line 3: delta_loss is 'high', not a number\.$"),
        (HEAD + "1,2,9,13\n", "line 2 has 4 fields, but the first line names 3.*decimal point"),
        (HEAD + '1,2,"9,13"\n', "line 2: delta_loss is '9,13', not a number. Write numbers with a decimal point"),
        (HEAD + "1,2,nan\n", "line 2: delta_loss is 'nan'. A cell that did not finish"),
        (HEAD + "1,2,inf\n", "line 2: delta_loss is 'inf'. A cell that did not finish"),
        (HEAD + "0,2,3\n", "line 2: rank is 0, but it must be a whole number of at least 1"),
        (HEAD + "1.5,2,3\n", "line 2: rank is 1.5, but it must be a whole number"),
        (HEAD + "1,,3\n", "line 2: length is '', not a number"),
        ("rank,length,delta_loss,final_loss\n1,2,3,-1\n", "line 2: final_loss is -1, but a cross-entropy is never"),
        ("rank,length,delta_loss,seed\n1,2,3,-1\n", "line 2: seed is -1, but it must be a whole number of at least 0"),
        (HEAD + '1,2,"3\n', r"t\.csv, line 2: unexpected end of data"),
        ("rank;length;delta_loss\n1;2;3,5\n", "its columns are separated by semicolons. Save the table with commas"),
        ("rank\tlength\tdelta_loss\n1\t2\t3\n", "its columns are separated by tabs. Save the table with commas"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read_say_where(text, message):
    with pytest.raises(FitError, match=message):
        points_from_text(text, name="t.csv")


@pytest.mark.parametrize(
    ("header", "renamed"),
    [
        ("r,l,dL", "'r' to rank and 'l' to length and 'dL' to delta_loss"),
        ("lora_rank,length,delta_loss", "'lora_rank' to rank"),
        ("rank,length_tokens,delta_loss", "'length_tokens' to length"),
        ("rank,target_tokens,dl", "'target_tokens' to length and 'dl' to delta_loss"),
        ("Rank,Length,Delta_Loss", "'Rank' to rank and 'Length' to length and 'Delta_Loss' to delta_loss"),
        ("rank,length,delta loss", "'delta loss' to delta_loss"),
        ("rank,lenght,delta_loss", "'lenght' to length"),
        ("rank,length,\N{GREEK CAPITAL LETTER DELTA}L", "'\N{GREEK CAPITAL LETTER DELTA}L' to delta_loss"),
    ],
)
def test_columns_by_another_name_are_not_guessed_but_named(header, renamed):
    with pytest.raises(FitError, match=f"; rename {renamed}\\.$"):
        points_from_text(f"{header}\n1,2,3\n", name="t.csv")


@pytest.mark.parametrize("column", ["length_chars", "characters", "num_chars"])
def test_lengths_in_characters_are_refused(column):
    with pytest.raises(
        FitError, match=rf"it has {column}, but a law's length is in target tokens\. Count them with .*"
    ):
        points_from_text(f"rank,{column},delta_loss\n1,2,3\n", name="t.csv")


def test_a_cell_that_comes_twice_needs_seeds():
    message = (
        r"t\.csv, line 4 repeats the cell of line 2 \(rank 1, length 100\)\. If they are replicates, add a column seed"
    )
    with pytest.raises(FitError, match=message):
        points_from_text(HEAD + "1,100,3\n2,100,4\n1,100,3.1\n", name="t.csv")
    with pytest.raises(FitError, match="line 3 repeats the cell of line 2"):
        points_from_text(HEAD + "1,100,3\n1,100,3\n", name="t.csv")
    seeds = "rank,length,delta_loss,seed\n1,100,3,0\n1,100,3.1,1\n"
    assert [point.seed for point in points_from_text(seeds, name="t.csv")] == [0, 1]
    with pytest.raises(FitError, match=r"line 4 repeats the run of line 3 \(rank 1, length 100, seed 1\)\. Give each"):
        points_from_text(seeds + "1,100,2.9,1\n", name="t.csv")


def test_two_placements_may_have_the_same_rank_and_length():
    text = "rank,length,delta_loss,parameters\n1,100,3,256\n1,100,4,1024\n"
    assert [point.parameters for point in points_from_text(text, name="t.csv")] == [256, 1024]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FitError, match=r"nowhere\.csv cannot be read: No such file"):
        read_points(tmp_path / "nowhere.csv")
    with pytest.raises(FitError, match="cannot be read: Is a directory"):
        read_points(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"rank,l\xe4nge\n")
    with pytest.raises(FitError, match=r"not UTF-8 text \(byte 6\)"):
        read_points(tmp_path / "latin.csv")


fields = st.sampled_from(
    ["1", "2", "16", "3.5", "-0.2", "nan", "1e400", "1_0", "", " 7 ", '"', '"2,5"', "x", "\0", "٣"]
)

headers = st.lists(
    st.sampled_from(["rank", "length", "delta_loss", "final_loss", "seed", "parameters", "r", "dL", "num_chars", ""]),
    max_size=7,
).map(",".join)  # fmt: skip

tables = st.builds(lambda head, rows: "\n".join([head, *map(",".join, rows)]),
                   st.just("rank,length,delta_loss,final_loss") | headers,
                   st.lists(st.lists(fields, min_size=3, max_size=5), max_size=6))  # fmt: skip


@settings(deadline=None)
@given(tables | st.text(max_size=60))
@example(HEAD + "1,2,3\r4,5,6")
@example("\ufeff\ufeffrank")
def test_any_text_gives_points_or_a_sentence(text):
    try:
        points = points_from_text(text, name="t.csv")
        fit = fit_law(points, "log")
    except FitError as error:
        assert str(error).rstrip().endswith((".", "?"))  # noqa: PT017 - which of the two it is depends on the text
    else:
        json.dumps(fit.summary(), allow_nan=False)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_points_or_a_sentence(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("bytes") / "points.csv"
    file.write_bytes(content)
    with pytest.raises(FitError):
        read_points(file)


def result(rank: int, status: str = "finished", **changes) -> CellResult:
    train = TrainConfig(**changes.pop("train", {}))
    cell = Cell(**{"model": "m", "tokenizer": "t", "data": "d", "placement": "mlp@3", "dtype": "float32"} | changes,
                rank=rank, length=64, train=train)  # fmt: skip
    done = status == "finished"
    return CellResult(cell, status, 100, 256 * rank, 10.0, 10.0 - rank if done else None, float(rank) if done else None,
                      None, None, None, None, 1, loss_memoryless=9.5 if done else None)  # fmt: skip


def test_finished_cells_become_points_with_their_seeds():
    points = points_from_results([result(1), result(2, "diverged"), result(3, train={"seed": 7})])
    assert points == (LawPoint(1, 64, 1.0, 9.0, 256, 42, 9.5), LawPoint(3, 64, 3.0, 7.0, 768, 7, 9.5))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"placement": "down_proj@3"},
            r"differ in placement \(down_proj@3, mlp@3\), and a law holds for one placement only",
        ),
        ({"tokenizer": "u"}, r"differ in tokenizer \(t, u\)"),
        ({"train": {"method": "ot"}}, r"differ in method \(ot, sft\)"),
        ({"train": {"steps": 7}}, r"differ in steps \(1000, 7\)"),
        ({"train": {"until": "recalled"}}, r"stopped as soon as they were recalled .*fixed budget"),
    ],
)
def test_cells_of_two_kinds_are_refused(other, message):
    with pytest.raises(FitError, match=message):
        points_from_results([result(1), result(2, **other)])


def test_over_parameters_cells_may_differ_in_placement_only():
    points = points_from_results([result(1), result(2, placement="down_proj@3")], axis="parameters")
    assert [point.parameters for point in points] == [256, 512]
    with pytest.raises(FitError, match="differ in method"):
        points_from_results([result(1), result(2, train={"method": "ot"})], axis="parameters")
