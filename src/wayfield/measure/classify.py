r"""Scores of samples through a classifier, and two-sample tests of plain vectors.

Does a classifier find the samples clear and varied, are its probabilities honest, and can a classifier or a set of
projections tell one sample from another? Five short answers, none tied to a particular network.

.. math::
    IS &= \exp \mathrm{mean}_x\, KL(p(y|x) \,\|\, p(y)), \qquad p(y) = \mathrm{mean}_x\, p(y|x) \\
    ECE &= \sum_b \frac{n_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b| \\
    C2ST &= \text{held-out accuracy of a classifier that tells } x \text{ from } y \\
    SW_p &= \bigl(\mathrm{mean}_\theta\, W_p^p(\theta^T X, \theta^T Y)\bigr)^{1/p}, \qquad |\theta| = 1

with p(y|x) (N, K) class probabilities, bins b of the top probability, X (N, d) and Y (M, d) two sets of vectors.

References:
    Salimans et al., Improved techniques for training GANs, 2016, section 4 (IS).
    Guo et al., On calibration of modern neural networks, 2017, section 2 (ECE).
    Lopez-Paz, Oquab, Revisiting classifier two-sample tests, 2017, section 3 (C2ST).
    Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, 2015, section 3 (SW).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import DeviceError, DTypeError, MissingExtraError, RangeError, ShapeError, unknown_name
from wayfield.measure.frechet import check_features, check_pair

__all__ = ["InceptionScore", "accuracy", "c2st", "ece", "inception_score", "sliced_wasserstein"]


class InceptionScore(NamedTuple):
    """Mean and standard deviation (divisor: number of splits) over the splits; between 1 and K."""

    mean: float
    std: float


def inception_score(probabilities: Tensor, *, splits: int | None = None, seed: int = 0) -> InceptionScore:
    """Inception-score form over any classifier's probabilities: exp of the mean KL from the marginal.

    probabilities: p(y|x), shape (N, K), rows summing to 1. It is K for balanced one-hot rows, 1 for constant rows.
    splits: number of parts, each scored on its own; default max(1, N // 5000), parts of 5000 as in guided-diffusion.
    seed: of the shuffle before splitting, so that rows sorted by class do no harm; without effect for one split.

    Only with the Inception network is this "the Inception score"; elsewhere name the classifier. Raises RangeError
    (rows no distributions; splits not in 1..N), ShapeError, DTypeError, NonFiniteError.
    Source: Salimans et al. 2016, section 4. torchmetrics wants a network and shuffles by the global generator.
    """
    p = _check_probabilities(probabilities)
    n = p.shape[0]
    parts = max(1, n // 5000) if splits is None else splits
    if not 1 <= parts <= n:
        raise RangeError("splits", got=parts, expected=f"1..{n}", remedy="Give fewer splits or more samples.")
    if parts > 1:
        p = p[torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(p.device)]
    scores = []
    for part in p.tensor_split(parts):
        kl = torch.xlogy(part, part) - torch.xlogy(part, part.mean(0))
        scores.append(kl.sum(1).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(float(values.mean()), float(values.std(correction=0)))


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest score is the label.

    scores: logits or probabilities, shape (N, K), or predicted classes, integers (N,). labels: integers (N,).
    Ties go to the lowest class. Raises ShapeError, DTypeError, and for scores (N, K) NonFiniteError and RangeError
    (label outside 0..K-1). The same as torchmetrics' micro `multiclass_accuracy`, without needing the extra.
    """
    if scores.ndim == 1:
        _check_labels("predicted classes", scores, scores)
        predicted, classes = scores, None
    else:
        predicted, classes = check_features("scores", scores, least=1).argmax(1), scores.shape[1]
    _check_labels("labels", labels, predicted, classes)
    return float((predicted == labels).double().mean())


def ece(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error of the top class, in [0, 1], over `bins` equal bins ((b-1)/bins, b/bins].

    probabilities: shape (N, K), rows summing to 1. labels: integers (N,) in 0..K-1.

    Raises RangeError (bins < 1; rows no distributions; label outside 0..K-1), ShapeError, DTypeError, NonFiniteError.
    Source: Guo et al. 2017, section 2. torchmetrics closes its bins on the left instead, which moves exact edge
    values (1/2, 1/5) to another bin, and silently applies a softmax to rows outside [0, 1]; equal elsewhere (tested).
    """
    p = _check_probabilities(probabilities)
    _check_labels("labels", labels, p, p.shape[1])
    if bins < 1:
        raise RangeError("bins", got=bins, expected="at least 1", remedy="15 is customary.")
    confidence, predicted = p.max(1)
    edges = torch.arange(1, bins, dtype=p.dtype, device=p.device) / bins
    gap = (predicted == labels).to(p.dtype) - confidence
    per_bin = torch.zeros(bins, dtype=p.dtype, device=p.device)
    per_bin.index_add_(0, torch.bucketize(confidence, edges), gap)
    return float(per_bin.abs().sum() / p.shape[0])


def c2st(x: Tensor, y: Tensor, *, classifier: Literal["rbf", "mlp"] = "rbf", folds: int = 5, seed: int = 0) -> float:
    """Classifier two-sample test: cross-validated accuracy of telling `x` from `y`; 1/2 if alike, 1 if separated.

    x, y: shape (N, d), as many rows in each so that chance is 1/2. Under equality the accuracy has about mean 1/2 and
        standard deviation sqrt(1 / (8 N)). Rows shared by both sets push it *below* 1/2: give independent samples.
    classifier: "rbf", logistic regression on 200 Nystroem features of a Gaussian kernel of squared width d (fast,
        convex); "mlp", two hidden layers of 64 with early stopping. Inputs are standardised inside each fold.
    folds: stratified and shuffled, 2..N. seed: of folds and classifier.

    Needs `pip install "wayfield[measure]"` (scikit-learn), else MissingExtraError. Raises UnknownNameError, RangeError
    (folds), ShapeError, DTypeError, DeviceError, NonFiniteError. Source: Lopez-Paz and Oquab 2017, section 3.
    """
    a, b = check_pair(x, y)
    n = a.shape[0]
    if b.shape[0] != n:
        remedy = "Drop rows of the larger set: chance would not be 1/2."
        raise ShapeError("C2ST rows", got=f"{n} and {b.shape[0]}", expected="as many in both sets", remedy=remedy)
    if not 2 <= folds <= n:
        raise RangeError("folds", got=folds, expected=f"2..{n}", remedy="Give fewer folds or more samples.")
    held_in = 2 * (n - -(-n // folds))
    model = _two_sample_classifier(classifier, a.shape[1], min(200, held_in), seed)
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows, labels = torch.cat([a, b]).cpu(), torch.arange(2).repeat_interleave(n)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    predicted = cross_val_predict(model, rows.numpy(), labels.numpy(), cv=split)
    return accuracy(torch.as_tensor(predicted), labels)


def sliced_wasserstein(x: Tensor, y: Tensor, *, p: float = 2, projections: int = 500, seed: int = 0) -> float:
    """Sliced Wasserstein distance SW_p over random directions; exact in each, for any two sample sizes.

    x: shape (N, d). y: shape (M, d). p: order, at least 1. projections: number of directions, uniform on the sphere;
        the relative Monte-Carlo error is about 1 / sqrt(projections). seed: of the directions.
    For two unit Gaussians a shift m apart SW_2 = |m| / sqrt(d). Two finite samples of one law have a distance above 0:
    report that floor beside it.

    Raises RangeError (p < 1, projections < 1), ShapeError, DTypeError, DeviceError, NonFiniteError.
    Source: Bonneel et al. 2015. scipy's `wasserstein_distance` has one dimension and p = 1 only.
    """
    a, b = check_pair(x, y, least=1)
    if not 1 <= p < float("inf") or projections < 1:
        got = f"p={p}, projections={projections}"
        raise RangeError(
            "sliced Wasserstein", got=got, expected="1 <= p < inf, projections >= 1", remedy="Try p=2, 500."
        )
    theta = torch.randn(a.shape[1], projections, generator=torch.Generator().manual_seed(seed), dtype=a.dtype)
    theta = (theta / theta.norm(dim=0)).to(a.device)
    n, m = a.shape[0], b.shape[0]
    # Between consecutive levels i/n, j/m both quantile functions are constant; levels in units of 1/(n m) are integers.
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(a.device)
    width = torch.diff(steps, prepend=steps.new_zeros(1)).to(a.dtype) / (n * m)
    rows, cols = (steps - 1) // m, (steps - 1) // n
    total = 0.0
    for part in theta.split(64, dim=1):
        gap = (a @ part).sort(0).values[rows] - (b @ part).sort(0).values[cols]
        total += float((gap.abs() ** p * width[:, None]).sum())
    return (total / projections) ** (1 / p)


def _check_probabilities(probabilities: Tensor) -> Tensor:
    p = check_features("probabilities", probabilities, least=1)
    off = float((p.sum(1) - 1).abs().max())
    # 1e-2 lets half precision through; logits miss by far more.
    if float(p.min()) < 0 or off > 1e-2:
        got = f"minimum {float(p.min()):.3g}, row sums off by up to {off:.3g}"
        raise RangeError("probabilities", got=got, expected="rows >= 0 that sum to 1", remedy="Apply softmax(1) first.")
    return p / p.sum(1, keepdim=True)


def _check_labels(what: str, labels: Tensor, rows: Tensor, classes: int | None = None) -> None:
    """One integer per row of `rows` (N, ...), below `classes` where that is given."""
    if labels.is_floating_point() or labels.is_complex():
        raise DTypeError(what, got=labels.dtype, expected="integers", remedy="Cast with .long().")
    n = rows.shape[0]
    if labels.shape != (n,) or n == 0:
        raise ShapeError(what, got=tuple(labels.shape), expected=f"({n},), not empty", remedy="Give one per row.")
    if labels.device != rows.device:
        raise DeviceError(what, got=labels.device, expected=rows.device, remedy="Move one of them with .to(device).")
    if classes is not None and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        got = f"{int(labels.min())}..{int(labels.max())}"
        raise RangeError(what, got=got, expected=f"0..{classes - 1}", remedy="Number the classes from 0.")


def _two_sample_classifier(name: str, d: int, components: int, seed: int) -> Any:
    """A fresh scikit-learn pipeline; at most `components` kernel features, as many as a fold has rows."""
    if name not in ("rbf", "mlp"):
        raise unknown_name("classifier", name, ("rbf", "mlp"))
    try:
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        remedy = 'Install it with: pip install "wayfield[measure]"'
        raise MissingExtraError("c2st", got="no scikit-learn", expected="scikit-learn >= 1.5", remedy=remedy) from error
    if name == "mlp":
        # At the default rate of 1e-3 small sets stop before the net has learnt: 0.98 on sets 10 deviations apart.
        net = MLPClassifier((64, 64), learning_rate_init=5e-3, max_iter=1000, early_stopping=True, random_state=seed)
        return make_pipeline(StandardScaler(), net)
    features = Nystroem(gamma=1 / (2 * d), n_components=components, random_state=seed)
    return make_pipeline(StandardScaler(), features, LogisticRegression(max_iter=1000))
