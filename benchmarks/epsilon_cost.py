"""What Epsilon's loss and evaluator cost beside others: ``python -m benchmarks.epsilon_cost [--peer CLONE CLONE]``.

Beside a straightforward form of the same, "plain":

* loss: Eq. 9-13, forward and backward, for a batch of 96 images, 8 groups, label vectors of length 300 and the 7,186 seen
  classes of Open Images, about 10 of them present in an image; against a loop over images and over their present classes.
* evaluator, NUS-WIDE: 107,859 images, 1,006 classes, complete labels; against the whole score matrix in memory, an argsort
  for each class and another for each image, with both sets of images.
* evaluator, Open Images: as many images as ``--images`` says (the test set has 125,456), 7,586 classes, 15 annotated
  labels an image; against the same.

With ``--peer``, beside other projects' own code, read from clones of SDL and BiAM (:mod:`benchmarks.multilabel_peers`):

* loss in SDL's form, for the 925 seen classes of NUS-WIDE and for 7,186; against SDL's code.
* evaluator, NUS-WIDE; against BiAM's AP, and F1 at 3 and at 5, for ZSL and GZSL. BiAM's takes all images alone, ours two
  more sets of them.

Every case runs in a process of its own, on one thread; the forms take turns, ``--rounds`` times. Both get the same random
numbers, which are drawn before the clock starts. Time is CPU time, so that other work on the machine counts little; waiting
for the disk, where our evaluator keeps complete scores, is not in it. Memory is the peak of the process above what it held
before, the random numbers included (Linux's VmHWM and VmRSS). Results may differ by rounding, and by equal scores, which the
others order by chance; where they differ by more, the command ends with an error. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from benchmarks.budget import PRODUCT, product_rate
from benchmarks.memory import megabytes
from benchmarks.multilabel_peers import PEERS, find_peers, import_peer, on_the_cpu
from benchmarks.own_process import json_of_own_process
from epsilon_d2.modeling.criterion import Criterion
from epsilon_d2.modeling.losses import RankForm
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.cli import Parser
from zeroshot_d2.multilabel.evaluation import MultiLabelEvaluator

BATCH, GROUPS, WIDTH = 96, 8, 300
SEEN_NUS_WIDE, SEEN_OPEN_IMAGES = 925, 7186
NUS_WIDE = {"images": 107_859, "classes": 1006, "unseen": 81, "top_k": (3, 5)}
OPEN_IMAGES = {"images": 125_456, "classes": 7586, "unseen": 400, "top_k": (10, 20)}
ANNOTATED = 15
LAMBDA = 0.3
REPEATS, ENOUGH_SECONDS = 3, 5.0  # of a case in one process: as often as this, or until it took as long
TOLERANCE = 1e-3  # of a result: equal scores at the edge of the top K move a hit, one of thousands

Loss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Batches = list[tuple[np.ndarray, list[dict[str, Any]]]]
Form = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Case:
    """One computation in two forms, from the same numbers to {name of a result: its value}.

    Args:
        beside: whose the other form is.
        draw: gives the numbers.
        other: may give fewer results than ``ours``.
    """

    name: str
    beside: str
    draw: Callable[[], Any]
    ours: Form
    other: Form


# ------------------------------------------------------------------------------------------------------------ loss
def loss_case(classes: int) -> Loss:
    """S (N, G, E), label vectors (K, E) and which classes are present (N, K)."""
    generator = torch.Generator().manual_seed(0)
    semantics = torch.randn(BATCH, GROUPS, WIDTH, generator=generator, requires_grad=True)
    vectors = F.normalize(torch.randn(classes, WIDTH, generator=generator), dim=-1)
    positive = torch.rand(BATCH, classes, generator=generator) < 10 / classes
    positive[:, 0] |= ~positive.any(dim=1)  # SDL's code has no value for an image without a label
    return semantics, vectors, positive


def loss_ours(data: Loss, form: RankForm = "paper") -> dict[str, float]:
    semantics, vectors, positive = data
    loss = sum(Criterion(reg_weight=LAMBDA, rank_form=form)(semantics, vectors, positive).values())
    return _with_gradient(loss, semantics)


def loss_plain(data: Loss) -> dict[str, float]:
    semantics, vectors, positive = data
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
    return _with_gradient(total / BATCH, semantics)


def loss_of_sdl(data: Loss, clone: Path) -> dict[str, float]:
    semantics, vectors, positive = data
    loss = import_peer("SDL", clone).SDLLoss(weight=LAMBDA, wordvec_array=vectors.T[None].contiguous())
    loss.embed_len = vectors.shape[1]
    # An image's vectors lie interleaved there: component d of vector m is number d * M + m.
    interleaved = semantics.transpose(1, 2).flatten(1)
    with on_the_cpu():
        return _with_gradient(loss(interleaved, positive.long()), semantics)


def _with_gradient(loss: torch.Tensor, semantics: torch.Tensor) -> dict[str, float]:
    (gradient,) = torch.autograd.grad(loss, semantics)
    return {"loss": loss.item(), "norm of the gradient": gradient.norm().item()}


# ------------------------------------------------------------------------------------------------------- evaluator
def batches(size: Mapping[str, Any], complete: bool) -> Batches:
    """Scores (B, K) and dataset dicts of 512 images at a time."""
    result = []
    for start in range(0, size["images"], 512):
        rng = np.random.default_rng(start)
        count = min(512, size["images"] - start)
        records = []
        for labels in rng.integers(0, size["classes"], size=(count, ANNOTATED)):
            labels = np.unique(labels)
            split = 0 if complete else len(labels) // 2
            records.append({"positive_labels": labels[split:], "negative_labels": labels[:split]})
        result.append((rng.standard_normal((count, size["classes"]), dtype=np.float32), records))
    return result


def evaluator_ours(data: Batches, size: Mapping[str, Any], complete: bool) -> dict[str, float]:
    names = tuple(str(k) for k in range(size["classes"]))
    split = ClassSplit(names, unseen=names[-size["unseen"] :])
    MetadataCatalog.get("cost").set(class_split=split, labels_complete=complete, protocol="GZSL")
    evaluator = MultiLabelEvaluator("cost", top_k=size["top_k"], distributed=False)
    for scores, records in data:
        evaluator.process(records, [{"scores": row} for row in torch.from_numpy(scores)])
    results = evaluator.report()
    assert results is not None
    sets = {"all": results, "labelled": results["labelled_images"]}
    return {
        f"{images} {key}": value
        for images, numbers in sets.items()
        for key, value in numbers.items()
        if isinstance(value, float)
    }


def evaluator_plain(data: Batches, size: Mapping[str, Any], complete: bool) -> dict[str, float]:
    scores, truth = _matrices(data, absent=-1 if complete else 0)
    numbers: dict[str, float] = {}
    unseen = np.arange(size["classes"]) >= size["classes"] - size["unseen"]
    sets = {"all": np.ones(len(truth), dtype=bool), "labelled": (truth[:, unseen] == 1).any(axis=1)}
    for name, images in sets.items():
        s, t = scores[images], truth[images]
        ap = np.full(size["classes"], np.nan)
        for k in range(size["classes"]):
            ranked = t[t[:, k] != 0, k][np.argsort(-s[t[:, k] != 0, k])] == 1
            if ranked.any():
                ap[k] = 100 * (np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean()
        for task, classes in (("ZSL", unseen), ("GZSL", np.ones_like(unseen))):
            numbers[f"{name} {task}_mAP"] = float(np.nanmean(ap[classes]))
            hits = dict.fromkeys(size["top_k"], 0)
            for score, label in zip(s[:, classes], t[:, classes], strict=True):
                order = np.argsort(-score)
                for k in hits:
                    hits[k] += int((label[order[:k]] == 1).sum())
            numbers |= {f"{name} {task}_P@{k}": 100 * hit / (len(s) * k) for k, hit in hits.items()}
    return numbers


def evaluator_of_biam(data: Batches, size: Mapping[str, Any], complete: bool, clone: Path) -> dict[str, float]:
    code = import_peer("BiAM", clone)
    scores, truth = (torch.from_numpy(matrix) for matrix in _matrices(data, absent=-1 if complete else 0))
    numbers: dict[str, float] = {}
    for task, first in (("ZSL", size["classes"] - size["unseen"]), ("GZSL", 0)):
        s, t = scores[:, first:].contiguous(), truth[:, first:].float()
        with on_the_cpu():
            numbers[f"all {task}_mAP_all_classes"] = 100 * code.compute_AP(s, t).mean().item()
            for k in size["top_k"]:
                values = code.compute_F1(s.clone(), t, "overall", k_val=k)  # it overwrites the scores
                numbers |= {
                    f"all {task}_{name}@{k}": 100 * v.item() for name, v in zip(("F1", "P", "R"), values, strict=True)
                }
    return numbers


def _matrices(data: Batches, absent: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels (N, K): 1 present, -1 absent, and ``absent`` for what is not annotated."""
    scores = np.concatenate([part for part, _ in data])
    truth = np.full(scores.shape, absent, dtype=np.int8)
    for row, record in zip(truth, (record for _, records in data for record in records), strict=True):
        row[record["negative_labels"]] = -1
        row[record["positive_labels"]] = 1
    return scores, truth


# ------------------------------------------------------------------------------------------------------ measuring
def measure(form: Form, data: Any) -> dict[str, Any]:
    """CPU seconds, the least of some repeats, peak megabytes, and the result."""
    times: list[float] = []
    before = megabytes("VmRSS")
    while len(times) < REPEATS and sum(times) < ENOUGH_SECONDS:
        start = time.process_time()
        result = form(data)
        times.append(time.process_time() - start)
    return {"seconds": min(times), "megabytes": megabytes("VmHWM") - before, "result": result}


def cases(args: argparse.Namespace, clones: Mapping[str, Path]) -> list[Case]:
    """Those that ``--only`` leaves, and that there are clones for."""
    plain = [
        Case(f"loss, {SEEN_OPEN_IMAGES:,} classes", "plain", partial(loss_case, SEEN_OPEN_IMAGES), loss_ours, loss_plain),
        _evaluator("NUS-WIDE", {**NUS_WIDE, "images": args.nus_wide_images}, True, "plain", evaluator_plain),
        _evaluator("Open Images", {**OPEN_IMAGES, "images": args.images}, False, "plain", evaluator_plain),
    ]
    of_peers = []
    if "SDL" in clones:
        ours, theirs = partial(loss_ours, form="sdl"), partial(loss_of_sdl, clone=clones["SDL"])
        for classes in (SEEN_NUS_WIDE, SEEN_OPEN_IMAGES):
            of_peers.append(Case(f"loss, {classes:,} classes", "SDL's code", partial(loss_case, classes), ours, theirs))
    if "BiAM" in clones:
        biam = partial(evaluator_of_biam, clone=clones["BiAM"])
        of_peers.append(_evaluator("NUS-WIDE", {**NUS_WIDE, "images": args.nus_wide_images}, True, "BiAM's code", biam))
    if args.only == "peers":
        return of_peers
    return [case for case in (*plain, *of_peers) if args.only is None or case.name.startswith(args.only)]


def _evaluator(dataset: str, size: Mapping[str, Any], complete: bool, beside: str, other: Callable[..., Any]) -> Case:
    name = f"evaluator {dataset}, {size['images']:,} images, {size['classes']:,} classes"
    forms = [partial(form, size=size, complete=complete) for form in (evaluator_ours, other)]
    return Case(name, beside, partial(batches, size, complete), *forms)


def in_own_process(index: int, form: str, args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`measure` gives for a form of a case, measured by a process of its own, and its rate of products.

    Raises:
        RuntimeError: the process ends with an error.
    """
    words = ["--case", str(index), form, "--images", str(args.images), "--nus-wide-images", str(args.nus_wide_images)]
    words += ["--only", args.only] if args.only else []
    words += ["--peer", *(str(clone.absolute()) for clone in args.peer)] if args.peer else []
    try:
        measured: dict[str, Any] = json_of_own_process("benchmarks.epsilon_cost", words)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(error.cmd)} ended with an error:\n{error.stderr[-2000:]}") from error
    return measured


def run_case(index: int, form: str, chosen: Sequence[Case]) -> dict[str, Any]:
    """A case in this process."""
    torch.set_num_threads(1)
    case = chosen[index]
    measured = measure(case.ours if form == "ours" else case.other, case.draw())
    return {**measured, "rate": product_rate(PRODUCT, clock=time.process_time)}


def difference(ours: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The largest relative one among the results that both forms give."""
    return max(abs(ours[key] - value) / max(abs(value), 1e-12) for key, value in other.items())


def table(chosen: Sequence[Case], rounds: Sequence[Sequence[Mapping[str, Mapping[str, Any]]]]) -> str:
    """Markdown; ``rounds`` are lists of {form: what was measured}, one for each case.

    Raises:
        RuntimeError: the results of the two forms of a case differ.
    """
    rows = []
    for case, of_case in zip(chosen, zip(*rounds, strict=True), strict=True):
        found = max(difference(measured["ours"]["result"], measured["other"]["result"]) for measured in of_case)
        if not found <= TOLERANCE:
            raise RuntimeError(f"{case.name}: the results of ours and of {case.beside} differ by {found:.1e} of a value")
        row = [case.name, case.beside]
        for key, digits in (("seconds", 3), ("megabytes", 0)):
            ours, other = ([measured[form][key] for measured in of_case] for form in ("ours", "other"))
            ratios = [b / a for a, b in zip(ours, other, strict=True)]
            row += [f"{statistics.median(values):.{digits}f}" for values in (ours, other)]
            row.append(f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
        rows.append([*row, f"{found:.1e}"])
    headers = ["", "beside", "CPU s, ours", "theirs", "ratio", "MB, ours", "theirs", "ratio", "results differ by, relative"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m benchmarks.epsilon_cost", __doc__, takes_keys=False)
    parser.add_argument("--images", type=int, default=20_000, help="of Open Images; its plain form needs 160 KB for each")
    parser.add_argument(
        "--nus-wide-images", type=int, default=NUS_WIDE["images"], help="of NUS-WIDE; BiAM's code needs 30 KB for each"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("loss", "evaluator NUS-WIDE", "evaluator Open Images", "peers"))
    parser.add_argument(
        "--peer",
        type=Path,
        nargs="+",
        default=[],
        metavar="CLONE",
        help="clones of SDL and BiAM, whose own code is timed too",
    )
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # index and form, in the process that was started for it
    args = parser.parse(argv)
    for option in ("images", "nus_wide_images", "rounds"):
        if getattr(args, option) < 1:
            parser.fail(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")
    try:
        clones = find_peers(args.peer)
    except (FileNotFoundError, ValueError) as error:
        parser.fail(str(error))
    chosen = cases(args, clones)
    if args.case:
        print(json.dumps(run_case(int(args.case[0]), args.case[1], chosen)))
        return
    if not chosen:
        parser.fail("--only peers needs the folder of a clone: --peer CLONE")
    rounds: list[list[dict[str, dict[str, Any]]]] = []
    try:
        for number in range(1, args.rounds + 1):
            rounds.append([])
            for index, case in enumerate(chosen):
                rounds[-1].append({form: in_own_process(index, form, args) for form in ("ours", "other")})
                print(f"round {number}, {case.name}, beside {case.beside}: done", file=sys.stderr)
        print(table(chosen, rounds))
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    rates = [measured["rate"] / 1e9 for of_round in rounds for forms in of_round for measured in forms.values()]
    print(
        f"\nRounds: {args.rounds}; medians, and the ratios' least to most. "
        f"A product of two {PRODUCT} x {PRODUCT} matrices ran at "
        f"{statistics.median(rates):.0f} GFLOP/s on one thread ({min(rates):.0f} to {max(rates):.0f})."
    )
    missing = [peer.name for peer in PEERS if peer.name not in clones]
    if missing:
        print(f"No clone of {' or '.join(missing)} was given (--peer): that code was not timed.")


if __name__ == "__main__":
    main()
