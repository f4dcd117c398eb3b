"""Epsilon on the real labels of NUS-WIDE, with images that are made up.

    python -m benchmarks.made_up_tokens --tags TagList1k.txt --concepts Concepts81.txt --vectors glove.6B.300d.txt \\
        --seeds 1 2 3

Without the photographs one can still ask what Epsilon's parts and its loss do with 925 seen and 81 unseen labels and their
word vectors. An image is made up as follows. A first label is drawn by popularity, 1 / rank, for the tags of NUS-WIDE are
listed by how often they occur (a concept that is no tag gets the median); 1 to 7 further ones by popularity times
exp(cosine to the first / 0.1), so that labels keep company with related ones. Its tokens belong to the labels in random
shares, three in ten to no label: a label's word vector, changed a little for this image, goes through a random linear map
that is the same for all images, and noise is added. Everything else is Epsilon itself: configs/nus_wide/*.yaml, its loss,
the paper's optimiser. GFP's MLP is D / 16 wide, as in the demo, but for one row. The learning rate is scaled to
``--iterations``, so that the rates add up to what they do in the paper's 7 epochs. Unseen labels occur in training images
without being labelled, as in NUS-WIDE.

Trains "Backbone Only", each module alone and the whole, and then the whole at every lambda in both forms of the loss; prints
ZSL and GZSL mAP, the mean cosine between the groups of an image, and how many groups are the nearest to one of the image's
labels. Runs whose results are there are not repeated: other settings need another ``--output``.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.utils.env import seed_all_rng
from torch import Tensor
from tqdm import tqdm

from benchmarks import runs
from benchmarks.own_process import ROOT, imports_of, json_of_own_process
from epsilon_d2.epsilon import Epsilon
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.cli import load_config, positive
from zeroshot_d2.multilabel.ranking import average_precision
from zeroshot_d2.multilabel.registration import register_multilabel
from zeroshot_d2.provenance import run_facts
from zeroshot_d2.solver import build_lr_scheduler, build_optimizer
from zeroshot_d2.storage import read_lines, write_json
from zeroshot_d2.word_vectors import WordVectorEmbeddings

DATASET = "made_up_tokens"
WIDTH, TOKENS = 192, 49
PAPERS_ITERATIONS = 7 * 161_789 // 96
"""Of the paper's 7 epochs of NUS-WIDE's training images, in batches of 96."""
TEST_IMAGES, TEST_SEED = 3000, 20261126
METRICS = {"ZSL_mAP": "mAP ZSL", "GZSL_mAP": "mAP GZSL", "cosine": "cosine of groups, %", "nearest_groups": "groups in use"}

WHOLE = "epsilon.yaml"
OURS = "ours, M = 8"
COMPONENTS: dict[str, runs.Variant] = {
    "Backbone Only, M = 8": ("epsilon_ablation/backbone_only.yaml", ()),
    "+GPA, M = 8": ("epsilon_ablation/gpa.yaml", ()),
    "+GFP, M = 8": ("epsilon_ablation/gfp.yaml", ()),
    OURS: (WHOLE, ()),
    "ours with GFP's MLP as wide as the tokens": (WHOLE, ("MODEL.EPSILON.GFP.MLP_RATIO", "1.0")),
}
FORMS = {"SDL's form": "sdl", "alpha as printed": "paper"}
LAMBDAS = (0.01, 0.1, 0.3, 0.5, 0.9)
LOSSES: dict[str, runs.Variant] = {
    f"{title}, lambda = {weight}": (
        WHOLE,
        ("MODEL.EPSILON.LOSS.RANK_FORM", form, "MODEL.EPSILON.LOSS.LAMBDA", str(weight))
        if (form, weight) != ("sdl", 0.3)
        else (),
    )
    for title, form in FORMS.items()
    for weight in LAMBDAS
}
TABLES = {"Components": COMPONENTS, "Weight of the regularizer": LOSSES}


@BACKBONE_REGISTRY.register()
class MadeUpTokens(Backbone):
    """What an image consists of here are tokens already."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"tokens": images}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"tokens": ShapeSpec(channels=WIDTH)}


@dataclass(frozen=True)
class Images:
    """Makes images up.

    Args:
        vectors: (K, E) unit vectors of the labels.
        popularity: (K,), how often each is drawn.
    """

    vectors: Tensor
    popularity: Tensor

    @functools.cached_property
    def random_map(self) -> Tensor:
        """(E, D), the same for all images."""
        return torch.randn(self.vectors.shape[1], WIDTH, generator=torch.Generator().manual_seed(0))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens (N, L, D) and which labels are there (N, K), of ``count`` images."""
        num_labels, length = self.vectors.shape
        first = self.popularity.multinomial(count, replacement=True, generator=generator)
        affinity = self.popularity.log() + self.vectors[first] @ self.vectors.T / 0.1
        affinity[torch.arange(count), first] = torch.inf
        gumbel = -torch.empty(count, num_labels).exponential_(generator=generator).log()
        labels = (affinity + gumbel).topk(8, dim=1).indices  # (N, 8), the first label first
        how_many = torch.randint(2, 9, (count, 1), generator=generator)
        there = torch.arange(8) < how_many
        present = torch.zeros(count, num_labels, dtype=torch.bool).scatter_(1, labels, there)

        share = torch.empty(count, 8).exponential_(generator=generator) * there
        share = torch.cat([0.7 * share / share.sum(dim=1, keepdim=True), torch.full((count, 1), 0.3)], dim=1)
        owner = share.multinomial(TOKENS, replacement=True, generator=generator)  # (N, L); 8 is nobody
        meant = self.vectors[labels] + 0.5 * torch.randn(count, 8, length, generator=generator) / length**0.5
        meant = torch.cat([meant, torch.randn(count, 1, length, generator=generator) / length**0.5], dim=1)
        tokens = meant.gather(1, owner[..., None].expand(-1, -1, length)) @ self.random_map
        return tokens + torch.randn(tokens.shape, generator=generator), present


def labels_of(tags: Path, concepts: Path) -> tuple[ClassSplit, Tensor]:
    """The split, tags that are no concept before the concepts, and the popularity (K,) of each label."""
    all_tags, unseen = read_lines(tags), read_lines(concepts)
    seen = [tag for tag in all_tags if tag not in unseen]
    rank = {tag: place for place, tag in enumerate(all_tags, 1)}
    names = [*seen, *unseen]
    return ClassSplit(tuple(names), unseen=tuple(unseen)), torch.tensor([1 / rank.get(n, len(all_tags) // 2) for n in names])


# ------------------------------------------------------------------------------------------------------------ one run


def config_of(args: argparse.Namespace, split: ClassSplit) -> CfgNode:
    """The variant's config, with what is different here."""
    register_multilabel(DATASET, split, "", dict, vocabulary="seen", replace=True)
    rate = load_config(args.config).SOLVER.BASE_LR * PAPERS_ITERATIONS / args.iterations
    here = {
        "MODEL.BACKBONE.NAME": "MadeUpTokens",
        "MODEL.DEVICE": "cpu",
        "MODEL.EPSILON.LABEL_EMBEDDINGS.FILE": str(args.vectors),
        "MODEL.EPSILON.GPA.ENCODER_FFN": 2 * WIDTH,
        "MODEL.EPSILON.GFP.MLP_RATIO": 1 / 16,
        "DATASETS.TRAIN": (DATASET,),
        "DATASETS.TEST": (),
        "SOLVER.BASE_LR": rate,
        "SOLVER.MAX_EPOCHS": 0,
        "SOLVER.MAX_ITER": args.iterations,
        "SOLVER.STEPS": (3 * args.iterations // 7,) if args.iterations > 2 else (),
    }
    return load_config(args.config, [*(word for pair in here.items() for word in pair), *args.opts])


def batches(images: Images, seed: int, count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``count`` batches of ``size`` images."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield images.draw(size, generator)


def train_and_test(cfg: CfgNode, split: ClassSplit, images: Images) -> dict[str, float]:
    """Train a variant and return the numbers of :data:`METRICS`, in percent but for the number of groups."""
    seed_all_rng(cfg.SEED)
    model = build_model(cfg)
    assert isinstance(model, Epsilon)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    seen = torch.from_numpy(split.seen_indices)
    label_vectors = model.label_vectors(split)
    training = batches(images, cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH)
    for tokens, present in tqdm(training, total=cfg.SOLVER.MAX_ITER, unit="batch", disable=None):
        semantics = model.extract_semantics(tokens).vectors
        losses = model.criterion(semantics, label_vectors[seen], present[:, seen])
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        scheduler.step()
    model.eval()
    test = batches(images, TEST_SEED, TEST_IMAGES // 100, 100)
    with torch.no_grad():
        found = [(model.extract_semantics(tokens).vectors, present) for tokens, present in test]
    vectors, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return numbers(vectors, labels, label_vectors, split)


def numbers(semantics: Tensor, present: Tensor, label_vectors: Tensor, split: ClassSplit) -> dict[str, float]:
    """The numbers of :data:`METRICS`.

    Args:
        semantics: S (N, G, E).
        present: (N, K).
        label_vectors: (K, E).
        split: K classes.
    """
    by_group = semantics @ label_vectors.T  # (N, G, K)
    scores, nearest = by_group.max(dim=1)
    ap = np.array(
        [average_precision(s, p) for s, p in zip(scores.T.contiguous().numpy(), present.T.contiguous().numpy(), strict=True)]
    )
    unit = F.normalize(semantics, dim=-1)
    groups = unit.shape[1]
    cosine = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - groups
    in_use = F.one_hot(nearest, groups).bool() & present[..., None]
    return {
        "ZSL_mAP": 100 * float(np.nanmean(ap[split.unseen_mask])),
        "GZSL_mAP": 100 * float(np.nanmean(ap)),
        "cosine": 100 * float((cosine / max(1, groups * (groups - 1))).mean()),
        "nearest_groups": float(in_use.any(dim=1).sum(dim=1).float().mean()),
        "random_ZSL_mAP": 100 * float(present[:, split.unseen_mask].float().mean()),
        "random_GZSL_mAP": 100 * float(present.float().mean()),
    }


# ---------------------------------------------------------------------------------------------------------- all of them


def run(variant: runs.Variant, seed: int, args: argparse.Namespace) -> None:
    """Train and test one variant in a process of its own."""
    file = runs.folder_of(variant, seed, args.output) / "results.json"
    if file.is_file():
        return
    config, options = variant
    words = [*imports_of(args.modules), "--tags", str(args.tags), "--concepts", str(args.concepts)]
    words += [
        "--vectors",
        str(args.vectors),
        "--config",
        str(args.configs / config),
        "--iterations",
        str(args.iterations),
        *options,
        "SEED",
        str(seed),
        *args.opts,
    ]
    found = json_of_own_process("benchmarks.made_up_tokens", words, OMP_NUM_THREADS=str(runs.threads_of(args)))
    write_json(file, found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs.parser("python -m benchmarks.made_up_tokens", __doc__, dataset=DATASET, output="output/made_up_tokens")
    parser.set_defaults(configs=ROOT / "configs" / "nus_wide")
    parser.add_argument("--tags", type=Path, required=True, help="NUS-WIDE's TagList1k.txt")
    parser.add_argument("--concepts", type=Path, required=True, help="its Concepts81.txt")
    parser.add_argument("--vectors", type=Path, required=True, help="word vectors, as in LABEL_EMBEDDINGS.FILE")
    parser.add_argument("--iterations", type=positive, default=400, help="batches of a training, 400 by default")
    parser.add_argument("--config", type=Path, metavar="FILE", help="only this variant; prints its numbers as JSON")
    args = parser.parse(argv)

    if args.config is not None:
        split, popularity = labels_of(args.tags, args.concepts)
        cfg = config_of(args, split)
        images = Images(WordVectorEmbeddings(args.vectors)(split.prompts), popularity)
        result = {DATASET: {**train_and_test(cfg, split, images), "run": run_facts(cfg)}}
        sys.stdout.write(json.dumps(result) + "\n")
        return
    tables = runs.chosen(TABLES, args)
    runs.run_all(run, sorted({variant for rows in tables.values() for variant in rows.values()}), args)
    files = runs.files_of_tables(tables, args)
    runs.write_report(METRICS, files, args, ["ZSL_mAP"], over=[OURS, "SDL's form, lambda = 0.3"])
    of_seeds, *_ = runs.results(next(iter(files.values())), DATASET).values()
    chance = of_seeds[0]  # the same images in all runs
    print(f"A random ranking: {chance['random_ZSL_mAP']:.1f} and {chance['random_GZSL_mAP']:.1f}.")


if __name__ == "__main__":
    main()
