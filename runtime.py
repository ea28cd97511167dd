"""Device, precision, seeds, ranks, files never half written, run log and resume. Nothing here is about emotion."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import datetime
import hashlib
import io
import json
import math
import os
import platform
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, ClassVar

__version__ = "0.2.0"

MOST_UNPACKED = 4  # times its size that a file of tensors may take in memory; torch packs nothing
LARGEST_TEXT = 2**28  # bytes of a text file, but for labels; a DeepMI file of five million utterances
LARGEST_LABELS = 2**30  # the single raters' labels of MSP-Podcast 2.0 have some 2**28
LARGEST_NESTED = 2**24  # characters of a JSON file, but for labels, that may have more than one level
TENSOR_TYPES = r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.\w+Storage"
LEGACY_PICKLES = 5  # one after the other, before the numbers: magic number, version, system, content, keys
PLAIN = (str, int, float, type(None))
# What does something else on a terminal or a page than to be read: control characters, line ends, changes of direction
UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def one_line(text: str) -> str:
    """The text as one line of readable length, whatever a file name or a label that it cites holds."""
    text = re.sub(f"[{UNPRINTABLE}]", lambda found: ascii(found[0])[1:-1], text)
    return text if len(text) <= 1000 else f"{text[:700]} [...] {text[-250:]}"


def tell(text: str) -> None:
    """A note or warning to the user, one line on standard error."""
    print(one_line(text), file=sys.stderr)


class UserError(Exception):
    """Something the user can mend. The message says which file, what was found, what was expected and what to do."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


# ---------------------------------------------------------------------------------------------------------------------
# Device, precision, seed


def choose_device(name: str):
    """Turn `--device` into a torch device.

    Args:
        name: `auto` (a CUDA GPU, else Apple's MPS, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.
    Returns:
        A `torch.device`.
    Raises:
        UserError: the name is unknown, or this machine has no such device.
    """
    import torch

    if num_ranks() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if ranks > gpus:
            raise UserError(f"{ranks} processes on this machine, which shows {gpus} CUDA GPUs; start one for each GPU.")
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    elif num_ranks() > 1 and name.startswith("cuda:"):
        raise UserError(f"--device {name}: several processes can't share one GPU; use --device auto.")
    if name == "auto":
        apple = torch.backends.mps.is_available() and num_ranks() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    known = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name)
    if not known:
        raise UserError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps.")
    if name.startswith("cuda") and int(known[1] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA GPUs; use --device auto."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available on this machine; use --device auto.")
    if name == "cpu":
        _keep_freed_memory()
    if known[1]:
        torch.cuda.set_device(int(known[1]))  # streams and captured steps take the current one
    return torch.device(name)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: given back, each batch would pay for fresh pages (2 % of an epoch on a CPU)."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the most that every glibc takes
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def choose_precision(device, precision: str) -> str:
    """`precision`, or `fp32` with a note where it is `bf16` and this CPU would only emulate that, many times slower."""
    import torch

    if precision == "bf16" and device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        able = torch.cpu.get_capabilities()
        if not any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2")):
            print(f"note: this processor has no bfloat16 arithmetic ({able['cpu_name']}); computing in fp32.")
            return "fp32"
    return precision


def autocast(device, precision: str):
    """Context in which matrix products run in `precision` (`fp32` or `bf16`); parameters stay float32."""
    import torch

    if precision == "bf16":
        # No weight is used twice in a pass, so a cache gains nothing, and a captured step must not find a cast in it.
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


def derived_seed(seed: int, *context: int) -> int:
    """A seed of its own for one place of a run, e.g. (epoch, stage).

    Every random step takes its seed from the run's seed and its place, so no generator state has to outlive an
    epoch and a resumed run draws what the uninterrupted one would have drawn.

    Returns:
        An int in [0, 2**31), the range that faiss, numpy and torch all accept.
    """
    import numpy as np

    return int(np.random.SeedSequence([seed, *context]).generate_state(1)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seed torch's generators (weight initialisation, dropout) on every device."""
    import torch

    torch.manual_seed(seed)


def sgd(parameters, rate: float, device):
    """Stochastic gradient descent without momentum or weight decay."""
    import torch

    return torch.optim.SGD(parameters, lr=rate, fused=device.type in ("cpu", "cuda"))


def adam(parameters, rate: float, device):
    """Adam without weight decay, fit for a `CapturedStep`."""
    import torch

    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(
        parameters,
        lr=torch.tensor(rate, device=device) if on_gpu else rate,
        fused=device.type in ("cpu", "cuda"),
        capturable=on_gpu,
    )
    optimizer._warned_capturable_if_run_uncaptured = True  # it would warn of the eager steps, which are meant
    return optimizer


def set_rate(optimizer, rate: float) -> None:
    """Another learning rate for the steps to come, captured ones too."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], float):
            group["lr"] = rate
        else:
            group["lr"].fill_(rate)


def optimizer_state(optimizer) -> dict:
    """What `load_optimizer` needs: the state of each parameter, on the CPU; the settings are the program's own."""
    state = optimizer.state_dict()["state"]
    return {number: {name: value.cpu() for name, value in of.items()} for number, of in state.items()}


def load_optimizer(optimizer, state: dict) -> None:
    """Give an optimizer the state of another one, whatever device that ran on.

    Raises:
        ValueError: it is the state of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if state.keys() != set(range(len(parameters))) or any(
        value.ndim and value.shape != parameters[number].shape for number, of in state.items() for value in of.values()
    ):
        raise ValueError("an optimizer's state of other parameters")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class CapturedStep:
    """A training step; on a CUDA GPU it is captured once as a CUDA graph, and replayed with one launch.

    The first calls run eagerly, since optimizers and libraries set themselves up then. The largest batch is captured;
    a smaller one (the last of an epoch) runs eagerly, and so does every call on other devices, with several ranks, or
    where the capture fails.
    """

    EAGER_CALLS = 3

    def __init__(self, function: Callable, device):
        """
        Args:
            function: takes tensors on `device`, returns one tensor, never waits for the device.
            device: a `torch.device`.
        """
        self.function = function
        self.capturable = device.type == "cuda" and num_ranks() == 1
        self._begin([])

    def _begin(self, shapes: list) -> None:
        """Nothing is captured; calls with tensors of these shapes are to be."""
        self.shapes, self.calls, self.graph = shapes, 0, None

    def __call__(self, *inputs):
        """What the function returns; overwritten by the next call."""
        if not self.capturable:
            return self.function(*inputs)
        shapes = [tensor.shape for tensor in inputs]
        if not self.shapes or shapes[0][0] > self.shapes[0][0]:
            self._begin(shapes)
        if shapes != self.shapes:
            return self.function(*inputs)
        self.calls += 1
        if self.calls <= self.EAGER_CALLS:
            return self._run_aside(inputs)
        if self.graph is None and not self._capture(inputs):
            return self.function(*inputs)
        for static, given in zip(self.inputs, inputs):
            static.copy_(given)
        self.graph.replay()
        return self.output

    def _run_aside(self, inputs: tuple):
        """Run on a stream that is not the default one, as every call before a capture must."""
        import torch

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            output = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        return output

    def _capture(self, inputs: tuple) -> bool:
        import torch

        # With the strides that they came with: rows that start aligned stay so.
        self.inputs = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # A thread may be bringing the next batch; only what this one does belongs to the step.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.output = self.function(*self.inputs)
        except RuntimeError as error:
            self.capturable = False
            print(f"note: the training step can't be captured ({str(error).splitlines()[0]}).", file=sys.stderr)
            return False
        self.graph = graph
        return True


# ---------------------------------------------------------------------------------------------------------------------
# Ranks: the processes of one run under torchrun. Without torchrun there is one, and nothing here does anything.


def num_ranks() -> int:
    """Processes of this run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, 0 the one that writes."""
    return int(os.environ.get("RANK", 0)) if num_ranks() > 1 else 0


def join_ranks() -> None:
    """Meet the other processes: gloo between CPUs, NCCL between GPUs."""
    # Each rank would warn that a joint step uses all weights although a step may use some of them.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from torch import distributed

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    # Long: while rank 0 packs the features of a large corpus the others wait.
    distributed.init_process_group(backend, timeout=datetime.timedelta(days=7))


def _meet() -> None:
    """Wait until every rank is here."""
    import torch

    sum_over_ranks(torch.zeros(1))  # on the CPU whatever computes, and so without a GPU for each rank


def leave_ranks() -> None:
    """Part from the other processes once all are done."""
    from torch import distributed

    _meet()
    distributed.destroy_process_group()


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 does the block before the others, which then find the files that it wrote."""
    if rank() > 0:
        _meet()
    yield
    if rank() == 0:
        _meet()


def own_share(count: int) -> slice:
    """Which of `count` things this rank does: as many as every other rank, but for one."""
    return slice(count * rank() // num_ranks(), count * (rank() + 1) // num_ranks())


def from_first_rank(make: Callable[[], object]):
    """What `make` returns on rank 0, on every rank; it is called there only."""
    if num_ranks() == 1:
        return make()
    from torch import distributed

    box = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(box, device="cpu")
    return box[0]


def gather_shares(own, count: int):
    """The rows of all ranks on rank 0.

    Args:
        own: tensor, shape (size of `own_share(count)`, ...).
        count: rows of all ranks together.
    Returns:
        Tensor, shape (count, ...), on rank 0 (on the CPU where there are several); None on the others.
    """
    if num_ranks() == 1:
        return own
    import torch
    from torch import distributed

    longest = -(-count // num_ranks())
    padded = own.new_zeros(longest, *own.shape[1:])
    padded[: len(own)] = own
    padded = padded.cpu()
    if rank() > 0:
        distributed.gather(padded)
        return None
    parts = [torch.empty_like(padded) for _ in range(num_ranks())]
    distributed.gather(padded, parts)
    sizes = [count * (i + 1) // num_ranks() - count * i // num_ranks() for i in range(num_ranks())]
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


def sum_over_ranks(tensor):
    """The sum of every rank's tensor, on every rank."""
    if num_ranks() == 1:
        return tensor
    import torch
    from torch import distributed

    total = tensor.clone(memory_format=torch.contiguous_format)  # gloo sums whatever lies beside a strided one
    distributed.all_reduce(total)
    return total


def seed_own_dropout(seed: int, *context: int) -> None:
    """Let every rank but the first go on with random numbers of its own, so that no two drop the same units."""
    if rank() > 0:
        seed_everything(derived_seed(seed, *context, rank()))


def as_on_first_rank(tensor):
    """A random tensor of rank 0, on every rank: GPUs of different models draw differently from one seed."""
    if num_ranks() > 1:
        from torch import distributed

        distributed.broadcast(tensor, 0)
    return tensor


def whole_batch(own, count: int):
    """The values of all ranks' parts of a batch, with their gradient: for statistics of the batch, such as CCC.

    Args:
        own: tensor, shape (size of `own_share(count)`,).
        count: size of the whole batch.
    Returns:
        Tensor, shape (count,), the same on every rank. Backward, each rank keeps the gradient of its own part.
    """
    if num_ranks() == 1:
        return own
    from torch.autograd import Function

    class WholeBatch(Function):
        @staticmethod
        def forward(context, part):
            whole = part.new_zeros(count)
            whole[own_share(count)] = part
            return sum_over_ranks(whole)

        @staticmethod
        def backward(context, gradient):
            return gradient[own_share(count)]

    return WholeBatch.apply(own)


def over_ranks(model, in_parts: bool = False):
    """The model, its gradients averaged over the ranks in every backward pass.

    Args:
        model: the network.
        in_parts: whether a pass may leave some of its weights without a gradient.
    """
    if num_ranks() == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, find_unused_parameters=in_parts)


@contextlib.contextmanager
def shielded_workers() -> Iterator[None]:
    """Processes that joblib starts within the block leave Ctrl-C, which a terminal sends to all, to this one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as tracker_of_joblib

    # Before the block: starting them within it would let the signal through again.
    resource_tracker.ensure_running()
    tracker_of_joblib.ensure_running()
    with _deaf_to(signal.SIGINT):
        yield


@contextlib.contextmanager
def _deaf_to(*signals: signal.Signals) -> Iterator[None]:
    """Within the block this thread, and processes that it starts, do not hear these signals; it hears them after it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------------------------------------------------------------
# Files and folders


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def output_file(path: Path) -> Path:
    """The file that an output's name stands for, which a link may lead to.

    Raises:
        UserError: there is something else than a file: a folder, a device.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if not path.name or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: no file that can be written (a folder, a device); give another name.")
    return path


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` if the block succeeds, remove it if not."""
    path = output_file(path)
    temporary = _temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file it could not take
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step: readers see the old file or the new one, never a part."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_together(contents: dict[Path, bytes | None]) -> None:
    """Write several files that belong together; those whose content is None are taken away.

    Only when all of them stand under temporary names do the old ones go, and then the new ones come in the order given.
    A run that is killed meanwhile leaves some missing, never new ones beside old ones.
    """
    with contextlib.ExitStack() as stack:
        for path, content in reversed(contents.items()):  # those that are entered first are renamed last
            if content is not None:
                stack.enter_context(write_atomically(path)).write_bytes(content)
        with _deaf_to(signal.SIGINT, signal.SIGTERM):
            for path in contents:
                output_file(path).unlink(missing_ok=True)
            stack.close()


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file: all of it or, where the disk is full or the process is stopped, nothing."""
    with open(path, "ab", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            rest = f"{line}\n".encode()
            while rest:
                rest = rest[stream.write(rest) :]
        except BaseException as error:
            stream.truncate(size)
            if isinstance(error, OSError):
                error.filename = str(path)
            raise


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """A UTF-8 text file, with or without byte order mark.

    Args:
        path: the file.
        largest: bytes that it may have.
    Raises:
        UserError: missing, no regular file, too large, not UTF-8, or with NUL bytes.
    """
    path = Path(path)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would wait for its writer
            raise UserError(f"{path}: no regular file; expected text, CSV or JSON.")
        if state.st_size > largest:
            raise UserError(f"{path}: {state.st_size:,} bytes; expected {largest:,} at most.")
        data = path.read_bytes()
        if b"\0" in data:
            raise UserError(f"{path}: holds NUL bytes, so it is not UTF-8 text; expected text, CSV or JSON.")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected text, CSV or JSON.") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise UserError(f"{twice!r} stands there twice")
    return found


def read_json_object(path: Path, of_labels: bool = False) -> dict:
    """A JSON file whose top level is an object, each key once.

    Args:
        path: the file.
        of_labels: whether it may be as large, and as nested, as label files are.
    Raises:
        UserError: missing, too large, not JSON, another top level, a key twice, or nested too deeply.
    """
    text = read_text(path, LARGEST_LABELS if of_labels else LARGEST_TEXT)
    try:
        if not of_labels and len(text) > LARGEST_NESTED and ("[" in text or text.count("{") > 1):
            # Empty lists and objects take twenty times the memory of their text.
            raise UserError(f"{len(text):,} characters, too many for lists or objects in it")
        content = json.loads(text, object_pairs_hook=_unique_keys)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except UserError as error:
        raise UserError(f"{path}: {error}.") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected one object with a value a file name.") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: holds half a character (an escape such as \\ud800); expected text.") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected one JSON object with a value a file name, found {type(content).__name__}.")
    return content


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def prepare_folder(folder: Path) -> Path:
    """Make an output folder, prove that it can be written, and clear what killed runs of this machine left in it.

    Raises:
        UserError: the folder can't be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary_name(folder / "write_test")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder}: can't be written ({error.strerror}); name another folder or mend its permissions."
        ) from None
    host = re.escape(socket.gethostname())
    for entry in os.scandir(folder):
        leftover = re.fullmatch(rf"\..*\.{host}\.(\d+)\.tmp", entry.name)
        if leftover and not _is_alive(int(leftover[1])):
            Path(entry.path).unlink(missing_ok=True)
    return folder


def digest(*parts: object) -> str:
    """SHA-256 (hex) over JSON-serialisable parts and raw bytes, for cache keys and run fingerprints."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def save_tensors(content: object, path: Path) -> None:
    """`torch.save` in one step; the same content gives the same bytes whatever the file is called."""
    import torch

    # By way of memory: torch writes a path's name into the archive, and hides a full disk behind an error of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with write_atomically(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> object:
    """`torch.load` onto the CPU that runs no code and takes no more memory than the file's size lets expect.

    Returns:
        Dense tensors of real numbers and plain values, in dicts, lists and tuples.
    Raises:
        UserError: the file is missing, damaged, holds anything else, or claims to hold more than its size allows.
    """
    import pickle

    import torch

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of odd files is told below
            _refuse_foreign_types(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(f"{path}: damaged, not a checkpoint that torch can read; get or train it anew.") from None
    except MemoryError:
        raise UserError(f"{path}: damaged, it claims more memory than this machine has.") from None
    except Exception as error:  # torch raises many kinds for a damaged archive
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: damaged, not a checkpoint that torch can read ({reason}); get or train it anew."
        ) from None
    _refuse_unplain(path, content)
    return content


def _is_archive(path: Path) -> bool:
    """Whether torch takes a file for an archive, and not for one of its older format: by the first four bytes."""
    with open(path, "rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _pickles_of(path: Path) -> list[IO[bytes]]:
    """The pickled parts of a file of tensors, once its archive, if it is one, has been looked at.

    torch looks neither at the checksums of an archive's parts nor at how far it unpacks.

    Raises:
        UserError: a part is damaged, or all of them unpack to many times the file's size.
        zipfile.BadZipFile, and others: it is no archive that can be read.
    """
    if not _is_archive(path):
        return [io.BytesIO(path.read_bytes())] * LEGACY_PICKLES
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(part.file_size for part in archive.infolist()), path.stat().st_size
        if unpacked > MOST_UNPACKED * size:
            raise UserError(f"{path}: refused, its {size:,} bytes unpack to {unpacked:,}; torch packs nothing.")
        if damaged := archive.testzip():
            raise UserError(f"{path}: damaged ({damaged} has another checksum); get or train it anew.")
        return [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("data.pkl")]


def _refuse_foreign_types(path: Path) -> None:
    """Raise `UserError` where a file of tensors asks for anything else than tensors and dicts.

    torch would let some of it pass that runs no code, but takes memory: `bytearray(10**11)` is a line.

    Raises:
        Exception: of many kinds, where it is damaged.
    """
    import pickletools

    for stream in _pickles_of(path):
        for operation, argument, _ in pickletools.genops(stream):
            if "GLOBAL" in operation.name or operation.name in ("INST", "EXT1", "EXT2", "EXT4"):
                name = str(argument).replace(" ", ".")
                if operation.name != "GLOBAL" or not re.fullmatch(TENSOR_TYPES, name):
                    raise UserError(
                        f"{path}: refused, since it asks for {name}; only tensors and plain values are read, anything "
                        "else could run code."
                    )


def _refuse_unplain(path: Path, content: object) -> None:
    """Raise `UserError` unless it is of tensors and plain values that the file has room for."""
    import torch

    room = MOST_UNPACKED * path.stat().st_size
    values, claimed, waiting = 0, 0, [content]
    while waiting:
        value = waiting.pop()
        inner: tuple = ()
        if isinstance(value, torch.Tensor):
            real = value.layout == torch.strided and not (value.is_complex() or value.is_quantized)
            if not real or value.device.type != "cpu":
                raise UserError(f"{path}: holds a tensor of an odd kind; expected dense ones of real numbers.")
            claimed += value.numel() * value.element_size()
        elif isinstance(value, dict):
            inner = (*value.keys(), *value.values(), getattr(value, "_metadata", None))
        elif isinstance(value, (list, tuple)):
            inner = tuple(value)
        elif not isinstance(value, PLAIN):
            raise UserError(f"{path}: holds a {type(value).__name__}; expected tensors and plain values.")
        values += 1 + len(inner)  # what is there twice counts twice, or looking through a short file would never end
        if max(values, claimed) > room:
            raise UserError(f"{path}: refused, it claims to hold more than its {path.stat().st_size:,} bytes can.")
        waiting += inner


# ---------------------------------------------------------------------------------------------------------------------
# A training run: its log, its resume file, its end


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"deepmi": __version__, "python": sys.version.split()[0]}
    for package in (
        "torch",
        "faiss-cpu",
        "faiss-gpu",
        "numpy",
        "scipy",
        "pandas",
        "scikit-learn",
    ):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _resume_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.resume")


def tell_if_unfinished(checkpoint: Path) -> None:
    """Say so if a checkpoint that is about to be used is the best so far of a run that has not ended."""
    if _resume_file(checkpoint).exists():
        tell(f"note: {checkpoint}: its training has not ended; this is the best so far.")


def refuse_divergence(losses, batches, names: list[str], title: str) -> None:
    """Stop at the first batch whose loss is not finite.

    Args:
        losses: tensor, shape (number of batches, losses of a batch).
        batches: positions of each batch's utterances.
        names: file names that the positions point to.
        title: what was being trained.
    Raises:
        UserError: with the batch and its files.
    """
    broken = (~losses.isfinite().all(dim=1)).nonzero()
    if len(broken):
        first = int(broken[0])
        files = ", ".join(names[i] for i in batches[first][:5].tolist())
        raise UserError(
            f"{title}: the loss of batch {first} is not finite (files {files}, ...). Look at their features, or try "
            "--precision fp32. The last saved state is kept."
        )


def _lock(path: Path) -> IO | None:
    """An open file that no other process can lock until it is closed or this process ends, however that happens.

    None where another process has locked it; without effect where system or file system know no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return io.BytesIO()
    while True:
        stream = open(path, "ab", buffering=0)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return None
        except OSError:
            return stream
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                return stream
        stream.close()  # its owner has ended, and removed it, since it was opened here


NO_BEST: dict = {"loss": None, "epoch": None, "weights": None}


def better_of(best: dict, loss: float, epoch: int, weights: dict) -> dict:
    """The best epoch so far, with a copy of its weights, which goes into the memory of the copy before.

    Args:
        best: what this returned for the epochs before; NO_BEST at first.
        loss: validation loss of this epoch.
        epoch: counted from 0.
        weights: state dict.
    Raises:
        UserError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"epoch {epoch}: the validation loss is not finite: training diverged, or the validation labels are all "
            "the same. Look at them, or try --precision fp32. The last saved state is kept."
        )
    if best["weights"] is not None and loss >= best["loss"]:
        return best
    kept = best["weights"]
    if kept is None:
        kept = {key: value.detach().clone() for key, value in weights.items()}
    else:  # in the memory of those before: new blocks of so many MB at odd times leave holes that nothing else fills
        for key, value in weights.items():
            kept[key].copy_(value.detach())
    return {"loss": loss, "epoch": epoch, "weights": kept}


class TrainingRun:
    """The log (one JSON line an epoch) and the resume file that lie beside a checkpoint.

    A state is saved whenever ten times the cost of a save has passed, so saving takes a tenth of a run at most and a
    kill costs seconds. Training that resumes from a state repeats the epochs after it with the same seeds.

    A hidden file beside them is locked while a run goes on, so that no second one writes the same files. A killed run
    leaves it there, but unlocked.
    """

    _locks: ClassVar[dict[Path, IO]] = {}  # of the runs of this process, by the locked file

    def __init__(self, checkpoint: Path, arguments: dict, inputs: dict, details: dict, resume: bool):
        """
        Args:
            checkpoint: the file this run will write; log and resume file take their names from it.
            arguments: what the user chose that changes the outcome.
            inputs: digests of the data the run reads.
            details: further facts for the log's first line (folders, corpus counts).
            resume: go on from a saved state where there is one.
        """
        self.checkpoint = Path(checkpoint)
        stem = self.checkpoint.name.removesuffix(".tar").rsplit(".", 1)[0]
        self.log_file = self.checkpoint.with_name(f"{stem}.log.jsonl")
        self.resume_file = _resume_file(self.checkpoint)
        self.lock_file = self.checkpoint.absolute().with_name(f".{self.checkpoint.name}.lock")
        self.picture = self.checkpoint.with_name(f"{stem}.png")
        self.identity = {"arguments": arguments, "inputs": inputs, "version": __version__}
        self.details = details
        self.resume = resume
        self.first_line: dict = {}
        self.log_is_ours = False  # until the first outputs are written, the log is that of the checkpoint before
        self.history: list[dict] = []
        self.best = NO_BEST
        self._last_save = time.monotonic()
        self._save_cost = 0.0

    def _log_lines(self) -> list[dict]:
        try:
            lines = [json.loads(line) for line in read_text(self.log_file).splitlines()]
        except (UserError, OSError, ValueError, RecursionError):
            return []
        return lines if all(isinstance(line, dict) for line in lines) else []

    def is_finished(self) -> bool:
        """Whether this very run (arguments, data, program) has ended before and its checkpoint is here; says so."""
        if not (self.resume and self.checkpoint.is_file()) or self.resume_file.exists():
            return False
        lines = self._log_lines()
        if len(lines) < 2 or lines[0].get("run") != self.identity or lines[-1].get("finished") is not True:
            return False
        if lines[-1].get("checkpoint") != digest(self.checkpoint.read_bytes()):
            return False  # another run has replaced it, and was stopped before it could write its own log
        print(f"{self.checkpoint}: trained already with these arguments on these data; --no-resume trains it anew.")
        return True

    def refuse_unlike_ranks(self, finished: bool) -> None:
        """Compare what this rank has found with what rank 0 has; to be called by all of them, after `start`.

        Args:
            finished: what `is_finished` said.
        Raises:
            UserError: other arguments, data or saved state, as where ranks see folders of their own.
        """
        here = digest(self.identity, finished, len(self.history))
        if from_first_rank(lambda: here) != here:
            raise UserError(
                f"{self.checkpoint}: this process has found another state of the run, or other data, than rank 0; all "
                "need --model-dir, the corpus and its norm terms on a common file system."
            )

    def start(self) -> dict | None:
        """Take the run's files for this process; return the saved state (on the CPU) to go on from, or None.

        Raises:
            UserError: another process is writing this run's files, or an unfinished run with other arguments or data
                lies here.
        """
        state = None
        self.first_line = {"run": self.identity, **self.details, "versions": _versions(), "git_commit": _git_commit()}
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.first_line["process"] = {"id": os.getpid(), "host": socket.gethostname(), "started": started}
        if rank() == 0:
            self._refuse_second_writer()
        if not self.resume:
            if rank() == 0:
                self.resume_file.unlink(missing_ok=True)  # given up now, or a kill before the first save revives it
        elif self.resume_file.exists():
            state = self._read_state()
            print(f"going on after {len(self.history)} epochs, saved in {self.resume_file}")
            self._write_log()
        else:
            self._tell_what_is_replaced()
        return state

    def _write(self, write_outputs: Callable[[], None]) -> None:
        """Write the outputs, and with the first of them the log that belongs to them."""
        write_outputs()
        if not self.log_is_ours:
            self._write_log()

    def _write_log(self) -> None:
        """The log of the epochs so far, in place of the one before."""
        if rank() == 0:
            write_text(self.log_file, "".join(json.dumps(line) + "\n" for line in [self.first_line, *self.history]))
            self.log_is_ours = True

    def _refuse_second_writer(self) -> None:
        self._unlock()  # an earlier run of this process
        lock = _lock(self.lock_file)
        if lock is None:
            try:
                who = "process {id} on {host}, since {started}".format(**json.loads(read_text(self.lock_file)))
            except (UserError, OSError, ValueError, LookupError, TypeError):
                who = "not known which"
            raise UserError(
                f"{self.checkpoint}: another run is writing it ({who}). Wait for that one to end, or name another "
                "--model-dir."
            )
        self._locks[self.lock_file] = lock
        atexit.register(self.release_files)
        with contextlib.suppress(OSError):  # a full disk; it only says who this is
            lock.truncate(0)
            lock.write(json.dumps(self.first_line["process"]).encode())

    def _unlock(self) -> None:
        self._release(self.lock_file)

    @classmethod
    def _release(cls, lock_file: Path) -> None:
        if lock := cls._locks.pop(lock_file, None):
            with contextlib.suppress(OSError):
                lock_file.unlink()  # while it is locked: nobody else has it then
            lock.close()

    @classmethod
    def release_files(cls) -> None:
        """Give up what the runs of this process have taken and not finished."""
        for lock_file in list(cls._locks):
            cls._release(lock_file)

    def _tell_what_is_replaced(self) -> None:
        lines = self._log_lines()
        if len(lines) > 1 and lines[-1].get("finished") is True and isinstance(lines[0].get("run"), dict):
            differences = self._differences(lines[0]["run"])
            tell(f"note: replaces {self.checkpoint}, a finished run ({differences}).")

    def _read_state(self) -> dict:
        with self.reading_state():
            saved = load_tensors(self.resume_file)
            identity, history = json.loads(saved["identity"]), json.loads(saved["history"])
            best, state = {key: saved["best"][key] for key in NO_BEST}, dict(saved["state"])
            if [record["epoch"] for record in history] != list(range(len(history))):
                raise ValueError("epochs are missing in its history")
            other = dict(identity)
        self._refuse_another_run(other)
        self.history, self.best = history, best
        return state

    @contextlib.contextmanager
    def reading_state(self) -> Iterator[None]:
        """Raise `UserError` where a saved state is damaged, or is not what the block expects of it."""
        try:
            yield
        except (UserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = (str(error).removeprefix(f"{self.resume_file}: ").splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self.resume_file}: the state of an unfinished run can't be read ({reason[:120]}). Start anew with "
                "--no-resume."
            ) from None

    def _differences(self, other: dict) -> str:
        """In which arguments and data another run's identity differs from this one's."""
        other = {name: of if isinstance(of, dict) or name == "version" else {} for name, of in other.items()}
        before, now = other.get("arguments", {}), self.identity["arguments"]
        differences = [
            f"{name} {before.get(name)} there, {now.get(name)} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        before, now = other.get("inputs", {}), self.identity["inputs"]
        differences += [
            f"other {name} data" for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
        ]
        if other.get("version") != __version__:
            differences.append(f"program version {other.get('version')} there, {__version__} now")
        return "; ".join(differences) or "the same arguments and data"

    def _refuse_another_run(self, other: dict) -> None:
        if other != self.identity:
            raise UserError(
                f"{self.resume_file}: an unfinished run of another kind lies here ({self._differences(other)}). Finish "
                "it with its own arguments, name another --model-dir, or give it up with --no-resume."
            )

    def end_epoch(self, record: dict) -> None:
        """Add an epoch to the log."""
        self.history.append(record)
        if self.log_is_ours:
            append_line(self.log_file, json.dumps(record))

    def keep_if_best(self, loss: float, epoch: int, weights: dict) -> None:
        """Keep a copy of the weights if their validation loss is the lowest so far; raises as `better_of`."""
        self.best = better_of(self.best, loss, epoch, weights)

    def save_if_due(self, make_state: Callable[[], dict], write_outputs: Callable[[], None]) -> None:
        """Write the outputs so far and the state, unless the last save is too recent to be worth it."""
        if rank() > 0 or time.monotonic() - self._last_save < 10 * self._save_cost:
            return
        begin = time.monotonic()
        self._write(write_outputs)
        content = {
            "identity": json.dumps(self.identity),
            "history": json.dumps(self.history),
            "best": self.best,
            "state": make_state(),
        }
        save_tensors(content, self.resume_file)
        self._last_save = time.monotonic()
        self._save_cost = self._last_save - begin

    def finish(self, write_outputs: Callable[[], None]) -> None:
        """Write the outputs for good, mark the log, remove the resume file and say where all is."""
        if rank() > 0:
            return
        self._write(write_outputs)
        facts = {"best_epoch": self.best["epoch"], "validation_loss": self.best["loss"]}
        self.end_epoch({"finished": True, **facts, "checkpoint": digest(self.checkpoint.read_bytes())})
        self.resume_file.unlink(missing_ok=True)
        self._unlock()
        print(f"best validation loss {self.best['loss']:.4f} at epoch {self.best['epoch']}")
        print("\n".join(f"wrote {path}" for path in (self.checkpoint, self.log_file, self.picture)))

    def facts(self) -> dict:
        """What a checkpoint should remember of its run: the chosen arguments and which epoch it is from."""
        return self.identity["arguments"] | {"best_epoch": self.best["epoch"], "validation_ccc_loss": self.best["loss"]}
