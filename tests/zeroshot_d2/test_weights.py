"""Files of weights from anyone: read without running anything, or one sentence that names them."""

import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from zeroshot_d2.weights import check_tensors, read_texts, read_weights, write_safetensors


class Payload:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return Path.mkdir, (self.made,)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_tensors_come_back(tmp_path, name, mapped):
    weights = {"a": torch.arange(6.0).view(2, 3)}
    if name.endswith("pth"):
        torch.save(weights, tmp_path / name)
    else:
        safetensors.torch.save_file(weights, tmp_path / name)
    assert torch.equal(read_weights(tmp_path / name, mapped=mapped)["a"], weights["a"])


@pytest.mark.parametrize("form", ["plain", "zip", "old", "pkl", "safetensors"])
def test_nothing_in_a_file_is_run(tmp_path, form):
    payload, file = Payload(tmp_path / "made"), tmp_path / f"w.{'pth' if form in ('plain', 'zip', 'old') else form}"
    if form in ("zip", "old"):
        torch.save({"a": payload}, file, _use_new_zipfile_serialization=form == "zip")
    else:
        file.write_bytes(pickle.dumps(payload))
    with pytest.raises(ValueError, match=rf"the weights of X .*w\.{file.suffix[1:]} "):
        read_weights(file, "weights of X")
    assert not (tmp_path / "made").exists()


def test_a_changed_byte_is_noticed_unless_the_file_is_mapped(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    place = content.index(bytes(500))
    content[place + 200] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pth is damaged or cut off"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 3}, "X has a int as a, which must be a tensor"),
        ({"a": torch.tensor([0.0, torch.nan])}, "X has NaN in a: its training had failed"),
    ],
)
def test_what_is_no_weight(weights, message):
    check_tensors({"a": torch.tensor([0.0, torch.inf]), "b": torch.tensor(3)}, "X")
    with pytest.raises(ValueError, match=message):
        check_tensors(weights, "X")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_safetensors_have_the_permissions_of_the_umask_and_their_texts(tmp_path):
    weights = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3), "c": torch.zeros(0, dtype=torch.bfloat16)}
    before = os.umask(0o022)
    try:
        write_safetensors(tmp_path / "w.safetensors", weights, {"text": "ä"})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644
    assert read_texts(tmp_path / "w.safetensors")["text"] == "ä"
    torch.testing.assert_close(read_weights(tmp_path / "w.safetensors"), weights, rtol=0, atol=0)
