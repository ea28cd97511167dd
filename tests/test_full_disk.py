"""Where nothing more can be written: one message, nothing half written, and what was there stays."""

import contextlib
import os
import resource
import sys

import numpy as np
import pytest

import arguments
import runtime
import utils


@contextlib.contextmanager
def files_up_to(size):
    """No file may grow beyond this size meanwhile, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    """Every file below a folder but for the packed features, and its bytes."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "feature_cache" not in path.parts
    }


MORE = {1: ["-ep", 3], 3: ["--no-resume", "-ep", 9], 4: ["--split", "Validation"]}


@pytest.mark.parametrize("size", [0, 300, 4000, 60_000])
@pytest.mark.parametrize("stage", range(5))
def test_a_stage_ends_in_a_message_and_leaves_what_was_there(trained, stage, size):
    if stage == 1:
        (trained.folder / "feature_cache").mkdir()
    before = contents(trained.folder)
    with files_up_to(size):
        result = trained.stage(stage, *MORE.get(stage, []))
    runtime.TrainingRun.release_files()  # as at the end of a process
    if result[0] == 0:
        assert size >= 4000  # this stage's files are small enough
        return
    trained.refuses(result, "error: ")
    assert "File too large" in result[2] or "no room" in result[2], result[2]
    after = contents(trained.folder)
    assert {path: after.get(path) for path in before} == before
    assert not list(trained.folder.rglob(".*"))
    for path in after.keys() - before.keys():  # the first of several outputs, whole
        assert path.suffix in (".tar", ".png", ".json"), path
    assert trained.stage(stage, *MORE.get(stage, []))[0] == 0


def test_the_log_stays_that_of_the_checkpoint_until_there_is_another(trained, monkeypatch):
    log = trained.folder / "Models/SimpleEmoRegressor_DeepMI@_Val.log.jsonl"
    before = log.read_bytes()

    def fails(content, path):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(runtime, "save_tensors", fails)
        trained.refuses(trained.stage(3, "--seed", 5), "No space left")
    assert log.read_bytes() == before
    code, _, err = trained.stage(3, "--seed", 5)
    assert code == 0 and "replaces" in err and log.read_bytes() != before


def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    file = tmp_path / "log.jsonl"
    runtime.append_line(file, "one")
    with files_up_to(7), pytest.raises(OSError, match="File too large") as error:
        runtime.append_line(file, "another line")
    assert error.value.filename == str(file)
    assert file.read_text() == "one\n"
    runtime.append_line(file, "two")
    assert file.read_text() == "one\ntwo\n"


def test_norm_terms_come_together_or_not_at_all(tmp_path):
    old = utils.write_norm_terms(tmp_path, (np.zeros(3), np.ones(3)), {"Val": (4.0, 1.0)}, "setA")
    before = contents(tmp_path)
    assert len(old) == len(before) == 5
    (tmp_path / "act_norm_stds.mat").mkdir()
    new = (np.full(3, 9.0), np.ones(3)), {"Val": (5.0, 1.0), "Act": (4.0, 1.0)}
    with pytest.raises(runtime.UserError, match="act_norm_stds"):
        utils.write_norm_terms(tmp_path, *new)
    assert contents(tmp_path) == before
    (tmp_path / "act_norm_stds.mat").rmdir()
    written = utils.write_norm_terms(tmp_path, *new)
    assert sorted(contents(tmp_path)) == sorted(path.relative_to(tmp_path) for path in written)  # no set is known now
    assert utils.read_label_norm(tmp_path, "Val") == (5.0, 1.0)


def test_a_kill_never_leaves_new_files_beside_old_ones(tmp_path, monkeypatch):
    files = [tmp_path / name for name in "abc"]
    runtime.write_together(dict.fromkeys(files, b"old"))

    class Killed(BaseException):
        pass

    renames = []
    replace = type(tmp_path).replace

    def dies(self, target):
        renames.append(target)
        if len(renames) == 2:
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", dies)
    with pytest.raises(Killed):
        runtime.write_together(dict.fromkeys(files, b"new"))
    assert renames[0] == files[0]
    assert [file.read_bytes() if file.exists() else None for file in files] == [b"new", None, None]


def test_full_standard_output_is_named(trained, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def flush(self):
            pass

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Full())
        with pytest.raises(SystemExit) as leaving:
            arguments.run(lambda args: print("x"), arguments.new_parser(""), [])
    assert leaving.value.code == 2
    assert "standard output: No space left" in trained.capsys.readouterr().err
