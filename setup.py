"""Packaging of the three packages: zeroshot_d2 (shared), alignzeg_d2 and epsilon_d2 (the two systems)."""

from pathlib import Path

from setuptools import find_packages, setup

# detectron2 is not listed: it has no release of its own on the Python package index. scripts/install_detectron2.py
# finds or installs it, and `import zeroshot_d2` says how when it is missing.
INSTALL_REQUIRES = [
    "torch>=2.4",  # tensors and training; scaled_dot_product_attention with a bias, torch.amp.GradScaler
    "torchvision>=0.19",  # the release that belongs to torch>=2.4; detectron2 imports its operators
    "numpy>=1.24",  # label images, lookup tables, confusion matrices
    "scipy>=1.10",  # linear_sum_assignment: the Hungarian matching of proposals
    "pillow>=9.4",  # reads 8 and 16 bit label images
    "open_clip_torch>=2.24",  # CLIP: OpenAI's weights, its text tower and its tokenizer
    "timm>=0.9.16",  # the learnable ViT of the image encoder
    "safetensors>=0.4",  # small CLIP weights that ship with the package
    "fvcore>=0.1.5",  # parameter schedulers, flop counts, checkpoints (also detectron2's own need)
    "iopath>=0.1.10",  # paths under $DETECTRON2_DATASETS (also detectron2's own need)
    "yacs>=0.1.8",  # configs (also detectron2's own need)
    "pycocotools>=2.0.6",  # decodes the polygons of PASCAL Context's release (also detectron2's own need)
    "termcolor>=2.0",  # coloured log lines (detectron2's own need)
]

EXTRAS_REQUIRE = {
    # detectron2 imports cv2 for colour augmentation and for drawing. It is an extra because opencv-python and
    # opencv-python-headless install the same folder: an environment that has the former must not get the latter on top.
    "opencv": ["opencv-python-headless>=4.7"],  # the same cv2 without libGL, which a bare Debian lacks
    "demo": [
        "matplotlib>=3.7",  # the pictures of the demo and of the figure commands
        "scikit-learn>=1.3",  # t-SNE of proposal features
    ],
    "web": [
        "gradio>=6",  # the web page
    ],
    "export": [
        "onnx>=1.17",  # the file format, and the description in its metadata
        "onnxscript>=0.5",  # torch.onnx translates PyTorch's operators with it
        "onnxruntime>=1.20",  # runs what was exported beside the model, to compare them
    ],
    "docs": [
        "mkdocs-material>=9.5",  # docs/ as a site
    ],
    "dev": [
        "pytest>=8",  # the tests
        "pytest-timeout>=2.3",  # a hanging process group fails its test instead of the whole run
        "torchmetrics>=1.4",  # an independent reference for the metrics
        "nbclient>=0.10",  # runs the notebooks in the tests
        "ipykernel>=6.29",  # the notebooks' kernel
        "selenium>=4.20",  # drives Debian's Chromium in the test of the web page
        "ruff>=0.6",  # lint
        "mypy>=1.11",  # types
    ],
}

setup(
    name="alignzeg-epsilon-d2",
    version="0.1.0",
    description="AlignZeg (zero-shot semantic segmentation) and Epsilon (multi-label zero-shot classification) "
    "as one Detectron2 extension",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["zeroshot_d2*", "alignzeg_d2*", "epsilon_d2*"]),
    package_data={"": ["*.json", "*.safetensors", "*.txt.gz", "*.yaml"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    zip_safe=False,
)
