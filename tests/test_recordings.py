"""Which recordings a folder has, and which of them a table means."""

import unicodedata

import pytest

from deepmi.process import UserError
from tools import recordings as tool


@pytest.fixture
def folder(tmp_path):
    """Makes empty recordings below a folder, which it returns."""

    def make(*names):
        for name in names:
            path = tmp_path / "clips" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return tmp_path / "clips"

    return make


def found(clips, *entries):
    """What each entry of a table means, relative to the folder; None where nothing."""
    paths = tool.Recordings(clips).find_all(entries)
    return [path and path.relative_to(clips).as_posix() for path in paths]


@pytest.mark.parametrize(
    "entry",
    ["s1/a.wav", "/old/disk/clips/s1/a.wav", r"C:\data\s1\a.wav", r"data\s1\a.wav", "../clips/s1/a.wav", "./s1//a.wav",
     "s1/wav/a.wav", "clips/s1/a.wav", "s1/a", "s1/a.mp4", "S1/A.WAV", "s1/a.flac", "file:///old/s1/a.wav"],
)  # fmt: skip
def test_folders_of_an_entry_lead_to_the_recording(folder, entry):
    clips = folder("s1/a.wav", "s2/a.wav")
    assert found(clips, entry, "s2/a.wav") == ["s1/a.wav", "s2/a.wav"]


@pytest.mark.parametrize(
    ("entry", "there"),
    [("s1/a.wav", "s2/a.wav"), ("/old/s1/a.wav", "s2/a.wav"), (r"data\s1\a.wav", "s2/a.wav"),
     ("s1/wav/a.wav", "s2/wav/a.wav"), ("fr/s1/a.wav", "en/s1/a.wav"), ("s1/a.mp4", "s2/a.wav"),
     ("s1/a.wav", "S2/A.WAV"), ("session1/s1/a.wav", "session1/s2/a.wav")],
)  # fmt: skip
def test_a_recording_in_another_folder_is_never_taken(folder, entry, there):
    assert found(folder(there), entry) == [None]


def test_an_unknown_folder_is_passed_over_where_the_name_is_unique(folder):
    clips = folder("a.wav", "s1/b.wav")
    assert found(clips, "s1/a.wav", "wav/a.wav") == [None, "a.wav"]
    folder("s1/a.wav")
    assert found(clips, "s2/a.wav", "s2/b.wav") == [None, None]


def test_the_audio_folder_may_be_one_that_the_entries_name(folder, capsys):
    clips = folder("s1/a.wav", "s1/b.wav", "s2/a.wav")
    assert found(clips / "s1", "s1/a.wav", "s2/b.wav") == ["a.wav", None]
    assert found(clips / "s1", "a.wav") == ["a.wav"] and not capsys.readouterr().err
    assert found(clips / "s1", "s2/a.wav") == ["a.wav"]
    assert "1 row " in capsys.readouterr().err  # with a folder beside the audio folder


def test_folders_between_may_be_missing_in_the_table(folder):
    clips = folder("Session1/sentences/wav/x/x_1.wav", "Session2/sentences/wav/y/y_1.wav")
    assert found(clips, "Session1/x_1.wav", "y_1.wav", "x/y_1.wav") == [
        "Session1/sentences/wav/x/x_1.wav", "Session2/sentences/wav/y/y_1.wav", None,
    ]  # fmt: skip


def test_what_could_be_two_recordings_is_refused(folder):
    clips = folder("s1/a.wav", "s2/a.wav", "s3/b.wav", "s3/B.wav")
    for entry in ("a.wav", "a", "A.mp4"):
        with pytest.raises(UserError, match="with their folders"):
            found(clips, entry)
    assert found(clips, "s3/b.wav", "s3/B.wav") == ["s3/b.wav", "s3/B.wav"]


def test_the_case_of_an_ending_does_not_matter_and_a_dot_in_a_name_is_no_ending(folder):
    clips = folder("s1/a.WAV", "s2/a.WAV", "s2/A b.Wav", "a.b.wav", "v.mp4.wav")
    entries = ("s1/a.wav", "s2/a.wav", "s2/A b.wav", "A%20b.wav", "a.b", "v.mp4", "a.c", "v.avi")
    assert found(clips, *entries) == [
        "s1/a.WAV", "s2/a.WAV", "s2/A b.Wav", "s2/A b.Wav", "a.b.wav", "v.mp4.wav", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_have_two_forms_and_are_the_same(folder, form):
    name = "Müller/été.wav"
    clips = folder(unicodedata.normalize(form, name))
    for other in ("NFC", "NFD"):
        assert found(clips, unicodedata.normalize(other, name)) == [unicodedata.normalize(form, name)]


def test_links_are_followed_and_loops_end(folder, tmp_path, capsys):
    clips, disk = folder("s1/a.wav"), tmp_path / "disk"
    disk.mkdir()
    (disk / "b.wav").write_text("b")
    (clips / "s2").symlink_to(disk)
    (disk / "loop").symlink_to(clips)
    (clips / "again").symlink_to(clips / "s1")
    (clips / "s3").symlink_to(tmp_path / "away")
    (clips / "self.wav").symlink_to("self.wav")
    (tmp_path / "linked").symlink_to(clips)
    for root in (clips, tmp_path / "linked"):
        assert tool.list_recordings(root) == [root / "s1/a.wav", root / "s2/b.wav"]
        told = capsys.readouterr().err
        assert "2 paths" in told and "s3" in told and "self.wav" in told


def test_hidden_files_and_folders_are_passed_over(folder, tmp_path):
    clips = folder("a.wav", ".b.wav", ".ipynb_checkpoints/c.wav", "s1/.Trash-1000/d.wav", "__MACOSX/s1/._a.wav")
    assert tool.list_recordings(clips) == [clips / "a.wav"]
    clips.rename(tmp_path / ".clips")
    assert tool.list_recordings(tmp_path / ".clips") == [tmp_path / ".clips/a.wav"]


def test_a_file_and_a_link_to_it_share_a_feature_file(folder):
    clips = folder("all/a.wav", "all/b.wav", "part/c.wav")
    (clips / "part/a.wav").symlink_to(clips / "all/a.wav")
    assert [path.name for path in tool.find_recordings(clips)] == ["a.wav", "b.wav", "c.wav"]
    (clips / "part/b.wav").symlink_to(clips / "all/a.wav")
    with pytest.raises(UserError, match="share the feature file"):
        tool.find_recordings(clips)
