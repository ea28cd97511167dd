"""A full disk and temporary files: one message, nothing half written, and existing files stay."""

import contextlib
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Killed, contents, kill

import utils
from deepmi import run_log, storage, tensors
from deepmi.process import UserError


@contextlib.contextmanager
def files_up_to(size):
    """Within the block no file may grow beyond this size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


MORE = {1: ["-ep", 3], 3: ["--no-resume", "-ep", 9], 4: ["--split", "Validation"]}


@pytest.mark.parametrize("size", [0, 4000])
@pytest.mark.parametrize("stage", range(5))
def test_a_stage_ends_in_a_message_and_leaves_what_was_there(trained, stage, size):
    (trained.folder / "feature_cache").mkdir(exist_ok=True)
    before = contents(trained.folder)
    with files_up_to(size):
        result = trained.stage(stage, *MORE.get(stage, []))
    if result[0] == 0:
        assert size and stage in (0, 2, 4)  # their files are small enough
        return
    trained.refuses(result, "error: ")
    assert "File too large" in result[2] or "no room" in result[2], result[2]
    assert "standard output" not in result[2]
    after = contents(trained.folder)
    assert {path: after.get(path) for path in before} == before
    assert all(path.suffix == ".lock" for path in trained.folder.rglob(".*"))  # removed when a process ends
    for path in after.keys() - before.keys():  # the first of several outputs, whole
        assert path.suffix in (".tar", ".png", ".json", ".lock"), path
    trained.runs(stage, *MORE.get(stage, []))


def test_a_run_that_was_replaced_and_not_finished_does_not_pass_for_finished(trained):
    target = trained.regressor
    before = target.read_bytes()
    with files_up_to(2 * len(before)):  # the checkpoint fits, the state does not
        trained.refuses(trained.stage(3, "--seed", 5), ".resume: File too large")
    assert target.read_bytes() != before
    out, _ = trained.runs(3)
    assert "already trained" not in out
    assert target.read_bytes() == before


def test_a_kill_between_checkpoint_and_log_does_not_pass_for_finished(trained, monkeypatch):
    before = trained.regressor.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(run_log.TrainingRun, "_write_log", kill)
        with pytest.raises(Killed):
            trained.stage(3, "--seed", 5)
    assert trained.regressor.read_bytes() != before
    assert "already trained" not in trained.stage(3)[1]
    assert trained.regressor.read_bytes() == before
    assert "already trained" in trained.stage(3)[1]


def test_the_log_stays_that_of_the_checkpoint_until_there_is_another(trained, monkeypatch):
    log = trained.folder / "Models/SimpleEmoRegressor_DeepMI@_Val.log.jsonl"
    before = log.read_bytes()

    def fails(content, path):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(tensors, "save_tensors", fails)
        trained.refuses(trained.stage(3, "--seed", 5), "No space left")
    assert log.read_bytes() == before
    _, err = trained.runs(3, "--seed", 5)
    assert "replaces" in err and log.read_bytes() != before


def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    file = tmp_path / "log.jsonl"
    storage.append_line(file, "one")
    with files_up_to(7), pytest.raises(OSError, match="File too large") as error:
        storage.append_line(file, "another line")
    assert error.value.filename == str(file)
    assert file.read_text() == "one\n"
    storage.append_line(file, "two")
    assert file.read_text() == "one\ntwo\n"


def test_norm_terms_come_together_or_not_at_all(tmp_path):
    old = utils.write_norm_stats(tmp_path, (np.zeros(3), np.ones(3)), {"Val": (4.0, 1.0)}, "setA")
    before = contents(tmp_path)
    assert len(old) == len(before) == 5
    (tmp_path / "act_norm_stds.mat").mkdir()
    new = (np.full(3, 9.0), np.ones(3)), {"Val": (5.0, 1.0), "Act": (4.0, 1.0)}
    with pytest.raises(UserError, match="act_norm_stds"):
        utils.write_norm_stats(tmp_path, *new)
    assert contents(tmp_path) == before
    (tmp_path / "act_norm_stds.mat").rmdir()
    written = utils.write_norm_stats(tmp_path, *new)
    assert sorted(contents(tmp_path)) == sorted(path.relative_to(tmp_path) for path in written)  # no set is known now
    assert utils.read_label_norm(tmp_path, "Val") == (5.0, 1.0)


def test_a_kill_never_leaves_new_files_beside_old_ones(tmp_path, monkeypatch):
    files = [tmp_path / name for name in "abc"]
    storage.write_together(dict.fromkeys(files, b"old"))

    renames = []
    replace = type(tmp_path).replace

    def dies(self, target):
        renames.append(target)
        if len(renames) == 2:
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", dies)
    with pytest.raises(Killed):
        storage.write_together(dict.fromkeys(files, b"new"))
    assert renames[0] == files[0]
    assert [file.read_bytes() if file.exists() else None for file in files] == [b"new", None, None]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_and_closed_standard_output(bench):
    command = [sys.executable, str(ROOT / "norm_para.py"), "--corpus", str(bench.corpus)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=bench.folder, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "norm_para.py: error: standard output: No space left on device.\n")
    script = shlex.join(command) + " >&-"
    done = subprocess.run(script, shell=True, cwd=bench.folder, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


GONE = 2**22 + 1  # no system gives a process such a number


def test_what_killed_runs_left_is_cleared_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.socket, "gethostname", lambda: "example.com")
    left = [f".DeepMI_5clusters@_Val.json@example.com.{GONE}.tmp", f".scratch-a_1@example.com.{GONE}.tmp/clone/file"]
    kept = [
        f".table.csv@www.example.com.{GONE}.tmp",  # of another machine, on a common file system
        f".table.csv@exampleXcom.{GONE}.tmp",
        f".table.csv@example.com.{os.getppid()}.tmp",  # of a running process
        f".scratch-a_1@example.com.{os.getppid()}.tmp/clone/file",
        f".recordings@example.com.{GONE}.tmp/file",  # the program makes no such folder
        f"table.csv@example.com.{GONE}.tmp",
    ]
    for name in left + kept:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"content")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").touch()
    (tmp_path / f"out/.scratch-b@example.com.{GONE}.tmp").symlink_to(tmp_path / "elsewhere")
    storage.prepare_folder(tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == set(kept)
    assert len(list((tmp_path / "out").iterdir())) == len(kept)
    assert (tmp_path / "elsewhere/file").exists()


def test_two_scratch_folders_are_two(tmp_path):
    with storage.scratch_folder(tmp_path) as first:
        (first / "file").touch()
        with storage.scratch_folder(tmp_path) as second:
            assert not list(second.iterdir())
        assert (first / "file").exists()
    assert not list(tmp_path.iterdir())
