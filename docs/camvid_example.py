"""Your own split in one file: CamVid, 8 seen and 3 unseen classes.

Registering the data sets is all there is to do. Every command then knows them by ``--import docs/camvid_example.py``:

    python -m zeroshot_d2 check camvid_train --import docs/camvid_example.py
    python -m zeroshot_d2 train --config-file voc/alignzeg.yaml --import docs/camvid_example.py \
        DATASETS.TRAIN "('camvid_train',)" DATASETS.TEST "('camvid_val',)" OUTPUT_DIR output/camvid

CamVid lies in $DETECTRON2_DATASETS/camvid (./datasets/camvid by default). Run as a program, this file starts that training:

    python docs/camvid_example.py [KEY VALUE ...]
"""

import os
import sys
from pathlib import Path

from zeroshot_d2 import ClassSplit, register_sem_seg
from zeroshot_d2.commands import train

ROOT = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "camvid"
NAMES = ["sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist"]
SPLIT = ClassSplit(NAMES, unseen=["tree", "fence", "bicyclist"], prompts=[name.replace("_", " ") for name in NAMES])

for name, part, vocabulary in [("camvid_train", "train", "seen"), ("camvid_val", "val", "all")]:
    folders = ROOT / "images" / part, ROOT / "labels" / part
    register_sem_seg(name, SPLIT, *folders, vocabulary=vocabulary, ignore_values=[11], image_suffix=".png")

if __name__ == "__main__":
    sets = ["DATASETS.TRAIN", "('camvid_train',)", "DATASETS.TEST", "('camvid_val',)", "OUTPUT_DIR", "output/camvid"]
    sys.exit(train.main(["--config-file", "voc/alignzeg.yaml", "--import", __file__, *sets, *sys.argv[1:]]))
