r"""Knowledge transfer: experts learn what a clean network would say, from pictures that the generative model draws.

No label and no real picture is needed. The teacher looks at a drawn picture, a student at the same one under noise of
its range, and the student learns the teacher's answer:

.. math:: \tilde x_t = \alpha \tilde x_0 + \sigma \varepsilon, \quad t \in [t_n, t_{n+1}), \qquad
   \min_{\Delta_n}\; E\, \text{loss}\bigl(f_n(\tilde x_t),\, f(\tilde x_0)\bigr)

====================  =======================================================================  =======================
loss                  formula                                                                  what is learned
====================  =======================================================================  =======================
`kt_classification`   KL(softmax(o / tau) || softmax(s)), a sum over classes, a mean over rows  E[softmax(o / tau) | x]
`kt_segmentation`     the same in every pixel, a mean over pixels and rows                      the same per pixel
`kt_regression`       mean of (s - o)^2                                                         E[o | x]
====================  =======================================================================  =======================

o, s: answers of teacher and student / x: noisy points. With tau = 1 and a teacher that knows p(y | x0) the student's
optimum is p(y | x) (the tower property), so that scale 1 is Bayes' rule; tau < 1 makes the teacher surer than it is,
and the student then is not calibrated. The paper takes 0.25, for stronger guidance.

Experts are trained one after another from the clean end, each from the clean network (init="base") or from where the
one before it ended (init="previous", as the paper's code does, which keeps its optimiser too; ours starts anew).
Drawn pictures are held in 8 bits, as files would; teacher and student see them through the same preprocessing.

Reference: Go et al. 2022, arXiv 2212.05973. Its code divides the loss by the number of classes as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.path import Path
from wayfield.judge.experts import Expert, Experts
from wayfield.judge.training import train_judge

__all__ = ["class_shares", "kt_classification", "kt_regression", "kt_segmentation", "pixels", "stored", "transfer"]

Loss = Callable[[Tensor, Tensor], Tensor]
_RARE = 1e-3  # share below which a class is called missing
_INITS = ("base", "previous")
_ROWS = 256


def transfer(
    experts: Experts,
    teacher: Callable[[Tensor], Tensor],
    images: Tensor,
    loss: Loss,
    *,
    path: Path,
    steps: int,
    batch: int = 256,
    lr: float = 1e-4,
    weight_decay: float = 0.05,
    init: Literal["base", "previous"] = "base",
    flip: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> list[list[float]]:
    """Train every expert on its range; the losses of each, by step.

    teacher: clean data (b, *D) -> answers, in evaluation mode / images: uint8 (M, *D), drawn by the generative model,
    see `stored` / loss: (student's, teacher's answers) -> () / path: on whose clock times are uniform in each range /
    steps: of all experts together, shared out equally / lr: falls linearly to 0 for each expert / flip: mirror every
    second picture, along its last axis.
    Warns of classes that less than 0.1 % of the pictures hold, by the teacher. Raises DTypeError, RangeError,
    ShapeError, UnknownNameError, or UnsupportedError for a teacher in training mode, and as `train_judge`.
    """
    n, each = experts.ranges.count, steps // experts.ranges.count
    if init not in _INITS:
        raise unknown_name("start of experts", init, _INITS)
    if each < 1:
        raise RangeError("steps of a transfer", got=steps, expected=f">= {n}, one per expert", remedy="Train longer.")
    if isinstance(teacher, nn.Module) and teacher.training:
        remedy = "Call teacher.eval() first."
        raise UnsupportedError("teacher", got="training mode", expected="evaluation mode", remedy=remedy)
    _check_images(images)
    if getattr(loss, "func", loss) in (kt_classification, kt_segmentation):
        _warn_of_gaps(class_shares(teacher, images))
    device = next(experts.parameters()).device
    draw = partial(_drawn, images=images, teacher=teacher, flip=flip, device=device)
    ranges = [experts.ranges.times(k, path) for k in range(n)]
    losses = []
    for k, levels in enumerate(ranges):
        own = experts.adapter(k)
        if init == "previous" and k:
            own.load_state_dict(experts.adapter(k - 1).state_dict())
        options = {"lr": lr, "weight_decay": weight_decay, "levels": levels, "seed": seed + k, "progress": progress}
        student = Expert(experts, k)
        losses.append(
            train_judge(student, draw, loss, path=path, steps=each, batch=batch, parameters=own.parameters(), **options)
        )
    return losses


def kt_classification(student: Tensor, teacher: Tensor, tau: float = 0.25) -> Tensor:
    """KL of logits (b, K): () from the teacher's distribution at temperature `tau` > 0 to the student's at 1.

    Raises RangeError or ShapeError.
    """
    return _divergence(student, teacher, tau, 2)


def kt_segmentation(student: Tensor, teacher: Tensor, tau: float = 0.25) -> Tensor:
    """KL of logits (b, K, *P), the mean over places P and rows: (). Raises RangeError or ShapeError."""
    return _divergence(student, teacher, tau, 3)


def kt_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of answers (b, ...): (). Raises ShapeError."""
    _check_alike(student, teacher)
    return (student - teacher).square().mean()


def stored(x: Tensor) -> Tensor:
    """Samples (M, *D) in [-1, 1] as 8 bits: clamped, rounded. Raises DTypeError for anything but floats."""
    if not x.is_floating_point():
        raise DTypeError("samples", got=x.dtype, expected="floats in [-1, 1]", remedy="Pass them as drawn.")
    return (127.5 * (x.clamp(-1, 1) + 1)).round().to(torch.uint8)


def pixels(images: Tensor) -> Tensor:
    """The samples behind `stored`, float32 (M, *D) in [-1, 1]."""
    return images.float() / 127.5 - 1


def class_shares(teacher: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """How often each class is the teacher's likeliest, (K,): share of pictures, or of pixels for logits (M, K, *P)."""
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for rows in images.split(_ROWS):
            logits = teacher(pixels(rows))
            total = total + F.one_hot(logits.argmax(1), logits.shape[1]).flatten(0, -2).sum(0).cpu()
    return total / total.sum()


def _drawn(
    generator: torch.Generator,
    n: int,
    *,
    images: Tensor,
    teacher: Callable[[Tensor], Tensor],
    flip: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Pictures (n, *D) and what the teacher says of them."""
    rows = torch.randint(len(images), (n,), generator=generator).to(images.device)
    x = pixels(images[rows])
    if flip:
        half = torch.rand(n, generator=generator).to(x.device) < 0.5
        x = torch.where(half.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
    with torch.no_grad():
        return x, teacher(x.to(device))


def _divergence(student: Tensor, teacher: Tensor, tau: float, least: int) -> Tensor:
    if not (math.isfinite(tau) and tau > 0):
        remedy = "1 takes the teacher at its word, less makes it surer."
        raise RangeError("tau of a transfer", got=tau, expected="finite, > 0", remedy=remedy)
    _check_alike(student, teacher)
    if student.ndim < least or (least == 2 and student.ndim > 2):
        expected = "(b, K)" if least == 2 else "(b, K, *P)"
        remedy = "Use kt_classification for one label, kt_segmentation for one per pixel."
        raise ShapeError("logits", got=tuple(student.shape), expected=expected, remedy=remedy)
    wanted = (teacher / tau).log_softmax(1)
    return (wanted.exp() * (wanted - student.log_softmax(1))).sum(1).mean()


def _check_alike(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        remedy = "Experts must be made of the teacher's own network, or of one that answers alike."
        raise ShapeError("student's answers", got=tuple(student.shape), expected=tuple(teacher.shape), remedy=remedy)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        remedy = "Pass stored(samples): rounding to 8 bits is part of the method."
        raise DTypeError("images of a transfer", got=images.dtype, expected="torch.uint8", remedy=remedy)
    if images.ndim < 2 or not len(images):
        raise ShapeError(
            "images of a transfer", got=tuple(images.shape), expected="(M, *D), M >= 1", remedy="Draw some first."
        )


def _warn_of_gaps(shares: Tensor) -> None:
    rare = (shares < _RARE).nonzero()[:, 0].tolist()
    if rare:
        said = (
            f"the teacher finds classes {rare} in less than {_RARE:.1%} of what was drawn; experts will not know them"
        )
        warnings.warn(said, UserWarning, stacklevel=3)
