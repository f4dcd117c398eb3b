"""Every key of Epsilon, with the paper's symbol, default and place. Defaults are those of NUS-WIDE.

:func:`add_tagger_config` has those of them that the compared methods read too.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from zeroshot_d2.clip.text import template_set
from zeroshot_d2.multilabel.config import add_multilabel_config
from zeroshot_d2.ranges import choice, declare, number, whole


def add_tagger_config(cfg: CfgNode) -> None:
    """Add the keys of everything that is frozen, and set the input's: :class:`epsilon_d2.tagger.Tagger` reads them."""
    add_multilabel_config(cfg)

    # "TimmViT", "ClipViT", or your own in BACKBONE_REGISTRY that gives {"tokens": (N, L, D)}.
    cfg.MODEL.BACKBONE.NAME = "TimmViT"
    cfg.INPUT.FORMAT = "RGB"
    # Of the default backbone's weights; weights of a tag that were trained with other ones refuse these.
    cfg.MODEL.PIXEL_MEAN = [127.5, 127.5, 127.5]
    cfg.MODEL.PIXEL_STD = [127.5, 127.5, 127.5]

    epsilon = cfg.MODEL.EPSILON = CfgNode()

    # ---- frozen backbone ----
    epsilon.BACKBONE = CfgNode()
    # A timm name for TimmViT ("vit_base_patch16_224", Dosovitskiy et al.; "vit_base_patch14_dinov2"), an open_clip name for
    # ClipViT ("ViT-B-16-SigLIP").
    epsilon.BACKBONE.NAME = "vit_base_patch16_224"
    # A timm or open_clip tag, whose pixel statistics MODEL.PIXEL_MEAN and PIXEL_STD must be; a local weights file; "bundled"
    # (ClipViT: the demo world's CLIP) or "" (random weights).
    epsilon.BACKBONE.PRETRAINED = "orig_in21k"
    # Number of the block whose output is F, counted from 1; 0: the last one, behind the final norm.
    epsilon.BACKBONE.TAP = 0
    # Whether [CLS] is among the tokens of F.
    epsilon.BACKBONE.CLS_TOKEN = False

    # ---- label vectors ----
    epsilon.LABEL_EMBEDDINGS = CfgNode()
    # "file": word vectors such as GloVe's. "clip": CLIP's text encoder.
    epsilon.LABEL_EMBEDDINGS.SOURCE = "file"
    # .txt (a word and its numbers per line) or .npz ("names", "vectors"); also looked for in $DETECTRON2_DATASETS.
    epsilon.LABEL_EMBEDDINGS.FILE = "glove/glove.6B.300d.txt"
    epsilon.LABEL_EMBEDDINGS.CLIP_NAME = "ViT-B-16-quickgelu"
    epsilon.LABEL_EMBEDDINGS.CLIP_PRETRAINED = "openai"
    epsilon.LABEL_EMBEDDINGS.TEMPLATES = "vild"
    # Bring label vectors to unit length; False, for SOURCE "file", takes them as the file has them.
    epsilon.LABEL_EMBEDDINGS.NORMALISE = True
    # Subtract the mean of the training vocabulary's vectors, and normalise again where NORMALISE is True.
    epsilon.LABEL_EMBEDDINGS.CENTRE = False

    # ---- input ----
    cfg.INPUT.IMAGE_SIZE = 224
    cfg.INPUT.CROP_SCALE = (0.7, 1.0)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.MIN_SIZE_TEST = 224  # what DefaultPredictor hands over; the model makes it square
    cfg.INPUT.MAX_SIZE_TEST = 1333

    # ---- evaluation ----
    cfg.TEST.EVAL_PERIOD = 0
    cfg.TEST.IMS_PER_BATCH = 32
    cfg.SEED = 1


def add_epsilon_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.EPSILON`` and set Detectron2's own keys to what Epsilon trains with."""
    add_tagger_config(cfg)

    cfg.MODEL.META_ARCHITECTURE = "Epsilon"
    epsilon = cfg.MODEL.EPSILON
    epsilon.NUM_GROUPS = 8  # M, for group prompts and feature blocks alike (Fig. 3a)

    # ---- Group Prompts Aggregation, GPA (Eq. 1-3) ----
    epsilon.GPA = CfgNode()
    epsilon.GPA.ENABLED = True
    epsilon.GPA.ENCODER_LAYERS = 1  # of E in Eq. 2
    epsilon.GPA.ENCODER_HEADS = 8
    epsilon.GPA.ENCODER_FFN = 2048
    epsilon.GPA.DROPOUT = 0.1
    # Divide F^K GT^Q by sqrt(D) ahead of the softmax; False is Eq. 3 as printed.
    epsilon.GPA.SCALED = True

    # ---- Global Forward Propagation, GFP (Eq. 4-6) ----
    epsilon.GFP = CfgNode()
    epsilon.GFP.ENABLED = True
    epsilon.GFP.MLP_RATIO = 1.0  # hidden width of the MLP of Eq. 4, as a multiple of D

    # ---- objective (Eq. 9-13) ----
    epsilon.LOSS = CfgNode()
    epsilon.LOSS.LAMBDA = 0.3  # lambda, weight of L_reg against L_r (Fig. 3b)
    # "paper": alpha of Eq. 10 is 1 / (|T| |T-bar|), as printed. "sdl": the form of the public code of SDL, which the loss is
    # inspired by: alpha is 1 / |T|, and the whole objective is doubled.
    # lambda's range in Fig. 3b, and its 0.3, belong to the second (docs/results.md).
    epsilon.LOSS.RANK_FORM = "sdl"
    # The variance of Eq. 12: "groups", over the groups, per dimension (SDL's code), or "within", over each group's own
    # vector (as it is printed).
    epsilon.LOSS.VARIANCE = "groups"

    # ---- inference ----
    epsilon.TEST = CfgNode()
    # Also return which patches each group looks at.
    epsilon.TEST.RETURN_ATTENTION = False

    # ---- solver ("Implementation Details") ----
    cfg.SOLVER.OPTIMIZER = "ADAM"
    cfg.SOLVER.IMS_PER_BATCH = 96  # B
    cfg.SOLVER.BASE_LR = 1e-5
    cfg.SOLVER.MAX_EPOCHS = 7
    cfg.SOLVER.STEPS_EPOCHS = [3]  # the fourth epoch is the first at half the rate
    cfg.SOLVER.GAMMA = 0.5
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    # One weight decay for everything that learns, as torch.optim.Adam applies it.
    cfg.SOLVER.WEIGHT_DECAY = 4e-3
    cfg.SOLVER.WEIGHT_DECAY_NORM = 4e-3
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 4e-3
    cfg.SOLVER.WEIGHT_DECAY_EMBED_NAMES = []
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000


declare(
    "MODEL.EPSILON",
    {
        "NUM_GROUPS": whole(1),
        "BACKBONE.TAP": whole(0),
        "GPA.ENCODER_LAYERS": whole(1),
        "GPA.ENCODER_HEADS": whole(1),
        "GPA.ENCODER_FFN": whole(1),
        "GPA.DROPOUT": number(0, below=1),
        "GFP.MLP_RATIO": number(above=0),
        "LABEL_EMBEDDINGS.SOURCE": choice("file", "clip"),
        "LABEL_EMBEDDINGS.TEMPLATES": template_set(),
        "LOSS.LAMBDA": number(0, 1),
        "LOSS.RANK_FORM": choice("paper", "sdl"),
        "LOSS.VARIANCE": choice("groups", "within"),
    },
)
