"""Where the public releases are: addresses, sizes, checksums, and where each file belongs below ``$DETECTRON2_DATASETS``.

Most owners publish no checksum. Then it is the one that torchvision, TensorFlow Datasets or GluonCV publish for the same
file; ``checksum_from`` says which. Where nobody publishes one it is empty, and the size that the server announces is all
that a download is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

TORCHVISION = "torchvision"
TFDS = "TensorFlow Datasets"
GLUONCV = "GluonCV"
MILLION = 10**6


@dataclass(frozen=True)
class RemoteFile:
    """A file of a release.

    Args:
        url: its official address.
        place: the folder below ``$DETECTRON2_DATASETS`` that it is unpacked into, or, if it is no archive, lies in.
        size: bytes, where they are published; else None.
        checksum: "md5:...", "sha1:..." or "sha256:...", where it is published; else "".
        checksum_from: who publishes size and checksum.
        about: bytes, roughly, where the owners say no more than that; 0: they do not.
        members: what is unpacked, as patterns of names in the archive.
        strip: folders that are taken off the beginning of the names in the archive.
        otherwise: what to do when the address does not answer.
    """

    url: str
    place: str
    size: int | None = None
    checksum: str = ""
    checksum_from: str = ""
    about: int = 0
    members: tuple[str, ...] = ("*",)
    strip: int = 0
    otherwise: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def is_archive(self) -> bool:
        return self.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


@dataclass(frozen=True)
class Part:
    """What is fetched, prepared and checked together.

    Args:
        files: what is fetched.
        preparation: the words after ``datasets prepare``, if the part has to be prepared.
        checks: the registered data sets that are then checked.
        needs: {path below ``$DETECTRON2_DATASETS``: what to do}, for what no command can fetch; the rest waits for it.
    """

    files: tuple[RemoteFile, ...]
    preparation: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Release:
    """A release.

    Args:
        page: the owners' page.
        parts: by name, in the order in which they are fetched.
    """

    page: str
    parts: Mapping[str, Part]


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_VOC_AWAY = "the server is known to be away for hours: repeat the command later"
_VOC2012 = RemoteFile(
    f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
    place=".",
    size=1_999_639_040,
    checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
    checksum_from=f"{TORCHVISION} and {TFDS}",
    otherwise=_VOC_AWAY,
)
_SBD = RemoteFile(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    place="VOCdevkit/VOC2012",
    checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",
    checksum_from=TORCHVISION,
    members=("benchmark_RELEASE/dataset/cls/*", "benchmark_RELEASE/dataset/*.txt"),  # the photos are VOC's
    otherwise="its authors' page, http://home.bharathh.info/pubs/codes/SBD/download.html, names where it is now",
)
_VOC2010 = RemoteFile(
    f"{_VOC}/voc2010/VOCtrainval_03-May-2010.tar",
    place=".",
    checksum="md5:da459979d0c395079b5c75ee67908abb",
    checksum_from=TORCHVISION,
    about=1_300 * MILLION,
    otherwise=_VOC_AWAY,
)
_PASCAL_IN_DETAIL = RemoteFile(
    "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
    place="VOCdevkit/VOC2010",
    checksum="sha1:169325d9f7e9047537fedca7b04de4dddf10b881",
    checksum_from=GLUONCV,
    otherwise="this address is known to fail; the data set's page, https://sites.google.com/view/pasd/dataset, says where "
    "the file is now",
)
_CONTEXT_MAT = RemoteFile(
    "https://roozbehm.info/pascal-context/trainval.tar.gz",
    place="VOCdevkit/VOC2010",
    about=31 * MILLION,
    otherwise="https://www.cs.stanford.edu/~roozbeh/pascal-context/ is the data set's page",
)
_STUFF = RemoteFile(
    "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
    place="coco/stuffthingmaps",
    about=659 * MILLION,
    otherwise="some networks block this server: try another, or see https://github.com/nightrome/cocostuff",
)


def _coco(part: str, size: int, sha256: str) -> RemoteFile:
    return RemoteFile(f"http://images.cocodataset.org/zips/{part}2017.zip", "coco", size, f"sha256:{sha256}", TFDS)


_NUS = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide"
_NUS_PAGE = f"{_NUS}/NUS-WIDE.html"
_NUS_FILES = tuple(
    RemoteFile(
        f"{_NUS}/{name}.zip",
        place=f"nus_wide/{name}",
        otherwise=f"{_NUS_PAGE} names where it is now; the owners also write at https://github.com/NExTplusplus/NUS-WIDE",
    )
    for name in ("ImageList", "ConceptsList", "Groundtruth", "NUS_WID_Tags")
)
_NUS_IMAGES = (
    f"the images are given out on request only: fill in the agreement on {_NUS_PAGE}, and unpack what the owners send so "
    "that nus_wide/Flickr/actor/0001_2124494179.jpg is there"
)


def _open_images_csv(part: str, size: int, sha256: str) -> RemoteFile:
    name = f"{part}-annotations-human-imagelabels.csv"
    address = f"https://storage.googleapis.com/openimages/2018_04/{part}/{name}"
    return RemoteFile(address, "open_images_v4", size, f"sha256:{sha256}", TFDS)


def _open_images_tar(name: str, place: str, size: int, sha256: str) -> RemoteFile:
    address = f"https://open-images-dataset.s3.amazonaws.com/tar/{name}.tar.gz"
    return RemoteFile(address, f"open_images_v4/{place}", size, f"sha256:{sha256}", TFDS, strip=1)


_OPEN_IMAGES_TRAIN = (
    ("0", 49310925536, "0cf97b0666d4c11e0ba8c2380816f2bf09c9f7750abebd658bd9204d0aa10397"),
    ("1", 36916994080, "4c7d751e9f7d2f6774b70a903b7abc084adde2019cb030144ab2cb0c251a06bc"),
    ("2", 35415986940, "a83f0b60f4390680c01c00e199b546ec0333e76513f35b3cadb5024f29ee266e"),
    ("3", 34107458830, "f139398421624535bf79199dc82e32f48f062e2db43410487b2e7d768a1aea88"),
    ("4", 33169188573, "ff2053e039c0cbd890a85f68ce71f3c97b48895c96b1f20c090bc8ca5221939e"),
    ("5", 33458664112, "09e32c82c51c89b56782678cfbb61c0debc9d81a62cd03bdbb50cbe3a0a65fcd"),
    ("6", 33831108937, "6f16913f9eed07e8bb5115fc9bb56cf64831e7c73194ff9005be93a57366d181"),
    ("7", 33529833990, "669d15ba911ba40f3af28eb3dbfe2f293813bcdc9a7a08666eb4e8832b3bfaf9"),
    ("8", 33276342821, "784b8305c226b89c506fc4f95e7bd41ff7c40f6e46c9a2af22d2d95a78429923"),
    ("9", 32822929881, "65fcac6b7ca8d8ce464ed1a7e75cee70a801be27cf80ded719e3b7e801fc1bbb"),
    ("a", 32991790568, "74e5787afbf7a4d57346420eed055f1d4763b74b411d8040dc54bfe1165cf7ee"),
    ("b", 33652756676, "a3538e9233ad013f1907354b7e67b991b765569b18139e7526f5fcb23b1b5a4f"),
    ("c", 33386910071, "13e439d0f09251e3c1e559aa36b7058220273083e1186de08ce882919d12b5b2"),
    ("d", 33324632268, "8cc4cbb08d3d2ada32d1ff17adfc2d79b5c3145198c97ddaf058e0749f57f41b"),
    ("e", 30300455002, "4916d467d0d8c741de70a1de25985543a19b3fa72547771c7b69474176ffec56"),
    ("f", 29979648524, "172ef8c26dad6330151d820e342396fdd7d84956713956d5ad1bae74adb7f33a"),
)

RELEASES: Mapping[str, Release] = {
    "voc2012": Release(
        f"{_VOC}/voc2012/",
        {
            "val": Part((_VOC2012,), checks=("voc2012_val",)),
            "train": Part((_VOC2012, _SBD), preparation=("voc2012",), checks=("voc2012_train_seen",)),
        },
    ),
    "coco_stuff_164k": Release(
        "https://github.com/nightrome/cocostuff",
        {
            "val": Part(
                (_STUFF, _coco("val", 815585330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05")),
                checks=("coco_stuff_164k_val",),
            ),
            "train": Part(
                (_STUFF, _coco("train", 19336861798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929")),
                checks=("coco_stuff_164k_train_seen",),
            ),
        },
    ),
    "pascal_context": Release(
        "https://www.cs.stanford.edu/~roozbeh/pascal-context/",
        {
            "59": Part(
                (_VOC2010, _PASCAL_IN_DETAIL),
                preparation=("pascal_context",),
                checks=("pascal_context_59_train_seen", "pascal_context_59_val"),
            ),
            "459": Part(
                (_VOC2010, _PASCAL_IN_DETAIL, _CONTEXT_MAT),
                preparation=("pascal_context_459",),
                checks=("pascal_context_459_val",),
            ),
        },
    ),
    "ade20k_150": Release(
        "http://sceneparsing.csail.mit.edu/",
        {
            "all": Part(
                (
                    RemoteFile(
                        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                        place=".",
                        size=967_382_037,
                        checksum="sha256:7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
                        checksum_from=TFDS,
                    ),
                ),
                checks=("ade20k_150_val",),
            )
        },
    ),
    "ade20k_847": Release(
        "https://groups.csail.mit.edu/vision/datasets/ADE20K/",
        {
            "all": Part(
                (),
                preparation=("ade20k_847",),
                checks=("ade20k_847_val",),
                needs={
                    "ADE20K_2021_17_01/images/ADE/validation": "the full release needs an account: register on "
                    "https://groups.csail.mit.edu/vision/datasets/ADE20K/, and unpack ADE20K_2021_17_01.zip, for which the "
                    "owners send you an address"
                },
            )
        },
    ),
    "nus_wide": Release(
        _NUS_PAGE,
        {
            "all": Part(
                _NUS_FILES,
                preparation=("nus_wide",),
                checks=("nus_wide_train", "nus_wide_test"),
                needs={"nus_wide/Flickr": _NUS_IMAGES},
            )
        },
    ),
    "open_images_v4": Release(
        "https://github.com/cvdfoundation/open-images-dataset",
        {
            "validation": Part(
                (
                    _open_images_csv(
                        "validation", 23008122, "5373774bcf38e0b6348f14ef97c1f03c8f086761592f97454778f9817e7be765"
                    ),
                    _open_images_tar(
                        *("validation", "validation", 12844530798),
                        "515fefdf310e17e204cfe84bb3d05e53d8a6b5465ef3b9a3164383082b506df3",
                    ),
                ),
                preparation=("open_images_v4", "--parts", "validation"),
                checks=("open_images_v4_val",),
            ),
            "test": Part(
                (
                    _open_images_csv("test", 69570530, "c8ff669500fc6f290d385f21abccbfbb8a69c49d1de8fe285e1c1d84ba2797fa"),
                    _open_images_tar(
                        "test", "test", 38750827781, "346814b1820eae6543f862cf1d8f48c16ee81202eceb79ed4d484a1520e96695"
                    ),
                ),
                preparation=("open_images_v4", "--parts", "test"),
                checks=("open_images_v4_test",),
            ),
            "train_boxes": Part(
                (
                    _open_images_csv(
                        "train", 1229488697, "847edf723587ab27dc4a95d4acdad45be1880fd45912f7154be9356f3d09f91f"
                    ),
                    *(
                        _open_images_tar(f"train_{letter}", "train_boxes", size, sha256)
                        for letter, size, sha256 in _OPEN_IMAGES_TRAIN
                    ),
                ),
                preparation=("open_images_v4", "--parts", "train_boxes"),
                checks=("open_images_v4_train_boxes",),
            ),
        },
    ),
}
