"""Files are written whole or not at all."""

import json
from pathlib import Path

import pytest

from fire_opd_trl.evaluation.files import write_json, write_whole


def test_a_file_and_its_folder_are_made_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "old")
    original = Path.write_text

    def half(self, text, **kwargs):
        original(self, text[: len(text) // 2], **kwargs)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "a newer one")
    assert path.read_text() == "old"


def test_a_path_that_is_a_folder_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
