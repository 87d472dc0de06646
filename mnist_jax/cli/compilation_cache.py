"""Keeps compiled programs on disk, so that the next command need not compile them again.

    use_compilation_cache()   # a command, before it imports JAX

JAX writes and reads the files, and deletes those that were not used for the longest time. Its own key names neither the
processor nor the number of cores: a program with an instruction that the processor lacks would kill the process, and
one for another number of cores would be slow. Therefore each combination has a directory of its own in
``$XDG_CACHE_HOME/mnist_jax/programs`` (default ``~/.cache/mnist_jax/programs``), which may be deleted at any time.

Reference: https://docs.jax.dev/en/latest/persistent_compilation_cache.html.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import time
from pathlib import Path

from mnist_jax.home import find_directory, is_private

_log = logging.getLogger("mnist_jax")
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_MAX_BYTES = 32 * 2**20  # in each directory; a training command takes a quarter of a megabyte
_MAX_DIRECTORIES = 4
_DAY_S = 24 * 60 * 60
_WRITING_S = 60.0  # another process may still be writing what is newer
_PROCESSOR = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}  # x86
_PROCESSOR |= {"Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"}  # ARM


def use_compilation_cache() -> None:
    """Makes JAX keep the programs that it compiles, and find those of earlier processes.

    Nothing is kept

    - if ``$JAX_COMPILATION_CACHE_DIR`` names a directory already, or JAX is imported already;
    - with jaxlib 0.10, which logs a line for each program that it finds;
    - if the features of the processor are not known, as on Windows;
    - if the directory cannot be created, or, with a notice, if it is not private: who can write a program can run code.
    """
    if _VARIABLE in os.environ or "jax" in sys.modules:
        return
    with contextlib.suppress(OSError, importlib.metadata.PackageNotFoundError):
        version, processor = importlib.metadata.version("jaxlib"), _describe_processor()
        if version.startswith("0.10.") or not processor:
            return
        programs = find_directory("XDG_CACHE_HOME", ".cache") / "mnist_jax" / "programs"
        programs.mkdir(mode=0o700, parents=True, exist_ok=True)
        programs.parent.chmod(programs.parent.stat().st_mode & ~0o022)  # else others could replace ``programs``
        if not is_private(programs):
            _log.warning("%s is not private (mode 700): compiled programs are not kept", programs)
            return
        cores = (os.cpu_count(), _usable_cores(), os.environ.get("PJRT_NPROC"))
        name = hashlib.sha256(repr((processor, cores)).encode()).hexdigest()[:16]
        directory = programs / f"{version}-{name}"
        if not directory.exists():
            _delete_oldest(programs, _MAX_DIRECTORIES - 1)
            directory.mkdir(exist_ok=True)
        _delete_unfinished(directory)
        os.environ[_VARIABLE] = str(directory)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MAX_BYTES))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")  # JAX would not limit their size


def switch_compilation_cache_off() -> None:
    """Makes JAX compile everything anew, and keep nothing, whatever the environment says."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def _describe_processor() -> str:
    """Returns model and features of the processor, or an empty string if they are not known."""
    if sys.platform == "linux":
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in _PROCESSOR)
    if sys.platform == "darwin":
        import subprocess

        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return f"{platform.machine()} {found}" if found else ""
    return ""


def _usable_cores() -> int | None:
    """Returns how many cores this process may use; None where that cannot be found."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _delete_oldest(programs: Path, number: int) -> None:
    """Deletes all directories but those of the ``number`` that were used last, and but those used within a day."""
    found = {path: _last_use(path) for path in programs.iterdir() if path.is_dir()}
    for directory in sorted(found, key=found.__getitem__, reverse=True)[number:]:
        if time.time() - found[directory] > _DAY_S:
            shutil.rmtree(directory, ignore_errors=True)


def _last_use(directory: Path) -> float:
    """Returns the time of the newest file; another process may delete files meanwhile."""
    times = [directory.stat().st_mtime]
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _delete_unfinished(directory: Path) -> None:
    """Deletes programs that a killed process left half written: JAX writes their time of use after them."""
    for path in directory.glob("*-cache"):
        with contextlib.suppress(OSError):
            is_finished = path.with_name(path.name.removesuffix("-cache") + "-atime").exists()
            if not is_finished and time.time() - path.stat().st_mtime > _WRITING_S:
                path.unlink()
