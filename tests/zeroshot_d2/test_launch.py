"""The command line: several processes and machines, a kill and its resumption, seeds, and missing weights."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import zeroshot_d2.launch as launch_module
from zeroshot_d2.commands import train
from zeroshot_d2.launch import launch, run, setup
from zeroshot_d2.provenance import without_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOY = str(ROOT / "tests" / "toy_system.py")


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    """A config file that names the system, and where the output goes: tmp_path / "out"."""
    return write_config(tmp_path / "toy.yaml", tmp_path / "out")


def write_config(path: Path, output: Path) -> str:
    path.write_text(f"VERSION: 2\nMODEL:\n  META_ARCHITECTURE: Toy\nOUTPUT_DIR: {output}\n")
    return str(path)


def parse(*arguments: str) -> argparse.Namespace:
    return train.parser().parse(["--import", TOY, *arguments])


def start(*arguments: str, launcher: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """Start the training command with these environment variables."""
    command = [sys.executable, *launcher, str(ROOT / "train_net.py"), "--import", TOY, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def losses(output_dir: Path, num_processes: int = 1) -> list[float]:
    """Loss of each iteration, the mean over processes."""
    columns = []
    for rank in range(num_processes):
        lines = (output_dir / f"losses_{rank}.txt").read_text().splitlines()
        column = {int(iteration): float(loss) for iteration, loss in map(str.split, lines)}
        assert sorted(column) == list(range(len(column)))
        columns.append([column[iteration] for iteration in range(len(column))])
    return [sum(row) / num_processes for row in zip(*columns, strict=True)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of an uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("reference")
    launch(train.process, parse("--config-file", write_config(folder / "toy.yaml", folder)))
    return folder


def final_weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(output_dir / "model_final.pth", weights_only=True)["model"]


def results(output_dir: Path) -> dict[str, dict[str, Any]]:
    return without_run(json.loads((output_dir / "results.json").read_text()))


# ---- processes ----


def test_two_processes_have_the_losses_of_one(tmp_path: Path, config_file: str, reference: Path) -> None:
    code, output = finish(start("--config-file", config_file, "--num-gpus", "2", "--dist-url", "auto"))
    assert code == 0, output
    assert losses(tmp_path / "out", 2) == pytest.approx(losses(reference), rel=1e-5)
    torch.testing.assert_close(final_weights(tmp_path / "out"), final_weights(reference), rtol=1e-4, atol=1e-6)
    assert results(tmp_path / "out")["toy_val"]["images"] == results(reference)["toy_val"]["images"]


def test_two_machines_of_one_process_each(tmp_path: Path, config_file: str, reference: Path) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ("--config-file", config_file, "--num-gpus", "1", "--num-machines", "2", "--dist-url", url)
    machines = [start(*common, "--machine-rank", str(rank)) for rank in range(2)]
    for code, output in map(finish, machines):
        assert code == 0, output
    assert losses(tmp_path / "out", 2) == pytest.approx(losses(reference), rel=1e-5)


def test_torchrun(tmp_path: Path, config_file: str, reference: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    code, output = finish(start("--config-file", config_file, launcher=launcher))
    assert code == 0, output
    assert losses(tmp_path / "out", 2) == pytest.approx(losses(reference), rel=1e-5)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"--num-gpus 3, but this machine has 2 GPU"):
        launch(train.process, parse("--num-gpus", "3"))


def test_several_machines_need_an_address() -> None:
    with pytest.raises(ValueError, match=r"--num-machines 2 needs --dist-url tcp://HOST:PORT"):
        launch(train.process, parse("--num-machines", "2"))


def test_a_fault_in_several_processes_is_said_once_and_last(config_file: str) -> None:
    code, output = finish(start("--config-file", config_file, "--num-gpus", "2", "SOLVER.IMS_PER_BATCH", "3"))
    assert code == 2
    *_, said, hint = output.rstrip().splitlines()
    assert said.startswith("error: SOLVER.IMS_PER_BATCH 3 cannot be shared evenly by 2 process(es)")
    assert hint == "(--traceback shows where)" and output.count("cannot be shared") == 1


# ---- resuming ----


def test_after_a_restart_torchrun_goes_on_from_its_own_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "model_0000004.pth"
    checkpoint.touch()
    os.utime(checkpoint, (1, 1))  # of an older run
    monkeypatch.setattr(launch_module, "newest_whole_checkpoint", lambda folder: checkpoint)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert not launch_module._restarted_by_torchrun(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not launch_module._restarted_by_torchrun(tmp_path)  # no first start is known
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not launch_module._restarted_by_torchrun(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not launch_module._restarted_by_torchrun(tmp_path)  # it ended before its first checkpoint
    os.utime(checkpoint)
    assert launch_module._restarted_by_torchrun(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert launch_module._restarted_by_torchrun(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not launch_module._restarted_by_torchrun(tmp_path)  # another run begins


def test_resume_after_a_kill(tmp_path: Path, config_file: str, reference: Path) -> None:
    code, output = finish(start("--config-file", config_file, TOY_KILL_AT="8"))
    assert code == 9, output
    assert len(losses(tmp_path / "out")) == 8
    launch(train.process, parse("--config-file", config_file, "--resume"))
    assert losses(tmp_path / "out") == losses(reference)
    torch.testing.assert_close(final_weights(tmp_path / "out"), final_weights(reference), rtol=0, atol=0)


def test_a_drawn_seed_is_used_again(tmp_path: Path, config_file: str) -> None:
    def seed(*arguments: str) -> int:
        setup(parse("--config-file", config_file, *arguments, "SEED", "-1"))
        return int(yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["SEED"])

    first = seed()
    assert first >= 0
    assert seed("--resume") == first
    assert seed("--eval-only") == first
    assert seed("--resume") == first  # the evaluation in between has not lost it
    assert seed() != first


# ---- evaluation only ----


def test_eval_only(tmp_path: Path, config_file: str, reference: Path) -> None:
    weights = str(reference / "model_final.pth")
    launch(train.process, parse("--config-file", config_file, "--eval-only", "MODEL.WEIGHTS", weights))
    assert results(tmp_path / "out") == results(reference)
    launch(train.process, parse("--config-file", str(reference / "toy.yaml"), "--eval-only", "--resume"))
    assert results(tmp_path / "out") == results(reference)


def test_eval_only_without_weights(tmp_path: Path, config_file: str) -> None:
    with pytest.raises(ValueError, match=r"--eval-only needs weights"):
        run(parse("--config-file", config_file, "--eval-only"))
    with pytest.raises(ValueError, match=r"--eval-only needs weights"):  # nothing to resume from in there
        run(parse("--config-file", config_file, "--eval-only", "--resume"))
    results = run(parse("--config-file", config_file, "--eval-only", "MODEL.WEIGHTS", ""))
    assert "toy_val" in results


def test_weights_that_do_not_exist(tmp_path: Path, config_file: str) -> None:
    args = parse("--config-file", config_file, "MODEL.WEIGHTS", "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS nowhere\.pth does not exist"):
        run(args)
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS https://x/later\.pth is an address: download the file"):
        run(parse("--config-file", config_file, "MODEL.WEIGHTS", "https://x/later.pth"))


# ---- configs ----


def test_config_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--config-file is missing"):
        run(parse())
    with pytest.raises(FileNotFoundError, match=r"toy\.yaml does not exist \(looked for it from"):
        run(parse("--config-file", str(tmp_path / "toy.yaml")))


def test_options_on_the_command_line_win(config_file: str) -> None:
    cfg = setup(parse("--config-file", config_file, "SOLVER.MAX_ITER", "7"))
    assert cfg.SOLVER.MAX_ITER == 7 and cfg.is_frozen()
    with pytest.raises(ValueError, match=r"there is no key SOLVER\.MAX_ITERS; did you mean SOLVER\.MAX_ITER"):
        setup(parse("--config-file", config_file, "SOLVER.MAX_ITERS", "7"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_device_is_the_cpu(config_file: str) -> None:
    cfg = setup(parse("--config-file", config_file, "MODEL.DEVICE", "cuda"))
    assert cfg.MODEL.DEVICE == "cpu"


def test_a_second_run_in_one_process_logs_each_line_once_and_to_its_own_folder(tmp_path: Path, config_file: str) -> None:
    for name in ("first", "second", "first"):
        setup(parse("--config-file", config_file, "OUTPUT_DIR", str(tmp_path / name)))
        logger = logging.getLogger("zeroshot_d2.trainer")
        logger.info("this is the run %s", name)
        assert len(logging.getLogger("zeroshot_d2").handlers) == len(logging.getLogger("detectron2").handlers) == 2
    logs = {name: (tmp_path / name / "log.txt").read_text() for name in ("first", "second")}
    assert "run second" not in logs["first"] and logs["second"].count("this is the run second") == 1
    assert logs["first"].count("this is the run first") == 2 and "run first" not in logs["second"]


FULL_DISK = """
from zeroshot_d2 import checkpoint

def full(self, name, state):
    raise OSError(28, f"cannot write {name}: No space left on device")

checkpoint.Checkpointer._write = full
"""


def test_two_processes_end_when_the_last_checkpoint_cannot_be_written(tmp_path: Path, config_file: str) -> None:
    """The first process fails in its last step; the second one is in the evaluation that follows."""
    (tmp_path / "full_disk.py").write_text(FULL_DISK, encoding="utf-8")
    few = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "4")
    words = ("--import", str(tmp_path / "full_disk.py"), "--config-file", config_file, "--num-gpus", "2", *few)
    code, output = finish(start(*words))
    assert code != 0 and "No space left on device" in output.splitlines()[-1] + output.splitlines()[-2]
    assert "Start inference" not in output.split("No space left on device")[-1]
