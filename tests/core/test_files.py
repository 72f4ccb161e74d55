from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import cuts
from memlaw.core import files
from memlaw.core.errors import JournalError
from memlaw.core.files import read_json, read_text, write_text


def test_a_file_is_replaced_whole_and_no_temporary_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    files.make_folders(path.parent)
    assert files.write(path, b"first")
    assert files.write(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_the_previous_content_stays_if_the_disk_fails(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write(path, b"first")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    other = tmp_path / "other"
    with pytest.raises(OSError, match="Input/output"):
        files.write(other if call == "link" else path, b"second", replace=call != "link")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    files.write(tmp_path / "file", b"secret", mode=0o600)
    assert seen[0] == 0o600
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write(tmp_path / "nowhere" / "file", b"content")


NO_LINKS = [errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV]


@pytest.fixture(params=[None, *NO_LINKS], ids=["links", *map(errno.errorcode.get, NO_LINKS)])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links, and file systems without, by the error they raise."""
    code = request.param

    def no_link(*_args: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    if code is not None:
        monkeypatch.setattr(os, "link", no_link)


def test_without_replacing_the_first_writer_wins(links: None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert files.write(path, b"first", replace=False, mode=0o600)
    assert not files.write(path, b"second", replace=False)
    assert files.write(path, b"first", replace=False)
    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


WRITE = """
from memlaw.core import files
assert files.write(pathlib.Path(sys.argv[1]), b"first", replace=False)
"""


@pytest.mark.parametrize("links", [True, False])
def test_a_writer_killed_at_any_call_neither_blocks_the_next_nor_loses_what_it_acknowledged(
    links: bool, tmp_path: Path
) -> None:
    for number in itertools.count():
        path = tmp_path / str(number) / "file"
        path.parent.mkdir()
        killed = cuts.killed_at(number, WRITE, path, links=links)
        found = path.exists()
        with cuts.intercepted(lambda _name: None, links=links):
            won = files.write(path, b"second", replace=False)
        assert path.read_bytes() == (b"second" if won else b"first")
        assert not (found and won)
        files.sweep(path.parent)
        assert list(path.parent.iterdir()) == [path]
        if not killed:
            break
    assert not won
    assert number > (4 if links else 12)


def race(path: Path, schedule: Iterable[tuple[int, int, bool]], *, links: bool) -> None:
    """One sweeper (0) and three writers: content that one writer was told has won must be that of all, permanently."""
    contents = [b"1", b"2", b"3"]
    settled: list[bytes] = []

    def acknowledged(number: int, answer: object) -> None:
        if number > 0:
            settled.append(path.read_bytes())
            assert answer is (settled[0] == contents[number - 1])

    works = [partial(files.write, path, content, replace=False) for content in contents]
    cuts.Interleaving([partial(files.sweep, path.parent), *works], on_return=acknowledged).run(schedule, links=links)
    with cuts.intercepted(lambda _name: None, links=links):
        files.write(path, b"late", replace=False)
    settled.append(path.read_bytes())
    assert len(set(settled)) == 1
    files.sweep(path.parent)
    assert list(path.parent.iterdir()) == [path]


@settings(deadline=None, max_examples=60)
@given(
    schedule=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 16), st.sampled_from([False] * 9 + [True]))),
    links=st.booleans(),
)
def test_one_writer_wins_for_good_however_writers_interleave_or_die(
    schedule: list[tuple[int, int, bool]], links: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    race(tmp_path_factory.mktemp("race") / "file", schedule, links=links)


CLAIMING = range(6, 13)
"""Turns after which a writer without hard links is between its fsync and the end of its claim."""


@pytest.mark.parametrize("pause", CLAIMING)
def test_a_writer_that_was_paused_carries_out_a_claim_correctly(pause: int, tmp_path: Path) -> None:
    """One writer pauses before its claim and after it, another while it carries out the claim, and a third finishes, in
    every combination of the moments. This fails for code that looks for the file before it reads the claim, or that
    moves the claimed content instead of copying it.
    """
    for number, (second, again) in enumerate(itertools.product(CLAIMING, range(1, 6))):
        path = tmp_path / str(number) / "file"
        path.parent.mkdir()
        race(path, [(1, pause, False), (2, second, False), (3, 99, False), (1, again, False)], links=False)


@settings(deadline=None, max_examples=30)
@given(schedule=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 8), st.just(False)), max_size=20))
def test_sweeping_does_not_harm_a_writer_that_replaces_a_file(
    schedule: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("race") / "file"
    path.write_bytes(b"before")
    answers = {}
    works = [lambda: files.write(path, b"after"), *[lambda: files.sweep(path.parent)] * 2]
    cuts.Interleaving(works, on_return=answers.__setitem__).run(schedule, links=True)
    assert answers == {0: True, 1: None, 2: None}
    assert path.read_bytes() == b"after"
    assert list(path.parent.iterdir()) == [path]


def make(path: Path, content: bytes) -> None:
    with files.new_folder(path) as folder:
        (folder / "a").write_bytes(content)
        files.sign(folder)


def test_a_large_file_replaces_the_previous_one_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first")
    stopped = ValueError("stop")
    with contextlib.suppress(ValueError), files.new_file(path) as temporary:
        temporary.write_bytes(b"sec")
        raise stopped
    assert path.read_bytes() == b"first"
    with files.new_file(path) as temporary:
        temporary.write_bytes(b"second")
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_and_replaces_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    make(path, b"first")
    make(path, b"second")
    assert (path / "a").read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_inside_leaves_the_previous_folder(tmp_path: Path) -> None:
    make(tmp_path / "folder", b"first")
    with pytest.raises(TypeError):
        make(tmp_path / "folder", None)  # type: ignore[arg-type]
    assert (tmp_path / "folder" / "a").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_folder_that_is_not_to_be_replaced_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in (b"first", b"second"):
        with contextlib.suppress(OSError), files.new_folder(path, replace=False) as folder:
            (folder / "deeper").mkdir()
            (folder / "deeper" / "a").write_bytes(content)
    assert (path / "deeper" / "a").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_every_file_of_a_folder_is_on_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path.name, (tmp_path / "folder").exists())))
    with files.new_folder(tmp_path / "folder", replace=False) as folder:
        (folder / "deeper").mkdir()
        (folder / "deeper" / "a").touch()
    assert {name for name, there in synced if not there} >= {"deeper", "a", folder.name}
    assert synced[-1] == (tmp_path.name, True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_folder_is_the_old_one_or_the_new_one_whatever_call_fails(code: int, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for number in itertools.count():
        make(path, b"first")
        cut = cuts.Cut(number, cuts.fails(code))
        with contextlib.suppress(OSError), cuts.intercepted(cut):
            make(path, b"second")
        files.check_signed(path)
        assert (path / "a").read_bytes() in (b"first", b"second")
        for leftover in files.leftovers(tmp_path):
            files.discard(leftover)
        if not cut.struck:
            break
    assert (path / "a").read_bytes() == b"second"
    assert number > 15


MAKE = """
from memlaw.core import files
def make(path):
    with files.new_folder(path) as folder:
        (folder / "a").write_bytes(b"second")
        files.sign(folder)
make(pathlib.Path(sys.argv[1]))
"""


def test_a_kill_at_any_call_leaves_a_whole_folder_at_its_path_or_beside_it(tmp_path: Path) -> None:
    for number in itertools.count():
        path = tmp_path / str(number) / "folder"
        path.parent.mkdir()
        make(path, b"first")
        killed = cuts.killed_at(number, MAKE, path)
        whole = path if path.exists() else next(f for f in files.leftovers(path.parent) if (f / "a").exists())
        files.check_signed(whole)
        assert (whole / "a").read_bytes() in (b"first", b"second")
        if not killed:
            break
    assert number > 8


def test_a_signed_folder_is_intact_or_the_damaged_file_is_named(tmp_path: Path) -> None:
    make(tmp_path, b"content")
    (tmp_path / "b").write_bytes(b"more")
    with pytest.raises(ValueError, match="b is not the file that was saved"):
        files.check_signed(tmp_path)
    (tmp_path / "b").unlink()
    files.check_signed(tmp_path)
    for name in ("a", files.MANIFEST):
        good = (tmp_path / name).read_bytes()
        for bit in range(8 * len(good)):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(ValueError, match="is not the file that was saved|its manifest.json is not a manifest"):
                files.check_signed(tmp_path)
        (tmp_path / name).write_bytes(good)
    (tmp_path / "a").unlink()
    with pytest.raises(ValueError, match="a is not the file that was saved"):
        files.check_signed(tmp_path)
    (tmp_path / files.MANIFEST).unlink()
    with pytest.raises(ValueError, match="it cannot be read: No such file"):
        files.check_signed(tmp_path)


@pytest.mark.parametrize("manifest", ["null", "7", '"a"', "[1]", "[]", "{}", '{"a": 1}', "\ud800"])
def test_any_other_manifest_is_refused(manifest: str, tmp_path: Path) -> None:
    make(tmp_path, b"content")
    (tmp_path / files.MANIFEST).write_bytes(manifest.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="is not the file that was saved|its manifest.json is not a manifest"):
        files.check_signed(tmp_path)


def test_numbered_folders_are_sorted_by_number_and_not_by_time(tmp_path: Path) -> None:
    for name in ("9", "10", "8x", "1.tmp", ".11.0123.tmp"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "9", (2**33, 2**33))
    assert [folder.name for folder in files.numbered(tmp_path)] == ["10", "9"]
    assert files.numbered(tmp_path / "nowhere") == []


def test_temporaries_are_recognised_by_their_names() -> None:
    assert files.is_temporary(Path("x/.cell.json.0123.tmp"))
    assert files.final_name(Path("x/.cell.json.0123.tmp")) == "cell.json"
    assert not files.is_temporary(Path("x/cell.json"))
    assert not files.is_temporary(Path("x/.hidden"))


def test_temporaries_that_may_still_become_a_file_stay(tmp_path: Path) -> None:
    for name in (".here.0123.tmp", ".coming.0123.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "here").touch()
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".coming.0123.tmp", "here"]


def test_a_file_is_written_whole_into_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "law.json"
    write_text(path, "one")
    write_text(path, "two é")
    assert path.read_text(encoding="utf-8") == "two é"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "law.json"
    write_text(path, "one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match=r"law\.json cannot be written: No space"):
            write_text(path, "two")
    assert path.read_text(encoding="utf-8") == "one"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(JournalError, match=r"x cannot be written: .*free disk space or choose another --out"):
        write_text(path / "x", "two")


def test_a_json_file_is_read_or_absent_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    assert read_json(path) is None
    path.write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    path.write_text('{"a": ')
    with pytest.raises(JournalError, match=r"law\.json is not JSON \(.*\); it was damaged or cut short"):
        read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(JournalError, match=r"law\.json is not UTF-8 text \(byte 0\)"):
        read_text(path)
    with pytest.raises(JournalError, match=r"none cannot be read: No such file"):
        read_text(tmp_path / "none")
