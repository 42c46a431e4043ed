"""How a trained model joins the zoo: judge it, copy its file, write its card.

    wayfield train src/wayfield/zoo/configs/digits.json --out runs/digits
    python -m wayfield.zoo.publish digits runs/digits

Denoisers of digits are judged by 2,000 samples (DPM-Solver++ 2M, 20 steps, no guidance, seed 0): Frechet distance of
pixels to all real digits, accuracy of a support vector machine on the class asked for, and mean distance to the nearest
training picture against that of held-out pictures (below 1: closer to the training set than real digits are).
Classifiers by their accuracy on held-out pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from wayfield import files
from wayfield.core import grid as grids
from wayfield.data.digits import digits, svm
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import Classifier
from wayfield.measure import accuracy, frechet_distance
from wayfield.sampling import sample
from wayfield.solve import DPM2M
from wayfield.train.run import MODEL
from wayfield.zoo import load_file

__all__ = ["publish"]

ABOUT = {
    "digits": "Class-conditional denoiser of 8x8 handwritten digits; label 10 means no condition.",
    "digits-weak": "A deliberately weaker twin of digits: smaller and trained for less. The bad model of autoguidance.",
    "digits-classifier": "Classifier of clean 8x8 handwritten digits; its features serve as a space for distances.",
}


def publish(name: str, run: FilePath, folder: FilePath) -> dict[str, Any]:
    """Copy RUN/model.safetensors to FOLDER/name.safetensors and write its card beside it; returns the card."""
    tensors, record = files.read(run / MODEL)
    model = load_file(str(run / MODEL))
    judged = _denoiser_figures(model) if isinstance(model, Denoiser) else _classifier_figures(model)
    train = record["config"]["train"]
    card = {
        "name": name,
        "about": ABOUT[name],
        "data": "UCI digits as shipped in scikit-learn, BSD-3-Clause; split " + record["config"]["data"],
        "command": f"wayfield train src/wayfield/zoo/configs/{name}.json",
        "seed": train.get("seed", 0),
        "training": record["figures"],
        "figures": judged,
        "licence": "Apache-2.0",
        "sha256": files.digest(tensors, ""),
    }
    files.write(folder / f"{name}.safetensors", tensors, record)
    files.write_json(folder / f"{name}.json", card)
    return card


def _denoiser_figures(model: Denoiser) -> dict[str, float]:
    real, train, test = (digits(split).x.flatten(1) for split in ("all", "train", "test"))
    labels = torch.arange(2000) % 10
    grid = grids.karras(model.path, 20, sigma_min=0.02, sigma_max=10.0)
    x = sample(model, grid, samples=2000, cond={"label": labels}, solver=DPM2M()).x.flatten(1)
    right = (svm()(x) == labels).double().mean()
    return {
        "frechet_distance_pixels": round(frechet_distance(real, x), 4),
        "frechet_distance_pixels_train_to_test": round(frechet_distance(train, test), 4),
        "svm_accuracy": round(float(right), 4),
        "nearest_training_picture_ratio": round(_nearest(x, train) / _nearest(test, train), 4),
    }


def _classifier_figures(net: Classifier) -> dict[str, float]:
    held_out = digits("test")
    return {"test_accuracy": round(float(accuracy(net(held_out.x), held_out.cond["label"])), 4)}


def _nearest(x: Tensor, to: Tensor) -> float:
    return float(torch.cdist(x, to).min(1).values.mean())


if __name__ == "__main__":
    print(publish(sys.argv[1], FilePath(sys.argv[2]), FilePath(__file__).parent))
