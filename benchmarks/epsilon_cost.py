"""What Epsilon's loss and evaluator cost beside a straightforward form: ``python -m benchmarks.epsilon_cost``.

* loss: Eq. 9-13, forward and backward, for a batch of 96 images, 8 groups, label vectors of length 300 and the 7,186 seen
  classes of Open Images, about 10 of them present in an image; against a loop over images and over their present classes.
* evaluator, NUS-WIDE: 107,859 images, 1,006 classes, complete labels; against the whole score matrix in memory, an argsort
  for each class and another for each image, with both sets of images.
* evaluator, Open Images: as many images as ``--images`` says (the test set has 125,456), 7,586 classes, 15 annotated
  labels an image; against the same.

Every case runs in a process of its own, on one thread. Both forms get the same random numbers, whose drawing is part of both
times. Time is CPU time, so that other work on the machine counts little; waiting for the disk, where our evaluator keeps
complete scores, is not in it. Memory is the peak of the process above what it held before (Linux's VmHWM and VmRSS). The
last column is how far the results differ: by rounding, and by equal scores, which argsort orders by chance. Only ratios
within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate

from benchmarks.memory import megabytes
from zeroshot_d2.cli import Parser

BATCH, GROUPS, WIDTH, SEEN = 96, 8, 300, 7186
NUS_WIDE = {"images": 107_859, "classes": 1006, "unseen": 81, "top_k": (3, 5)}
OPEN_IMAGES = {"images": 125_456, "classes": 7586, "unseen": 400, "top_k": (10, 20)}
ANNOTATED = 15
LAMBDA = 0.3


# ------------------------------------------------------------------------------------------------------------ loss
def loss_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    semantics = torch.randn(BATCH, GROUPS, WIDTH, generator=generator, requires_grad=True)
    vectors = F.normalize(torch.randn(SEEN, WIDTH, generator=generator), dim=-1)
    return semantics, vectors, torch.rand(BATCH, SEEN, generator=generator) < 10 / SEEN


def loss_ours() -> float:
    from epsilon_d2.modeling.criterion import Criterion

    semantics, vectors, positive = loss_case()
    loss = sum(Criterion(reg_weight=LAMBDA)(semantics, vectors, positive).values())
    loss.backward()
    return loss.item()


def loss_plain() -> float:
    semantics, vectors, positive = loss_case()
    total = torch.zeros(())
    for s, present in zip(semantics, positive, strict=True):
        scores = (s @ vectors.T).max(dim=0).values
        absent = scores[~present]
        rank = torch.zeros(())
        for k in present.nonzero()[:, 0]:
            rank = rank + torch.log(1 + torch.exp(absent - scores[k])).sum()
        rank = rank / (present.sum() * (~present).sum()).clamp(min=1)
        omega = 1 + (vectors[present].var(dim=0).sum() if present.sum() > 1 else 0)
        total = total + (1 - LAMBDA) * omega * rank + LAMBDA * s.var(dim=0).sum()
    (total / BATCH).backward()
    return total.item() / BATCH


# ------------------------------------------------------------------------------------------------------- evaluator
def batches(size: dict[str, Any], complete: bool) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    """Scores (B, K) and dataset dicts of 512 images at a time."""
    for start in range(0, size["images"], 512):
        rng = np.random.default_rng(start)
        count = min(512, size["images"] - start)
        records = []
        for labels in rng.integers(0, size["classes"], size=(count, ANNOTATED)):
            labels = np.unique(labels)
            split = 0 if complete else len(labels) // 2
            records.append({"positive_labels": labels[split:], "negative_labels": labels[:split]})
        yield rng.standard_normal((count, size["classes"]), dtype=np.float32), records


def evaluator_ours(size: dict[str, Any], complete: bool) -> dict[str, float]:
    from detectron2.data import MetadataCatalog

    from zeroshot_d2.class_split import ClassSplit
    from zeroshot_d2.multilabel.evaluation import MultiLabelEvaluator

    names = tuple(str(k) for k in range(size["classes"]))
    split = ClassSplit(names, unseen=names[-size["unseen"] :])
    MetadataCatalog.get("cost").set(class_split=split, labels_complete=complete, protocol="GZSL")
    evaluator = MultiLabelEvaluator("cost", top_k=size["top_k"], distributed=False)
    for scores, records in batches(size, complete):
        evaluator.process(records, [{"scores": row} for row in torch.from_numpy(scores)])
    results = evaluator.report()
    assert results is not None
    return _chosen(results, results["labelled_images"], size)


def evaluator_plain(size: dict[str, Any], complete: bool) -> dict[str, float]:
    scores = np.empty((size["images"], size["classes"]), dtype=np.float32)
    truth = np.full((size["images"], size["classes"]), -1 if complete else 0, dtype=np.int8)
    start = 0
    for part, records in batches(size, complete):
        scores[start : start + len(part)] = part
        for row, record in enumerate(records, start=start):
            truth[row, record["negative_labels"]] = -1
            truth[row, record["positive_labels"]] = 1
        start += len(part)
    results: list[dict[str, Any]] = []
    unseen = np.arange(size["classes"]) >= size["classes"] - size["unseen"]
    for images in (np.ones(size["images"], dtype=bool), (truth[:, unseen] == 1).any(axis=1)):
        s, t = scores[images], truth[images]
        ap = np.full(size["classes"], np.nan)
        for k in range(size["classes"]):
            ranked = t[t[:, k] != 0, k][np.argsort(-s[t[:, k] != 0, k])] == 1
            if ranked.any():
                ap[k] = 100 * (np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean()
        numbers = {}
        for task, classes in (("ZSL", unseen), ("GZSL", np.ones_like(unseen))):
            numbers[f"{task}_mAP"] = float(np.nanmean(ap[classes]))
            hits = dict.fromkeys(size["top_k"], 0)
            for score, label in zip(s[:, classes], t[:, classes], strict=True):
                order = np.argsort(-score)
                for k in hits:
                    hits[k] += int((label[order[:k]] == 1).sum())
            numbers |= {f"{task}_P@{k}": 100 * hit / (len(s) * k) for k, hit in hits.items()}
        results.append(numbers)
    return _chosen(results[0], results[1], size)


def _chosen(every: dict[str, Any], labelled: dict[str, Any], size: dict[str, Any]) -> dict[str, float]:
    keys = [f"{task}_{name}" for task in ("ZSL", "GZSL") for name in ("mAP", *(f"P@{k}" for k in size["top_k"]))]
    return {f"{images} {key}": source[key] for images, source in (("all", every), ("labelled", labelled)) for key in keys}


# ------------------------------------------------------------------------------------------------------ measuring
def measure(case: Callable[[], Any], repeats: int) -> dict[str, Any]:
    times, before = [], megabytes("VmRSS")
    for _ in range(repeats):
        start = time.process_time()
        result = case()
        times.append(time.process_time() - start)
    return {"seconds": min(times), "megabytes": megabytes("VmHWM") - before, "result": result}


def cases(images: int) -> dict[str, Callable[[], Any]]:
    open_images = {**OPEN_IMAGES, "images": images}
    return {
        "loss, ours": loss_ours,
        "loss, plain": loss_plain,
        "evaluator NUS-WIDE, ours": lambda: evaluator_ours(NUS_WIDE, True),
        "evaluator NUS-WIDE, plain": lambda: evaluator_plain(NUS_WIDE, True),
        "evaluator Open Images, ours": lambda: evaluator_ours(open_images, False),
        "evaluator Open Images, plain": lambda: evaluator_plain(open_images, False),
    }


def main() -> None:
    parser = Parser("python -m benchmarks.epsilon_cost", __doc__, takes_keys=False)
    parser.add_argument("--images", type=int, default=20_000, help="of Open Images; its plain form needs 38 KB for each")
    parser.add_argument("--only", choices=("loss", "evaluator NUS-WIDE", "evaluator Open Images"))
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case, in the process that was started for it
    args = parser.parse()
    if args.case:
        torch.set_num_threads(1)
        # Imports are not what is measured.
        import epsilon_d2.modeling.criterion  # noqa: F401

        print(json.dumps(measure(cases(args.images)[args.case], 3 if args.case.startswith("loss") else 1)))
        return
    measured: dict[str, dict[str, Any]] = {}
    for name in cases(args.images):
        if args.only is None or name.startswith(args.only):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.epsilon_cost", "--images", str(args.images)]
            done = subprocess.run([*command, "--case", name], capture_output=True, text=True, check=True)
            measured[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: done", file=sys.stderr)
    rows = []
    for name in [name.removesuffix(", ours") for name in measured if name.endswith(", ours")]:
        ours, plain = measured[f"{name}, ours"], measured[f"{name}, plain"]
        difference = np.abs(np.subtract(*(np.array(_values(case["result"])) for case in (ours, plain)))).max()
        row = [name]
        for key in ("seconds", "megabytes"):
            row += [f"{ours[key]:.2f}", f"{plain[key]:.2f}", f"{plain[key] / ours[key]:.1f}"]
        rows.append([*row, f"{difference:.1e}"])
    headers = ["", "CPU s, ours", "CPU s, plain", "ratio", "MB, ours", "MB, plain", "ratio", "results differ by"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


def _values(result: Any) -> list[float]:
    return list(result.values()) if isinstance(result, dict) else [result]


if __name__ == "__main__":
    main()
