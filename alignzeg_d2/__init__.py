"""AlignZeg (Ge et al., ECCV 2024): zero-shot semantic segmentation on Detectron2.

=====================================  ==========================================================
:mod:`alignzeg_d2.config`              every key, with the paper's symbol
:mod:`alignzeg_d2.alignzeg`            the meta-architecture, Fig. 2
:mod:`alignzeg_d2.modeling`            a file per box of the figure
:mod:`alignzeg_d2.postprocessing`      score correction and semantic inference
:mod:`alignzeg_d2.dataset_mapper`      dataset dicts to inputs
:mod:`alignzeg_d2.evaluation`          the protocols GZS3, ZS3, cross-dataset and oracle
:mod:`alignzeg_d2.gamma_sweep`         all thresholds of PBC in one pass, Fig. 6 left
:mod:`alignzeg_d2.predictor`           a vocabulary of one's own, from Python
:mod:`alignzeg_d2.predict`             the same for photos and videos, from the command line
:mod:`alignzeg_d2.web`                 the same in the browser
:mod:`alignzeg_d2.export`              ONNX and torch.export
:mod:`alignzeg_d2.visualization`       the paper's figures from arrays
:mod:`alignzeg_d2.figures`             the same for a trained model, from the command line
:mod:`alignzeg_d2.demo`                all of it on the demo world, with a report
=====================================  ==========================================================

Importing this package registers the model and the data sets with Detectron2's registries; it reads no data.
"""

import zeroshot_d2  # noqa: F401  (first: it says how to get detectron2 where that is missing)
from alignzeg_d2.alignzeg import AlignZeg
from alignzeg_d2.config import add_alignzeg_config
from alignzeg_d2.dataset_mapper import AlignZegDatasetMapper
from alignzeg_d2.modeling.image_encoder import ViTImageEncoder
from alignzeg_d2.modeling.mrpe import MRPE
from alignzeg_d2.modeling.transformer_decoder import TransformerPixelDecoder
from zeroshot_d2 import demo_world as _demo_world

__all__ = [
    "MRPE",
    "AlignZeg",
    "AlignZegDatasetMapper",
    "TransformerPixelDecoder",
    "ViTImageEncoder",
    "add_alignzeg_config",
]

_demo_world.register_builtin()
