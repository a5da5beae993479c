"""The user's own images, made-up ones, and what is said when they are not as they should be."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from fourfold.config import ConfigError, DatasetConfig
from fourfold.data import Batches, Scale, load_splits, outline
from fourfold.data.pools import FirstOf, Source
from fourfold.data.sources import open_source
from fourfold.data.transforms import evaluation

from .making import FAKE, Preprocessing, dataset, transform, write_image

TABLE = {"path_column": "path", "label_column": "label", "split_column": "split", "separator": "|"}


def folder(root: Path) -> DatasetConfig:
    return dataset(name="image_folder", source="image_folder", kwargs={}, root=str(root))


def table(root: Path, text: str, task: str = "classification", **changes: Any) -> DatasetConfig:
    (root / "labels.csv").write_text(text)
    kwargs = TABLE | {"file": "labels.csv"} | changes
    return dataset(name="csv", source="csv", kwargs=kwargs, root=str(root), task=task)


def custom(function: str, task: str = "classification", **kwargs: Any) -> DatasetConfig:
    return dataset(name="custom", source="target", _target_=f"their_data.{function}", kwargs=kwargs, task=task)


def opened(config: DatasetConfig) -> Source:
    return open_source(config, seed=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, grey in (("a", 10), ("b", 100), ("c", 200)):
        write_image(tmp_path / f"{name}.png", grey)
    return tmp_path


@pytest.fixture
def their_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text("""
import random
import numpy
import torch

class Numbers(torch.utils.data.Dataset):
    def __init__(self, count, target=lambda i: i % 2):
        self.count, self.target, self.read = count, target, 0
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        self.read += 1
        return torch.full((3, 16, 16), index, dtype=torch.uint8), self.target(index)

class Labelled(Numbers):
    targets = [i % 2 for i in range(30)]
    def __getitem__(self, index):
        raise AssertionError("decoded")

def one(count, seed=None):
    made = Numbers(count)
    made.seed = seed
    return made
def none():
    return Numbers(0)
def infinite():
    return Numbers(30, lambda i: float("inf") if i == 7 else float(i))
def from_one():
    return Numbers(30, lambda i: 1 + i % 2)
def drawn():
    made = Numbers(30)
    made.number = (random.random(), numpy.random.rand(), torch.rand(()).item())
    return made
class Jittered(Numbers):
    def __getitem__(self, index):
        value = random.random() + numpy.random.rand() + torch.rand(()).item()
        return torch.full((3, 2, 2), value), self.target(index)
def jittered(): return Jittered(30)
def several(count):
    return {"train": Numbers(count), "val": None, "test": Numbers(4), "classes": ["even", "odd"]}
def labelled(): return Labelled(30)
def values(): return Numbers(30, lambda i: i / 3)
def many(): return Numbers(30, lambda i: [1, i % 2, 0])
def words(): return Numbers(30, lambda i: "word")
def typo(): return {"trian": Numbers(3)}
def stream(): return {"train": iter([])}
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_data", raising=False)


# folders


def test_a_folder_of_classes_is_split_by_us(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, grey in (("cat", 50), ("dog", 150)):
        for i in range(10):
            write_image(tmp_path / name / "deeper" / f"{i}.JPG", grey)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    write_image(tmp_path / ".hidden" / "1.png")
    write_image(tmp_path / "cat" / ".ipynb_checkpoints" / "1.png")
    (tmp_path / "cat" / "deeper" / "again").symlink_to(tmp_path / "cat")
    splits = load_splits(folder(tmp_path), transform("none"), Preprocessing(), seed=0)
    assert splits.classes == ("cat", "dog")
    assert splits.class_counts == (6, 6)
    assert "cat: passed over" not in caplog.text
    assert "passed over what is no image in a format known here (1 .txt)" in caplog.text
    for pixels, label in (splits.train[0], splits.train[1]):
        assert pixels.shape == (3, 16, 16)
        assert pixels.unique().item() == (50, 150)[label]


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("Train", "valid", "TEST"), ("training", "Validation", "testing")]
)
def test_its_own_val_and_test_folders_are_kept(tmp_path: Path, train: str, val: str, test: str) -> None:
    for split, count in ((train, 4), (val, 2), (test, 3)):
        for name in ("cat", "dog"):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png")
    source = opened(folder(tmp_path))
    assert source.val is not None
    assert source.test is not None
    assert [len(pool.labels) for pool in (source.train, source.val, source.test)] == [8, 4, 6]


def test_a_train_folder_alone_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        write_image(tmp_path / "train" / name / "1.png")
        write_image(tmp_path / "tset" / name / "1.png")
    source = opened(folder(tmp_path))
    assert (source.classes, source.val, source.test) == (("cat", "dog"), None, None)
    assert "passed over tset/ beside train/, since no split is called so" in caplog.text


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.root=.*nowhere is not a folder"):
        opened(folder(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="holds no folders"):
        opened(folder(tmp_path))
    write_image(tmp_path / "one" / "a.png")
    with pytest.raises(ConfigError, match="has one class, one: two or more"):
        opened(folder(tmp_path))
    (tmp_path / "two").mkdir()
    with pytest.raises(ConfigError, match=r"two holds no image \(.jpg"):
        opened(folder(tmp_path))
    write_image(tmp_path / "test" / "one" / "a.png")
    with pytest.raises(ConfigError, match="has test/ but no train/"):
        opened(folder(tmp_path))


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    for name in ("Bus", "Train"):
        write_image(tmp_path / name / "1.png")
    assert opened(folder(tmp_path)).classes == ("Bus", "Train")
    for name in ("train", "test"):  # but these hold no classes
        write_image(tmp_path / "flat" / name / "1.png")
    with pytest.raises(ConfigError, match="flat/train holds no folders: put the images of each class"):
        opened(folder(tmp_path / "flat"))


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        write_image(tmp_path / split / "cat" / "1.png")
    with pytest.raises(ConfigError, match="has val/ and validation/, which both mean val: keep one"):
        opened(folder(tmp_path))


@pytest.mark.parametrize("suffix", ["jfif", "gif", "avif", "webp", "JPEG"])
def test_many_formats_are_read(tmp_path: Path, suffix: str) -> None:
    for name, grey in (("cat", 50), ("dog", 150)):
        made = write_image(tmp_path / name / f"1.{suffix}" if suffix != "jfif" else tmp_path / name / "1.jpg", grey)
        made.rename(made.with_suffix(f".{suffix}"))
    source = opened(folder(tmp_path))
    assert [len(source.train.images), source.train.labels.tolist()] == [2, [0, 1]]
    greys = [np.asarray(source.train.images[i].convert("L")).mean() for i in range(2)]  # type: ignore[union-attr]
    assert greys == pytest.approx([50, 150], abs=3)


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(6):
            write_image(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "6.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ConfigError, match=r"the image file .*cat/6.png does not exist: correct its path or remove the link"):
        load_splits(folder(tmp_path), transform("none"), Preprocessing(), seed=0)


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    for place in ("train/cat", "train/dog", "test/dogs"):
        write_image(tmp_path / place / "1.png")
    with pytest.raises(ConfigError, match=r"dogs is a class that train does not have, did you mean dog\?"):
        opened(folder(tmp_path))


def _endless_text() -> bytes:
    image, about = io.BytesIO(), PngInfo()
    about.add_text("comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("L", (8, 8)).save(image, "png", pnginfo=about)
    return image.getvalue()


@pytest.mark.parametrize("broken", [b"no image", b"", _endless_text()], ids=["no image", "empty", "endless text"])
def test_unreadable_images_are_named(tmp_path: Path, broken: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        for i in range(6):
            write_image(tmp_path / name / f"{i}.png")
    for i, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        path.write_bytes(broken + bytes([i]))
    config = folder(tmp_path)
    train = load_splits(config, transform("none"), Preprocessing(), seed=0).train
    steps = Batches(train, batch_size=4, accumulate=1, loader=config.loader, seed=0, shuffle=True).at(0)
    with pytest.raises(
        ConfigError, match=r"the image file .*/(cat|dog)/\d.png cannot be read.*with 11 more, which are named above"
    ):
        next(steps)
    assert caplog.text.count("cannot be read either") == 11


def test_a_photograph_stands_upright(photos: Path) -> None:
    lying = Image.new("RGB", (8, 4), (255, 255, 255))
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    lying.save(photos / "a.jpg", exif=exif)
    config = table(photos, "path,label\na.jpg,x\nb.png,y\n")
    image = opened(config).train.images[0]
    assert isinstance(image, Image.Image)
    assert image.size == (4, 8)


# tables


def test_a_table_of_classes(photos: Path) -> None:
    source = opened(table(photos, "path,label\na.png,10\nb.png,9\nc.png,x\n"))
    assert source.classes == ("9", "10", "x")
    assert source.train.labels.tolist() == [1, 0, 2]
    assert np.unique(np.asarray(source.train.images[1])).tolist() == [100]


def test_a_table_with_splits_and_its_own_column_names(photos: Path) -> None:
    text = "file,kind,part\na.png,x,train\nb.png,y,Train\nc.png,y,valid\na.png,x,test\n"
    columns = {"path_column": "file", "label_column": "kind", "split_column": "part"}
    source = opened(table(photos, text, **columns))
    assert source.val is not None
    assert source.test is not None
    assert [pool.labels.tolist() for pool in (source.train, source.val, source.test)] == [[0, 1], [1], [0]]


def test_a_table_of_several_labels(photos: Path) -> None:
    config = table(photos, "path,label\na.png,sun|sea\nb.png,\nc.png,sea\n", "multilabel")
    source = opened(config)
    assert source.classes == ("sea", "sun")
    assert source.train.labels.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert outline(config, 0).num_outputs == 2


def test_a_table_of_numbers(photos: Path) -> None:
    for i in range(24):
        write_image(photos / f"{i}.png", (10, 100, 200)[i % 3])
    config = table(photos, "path,label\n" + "".join(f"{i}.png,{i}.5\n" for i in range(24)), "regression")
    splits = load_splits(config, transform("none"), Preprocessing(), seed=0)
    assert (splits.num_outputs, splits.classes, splits.class_counts) == (1, (), ())
    [(inputs, targets)] = next(
        Batches(splits.train, batch_size=4, accumulate=1, loader=config.loader, seed=0, shuffle=True).at(0)
    )
    assert targets.dtype == torch.float32
    assert targets.shape == (4,)
    assert splits.scale is not None
    assert splits.train.labels.mean().item() == pytest.approx(0, abs=1e-6)  # type: ignore[attr-defined]
    assert splits.train.labels.std(correction=0).item() == pytest.approx(1)  # type: ignore[attr-defined]
    greys = [(10, 100, 200)[int(value * splits.scale.std + splits.scale.mean) % 3] for value in targets]
    assert inputs[:, 0, 0, 0].tolist() == greys


def test_a_target_that_never_varies_has_a_unit_nevertheless() -> None:
    assert Scale.of(torch.full((5,), 3.0)) == Scale(3.0, 1.0)


@pytest.mark.parametrize(
    ("text", "task", "says"),
    [
        ("path,lable\na.png,x\n", "classification", "label_column=label is not a column of .*did you mean lable"),
        ("", "classification", "path_column=path is not a column of .*which has none"),
        ("path,label\nz.png,x\n", "classification", "line 2 of .* names the image .*z.png, which does not exist: correct"),
        (
            "path,label\nz.png,x\na.png,x\ny.png,x\n",
            "classification",
            "line 2 of .* not exist, and 1 more do the like: correct",
        ),
        ("path,label\na.png,x\nb.png, \n", "classification", "line 3 of .* has no label"),
        ("path,label\na.png\n", "classification", "line 2 of .* has no label"),
        ("path,label\na.png,x\n", "regression", "label x, which is not a number"),
        ("path,label\na.png,nan\n", "regression", "label nan, which is not a number"),
        ("path,label,split\na.png,x,left\n", "classification", "has split=left: write train, val or test"),
        ("path,label,split\na.png,x,test\n", "classification", "holds no training image"),
        ("path,label,split\na.png,x,train\nb.png,y,test\n", "classification", "label y, which no training image has"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(photos: Path, text: str, task: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        opened(table(photos, text, task))


@pytest.mark.parametrize("between", [",", ";", "\t", ", "])
def test_columns_may_be_apart_by_other_than_commas(photos: Path, between: str) -> None:
    rows = [("path", "label", "split"), ("a.png", "x, or y", "train"), ("b.png", "y|z", "train"), ("c.png", "y|z", "test")]
    text = "\n".join(between.join(f'"{word}"' if "," in word else word for word in row) for row in rows)
    source = opened(table(photos, text))
    assert source.classes == ("x, or y", "y|z")
    assert source.test is not None
    assert source.test.labels.tolist() == [1]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_refused(photos: Path, encoding: str) -> None:
    config = table(photos, "")
    (photos / "labels.csv").write_text("path,label\na.png,Bär\n", encoding=encoding)
    with pytest.raises(
        ConfigError, match=r"labels.csv is no text in UTF-8 \(byte \d+\): save it as such, in Excel as CSV UTF-8"
    ):
        opened(config)


@pytest.mark.parametrize(("label", "says"), [("sun", "one label, sun"), ("", "no label")])
def test_several_labels_are_two_or_more(photos: Path, label: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"dataset=csv has {says}: two or more are needed"):
        opened(table(photos, f"path,label\na.png,{label}\nb.png,\n", "multilabel"))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    config = dataset(name="csv", source="csv", kwargs=TABLE | {"file": "none.csv"}, root=str(tmp_path))
    with pytest.raises(ConfigError, match=r"dataset.kwargs.file=none.csv is not a file in dataset.root="):
        opened(config)


# the user's code


@pytest.mark.usefixtures("their_code")
def test_one_dataset_of_their_own_is_split_by_us() -> None:
    splits = load_splits(custom("one", count=40), transform("none"), Preprocessing(), seed=0)
    assert splits.classes == ("0", "1")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [24, 6, 10]
    pixels, label = splits.train[3]
    assert pixels.unique().item() % 2 == label


@pytest.mark.usefixtures("their_code")
def test_it_gets_the_seed_of_the_split_if_it_takes_one() -> None:
    source = open_source(custom("one", count=12), seed=5)
    assert source.train.images.dataset.seed == 5  # type: ignore[union-attr]


@pytest.mark.usefixtures("their_code")
def test_what_it_draws_follows_the_seed_and_leaves_no_trace_in_the_run() -> None:
    def run(seed: int) -> tuple[Any, float]:
        torch.manual_seed(11)
        number = open_source(custom("drawn"), seed).train.images.dataset.number  # type: ignore[union-attr]
        return number, torch.rand(()).item()

    (first, after), (other, after_other) = run(1), run(2)
    for name in "ab":  # so that it is opened anew
        opened(dataset(root=name))
    again, _ = run(1)
    assert first == again != other
    assert after == after_other


@pytest.mark.usefixtures("their_code")
def test_randomness_of_their_own_items_is_that_of_the_image() -> None:
    """Whichever generator their augmentation draws from, neither workers nor a resume change a pixel."""
    config = custom("jittered")
    train = load_splits(config, transform("none"), Preprocessing(), seed=0).train

    def values(workers: int, start_step: int = 0) -> list[float]:
        loader = replace(config.loader, num_workers=workers)
        steps = Batches(train, batch_size=6, accumulate=1, loader=loader, seed=0, shuffle=True).at(1, start_step)
        return [value for [(inputs, _)] in steps for value in inputs[:, 0, 0, 0].tolist()]

    assert values(0) == values(2)
    assert values(0)[6:] == values(0, start_step=1)


@pytest.mark.usefixtures("their_code")
def test_splits_and_names_of_their_own_are_kept() -> None:
    source = opened(custom("several", count=12))
    assert source.classes == ("even", "odd")
    assert source.val is None
    assert source.test is not None


@pytest.mark.usefixtures("their_code")
def test_labels_are_read_without_decoding_where_they_can_be() -> None:
    assert opened(custom("labelled")).train.labels.tolist() == [i % 2 for i in range(30)]


@pytest.mark.usefixtures("their_code")
def test_their_numbers_and_several_labels_fit_the_task() -> None:
    assert opened(custom("values", "regression")).train.labels.dtype == torch.float32
    assert opened(custom("many", "multilabel")).train.labels.shape == (30, 3)


@pytest.mark.usefixtures("their_code")
@pytest.mark.parametrize(
    ("function", "task", "says"),
    [
        ("typo", "classification", r"gave \['trian'\]: it must give train"),
        ("stream", "classification", "gave train=list_iterator: give map-style datasets"),
        ("words", "classification", "labels that are no numbers"),
        ("many", "classification", r"labels of shape \[30, 3\], but dataset.task=classification takes one number"),
        ("values", "multilabel", r"labels of shape \[30\], but dataset.task=multilabel takes \[images, labels\]"),
        ("nothing", "classification", "_target_=their_data.nothing names nothing"),
        ("one", "classification", "one cannot be called .*count.*: give what it takes as dataset.kwargs"),
        ("none", "classification", "none gave no training image"),
        ("infinite", "regression", "labels that are no finite numbers"),
    ],
)
def test_what_does_not_fit_is_said(function: str, task: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        opened(custom(function, task))


@pytest.mark.parametrize(
    ("image", "pixels"),
    [
        (np.full((9, 7), 50, np.uint8), 50),
        (np.full((9, 7, 1), 50, np.uint8), 50),
        (np.full((9, 7, 3), 50, np.uint8), 50),
        (torch.full((1, 9, 7), 50, dtype=torch.uint8), 50),
        (torch.full((3, 16, 16), 0.25), 0.25),
        (np.zeros((3, 9, 7), np.uint8), r"image 0 of theirs is of type ndarray \(uint8 \[3, 9, 7\]\): give a PIL"),
        (np.zeros((9, 7), np.float32), r"ndarray \(float32 \[9, 7\]\)"),
        (torch.zeros(9, 7, dtype=torch.uint8), r"Tensor \(torch.uint8 \[9, 7\]\)"),
        (torch.zeros(3, 9, 7, dtype=torch.int64), r"Tensor \(torch.int64 \[3, 9, 7\]\)"),
        ("path.png", r"str \(no array\)"),
        (torch.zeros(9, 7, 3, dtype=torch.uint8), r"tensors \[9, 7, 3\], have 9 channels, which stand first"),
    ],
    ids=str,
)  # fmt: skip
def test_images_of_their_own_are_pictures_tensors_or_arrays(image: Any, pixels: float | str) -> None:
    prepare = evaluation(Preprocessing(), 3, "stack")
    images = FirstOf([(image, 0)], name="theirs")
    if isinstance(pixels, str):
        with pytest.raises(ConfigError, match=pixels):
            prepare(images[0])
        return
    seen = prepare(images[0])
    assert seen.shape == (3, 16, 16)
    assert seen.unique().tolist() == [pixels]


def test_an_item_that_is_no_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"item 0 of theirs is dict: give pairs of \(image, target\)"):
        FirstOf([{"image": 1}], name="theirs")[0]


@pytest.mark.usefixtures("their_code")
def test_labels_that_are_not_numbered_from_0_are_told(caplog: pytest.LogCaptureFixture) -> None:
    load_splits(custom("from_one"), transform("none"), Preprocessing(), seed=0)
    assert "no training image of 0: are labels numbered from 0?" in caplog.text


# made up


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_fake_labels_can_be_learned_from_the_mean_colour(task: str) -> None:
    source = opened(dataset(task=task, kwargs=FAKE | {"size": 200}))
    means = torch.stack([source.train.images[i].float().mean((1, 2)) for i in range(200)])  # type: ignore[union-attr]
    labels = source.train.labels
    if task == "classification":
        labels = torch.nn.functional.one_hot(labels).float()
    design = torch.cat([means, torch.ones(200, 1)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, labels.reshape(200, -1)).solution
    residual = (fitted - labels.reshape(200, -1)).square().mean() / labels.var()
    assert residual < 0.6


def test_fake_images_are_the_same_every_time() -> None:
    first, again = (opened(dataset(root=root)).train.images for root in ("a", "b"))  # two keys: nothing is kept between them
    assert torch.equal(first[3], again[3])  # type: ignore[arg-type]
    assert not torch.equal(first[3], first[7])  # type: ignore[arg-type]


def test_grey_images_reach_a_colour_model_and_colour_a_grey_one() -> None:
    for channels, in_chans in ((1, 3), (3, 1)):
        config = dataset(kwargs=FAKE | {"channels": channels}, in_chans=in_chans)
        pixels, _ = load_splits(config, transform("standard"), Preprocessing(), seed=0).train[0]
        assert pixels.shape == (in_chans, 16, 16)


def test_the_embedded_domains_are_opened_with_their_classes() -> None:
    config = dataset(name="glyph_digits", source="generated", kwargs={"seed": 0, "train": 4, "test": 2}, val_size=10)
    splits = load_splits(config, transform("none"), Preprocessing(), seed=0)  # another size than their 32 pixels
    assert len(splits.classes) == 10
    assert splits.train[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kwargs": FAKE | {"sise": 3}}, r"dataset.kwargs.sise is not taken by this dataset, did you mean size\?"),
        ({"kwargs": {"size": 3}}, "dataset.kwargs.test_size is missing"),
        (
            {"source": "image_folder", "name": "image_folder", "task": "regression", "kwargs": {}},
            "has classes: use dataset.task",
        ),
        ({"source": "torchvision", "name": "flowers", "kwargs": {}}, "did you mean flowers102"),
    ],
)
def test_wrong_words_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        opened(dataset(**changes))


def test_a_source_is_opened_once() -> None:
    assert opened(dataset()) is opened(dataset(train_size=8))
