"""The (ML)2P-Encoder: the public code's values, by hand, and in its limits."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_close

from baselines_d2.ml2p import ChannelAttention, ChannelEncoder, shuffle
from baselines_d2.sdl import sdl_loss
from tests.baselines_d2.golden import Golden, golden_files

# Modules of the public code and ours.
MODULES = {
    **{f"ft_module.{i}.conv": f"transforms.{i}.0" for i in range(3)},
    **{f"ft_module.{i}.bn": f"transforms.{i}.1" for i in range(3)},
    "conv_embedding": "embedding",
    "Channel_MLP.channel_attn": "channel_attention",
    "Channel_MLP.channel_attn.qkv": "channel_attention.qkv.0",
    "Channel_MLP.channel_attn.qkv_dwconv": "channel_attention.qkv.1",
    "Channel_MLP.channel_mlp.layer_norm_1": "mixer.norm1",
    "Channel_MLP.channel_mlp.layer_norm_2": "mixer.norm2",
    "Channel_MLP.channel_mlp.mlp_token.dense_1": "mixer.positions.0",
    "Channel_MLP.channel_mlp.mlp_token.dense_2": "mixer.positions.2",
    "Channel_MLP.channel_mlp.mlp_channel.dense_1": "mixer.channels.0",
    "Channel_MLP.channel_mlp.mlp_channel.dense_2": "mixer.channels.2",
    "Group_Attention.Linear1.dense_1": "group_attention.query.0",
    "Group_Attention.Linear1.dense_2": "group_attention.query.2",
    "Group_Attention.Linear2.dense_1": "group_attention.key.0",
    "Group_Attention.Linear2.dense_2": "group_attention.key.2",
}
NEVER_USED = "Channel_MLP.channel_attn.project_out."  # by the public code


def renamed(name: str) -> str:
    module, _, weight = name.rpartition(".")
    return f"{MODULES[module]}.{weight}"


def head_of(golden: Golden) -> ChannelEncoder:
    config = golden.config
    sources = config["sources"]
    head = ChannelEncoder(
        sources=sources,
        feature_widths=config["feats"],
        grid=min(side for _, side in sources),
        num_groups=config["rows"],
        label_width=golden["in/word_vectors_seen"].shape[1],
    )
    state = golden.below("state").items()
    head.load_state_dict({renamed(name): values for name, values in state if not name.startswith(NEVER_USED)})
    return head


def maps_of(golden: Golden) -> list[torch.Tensor]:
    return [golden[f"in/source_{i}"] for i in range(len(golden.config["sources"]))]


@pytest.mark.parametrize("path", golden_files("ml2p"))
def test_golden_values_of_evaluation(path):
    golden = Golden(path)
    head = head_of(golden).eval()
    maps, groups = maps_of(golden), head.num_groups
    features = torch.cat([transform(x) for transform, x in zip(head.transforms, maps, strict=True)], dim=1)
    shuffled = shuffle(head.embedding(features), groups)
    channels = head.channel_attention(shuffled)
    mixed = head.mixer(channels.transpose(-2, -1))
    golden.check("out/concatenated", features)
    golden.check("out/shuffled_first_image", shuffled[:1])
    golden.check("out/channel_attention_first_image", channels[:1])
    golden.check("out/mixer_first_image", mixed[:1])
    golden.check("out/channel_mlp", mixed.amax(dim=2).sigmoid())

    unseen = golden["in/word_vectors_unseen_unnormalized"]
    both = torch.cat([golden["in/word_vectors_seen"], F.normalize(unseen, dim=-1)])
    vectors = head.encode(maps)
    golden.check("out/scores_unseen", head.scores(vectors, unseen))
    golden.check("out/scores_seen_then_unseen", head.scores(vectors, both))
    head.regroup = False
    golden.check("out/matrix", head.encode(maps))
    golden.check("out/scores_rows_not_rearranged_seen_then_unseen", head.scores(head.encode(maps), both))


@pytest.mark.parametrize("mode", ["train", "eval_mode"])
@pytest.mark.parametrize("path", golden_files("ml2p"))
def test_golden_gradients(path, mode):
    """Under SDL's loss, which is not the method's own."""
    golden = Golden(path)
    head = head_of(golden).train(mode == "train")
    head.regroup = False
    matrix = head.encode(maps_of(golden))
    matrix.retain_grad()
    vectors = matrix.flatten(1).unflatten(1, (-1, head.num_groups)).transpose(1, 2)
    positive = golden["in/labels"] == 1
    per_image = sdl_loss(vectors, golden["in/word_vectors_seen"], positive, reg_weight=0.4)
    loss = sum(per_image.values()).mean()
    golden.check(f"loss/zs_sdl_0.4/{mode}", loss)
    if mode == "train":
        golden.check("out/train/matrix", matrix)
    loss.backward()
    prefix = f"grad/zs_sdl_0.4/{mode}"
    golden.check(f"{prefix}/matrix", matrix.grad)
    for name in golden.below(prefix):
        if name != "matrix":
            full, count = re.fullmatch(r"(.*?)(?:_first_(\d+)_outputs)?", name).groups()
            gradient = head.get_parameter(renamed(full)).grad
            golden.check(f"{prefix}/{name}", gradient[: int(count)] if count else gradient)
    assert golden.unused(f"loss/zs_sdl_0.4/{mode}", f"grad/zs_sdl_0.4/{mode}/") == set()


# ------------------------------------------------------------------------------------------------------- by hand
def small_head(**options):
    torch.manual_seed(0)
    arguments = {"sources": [(4, 6), (5, 3)], "feature_widths": [6, 7], "grid": 3, "num_groups": 2, "label_width": 10}
    return ChannelEncoder(**{**arguments, **options}).eval()


def test_channels_are_shuffled_over_the_groups():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_maps_are_pooled_to_the_grid():
    head = small_head()
    maps = [torch.randn(2, 4, 6, 6), torch.randn(2, 5, 3, 3)]
    assert head.encode(maps).shape == (2, 2, 10)
    assert [transform(x).shape for transform, x in zip(head.transforms, maps, strict=True)] == [(2, 6, 3, 3), (2, 7, 3, 3)]


def test_regrouping_reads_the_numbers_in_another_order():
    maps = [torch.randn(2, 4, 6, 6), torch.randn(2, 5, 3, 3)]
    plain, regrouped = small_head(regroup=False).encode(maps), small_head().encode(maps)
    assert_close(regrouped[:, 1], plain.flatten(1)[:, 1::2])


def test_channels_of_a_group_attend_to_that_group_alone():
    torch.manual_seed(0)
    block = ChannelAttention(num_groups=2, group_width=3)
    x = torch.randn(1, 6, 2, 2)
    q, k, v = block.qkv(x).flatten(2).chunk(3, dim=1)
    for group in range(2):
        part = slice(3 * group, 3 * group + 3)
        cosines = F.cosine_similarity(q[0, part, None], k[0, None, part], dim=-1)
        assert_close(block(x)[0, group], cosines.softmax(dim=-1) @ v[0, part])


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="GRID 4 does not divide a feature map of 6 x 6"):
        small_head(grid=4)
