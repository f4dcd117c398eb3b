"""TIFF files that are read in parts: the same pixels and labels as of the file read whole, georeference, memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from comparisons import assert_close
from PIL import Image

from zeroshot_d2.commands import predict
from zeroshot_d2.images import UnreadableImage, read_image
from zeroshot_d2.segmentation.streamed import opened
from zeroshot_d2.storage import read_json

rasterio = pytest.importorskip("rasterio", reason="rasterio is an extra")
from rasterio.transform import from_origin  # noqa: E402  (behind the skip)

HEIGHT, WIDTH = 120, 170
GEOREFERENCE = {"crs": "EPSG:32632", "transform": from_origin(500000, 5400000, 0.5, 0.5)}


def pixels(bands=3, dtype=np.uint8):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 9, bands), dtype=np.uint8)
    planes = [Image.fromarray(coarse[:, :, band]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for band in range(bands)]
    image = np.stack(planes, axis=-1).astype(dtype)
    return image * 257 if dtype == np.uint16 else image


def write(path, image, **profile):
    options = {"driver": "GTiff", "count": image.shape[2], "dtype": image.dtype, "height": image.shape[0]}
    options |= {"width": image.shape[1], "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "lzw"}
    with rasterio.open(path, "w", **options | profile) as target:
        target.write(image.transpose(2, 0, 1))
    return path


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize(
    ("image", "profile"),
    [
        (pixels(3), {"photometric": "RGB"}),
        (pixels(3), {"photometric": "YCBCR", "compress": "jpeg"}),
        (pixels(1), {}),
        (pixels(1), {"photometric": "MINISWHITE"}),
        (pixels(4), {"photometric": "RGB", "alpha": "yes"}),
        (pixels(3, np.uint16), {"photometric": "RGB"}),
        (pixels(1, np.uint16), {}),
    ],
    ids=["RGB", "JPEG", "grey", "zero is white", "RGBA", "16-bit RGB", "16-bit grey"],
)
def test_parts_are_those_of_the_image_read_whole(tmp_path, image, profile):
    file = write(tmp_path / "scene.tif", image, **profile)
    known_to_pillow = image.dtype == np.uint8 or image.shape[2] == 1
    expected = read_image(file) if known_to_pillow else pixels(3)
    with opened(file) as streamed:
        assert streamed.size == (HEIGHT, WIDTH)
        part = streamed.read(30, 50, 40, 60, (40, 60))
        whole = streamed.whole(10**6)
        small = streamed.whole(85)
    assert part.dtype == np.uint8 and whole.shape == (HEIGHT, WIDTH, 3)
    off = 30 if profile.get("compress") == "jpeg" else 1  # decoders differ in how they smooth the colours
    np.testing.assert_allclose(part.astype(int), expected[30:70, 50:110].astype(int), atol=off)
    np.testing.assert_allclose(whole.astype(int), expected.astype(int), atol=off)
    averaged = np.asarray(Image.fromarray(expected).resize((85, 60), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(small.astype(int) - averaged).mean() < 4


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_palettes_are_read_as_colours(tmp_path):
    image = Image.fromarray(pixels(3)).quantize(16)
    image.save(tmp_path / "scene.tif")
    with opened(tmp_path / "scene.tif") as streamed:
        np.testing.assert_array_equal(streamed.whole(10**6), np.asarray(image.convert("RGB")))


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_what_cannot_be_read_is_said(tmp_path):
    def refused(path, pattern):
        with pytest.raises(UnreadableImage, match=pattern), opened(path):
            pass

    refused(write(tmp_path / "a.tif", pixels(5)), r"a\.tif has 5 bands of uint8: choose its red, green and blue")
    refused(write(tmp_path / "b.tif", pixels(3).astype(np.float32)), r"has 3 bands of float32: choose")
    four = write(tmp_path / "c.tif", pixels(4), photometric="MINISBLACK", alpha="no")
    refused(four, r"4 bands, the last of which is not marked as alpha")
    (tmp_path / "d.tif").write_bytes(b"II*\0 nothing")
    refused(tmp_path / "d.tif", r"cannot read the TIFF .*d\.tif")
    (tmp_path / "e.tif").write_text('<VRTDataset rasterXSize="9" rasterYSize="9"></VRTDataset>', encoding="utf-8")
    refused(tmp_path / "e.tif", r"cannot read the TIFF .*e\.tif")
    turned = Image.fromarray(pixels(3))
    turned.save(tmp_path / "f.tif", tiffinfo={274: 6})
    refused(tmp_path / "f.tif", r"f\.tif is stored turned, by its orientation tag: save it upright")
    whole = write(tmp_path / "g.tif", np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).read_bytes()
    (tmp_path / "g.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage, match=r"cannot read the TIFF .*g\.tif"), opened(tmp_path / "g.tif") as streamed:
        streamed.whole(10**6)


# ---- predict --stream ----


def run(trained_cfg, tmp_path, *words):
    cfg = trained_cfg()
    words = ["--config-file", "demo/alignzeg.yaml", "--weights", cfg.MODEL.WEIGHTS, *words]
    return predict.main([*words[:4], "--output", str(tmp_path / "out"), *words[4:]])


SLIDE = ("TEST.SLIDE.ENABLED", "True", "TEST.SLIDE.WINDOW", "64", "TEST.SLIDE.STRIDE", "48", "INPUT.MIN_SIZE_TEST", "0")


@pytest.mark.parametrize("options", [(), SLIDE], ids=["whole", "windows"])
def test_labels_are_those_of_the_file_read_whole_and_keep_its_georeference(trained_cfg, tmp_path, options):
    file = write(tmp_path / "scene.tif", pixels(3), photometric="RGB", **GEOREFERENCE)
    assert run(trained_cfg, tmp_path, "--input", str(file), "--stream", *options) == 0
    with rasterio.open(tmp_path / "out" / "scene_labels.tif") as labels:
        assert labels.crs.to_epsg() == 32632 and labels.transform == GEOREFERENCE["transform"]
        streamed, colors = labels.read(1), labels.colormap(1)
    assert len({color[:3] for color in colors.values()}) > 10
    summary = read_json(tmp_path / "out" / "scene.json")
    assert (summary["height"], summary["width"]) == (HEIGHT, WIDTH)
    assert sum(entry["pixels"] for entry in summary["classes"]) == HEIGHT * WIDTH
    assert (tmp_path / "out" / "scene_overlay.png").is_file()

    again = tmp_path / "whole"
    again.mkdir()
    assert run(trained_cfg, again, "--input", str(file), *options) == 0
    whole = np.asarray(Image.open(again / "out" / "scene_labels.png"))
    # GDAL makes an image smaller in another way than Pillow; in windows at full size there is nothing to make smaller.
    assert (streamed != whole).mean() < (0.002 if options else 0.05)
    expected = read_json(again / "out" / "scene.json")["classes"]
    if options:
        assert [entry["name"] for entry in expected] == [entry["name"] for entry in summary["classes"]]
        assert_close([entry["score"] for entry in summary["classes"]], [entry["score"] for entry in expected], 0.01)


def test_what_was_finished_is_skipped_and_a_broken_file_stops_no_other(trained_cfg, tmp_path, capsys):
    for name in ("a.tif", "b.tif"):
        write(tmp_path / name, pixels(3), photometric="RGB", **GEOREFERENCE)
    (tmp_path / "c.tif").write_bytes(b"II*\0 nothing")
    words = ("--input", str(tmp_path / "*.tif"), "--stream", "--skip-finished", "--threshold", "0.5", "--other", "unsure")
    assert run(trained_cfg, tmp_path, *words) == 1
    assert "cannot read the TIFF" in capsys.readouterr().err
    before = (tmp_path / "out" / "a_labels.tif").stat().st_mtime_ns
    (tmp_path / "out" / "b_labels.tif").unlink()
    assert run(trained_cfg, tmp_path, *words) == 1
    assert "1 finished before" in capsys.readouterr().out
    assert (tmp_path / "out" / "a_labels.tif").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "b_labels.tif").is_file()
    vocabulary = read_json(tmp_path / "out" / "vocabulary.json")
    assert vocabulary[-1]["name"] == "unsure" and not vocabulary[-1]["unseen"]
    with rasterio.open(tmp_path / "out" / "a_labels.tif") as labels:
        assert labels.read(1).max() <= vocabulary[-1]["index"]


def test_options_that_do_not_go_together(trained_cfg, tmp_path):
    file = write(tmp_path / "scene.tif", pixels(3), photometric="RGB", **GEOREFERENCE)
    for words, pattern in (
        (("--stream", "--format", "coco"), r"--stream writes labels as TIFF, and no other format"),
        (("--stream", "TEST.AUG.ENABLED", "True"), r"reads each part of a file once: set TEST\.AUG\.ENABLED False"),
        (("--other", "x"), r"--other x names the class of pixels below a --threshold: give one"),
        (("--threshold", "1.5"), r"the threshold must lie in \[0, 1\], as confidences do, got 1\.5"),
        (("--threshold", "0.5", "--vocabulary", "cat, other"), r"has a class 'other' already"),
    ):
        with pytest.raises(ValueError, match=pattern):
            run(trained_cfg, tmp_path, "--input", str(file), *words)


def test_a_large_tiff_is_refused_with_the_way_out(tmp_path):
    file = write(tmp_path / "scene.tif", pixels(3), photometric="RGB", **GEOREFERENCE)
    with pytest.raises(UnreadableImage, match=r"`predict --stream` segments TIFF of any size"):
        read_image(file, max_pixels=100)


_LARGE = """
import sys
from pathlib import Path
import numpy as np
import rasterio
from rasterio.windows import Window
from benchmarks.memory import megabytes
from zeroshot_d2.commands import predict
path, weights, output = map(Path, sys.argv[1:4])
rng = np.random.default_rng(0)
side, height = 20000, int(sys.argv[4])
band = np.kron(rng.integers(0, 256, (3, 1, 100), dtype=np.uint8), np.ones((1, 1000, 200), np.uint8))
profile = dict(driver="GTiff", count=3, dtype="uint8", height=height, width=side, tiled=True, compress="deflate", zlevel=1)
with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(path, "w", photometric="RGB", **profile) as target:
    for top in range(0, height, 1000):
        target.write(np.roll(band, top // 10, axis=2), window=Window(0, top, side, 1000))
keys = "TEST.SLIDE.ENABLED True TEST.SLIDE.WINDOW 512 TEST.SLIDE.STRIDE 384 "
keys += "INPUT.MIN_SIZE_TEST 2048 INPUT.MAX_SIZE_TEST 2048"
words = f"--config-file demo/alignzeg.yaml --weights {weights} --input {path} --stream --output {output} {keys}"
assert predict.main(words.split()) == 0
with rasterio.open(output / "large_labels.tif") as labels:
    assert (labels.height, labels.width) == (height, side)
print(megabytes("VmHWM"))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_tiff_of_20000_pixels_takes_less_than_2_gigabytes(alignzeg_checkpoint, tmp_path):
    """A tenth of one, since memory depends on its width and not on its height; $TIFF_ROWS 20000 tries the whole."""
    script = [sys.executable, "-W", "ignore", "-c", _LARGE, str(tmp_path / "large.tif"), str(alignzeg_checkpoint)]
    done = subprocess.run(
        [*script, str(tmp_path / "out"), os.environ.get("TIFF_ROWS", "2000")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"[\d.]+", done.stdout)[-1]) < 2000
