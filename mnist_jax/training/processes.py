"""Lets the processes of one run act together: all compute, and the first one reads and writes the small files.

    connect()                                  # a command, before it uses JAX
    path = first(lambda: create_directory())   # what the first process returns, in all of them
    check_same("config", config.to_json())
    with explain_lost_process():
        ...

A library user calls ``jax.distributed.initialize`` instead of :func:`connect`. With a single process all of this does
nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mnist_jax.errors import InputError, LostProcessError, one_line

T = TypeVar("T")

COORDINATOR, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_START_TIMEOUT = "MNIST_JAX_START_TIMEOUT"  # seconds to wait for the other processes to start, 60 by default
_HEARTBEAT_S = 20  # a process that is silent for so long is taken for dead, which ends the others
_MESSAGE_BYTES = 8192
# Of the errors by which JAX reports that another process has ended; they have no type of their own.
_SIGNS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CoordinationService", "Connection ")


def connect() -> None:
    """Connects this process with the others of the run, if it has been started as one of several.

    ``$JAX_COORDINATOR_ADDRESS``, ``$JAX_NUM_PROCESSES`` and ``$JAX_PROCESS_ID`` name them; the flags set these
    variables. What is missing comes from a launcher that JAX detects: SLURM, Open MPI, Cloud TPU or Kubernetes.
    ``JAX_NUM_PROCESSES=1`` makes the process stand alone whatever has launched it.

    Raises:
        InputError: a variable is wrong or missing, or the others do not answer in time.
    """
    address, num_processes, process_id = os.environ.get(COORDINATOR), _read(NUM_PROCESSES), _read(PROCESS_ID)
    is_given = (address, num_processes, process_id) != (None, None, None)
    if num_processes == 1 or not (is_given or _is_launched()):
        return
    _check(address, num_processes, process_id)
    timeout = _read(_START_TIMEOUT) or 60
    # In a pod, JAX would ask Kubernetes even for what is given, and fail without a service account that may read pods.
    knows_all = address and num_processes and process_id is not None
    detection = "deactivate" if knows_all and "KUBERNETES_SERVICE_HOST" in os.environ else None
    import jax

    if jax.distributed.is_initialized():
        return
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)  # else it warns of variables for proxies
    # JAX aborts the process at its own timeout, with a page of text.
    timer = threading.Timer(timeout, _give_up, (address, timeout))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            cluster_detection_method=detection,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )
    except Exception as error:  # of JAX and of the libraries by which it detects launchers
        if not is_given and isinstance(error, (KeyError, ValueError)):  # not one of several after all
            return
        raise InputError(
            "processes: expected --coordinator, --num-processes and --process-id, or a launcher that JAX detects "
            f"({one_line(error)})"
        ) from None
    finally:
        timer.cancel()
    if jax.process_index() > 0:
        logging.getLogger("mnist_jax").setLevel(logging.ERROR)  # the first process gives notice for all
    with silent_stdout():
        barrier()


def _give_up(address: str | None, timeout: int) -> None:
    where = f" at {address}" if address else ""
    print(
        f"error: processes: not all of them met{where} within {timeout} s; {_START_TIMEOUT} sets another time",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _read(variable: str) -> int | None:
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isdecimal():
        raise InputError(f"{_flag(variable)} must be a whole number, got {one_line(text)[:80]}")
    return int(text)


def _flag(variable: str) -> str:
    """Returns the name of a flag as messages have it, ``num_processes``; other variables keep their name."""
    return variable.removeprefix("JAX_").lower() if variable in (NUM_PROCESSES, PROCESS_ID) else f"${variable}"


def _check(address: str | None, num_processes: int | None, process_id: int | None) -> None:
    host, _, port = (address or "").rpartition(":")
    if address and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"coordinator must be HOST:PORT, got {one_line(address)[:80]}")
    if num_processes == 0:
        raise InputError("num_processes must be at least 1, got 0")
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise InputError(f"process_id must be below the {num_processes} processes, got {process_id}")


def _is_launched() -> bool:
    """Returns whether a launcher that JAX detects may have started several processes."""
    variables = os.environ
    counts = [variables.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    if any(count.isdecimal() and int(count) > 1 for count in counts):
        return True
    if "KUBERNETES_SERVICE_HOST" in variables and "JOB_COMPLETION_INDEX" in variables:
        return importlib.util.find_spec("kubernetes") is not None  # with which JAX asks for the other pods
    on_tpu = variables.get("JAX_PLATFORMS", "tpu") in ("", "tpu")
    return on_tpu and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def silent_stdout() -> Iterator[None]:
    """Drops what is written to file descriptor 1, where gloo reports each new connection, on CPU."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def count() -> int:
    """Returns the number of connected processes."""
    distributed = getattr(sys.modules.get("jax"), "distributed", None)  # another thread may be importing JAX
    return sys.modules["jax"].process_count() if distributed is not None and distributed.is_initialized() else 1


def index() -> int:
    """Returns the number of this process, from 0."""
    return sys.modules["jax"].process_index() if count() > 1 else 0


def is_first() -> bool:
    """Returns whether this process writes the files and the messages of the run."""
    return index() == 0


def first(function: Callable[[], T]) -> T:
    """Calls a function in the first process only, and returns its result in all; it does not wait for the others first.

    Args:
        function: returns something that is written as JSON in less than 8 kB.

    Raises:
        InputError: the function raised it, in the first process.
    """
    return _share(function if is_first() else None)[0]


def together(function: Callable[[], T]) -> T:
    """Calls a function in each process, and returns its result there.

    Raises:
        InputError: the function raised it in at least one process; all raise the error of the first of these.
    """
    result: list[T] = []
    _share(lambda: result.append(function()))
    return result[0]


def check_same(name: str, content: str) -> None:
    """Checks that a text is the same in all processes.

    Raises:
        InputError: it differs.
    """
    checksums = _share(lambda: zlib.crc32(content.encode()))
    for other, checksum in enumerate(checksums):
        if checksum != checksums[0]:
            raise InputError(f"{name} must be the same in all processes: that of process {other} differs")


def smallest(value: int) -> int:
    """Returns the smallest of the values of all processes."""
    return min(_share(lambda: value))


def largest(*values: int) -> list[int]:
    """Returns the largest of the values of all processes, for each value."""
    return [max(column) for column in zip(*_share(lambda: values), strict=True)]


def barrier() -> None:
    """Waits until all processes are here."""
    _share(lambda: None)


def _share(function: Callable[[], Any] | None) -> list[Any]:
    """Calls a function, unless it is None, and returns the results of all processes, which are written as JSON."""
    if count() == 1:
        assert function is not None
        return [function()]
    try:
        message = {"result": function() if function is not None else None}
    except InputError as error:
        message = {"error": str(error)}
    messages = [json.loads(text) for text in _exchange(json.dumps(message).encode())]
    for other, message in enumerate(messages):
        if "error" in message:
            raise InputError(message["error"] if other in (0, index()) else f"process {other}: {message['error']}")
    return [message["result"] for message in messages]


def _exchange(text: bytes) -> list[bytes]:
    """Returns the texts of all processes."""
    import jax
    import numpy as np

    assert len(text) <= _MESSAGE_BYTES, "the result is too long"
    own = np.frombuffer(text.ljust(_MESSAGE_BYTES), np.uint8)
    sharding, gather = _gatherer()
    return [bytes(row) for row in np.asarray(gather(jax.make_array_from_process_local_data(sharding, own[None])))]


@functools.cache
def _gatherer() -> tuple[Any, Callable[[Any], Any]]:
    """Returns the sharding of rows over one device of each process, and a function that gathers them on each."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh([jax.local_devices(process_index=number)[0] for number in range(count())], ("process",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("process")), jax.jit(lambda rows: rows, out_shardings=everywhere)


@contextlib.contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turns an error of JAX that is due to the end of another process into one line.

    Raises:
        LostProcessError: another process has ended.
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except (RuntimeError, ValueError) as error:  # JAX has no type of its own for it
        if count() == 1 or not any(sign in str(error) for sign in _SIGNS):
            raise
        raise LostProcessError(str(error)) from None


def leave(status: int) -> None:
    """Ends this process at once if it is one of several, without waiting for the others as JAX would."""
    if count() > 1:
        with contextlib.suppress(OSError):
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        os._exit(status)
