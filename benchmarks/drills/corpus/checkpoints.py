"""Checkpoints, the records in them, the folders that hold them, and CLIP's weights."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from zeroshot_d2.checkpoint import read_checkpoint, read_record
from zeroshot_d2.clip.loader import create_clip

from .case import Case, command, damaged, finished_run, not_a_file, save_photo, write

KIND = "checkpoints"
Content = Callable[[dict[str, Any]], Any]


def _predict(folder: Path, *more: object, system: str = "alignzeg") -> str:
    save_photo(folder / "photo.png")
    return command("predict", "--model", finished_run(system), "--input", "photo.png", "--output", "out", *more)


def _done(said: str) -> bool:
    return "1 of 1 files done" in said


def _weights(
    name: str, content: bytes | Callable[[Path], Any], words: tuple[str, ...] | None, file: str = "model.pth"
) -> Case:
    """A file given as ``--weights``."""

    def run(folder: Path) -> str:
        content(folder / file) if callable(content) else write(folder / file, content)
        return _predict(folder, "--weights", file)

    named = None if words is None else (file, *words)
    return Case(KIND, f"weights: {name}", run, named, None if words is not None else _done)


def _changed(name: str, change: Content, words: tuple[str, ...] | None) -> Case:
    """The checkpoint of a finished run, changed."""

    def save(path: Path) -> None:
        torch.save(change(read_checkpoint(finished_run() / "model_final.pth")), path)

    return _weights(name, save, words)


def _record(name: str, value: Any, words: tuple[str, ...]) -> Case:
    """A record in a checkpoint that this project did not write."""

    def run(folder: Path) -> Any:
        torch.save({"model": {}, "zeroshot_d2": value}, folder / "model.pth")
        return read_record(folder / "model.pth")

    return Case(KIND, f"record: {name}", run, ("model.pth", *words), None)


def _folder(name: str, spoil: Callable[[Path], Any], words: tuple[str, ...] | None, reads: Any = None) -> Case:
    """A run's folder given as ``--model``."""

    def run(folder: Path) -> str:
        shutil.copytree(finished_run(), folder / "run")
        spoil(folder / "run")
        save_photo(folder / "photo.png")
        return command("predict", "--model", "run", "--input", "photo.png", "--output", "out")

    return Case(KIND, f"folder: {name}", run, words, reads)


def _as_saved(run: Path) -> Path:
    """Leave the weights that save-pretrained would write, as the only ones of a run's folder; the file."""
    (run / "model_final.pth").unlink()
    return (run / "model_final.safetensors").rename(run / "model.safetensors")


def _clip(
    name: str, content: bytes | Callable[[Path], Any], words: tuple[str, ...] | None, file: str = "clip.pt", **options: Any
) -> Case:
    """A file given as CLIP's weights."""

    def run(folder: Path) -> Any:
        content(folder / file) if callable(content) else write(folder / file, content)
        return create_clip(options.get("name", "demo-world-clip"), str(folder / file))

    named = None if words is None else (file, *words)
    return Case(KIND, f"CLIP: {name}", run, named, None if words is not None else lambda clip: clip is not None)


def _with(**entries: Any) -> Content:
    return lambda content: {**content, **entries}


def _model(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Content:
    return lambda content: {**content, "model": change(dict(content["model"]))}


def _first(weights: dict[str, Any], value: Any) -> dict[str, Any]:
    key = next(key for key, tensor in weights.items() if tensor.ndim)
    return {**weights, key: value(weights[key])}


def cases(rng: random.Random) -> list[Case]:
    state = {"model": {"a": torch.zeros(3)}}

    def broken(path: Path, seed: float, number: int) -> None:
        whole = (finished_run() / "model_final.pth").read_bytes()
        write(path, list(damaged(whole, random.Random(seed), 3, 3))[number][1])

    def clip_state() -> dict[str, torch.Tensor]:
        return create_clip("demo-world-clip", "").state_dict()

    found = [_weights(f"{what} as .pth", content, ()) for what, content in not_a_file().items()]
    seeds = [rng.random() for _ in range(6)]
    found += [
        _weights(
            f"{'cut off' if number < 3 else 'altered'}, {number}", lambda path, s=seed, n=number: broken(path, s, n), ()
        )
        for number, seed in enumerate(seeds)
    ]
    found += [
        _weights("as it should be", lambda path: shutil.copy(finished_run() / "model_final.pth", path), None),
        _weights(
            "as safetensors",
            lambda path: safetensors.torch.save_file(read_checkpoint(finished_run() / "model_final.pth")["model"], path),
            None,
            "model.safetensors",
        ),
        _weights("damaged safetensors", b"\xff" * 100, (), "model.safetensors"),
        _weights("a pickle of a dictionary", pickle.dumps({"model": {}}), ()),
        _weights("a .pkl", pickle.dumps({"model": {}}), (), "model.pkl"),
        _weights("a .npz", lambda path: np.savez(path, a=np.zeros(3)), (), "model.npz"),
        _weights("a zip without a checkpoint", lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"), ()),
        _weights("a folder", Path.mkdir, ()),
        _weights("absent", lambda path: None, ()),
        _weights("a tensor", lambda path: torch.save(torch.zeros(3), path), ()),
        _weights("a list", lambda path: torch.save([state], path), ()),
        _weights("another model", lambda path: torch.save(state, path), ("lacks",)),
        _weights("nothing", lambda path: torch.save({}, path), ("lacks",)),
        _weights("a model that is a list", lambda path: torch.save({"model": [1]}, path), ("list",)),
        _weights("a model that is None", lambda path: torch.save({"model": None}, path), ("None",)),
        _weights("a model of numbers", lambda path: torch.save({"model": {"a": 3}}, path), ()),
        _changed("weights of numbers", _model(lambda weights: _first(weights, lambda tensor: 3)), ()),
        _changed("weights of another shape", _model(lambda weights: _first(weights, lambda tensor: tensor[:1])), ()),
        _changed(
            "weights of NaN",
            _model(lambda weights: _first(weights, lambda tensor: torch.full_like(tensor, torch.nan))),
            ("NaN",),
        ),
        _changed(
            "complex weights",
            _model(lambda weights: _first(weights, lambda tensor: tensor.to(torch.complex64))),
            ("complex",),
        ),
        _changed(
            "whole numbers as weights",
            _model(lambda weights: _first(weights, lambda tensor: tensor.to(torch.int64))),
            ("int64",),
        ),
        _changed(
            "half precision",
            _model(
                lambda weights: {
                    key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in weights.items()
                }
            ),
            None,
        ),
        _changed("a weight too few", _model(lambda weights: dict(list(weights.items())[1:])), ("lacks",)),
        _changed(
            "the weights of another system",
            lambda content: read_checkpoint(finished_run("epsilon") / "model_final.pth"),
            ("Epsilon",),
        ),
        _changed(
            "another CLIP",
            _with(
                zeroshot_d2={"system": "AlignZeg", "vocabulary": None, "trained": [], "frozen": {"CLIP": {"sha256": "0"}}}
            ),
            ("CLIP",),
        ),
        _changed("no record", lambda content: {"model": content["model"]}, None),
        _record("a text", "AlignZeg", ()),
        _record("None", None, ()),
        _record("a list", [1], ()),
        _record("without a vocabulary", {"system": "AlignZeg", "trained": [], "frozen": {}}, ("vocabulary",)),
        _record("a vocabulary that is a list", {"system": "AlignZeg", "vocabulary": ["a"], "trained": [], "frozen": {}}, ()),
        _record(
            "a vocabulary without names",
            {"system": "AlignZeg", "vocabulary": {"names": []}, "trained": [], "frozen": {}},
            ("unseen",),
        ),
        _record(
            "trained classes as a text",
            {"system": "AlignZeg", "vocabulary": None, "trained": "cat", "frozen": {}},
            ("'cat'",),
        ),
        _record(
            "trained classes as numbers", {"system": "AlignZeg", "vocabulary": None, "trained": [1], "frozen": {}}, ("1",)
        ),
        _record(
            "frozen parts as a list", {"system": "AlignZeg", "vocabulary": None, "trained": [], "frozen": [1]}, ("frozen",)
        ),
        _record("a system that is a number", {"system": 3, "vocabulary": None, "trained": [], "frozen": {}}, ("3",)),
        _folder("as it should be", lambda run: None, None, _done),
        _folder("no checkpoint", lambda run: [file.unlink() for file in run.glob("model_final.*")], ("model_final.pth",)),
        _folder("safetensors alone", lambda run: (run / "model_final.pth").unlink(), None, _done),
        _folder("a saved model", _as_saved, None, _done),
        _folder("a saved model that is cut off", lambda run: os.truncate(_as_saved(run), 5000), ("model.safetensors",)),
        _folder(
            "a saved model beside a pickle",
            lambda run: write(_as_saved(run).with_name("model_final.pth"), pickle.dumps({"model": {}})),
            None,
            _done,
        ),
        _folder(
            "a saved model whose record is no JSON",
            lambda run: safetensors.torch.save_file({"a": torch.zeros(3)}, _as_saved(run), {"zeroshot_d2": "{"}),
            ("model.safetensors", "record"),
        ),
        _folder("no config", lambda run: (run / "config.yaml").unlink(), ("config.yaml",)),
        _folder("an empty config", lambda run: write(run / "config.yaml", ""), ("config.yaml", "META_ARCHITECTURE")),
        _folder(
            "a config that is cut off",
            lambda run: write(run / "config.yaml", (run / "config.yaml").read_bytes()[:700]),
            ("config.yaml",),
        ),
        _folder("nothing", shutil.rmtree, ("run",)),
        _folder("a file", lambda run: [shutil.rmtree(run), write(run, "x")], ("run",)),
        _folder(
            "the config of the other system",
            lambda run: shutil.copy(finished_run("epsilon") / "config.yaml", run / "config.yaml"),
            ("model_final.pth",),
        ),
    ]
    found += [_clip(f"{what} as .pt", content, ()) for what, content in not_a_file().items()]
    found += [
        _clip("as it should be", lambda path: torch.save(clip_state(), path), None),
        _clip("as safetensors", lambda path: safetensors.torch.save_file(clip_state(), path), None, "clip.safetensors"),
        _clip("damaged safetensors", b"\x08\0\0\0\0\0\0\0not json", (), "clip.safetensors"),
        _clip("another model", lambda path: torch.save({"a": torch.zeros(3)}, path), ()),
        _clip("a list", lambda path: torch.save([1], path), ()),
        _clip("nothing", lambda path: torch.save({}, path), ()),
        _clip(
            "a weight of another shape",
            lambda path: torch.save(_first(clip_state(), lambda tensor: tensor[..., :1]), path),
            (),
        ),
        _clip("a weight too few", lambda path: torch.save(dict(list(clip_state().items())[1:]), path), ()),
        _clip(
            "weights of NaN",
            lambda path: torch.save(_first(clip_state(), lambda tensor: torch.full_like(tensor, torch.nan)), path),
            ("NaN",),
        ),
        _clip("a .npz", lambda path: np.savez(path, a=np.zeros(3)), (), "clip.npz"),
        _clip("a checkpoint of AlignZeg", lambda path: shutil.copy(finished_run() / "model_final.pth", path), ()),
    ]
    return found
