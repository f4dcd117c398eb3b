"""Find detectron2, or install it into the environment of the interpreter that runs this script.

detectron2 has no release of its own on the Python package index. The wheel sal-detectron2 0.7.2 there holds the Python
code of upstream's commit a59f0563 (2024-04-17). It is tagged for CPython 3.10 on Linux because of a compiled extension
that nothing in this project calls, and it carries a top-level package called ``tools``. So this script downloads that
wheel, checks its SHA-256, unpacks it without those two, and installs what detectron2 imports at run time.

A detectron2 that can be imported already, built from upstream for example, is left as it is.

    python scripts/install_detectron2.py [-c constraints.txt]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

WHEEL = "sal-detectron2==0.7.2"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
DIST_INFO = "sal_detectron2-0.7.2.dist-info"
# What detectron2 imports at run time. Its own metadata also asks for numpy<2 and for black; it needs neither.
RUNTIME_NEEDS = (
    "cloudpickle",
    "fvcore",
    "hydra-core",
    "iopath",
    "matplotlib",
    "omegaconf",
    "pillow",
    "pycocotools",
    "tabulate",
    "tensorboard",
    "termcolor",
    "tqdm",
    "yacs",
)


def pip(*args: str) -> None:
    """Run pip of this interpreter; a failure raises ``subprocess.CalledProcessError``."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *args], check=True)


def is_wanted(member: str) -> bool:
    """Whether a file of the wheel is unpacked: detectron2's Python code and the wheel's metadata."""
    return member.startswith(("detectron2/", f"{DIST_INFO}/")) and not member.startswith("detectron2/_C.")


def download(folder: Path) -> Path:
    """Download the wheel into ``folder`` and return its path; raises ``ValueError`` when its hash is another one."""
    # pip would refuse the wheel on another Python or platform; its Python code runs on all of them.
    foreign = ["--python-version", "3.10", "--implementation", "cp", "--abi", "none", "--platform", "any"]
    pip("download", "--quiet", "--no-deps", "--only-binary=:all:", *foreign, "--dest", str(folder), WHEEL)
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(
            f"{wheel.name} has SHA-256 {digest}, expected {WHEEL_SHA256}: it is not the file this project was tested "
            "with. Install detectron2 from upstream instead."
        )
    return wheel


def unpack(wheel: Path, site_packages: Path) -> None:
    """Unpack the wanted files of ``wheel`` into ``site_packages``, with a RECORD of them so that pip can uninstall."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages, [name for name in archive.namelist() if is_wanted(name)])
    record = site_packages / DIST_INFO / "RECORD"
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    record.write_text("".join(line for line in lines if is_wanted(line)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="find detectron2, or install it by hash")
    parser.add_argument("-c", "--constraint", help="pip constraints file for what detectron2 needs at run time")
    constraint = parser.parse_args().constraint
    spec = importlib.util.find_spec("detectron2")
    if spec is not None and spec.origin is not None:  # without an origin it is a folder that an uninstall left behind
        print("detectron2 is here already, it is used as it is")
    else:
        pip("install", *(["-c", constraint] if constraint else []), *RUNTIME_NEEDS)
        with tempfile.TemporaryDirectory() as folder:
            unpack(download(Path(folder)), Path(sysconfig.get_paths()["purelib"]))
        print(f"detectron2 installed from {WHEEL}")
    # An import in a fresh process shows at once whether what was found or installed works.
    subprocess.run([sys.executable, "-c", "import detectron2.engine, detectron2.modeling"], check=True)


if __name__ == "__main__":
    main()
