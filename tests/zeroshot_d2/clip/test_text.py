"""Text prototypes against open_clip's own encode_text."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from zeroshot_d2.cli import load_config
from zeroshot_d2.clip import text
from zeroshot_d2.clip.loader import DEMO_CLIP, get_tokenizer
from zeroshot_d2.clip.text import TEMPLATES, ClipTextEmbeddings, embed_prompts, encode_tokens, get_templates

NAMES = ("dark sand", "a very long name of a class that nobody would give to a tile", "red tile")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_D2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plain(clip, prompts, templates):
    """One text at a time, padded to the full context, averaged class by class."""
    tokenizer = get_tokenizer(DEMO_CLIP.name)
    rows = []
    for prompt in prompts:
        texts = [template.format(synonym.strip()) for synonym in prompt.split("|") for template in templates]
        with torch.no_grad():
            features = torch.cat([clip.encode_text(tokenizer([text]), normalize=True) for text in texts])
        rows.append(F.normalize(features.mean(0), dim=0))
    return torch.stack(rows)


def test_tokens_without_padding_give_encode_text(random_clip):
    tokens = get_tokenizer(DEMO_CLIP.name)(list(NAMES))
    length = int((tokens > 0).sum(1).max())
    with torch.no_grad():
        expected = random_clip.encode_text(tokens)
        for cut in (length, length + 3, tokens.shape[1]):
            torch.testing.assert_close(encode_tokens(random_clip, tokens[:, :cut]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 512])
def test_prototypes_equal_padded_single_texts(random_clip, batch_size):
    prompts, templates = [*NAMES, "blue tile | azure tile|"], TEMPLATES["vild"][:5]
    embeddings = embed_prompts(random_clip, get_tokenizer(DEMO_CLIP.name), prompts, templates, batch_size=batch_size)
    expected = plain(random_clip, [prompt.strip(" |") for prompt in prompts], templates)
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    assert embeddings.dtype == torch.float32 and not embeddings.requires_grad


def test_synonyms_lie_between(random_clip):
    tokenizer = get_tokenizer(DEMO_CLIP.name)
    one, other, both = embed_prompts(random_clip, tokenizer, ["red tile", "dark water", "red tile|dark water"], ["{}"])
    torch.testing.assert_close(both, F.normalize(one + other, dim=0), rtol=1e-4, atol=1e-5)


def test_synonyms_with_weights(random_clip):
    tokenizer = get_tokenizer(DEMO_CLIP.name)
    prompts = ["red tile", "dark water", "red tile *3|dark water *0.5"]
    one, _, both = embed_prompts(random_clip, tokenizer, prompts, ["{}", "a {}"])
    (alone,) = embed_prompts(random_clip, tokenizer, ["red tile *7"], ["{}", "a {}"])
    torch.testing.assert_close(alone, one, rtol=1e-4, atol=1e-5)
    # Each is a sum of two unit vectors, whose length tells how far the templates lie apart.
    texts = [embed_prompts(random_clip, tokenizer, [p], [t])[0] for p in prompts[:2] for t in ("{}", "a {}")]
    expected = 3 * (texts[0] + texts[1]) + 0.5 * (texts[2] + texts[3])
    torch.testing.assert_close(both, F.normalize(expected, dim=0), rtol=1e-4, atol=1e-5)


def test_texts_longer_than_the_context_are_cut(random_clip):
    embeddings = embed_prompts(random_clip, get_tokenizer(DEMO_CLIP.name), ["zebra crossing " * 30], ["{}"])
    assert embeddings.isfinite().all()


@pytest.mark.parametrize(("prompts", "message"), [([], "empty"), (["cat", " | "], "class 1 has a blank name")])
def test_broken_prompts(random_clip, prompts, message):
    with pytest.raises(ValueError, match=message):
        embed_prompts(random_clip, get_tokenizer(DEMO_CLIP.name), prompts, ["{}"])


def test_only_a_causal_tower_may_be_cut():
    tower = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear is not a CLIP with a causal text tower"):
        encode_tokens(tower, torch.ones(1, 3, dtype=torch.long))


def test_template_sets():
    assert {name: len(templates) for name, templates in TEMPLATES.items()} == {"single": 1, "vild": 14, "imagenet": 80}
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)
    assert len(set(get_templates("vild"))) == 14
    with pytest.raises(ValueError, match="unknown template set 'none'; there are 'single', 'vild', 'imagenet'"):
        get_templates("none")


def test_templates_of_your_own(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# aerial\nan aerial photo of a {}.\n\n{} from above\n")
    assert get_templates(str(file)) == ("an aerial photo of a {}.", "{} from above")
    for line in ("a photo", "a {} of a {}", "a {name}", "a {}} of"):
        file.write_text(line)
        with pytest.raises(ValueError, match=r"mine.txt has .*: each line needs \{\} once"):
            get_templates(str(file))
    with pytest.raises(FileNotFoundError, match="other.txt does not exist"):
        get_templates(str(tmp_path / "other.txt"))


def test_a_config_names_its_templates(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("{} from above\n")
    cfg = load_config("demo/alignzeg.yaml", ["MODEL.ALIGNZEG.CLIP.TEMPLATES", str(file)])
    assert build_model(cfg).result_facts["templates"] == ["{} from above"]
    with pytest.raises(ValueError, match="TEMPLATES .*one of 'single', 'vild', 'imagenet', or a .txt file"):
        load_config("demo/alignzeg.yaml", ["MODEL.ALIGNZEG.CLIP.TEMPLATES", "mine"])


@pytest.fixture
def embeddings():
    return ClipTextEmbeddings(name=DEMO_CLIP.name, pretrained="", templates=["{}"], weights_hash="0" * 64, kept=2)


def test_clip_is_loaded_only_for_a_new_vocabulary(embeddings, random_clip, monkeypatch):
    loads = []
    monkeypatch.setattr(text, "create_clip", lambda *args: loads.append(args) or random_clip)
    first = embeddings(("red tile", "dark sand"))
    assert loads == [(DEMO_CLIP.name, "")]
    assert torch.equal(embeddings(["red tile", "dark sand"]), first) and len(loads) == 1  # from memory
    embeddings(("dark water",), clip=random_clip)
    embeddings(("light water",), clip=random_clip)  # at hand: not loaded, and the first vocabulary leaves the memory
    assert len(loads) == 1
    assert torch.equal(embeddings(("red tile", "dark sand")), first) and len(loads) == 1  # from disk


def test_order_of_names_is_the_order_of_rows(embeddings, random_clip):
    forward = embeddings(("red tile", "dark sand"), clip=random_clip)
    backward = embeddings(("dark sand", "red tile"), clip=random_clip)
    torch.testing.assert_close(backward.flip(0), forward, rtol=1e-4, atol=1e-5)


def test_another_clip_has_entries_of_its_own(random_clip, own_cache):
    for weights_hash in ("0" * 64, "1" * 64):
        embeddings = ClipTextEmbeddings(
            name=DEMO_CLIP.name, pretrained="", templates=["{}"], weights_hash=weights_hash, kept=2
        )
        embeddings(["red tile"], clip=random_clip)
    assert len(list(own_cache.glob("*.npz"))) == 2


def test_classes_that_are_equal_as_far_as_clip_reads_are_refused(random_clip):
    long = "a very long name " * 20
    with pytest.raises(ValueError, match=r"one' and '.*two' are the same to CLIP, which reads 24 tokens"):
        embed_prompts(random_clip, get_tokenizer(DEMO_CLIP.name), [f"{long} one", f"{long} two"], ("a {}",))
    # As two classes of Open Images are: whoever lists them knows that they are spelt alike.
    embed_prompts(random_clip, get_tokenizer(DEMO_CLIP.name), ["red tile", "Red tile"], ("a {}",))


def test_a_class_that_is_cut_is_said(embeddings, caplog):
    embeddings(["red tile", "a very long name " * 20])
    assert "1 classes are longer than CLIP reads, and are cut: 'a very long name" in caplog.text
    caplog.clear()
    embeddings(["red tile", "dark sand"])
    assert "are cut" not in caplog.text


@pytest.mark.parametrize("name", ["EVA02-B-16", "ViT-B-16-SigLIP"])
def test_a_text_tower_beside_the_model_gives_the_same_as_its_own_encoding(name, monkeypatch):
    """EVA02's and SigLIP's text towers, small: the one is causal, the other is not."""
    config = open_clip.get_model_config(name)
    small = {**config["text_cfg"], "width": 64, "heads": 1, "layers": 2, "vocab_size": 49408}
    vision = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    torch.manual_seed(0)
    clip = open_clip.CustomTextCLIP(64, vision, small).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=small.get("context_length", 77))
    monkeypatch.setattr(text, "get_tokenizer", lambda name: tokenizer)
    with torch.no_grad():
        expected = [clip.encode_text(tokenizer([f"a {name}"]), normalize=True) for name in NAMES]
    embeddings = ClipTextEmbeddings(name=name, pretrained="", templates=["a {}"], weights_hash="2" * 64)
    torch.testing.assert_close(embeddings(NAMES, clip=clip), torch.cat(expected), rtol=1e-4, atol=1e-5)
