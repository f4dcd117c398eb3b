"""What an image file means: modes, orientation, colours, limits; and one exception that names whatever cannot be used."""

import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from zeroshot_d2.images import (
    MAX_PIXELS,
    UnreadableImage,
    image_size,
    read_image,
    read_label_image,
    resized_to_fit,
    to_rgb,
    write_image,
)

STORED = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
# What a viewer shows of STORED, by its EXIF orientation.
SHOWN = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


def save(
    path: Path, pixels: np.ndarray = STORED, orientation: int | None = None, mode: str | None = None, **options
) -> Path:
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(path, **options)
    return path


def grey(values) -> np.ndarray:
    """(H, W) -> (H, W, 3) uint8."""
    return np.asarray(values, dtype=np.uint8)[..., None].repeat(3, axis=2)


# ---- modes ----


def test_grey_is_divided_evenly_among_the_channels(tmp_path):
    found = read_image(save(tmp_path / "a.png"))
    assert found.dtype == np.uint8 and found.flags.writeable
    np.testing.assert_array_equal(found, grey(STORED))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_divided_by_257(tmp_path, ending):
    values = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], dtype=np.uint16)
    found = read_image(save(tmp_path / f"a.{ending}", values))
    np.testing.assert_array_equal(found, grey(np.rint(values / 257)))
    assert found[1, 3, 0] == 255 and found[0, 1, 0] == 0 and found[0, 2, 0] == 1


def test_floats_within_0_and_1(tmp_path):
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", values)), grey([[0, 128, 255]]))


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan, np.inf])
def test_other_floats_are_refused(tmp_path, bad):
    path = save(tmp_path / "a.tif", np.array([[0.0, bad]], dtype=np.float32))
    with pytest.raises(UnreadableImage, match=r"a\.tif: its floating-point values .* are not all in \[0, 1\]: scale them"):
        read_image(path)


def test_32_bit_integers_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(UnreadableImage, match=r"a\.tif: it has 32-bit integer values, whose range is not known"):
        read_image(path)


def test_bits_are_black_and_white(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", np.array([[True, False]]))), grey([[255, 0]]))


def test_a_palette_is_looked_up(tmp_path):
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[10, 20, 30], [40, 50, 60]]])


@pytest.mark.parametrize("transparency", [0, b"\0\xff"])
def test_transparent_entries_of_a_palette_are_white(tmp_path, transparency):
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=transparency)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255, 255, 255], [40, 50, 60]]])


def test_transparency_lies_on_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 128]]], dtype=np.uint8)
    half = np.rint((np.array([200, 100, 0]) * 128 + 255 * 127) / 255)
    expected = np.array([[200, 100, 0], [255, 255, 255], half])
    assert np.abs(read_image(save(tmp_path / "a.png", rgba))[0].astype(int) - expected).max() <= 1
    la = np.array([[[50, 255], [50, 0]]], dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", la)), grey([[50, 255]]))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_colour_of_a_file_without_alpha(tmp_path, mode):
    pixels = np.array([[7, 200]], dtype=np.uint8)
    path = save(tmp_path / "a.png", pixels, mode=mode, transparency=7 if mode == "L" else (7, 7, 7))
    np.testing.assert_array_equal(read_image(path), grey([[255, 200]]))


def test_cmyk_is_converted(tmp_path):
    cmyk = np.zeros((16, 32, 4), dtype=np.uint8)
    cmyk[:, 16:, 0] = 255  # cyan on the right, white paper on the left
    Image.frombytes("CMYK", (32, 16), cmyk.tobytes()).save(tmp_path / "a.jpg", quality=100)
    found = read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(found[8, 4] - [255, 255, 255]).max() < 8 and np.abs(found[8, 28] - [0, 255, 255]).max() < 8


def test_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == [255, 0, 0]).all()


def test_an_image_in_memory_is_converted_alike():
    np.testing.assert_array_equal(to_rgb(Image.fromarray(np.array([[257 * 7]], dtype=np.uint16))), grey([[7]]))
    with pytest.raises(ValueError, match="32-bit"):
        to_rgb(Image.new("I", (2, 2)))


# ---- colours ----


def profile_with_red_and_blue_exchanged() -> bytes:
    """sRGB's profile with the primaries of two channels exchanged, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert profile.count("sRGB".encode("utf-16-be")) >= 1
    profile = profile.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    head, tags = profile[:132], bytearray(profile[132:])
    for start in range(0, 12 * struct.unpack(">I", profile[128:132])[0], 12):
        exchanged = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(bytes(tags[start : start + 4]))
        if exchanged is not None:
            tags[start : start + 4] = exchanged
    return head + bytes(tags)


def test_colours_are_those_that_the_profile_says(tmp_path):
    pixels = np.array([[[255, 0, 0], [128, 128, 128]]], dtype=np.uint8)
    found = read_image(save(tmp_path / "a.png", pixels, icc_profile=profile_with_red_and_blue_exchanged())).astype(int)
    assert np.abs(found - [[[0, 0, 255], [128, 128, 128]]]).max() <= 3


def test_srgb_itself_changes_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", pixels, icc_profile=profile)), pixels)


@pytest.mark.parametrize("profile", [b"damaged", b""])
def test_a_damaged_profile_is_ignored_as_by_viewers(tmp_path, profile):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", icc_profile=profile)), grey(STORED))


def test_a_profile_of_another_mode_is_ignored(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", STORED, icc_profile=profile)), grey(STORED))


# ---- orientation ----


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_images_are_upright(tmp_path, orientation, ending):
    path = save(tmp_path / f"a.{ending}", orientation=orientation)
    np.testing.assert_array_equal(read_image(path), grey(SHOWN[orientation]))
    assert image_size(path) == np.shape(SHOWN[orientation])


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("photo", [None, 3, 6])
@pytest.mark.parametrize("orientation", [k for k in SHOWN if k != 1])
def test_a_label_with_a_tag_of_its_own_follows_that(tmp_path, orientation, photo, ending):
    path = save(tmp_path / f"label.{ending}", orientation=orientation)
    of = None if photo is None else save(tmp_path / "photo.png", orientation=photo)
    np.testing.assert_array_equal(read_label_image(path, photo=of), SHOWN[orientation])


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_a_label_without_a_tag_is_turned_with_its_photo(tmp_path, orientation, ending):
    photo = save(tmp_path / f"photo.{ending}", STORED, orientation, "RGB")
    np.testing.assert_array_equal(read_label_image(save(tmp_path / "label.png"), photo=photo), SHOWN[orientation])
    np.testing.assert_array_equal(read_label_image(save(tmp_path / "label.png")), STORED)  # alone it stays


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_label_of_the_upright_size_is_upright_already(tmp_path, orientation, ending):
    photo = save(tmp_path / f"photo.{ending}", orientation=orientation)
    upright = np.array(SHOWN[orientation], dtype=np.uint8)
    np.testing.assert_array_equal(read_label_image(save(tmp_path / "label.png", upright), photo=photo), upright)


def test_a_square_label_lies_as_its_photo_is_stored(tmp_path):
    square = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    photo = save(tmp_path / "photo.png", square, orientation=6)
    np.testing.assert_array_equal(read_label_image(save(tmp_path / "label.png", square), photo=photo), [[3, 1], [4, 2]])


def test_damaged_exif_is_ignored_as_by_viewers(tmp_path):
    path = save(tmp_path / "a.jpg", np.full((2, 3), 9, np.uint8), exif=b"Exif\0\0nothing of the kind")
    assert read_image(path).shape == (2, 3, 3) and image_size(path) == (2, 3)
    assert read_label_image(save(tmp_path / "label.png"), photo=path).tolist() == STORED.tolist()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_the_size_needs_the_header_alone(tmp_path, ending, monkeypatch):
    path = save(tmp_path / f"a.{ending}", mode="RGB", **({} if ending in ("bmp", "gif") else {"orientation": 6}))
    label = save(tmp_path / "label.bmp")
    expected = read_label_image(label, photo=path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("the image was decoded"))
    assert image_size(path) == ((2, 3) if ending in ("bmp", "gif") else (3, 2)) == expected.shape


# ---- labels ----


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_values_of_labels_are_kept(tmp_path, dtype):
    values = np.array([[0, 7], [255, min(70000, np.iinfo(dtype).max)]], dtype=dtype)
    for ending in ("png", "tif") if dtype != np.int32 else ("tif",):
        np.testing.assert_array_equal(read_label_image(save(tmp_path / f"a.{ending}", values)), values)


def test_labels_by_palette_and_by_bits(tmp_path):
    image = Image.frombytes("P", (2, 1), b"\0\5")
    image.putpalette([10, 20, 30] * 10)
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_image(tmp_path / "palette.png"), [[0, 5]])
    bits = read_label_image(save(tmp_path / "bits.png", np.array([[True, False]])))
    assert bits.tolist() == [[1, 0]] and np.issubdtype(bits.dtype, np.integer)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 2, 3), np.uint8), "has 3 channels: a label image holds one value per pixel"),
        (np.zeros((2, 2, 2), np.uint8), "has 2 channels"),
        (np.zeros((2, 2), np.float32), "holds float32 values: labels must be integers"),
    ],
)
def test_images_that_are_no_labels(tmp_path, pixels, message):
    with pytest.raises(UnreadableImage, match=rf"label image .*a\.tif {message}"):
        read_label_image(save(tmp_path / "a.tif", pixels))


def test_a_photo_that_is_needed_is_named(tmp_path):
    label = save(tmp_path / "label.png")
    with pytest.raises(FileNotFoundError, match=r"image .*absent\.jpg does not exist"):
        read_label_image(label, photo=tmp_path / "absent.jpg")
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(UnreadableImage, match=r"cannot read the image .*broken\.jpg"):
        read_label_image(label, photo=tmp_path / "broken.jpg")


# ---- what cannot be used ----


@pytest.mark.parametrize("read", [read_image, read_label_image, image_size])
def test_missing_is_not_unreadable(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"image .*absent\.png does not exist"):
        read(tmp_path / "absent.png")
    with pytest.raises(UnreadableImage, match="is not a file"):
        read(tmp_path)
    for content in (b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a"):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(UnreadableImage, match=r"cannot read the (label )?image .*broken\.png: ") as error:
            read(str(tmp_path / "broken.png"))
        assert isinstance(error.value, ValueError) and error.value.__cause__ is not None
        assert str(error.value).count("broken.png") == 1


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif", "bmp", "ppm", "jp2", "tga"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated_files_are_named(tmp_path, ending, share):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = save(tmp_path / f"a.{ending}", pixels)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableImage, match=rf"cannot read the image .*a\.{ending}: "):
        read_image(path)


def png_of_size(width: int, height: int) -> bytes:
    """The header of a PNG without any pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 9_000), (60_000, 60_000)])  # Pillow warns of the first and refuses the second
@pytest.mark.parametrize("read", [read_image, read_label_image, image_size])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, size, read):
    (tmp_path / "bomb.png").write_bytes(png_of_size(*size))
    with pytest.raises(
        UnreadableImage, match=rf"bomb\.png has {size[0]} x {size[1]} pixels, more than 178,956,970: .*limit"
    ):
        read(tmp_path / "bomb.png")


def test_the_limit_can_be_set(tmp_path):
    path = save(tmp_path / "a.png")
    assert read_image(path, max_pixels=6).shape == (2, 3, 3)
    for read in (read_image, read_label_image, image_size):
        with pytest.raises(UnreadableImage, match=r"a\.png has 3 x 2 pixels, more than 5"):
            read(path, max_pixels=5)
    (tmp_path / "large.png").write_bytes(png_of_size(20_000, 20_000))
    assert image_size(tmp_path / "large.png", max_pixels=4 * 10**8) == (20_000, 20_000)  # above Pillow's own


def test_pillows_limit_stays_as_it_was_whatever_threads_do(tmp_path):
    limit, path = Image.MAX_IMAGE_PIXELS, save(tmp_path / "a.png")
    assert limit == MAX_PIXELS // 2
    threads = [threading.Thread(target=lambda: [read_image(path) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(UnreadableImage):
        read_image(save(tmp_path / "b.tif", np.zeros((2, 2), np.int32)))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_formats_can_be_limited(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")  # a program
    with pytest.raises(UnreadableImage, match=r"a\.png: it is no image of a known format"):
        read_image(tmp_path / "a.png", formats=["PNG", "JPEG"])
    path = save(tmp_path / "b.png")
    assert read_image(path, formats=["PNG"]).shape == image_size(path, formats=("PNG",)) + (3,)
    with pytest.raises(UnreadableImage, match=r"b\.png"):
        read_image(path, formats=["JPEG"])


# ---- sizes and writing ----


def test_large_images_are_made_to_fit_and_small_ones_stay():
    image = np.zeros((30, 60, 3), dtype=np.uint8)
    assert resized_to_fit(image, 60) is image
    assert resized_to_fit(image, 20).shape == (10, 20, 3)
    assert resized_to_fit(np.zeros((1000, 2, 3), dtype=np.uint8), 100).shape == (100, 1, 3)  # no side vanishes
    assert resized_to_fit(np.zeros((667, 1000, 3), dtype=np.uint8), 500).shape == (334, 500, 3)


@pytest.mark.parametrize("sync", [True, False])
def test_images_are_written_whole(tmp_path, sync):
    write_image(tmp_path / "new" / "a.png", STORED, sync=sync, compress_level=1)
    np.testing.assert_array_equal(read_label_image(tmp_path / "new/a.png"), STORED)
    write_image(tmp_path / "new" / "b.png", STORED.astype(np.uint16) * 1000)
    np.testing.assert_array_equal(read_label_image(tmp_path / "new/b.png"), STORED.astype(int) * 1000)
    before = (tmp_path / "new/a.png").read_bytes()
    with pytest.raises((TypeError, ValueError, OSError)):
        write_image(tmp_path / "new" / "a.png", np.zeros((2, 2, 5), dtype=np.uint8))
    assert (tmp_path / "new/a.png").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]


def test_a_format_whose_reader_runs_a_program_is_none(tmp_path):
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")
    with pytest.raises(UnreadableImage, match=r"a\.eps: it is no image of a known format: save it as PNG or JPEG"):
        read_image(tmp_path / "a.eps")


def test_a_jpeg_is_no_label_image(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(UnreadableImage, match=r"a\.png is a JPEG, which keeps values only about as they were"):
        read_label_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty: the run or the download was cut off"),
        (b"<!DOCTYPE html><html></html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is only a pointer of Git LFS"),
    ],
)
def test_what_a_download_has_left(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"a\.jpg: {reason}"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["", "a\0.jpg", "a" * 5000])
def test_names_that_no_file_has(name):
    with pytest.raises(FileNotFoundError, match="correct the path") as error:
        read_image(name)
    assert len(str(error.value)) < 500 and "\0" not in str(error.value)


# ---- JPEGs at a reduced scale ----


def smooth(height: int, width: int) -> np.ndarray:
    """(H, W, 3): colours that differ from corner to corner, without detail."""
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    planes = [200 * rows + 0 * columns + 20, 0 * rows + 200 * columns + 20, 120 * rows * columns + 60]
    return np.stack(planes, axis=-1).astype(np.uint8)


def reduced(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``image`` resized to (H, W)."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX), dtype=np.float64)


@pytest.mark.parametrize(
    ("at_least", "expected"),
    [
        ((203, 301), (203, 301)),
        ((102, 151), (203, 301)),  # half of 203 is 101.5
        ((101, 150), (102, 151)),
        ((101, 151), (203, 301)),  # one side is enough
        ((50, 10), (51, 76)),
        ((25, 30), (26, 38)),
        ((1, 1), (26, 38)),
        ((0, 0), (26, 38)),
        ((400, 50), (203, 301)),  # larger than the file
    ],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
def test_a_reduced_jpeg_is_never_smaller_than_asked_for(tmp_path, at_least, expected, options):
    file = save(tmp_path / "a.jpg", smooth(203, 301), quality=95, **options)
    whole, found = read_image(file), read_image(file, at_least=at_least)
    assert found.shape == (*expected, 3) and found.dtype == np.uint8
    assert np.abs(found - reduced(whole, expected)).max() <= 6
    np.testing.assert_array_equal(read_image(file), whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright(tmp_path, orientation):
    file = save(tmp_path / "a.jpg", smooth(64, 160), orientation, quality=95)
    whole = read_image(file)
    height, width = whole.shape[:2]
    found = read_image(file, at_least=(height // 2, width // 2))
    assert found.shape == (height // 2, width // 2, 3)
    assert np.abs(found - reduced(whole, found.shape[:2])).max() <= 6
    # The sides that are asked for are those of the upright image.
    shape = read_image(file, at_least=(height // 4, width // 2)).shape
    assert shape == (height // 2, width // 2, 3)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {}), ("CMYK", {}), ("RGB", {}), ("RGB", {"icc_profile": profile_with_red_and_blue_exchanged()})],
    ids=["L", "CMYK", "RGB", "RGB with a profile"],
)
def test_colours_of_a_reduced_jpeg(tmp_path, mode, options):
    file = save(tmp_path / "a.jpg", smooth(64, 96), mode=mode, quality=95, **options)
    whole, found = read_image(file), read_image(file, at_least=(32, 48))
    assert found.shape == (32, 48, 3)
    assert np.abs(found - reduced(whole, (32, 48))).max() <= 8


def test_other_files_have_their_own_size(tmp_path):
    for name in ("a.png", "a.webp", "a.tif", "a.bmp"):
        file = save(tmp_path / name, smooth(64, 96))
        np.testing.assert_array_equal(read_image(file, at_least=(8, 12)), read_image(file))


def test_a_reduced_jpeg_counts_with_all_its_pixels(tmp_path):
    file = save(tmp_path / "a.jpg", smooth(64, 96))
    with pytest.raises(UnreadableImage, match="has 96 x 64 pixels, more than 6,143"):
        read_image(file, max_pixels=6143, at_least=(8, 12))
