"""AlignZeg (Ge et al., ECCV 2024): zero-shot semantic segmentation on Detectron2.

======================================  ============================================================
:mod:`alignzeg_d2.config`               every key, with the paper's symbol
:mod:`alignzeg_d2.system`               what the paper plugs into the house
:mod:`alignzeg_d2.alignzeg`             the meta-architecture, Fig. 2
:mod:`alignzeg_d2.proposal_segmenter`   what it shares with any segmenter that classifies proposals
:mod:`alignzeg_d2.modeling`             a file per box of the figure
:mod:`alignzeg_d2.inference`            classification, score correction and semantic inference
:mod:`alignzeg_d2.oracle`               the masks alone, Table 6
:mod:`alignzeg_d2.gamma_sweep`          all thresholds of PBC in one pass, Fig. 6 left
:mod:`alignzeg_d2.predictor`            any vocabulary, from Python
:mod:`alignzeg_d2.export`               ONNX and torch.export
:mod:`alignzeg_d2.pictures`             the paper's figures from arrays
:mod:`alignzeg_d2.figures`              the same for a trained model
:mod:`alignzeg_d2.web_tab`              the tab of the web page
:mod:`alignzeg_d2.demo`                 the report of the demo world
======================================  ============================================================

Importing this package registers the model with Detectron2's registries and the system with ours; it reads no data.
"""

import zeroshot_d2  # noqa: F401  (first: it says how to get detectron2 where that is missing)
from alignzeg_d2.alignzeg import AlignZeg
from alignzeg_d2.config import add_alignzeg_config
from alignzeg_d2.modeling.image_encoder import ViTImageEncoder
from alignzeg_d2.modeling.mrpe import MRPE
from alignzeg_d2.modeling.transformer_decoder import TransformerPixelDecoder
from alignzeg_d2.system import SYSTEM
from zeroshot_d2.system import register_system

__all__ = ["MRPE", "AlignZeg", "TransformerPixelDecoder", "ViTImageEncoder", "add_alignzeg_config"]

register_system(SYSTEM)
