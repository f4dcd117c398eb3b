"""Files that would run code or reach outside, given where people would give them; a canary says whether they did."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from scipy.io import savemat

from zeroshot_d2 import ClassSplit, register_multilabel, register_sem_seg
from zeroshot_d2.checkpoint import newest_whole_checkpoint
from zeroshot_d2.cli import load_config
from zeroshot_d2.clip.loader import create_clip
from zeroshot_d2.export import read_metadata
from zeroshot_d2.label_embeddings import Embedded, cached_embeddings
from zeroshot_d2.multilabel.columns import LabelColumns
from zeroshot_d2.storage import cache_directory
from zeroshot_d2.vocabulary import read_names
from zeroshot_d2.word_vectors import WordVectorEmbeddings

from . import releases
from .case import Case, command, finished_run, save_photo, write

KIND = "hostile"
SPLIT = ClassSplit(("cat", "dog"), unseen=("dog",))
OUTSIDE = "../canary-outside"


class _Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("canary-ran"),)


PICKLE = pickle.dumps(_Payload())


def _case(
    name: str,
    run: Callable[[Path], Any],
    words: tuple[str, ...] | None,
    reads: Callable[[Any], bool] | None = None,
    **more: Any,
) -> Case:
    return Case(KIND, name, run, words, reads, canary=True, **more)


def _given(
    name: str,
    file: str,
    content: bytes | str | Callable[[Path], Any],
    use: Callable[[Path], Any],
    words: tuple[str, ...] = (),
) -> Case:
    """A file of this name, and what reads it."""

    def run(folder: Path) -> Any:
        content(folder / file) if callable(content) else write(folder / file, content)
        return use(folder / file)

    return _case(name, run, (file, *words))


def _predict(path: Path) -> str:
    save_photo(Path("photo.png"))
    return command("predict", "--model", finished_run(), "--weights", path, "--input", "photo.png", "--output", "out")


def _train(*words: object) -> str:
    return command("train", "--config-file", "demo/alignzeg.yaml", "DATASETS.TEST", "()", "OUTPUT_DIR", "out", *words)


def _torchscript(path: Path) -> None:
    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.trace(Program(), torch.zeros(1)).save(str(path))


def _archive(path: Path, **entries: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name.replace('__', '/').replace('_pkl', '.pkl')}", content)


def _zip_checkpoint(path: Path) -> None:
    """torch's own format, with another pickle in it."""
    whole = path.with_suffix(".whole")
    torch.save({"model": {}}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = PICKLE if entry.filename.endswith("data.pkl") else source.read(entry)
            target.writestr(entry.filename, content)


def _objects(path: Path, **arrays: Any) -> None:
    np.savez(path, allow_pickle=True, **arrays)


def _evil(*values: Any) -> np.ndarray:
    array = np.empty(len(values) or 1, dtype=object)
    array[:] = [*values] or [_Payload()]
    return array


def _cached(path: Path) -> torch.Tensor:
    arguments: dict[str, Any] = {"source": str(path), "prompts": ("cat",), "templates": ()}
    before = set(cache_directory().glob("*"))
    cached_embeddings(lambda: Embedded(torch.ones(1, 1)), **arguments)
    (entry,) = set(cache_directory().glob("*")) - before
    shutil.copy(path, entry)
    return cached_embeddings(lambda: Embedded(torch.ones(1, 1)), **arguments).vectors


def _cache(name: str, make: Callable[[Path], Any]) -> Case:
    def run(folder: Path) -> torch.Tensor:
        make(folder / "entry.npz")
        return _cached(folder / "entry.npz")

    return _case(f"cache: {name}", run, None, lambda vectors: torch.equal(vectors, torch.ones(1, 1)), warns=("damaged",))


def _resumed(tag: str, words: tuple[str, ...]) -> Callable[[Path], Any]:
    def run(folder: Path) -> Any:
        write(folder / "out/last_checkpoint", tag)
        write(folder / "out/model_0000001.pkl", PICKLE)
        write(folder / "canary-outside.pth", PICKLE)
        return newest_whole_checkpoint(folder / "out")

    return run


def _listed(entry: str) -> Callable[[Path], Any]:
    """A photo of a multi-label set."""

    def run(folder: Path) -> Any:
        save_photo(folder / "canary-outside.png")
        register_multilabel("fuzz_hostile", SPLIT, folder / "images", {entry: ["cat"]}, replace=True)
        return DatasetCatalog.get("fuzz_hostile")[0]

    return run


def _stems(folder: Path) -> Any:
    for kind in ("images", "labels"):
        save_photo(folder / f"{kind}/a.png")
    save_photo(folder / "canary-outside.png")
    write(folder / "list.txt", f"{OUTSIDE}\na\n")
    folders = {"image_root": folder / "images", "label_root": folder / "labels", "image_suffix": ".png"}
    register_sem_seg("fuzz_hostile_stems", SPLIT, **folders, stems_file=folder / "list.txt", replace=True)
    return DatasetCatalog.get("fuzz_hostile_stems")


def _release(release: str, spoil: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def run(folder: Path) -> Any:
        releases.BUILDERS[release](folder)
        save_photo(folder / "datasets/canary-outside.jpg")
        spoil(folder)
        return releases.prepared(release, folder)

    return run


def cases(rng: random.Random) -> list[Case]:
    tag = "!!python/object/apply:os.mkdir ['canary-ran']"
    system = "MODEL: {META_ARCHITECTURE: AlignZeg}\n"
    nan = [[0.0, 0.0, float("nan"), 0.0, 4.0, 6.0]]
    merged, images = releases.VOC2010 / "trainval_merged.json", releases.NUS / "Imagelist.txt"
    verb = lambda *line: lambda path: command(*(path if word == "FILE" else word for word in line))  # noqa: E731
    found = [
        _given(
            "config: a tag that runs code, read in Python", "run.yaml", f"{system}OUTPUT_DIR: {tag}\n", load_config, ("tag",)
        ),
        *(
            _given(
                f"config: a tag that runs code, given to {line[0]}", "run.yaml", f"{system}OUTPUT_DIR: {tag}\n", verb(*line)
            )
            for line in (
                ("train", "--config-file", "FILE"),
                ("predict", "--config-file", "FILE", "--input", "a.png", "--output", "out"),
                ("export", "--config-file", "FILE", "--output", "a.onnx"),
                ("figures", "qualitative", "--config-file", "FILE"),
                ("web", "--config-file", "FILE"),
                ("demo", "--system", "AlignZeg", "--config-file", "FILE"),
            )
        ),
        _given(
            "config: a tag that names a function", "run.yaml", f"{system}OUTPUT_DIR: !!python/name:os.system\n", load_config
        ),
        _given(
            "config: a tag that loads a module",
            "run.yaml",
            f"{system}OUTPUT_DIR: !!python/module:antigravity\n",
            load_config,
        ),
        _given(
            "config: a _BASE_ that is an address",
            "run.yaml",
            f"{system}_BASE_: http://127.0.0.1:9/canary.yaml\n",
            load_config,
            ("http://",),
        ),
        _case(
            "config: a tag as a value",
            lambda folder: load_config("demo/alignzeg.yaml", ["OUTPUT_DIR", tag]),
            None,
            lambda cfg: tag == cfg.OUTPUT_DIR,
        ),
        _case(
            "config: code as a value",
            lambda folder: load_config("demo/alignzeg.yaml", ["OUTPUT_DIR", "__import__('os').mkdir('canary-ran')"]),
            None,
            bool,
        ),
        _given("weights: a pickle as .pkl", "model.pkl", PICKLE, _predict, ("convert",)),
        _given("weights: a pickle as .pth", "model.pth", PICKLE, _predict),
        _given(
            "weights: a pickle in torch's format",
            "model.pth",
            lambda path: torch.save({"model": _Payload()}, path),
            _predict,
        ),
        _given(
            "weights: a pickle in torch's old format",
            "model.pth",
            lambda path: torch.save({"model": _Payload()}, path, _use_new_zipfile_serialization=False),
            _predict,
        ),
        _given("weights: another pickle in torch's archive", "model.pth", _zip_checkpoint, _predict),
        _given("weights: a pickle as safetensors", "model.safetensors", PICKLE, _predict),
        _given("weights: a TorchScript program", "model.pth", _torchscript, _predict),
        _case("weights: an address", lambda folder: _predict(Path("http://127.0.0.1:9/model.pkl")), ("http:/",)),
        _case(
            "weights: an address as key",
            lambda folder: _train("MODEL.WEIGHTS", "http://127.0.0.1:9/m.pth"),
            ("http://127.0.0.1:9/m.pth",),
        ),
        _case(
            "weights: Detectron2's own address",
            lambda folder: _train("MODEL.WEIGHTS", "detectron2://m.pkl"),
            ("detectron2://m.pkl",),
        ),
        _case("weights: a .pkl as key", lambda folder: _train("MODEL.WEIGHTS", write(folder / "m.pkl", PICKLE)), ("m.pkl",)),
        _case(
            "weights: a record that is a pickle",
            lambda folder: _predict(_saved(folder, {"model": {}, "zeroshot_d2": _Payload()})),
            ("saved.pth",),
        ),
        *(
            _case(
                f"checkpoint folder: last_checkpoint names {entry}",
                _resumed(entry, ()),
                None,
                lambda path: path is None,
                warns=("passed over",),
            )
            for entry in ("model_0000001.pkl", f"{OUTSIDE}.pth", "/etc/passwd", "http://127.0.0.1:9/m.pkl")
        ),
        _given(
            "CLIP: a TorchScript program",
            "clip.pt",
            _torchscript,
            lambda path: create_clip("ViT-B-32-quickgelu", str(path)),
            ("TorchScript",),
        ),
        _given("CLIP: a pickle", "clip.pt", PICKLE, lambda path: create_clip("demo-world-clip", str(path))),
        _given(
            "CLIP: a pickle in torch's format",
            "clip.bin",
            lambda path: torch.save(_Payload(), path),
            lambda path: create_clip("demo-world-clip", str(path)),
        ),
        _given(
            "CLIP: objects in .npz",
            "clip.npz",
            lambda path: _objects(path, a=_evil()),
            lambda path: create_clip("demo-world-clip", str(path)),
        ),
        _given("exported file: a .pt2 that is a pickle", "a.pt2", PICKLE, lambda path: read_metadata(path, "alignzeg.json")),
        _given(
            "exported file: a .pt2 with pickles in it",
            "a.pt2",
            lambda path: _archive(path, data_pkl=PICKLE, models__model_pkl=PICKLE, version=b"0"),
            lambda path: read_metadata(path, "alignzeg.json"),
        ),
        _given("vocabulary: a pickle", "v.txt", PICKLE, lambda path: read_names(str(path))),
        _given("vocabulary: a pickle as .pkl", "v.pkl", PICKLE, lambda path: read_names(str(path))),
        _given(
            "word vectors: objects in .npz",
            "w.npz",
            lambda path: _objects(path, names=_evil(), vectors=np.eye(1)),
            lambda path: WordVectorEmbeddings(path).compute(("cat",)),
        ),
        _given("word vectors: a pickle", "w.txt", PICKLE, lambda path: WordVectorEmbeddings(path).compute(("cat",))),
        _given(
            "label columns: objects, memory-mapped",
            "l.npz",
            lambda path: _objects(
                path,
                class_ids=np.array(["a"]),
                path_bytes=_evil(),
                path_ends=np.array([0, 1]),
                row_ends=np.array([0, 0]),
                classes=_evil(1),
                signs=_evil(1),
            ),
            LabelColumns.open,
        ),
        _given(
            "label columns: objects of the right size",
            "l.npz",
            lambda path: _objects(path, class_ids=_evil("a")),
            LabelColumns.open,
        ),
        _cache("objects", lambda path: _objects(path, key=_evil(), embeddings=_evil(), note=_evil())),
        _cache("a pickle", lambda path: path.write_bytes(PICKLE)),
        _case("photos: a path that leads outside", _listed(f"{OUTSIDE}.png"), (f"{OUTSIDE}.png",)),
        _case("photos: such a path with back-slashes", _listed("..\\canary-outside.png"), ("canary-outside.png",)),
        _case("photos: an absolute path", _listed("/tmp/canary-outside.png"), ("/tmp/canary-outside.png",)),
        _case("image list: a path that leads outside", _stems, ("list.txt", OUTSIDE)),
        _case(
            "release: a polygon with NaN",
            _release(
                "pascal_context", lambda folder: write(folder / merged, json.dumps(releases.context(segmentation=nan)))
            ),
            ("trainval_merged.json", "nan"),
        ),
        _case(
            "release: an image that leads outside",
            _release(
                "pascal_context",
                lambda folder: write(folder / merged, json.dumps(releases.context(file_name=f"../../{OUTSIDE}.jpg"))),
            ),
            ("trainval_merged.json",),
        ),
        _case(
            "release: a list that leads outside",
            _release("nus_wide", lambda folder: write(folder / images, "..\\..\\canary-outside.jpg\n")),
            ("Imagelist.txt",),
        ),
        _case(
            "release: objects in .mat",
            _release(
                "pascal_context_459",
                lambda folder: savemat(
                    folder / releases.VOC2010 / "trainval/2008_000002.mat", {"LabelMap": np.array([[1, "a"]], dtype=object)}
                ),
            ),
            ("2008_000002.mat",),
        ),
        _given(
            "results: a pickle",
            "r.json",
            PICKLE,
            lambda path: command("figures", "per-class-iou", "--results", path, "--output", "o.png"),
        ),
        _given(
            "photo: a pickle",
            "photo.png",
            PICKLE,
            lambda path: command("predict", "--model", finished_run(), "--input", path, "--output", "out"),
        ),
        _given(
            "photo: PostScript",
            "photo.eps",
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(canary-ran) (w) file\n",
            lambda path: command("predict", "--model", finished_run(), "--input", path, "--output", "out"),
        ),
    ]
    return found


def _saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "saved.pth")
    return folder / "saved.pth"
