from pathlib import Path

from PIL import Image

from mnist_jax.pictures import decode
from mnist_jax.pictures.collect import Source, find_sources


def test_each_suffix_of_the_formats_is_read():
    formats = {*decode._FORMATS, "DIB", "MPO"}  # kinds of BMP and JPEG
    suffixes = {suffix for suffix, format in Image.registered_extensions().items() if format in formats}
    assert set(decode.PICTURE_SUFFIXES) == suffixes


def test_the_folder_of_a_picture_is_the_nearest_inside_the_given_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("c.png", "train/7/b.JPG", "train/7/a.tiff", "train/d.webp"):
        Path("digits", name).parent.mkdir(parents=True, exist_ok=True)
        Path("digits", name).touch()
    sources, errors = find_sources(["-", "digits/", "missing.png", "digits/c.png"])
    assert errors == []
    assert sources == [
        Source("-"),
        Source("digits/c.png"),
        Source("digits/train/7/a.tiff", "7"),
        Source("digits/train/7/b.JPG", "7"),
        Source("digits/train/d.webp", "train"),
        Source("missing.png"),
        Source("digits/c.png"),
    ]
