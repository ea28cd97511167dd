"""Temporary files and folders: whose they are, and who clears them."""

import os

from deepmi import storage

GONE = 2**22 + 1  # no system gives a process such a number


def test_what_killed_runs_left_is_cleared_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.socket, "gethostname", lambda: "example.com")
    left = [f".DeepMI_5clusters@_Val.json@example.com.{GONE}.tmp", f".scratch-a_1@example.com.{GONE}.tmp/clone/file"]
    others = [
        f".table.csv@www.example.com.{GONE}.tmp",  # another machine's, on a common file system
        f".table.csv@exampleXcom.{GONE}.tmp",
        f".table.csv@example.com.{os.getppid()}.tmp",  # of a run that goes on
        f".scratch-a_1@example.com.{os.getppid()}.tmp/clone/file",
        f".recordings@example.com.{GONE}.tmp/file",  # the program makes no such folder
        f"table.csv@example.com.{GONE}.tmp",
    ]
    for name in left + others:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"content")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").touch()
    (tmp_path / f"out/.scratch-b@example.com.{GONE}.tmp").symlink_to(tmp_path / "elsewhere")
    storage.prepare_folder(tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == set(others)
    assert len(list((tmp_path / "out").iterdir())) == len(others)
    assert (tmp_path / "elsewhere/file").exists()


def test_two_scratch_folders_are_two(tmp_path):
    with storage.scratch_folder(tmp_path) as first:
        (first / "file").touch()
        with storage.scratch_folder(tmp_path) as second:
            assert not list(second.iterdir())
        assert (first / "file").exists()
    assert not list(tmp_path.iterdir())
