"""Packaging: zeroshot_d2 (tasks, training, commands), alignzeg_d2 and epsilon_d2 (the two systems), and the configs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# detectron2 is not listed: it has no release of its own on the Python package index. scripts/install_detectron2.py
# finds or installs it, and `import zeroshot_d2` says how when it is missing. The lower bounds are those of
# constraints-oldest.txt, with which `make test-oldest` runs.
INSTALL_REQUIRES = [
    "torch>=2.7.0",  # tensors and training; torch.compiler.is_exporting, free sizes in torch.export
    "torchvision>=0.22.0",  # the release that belongs to torch 2.7.0; transforms, and detectron2's operators
    "numpy>=1.26.0",  # label images, lookup tables, confusion matrices
    "scipy>=1.11.2",  # linear_sum_assignment: the Hungarian matching of proposals
    "pillow>=10.3.0",  # reads images; the first that opens 16-bit grey PNG as 16-bit
    "matplotlib>=3.7.5",  # pictures (also detectron2's own need)
    "open_clip_torch>=3.0.0",  # CLIP: OpenAI's weights, its text tower and its tokenizer
    "timm>=1.0.17",  # the learnable ViT of the image encoder, and Epsilon's backbone
    "safetensors>=0.4.3",  # weights without pickle: what is saved, and the small CLIP that ships with the package
    "huggingface_hub>=0.25.0",  # models on the Hub, and their cards (also open_clip's own need)
    "fvcore>=0.1.5.post20221221",  # parameter schedulers, flop counts, checkpoints (also detectron2's own need)
    "iopath>=0.1.10",  # paths (detectron2's own need)
    "portalocker>=2.8.2",  # one process at a time adds to a download (also iopath's own need)
    "yacs>=0.1.8",  # configs (also detectron2's own need)
    "PyYAML>=6.0.1",  # configs of finished runs
    "pycocotools>=2.0.7",  # decodes the polygons of PASCAL Context's release (also detectron2's own need)
    "tabulate>=0.9.0",  # tables of results
    "tqdm>=4.66.0",  # progress bars
    "termcolor>=2.3.0",  # coloured log lines (detectron2's own need)
]

EXTRAS_REQUIRE = {
    # detectron2 imports cv2 for colour augmentation and for drawing, and we for videos. It is an extra because opencv-python
    # and opencv-python-headless install the same folder: an environment that has the former must not get the latter on top.
    "opencv": ["opencv-python-headless>=4.8.0.76"],  # the same cv2 without libGL, which a bare Debian lacks
    # `datasets download`. torchvision, pooch and torch.hub start a file anew when it is cut, huggingface_hub resumes but
    # only as an internal function of its own; libcurl resumes, knows proxies, and has been kept up since 1998.
    "data": [
        "pycurl>=7.45.4",  # libcurl in Python, with wheels for Linux, macOS and Windows (MIT or LGPL)
        "certifi>=2024.2.2",  # the certificates that its wheels do not bring
    ],
    "demo": [
        "scikit-learn>=1.3.2",  # t-SNE of proposal features
    ],
    "web": [
        "gradio>=6.31",  # the web page; what it refuses was tried with this one
    ],
    "export": [
        "onnx>=1.17.0",  # the file format, and the description in its metadata
        "onnxscript>=0.7.2",  # torch.onnx translates PyTorch's operators with it
        "onnxruntime>=1.20.0",  # runs what was exported beside the model, to compare them
    ],
    "wandb": [
        "wandb>=0.17",  # losses and results on a page of Weights & Biases
    ],
    "tiff": [
        "rasterio>=1.4.0",  # GDAL: parts of TIFF files that do not fit into memory, and their georeference
    ],
    "docs": [
        "mkdocs-material>=9.5",  # docs/ as a site
    ],
    "dev": [
        "pytest>=8",  # the tests
        "pytest-timeout>=2.3",  # a hanging process group fails its test instead of the whole run
        "pytest-xdist>=3.6",  # the tests on several cores
        "filelock>=3.12",  # what takes long is trained by one of the workers, and used by all
        "build>=1.2",  # the wheel and the source archive, as a release has them
        "torchmetrics>=1.4",  # an independent reference for the metrics
        "nbclient>=0.10",  # runs the notebooks in the tests
        "ipykernel>=6.29",  # the notebooks' kernel
        "selenium>=4.20",  # drives Debian's Chromium in the test of the web page
        "ruff>=0.6",  # lint and format
        "mypy>=1.11",  # types
    ],
}

# configs/ lies at the top of the checkout, and in the package of an installed copy.
FOLDERS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*") if path.is_dir())
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "zeroshot_d2/__init__.py").read_text(encoding="utf-8"), re.M)
assert VERSION is not None

setup(
    name="alignzeg-epsilon-d2",
    version=VERSION[1],
    description="AlignZeg (zero-shot semantic segmentation) and Epsilon (multi-label zero-shot classification) "
    "as one Detectron2 extension",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["zeroshot_d2*", "alignzeg_d2*", "epsilon_d2*", "baselines_d2*"]),
        "zeroshot_d2.configs",
        *(f"zeroshot_d2.{'.'.join(folder.parts)}" for folder in FOLDERS),
    ],
    package_dir={"zeroshot_d2.configs": "configs"},
    package_data={"": ["*.json", "*.yaml", "py.typed"], "zeroshot_d2.demo_world": ["clip/*"]},
    entry_points={"console_scripts": ["zeroshot-d2=zeroshot_d2.__main__:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    zip_safe=False,
)
