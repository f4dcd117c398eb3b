"""The CLIP trunk, and trunk + semantic decoder, against open_clip's own forward pass."""

import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer

from alignzeg_d2.modeling.clip_image_encoder import ClipImageEncoder
from alignzeg_d2.modeling.semantic_decoder import SemanticDecoder
from zeroshot_d2.clip.towers import resize_positions


def small_vit(act_layer=QuickGELU):
    """4 blocks, 32 wide, 4x4 patches of 8 pixels; learnt positions, as in OpenAI's ViT-B/16."""
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=32, patch_size=8, width=32, layers=4, heads=2, mlp_ratio=4, output_dim=16, act_layer=act_layer
    ).eval()


@pytest.mark.parametrize("act_layer", [QuickGELU, torch.nn.GELU])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_trunk_and_decoder_without_bias_equal_open_clip(act_layer, num_layers):
    vit = small_vit(act_layer)
    trunk = ClipImageEncoder(vit, num_layers=num_layers, tap=1)
    decoder = SemanticDecoder(visual=vit, num_layers=4 - num_layers)
    images = torch.randn(2, 3, 32, 32)
    z_clip, tokens = trunk(images)
    features = decoder(tokens, torch.zeros(2, 1, 3, 4, 4), (4, 4))
    with torch.no_grad():
        expected = vit(images)
    for proposal in range(3):
        torch.testing.assert_close(features[:, proposal], expected, rtol=1e-5, atol=1e-5)


def test_trunk_and_decoder_equal_encode_image_of_the_demo_clip(random_clip):
    trunk = ClipImageEncoder(random_clip.visual, num_layers=3, tap=1)
    decoder = SemanticDecoder(visual=random_clip.visual, num_layers=3)
    images = torch.randn(2, 3, 64, 64)
    features = decoder(trunk(images)[1], torch.zeros(2, 1, 1, 8, 8), (8, 8))[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(features, random_clip.encode_image(images), rtol=1e-4, atol=1e-5)


def test_tap_is_the_output_of_the_named_block():
    vit = small_vit()
    outputs = {}
    for number, block in enumerate(vit.transformer.resblocks, start=1):
        block.register_forward_hook(lambda _module, _args, out, number=number: outputs.update({number: out}))
    images = torch.randn(1, 3, 32, 32)
    vit(images)
    expected = {number: out.detach().clone() for number, out in outputs.items()}
    for tap in (1, 2, 3):
        z_clip, tokens = ClipImageEncoder(vit, num_layers=3, tap=tap)(images)
        assert z_clip.shape == (1, 32, 4, 4)
        torch.testing.assert_close(z_clip.flatten(2).transpose(1, 2), expected[tap][:, 1:])
        torch.testing.assert_close(tokens, expected[3])


def test_positions_at_the_trained_size_are_the_trained_ones_and_others_are_interpolated():
    vit = small_vit()
    trunk = ClipImageEncoder(vit, num_layers=3, tap=1)
    assert trunk._positions(4, 4) is vit.positional_embedding
    with torch.no_grad():  # channels that hold the row and the column
        y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        vit.positional_embedding[1:, 0] = y.flatten()
        vit.positional_embedding[1:, 1] = x.flatten()
    wide = trunk._positions(4, 8)
    assert wide.shape == (1 + 32, 32)
    torch.testing.assert_close(wide[0], vit.positional_embedding[0])
    grid = wide[1:].reshape(4, 8, 32)
    torch.testing.assert_close(grid[:, :, 0], torch.arange(4.0)[:, None].expand(4, 8))  # rows stay rows
    assert (grid[:, 1:, 1] > grid[:, :-1, 1]).all()  # columns grow from left to right ...
    torch.testing.assert_close(grid[..., 1] + grid[..., 1].flip(1), torch.full((4, 8), 3.0))  # ... symmetrically
    assert trunk(torch.randn(1, 3, 40, 24))[1].shape == (1, 1 + 5 * 3, 32)


def test_without_prompts_nothing_is_kept_for_a_backward_pass():
    trunk = ClipImageEncoder(small_vit(), num_layers=3, tap=2).train()
    z_clip, tokens = trunk(torch.randn(1, 3, 32, 32, requires_grad=True))
    assert z_clip.grad_fn is None and tokens.grad_fn is None
    assert not any(p.requires_grad for p in trunk.parameters())


def test_gradient_reaches_the_prompts_of_every_block_and_only_them():
    vit = small_vit()
    trunk = ClipImageEncoder(vit, num_layers=3, tap=2, num_prompts=5).train()
    z_clip, tokens = trunk(torch.randn(2, 3, 32, 32))
    assert z_clip.shape == (2, 32, 4, 4) and tokens.shape == (2, 17, 32)
    tokens.square().sum().backward()
    assert [name for name, p in trunk.named_parameters() if p.grad is not None] == ["prompts"]
    assert (trunk.prompts.grad.abs().sum(dim=(1, 2)) > 0).all()
    with torch.no_grad():
        assert trunk(torch.randn(2, 3, 32, 32))[1].grad_fn is None


def test_prompts_change_the_tokens():
    vit, images = small_vit(), torch.randn(1, 3, 32, 32)
    plain = ClipImageEncoder(vit, num_layers=3, tap=2)(images)[1]
    prompted = ClipImageEncoder(vit, num_layers=3, tap=2, num_prompts=2)(images)[1]
    assert (plain - prompted).abs().max() > 1e-3


@pytest.mark.parametrize(("num_layers", "tap"), [(3, -1), (3, 4), (5, 1)])
def test_impossible_tap_is_refused(num_layers, tap):
    with pytest.raises(ValueError, match=f"TAP={tap} with {num_layers} blocks"):
        ClipImageEncoder(small_vit(), num_layers=num_layers, tap=tap)


def test_several_taps_in_any_order_and_0_is_what_enters_the_first_block():
    vit, images = small_vit(), torch.randn(2, 3, 32, 32)
    trunk = ClipImageEncoder(vit, num_layers=4)
    entered = []
    hook = vit.transformer.resblocks[0].ln_1.register_forward_pre_hook(lambda _module, args: entered.append(args[0]))
    (third, stem), tokens = trunk.tapped(images, [3, 0])
    hook.remove()
    torch.testing.assert_close(stem.flatten(2).transpose(1, 2), entered[0][:, 1:])
    torch.testing.assert_close(third, ClipImageEncoder(vit, num_layers=3, tap=3)(images)[0])
    torch.testing.assert_close(trunk(images)[0], stem)
    assert tokens.shape == (2, 17, 32)


def test_prompts_in_the_first_blocks_only():
    """Behind them the blocks see what they would see without prompts."""
    vit, images = small_vit(), torch.randn(1, 3, 32, 32)
    lengths = []
    hooks = [
        block.ln_1.register_forward_pre_hook(lambda _module, args: lengths.append(args[0].shape[1]))
        for block in vit.transformer.resblocks
    ]
    ClipImageEncoder(vit, num_layers=4, num_prompts=3, prompted_layers=2)(images)
    for hook in hooks:
        hook.remove()
    assert lengths == [20, 20, 17, 17]


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resized_positions_keep_constants_and_at_their_own_size_all(mode):
    positions = torch.randn(6, 5)
    torch.testing.assert_close(resize_positions(positions, (2, 3), (2, 3), mode), positions, rtol=1e-5, atol=1e-6)
    constant = torch.ones(6, 1) * torch.randn(5)
    torch.testing.assert_close(resize_positions(constant, (2, 3), (4, 5), mode), constant[:1].expand(20, 5))


@pytest.mark.parametrize("options", [{"num_prompts": 5}, {"num_prompts": 5, "prompted_layers": 2, "train_positions": True}])
def test_checkpointed_activations_change_what_is_kept_and_not_what_is_learnt(options):
    vit = small_vit()
    images = torch.randn(2, 3, 32, 32)
    kept, results = [], []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        trunk = ClipImageEncoder(vit, num_layers=3, tap=2, checkpoint_activations=checkpointed, **options).train()
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            z_clip, tokens = trunk(images)
        learnt = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(z_clip.square().sum() + tokens.square().sum(), learnt)
        kept.append(sum(sizes))
        results.append([z_clip, tokens, *gradients])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(plain, again)
    assert kept[1] < kept[0] / 3
