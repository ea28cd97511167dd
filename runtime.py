"""Device, precision, seeds, captured steps, ranks, signals, what is told to the user; no emotion, no files."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import platform
import re
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator

__version__ = "0.3.0"
UNLABELED_SEED = 99  # the original's for the draw of the unlabeled set, the same for every run
JOIN_PATIENCE = 10  # seconds without the other ranks after which that is said

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


def derived_seed(seed: int, *place: int | str) -> int:
    """The seed of one random step, from the run's seed and the step's place in the run.

    No generator state has to outlive an epoch, so a resumed run draws what an uninterrupted one would have drawn.

    Args:
        seed: the run's.
        place: what is drawn, and where, e.g. ("k-means", epoch, phase). Different places have different seeds.
    Returns:
        An int in [0, 2**31), the range that faiss, numpy and torch all accept.
    """
    import numpy as np

    key = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in place)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0] >> 1)


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
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    note = threading.Timer(JOIN_PATIENCE, tell, [f"note: waiting for {num_ranks()} processes to meet at {where}."])
    note.daemon = True
    note.start()
    # Long: while rank 0 packs the features of a large corpus the others wait.
    distributed.init_process_group(backend, timeout=datetime.timedelta(days=7))
    note.cancel()


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


def seed_own_dropout(seed: int, *place: int | str) -> None:
    """Give every rank but the first its own random numbers, so that no two drop the same units."""
    if rank() > 0:
        seed_everything(derived_seed(seed, "dropout", *place, rank()))


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


# ---------------------------------------------------------------------------------------------------------------------
# Signals


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
    with deaf_to(signal.SIGINT):
        yield


@contextlib.contextmanager
def deaf_to(*signals: signal.Signals) -> Iterator[None]:
    """Within the block this thread, and processes that it starts, do not hear these signals; it hears them after it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
