"""Trains the small CLIP of a demo world: ``python -m zeroshot_d2.demo_world.pretrain --output clip.safetensors``.

    python -m zeroshot_d2.demo_world.pretrain --world demo_near --output clip.safetensors

The model is open_clip's own CLIP class with open_clip's own tokenizer (on a small BPE table), so the result is loaded
through the same code path as OpenAI's ViT-B/16. Recipe: AdamW, warm-up and cosine, batches of 64; captions of single tiles
first, then whole scenes; every image of the batch that a caption fits counts as its positive.
"""

from __future__ import annotations

import gzip
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ..cli import Parser
from ..clip.loader import PIXEL_MEAN, PIXEL_STD, create_clip, get_tokenizer
from ..clip.text import TEMPLATES, encode_tokens
from ..weights import write_safetensors
from .render import DemoImage, render
from .worlds import MATERIALS, STUFF, TONES, WORLDS, World

logger = logging.getLogger(__name__)


def facts(world: World) -> tuple[str, ...]:
    """What a caption may state; it fits every image in which all of its facts hold."""
    tiles = tuple(f"{texture} {family} tile" for texture in world.textures for family in world.families)
    colours = tuple(world.colours)
    return world.things + STUFF + colours + world.textures + TONES + tuple(MATERIALS) + tuple(world.families) + tiles


def build_bpe_table(world: World) -> bytes:
    """A gzipped merge table for open_clip's SimpleTokenizer in which each word of a world's texts is one token.

    Byte-pair encoding learnt on those words until none is left in pieces; any other text still has tokens, if more of them.
    """
    texts = [*TEMPLATES["vild"], *TEMPLATES["imagenet"], *facts(world), *world.shapes, "something and next to"]
    words = sorted({word for text in texts for word in "".join(c if c.isalpha() else " " for c in text.lower()).split()})
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[str] = []
    while pairs := Counter(pair for word in pieces for pair in zip(word, word[1:], strict=False)):
        (left, right), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        merges.append(f"{left} {right}")
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [left + right]
                i += 1
    return gzip.compress("\n".join(["#version: 0.2", *merges]).encode(), mtime=0)


def facts_of(image: DemoImage, world: World) -> set[str]:
    """The facts that hold in an image."""
    held = set()
    for index in image.classes:
        name = world.split.names[index]
        first, second, *_ = name.split()
        held |= {name, first, second}
        if name in world.things and world.families:
            family = world.family_of(second)
            held |= {family, f"{first} {family} tile"}
    return held


def _by_family(thing: str, world: World) -> str:
    """ "plain teal tile" -> "plain bluish tile"."""
    texture, colour, noun = thing.split()
    return f"{texture} {world.family_of(colour)} {noun}"


def caption_of(image: DemoImage, world: World, rng: np.random.Generator) -> tuple[str, list[str]]:
    """A caption and the facts it states."""
    names = [world.split.names[index] for index in image.classes]
    things = [name for name in names if name in world.things]
    grounds = [name for name in names if name in STUFF]
    template = str(rng.choice(TEMPLATES["vild"])) if rng.random() < 0.7 else "{}"
    if world.families and rng.random() < world.family_share:
        things = [_by_family(name, world) for name in things]
    kind = rng.random()
    if not things or kind < 0.15:
        ground = str(rng.choice(grounds))
        return template.format(ground), [ground]
    if kind < 0.25:
        word = str(rng.choice(things)).split()[int(rng.integers(2))]
        return template.format(f"{word} tile"), [word]
    if kind < 0.30:
        word = str(rng.choice(grounds)).split()[int(rng.integers(2))]
        return template.format(word), [word]
    if kind < 0.75:
        thing = str(rng.choice(things))
        return template.format(thing), [thing]
    stated = [str(name) for name in rng.permutation(things)[: int(rng.integers(1, 3))]]
    ground = str(rng.choice(grounds))
    return template.format(" and a ".join(stated) + f" on {ground}"), [*stated, ground]


class _Captions(IterableDataset):
    """Endless batches (images uint8 (N, S, S, 3), captions, facts of images (N, F), facts stated by captions (N, F))."""

    def __init__(self, world: World, seed: int, batch_size: int, single_until: int, start: int = 0) -> None:
        self.world, self.seed, self.batch_size, self.single_until, self.start = world, seed, batch_size, single_until, start

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[str], np.ndarray, np.ndarray]]:
        rng = np.random.default_rng([self.seed, 77])
        step, known = self.start, facts(self.world)
        while True:
            # Scenes keep a share of single tiles, whose captions are the clearest.
            images, captions, held, stated = [], [], [], []
            for i in range(self.batch_size):
                single = step < self.single_until or i % 4 == 0
                number = step * self.batch_size + i
                image = render(self.seed, number, num_objects=(1, 1) if single else (1, 4), world=self.world)
                caption, told = caption_of(image, self.world, rng)
                images.append(image.image)
                captions.append(caption)
                held.append(np.isin(known, list(facts_of(image, self.world))))
                stated.append(np.isin(known, told))
            yield np.stack(images), captions, np.stack(held), np.stack(stated)
            step += 1


def initialise(clip: open_clip.CLIP) -> None:
    """OpenAI's initialisation of the vision blocks; open_clip leaves torch's defaults there."""
    transformer = clip.visual.transformer
    width, layers = transformer.width, transformer.layers
    for block in transformer.resblocks:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, fits: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy when several images may fit a caption.

    Args:
        image_features, text_features: (N, D), unit length.
        scale: () logit scale.
        fits: (N, N) bool, fits[i, j] = caption j fits image i; true on the diagonal.
    """
    logits = scale * image_features @ text_features.T
    target = fits.float()
    by_image = -(F.log_softmax(logits, dim=1) * target).sum(1) / target.sum(1)
    by_text = -(F.log_softmax(logits, dim=0) * target).sum(0) / target.sum(0)
    return (by_image.mean() + by_text.mean()) / 2


def normalise(images: Tensor) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, S, S) float as CLIP expects it."""
    return (images.permute(0, 3, 1, 2).float() - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(PIXEL_STD).view(
        3, 1, 1
    )


@torch.no_grad()
def single_tile_accuracy(clip: open_clip.CLIP, world: World, seed: int, num_images: int = 600) -> dict[str, float]:
    """Zero-shot accuracy (percent) on images of one tile: of seen and of unseen classes and, where there are families, how
    often an unseen one is taken for one of its own texture and family."""
    tokenizer, things = get_tokenizer(world.clip), world.things
    text = F.normalize(clip.encode_text(tokenizer([f"a photo of a {name}." for name in things])), dim=-1)
    right: dict[str, list[bool]] = {"seen": [], "unseen": []}
    images = [render(seed, i, num_objects=(1, 1), world=world) for i in range(num_images)]
    features = F.normalize(clip.encode_image(normalise(torch.from_numpy(np.stack([i.image for i in images])))), dim=-1)
    for image, predicted in zip(images, (features @ text.T).argmax(1).tolist(), strict=True):
        for truth in image.classes:
            if truth < len(things):
                unseen = things[truth] in world.unseen
                right["unseen" if unseen else "seen"].append(truth == predicted)
                if unseen and world.families:
                    near = _by_family(things[truth], world) == _by_family(things[predicted], world)
                    right.setdefault("unseen, family", []).append(near)
    return {key: 100 * float(np.mean(value)) for key, value in right.items()}


def train(
    *,
    world: World,
    steps: int,
    batch_size: int,
    seed: int,
    learning_rate: float,
    weight_decay: float,
    single_share: float,
    workers: int,
) -> open_clip.CLIP:
    """Train and return the CLIP in evaluation mode."""
    torch.manual_seed(seed)
    clip = create_clip(world.clip, pretrained="")
    initialise(clip)
    tokenizer = get_tokenizer(world.clip)
    decayed = [p for p in clip.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in clip.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    warmup = min(200, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))),
    )
    batches = DataLoader(
        _Captions(world, 1000 + seed, batch_size, single_until=int(single_share * steps)),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    started, shown = time.perf_counter(), 0.0
    clip.train()
    for step, (images, captions, held, stated) in zip(range(steps), batches, strict=False):
        held, stated = torch.as_tensor(held).float(), torch.as_tensor(stated).float()
        fits = held @ stated.T == stated.sum(1)
        tokens = tokenizer(captions)
        tokens = tokens[:, : int((tokens > 0).sum(1).max())]
        image_features = F.normalize(clip.encode_image(normalise(torch.as_tensor(images))), dim=-1)
        text_features = F.normalize(encode_tokens(clip, tokens), dim=-1)
        loss = contrastive_loss(image_features, text_features, clip.logit_scale.exp(), fits)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        shown = loss.item() if step == 0 else 0.98 * shown + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            elapsed = time.perf_counter() - started
            left = elapsed / (step + 1) * (steps - step - 1)
            logger.info("step %d/%d loss %.3f scale %.1f eta %.0f s", step + 1, steps, shown, clip.logit_scale.exp(), left)
        if (step + 1) % 500 == 0:
            clip.eval()
            logger.info("single tiles: %s", single_tile_accuracy(clip, world, seed=3))
            clip.train()
    return clip.eval()


def main(argv: Sequence[str] | None = None) -> None:
    """Train with command-line arguments ``argv``."""
    parser = Parser("python -m zeroshot_d2.demo_world.pretrain", __doc__, takes_keys=False)
    parser.add_argument("--world", choices=list(WORLDS), default="demo_world")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=3250)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--single-share", type=float, default=0.3, help="share of the steps that see single tiles only")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    clip = train(
        world=WORLDS[args.world],
        steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        single_share=args.single_share,
        workers=args.workers,
    )
    logger.info("single tiles: %s", single_tile_accuracy(clip, WORLDS[args.world], seed=4, num_images=2000))
    write_safetensors(args.output, clip.state_dict(), {})
    logger.info("wrote %s (%.1f MB)", args.output, args.output.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
