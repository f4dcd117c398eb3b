"""Inputs for Epsilon."""

import pytest
import torch


@pytest.fixture
def inputs() -> list[dict[str, object]]:
    """Three training samples of the demo world, the second one without a label."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8),
            "dataset_name": "demo_world_multilabel_train",
            "positive_labels": labels,
        }
        for labels in ([0, 5, 7], [], [3])
    ]
