"""Every key of AlignZeg, with the paper's symbol, default and place. Defaults are those of PASCAL VOC 2012."""

from __future__ import annotations

from detectron2.config import CfgNode

from alignzeg_d2.semantic_inference import CHUNK_PIXELS
from zeroshot_d2.clip.loader import PIXEL_MEAN, PIXEL_STD
from zeroshot_d2.clip.text import template_set
from zeroshot_d2.ranges import choice, declare, number, whole
from zeroshot_d2.segmentation.config import add_segmentation_config
from zeroshot_d2.segmentation.looks import add_looks_config


def add_alignzeg_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.ALIGNZEG`` and set Detectron2's own keys to what AlignZeg trains with."""
    add_segmentation_config(cfg)
    add_proposal_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "AlignZeg"

    alignzeg = cfg.MODEL.ALIGNZEG

    # ---- CLIP (Sec. 4.2) ----
    alignzeg.CLIP = CfgNode()
    # An open_clip model name. OpenAI's weights need QuickGELU, hence "-quickgelu".
    alignzeg.CLIP.NAME = "ViT-B-16-quickgelu"
    # An open_clip tag, a local weights file, "bundled" (the demo world's CLIP) or "" (random weights).
    alignzeg.CLIP.PRETRAINED = "openai"
    # Side of CLIP's input as a share of the image's: 320 against 640.
    alignzeg.CLIP.RESOLUTION = 0.5
    # Number of the block behind which Z_clip is tapped: "the first 6 layers".
    alignzeg.CLIP.TAP = 6
    # Learnt tokens per block (deep visual prompts); the paper has 20 on COCO-Stuff and none elsewhere (suppl. Sec. 1).
    alignzeg.CLIP.NUM_PROMPTS = 0
    # ZegCLIP, which the paper follows in its prompts, projects them and drops some of their values out (0.1).
    alignzeg.CLIP.PROMPT_PROJECTION = False
    alignzeg.CLIP.PROMPT_DROPOUT = 0.0
    # With prompts: keep of each block of CLIP what enters it alone, and compute the rest again in the backward pass.
    alignzeg.CLIP.CHECKPOINT_ACTIVATIONS = False
    # Train CLIP's position embeddings, as SAN does; then CLIP keeps what its backward pass needs, as with prompts.
    alignzeg.CLIP.TRAIN_POSITIONS = False
    # What stands for a class in the templates: "released", the data set's own name, unchanged ("wall-brick", "road, route"),
    # as in SAN, or "reworded", a text in plain words, the mean over synonyms ("brick wall"; "road" and "route").
    alignzeg.CLIP.NAMES = "released"
    # Text templates: "vild" (14), "imagenet" (80) or "single".
    alignzeg.CLIP.TEMPLATES = "vild"

    add_image_encoder_config(cfg)

    # ---- pixel decoder (Sec. 3.1) ----
    alignzeg.PIXEL_DECODER = CfgNode()
    # "MRPE", or "TransformerPixelDecoder" (the baseline's, Table 5), or your own in PIXEL_DECODER_REGISTRY.
    alignzeg.PIXEL_DECODER.NAME = "MRPE"
    alignzeg.PIXEL_DECODER.NUM_QUERIES = 100  # N
    alignzeg.PIXEL_DECODER.NUM_HEADS = 1  # MRPE: heads of its attentions; Eq. 1 is single-headed
    alignzeg.PIXEL_DECODER.MLP_RATIO = 4.0
    # MRPE: its MLPs and its last attention add to what they read, as in any transformer; False reads Sec. 3.1 literally.
    alignzeg.PIXEL_DECODER.RESIDUAL = True
    alignzeg.PIXEL_DECODER.DECODER_LAYERS = 6  # TransformerPixelDecoder
    alignzeg.PIXEL_DECODER.DECODER_HEADS = 8  # TransformerPixelDecoder

    # ---- semantic decoder (suppl. Sec. 1) ----
    alignzeg.SEMANTIC_DECODER = CfgNode()
    alignzeg.SEMANTIC_DECODER.NAME = "SemanticDecoder"
    alignzeg.SEMANTIC_DECODER.NUM_LAYERS = 3  # "the last 3 layers of CLIP"
    # One bias map B per proposal for all heads, or one for each head.
    alignzeg.SEMANTIC_DECODER.BIAS_PER_HEAD = False


def add_image_encoder_config(cfg: CfgNode) -> None:
    """Add the keys of the learnable image encoder, ``cfg.MODEL.ALIGNZEG.IMAGE_ENCODER``, and name it as the backbone."""
    cfg.MODEL.BACKBONE.NAME = "ViTImageEncoder"
    alignzeg = cfg.MODEL.ALIGNZEG
    # ---- image encoder (Sec. 4.2) ----
    alignzeg.IMAGE_ENCODER = CfgNode()
    alignzeg.IMAGE_ENCODER.IMAGE_SIZE = 640  # position embeddings are laid out for this side
    alignzeg.IMAGE_ENCODER.PATCH_SIZE = 16
    alignzeg.IMAGE_ENCODER.WIDTH = 240
    alignzeg.IMAGE_ENCODER.DEPTH = 8
    alignzeg.IMAGE_ENCODER.NUM_HEADS = 6
    alignzeg.IMAGE_ENCODER.DROP_PATH_RATE = 0.0


def add_proposal_config(cfg: CfgNode) -> None:
    """Add what any method that classifies mask proposals takes from AlignZeg: the keys GEPC, PBC, LOSS and TEST below
    ``cfg.MODEL.ALIGNZEG``, and ``cfg.TEST.SLIDE``; and set Detectron2's own keys of input and solver."""
    add_looks_config(cfg)
    alignzeg = cfg.MODEL.ALIGNZEG = CfgNode()

    # ---- classification, GEPC (Sec. 3.2) ----
    alignzeg.GEPC = CfgNode()
    # M: background prototypes; 20 on COCO-Stuff, 10 elsewhere, 1 without the background diversity strategy.
    alignzeg.GEPC.NUM_BACKGROUND_PROTOTYPES = 10
    alignzeg.GEPC.REFINEMENT = True  # phi_cls
    alignzeg.GEPC.FEATURE_EXPANSION = True
    alignzeg.GEPC.ALPHA = 3.0  # alpha of Beta(alpha, alpha), Eq. 2
    # Leave mixtures of two proposals of one class out of L_vir: their virtual prototype is a seen one.
    alignzeg.GEPC.EXCLUDE_SAME_CLASS = True

    # ---- Predictive Bias Correction, PBC (Sec. 3.3) ----
    alignzeg.PBC = CfgNode()
    # The correction at test time: "PBC" (Eq. 7), "NoCorrection", or your own in POSTPROCESSOR_REGISTRY. It also decides
    # whether a class indicator is trained: with "NoCorrection" there is neither the indicator nor its loss.
    alignzeg.PBC.POSTPROCESSOR = "PBC"
    # What the class indicator learns from: "top_k", the paper's, are matched proposals and those among the K worst for every
    # seen class; "overlap" are all proposals that lie on pixels of seen classes, and all that lie on others.
    alignzeg.PBC.SAMPLES = "top_k"
    alignzeg.PBC.TOP_K = 50  # K
    alignzeg.PBC.DETACH = True  # the class indicator sends no gradient into the proposal features (Fig. 2)
    alignzeg.PBC.GAMMA = 0.3  # gamma

    # ---- objective (Sec. 3.4, Eq. 8) ----
    alignzeg.LOSS = CfgNode()
    alignzeg.LOSS.BC_WEIGHT = 1.0
    alignzeg.LOSS.CE_WEIGHT = 2.0  # lambda_1
    alignzeg.LOSS.MASK_WEIGHT = 5.0  # lambda_2, binary cross entropy
    alignzeg.LOSS.DICE_WEIGHT = 5.0  # lambda_2, dice
    alignzeg.LOSS.VIR_WEIGHT = 1e-2  # lambda_3
    alignzeg.LOSS.REG_WEIGHT = 1e-4  # lambda_4
    alignzeg.LOSS.NO_OBJECT_WEIGHT = 0.1  # of the background class within the cross entropy, as in Mask2Former
    # Points per mask, as in Mask2Former; 0 takes every pixel.
    alignzeg.LOSS.NUM_POINTS = 12544
    alignzeg.LOSS.OVERSAMPLE_RATIO = 3.0
    alignzeg.LOSS.IMPORTANCE_SAMPLE_RATIO = 0.75
    # The label at a point: "pixel", that of the pixel in which it lies, or "bilinear", each class's share of the four
    # pixels around it, as in Mask2Former and SAN.
    alignzeg.LOSS.LABELS_AT_POINTS = "pixel"
    # Ignored (also: unseen) pixels count as negatives of every mask, or do not count at all.
    alignzeg.LOSS.EXCLUDE_IGNORED_PIXELS = False

    # ---- inference ----
    alignzeg.TEST = CfgNode()
    # "scores": {"sem_seg": (K, H, W)}, as Detectron2's other semantic segmenters. "labels": {"sem_seg_labels": (H, W)},
    # which needs K times less memory for large images and vocabularies.
    alignzeg.TEST.OUTPUT = "scores"
    # The background takes part in the softmax and is dropped behind it, or is dropped before.
    alignzeg.TEST.BACKGROUND_IN_SOFTMAX = True
    # Also return each image's proposals.
    alignzeg.TEST.RETURN_PROPOSALS = False
    # Evaluate the masks alone: proposals get their class from the ground truth (Table 6).
    alignzeg.TEST.ORACLE = False
    # Output pixels computed at once; bounds the memory of large images. 0: as the device likes.
    alignzeg.TEST.CHUNK_PIXELS = CHUNK_PIXELS

    # ---- input ----
    # All encoders see images in RGB, normalised as CLIP expects.
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = list(PIXEL_MEAN)
    cfg.MODEL.PIXEL_STD = list(PIXEL_STD)
    cfg.INPUT.MIN_SIZE_TRAIN = tuple(range(320, 961, 64))
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = 2560
    cfg.INPUT.MIN_SIZE_TEST = 640
    cfg.INPUT.MAX_SIZE_TEST = 2560
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [640, 640]  # smaller images are padded to it
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.RANDOM_FLIP = "horizontal"

    # ---- solver (batch size and iterations: Sec. 4.2; the rest as in SAN, which the paper follows) ----
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.MAX_ITER = 20000
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED_NAMES = ["pos_embed", "queries", "prompts", "background_prototypes"]
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000
    cfg.TEST.EVAL_PERIOD = 5000
    cfg.SEED = 1


def leave_out_gepc_and_pbc(cfg: CfgNode) -> None:
    """Set the keys of :func:`add_proposal_config` for a method of proposals that has neither."""
    alignzeg = cfg.MODEL.ALIGNZEG
    alignzeg.GEPC.NUM_BACKGROUND_PROTOTYPES = 1
    alignzeg.GEPC.REFINEMENT = False
    alignzeg.GEPC.FEATURE_EXPANSION = False
    alignzeg.PBC.POSTPROCESSOR = "NoCorrection"


declare(
    "MODEL.ALIGNZEG",
    {
        "CLIP.RESOLUTION": number(above=0),
        "CLIP.TAP": whole(1),
        "CLIP.NUM_PROMPTS": whole(0),
        "CLIP.PROMPT_DROPOUT": number(0, below=1),
        "CLIP.NAMES": choice("released", "reworded"),
        "CLIP.TEMPLATES": template_set(),
        "IMAGE_ENCODER.IMAGE_SIZE": whole(1),
        "IMAGE_ENCODER.PATCH_SIZE": whole(1),
        "IMAGE_ENCODER.WIDTH": whole(1),
        "IMAGE_ENCODER.DEPTH": whole(1),
        "IMAGE_ENCODER.NUM_HEADS": whole(1),
        "IMAGE_ENCODER.DROP_PATH_RATE": number(0, below=1),
        "PIXEL_DECODER.NUM_QUERIES": whole(1),
        "PIXEL_DECODER.NUM_HEADS": whole(1),
        "PIXEL_DECODER.MLP_RATIO": number(above=0),
        "PIXEL_DECODER.DECODER_LAYERS": whole(1),
        "PIXEL_DECODER.DECODER_HEADS": whole(1),
        "SEMANTIC_DECODER.NUM_LAYERS": whole(1),
        "GEPC.NUM_BACKGROUND_PROTOTYPES": whole(1),
        "GEPC.ALPHA": number(above=0),
        "PBC.SAMPLES": choice("top_k", "overlap"),
        "PBC.TOP_K": whole(1),
        "PBC.GAMMA": number(0),
        **{f"LOSS.{name}_WEIGHT": number(0) for name in ("BC", "CE", "MASK", "DICE", "VIR", "REG", "NO_OBJECT")},
        "LOSS.NUM_POINTS": whole(0),
        "LOSS.LABELS_AT_POINTS": choice("pixel", "bilinear"),
        "LOSS.OVERSAMPLE_RATIO": number(1),
        "LOSS.IMPORTANCE_SAMPLE_RATIO": number(0, 1),
        "TEST.OUTPUT": choice("scores", "labels"),
        "TEST.CHUNK_PIXELS": whole(0),
    },
)
