"""One mask in every file that can hold it: values, colours, size, orientation, several files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from layouts import draw_scene, recode
from PIL import Image

from batchseg.classes import parse_classes
from batchseg.datasets import Sample, open_dataset
from batchseg.datasets.masks import InstanceFiles
from batchseg.datasets.sample import MaskOptions, load_mask, load_sample, read_raw_mask
from batchseg.errors import UserError
from batchseg.geometry import Geometry

SCENE = draw_scene("a", 0)
IDS = SCENE.ids
HEIGHT, WIDTH = IDS.shape
COLORS = np.zeros((256, 3), np.uint8)
COLORS[:3] = [(1, 2, 3), (200, 0, 0), (0, 0, 200)]
COLORS[255] = 255
CLASSES = parse_classes(
    [{"name": name, "color": "#{:02x}{:02x}{:02x}".format(*COLORS[i])} for i, name in enumerate("abc")]
)


def write(path: Path, image: Image.Image, **options: Any) -> Sample:
    image.save(path, **options)
    photo = path.with_name("photo.png")
    Image.fromarray(SCENE.image_rgb).save(photo)
    return Sample("photo.png", str(photo), str(path))


def as_palette(ids: npt.NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(COLORS.tobytes())
    return image


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("grey.png", Image.fromarray(IDS), {}),
        ("palette.png", as_palette(IDS), {}),
        ("palette.gif", as_palette(IDS), {"optimize": False}),
        ("grey.bmp", Image.fromarray(IDS), {}),
        ("grey.pgm", Image.fromarray(IDS), {}),
        ("grey.tif", Image.fromarray(IDS), {}),
        ("packed.tif", Image.fromarray(IDS), {"compression": "tiff_lzw"}),
        ("palette.tif", as_palette(IDS), {}),
        ("deep.png", Image.fromarray(IDS.astype(np.uint16)), {}),
        ("deep.tif", Image.fromarray(IDS.astype(np.uint16)), {}),
        ("wide.tif", Image.fromarray(IDS.astype(np.int32)), {}),
        ("alpha.png", Image.merge("LA", [Image.fromarray(IDS)] * 2), {}),
        ("rgb.png", Image.fromarray(COLORS[IDS]), {}),
        ("rgb.tif", Image.fromarray(COLORS[IDS]), {}),
        ("rgb.bmp", Image.fromarray(COLORS[IDS]), {}),
        ("rgb.webp", Image.fromarray(COLORS[IDS]), {"lossless": True}),
        ("rgba.png", Image.fromarray(COLORS[IDS]).convert("RGBA"), {}),
    ],
)
def test_every_file_holds_the_same(name: str, image: Image.Image, options: dict[str, Any], tmp_path: Path) -> None:
    sample = write(tmp_path / name, image, **options)
    assert np.array_equal(load_mask(sample, CLASSES, (HEIGHT, WIDTH)), IDS)


@pytest.mark.parametrize("name", ["bits.png", "bits.tif", "bits.bmp", "bits.pbm"])
def test_one_bit(name: str, tmp_path: Path) -> None:
    sample = write(tmp_path / name, Image.fromarray(IDS == 1))
    raw = read_raw_mask(sample)
    # BMP has a palette of black and white; the others hold 0 and 1.
    assert np.array_equal(raw != 0, IDS == 1)
    assert np.unique(raw).tolist() == [0, 1]


def test_the_first_of_several_pages(tmp_path: Path) -> None:
    pages = [as_palette(IDS), as_palette(np.zeros_like(IDS))]
    sample = write(tmp_path / "several.tif", pages[0], save_all=True, append_images=pages[1:])
    assert np.array_equal(load_mask(sample, CLASSES, (HEIGHT, WIDTH)), IDS)


def test_255_may_be_a_class(tmp_path: Path) -> None:
    sample = write(tmp_path / "m.png", Image.fromarray(recode(IDS, {0: 0, 1: 128, 2: 128})))
    table = parse_classes([{"name": "a", "values": [0]}, {"name": "b", "values": [255]}], [128])
    assert np.array_equal(load_mask(sample, table, (HEIGHT, WIDTH)), recode(IDS, {1: 255, 2: 255, 255: 1}))


# --- size and orientation ---


def test_another_size(tmp_path: Path) -> None:
    sample = write(tmp_path / "m.png", Image.fromarray(IDS[::2, ::2]))
    with pytest.raises(
        UserError, match=r"m\.png is 32x24, its image is 64x48 .* `resize_masks: nearest` resizes masks"
    ):
        load_mask(sample, CLASSES, (HEIGHT, WIDTH))
    resized = Sample(sample.name, sample.image, sample.mask, MaskOptions(may_resize=True))
    mask = load_mask(resized, CLASSES, (HEIGHT, WIDTH))
    assert np.array_equal(mask, IDS[::2, ::2].repeat(2, axis=0).repeat(2, axis=1))
    for size_hw in ((17, 33), (HEIGHT, WIDTH), (99, 64)):
        assert set(np.unique(load_mask(resized, CLASSES, size_hw))) <= {0, 1, 2, 255}


ORIENTATIONS = range(1, 9)


def turn(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """What a person sees, said once more without the product's own code: EXIF 2.32, tag 0x0112."""
    steps = {
        1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: np.swapaxes(p, 0, 1),
        6: lambda p: np.rot90(p, -1), 7: lambda p: np.swapaxes(np.rot90(p, 2), 0, 1), 8: lambda p: np.rot90(p, 1),
    }  # fmt: skip
    turned: npt.NDArray[Any] = steps[orientation](pixels)
    return turned


def tag(image: Image.Image, orientation: int) -> dict[str, Any]:
    exif = image.getexif()
    exif[0x0112] = orientation
    return {"exif": exif.tobytes()}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.webp"])
def test_a_mask_turns_if_it_says_so_itself(name: str, orientation: int, tmp_path: Path) -> None:
    pixels = COLORS[IDS] if name == "m.webp" else IDS
    image = Image.fromarray(pixels)
    options = tag(image, orientation) | ({"lossless": True} if name == "m.webp" else {})
    sample = write(tmp_path / name, image, **options)
    turned = turn(IDS, orientation)
    assert np.array_equal(load_mask(sample, CLASSES, turned.shape), turned)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_only_the_image_turns(orientation: int, tmp_path: Path) -> None:
    """The mask is drawn on what a person sees, unless the page says that it was drawn on the stored pixels."""
    photo = Image.fromarray(SCENE.image_rgb)
    photo.save(tmp_path / "photo.jpg", quality=95, **tag(photo, orientation))
    geometry = Geometry((32, 32), "resize", 32)
    for is_stored in (False, True):
        Image.fromarray(IDS if is_stored else turn(IDS, orientation)).save(tmp_path / "m.png")
        options = MaskOptions(turns_with_image=is_stored)
        sample = Sample("photo.jpg", str(tmp_path / "photo.jpg"), str(tmp_path / "m.png"), options)
        assert np.array_equal(load_sample(sample, CLASSES, geometry).truth, turn(IDS, orientation))


def test_the_page_says_that_masks_turn(tmp_path: Path) -> None:
    photo = Image.fromarray(SCENE.image_rgb)
    (tmp_path / "i").mkdir()
    (tmp_path / "m").mkdir()
    photo.save(tmp_path / "i" / "a.jpg", **tag(photo, 6))
    Image.fromarray(IDS).save(tmp_path / "m" / "a.png")
    page = "splits: {train: {images: i, masks: m}}\nclasses: [a, b, c]\n"
    (tmp_path / "dataset.yaml").write_text(page)
    dataset = open_dataset(str(tmp_path))
    with pytest.raises(UserError, match="is 64x48, its image is 48x64"):
        load_mask(dataset.samples("train")[0], dataset.classes, (WIDTH, HEIGHT))
    (tmp_path / "dataset.yaml").write_text(page + "mask_orientation: image\n")
    turning = open_dataset(str(tmp_path))
    assert np.array_equal(load_mask(turning.samples("train")[0], turning.classes, (WIDTH, HEIGHT)), turn(IDS, 6))
    assert turning.fingerprint() != dataset.fingerprint()


# --- a file for each instance ---


def test_instances_are_merged(tmp_path: Path) -> None:
    files = []
    for index, inside in enumerate([IDS == 1, IDS == 2, COLORS[recode(IDS, {0: 7, 255: 7})] > 0]):
        files.append(str(tmp_path / f"{index}.png"))
        Image.fromarray((inside * 255).astype(np.uint8)).save(files[-1])
    sample = Sample("photo.png", str(tmp_path / "photo.png"), InstanceFiles(tuple(files)))
    assert np.array_equal(read_raw_mask(sample), (IDS == 1) | (IDS == 2))
    Image.new("L", (9, 9)).save(files[1])
    with pytest.raises(UserError, match=r"1\.png is 9x9, .*0\.png of the same image is 64x48"):
        read_raw_mask(sample)
    Path(files[2]).write_bytes(b"")
    Image.fromarray(IDS).save(files[1])
    with pytest.raises(UserError, match=r"mask .*2\.png cannot be read"):
        read_raw_mask(sample)
    assert str(sample.mask).endswith("0.png and 2 more")


LOSSLESS: dict[str, dict[str, Any]] = {".jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}


# --- images of every kind train as they are ---


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.jpg", "L"), ("cmyk.jpg", "CMYK"), ("rgb.jpg", "RGB"), ("palette.png", "P"), ("rgba.png", "RGBA"),
        ("deep.png", "I;16"), ("rgb.tif", "RGB"), ("rgb.bmp", "RGB"), ("rgb.webp", "RGB"),
    ],
)  # fmt: skip
def test_images_of_every_kind(name: str, mode: str, tmp_path: Path) -> None:
    photo = Image.fromarray(SCENE.image_rgb)
    expected = SCENE.image_rgb.astype(int)
    if mode in ("L", "I;16"):
        photo = photo.convert("L")
        expected = np.asarray(photo, int)[..., None].repeat(3, axis=2)
    if mode == "I;16":
        photo = Image.fromarray(np.asarray(photo).astype(np.uint16) * 257)
    elif mode != "L":
        photo = photo.convert(mode)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    photo.save(tmp_path / "images" / name, **(LOSSLESS.get(name[-4:], {})))
    Image.fromarray(IDS).save(tmp_path / "masks" / f"{name.split('.')[0]}.png")
    (tmp_path / "dataset.yaml").write_text("splits: {train: {images: images, masks: masks}}\nclasses: [a, b, c]\n")
    dataset = open_dataset(str(tmp_path))
    loaded = load_sample(dataset.samples("train")[0], dataset.classes, Geometry((HEIGHT, WIDTH), "resize", 16))
    assert np.array_equal(loaded.truth, IDS)
    difference = np.abs(loaded.fitted.canvas.astype(int) - expected)
    assert difference.mean() < (16 if mode in ("P", "CMYK") else 4)


def test_jpeg_masks_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(IDS).save(buffer, "JPEG")
    (tmp_path / "m.png").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"m\.png is a JPEG: its values are not exact\. Store masks as PNG"):
        read_raw_mask(Sample("a", "a", str(tmp_path / "m.png")))
