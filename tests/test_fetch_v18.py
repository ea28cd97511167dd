"""Fetching the published files from a local repository that stands in for the public one."""

import subprocess

import pytest

from deepmi import storage
from deepmi.process import UserError
from tools import fetch_v18

CONTENT = {
    "NormTerm/act_norm_means.mat": b"norm term\r\nwith a Windows line end",
    "curriculum_metric_v1.8/DeepMI_50clusters@_Act.json": b'{"a.wav": 0.1}',
    "trained_SSLmodels_v1.8/weights.pth.tar": bytes(range(256)) * 40,
}


def git(folder, *argv):
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.autocrlf=false"]
    done = subprocess.run(["git", *identity, "-C", folder, *argv], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def remote(tmp_path):
    """A repository with the files at its first commit, others at its newest."""
    folder = tmp_path / "remote"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "config", "uploadpack.allowFilter", "true")
    for name, content in {**CONTENT, "big_and_unwanted/file": b"x" * 1000}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "the pinned one")
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "NormTerm/act_norm_means.mat").write_bytes(b"newer, and not the published one")
    git(folder, "commit", "-qam", "newer")
    return folder, commit


BLOBS = {name: fetch_v18.blob_id(content) for name, content in CONTENT.items()}


def test_blob_ids_are_gits(remote):
    folder, commit = remote
    for name, expected in BLOBS.items():
        assert git(folder, "rev-parse", f"{commit}:{name}") == expected


def test_files_of_the_pinned_commit_come_to_their_places(remote, tmp_path):
    folder, commit = remote
    files = fetch_v18.fetch(folder.as_uri(), commit, BLOBS, tmp_path / "here")
    assert [str(file.relative_to(tmp_path / "here")) for file in files] == [
        "NormTerm/v1.8/act_norm_means.mat",
        "curriculum_metric_v1.8/DeepMI_50clusters@_Act.json",
        "trained_SSLmodels_v1.8/weights.pth.tar",
    ]
    assert [file.read_bytes() for file in files] == list(CONTENT.values())
    assert len([path for path in (tmp_path / "here").rglob("*") if path.is_file()]) == 3


def test_files_that_are_there_already_need_no_network(remote, tmp_path):
    folder, commit = remote
    fetch_v18.fetch(folder.as_uri(), commit, BLOBS, tmp_path / "here")
    assert len(fetch_v18.fetch("file:///gone", commit, BLOBS, tmp_path / "here")) == 3


def test_what_a_killed_run_left_goes_with_the_next(remote, tmp_path, monkeypatch):
    folder, commit = remote
    with monkeypatch.context() as patched:
        patched.setattr(storage.os, "getpid", lambda: 2**22 + 1)  # of a process that there can't be
        patched.setattr(storage.shutil, "rmtree", lambda *_, **__: None)
        fetch_v18.fetch(folder.as_uri(), commit, BLOBS, tmp_path / "here")
    (tmp_path / "here/NormTerm/v1.8/act_norm_means.mat").unlink()
    assert list((tmp_path / "here").glob(".*.tmp/clone/.git"))
    fetch_v18.fetch(folder.as_uri(), commit, BLOBS, tmp_path / "here")
    assert not list((tmp_path / "here").glob(".*"))


def test_a_tampered_file_is_refused_and_nothing_is_written(remote, tmp_path):
    folder, _ = remote
    newest = git(folder, "rev-parse", "HEAD")
    with pytest.raises(UserError, match=r"act_norm_means\.mat is not the published file.*nothing was written"):
        fetch_v18.fetch(folder.as_uri(), newest, BLOBS, tmp_path / "here")
    assert not list((tmp_path / "here").iterdir())


def test_a_missing_file_a_missing_commit_and_a_missing_repository_are_refused(remote, tmp_path):
    folder, commit = remote
    with pytest.raises(UserError, match="not there at commit"):
        fetch_v18.fetch(folder.as_uri(), commit, {**BLOBS, "NormTerm/none.mat": "0" * 40}, tmp_path / "here")
    with pytest.raises(UserError, match=r"^git checkout: "):
        fetch_v18.fetch(folder.as_uri(), "0" * 40, BLOBS, tmp_path / "here")
    with pytest.raises(UserError, match="git clone"):
        fetch_v18.fetch("file:///no/such/repository", commit, BLOBS, tmp_path / "here")
    assert not list((tmp_path / "here").iterdir())


def test_the_three_folders_are_asked_for():
    folders = {str(fetch_v18.local_path(name).parent) for name in fetch_v18.BLOBS}
    assert folders == {"NormTerm/v1.8", "curriculum_metric_v1.8", "trained_SSLmodels_v1.8"}
    assert len(fetch_v18.BLOBS) == 14 and len(fetch_v18.COMMIT) == 40
