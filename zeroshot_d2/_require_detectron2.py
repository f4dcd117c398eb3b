"""One clear sentence instead of a chain of import errors when detectron2 is missing or cannot be imported."""

import importlib
import importlib.util
import sys
import warnings


def require_detectron2() -> None:
    """Import it, without torch's warning of its scripted functions.

    Raises:
        ModuleNotFoundError: it cannot be found; says how to get it.
        ImportError: Python runs without docstrings.
    """
    if sys.flags.optimize > 1:
        raise ImportError(
            "python -OO (or PYTHONOPTIMIZE=2) removes docstrings, and detectron2 cannot be imported without its own: use -O",
            name="detectron2",
        )
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:  # without an origin it is a folder that an uninstall left behind
        raise ModuleNotFoundError(
            "detectron2 is not installed: run `make setup`, or `python scripts/install_detectron2.py` in an "
            "environment of your own, or build it from upstream with "
            "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2`.",
            name="detectron2",
        )
    with warnings.catch_warnings():  # it and fvcore cause this one, about which a user can do nothing
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        importlib.import_module("detectron2.modeling")
