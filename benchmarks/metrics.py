"""Pixel F1, IoU and AUC per 512x512 image beside scikit-learn and IMDL-BenCo's evaluator, one thread.

    python benchmarks/metrics.py [--rounds 7] [--images 8]

Ours is `scores.pixel_statistics`: without the best F1, which the peers do not compute ("ours"), and as
it runs in an evaluation ("ours, with best F1"); both give the stored histograms too. IMDL-BenCo is not
installed; its published algorithm is rerun here on torch: batches of 4, float masks, a confusion matrix
of four float sums for F1 and another for IoU, AUC by `argsort`, two cumulative sums and `trapz` per
image. All take turns on the same images, round by round, with the order rotated. Times are CPU seconds
of one thread, so a busy machine disturbs them less. Prints one JSON line per figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from unforge.scores import THRESHOLD, pixel_statistics

SIZE = 512
BATCH = 4
EPSILON = 1e-8
PASSES = 5
"""Over the same images for ours, which would otherwise be timed for a few milliseconds only."""
Pair = tuple[np.ndarray, np.ndarray]


def image(rng: np.random.Generator, scale: float) -> Pair:
    """A blurred ellipse with correlated and white noise as logits, times `scale`, through a sigmoid."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.08, 0.2, 2)
    mask = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
    logit = gaussian_filter(mask.astype(float), 14) * 3 - 2
    logit += gaussian_filter(rng.normal(size=mask.shape), 6) * 18 + rng.normal(size=mask.shape) * 0.8
    return (1 / (1 + np.exp(-scale * logit))).astype(np.float32), mask


def ours(pairs: list[Pair]) -> list[float | None]:
    return [pixel_statistics(p, m, best=False).auc for p, m in pairs]


def ours_with_best(pairs: list[Pair]) -> list[float | None]:
    return [pixel_statistics(p, m).auc for p, m in pairs]


def scikit_learn(pairs: list[Pair]) -> list[float]:
    aucs = []
    for p, m in pairs:
        truth, predicted = m.ravel(), p.ravel() > THRESHOLD
        f1_score(truth, predicted)
        jaccard_score(truth, predicted)
        aucs.append(float(roc_auc_score(truth, p.ravel())))
    return aucs


def _confusion(p: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
    positive = (p > THRESHOLD).float()
    dims = (1, 2, 3)
    return (
        torch.sum(positive * m, dim=dims),
        torch.sum((1 - positive) * (1 - m), dim=dims),
        torch.sum(positive * (1 - m), dim=dims),
        torch.sum((1 - positive) * m, dim=dims),
    )


def benco(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    aucs = []
    for p, m in batches:
        tp, _, fp, fn = _confusion(p, m)
        precision, recall = tp / (tp + fp + EPSILON), tp / (tp + fn + EPSILON)
        _ = 2 * precision * recall / (precision + recall + EPSILON)
        tp, _, fp, fn = _confusion(p, m)
        _ = tp / (tp + fp + fn + EPSILON)
        for scores, truth in zip(p, m, strict=True):
            ranked = truth.flatten()[torch.argsort(scores.flatten(), descending=True)]
            n_pos = ranked.sum().item()
            tpr = torch.cumsum(ranked, dim=0) / n_pos
            fpr = torch.cumsum(1 - ranked, dim=0) / (len(ranked) - n_pos)
            aucs.append(torch.trapz(tpr, fpr).item())
    return aucs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, scale in (("ordinary", 1.0), ("saturated", 4.0)):
        rng = np.random.default_rng(0)
        seconds: dict[str, list[float]] = {}
        error = 0.0
        for turn in range(arguments.rounds + 1):
            pairs = [image(rng, scale) for _ in range(arguments.images)]
            tensors = [
                (
                    torch.stack([torch.from_numpy(p)[None] for p, _ in pairs[start : start + BATCH]]),
                    torch.stack([torch.from_numpy(m).float()[None] for _, m in pairs[start : start + BATCH]]),
                )
                for start in range(0, len(pairs), BATCH)
            ]
            contenders = [
                ("ours", ours, pairs),
                ("scikit-learn", scikit_learn, pairs),
                ("ours, with best F1", ours_with_best, pairs),
                ("imdl-benco", benco, tensors),
            ]
            found = {}
            for label, function, material in contenders[turn % 4 :] + contenders[: turn % 4]:
                passes = PASSES if label.startswith("ours") else 1
                started = time.process_time()
                for _ in range(passes):
                    found[label] = function(material)
                elapsed = (time.process_time() - started) / passes
                if turn:  # the first round warms up
                    seconds.setdefault(label, []).append(elapsed / len(pairs))
            error = max(error, *np.abs(np.subtract(found["ours"], found["scikit-learn"])).tolist())
        for label, each in seconds.items():
            rate = round(1 / statistics.median(each), 1)
            print(json.dumps({"figure": "images per second", "scores": name, "of": label, "value": rate}))
        for label in ("scikit-learn", "imdl-benco"):
            for own in ("ours", "ours, with best F1"):
                ratios = sorted(theirs / mine for theirs, mine in zip(seconds[label], seconds[own], strict=True))
                line = {"figure": "times faster", "scores": name, "of": own, "than": label}
                line |= {"value": round(statistics.median(ratios), 1), "rounds": len(ratios)}
                print(json.dumps(line | {"lowest": round(ratios[0], 1), "highest": round(ratios[-1], 1)}))
        print(json.dumps({"figure": "largest AUC error", "scores": name, "value": float(f"{error:.2g}")}))


if __name__ == "__main__":
    main()
