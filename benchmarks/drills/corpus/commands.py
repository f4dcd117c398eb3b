"""Command lines: of ``predict`` above all, and of the other verbs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zeroshot_d2.demo_world import SPLIT

from .case import Case, command, encoded, finished_run, photo_array, save_photo, write

KIND = "commands"


def _line(
    name: str, words: tuple[str, ...] | None, *line: object, prepare: Callable[[Path], Any] | None = None, reads: Any = None
) -> Case:
    """A whole command line; "RUN" and "TAGGER" stand for folders of finished runs. The folder has a.png and b.png."""

    def run(folder: Path) -> str:
        for index, photo in enumerate(("a.png", "b.png")):
            save_photo(folder / photo, index)
        if prepare is not None:
            prepare(folder)
        runs = {"RUN": "alignzeg", "TAGGER": "epsilon"}
        return command(*(finished_run(runs[word]) if word in runs else word for word in line))

    return Case(KIND, f"{line[0] if line else ''}: {name}", run, words, reads)


def _predict(name: str, words: tuple[str, ...] | None, *line: object, model: str = "RUN", **more: Any) -> Case:
    """``predict`` with a model and an output; ``line`` has the rest."""
    return _line(name, words, "predict", "--model", model, "--output", "out", *line, **more)


def _done(count: int, of: int) -> Callable[[str], bool]:
    return lambda said: f"{count} of {of} files done" in said


def _photo(folder: Path, name: str, array: np.ndarray) -> Path:
    return write(folder / name, encoded(array, "PNG"))


def cases(rng: random.Random) -> list[Case]:
    photo = photo_array()
    video = lambda folder: write(folder / "film.mp4", b"\0" * 200)  # noqa: E731
    unreadable = lambda folder: write(folder / "c.png", b"no image")  # noqa: E731
    secret = lambda folder: [write(folder / "locked.png", encoded(photo, "PNG")), os.chmod(folder / "locked.png", 0)]  # noqa: E731
    return [
        _predict("as it should be", None, "--input", "a.png", "b.png", reads=_done(2, 2)),
        _predict("the tagger", None, "--input", "a.png", model="TAGGER", reads=_done(1, 1)),
        _predict("no input", ("--input",)),
        _predict("an empty input", ("--input",), "--input", ""),
        _predict("an input that is absent", ("absent.png",), "--input", "absent.png"),
        _predict("a pattern that fits nothing", ("*.jpg",), "--input", "*.jpg"),
        _predict(
            "a folder without images", ("empty",), "--input", "empty", prepare=lambda folder: (folder / "empty").mkdir()
        ),
        _predict(
            "a text file", ("note.txt",), "--input", "note.txt", prepare=lambda folder: write(folder / "note.txt", "hello")
        ),
        _predict("an unreadable image beside others", ("c.png",), "--input", "a.png", "c.png", prepare=unreadable),
        _predict("only an unreadable image", ("c.png",), "--input", "c.png", prepare=unreadable),
        _predict("a video that is none", ("film.mp4",), "--input", "film.mp4", prepare=video),
        _predict("an address", ("https://example.org/a.jpg",), "--input", "https://example.org/a.jpg"),
        _predict("a photo twice", None, "--input", "a.png", "a.png", reads=_done(1, 1)),
        _predict(
            "a photo of 1 x 1",
            None,
            "--input",
            "dot.png",
            prepare=lambda folder: _photo(folder, "dot.png", photo[:1, :1]),
            reads=_done(1, 1),
        ),
        _predict(
            "a photo of 2000 x 1",
            None,
            "--input",
            "thin.png",
            prepare=lambda folder: _photo(folder, "thin.png", np.zeros((1, 2000, 3), np.uint8)),
            reads=_done(1, 1),
        ),
        _predict(
            "a photo of 1 x 2000",
            None,
            "--input",
            "tall.png",
            prepare=lambda folder: _photo(folder, "tall.png", np.zeros((2000, 1, 3), np.uint8)),
            reads=_done(1, 1),
        ),
        _predict("more pixels than allowed", ("a.png", "--max-pixels"), "--input", "a.png", "--max-pixels", 100),
        _predict("a pipe", ("pipe.png",), "--input", "pipe.png", prepare=lambda folder: os.mkfifo(folder / "pipe.png")),
        *(
            []
            if os.geteuid() == 0
            else [_predict("a photo that may not be read", ("locked.png",), "--input", "locked.png", prepare=secret)]
        ),
        _predict("a batch of 0", ("--batch-size", "0"), "--input", "a.png", "--batch-size", 0),
        _predict("a batch of -1", ("--batch-size", "-1"), "--input", "a.png", "--batch-size", -1),
        _predict("a batch of many", ("--batch-size", "many"), "--input", "a.png", "--batch-size", "many"),
        _predict("a batch of 1.5", ("--batch-size", "1.5"), "--input", "a.png", "--batch-size", 1.5),
        _predict("0 pixels", ("--max-pixels", "0"), "--input", "a.png", "--max-pixels", 0),
        _predict("an option that is none", ("--vocab",), "--input", "a.png", "--vocab", "cat"),
        _predict("a word too many", ("extra",), "extra", "--input", "a.png"),
        _predict("a key that is none", ("MODEL.WIDTH",), "--input", "a.png", "MODEL.WIDTH", 3),
        _predict("a key without a value", ("MODEL.DEVICE",), "--input", "a.png", "MODEL.DEVICE"),
        _predict("an output that is a file", ("a.png",), "--input", "b.png", "--output", "a.png"),
        _predict("an output below a file", ("a.png",), "--input", "b.png", "--output", "a.png/out"),
        _predict("an empty output", ("--output",), "--input", "a.png", "--output", ""),
        _predict("an empty vocabulary", ("vocabulary",), "--input", "a.png", "--vocabulary", ""),
        _predict("a class twice", ("'cat'",), "--input", "a.png", "--vocabulary", "cat, cat"),
        _predict("a vocabulary that is absent", ("v.txt",), "--input", "a.png", "--vocabulary", "v.txt"),
        _predict(
            "an unseen class that is none", ("'bird'",), "--input", "a.png", "--vocabulary", "cat, dog", "--unseen", "bird"
        ),
        _predict(
            "unseen only, with nothing unseen",
            ("unseen",),
            "--input",
            "a.png",
            "--vocabulary",
            SPLIT.seen[0],
            "--unseen-only",
        ),
        _predict("a class of a million letters", ("1,000",), "--input", "a.png", "--vocabulary", "cat" * 333_334),
        _predict(
            "500 classes",
            None,
            "--input",
            "a.png",
            "--vocabulary",
            ", ".join(f"class {k}" for k in range(500)),
            model="TAGGER",
            reads=_done(1, 1),
        ),
        _predict("a class with a dollar sign", None, "--input", "a.png", "--vocabulary", "$x^2$, cat", reads=_done(1, 1)),
        _predict("a class in other scripts", None, "--input", "a.png", "--vocabulary", "बिल्ली, 犬", reads=_done(1, 1)),
        _predict("a class with format's braces", None, "--input", "a.png", "--vocabulary", "a {} b, cat", reads=_done(1, 1)),
        _predict(
            "more labels than classes",
            ("--top-k", "5"),
            "--input",
            "a.png",
            "--vocabulary",
            "cat, dog",
            "--top-k",
            5,
            model="TAGGER",
        ),
        _predict("0 labels", ("--top-k", "0"), "--input", "a.png", "--top-k", 0, model="TAGGER"),
        _predict("the tagger's option for a segmenter", ("--top-k",), "--input", "a.png", "--top-k", 5),
        _predict("weights that are absent", ("absent.pth",), "--input", "a.png", "--weights", "absent.pth"),
        _predict(
            "weights that are an address",
            ("https://example.org/m.pth",),
            "--input",
            "a.png",
            "--weights",
            "https://example.org/m.pth",
        ),
        _predict("weights that are a photo", ("a.png",), "--input", "a.png", "--weights", "a.png"),
        _predict("an import that is absent", ("absent.py",), "--input", "a.png", "--import", "absent.py"),
        _predict(
            "an import of a module that is none", ("no_such_module",), "--input", "a.png", "--import", "no_such_module"
        ),
        _predict(
            "an import with an error in it",
            ("broken.py",),
            "--input",
            "a.png",
            "--import",
            "broken.py",
            prepare=lambda folder: write(folder / "broken.py", "def ("),
        ),
        _line("no model", ("--model",), "predict", "--input", "a.png", "--output", "out"),
        _line("a model that is absent", ("absent",), "predict", "--model", "absent", "--input", "a.png", "--output", "out"),
        _line("a model that is a file", ("a.png",), "predict", "--model", "a.png", "--input", "a.png", "--output", "out"),
        _line(
            "a model without a checkpoint",
            ("empty",),
            "predict",
            "--model",
            "empty",
            "--input",
            "a.png",
            "--output",
            "out",
            prepare=lambda folder: (folder / "empty").mkdir(),
        ),
        _line(
            "a config without weights",
            ("model_final.pth",),
            "predict",
            "--config-file",
            "demo/alignzeg.yaml",
            "--input",
            "a.png",
            "--output",
            "out",
        ),
        _line(
            "a config that is absent",
            ("demo/alinzeg.yaml", "demo/alignzeg.yaml"),
            "predict",
            "--config-file",
            "demo/alinzeg.yaml",
            "--input",
            "a.png",
            "--output",
            "out",
        ),
        _line("no output", ("--output",), "predict", "--model", "RUN", "--input", "a.png"),
        _line("nothing", (), "predict"),
        _line("no verb of this name", ("'predcit'", "predict"), "predcit"),
        _line("no verb", (), ""),
        _line("no config", ("--config-file",), "train"),
        _line("a config that is absent", ("absent.yaml",), "train", "--config-file", "absent.yaml"),
        _line(
            "evaluation without weights",
            ("MODEL.WEIGHTS",),
            "train",
            "--config-file",
            "demo/alignzeg.yaml",
            "--eval-only",
            "OUTPUT_DIR",
            "out",
        ),
        _line(
            "0 processes",
            ("--num-gpus", "0"),
            "train",
            "--config-file",
            "demo/alignzeg.yaml",
            "--num-gpus",
            0,
            "OUTPUT_DIR",
            "out",
        ),
        _line(
            "-1 processes",
            ("--num-gpus", "-1"),
            "train",
            "--config-file",
            "demo/alignzeg.yaml",
            "--num-gpus",
            -1,
            "OUTPUT_DIR",
            "out",
        ),
        _line(
            "0 machines",
            ("--num-machines", "0"),
            "train",
            "--config-file",
            "demo/alignzeg.yaml",
            "--num-machines",
            0,
            "OUTPUT_DIR",
            "out",
        ),
        _line(
            "a machine that is none",
            ("--machine-rank", "3"),
            "train",
            "--config-file",
            "demo/alignzeg.yaml",
            "--machine-rank",
            3,
            "OUTPUT_DIR",
            "out",
        ),
        _line("an output that is a file", ("a.png",), "train", "--config-file", "demo/alignzeg.yaml", "OUTPUT_DIR", "a.png"),
        _line(
            "an empty config.yaml, to be resumed",
            ("config.yaml",),
            "train",
            "--config-file",
            "demo/alignzeg.yaml",
            "--resume",
            "SEED",
            -1,
            "OUTPUT_DIR",
            "out",
            prepare=lambda folder: write(folder / "out/config.yaml", ""),
        ),
        _line(
            "a config.yaml with a text as seed, to be resumed",
            ("config.yaml",),
            "train",
            "--config-file",
            "demo/alignzeg.yaml",
            "--resume",
            "SEED",
            -1,
            "OUTPUT_DIR",
            "out",
            prepare=lambda folder: write(folder / "out/config.yaml", "SEED: soon\n"),
        ),
        _line(
            "no format of this name",
            ("--format", "tflite"),
            "export",
            "--model",
            "RUN",
            "--format",
            "tflite",
            "--output",
            "a.onnx",
        ),
        _line("a file of another format", (".onnx", "model.bin"), "export", "--model", "RUN", "--output", "model.bin"),
        _line("no output", ("--output",), "export", "--model", "RUN"),
        _line("no model", ("--model",), "export", "--output", "a.onnx"),
        _line("no figure of this name", ("'qualitativ'", "qualitative"), "figures", "qualitativ"),
        _line("no model", ("--model",), "figures", "qualitative", "--output", "o.png"),
        _line("a figure of another system", ("'top10'",), "figures", "top10", "--model", "RUN"),
        _line(
            "0 images",
            ("--num-images", "0"),
            "figures",
            "qualitative",
            "--model",
            "RUN",
            "--num-images",
            0,
            "--output",
            "o.png",
        ),
        _line(
            "a data set that is none",
            ("'absent'",),
            "figures",
            "qualitative",
            "--model",
            "RUN",
            "--dataset",
            "absent",
            "--output",
            "o.png",
        ),
        _line(
            "a data set of the other task",
            ("'demo_world_multilabel_test'",),
            "figures",
            "qualitative",
            "--model",
            "RUN",
            "--dataset",
            "demo_world_multilabel_test",
            "--output",
            "o.png",
        ),
        _line(
            "a picture of another format",
            ("o.exe",),
            "figures",
            "qualitative",
            "--model",
            "RUN",
            "--num-images",
            1,
            "--output",
            "o.exe",
        ),
        _line("a data set that is none", ("'absent'",), "check", "absent"),
        _line("no data set", ("name",), "check"),
        _line("a limit of 0", ("--limit", "0"), "check", "demo_world_val", "--limit", 0),
        _line("0 workers", ("--workers", "0"), "check", "demo_world_val", "--workers", 0),
        _line("no action", ("action",), "datasets"),
        _line("no preparation of this name", ("'imagenet'", "nus_wide"), "datasets", "prepare", "imagenet"),
        _line("a name for list", ("'nus_wide'",), "datasets", "list", "nus_wide"),
        _line("no system of this name", ("'SANE'",), "demo", "--system", "SANE"),
        _line("weights without a system", ("--system",), "demo", "--weights", "a.pth"),
        _line("0 iterations", ("--iterations", "0"), "demo", "--system", "AlignZeg", "--iterations", 0),
        _line("a model that is absent", ("absent",), "web", "--model", "absent"),
        _line("weights without a config", ("--config-file",), "web", "--weights", "a.pth"),
        _line("a port that is none", ("--port", "http"), "web", "--model", "RUN", "--port", "http"),
        _line("a port beyond all", ("--port", "99999"), "web", "--model", "RUN", "--port", 99999),
    ]
