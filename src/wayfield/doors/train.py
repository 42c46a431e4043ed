"""`wayfield train`: from a config, or from a folder of pictures alone, to a model; the same command goes on.

    CONFIG.json          as `train.run` reads it; --data, --steps, --batch, --seed and --size take the place of its own
    --data alone         a config is made for the data (`train.defaults`) and written to OUT/config.json

A folder's pictures are decoded once into OUT/pictures.cache. Under a launcher process 0 does that, prints and writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch

from wayfield import files
from wayfield.core.errors import CheckpointError, UnsupportedError
from wayfield.data.dataset import DATASETS, Dataset, load_dataset
from wayfield.doors.board import BOARD, Board
from wayfield.doors.console import DONE, asked, console, emit, emit_paths, interactive
from wayfield.doors.draw import find_device, main_process, prepare_launch
from wayfield.doors.watching import Watching
from wayfield.train.defaults import default_config, folder_spec, survey
from wayfield.train.engine import processes, start_engine
from wayfield.train.loop import Fit
from wayfield.train.run import MODEL, train

if TYPE_CHECKING:
    from wayfield.doors.commands import Train

__all__ = ["CACHE", "CONFIG", "run"]

CONFIG, CACHE = "config.json", "pictures.cache"


def run(asks: Train) -> int:
    """Run the command and return its exit code."""
    prepare_launch(asks.device)
    speaks = main_process()
    shows = interactive() and speaks
    say = console()
    with asked():
        if asks.device is not None:
            find_device(asks.device)
        config = _config(asks)
        board = Board(asks.out / BOARD) if asks.tensorboard and speaks else None
        tell = (lambda text: say.print(text, soft_wrap=True, markup=False)) if speaks else lambda text: None
        watch = Watching(asks.out, tell, lines=not shows, board=board)
        try:
            result = train(
                config,
                asks.out,
                resume=asks.resume,
                progress=shows,
                device=asks.device,
                log=watch.line if speaks else None,
                watch=watch,
            )
        finally:
            watch.close()
    if speaks:
        _finish(asks, result)
    return DONE


def _finish(asks: Train, result: Fit) -> None:
    path = asks.out / MODEL
    console().print(f"step {result.step}, loss {result.loss:.4f}, {result.seconds:.1f} s; wrote {path}", soft_wrap=True)
    outcome = {"model": str(path), "step": result.step, "loss": result.loss, "seconds": round(result.seconds, 2)}
    emit(outcome) if asks.json else emit_paths([path])


def _config(asks: Train) -> Any:
    """What to train. Raises UnsupportedError for options that do not go together or are missing."""
    if asks.config is None and asks.data is None:
        remedy = "Give a config, or --data with a folder of pictures or the name of a dataset."
        raise UnsupportedError("what to train", got="no config, no --data", expected="one of them", remedy=remedy)
    if asks.config is None:
        return _made(asks)
    if asks.net is not None:
        remedy = "Leave out --net, or the config."
        raise UnsupportedError("--net", got="a config", expected="a config or --net", remedy=remedy)
    config = files.read_json(asks.config)
    if not isinstance(config, Mapping):
        return config  # `train` says what is wrong with it
    if asks.data is not None:
        own = config.get("data")
        config = {**config, "data": _data(asks, own["size"] if isinstance(own, Mapping) and "size" in own else None)}
    elif asks.size is not None or asks.corrupt is not None:
        remedy = "Add --data FOLDER, or change the data in the config."
        got = "--size or --corrupt without --data"
        raise UnsupportedError("options of a folder", got=got, expected="--data", remedy=remedy)
    if not asks.labels:
        config = {**config, "conditions": []}
    if processes() > 1 and isinstance(config.get("data"), Mapping):
        _opened(asks, config["data"])
    return _with_numbers(asks, config)


def _made(asks: Train) -> dict[str, Any]:
    """The config for data alone, kept in the folder of the run."""
    data = _data(asks, None)
    dataset = _opened(asks, data)
    gpu = _device(asks).type == "cuda"
    made = default_config(data, dataset, net=asks.net or "unet", labels=asks.labels, gpu=gpu)
    config = _with_numbers(asks, made)
    path = asks.out / CONFIG
    if asks.resume and path.exists() and (kept := files.read_json(path)) != config:
        differ = sorted(k for k in {**kept, **config} if kept.get(k) != config.get(k))
        remedy = f"Go on with `wayfield train {path} --out {asks.out}`, give another --out, or --no-resume."
        got = f"other settings: {', '.join(differ)}"
        raise CheckpointError(f"file {os.fspath(path)!r}", got=got, expected="those of this command", remedy=remedy)
    if main_process():
        files.write_json(path, config)
    return config


def _data(asks: Train, size: int | None) -> str | dict[str, Any]:
    """The `data` of a config: a name, or a folder with its options. size: unless another is asked for."""
    assert asks.data is not None
    if asks.data in DATASETS or not FilePath(asks.data).exists():
        if asks.size is not None or asks.corrupt is not None:
            got, remedy = f"--data {asks.data}", "Leave --size and --corrupt out, or give a folder of pictures."
            raise UnsupportedError("options of a folder", got=got, expected="a folder", remedy=remedy)
        return asks.data  # loading it says what is wrong with it
    if asks.out.resolve().is_relative_to(FilePath(asks.data).resolve()):
        got, remedy = f"--out {asks.out} inside --data {asks.data}", "Give an --out elsewhere."
        expected = "a folder of its own: its sheets would be taken for pictures"
        raise UnsupportedError("--out", got=got, expected=expected, remedy=remedy)
    corrupt = asks.corrupt or "raise"
    found = survey(asks.data, corrupt=corrupt)
    cache = asks.out / CACHE
    return folder_spec(asks.data, found, size=asks.size or size, labels=asks.labels, corrupt=corrupt, cache=cache)


def _with_numbers(asks: Train, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the numbers that were asked for."""
    given = {name: getattr(asks, name) for name in ("steps", "batch", "seed") if getattr(asks, name) is not None}
    return {**config, "train": {**config.get("train", {}), **given}} if given else dict(config)


def _opened(asks: Train, data: Any) -> Dataset:
    """The dataset. Under a launcher the main process goes first: the pictures that it decodes, the others find."""
    engine = start_engine(_device(asks))
    if not engine.main:
        engine.wait()
    dataset = load_dataset(data)
    if engine.main:
        engine.wait()
    return dataset


def _device(asks: Train) -> torch.device:
    return torch.device(asks.device or ("cuda" if torch.cuda.is_available() else "cpu"))
