"""The config keys of the trainer, shared by all systems. Detectron2's own keys keep their meaning."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

from .images import MAX_PIXELS
from .precision import PRECISIONS
from .ranges import choice, declare, device, each, folder, number, optional, registered, text, whole


def add_trainer_config(cfg: CfgNode) -> None:
    """Add the trainer's keys to ``cfg`` in place. Every task calls it; a second call changes nothing."""
    if "OPTIMIZER" in cfg.SOLVER:
        return

    # Detectron2 has "cuda" whatever the machine.
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

    # ---- optimiser ----
    # "ADAMW", "ADAM", "SGD" (with SOLVER.MOMENTUM and SOLVER.NESTEROV) or "RMSPROP" (with SOLVER.MOMENTUM), which is
    # TensorFlow's: it divides by the root of the mean square plus RMSPROP_EPS.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.RMSPROP_DECAY = 0.9  # of the mean square
    cfg.SOLVER.RMSPROP_EPS = 1e-10
    # Weight decay of nn.Embedding modules and of the parameters named below; SOLVER.WEIGHT_DECAY_NORM (0) is that of
    # normalisation layers, SOLVER.WEIGHT_DECAY that of everything else.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # Last components of parameter names: "pos_embed" covers encoder.pos_embed, not encoder.pos_embed_mlp.weight.
    cfg.SOLVER.WEIGHT_DECAY_EMBED_NAMES = ["pos_embed", "positional_embedding", "query_embed", "cls_token"]
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE also takes "full_model": the norm over all parameters ("norm": one for each).

    # ---- schedule ----
    # SOLVER.LR_SCHEDULER_NAME also takes "WarmupPolyLR": BASE_LR * (1 - iteration / MAX_ITER) ** POLY_LR_POWER, but not
    # less than BASE_LR * POLY_LR_CONSTANT_ENDING.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # Length of the training in epochs of DATASETS.TRAIN; 0: SOLVER.MAX_ITER iterations count instead.
    cfg.SOLVER.MAX_EPOCHS = 0
    # With MAX_EPOCHS: after how many epochs the rate is multiplied by SOLVER.GAMMA (replaces SOLVER.STEPS).
    cfg.SOLVER.STEPS_EPOCHS = []

    # How many of the checkpoints that SOLVER.CHECKPOINT_PERIOD writes stay, the newest ones; 0: all.
    cfg.SOLVER.CHECKPOINT_KEEP = 0

    # The batch goes through the network in so many pieces, one after another; its gradients are summed.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Of SOLVER.AMP: "float16", on CUDA devices only, or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Parts of the model that are not trained: names of modules or parameters, such as "image_encoder".
    cfg.SOLVER.FREEZE = []
    # Of an exponential moving average of the weights, which is evaluated and saved as model_average.pth; 0: none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # A project of Weights & Biases that gets losses and results; "": none.
    cfg.SOLVER.WANDB_PROJECT = ""

    # ---- data ----
    # False: an image or label that cannot be read ends the run with an error that names the file.
    # True: training replaces it by another image, counts it and logs its name. Evaluation never skips an image.
    cfg.INPUT.SKIP_UNREADABLE = False
    # Files with more pixels (width times height) are refused.
    cfg.INPUT.MAX_PIXELS = MAX_PIXELS
    # Batches of similar aspect ratio would depend on the number of processes, so the trainer refuses True.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    # Images per process and step of the evaluation.
    cfg.TEST.IMS_PER_BATCH = 1
    # A number of the first of DATASETS.TEST, such as "hIoU" or "ZSL_mAP": the weights of its highest value are saved as
    # model_best.pth; "": none. TEST.EVAL_PERIOD says how often.
    cfg.TEST.BEST_METRIC = ""
    # With BEST_METRIC: the training stops after so many evaluations without a better one; 0: never.
    cfg.TEST.PATIENCE = 0
    # At test time networks compute in "float32", or mixed with "bfloat16" or "float16" (CUDA devices only); class scores and
    # masks at full size are float32 in any case.
    cfg.TEST.PRECISION = "float32"
    # torch.compile for the parts of a model that list themselves for it; needs a C++ compiler, and minutes at the start.
    cfg.MODEL.COMPILE = False
    # Save what evaluation predicts below OUTPUT_DIR/predictions: "labels", "scores" or "json"; "": nothing.
    cfg.TEST.SAVE_PREDICTIONS = ""


declare(
    "",
    {
        "MODEL.DEVICE": device(),
        "MODEL.BACKBONE.NAME": registered(BACKBONE_REGISTRY),
        "MODEL.PIXEL_MEAN": each(number(), count=3),
        "MODEL.PIXEL_STD": each(number(above=0), count=3),
        "DATASETS.TRAIN": each(text()),
        "DATASETS.TEST": each(text(), distinct=True),
        "INPUT.FORMAT": choice("RGB", "BGR"),
        "INPUT.RANDOM_FLIP": choice("horizontal", "vertical", "none"),
        "INPUT.MAX_PIXELS": whole(1),
        "DATALOADER.NUM_WORKERS": whole(0),
        "TEST.EVAL_PERIOD": whole(0),
        "TEST.IMS_PER_BATCH": whole(1),
        "TEST.PATIENCE": whole(0),
        "TEST.PRECISION": choice(*PRECISIONS),
        "TEST.SAVE_PREDICTIONS": choice("", "labels", "scores", "json"),
        "TEST.PRECISE_BN.ENABLED": choice(False),  # no system has batch norm
        "OUTPUT_DIR": folder(),
        "SEED": whole(-1, 2**32 - 1),  # -1: draw one; numpy takes no larger ones
    },
)
declare(
    "SOLVER",
    {
        "OPTIMIZER": choice("ADAMW", "ADAM", "SGD", "RMSPROP"),
        "RMSPROP_DECAY": number(0, below=1),
        "RMSPROP_EPS": number(above=0),
        "IMS_PER_BATCH": whole(1),
        "BASE_LR": number(above=0),
        "BASE_LR_END": number(0),
        "BIAS_LR_FACTOR": optional(number(0)),
        "MOMENTUM": number(0, below=1),
        "WEIGHT_DECAY": number(0),
        "WEIGHT_DECAY_NORM": optional(number(0)),
        "WEIGHT_DECAY_BIAS": optional(number(0)),
        "WEIGHT_DECAY_EMBED": number(0),
        "WEIGHT_DECAY_EMBED_NAMES": each(text()),
        "CLIP_GRADIENTS.CLIP_TYPE": choice("value", "norm", "full_model"),
        "CLIP_GRADIENTS.CLIP_VALUE": number(above=0),
        "CLIP_GRADIENTS.NORM_TYPE": number(above=0),
        "MAX_ITER": whole(1),
        "MAX_EPOCHS": number(0),
        "LR_SCHEDULER_NAME": choice("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR"),
        "STEPS": each(whole(1)),
        "STEPS_EPOCHS": each(number(0)),
        "NUM_DECAYS": whole(1),
        "GAMMA": number(above=0),
        "POLY_LR_POWER": number(0),
        "POLY_LR_CONSTANT_ENDING": number(0, 1),
        "WARMUP_ITERS": whole(0),
        "WARMUP_FACTOR": number(0, 1),
        "WARMUP_METHOD": choice("linear", "constant"),
        "REFERENCE_WORLD_SIZE": whole(0),
        "CHECKPOINT_PERIOD": whole(1),
        "CHECKPOINT_KEEP": whole(0),
        "ACCUMULATION_STEPS": whole(1),
        "AMP.DTYPE": choice("float16", "bfloat16"),
        "FREEZE": each(text(), distinct=True),
        "EMA_DECAY": number(0, below=1),
    },
)
