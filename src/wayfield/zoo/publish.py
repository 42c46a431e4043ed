"""How a trained model joins the zoo: store it in 16 bits, judge what is stored, write its card and a sheet of samples.

    wayfield train src/wayfield/zoo/configs/digits.json --out runs/digits
    python -m wayfield.zoo.publish digits runs/digits [--again runs/digits-1] [--images docs/images/zoo]

The run must be of configs/NAME.json. Weights are rounded to float16, which changes what the network says by less than
one hundredth or is refused; `--float32` keeps them as they are. NAME.safetensors and NAME.json, the card, go into the
zoo's folder, the sheet to IMAGES/NAME.png. `--again` names a second run of the same config with another seed: its
figures go into the card too, so that one can see how much of a figure is chance. A run that started from another needs
that one beside it. `zoo.entries` says which judge a model gets; without a run only the words of the card are taken from
there anew.

Judges first: "scenes-reader" and "fashion-judge" before what they judge, and an autoencoder before its latents are
learned from, because a model of latents remembers the hash of the codec that ships.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from wayfield import files, plots
from wayfield.core.errors import CheckpointError, RangeError, UnsupportedError
from wayfield.data import load_dataset
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.train.kinds import DENOISER, kind_of, recorded_kind
from wayfield.train.prepare import NOISE_SETTINGS
from wayfield.train.run import MODEL
from wayfield.train.spec import config_from, config_spec
from wayfield.zoo.entries import entry
from wayfield.zoo.judging import Judged, Sheet
from wayfield.zoo.judging.drawing import draw

__all__ = ["publish", "retell", "rounding", "sheet_of"]

ZOO = FilePath(__file__).parent
IMAGES = ZOO.parents[2] / "docs" / "images" / "zoo"
LARGEST_CHANGE = 0.01
"""How much rounding the weights may change a network's answers, as a part of their size."""

_FONT = 13

Weights = Mapping[str, Tensor]


def publish(
    name: str,
    run: FilePath,
    *,
    again: FilePath | None = None,
    folder: FilePath = ZOO,
    images: FilePath = IMAGES,
    half: bool = True,
) -> dict[str, Any]:
    """Judge RUN/model.safetensors and write it, its card and its sheet; returns the card.

    name: of `zoo.entries` / run: folder of the training / again: folder of the same training from another seed /
    folder, images: where to write / half: store float16. Raises UnknownNameError, CheckpointError for a run of another
    config or that cannot be read, RangeError where float16 changes the model too much, and what its judge raises.
    """
    about, (tensors, record) = entry(name), _read(name, run)
    earlier, stored = _earlier(run, record["config"]), _rounded(tensors) if half else dict(tensors)
    changed = rounding(name, record, tensors, stored) if half else None
    judged = _judge(name, record, stored)
    train = record["config"]["train"]
    card: dict[str, Any] = {
        "name": name,
        "about": about.about,
        "data": f"{about.data}; split {record['config']['data']}",
        "command": _command(name, record["config"]),
        "seed": train.get("seed", 0),
        "training": record["figures"],
        "stored": {"dtype": "float16" if half else "float32", "change": changed},
        "settings": dict(judged.settings),
        "figures": {key: figure.to_json() for key, figure in judged.figures.items()},
        "tables": [table.to_json() for table in judged.tables],
        "limits": about.limits,
        "licence": "Apache-2.0",
        "sha256": files.digest(stored, ""),
    }
    if earlier:
        card["earlier"] = earlier
    if again is not None:
        card["other_seed"] = _other(name, again, half, train.get("seed", 0))
    files.write(folder / f"{name}.safetensors", stored, record)
    files.write_json(folder / f"{name}.json", card)
    if judged.sheet is not None:
        plots.save(images / f"{name}.png", sheet_of(judged.sheet))
    return card


def retell(name: str, *, folder: FilePath = ZOO) -> dict[str, Any]:
    """Take the words of a card from `zoo.entries` anew; nothing is judged. Returns the card.

    Raises UnknownNameError, CheckpointError for a model without a card.
    """
    about, card = entry(name), files.read_json(folder / f"{name}.json")
    _, split = card["data"].rsplit("; split ", 1)
    card |= {"about": about.about, "data": f"{about.data}; split {split}", "limits": about.limits}
    files.write_json(folder / f"{name}.json", card)
    return card


def rounding(name: str, record: Mapping[str, Any], before: Weights, after: Weights) -> float:
    """How much the answers of a model change with its weights: root mean square of the change over that of the answers.

    Of 64 pictures of its data; of a denoiser, of 16 samples in 8 steps without guidance, from the same noise. Raises
    RangeError above `LARGEST_CHANGE`.
    """
    answers = [_answers(record, recorded_kind(name, record).rebuild(record, weights)) for weights in (before, after)]
    change = float(((answers[1] - answers[0]).square().mean() / answers[0].square().mean()).sqrt())
    if not change <= LARGEST_CHANGE:
        remedy = "Store float32: --float32."
        raise RangeError(f"{name} in float16", got=change, expected=f"a change <= {LARGEST_CHANGE}", remedy=remedy)
    return round(change, 6)


def sheet_of(sheet: Sheet) -> Any:
    """The drawing of a sheet, with what was asked for left of each row."""
    labels = plots.Labels(rows=[(row, "") for row in sheet.rows])
    return plots.sheet(sheet.pictures, columns=sheet.columns, scale=sheet.scale, font=_FONT, labels=labels)


def _answers(record: Mapping[str, Any], model: Any) -> Tensor:
    if isinstance(model, Denoiser):
        null = dict(model.schema.bind_null(16, "cpu"))
        return draw(model, null, steps=8)
    data = load_dataset(record["config"]["data"])
    x, _ = data.batch(torch.arange(64) * len(data) // 64)
    with torch.no_grad():
        return model.decode(model.encode(x)) if isinstance(model, LatentCodec) else model(x)


def _rounded(tensors: Weights) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}


def _judge(name: str, record: Mapping[str, Any], stored: Weights) -> Judged:
    """The figures of the model in the file that ships."""
    module, _, function = entry(name).judge.partition(":")
    judge = getattr(importlib.import_module(f"wayfield.zoo.judging.{module}"), function)
    return judge(recorded_kind(name, record).rebuild(record, stored), name)


def _other(name: str, run: FilePath, half: bool, seed: int) -> dict[str, Any]:
    """Seed and figures of the second run."""
    tensors, record = _read(name, run)
    other = record["config"]["train"].get("seed", 0)
    if other == seed:
        remedy = f"Train with --seed {seed + 1}."
        raise UnsupportedError("second run", got=f"seed {other}", expected="another seed", remedy=remedy)
    judged = _judge(name, record, _rounded(tensors) if half else tensors)
    return {"seed": other, "figures": {key: figure.to_json()["value"] for key, figure in judged.figures.items()}}


def _command(name: str, config: Mapping[str, Any]) -> str:
    """What repeats the training, and first that of the model it started from."""
    train, stage = f"wayfield train src/wayfield/zoo/configs/{name}.json", _stage(config)
    if stage is None:
        return train
    before = _command(stage.name, files.read_json(ZOO / "configs" / f"{stage.name}.json"))
    return f"{before} --out {stage} && {train}"


def _earlier(run: FilePath, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was trained before, if a run started from the weights of another: config and figures, first to last.

    That other run is looked for beside this one, under the name of its config. Raises CheckpointError as `_read`.
    """
    stage = _stage(config)
    if stage is None:
        return []
    before = run.parent / stage.name
    _, record = _read(stage.name, before)
    return [*_earlier(before, record["config"]), {"config": stage.name, **record["figures"]}]


def _stage(config: Mapping[str, Any]) -> FilePath | None:
    """The folder of the run that a config starts from, which has the name of its config; None for a model by name."""
    start = config.get("start")
    return FilePath(start).parent if start is not None and start.endswith(MODEL) else None


def _read(name: str, run: FilePath) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and record of a run of configs/NAME.json, with any seed. Raises CheckpointError for another."""
    tensors, record = files.read(run / MODEL)
    expected = files.read_json(ZOO / "configs" / f"{name}.json")
    if _plain(record["config"]) != _plain(expected):
        got, remedy = "a run of another config", f"Train with src/wayfield/zoo/configs/{name}.json."
        raise CheckpointError(f"run {str(run)!r}", got=got, expected=f"configs/{name}.json", remedy=remedy)
    if "file" in record.get("codec", {}):
        remedy = "Publish the autoencoder, and train with its name as the codec."
        raise CheckpointError(f"run {str(run)!r}", got="a codec of its own", expected="one of the zoo", remedy=remedy)
    return tensors, record


def _plain(config: Mapping[str, Any]) -> str:
    """A config as text, with all settings of its training but the seed and those that do not touch its numbers."""
    settings = config_spec(config_from(config.get("train", {})))
    free = ("seed", "log_every", "save_every", "snapshot_every", "sample_every")
    unused = () if kind_of(config) is DENOISER else NOISE_SETTINGS
    train = {key: value for key, value in settings.items() if key not in (*free, *unused)}
    return json.dumps({**config, "train": train}, sort_keys=True)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m wayfield.zoo.publish", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help="of zoo.entries")
    parser.add_argument("run", type=FilePath, nargs="?", help="folder that wayfield train wrote; none: words only")
    parser.add_argument("--again", type=FilePath, help="folder of the same training from another seed")
    parser.add_argument("--images", type=FilePath, default=IMAGES, help="where the sheet goes")
    parser.add_argument("--float32", action="store_true", help="do not round the weights")
    asked = parser.parse_args()
    if asked.run is None:
        card = retell(asked.name)
    else:
        card = publish(asked.name, asked.run, again=asked.again, images=asked.images, half=not asked.float32)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    _main()
