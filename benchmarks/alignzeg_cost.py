"""What full-size AlignZeg costs: ``python -m benchmarks.alignzeg_cost``.

ViT-B/16 with random weights at 640 x 640, 171 classes. Each case runs in a process of its own, so that its peak memory is
its own, beside a plain form of the same computation:

* inference: proposal and patch tokens of the semantic decoder in one sequence under a full mask, and all masks upsampled
  to the image before they are summed;
* training: gradients through CLIP as well, which any trained parameter below it (its position embeddings, say) asks for;
* texts: one at a time, padded to CLIP's 77 tokens.

Cases alternate (ours, plain, ours, plain, ...). Times are medians; only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from alignzeg_d2 import add_alignzeg_config
from alignzeg_d2 import inference as segmentation
from alignzeg_d2.alignzeg import AlignZeg
from alignzeg_d2.semantic_inference import PlacedProposals
from benchmarks.memory import megabytes
from benchmarks.own_process import json_of_own_process
from zeroshot_d2.cli import Parser
from zeroshot_d2.clip.loader import create_clip, get_tokenizer
from zeroshot_d2.clip.text import embed_prompts, get_templates

CLIP_NAME = "ViT-B-16-quickgelu"
SIZE = 640
CLASSES = tuple(f"class number {i}" for i in range(171))


class PlainSemanticDecoder(nn.Module):
    """The same features as the semantic decoder's, from one self-attention over [proposals; CLS; patches] per block."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, attention_bias: Tensor, grid: tuple[int, int]) -> Tensor:
        decoder: Any = self.decoder
        n, _, q = attention_bias.shape[:3]
        bias = F.adaptive_max_pool2d(attention_bias.flatten(1, 2), grid) * decoder.bias_scale
        length = tokens.shape[1]
        mask = torch.zeros(n, q + length, q + length)
        mask[:, :q, :q] = float("-inf")
        mask[:, :q, :q].diagonal(dim1=1, dim2=2).fill_(0)
        mask[:, :q, q] = float("-inf")
        mask[:, :q, q + 1 :] = bias.flatten(2)
        mask[:, q:, :q] = float("-inf")
        mask = mask.repeat_interleave(decoder.num_heads, dim=0)
        x = torch.cat([tokens[:, :1].expand(-1, q, -1), tokens], dim=1)
        for block in decoder.blocks:
            x = block(x, attn_mask=mask)
        return decoder.projection(decoder.ln_post(x[:, :q]))


def config(num_prompts: int = 0, options: Sequence[object] = ()) -> CfgNode:
    """That of full-size AlignZeg with random weights on the CPU; ``options`` are KEY, VALUE, KEY, VALUE, ..."""
    cfg: CfgNode = get_cfg()
    add_alignzeg_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ALIGNZEG.CLIP.NAME = CLIP_NAME
    cfg.MODEL.ALIGNZEG.CLIP.PRETRAINED = ""
    cfg.MODEL.ALIGNZEG.CLIP.NUM_PROMPTS = num_prompts
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    cfg.merge_from_list(list(options))
    return cfg


def build(num_prompts: int = 0) -> AlignZeg:
    torch.manual_seed(0)
    return build_model(config(num_prompts))


def inputs(count: int, size: int = SIZE, classes: Sequence[str] = CLASSES) -> list[dict[str, Any]]:
    """Random square images, with labels of 16 blocks each."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, len(classes), (count, 4, 4), generator=generator).float()
    sem_seg = F.interpolate(blocks[:, None], size=(size, size))[:, 0].long()
    return [
        {
            "image": torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8),
            "sem_seg": labels,
            "vocabulary": classes,
        }
        for labels in sem_seg
    ]


def measure(step: Callable[[], object], repeats: int) -> float:
    """Median seconds of ``step`` after one call that does not count."""
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fix_prototypes(model: AlignZeg, num_classes: int = len(CLASSES)) -> None:
    """Random prototypes in place of the text tower's, whose time is a case of its own."""
    width = model.classifier.background_prototypes.shape[1]
    prototypes = F.normalize(torch.randn(num_classes, width, device=model.device), dim=-1)
    model.text_embeddings = lambda prompts, clip=None: prototypes  # type: ignore[assignment]


def plain_scores(found: Sequence[PlacedProposals], *, output_size: tuple[int, int], **unused: Any) -> tuple[Tensor, Tensor]:
    """What ``semantic_scores`` computes of an unpadded image, from all masks at full size at once."""
    (part,) = found
    masks = F.interpolate(part.mask_logits[None], size=output_size, mode="bilinear", align_corners=False)[0].sigmoid()
    return torch.einsum("qk,qhw->khw", part.probabilities, masks), masks.sum(dim=0).clamp(min=1)


def inference(plain: bool, repeats: int) -> dict[str, float]:
    model = build().eval()
    fix_prototypes(model)
    if plain:
        model.semantic_decoder = PlainSemanticDecoder(model.semantic_decoder)
        segmentation.semantic_scores = plain_scores
    batch = inputs(1)
    return {"seconds": measure(lambda: model(batch), repeats)}


def training(plain: bool, repeats: int, num_prompts: int) -> dict[str, float]:
    model = build(num_prompts).train()
    fix_prototypes(model)
    if plain:
        model.semantic_decoder = PlainSemanticDecoder(model.semantic_decoder)
        model.clip_image_encoder.positional_embedding.requires_grad_(True)
        encoder: Any = model.clip_image_encoder
        encoder.forward = encoder._forward
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch = inputs(2)

    def step() -> None:
        loss: Tensor = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"seconds": measure(step, repeats)}


def texts(plain: bool, repeats: int) -> dict[str, float]:
    clip = create_clip(CLIP_NAME, "")
    tokenizer = get_tokenizer(CLIP_NAME)
    templates = get_templates("vild")

    @torch.no_grad()
    def one_by_one() -> None:
        for name in CLASSES:
            for template in templates:
                F.normalize(clip.encode_text(tokenizer([template.format(name)])), dim=-1)

    def ours() -> None:
        embed_prompts(clip, tokenizer, CLASSES, templates)

    start = time.perf_counter()
    (one_by_one if plain else ours)()
    return {"seconds": time.perf_counter() - start}


CASES: dict[str, Callable[[bool, int], dict[str, float]]] = {
    "inference, one image": inference,
    "training step, batch 2, 0 prompts": lambda plain, repeats: training(plain, repeats, 0),
    "training step, batch 2, 20 prompts": lambda plain, repeats: training(plain, repeats, 20),
    f"texts, {len(CLASSES)} names x 14 templates": texts,
}


def run_case(name: str, plain: bool, repeats: int) -> dict[str, float]:
    """One case in a process of its own: seconds and peak gigabytes."""
    words = ["--case", name, "--repeats", str(repeats), *(["--plain"] if plain else [])]
    measured: dict[str, float] = json_of_own_process("benchmarks.alignzeg_cost", words)
    return measured


def sizes() -> list[str]:
    model = build().eval()
    held = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        flops = FlopCountAnalysis(_Proposals(model), torch.zeros(1, 3, SIZE, SIZE)).unsupported_ops_warnings(False)
        flops = flops.uncalled_modules_warnings(False).total()
    return [
        f"parameters held {held / 1e6:.1f} M, trained {trained / 1e6:.1f} M",
        f"GMACs up to proposals and their features, one image: {flops / 1e9:.1f} (fvcore; attention products not counted)",
    ]


class _Proposals(nn.Module):
    def __init__(self, model: AlignZeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.extract_proposals(images)


def main() -> None:
    parser = Parser("python -m benchmarks.alignzeg_cost", __doc__, takes_keys=False)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per process")
    parser.add_argument("--rounds", type=int, default=2, help="processes per case and form")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse()
    if args.case:
        result = CASES[args.case](args.plain, args.repeats)
        result["gigabytes"] = megabytes("VmHWM") / 1024
        print(json.dumps(result))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores", *sizes(), sep="\n")
    print("\n| case | ours | plain form | time ratio | peak memory ratio |\n|---|---|---|---|---|")
    for name in CASES:
        ours, plain = [], []
        for _ in range(args.rounds):
            ours.append(run_case(name, False, args.repeats))
            plain.append(run_case(name, True, args.repeats))
        cells = []
        for runs in (ours, plain):
            seconds = statistics.median(run["seconds"] for run in runs)
            cells.append(f"{seconds:.2f} s, {max(run['gigabytes'] for run in runs):.1f} GB")
        speed = statistics.median(p["seconds"] / o["seconds"] for o, p in zip(ours, plain, strict=True))
        memory = max(run["gigabytes"] for run in ours) / max(run["gigabytes"] for run in plain)
        print(f"| {name} | {cells[0]} | {cells[1]} | {speed:.2f} x faster | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
