"""The source that a run was started from: its commit, and a patch that gives back what was not committed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tokendial import identity


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tokendial outside any checkout, whatever these tests run in."""
    monkeypatch.setattr(identity, "__file__", str(tmp_path / "identity.py"))


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def checkout(folder: Path, **files: str) -> Path:
    """A repository with files committed, each called NAME.py."""
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_the_patch_gives_back_edits_and_new_python_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = checkout(tmp_path / "mine", old="rate = 1\n")
    git(repository, "config", "color.ui", "always")
    git(repository, "config", "diff.external", "false")
    written = {
        "old.py": "rate = 2\n", "new.py": "a = 1\n\nb = 2\n", "inside/end.py": "no newline at its end",
        "inside/__init__.py": "",
    }  # fmt: skip
    for name, text in written.items():
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text(text)
    # Not source: data, an editor's lock, and the model code of a run that was trained here.
    (repository / "data.bin").write_bytes(b"0")
    (repository / ".#new.py").symlink_to("somebody@here")
    monkeypatch.setenv("TOKENDIAL_HOME", str(repository / "runs"))
    (repository / "runs").mkdir()
    (repository / "runs" / "model.py").write_text("x = 1\n")

    who = identity.capture(repository / "inside")
    assert who.commit == git(repository, "rev-parse", "HEAD").strip()
    assert who.dirty
    git(tmp_path, "clone", "-q", str(repository), "again")
    (tmp_path / "patch").write_text(who.diff)
    git(tmp_path / "again", "apply", "../patch")
    found = {path.relative_to(tmp_path / "again").as_posix(): path for path in (tmp_path / "again").rglob("*.py")}
    assert {name: path.read_text() for name, path in found.items()} == written


def test_a_new_file_alone_is_an_uncommitted_change(tmp_path: Path) -> None:
    repository = checkout(tmp_path / "mine", old="")
    assert not identity.capture(repository).dirty
    (repository / "mine.py").write_text("def short(): ...\n")
    assert "+def short(): ..." in identity.capture(repository).diff


def test_edits_of_tokendial_in_a_checkout_of_its_own_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, own = checkout(tmp_path / "mine", a=""), checkout(tmp_path / "own", identity="x = 1\n", other="")
    (own / "other.py").write_text("edited = True\n")
    monkeypatch.setattr(identity, "__file__", str(own / "identity.py"))
    head = git(own, "rev-parse", "HEAD")
    assert identity.capture(mine).diff.startswith(f"# tokendial itself, at {head}diff --git a/other.py b/other.py\n")
    assert "+edited = True" in identity.capture(mine).diff
    assert identity.capture(own).diff.count("+edited = True") == 1
    # Installed beneath a checkout that knows nothing of it.
    monkeypatch.setattr(identity, "__file__", str(own / "installed.py"))
    (own / "installed.py").touch()
    assert identity.capture(mine).diff == ""
