from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import portalocker
import pytest

from corrdet.errors import CorrdetError
from corrdet.files import (
    OtherFilesError,
    ReadError,
    atomic_write,
    datasets_root,
    prepare_directory,
    reading,
    remove_leftovers,
)

IDENTITY = {"name": "thing", "version": 1, "sizes": (1, 2)}


def build_thing(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "train" / "1.png").write_bytes(b"image")
    (folder / "train.json").write_text('{"a": 1}')


def start(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def test_datasets_root_is_read_at_every_call(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert datasets_root() == tmp_path
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert datasets_root() == Path("datasets")


def test_atomic_write_replaces_the_file(tmp_path):
    path = tmp_path / "new" / "file.json"
    with atomic_write(path) as file:
        file.write("é")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "é"
    with atomic_write(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["file.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_refuses_to_append(tmp_path):
    with pytest.raises(ValueError, match="'a'"), atomic_write(tmp_path / "file", "a"):
        pass


def test_prepare_directory_builds_once(tmp_path):
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        build_thing(folder)

    directory = tmp_path / "deep" / "thing"
    for _ in range(2):
        assert prepare_directory(directory, IDENTITY, build) == directory
    assert len(calls) == 1
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["contents"] == {"train.json": 8, "train/*": 1}
    assert sorted(os.listdir(directory.parent)) == [".thing.lock", "thing"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda thing: (thing / "train" / "1.png").unlink(),
        lambda thing: (thing / "train.json").write_text("{"),
        lambda thing: (thing / "manifest.json").write_text("{"),
    ],
)
def test_prepare_directory_makes_damaged_data_again(tmp_path, damage):
    thing = prepare_directory(tmp_path / "thing", IDENTITY, build_thing)
    damage(thing)
    prepare_directory(thing, IDENTITY, build_thing)
    assert (thing / "train" / "1.png").read_bytes() == b"image"
    assert json.loads((thing / "train.json").read_text()) == {"a": 1}


def test_prepare_directory_replaces_another_version(tmp_path):
    thing = prepare_directory(tmp_path / "thing", IDENTITY, build_thing)
    newer = {**IDENTITY, "version": 2}
    prepare_directory(thing, newer, lambda folder: (folder / "new.json").write_text("[]"))
    assert sorted(os.listdir(thing)) == ["manifest.json", "new.json"]


def test_prepare_directory_leaves_foreign_files_alone(tmp_path):
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not made by corrdet"):
        prepare_directory(tmp_path / "thing", IDENTITY, build_thing)
    assert os.listdir(tmp_path / "thing") == ["precious.txt"]


def test_prepare_directory_removes_what_a_failed_build_left(tmp_path):
    def fail(folder: Path) -> None:
        build_thing(folder)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        prepare_directory(tmp_path / "thing", IDENTITY, fail)
    assert os.listdir(tmp_path) == [".thing.lock"]


def test_prepare_directory_says_what_to_do_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="DETECTRON2_DATASETS"):
        prepare_directory(tmp_path / "file" / "thing", IDENTITY, build_thing)


SLOW_BUILD = """
    import sys, time
    from pathlib import Path
    from corrdet.files import prepare_directory

    def build(folder):
        (folder / "train.json").write_text("{}")
        with open(sys.argv[2], "a") as log:
            log.write("built\\n")
        time.sleep(float(sys.argv[3]))

    prepare_directory(sys.argv[1], {"name": "thing"}, build)
"""


def test_interrupted_build_is_not_used_and_cleaned_away(tmp_path):
    thing, log = tmp_path / "thing", tmp_path / "log"
    child = start(SLOW_BUILD, thing, log, 300)
    wait_for(log.exists)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not thing.exists()
    assert list(tmp_path.glob(".thing.tmp-*")), "the test should find what the child left"

    prepare_directory(thing, {"name": "thing"}, build_thing)
    assert (thing / "train" / "1.png").is_file()
    assert not list(tmp_path.glob(".thing.tmp-*"))


def test_two_processes_build_once(tmp_path):
    thing, log = tmp_path / "thing", tmp_path / "log"
    children = [start(SLOW_BUILD, thing, log, 1) for _ in range(2)]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
    assert log.read_text() == "built\n"
    assert (thing / "manifest.json").is_file()


def test_files_do_without_detectron2():
    child = start(
        """
        import sys
        sys.modules["detectron2"] = None  # as if it were not installed
        from corrdet.files import atomic_write
        from corrdet.data.voc import convert_voc
        """
    )
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors


class TestReading:
    def test_what_the_system_says_is_the_users_to_mend(self, tmp_path):
        with pytest.raises(FileNotFoundError) as plain:
            open(tmp_path / "none")
        with pytest.raises(ReadError) as caught, reading():
            open(tmp_path / "none")
        assert isinstance(caught.value, CorrdetError) and isinstance(caught.value, OSError)
        assert str(caught.value) == str(plain.value)
        assert caught.value.filename == plain.value.filename
        with pytest.raises(ReadError, match="^in words$"), reading():
            raise OSError("in words")

    def test_other_errors_stay_what_they_are(self):
        for error in (KeyError("a bug"), OtherFilesError("said already")):
            with pytest.raises(type(error)) as caught, reading():
                raise error
            assert caught.value is error


class TestLeftovers:
    WRITER = """
    import sys, time
    from corrdet.files import atomic_write
    with atomic_write(sys.argv[1]) as file:
        file.write("new")
        print("writing", flush=True)
        sys.stdin.read()
    """

    def start_writer(self, path):
        command = [sys.executable, "-c", textwrap.dedent(self.WRITER), str(path)]
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "writing\n"
        return writer

    def test_of_the_dead_only(self, tmp_path):
        with self.start_writer(tmp_path / "a") as dead, self.start_writer(tmp_path / "b") as alive:
            dead.kill()
            dead.wait()
            (tmp_path / ".notes.tmp").write_text("somebody else's")
            (tmp_path / ".gone.abcdefgh.tmp").write_text("of a version without locks")
            assert len(os.listdir(tmp_path)) == 4
            remove_leftovers(tmp_path)
            kept = sorted(os.listdir(tmp_path))
            assert kept[0].startswith(".b.") and kept[1:] == [".notes.tmp"]
            alive.communicate("")
        assert sorted(os.listdir(tmp_path)) == [".notes.tmp", "b"]
        assert (tmp_path / "b").read_text() == "new"

    def test_a_file_that_is_removed_before_it_is_locked(self, tmp_path, monkeypatch):
        lock, calls = portalocker.lock, []

        def remove_first(file, flags):
            if not calls:
                os.unlink(file.name if isinstance(file.name, str) else next(tmp_path.iterdir()))
            calls.append(flags)
            lock(file, flags)

        monkeypatch.setattr(portalocker, "lock", remove_first)
        with atomic_write(tmp_path / "a") as file:
            file.write("new")
        assert len(calls) == 2 and os.listdir(tmp_path) == ["a"]

    def test_a_file_system_without_locks(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise portalocker.LockException("not supported")

        monkeypatch.setattr(portalocker, "lock", refuse)
        with atomic_write(tmp_path / "a") as file:
            file.write("new")
            remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == ["a"]

    def test_in_the_folders_of_evaluations(self, tmp_path):
        for folder in ("inference", "inference/my_val", "inference/my_val/more"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / ".measures.json.abcdefgh.tmp").write_text("of a dead one")
        (tmp_path / "inference" / "measures.json").write_text("{}")
        remove_leftovers(tmp_path)
        left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
        assert left == [
            "inference/measures.json",
            "inference/my_val/more/.measures.json.abcdefgh.tmp",
        ]

    def test_a_folder_that_is_none(self, tmp_path):
        remove_leftovers(tmp_path / "gone")
