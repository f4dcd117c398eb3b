"""The web page, as a Space or a container starts it.

    python space/app.py [options of `python -m zeroshot_d2 web`]

``$MODELS`` names folders of finished runs, with a comma between them. Without it the demo's models are shown, which are
trained first where they are not there yet: some minutes on two cores.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HUB = "https://huggingface.co"  # which shows a Space within its own page
DEMOS = ("demo/alignzeg.yaml", "demo/epsilon.yaml")


def options(environment: Mapping[str, str]) -> list[str]:
    """The words after ``web`` that the environment asks for."""
    models = [model.strip() for model in environment.get("MODELS", "").split(",") if model.strip()]
    host = environment.get("SPACE_HOST", "")  # which a Space says
    return [
        *("--host", "0.0.0.0"),
        *(word for model in models for word in ("--model", model)),
        *(("--allow-host", host, "--allow-frame", HUB) if host else ()),
    ]


def install_detectron2() -> None:
    """Install detectron2 where it is missing: pip cannot, since it has no release of its own.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    if importlib.util.find_spec("detectron2") is None:
        here = Path(__file__).resolve().parent
        scripts = [folder / "scripts" / "install_detectron2.py" for folder in (here, here.parent)]  # a Space, a checkout
        script = next(script for script in scripts if script.is_file())
        subprocess.run([sys.executable, str(script)], check=True)
        importlib.invalidate_caches()


def train_demos() -> int:
    """Train what the page shows without a model of yours; the exit status of the first that fails, else 0."""
    from zeroshot_d2 import load_config
    from zeroshot_d2.__main__ import main

    for config in DEMOS:
        if not (Path(load_config(config).OUTPUT_DIR) / "model_final.pth").is_file():
            status = main(["train", "--config-file", config])
            if status:
                return status
    return 0


def start(arguments: Sequence[str]) -> int:
    """Serve the page until the process is stopped; its exit status."""
    install_detectron2()
    from zeroshot_d2.__main__ import main

    if "SPACE_HOST" in os.environ:  # the address by which Gradio's own links lead back
        os.environ.setdefault("GRADIO_ROOT_PATH", f"https://{os.environ['SPACE_HOST']}")
    words = [*options(os.environ), *arguments]
    status = 0 if "--model" in words or "--config-file" in words else train_demos()
    return status or main(["web", *words])


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
