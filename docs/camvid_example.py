"""Your own split in one script: CamVid, 8 seen and 3 unseen classes, 10 iterations of the VOC config.

PYTHONPATH=. python docs/camvid_example.py path/to/camvid [KEY VALUE ...]   (no network: MODEL.ALIGNZEG.CLIP.PRETRAINED "")
"""

import sys

from detectron2.config import get_cfg
from detectron2.utils.logger import setup_logger

from alignzeg_d2 import add_alignzeg_config
from train_net import Trainer
from zeroshot_d2 import ClassSplit, register_sem_seg

root = sys.argv[1]
names = ["sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist"]
split = ClassSplit(names, unseen=["tree", "fence", "bicyclist"], prompts=[name.replace("_", " ") for name in names])
for name, part, vocabulary in [("camvid_train", "train", "seen"), ("camvid_val", "val", "all")]:
    folders = f"{root}/images/{part}", f"{root}/labels/{part}"
    register_sem_seg(name, split, *folders, vocabulary=vocabulary, ignore_values=[11], image_suffix=".png")

cfg = get_cfg()
add_alignzeg_config(cfg)
cfg.merge_from_file("configs/voc/alignzeg.yaml")
cfg.merge_from_list(["DATASETS.TRAIN", ("camvid_train",), "DATASETS.TEST", ("camvid_val",), "SOLVER.MAX_ITER", 10])
cfg.merge_from_list(["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", "output/camvid", *sys.argv[2:]])
setup_logger()
Trainer(cfg).train()
