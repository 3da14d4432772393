"""Files are whole or not there."""

from pathlib import Path

import pytest

from ppl_vae import files


def test_new_folders_and_files_reach_the_disk_before_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "_sync", synced.append)
    files.write_text(tmp_path / "a" / "b" / "file", "")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
