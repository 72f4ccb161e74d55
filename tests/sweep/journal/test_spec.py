from __future__ import annotations

import dataclasses

import pytest

from helpers.journals import SPAWN, SPEC, _claim_mine, a_result, leftovers
from memlaw.core.errors import JournalError
from memlaw.sweep.journal import Journal, ProbeSpec


def test_a_claim_creates_the_directory_and_the_same_run_may_rejoin(tmp_path):
    out = tmp_path / "a" / "b"
    assert Journal(out).claim(SPEC) == SPEC
    assert Journal(out).claim(SPEC) == SPEC
    assert Journal(out).spec() == SPEC
    assert [path.name for path in out.iterdir()] == ["probe.json"]


def test_the_packs_of_the_first_run_hold_for_every_later_one(tmp_path):
    Journal(tmp_path).claim(SPEC)
    repacked = dataclasses.replace(SPEC, packs=(("a",), ("b", "c")), about={"model": "another path"})
    assert Journal(tmp_path).claim(repacked) == SPEC


def test_another_run_is_refused_with_the_differences_and_a_way_out(tmp_path):
    Journal(tmp_path).claim(SPEC)
    before = (tmp_path / "probe.json").read_bytes()
    other = ProbeSpec(identity={"model": "m", "ranks": [1, 2, 4], "steps": 10}, packs=())
    with pytest.raises(JournalError) as caught:
        Journal(tmp_path).claim(other)
    assert str(caught.value) == (
        f"{tmp_path} belongs to another run, which differs in ranks (there [1,2], here [1,2,4]); steps (there "
        "nothing, here 10). Two runs in one directory would be mistaken for one sweep. Choose another --out, or "
        "repeat the flags of that run; ranks, lengths, methods and seeds may be added to it."
    )
    assert (tmp_path / "probe.json").read_bytes() == before


def test_a_setting_that_older_grids_did_not_have_is_named_with_what_they_were_trained_with(tmp_path):
    Journal(tmp_path).claim(SPEC)
    of_muon = dataclasses.replace(SPEC, identity={**SPEC.identity, "optimizer": "muon"})
    with pytest.raises(JournalError, match=r"differs in optimizer \(there adamw, here muon\)\. Two runs"):
        Journal(tmp_path).claim(of_muon)


def test_what_the_settings_alone_tell_is_checked_before_a_model_is_loaded(tmp_path):
    of_muon = dataclasses.replace(SPEC, identity={**SPEC.identity, "optimizer": "muon"})
    Journal(tmp_path).claim(of_muon)
    Journal(tmp_path).check_claimable({"optimizer": "muon"})
    with pytest.raises(JournalError, match=r"differs in optimizer \(there muon, here adamw\)\. Two runs"):
        Journal(tmp_path).check_claimable({"ranks": SPEC.identity["ranks"]})


def test_long_values_are_shortened_in_the_message(tmp_path):
    Journal(tmp_path).claim(dataclasses.replace(SPEC, identity={"data": "a" * 64}))
    with pytest.raises(JournalError, match=r"data \(there a{24}\.\.\.a{8}, here b{24}\.\.\.b{8}\)"):
        Journal(tmp_path).claim(dataclasses.replace(SPEC, identity={"data": "b" * 64}))


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        JournalError,
        match=r"is not a probe directory: it has no probe\.json but contains holiday\.jpg and more\. "
        r"Nothing was written there\. Choose another --out\.",
    ):
        Journal(tmp_path).claim(SPEC)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holiday.jpg", "thesis.tex"]


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(JournalError, match=r"Cannot read .*probe\.json: Not a directory"):
        Journal(tmp_path / "out").claim(SPEC)


def test_a_directory_in_which_a_run_died_at_once_may_be_claimed(tmp_path):
    (tmp_path / ".probe.json.0123.tmp").write_text('{"body":')
    assert Journal(tmp_path).claim(SPEC) == SPEC
    Journal(tmp_path).write_table()
    assert leftovers(tmp_path) == []


def test_a_damaged_probe_json_is_refused_with_a_way_to_keep_the_cells(tmp_path):
    journal = Journal(tmp_path)
    journal.claim(SPEC)
    journal.publish(a_result())
    path = tmp_path / "probe.json"
    path.write_bytes(path.read_bytes().replace(b"[1,2]", b"[1,3]"))
    with pytest.raises(
        JournalError, match=r"is damaged \(its SHA-256 does not match\).*copy the files of cells/ there"
    ):
        journal.claim(SPEC)
    elsewhere = tmp_path / "elsewhere"
    Journal(elsewhere).claim(SPEC)
    (tmp_path / "cells").rename(elsewhere / "cells")
    assert Journal(elsewhere).results() == (a_result(),)


def test_another_directory_is_not_read_as_a_probe(tmp_path):
    with pytest.raises(JournalError, match=r"is not a probe directory: it has no probe\.json"):
        Journal(tmp_path / "nowhere").spec()


def test_runs_that_claim_a_directory_at_once_agree_on_one_spec(tmp_path):
    barrier, answers = SPAWN.Barrier(3), SPAWN.Queue()
    runs = [SPAWN.Process(target=_claim_mine, args=(str(tmp_path), number, barrier, answers)) for number in range(3)]
    for process in runs:
        process.start()
    heard = [answers.get() for _ in runs]
    for process in runs:
        process.join()
    assert heard == [Journal(tmp_path).spec().about] * 3
