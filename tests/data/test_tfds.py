import hashlib
import io
import json
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import make_arrays, write_idx_files
from servers import send, serve

from mnist_jax import InputError, load_dataset, prepare_dataset
from mnist_jax.data import tfds
from mnist_jax.data.download import DownloadError
from mnist_jax.data.tfds import SOURCES, Source, load_named


def assert_same_arrays(found, expected):
    for role in expected:
        np.testing.assert_array_equal(found[role], expected[role])


@pytest.fixture
def tfds_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


@pytest.fixture
def serve_small(tmp_path, monkeypatch, tfds_dir):
    """Serves a small data set in the place of a real one: ``with serve_small("mnist") as requests: ...``."""
    arrays = make_arrays()
    directory = write_idx_files(tmp_path / "origin", arrays)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}

    def start(name, change=lambda file, content: content):
        members = ()
        served = files
        if name == "emnist/digits":
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                for member in SOURCES[name].members:
                    plain = member.removeprefix("gzip/emnist-digits-").replace("test", "t10k")
                    archive.writestr(member, files[plain])
            served, members = {"gzip.zip": packed.getvalue()}, SOURCES[name].members
        known = {file: (len(content), hashlib.sha256(content).hexdigest()) for file, content in served.items()}
        requests = []

        def answer(handler):
            requests.append(handler.path)
            file = handler.path.removeprefix("/")
            send(handler, change(file, served[file]))

        context = serve(answer)
        url = context.__enter__()
        monkeypatch.setitem(SOURCES, name, Source(url, known, members))
        stop.append(context)
        return requests

    stop = []
    yield start, arrays
    for context in stop:
        context.__exit__(None, None, None)


def test_download_prepare_and_load(serve_small, tfds_dir):
    start, arrays = serve_small
    requests = start("mnist")
    assert_same_arrays(load_named("mnist", None), arrays)
    assert len(requests) == 4
    assert_same_arrays(load_named("mnist", None), arrays)
    assert len(requests) == 4
    info = json.loads((tfds_dir / "mnist" / "1.0.0" / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"


def test_what_was_prepared_is_read_by_tensorflow_datasets_itself(serve_small, tfds_dir):
    import tensorflow_datasets

    start, arrays = serve_small
    start("fashion_mnist")
    load_named("fashion_mnist", None)
    builder = tensorflow_datasets.builder_from_directory(str(tfds_dir / "fashion_mnist" / "1.0.0"))
    examples = list(builder.as_data_source(split="test"))
    np.testing.assert_array_equal([example["label"] for example in examples], arrays["test_label"])
    np.testing.assert_array_equal(examples[3]["image"], arrays["test_image"][3])


def test_the_archive_of_emnist_is_unpacked_and_turned(serve_small, tfds_dir):
    start, arrays = serve_small
    start("emnist/digits")
    found = load_dataset("emnist/digits", num_validation=6)
    assert found.name == "emnist/digits"
    np.testing.assert_array_equal(found.test.image, arrays["test_image"].transpose(0, 2, 1, 3))
    assert (tfds_dir / "emnist" / "digits" / "1.0.0").is_dir()


def test_without_array_record_the_downloaded_files_are_read(serve_small, monkeypatch, tfds_dir):
    start, arrays = serve_small
    requests = start("kmnist")
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    for _ in range(2):
        assert_same_arrays(load_named("kmnist", None), arrays)
    assert len(requests) == 4
    assert not (tfds_dir / "kmnist").exists()


def test_a_wrong_file_prepares_nothing(serve_small, tfds_dir):
    start, arrays = serve_small
    start("mnist", change=lambda file, content: content[::-1] if "labels" in file else content)
    with pytest.raises(DownloadError, match="train-labels-idx1-ubyte.gz: expected content with sha256"):
        load_named("mnist", None)
    assert not (tfds_dir / "mnist").exists()
    start("mnist")
    assert_same_arrays(load_named("mnist", None), arrays)


def test_what_a_killed_download_left_is_removed(serve_small, monkeypatch, tfds_dir):
    start, arrays = serve_small
    start("mnist")
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    downloads = tfds_dir / "downloads" / "mnist_jax" / "mnist"
    downloads.mkdir(parents=True)
    (downloads / "train-images-idx3-ubyte.gz.0badf00d.part").write_bytes(b"half")
    assert_same_arrays(load_named("mnist", None), arrays)
    assert {path.name for path in downloads.iterdir()} == set(SOURCES["mnist"].files)


def test_what_a_killed_preparation_left_is_removed(serve_small, monkeypatch, tfds_dir):
    start, arrays = serve_small
    start("mnist")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *args, **options: None)  # a killed process deletes nothing
        patch.setattr("etils.epath.Path.rmtree", lambda *args, **options: None, raising=False)
        patch.setattr("tensorflow_datasets.core.DatasetInfo.write_to_directory", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load_named("mnist", None)
    assert [path.name.partition(".")[0] for path in (tfds_dir / "mnist").iterdir()] == ["incomplete"]
    assert_same_arrays(load_named("mnist", None), arrays)
    assert [path.name for path in (tfds_dir / "mnist").iterdir()] == ["1.0.0"]


def test_two_at_once_prepare_once(serve_small):
    start, arrays = serve_small
    requests = start("mnist")
    found = []
    threads = [threading.Thread(target=lambda: found.append(load_named("mnist", None))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for each in found:
        assert_same_arrays(each, arrays)
    assert len(requests) == 4


FIRST_RUN = """
import hashlib, json, sys
from mnist_jax import TrainConfig, fit, load_dataset
from mnist_jax.data.tfds import SOURCES, Source

workdir, source = sys.argv[1:]
SOURCES["mnist"] = Source(**json.loads(source))
print("ready", flush=True)
sys.stdin.readline()
dataset = load_dataset("mnist", num_validation=6)
digest = hashlib.sha256()
for split in (dataset.train, dataset.validation, dataset.test):
    digest.update(split.image.tobytes() + split.label.tobytes())
print(digest.hexdigest(), flush=True)
if workdir:
    config = TrainConfig(
        data="mnist", num_validation=6, hidden_sizes=(4,), batch_size=9, epochs=1, workdir=workdir, quiet=True
    )
    print(fit(config).summary["num_train"])
"""


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["load", "fit"])
def test_two_first_runs_at_once_download_once(serve_small, tfds_dir, tmp_path, monkeypatch, train):
    start, arrays = serve_small
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    contents = {}

    def keep(file, content):
        time.sleep(0.05)  # for the other process to meet this one
        return contents.setdefault(file, content)

    requests = start("mnist", change=keep)
    source = SOURCES["mnist"]
    served = json.dumps({"url": source.url, "files": source.files})
    workdirs = [str(tmp_path / name) if train else "" for name in ("one", "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_RUN, workdir, served],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for workdir in workdirs
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    digest = hashlib.sha256()
    for part, role in ((slice(54), "train"), (slice(54, None), "train"), (slice(None), "test")):
        digest.update(arrays[f"{role}_image"][part].tobytes() + arrays[f"{role}_label"][part].tobytes())
    expected = [digest.hexdigest(), "54"] if train else [digest.hexdigest()]
    assert [output.split() for output, _ in outputs] == [expected, expected], outputs
    assert [errors for _, errors in outputs] == ["", ""]
    assert sorted(requests) == sorted(f"/{file}" for file in source.files)
    downloads = tfds_dir / "downloads" / "mnist_jax" / "mnist"
    assert {path.name: path.read_bytes() for path in downloads.iterdir()} == contents
    assert [path.name for path in (tfds_dir / "mnist").iterdir()] == ["1.0.0"]
    (copy,) = (cache / "mnist_jax").iterdir()
    with np.load(copy) as cached:
        assert_same_arrays(cached, arrays)
    for workdir in filter(None, workdirs):
        assert json.loads(Path(workdir, "summary.json").read_text())["epochs"] == 1
        assert not [*Path(workdir).rglob("*.part")]


def test_the_data_directory_comes_first(serve_small, tmp_path):
    start, arrays = serve_small
    requests = start("mnist")
    other = make_arrays(40)
    assert_same_arrays(load_named("mnist", write_idx_files(tmp_path / "mine", other)), other)
    assert requests == []
    # Prepared data in it comes before the default directory, too.
    load_named("mnist", None)
    prepared = tmp_path / "prepared"
    (tmp_path / "tfds" / "mnist").rename(prepared.mkdir() or prepared / "mnist")
    assert_same_arrays(load_named("mnist", prepared), arrays)
    assert len(requests) == 4


def test_prepared_data_that_needs_tensorflow_is_passed_over(serve_small, tfds_dir):
    start, arrays = serve_small
    start("mnist")
    stock = tfds_dir / "mnist" / "3.0.1"
    stock.mkdir(parents=True)
    (stock / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    assert_same_arrays(load_named("mnist", None), arrays)


@pytest.mark.parametrize("damage", ["records", "features.json"])
def test_damaged_prepared_data_is_one_line(serve_small, tfds_dir, damage):
    start, _ = serve_small
    start("mnist")
    load_named("mnist", None)
    for path in (tfds_dir / "mnist" / "1.0.0").glob("*array_record*" if damage == "records" else damage):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="1.0.0: expected readable prepared data .*; delete the") as caught:
        load_named("mnist", None)
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="file: expected a writable directory for downloads"):
        load_named("mnist", None)


def test_the_sources_name_four_files_or_an_archive_of_four():
    for source in SOURCES.values():
        assert len(source.members or source.files) == 4
        assert all(len(sha256) == 64 for _, sha256 in source.files.values())
        assert len(source.class_names) == 10


@pytest.mark.filterwarnings("ignore")  # of what tensorflow-datasets does inside
def test_what_the_stock_builder_prepared_as_array_record_is_read(tfds_dir, tmp_path):
    """Images as PNG, and the examples in an order of its own."""
    import tensorflow_datasets
    from PIL import Image

    arrays = make_arrays()

    class Stock(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        name = "mnist"
        VERSION = tensorflow_datasets.core.Version("3.0.1")
        pkg_dir_path = None

        def _info(self):
            image = tensorflow_datasets.features.Image(shape=(28, 28, 1), encoding_format="png")
            label = tensorflow_datasets.features.ClassLabel(num_classes=10)
            features = tensorflow_datasets.features.FeaturesDict({"image": image, "label": label})
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            for index, (image, label) in enumerate(
                zip(arrays[f"{split}_image"], arrays[f"{split}_label"], strict=True)
            ):
                packed = io.BytesIO()
                Image.fromarray(image[..., 0]).save(packed, "png")
                yield index, {"image": io.BytesIO(packed.getvalue()), "label": int(label)}

    Stock(data_dir=str(tfds_dir), file_format="array_record").download_and_prepare()
    found = load_named("mnist", None)
    for split in ("train", "test"):
        image = found[f"{split}_image"].reshape(-1, 784)
        order, expected_order = np.lexsort(image.T), np.lexsort(arrays[f"{split}_image"].reshape(-1, 784).T)
        np.testing.assert_array_equal(image[order], arrays[f"{split}_image"].reshape(-1, 784)[expected_order])
        np.testing.assert_array_equal(found[f"{split}_label"][order], arrays[f"{split}_label"][expected_order])


@pytest.mark.parametrize("name", SOURCES)
def test_prepared_idx_files_are_what_tensorflow_datasets_and_load_dataset_read(name, idx_dir, tmp_path):
    import tensorflow_datasets

    arrays, data_dir = make_arrays(), tmp_path / "prepared"
    directory = prepare_dataset(name, idx_dir, data_dir)
    version = str(tensorflow_datasets.builder_cls(name.partition("/")[0]).VERSION)
    assert directory == data_dir / name / version
    stored = {role: x.swapaxes(1, 2) if name == "emnist/digits" and x.ndim == 4 else x for role, x in arrays.items()}
    for full_name in (name, f"{name}:{version}"):
        sources = tensorflow_datasets.data_source(full_name, data_dir=data_dir, download=False)
        for split in ("train", "test"):
            for key in ("image", "label"):
                found = np.array([example[key] for example in sources[split]])
                np.testing.assert_array_equal(found, stored[f"{split}_{key}"])
    expected = load_dataset(idx_dir)
    for found in (load_dataset(name, data_dir=data_dir), load_dataset(directory)):
        for one, other in ((found.train, expected.train), (found.validation, expected.validation)):
            np.testing.assert_array_equal(one.image, other.image, strict=True)
            np.testing.assert_array_equal(one.label, other.label, strict=True)
        np.testing.assert_array_equal(found.test.image, expected.test.image)
        assert (found.name, found.class_names) == (name, SOURCES[name].class_names)
        assert found.path == str(directory)
    before = {path: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(
        InputError, match=f"{version} exists: delete it to prepare it again, or choose another data_dir"
    ):
        prepare_dataset(name, idx_dir, data_dir)
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_data_is_prepared_in_the_directory_of_tensorflow_datasets_by_default(tfds_dir, idx_dir, run_python):
    code = f"import mnist_jax, sys; print(mnist_jax.prepare_dataset('mnist', {str(idx_dir)!r})); " + (
        "print(mnist_jax.load_dataset('mnist').path, 'tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    done = run_python("-c", code)
    expected = tfds_dir / "mnist" / "3.0.1"
    assert (done.stdout, done.stderr) == (f"{expected}\n{expected} False False\n", "")


def test_bad_input_to_prepare_is_one_line(tmp_path, idx_dir, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    for arguments, message in (
        (("mnits", idx_dir), "name must be one of mnist, fashion_mnist, kmnist, emnist/digits, got 'mnits'; did you"),
        (("mnist", tmp_path / "none"), "idx_dir must be an existing directory, got '.*none'"),
        (("mnist", tmp_path / "empty"), "empty: expected four IDX files in this directory, found none"),
        (("mnist", idx_dir, tmp_path / "file"), r"file: expected a writable directory \(File exists\)"),
    ):
        with pytest.raises(InputError, match=message):
            prepare_dataset(*arguments)
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="prepare_dataset needs the package array_record, which is not installed"):
        prepare_dataset("mnist", idx_dir, tmp_path)


def test_a_prepared_directory_of_another_kind_is_one_line(tmp_path, idx_dir):
    directory = prepare_dataset("mnist", idx_dir, tmp_path)
    info = directory / "dataset_info.json"
    content = info.read_text()
    for changed, message in (
        (content.replace("array_record", "tfrecord"), "3.0.1: expected data prepared as array_record.* got tfrecord"),
        ("[1]", "dataset_info.json: cannot be read"),
        ("{", "dataset_info.json: cannot be read"),
    ):
        info.write_text(changed)
        with pytest.raises(InputError, match=message):
            load_dataset(directory)
    info.write_text(content.replace('"name": "mnist"', '"name": "../other"'))
    with pytest.raises(InputError, match="3.0.1: expected readable prepared data"):
        load_dataset(directory)
