"""Make a model of this project from a file of weights that SAN's authors released.

    python -m zeroshot_d2 import-san san_vit_b_16.pth --output san_b
    python -m zeroshot_d2 import-san san_vit_large_14.pth --output san_l

The folder then has a config.yaml and a model_final.pth, as if the model had been trained here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.modeling import build_model
from torch import Tensor

from zeroshot_d2.checkpoint import Checkpointer, ModelRecord, read_checkpoint
from zeroshot_d2.cli import Parser, load_config
from zeroshot_d2.clip.loader import create_clip
from zeroshot_d2.storage import PathLike, write_text

# The config of each release, by the width of its CLIP.
CONFIGS = {768: "coco/baselines/san_all.yaml", 1024: "coco/baselines/san_vit_l_all.yaml"}

# (pattern of SAN's name, ours). A convolution of 1 x 1 is a linear map here, and each of a perceptron's layers but the last
# has an activation behind it, which counts.
_LEARNT = [
    (r"side_adapter_network\.(query_embed|query_pos_embed)", r"side_network.\1"),
    (r"side_adapter_network\.vit_model\.patch_embed\.proj\.(\w+)", r"side_network.patch_embed.\1"),
    (r"side_adapter_network\.vit_model\.(pos_embed|blocks\..+)", r"side_network.\1"),
    (r"side_adapter_network\.fusion_layers\.layer_(\d+)\.input_proj\.0\.(\w+)", r"side_network.fusions.\1.norm.\2"),
    (r"side_adapter_network\.fusion_layers\.layer_(\d+)\.input_proj\.1\.(\w+)", r"side_network.fusions.\1.project.\2"),
    (r"side_adapter_network\.mask_decoder\.bias_scaling\.(\w+)", r"mask_decoder.bias_scaling.\1"),
    (r"side_adapter_network\.mask_decoder\.query_mlp\.layers\.(\d+)\.(\w+)", r"mask_decoder.query_mlp.\1.\2"),
    (r"side_adapter_network\.mask_decoder\.pix_mlp\.layers\.(\d+)\.(\w+)", r"mask_decoder.pixel_mlp.\1.\2"),
    (r"side_adapter_network\.mask_decoder\.attn_mlp\.layers\.(\d+)\.(\w+)", r"mask_decoder.bias_mlp.\1.\2"),
    (r"clip_rec_head\.sos_token", "recognition.sos_token"),
    (r"ov_classifier\.bg_embed", "classifier.background_prototypes"),
]
# Made anew from the config.
_NOT_NEEDED = {"criterion.empty_weight", "ov_classifier.attn_mask", "pixel_mean", "pixel_std"}
_POSITIONS = "clip_visual_extractor.positional_embedding"


def learnt_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What SAN learnt, under the names of :class:`baselines_d2.san.SAN`.

    CLIP's position embeddings are among it.

    Raises:
        ValueError: a name that is neither SAN's nor CLIP's.
    """
    found = {"clip_image_encoder.positional_embedding": state[_POSITIONS].float()}
    for key, value in state.items():
        if key in _NOT_NEEDED or _clip_key(key, 0) is not None:
            continue
        for pattern, ours in _LEARNT:
            match = re.fullmatch(pattern, key)
            if match is not None:
                name = match.expand(ours)
                layer = re.fullmatch(r"(mask_decoder\.\w+_mlp)\.(\d+)\.(\w+)", name)
                if layer is not None:
                    name = f"{layer[1]}.{2 * int(layer[2])}.{layer[3]}"
                is_patch_convolution = name.startswith("side_network.patch_embed.")
                found[name] = (value if value.ndim < 4 or is_patch_convolution else value.flatten(1)).float()
                break
        else:
            raise ValueError(f"{key!r} is no weight of SAN as its authors released it")
    return found


def clip_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The CLIP within SAN's weights, under open_clip's names; its position embeddings are those that SAN trained."""
    trunk = {key.split(".")[2] for key in state if key.startswith("clip_visual_extractor.resblocks.")}
    named = {_clip_key(key, len(trunk)): value.float() for key, value in state.items() if key not in _NOT_NEEDED}
    return {key: value for key, value in named.items() if key is not None}


def _clip_key(key: str, trunk_blocks: int) -> str | None:
    """open_clip's name of one of SAN's weights; None where it is not CLIP's. SAN counts the last blocks from 0 again."""
    part, _, rest = key.partition(".")
    if part == "ov_classifier" and rest != "bg_embed":
        return rest
    if part not in ("clip_visual_extractor", "clip_rec_head") or rest == "sos_token":
        return None
    block = re.fullmatch(r"resblocks\.(\d+)\.(.+)", rest)
    if block is None:
        return f"visual.{rest}"
    return f"visual.transformer.resblocks.{int(block[1]) + (trunk_blocks if part == 'clip_rec_head' else 0)}.{block[2]}"


def check_clip(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], source: PathLike) -> None:
    """Raise ValueError where the CLIP in a file, apart from its position embeddings, is not the config's."""
    for key, value in theirs.items():
        if key == "visual.positional_embedding":
            continue
        if key not in ours or ours[key].shape != value.shape:
            raise ValueError(
                f"{source} holds another CLIP than the config's: {key} has the shape {tuple(value.shape)} there and "
                f"{tuple(ours[key].shape) if key in ours else 'is missing'} here; --config-file names another config"
            )
        # Released weights may be rounded to half precision.
        if not torch.allclose(ours[key].float(), value, rtol=1e-3, atol=1e-3 * value.abs().max().item()):
            raise ValueError(
                f"{source} was trained upon other CLIP weights than the config's: {key} differs; "
                "MODEL.SAN.CLIP.PRETRAINED names the ones to use"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError: the file or the config does not exist.
        ValueError: the file is damaged, holds more than weights, or weights of another model or upon another CLIP.
    """
    parser = Parser("python -m zeroshot_d2 import-san", __doc__)
    parser.add_argument("weights", type=Path, help="SAN's released file, ending with .pth")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="where the model goes")
    parser.add_argument(
        "--config-file", metavar="FILE", help="of a model with other sizes; default: the release's, by the width of its CLIP"
    )
    args = parser.parse(argv)
    state = read_checkpoint(args.weights)["model"]
    if _POSITIONS not in state or state[_POSITIONS].ndim != 2:
        raise ValueError(f"{args.weights} holds no weights of SAN: there is no table {_POSITIONS} in it")
    width = state[_POSITIONS].shape[-1]
    if args.config_file is None and width not in CONFIGS:
        raise ValueError(
            f"{args.weights} is upon a CLIP of width {width}, the releases are upon {' and '.join(map(str, CONFIGS))}: give "
            "the config of this model as --config-file"
        )
    cfg = load_config(args.config_file or CONFIGS[width], args.opts)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "cpu", "", str(args.output)

    clip = create_clip(cfg.MODEL.SAN.CLIP.NAME, cfg.MODEL.SAN.CLIP.PRETRAINED)
    check_clip(clip.state_dict(), clip_weights(state), args.weights)
    model = build_model(cfg)
    learnt, expected = learnt_weights(state), model.state_dict()
    wrong = sorted(set(learnt) ^ set(expected)) or [key for key in expected if expected[key].shape != learnt[key].shape]
    if wrong:
        raise ValueError(
            f"{args.weights} does not fit the config: {len(wrong)} weights are there or here alone, or have another shape, "
            f"the first being {wrong[:3]}; --config-file names another config"
        )
    model.load_state_dict(learnt, strict=False)
    args.output.mkdir(parents=True, exist_ok=True)
    write_text(args.output / "config.yaml", cfg.dump())
    Checkpointer(model, str(args.output), record=ModelRecord.for_training(cfg, model)).save("model_final")
    print(f"{args.output}: {sum(value.numel() for value in learnt.values()):,} weights of {args.weights}")
    return 0
