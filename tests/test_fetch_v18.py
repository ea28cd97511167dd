"""The original's own files, release v1.8: fetched from a local repository in place of the public one, and read."""

import subprocess

import numpy as np
import pytest
from conftest import SHARED, needs_shared

import utils
from deepmi import curriculum, storage
from deepmi.metric import read_metric
from deepmi.process import UserError
from tools import fetch_v18

UPSTREAM = SHARED / "upstream_v1.8"
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
    """(a repository, its first commit); its newest commit changes a file."""
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


def test_files_of_the_pinned_commit_come_to_their_places(remote, tmp_path, monkeypatch):
    folder, commit = remote
    here = tmp_path / "here"
    for name, expected in BLOBS.items():
        assert git(folder, "rev-parse", f"{commit}:{name}") == expected
    with monkeypatch.context() as patched:  # as if the first run had been killed at its end
        patched.setattr(storage.os, "getpid", lambda: 2**22 + 1)  # no process can have this number
        patched.setattr(storage.shutil, "rmtree", lambda *_, **__: None)
        files = fetch_v18.fetch(folder.as_uri(), commit, BLOBS, here)
    names = ["NormTerm/v1.8/act_norm_means.mat", *list(CONTENT)[1:]]
    assert [file.relative_to(here).as_posix() for file in files] == names
    assert [file.read_bytes() for file in files] == list(CONTENT.values())
    assert fetch_v18.fetch("file:///gone", commit, BLOBS, here) == files  # complete: no repository is needed
    files[0].unlink()
    assert list(here.glob(".*.tmp/clone/HEAD"))
    fetch_v18.fetch(folder.as_uri(), commit, BLOBS, here)
    assert len([path for path in here.rglob("*") if path.is_file()]) == 3 and not list(here.glob(".*"))


def test_what_differs_or_is_missing_is_refused_and_nothing_is_written(remote, tmp_path, bench):
    folder, commit = remote
    here, newest = folder.as_uri(), git(folder, "rev-parse", "HEAD")
    for url, wanted, blobs, words in (
        (here, newest, BLOBS, r"act_norm_means\.mat is not the published file"),
        (here, commit, {**BLOBS, "NormTerm/none.mat": "0" * 40}, r"none\.mat"),
        (here, "0" * 40, BLOBS, "git: .*--url"),
        ("file:///no/such/repository", commit, BLOBS, "git: .*--url"),
    ):
        with pytest.raises(UserError, match=f"{words}.*othing was written"):
            fetch_v18.fetch(url, wanted, blobs, tmp_path / "here")
    assert not list((tmp_path / "here").iterdir())
    bench.refuses(bench.run("tools.fetch_v18", "--url", "file:///no/such/repository"), "--url")


@needs_shared
def test_known_blob_ids_are_those_of_the_published_files():
    for name, expected in fetch_v18.BLOBS.items():
        if not name.startswith("trained"):
            assert fetch_v18.blob_id((UPSTREAM / name).read_bytes()) == expected


@needs_shared
def test_published_norm_terms_load():
    mean, std = utils.read_feature_norm(UPSTREAM / "NormTerm")
    assert mean.shape == std.shape == (6373,)
    assert mean.max() > 1e12 and np.flatnonzero(std == 0).tolist() == [3874]
    for attribute, expected in {"Act": (4.4434, 0.8784), "Dom": (4.5535, 0.7215), "Val": (4.1504, 0.8447)}.items():
        assert np.allclose(utils.read_label_norm(UPSTREAM / "NormTerm", attribute), expected, atol=6e-5)


@needs_shared
@pytest.mark.parametrize(
    ("attribute", "distinct", "total"), [("Act", 176, 109.227), ("Dom", 172, 67.745), ("Val", 319, 134.044)]
)
def test_a_published_metric_loads_and_orders_a_curriculum(attribute, distinct, total):
    metric = read_metric(utils.metric_file(UPSTREAM / "curriculum_metric_v1.8", 50, attribute))
    assert len(metric) == 44879 and len(set(metric.values())) == distinct
    assert round(sum(metric.values()), 3) == total
    assert sum(name.count("_") == 3 for name in metric) == 12845  # MSP-PODCAST_dddd_dddd_dddd.wav
    names = sorted(metric)
    values = curriculum.match_metric(metric, names, "v1.8")
    order = curriculum.training_order("deepmi", names, values, 31)
    assert values[order[0]] == max(metric.values()) and (np.diff(values[order]) <= 0).all()
