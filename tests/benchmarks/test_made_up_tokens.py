"""Made-up images of real labels: what they hold, their numbers, and a run from end to end on a few labels."""

import json

import numpy as np
import pytest
import torch

from benchmarks import made_up_tokens
from benchmarks.made_up_tokens import COMPONENTS, LOSSES, TOKENS, WIDTH, Images, labels_of, main, numbers
from benchmarks.own_process import ROOT
from benchmarks.runs import folder_of
from zeroshot_d2.class_split import ClassSplit


def some_images(num_labels=12):
    vectors = torch.nn.functional.normalize(torch.randn(num_labels, 20, generator=torch.Generator().manual_seed(1)), dim=1)
    return Images(vectors, 1 / torch.arange(1.0, num_labels + 1))


def test_images_show_two_to_eight_labels_and_popular_ones_more_often():
    tokens, present = some_images().draw(2000, torch.Generator().manual_seed(3))
    assert tokens.shape == (2000, TOKENS, WIDTH) and tokens.isfinite().all()
    assert set(present.sum(dim=1).tolist()) == set(range(2, 9))
    share = present.float().mean(dim=0)
    assert share[0] > share[5] > share[11] > 0


def test_tokens_of_a_seed_are_the_same_and_lie_near_their_labels():
    images = some_images()
    tokens, present = images.draw(300, torch.Generator().manual_seed(3))
    again, _ = images.draw(300, torch.Generator().manual_seed(3))
    assert tokens.equal(again)
    random_map = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    best = (tokens @ (images.vectors @ random_map).T).amax(dim=1)  # of each label over the tokens
    there, absent = best[present].mean(), best[~present].mean()
    assert there > 1.3 * absent


def test_concepts_are_no_tags(tmp_path):
    (tmp_path / "tags").write_text("sky\ndog\nsun\nred\n")
    (tmp_path / "concepts").write_text("dog\nwhales\n")
    split, popularity = labels_of(tmp_path / "tags", tmp_path / "concepts")
    assert split.names == ("sky", "sun", "red", "dog", "whales") and split.unseen == ("dog", "whales")
    assert popularity.tolist() == pytest.approx([1, 1 / 3, 1 / 4, 1 / 2, 1 / 2])


def test_numbers_by_hand():
    split = ClassSplit(("a", "b"), unseen=("b",))
    vectors = torch.eye(2)
    semantics = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.2, 0.1], [0.1, 0.5]]])
    present = torch.tensor([[True, True], [True, False], [False, True]])
    found = numbers(semantics, present, vectors, split)
    assert found["ZSL_mAP"] == pytest.approx(100) and found["GZSL_mAP"] == pytest.approx(100)
    cosine = (0.2 * 0.1 + 0.1 * 0.5) / (0.05 * 0.26) ** 0.5
    assert found["cosine"] == pytest.approx(100 * (0 + 1 + cosine) / 3, rel=1e-4)
    assert found["nearest_groups"] == pytest.approx((2 + 1 + 1) / 3)
    assert found["random_ZSL_mAP"] == pytest.approx(200 / 3)


def test_variants_are_configs_with_folders_of_their_own(tmp_path):
    variants = {*COMPONENTS.values(), *LOSSES.values()}
    assert all((ROOT / "configs" / "nus_wide" / config).is_file() for config, _ in variants)
    assert len({folder_of(variant, seed, tmp_path) for variant in variants for seed in (1, 2)}) == 2 * len(variants)


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Few labels, and a training of a few batches."""
    rng = np.random.default_rng(0)
    names = [f"label{chr(97 + k)}" for k in range(12)]
    np.savez(tmp_path / "vectors.npz", names=np.array(names), vectors=rng.normal(size=(12, 20)).astype(np.float32))
    (tmp_path / "tags").write_text("\n".join(names[:9]))
    (tmp_path / "concepts").write_text("\n".join(names[8:]))
    monkeypatch.setattr(made_up_tokens, "TEST_IMAGES", 200)
    monkeypatch.setattr(made_up_tokens, "WIDTH", 32)
    files = ["--tags", f"{tmp_path}/tags", "--concepts", f"{tmp_path}/concepts", "--vectors", f"{tmp_path}/vectors.npz"]
    return [*files, "--iterations", "7"]


@pytest.mark.parametrize("config", ["epsilon.yaml", "epsilon_ablation/backbone_only.yaml"])
def test_a_variant_from_end_to_end(words, config, capsys):
    main([*words, "--config", str(ROOT / "configs" / "nus_wide" / config), "SEED", "1"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    values = found["made_up_tokens"]
    assert values["run"]["seed"] == 1
    assert 0 < values["ZSL_mAP"] < 100 and -100 <= values["cosine"] <= 100 and 1 <= values["nearest_groups"] <= 8


def test_tables_of_what_is_there(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "benchmarks.made_up_tokens.json_of_own_process",
        lambda module, call, **_: {
            "made_up_tokens": {
                key: float(len(call)) for key in (*made_up_tokens.METRICS, "random_ZSL_mAP", "random_GZSL_mAP")
            }
        },
    )
    main([*words, "--seeds", "1", "2", "--jobs", "2", "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "**Components**" in said and "| alpha as printed, lambda = 0.9 |" in said and "A random ranking" in said
    assert "\nSeeds unknown; threads: unknown" in said and said.startswith((tmp_path / "out" / "tables.md").read_text())
    assert (tmp_path / "out" / "tables.png").is_file()
