"""The plain forms that the cost benchmark compares with compute the same thing."""

import torch

from alignzeg_d2.semantic_inference import PlacedProposals, semantic_scores
from benchmarks.alignzeg_cost import PlainSemanticDecoder, plain_scores


def test_plain_semantic_decoder_has_the_features_of_ours(demo_model):
    decoder = demo_model("MODEL.ALIGNZEG.SEMANTIC_DECODER.NUM_LAYERS", 3, "MODEL.ALIGNZEG.CLIP.TAP", 2).semantic_decoder
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 1 + 8 * 8, 128, generator=generator)
    bias = 3 * torch.randn(2, 1, 16, 16, 16, generator=generator)
    ours = decoder(tokens, bias, (8, 8))
    torch.testing.assert_close(PlainSemanticDecoder(decoder)(tokens, bias, (8, 8)), ours, rtol=1e-4, atol=1e-4)


def test_plain_scores_are_ours():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(7, 5, generator=generator)
    mask_logits = torch.randn(7, 6, 4, generator=generator)
    found = [PlacedProposals.of_image(probabilities, mask_logits)]
    where = {"output_size": (21, 17), "chunk_pixels": 40}
    for plain, ours in zip(plain_scores(found, **where), semantic_scores(found, **where), strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-5, atol=1e-5)
