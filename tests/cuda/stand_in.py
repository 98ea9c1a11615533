"""A GPU's stand-in: "cuda" is the CPU, so that what needs a GPU can be rehearsed without one.

As on a GPU
    devices      a tensor says cuda:0, and meets those of the CPU only where CUDA lets them meet
    kernels      csrc/*.cu on fibers (cuda_on_host.py), Triton's in its interpreter
    waiting      `torch._sleep` keeps a stream busy; what makes the host wait for it is told by
                 torch.cuda.set_sync_debug_mode, and refused while a graph is captured
    graphs       are replayed: each captured call is made again, into the same memory
    forks        a forked process cannot touch it

Not so: all runs at once and in order, so that a stream forgotten goes unseen; nothing is fast.
rehearse.py runs a program so.
"""

import contextlib
import ctypes
import os
import subprocess
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import cuda_on_host
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero,
    aten._unique2, aten.unique_consecutive, aten.bincount,
}  # fmt: skip
"""What hands numbers, or a shape that depends on them, to the host."""

MEETING = {aten.copy_, aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
"""Where a tensor of the CPU, of any shape, may meet one of the GPU; indices are moved first."""


GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
"""
"""So that torch, even where it was built without CUDA, changes to that device without asking."""


def build(folder):
    """Compiles the kernels for fibers, and torch's guard of a device that is not there."""
    cuda_on_host.build(folder)
    torch_folder = Path(torch.__file__).parent
    command = [cuda_on_host.compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", "-x", "c++", "-"]
    command += [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-lc10"]
    command += ["-o", folder / "guard.so"]
    subprocess.run(command, input=GUARD, text=True, check=True)


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU; its numbers are `held` by one of the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=GPU,
        )  # fmt: skip

    def __init__(self, held):
        self.held = held

    def data_ptr(self):
        return self.held.data_ptr()

    def record_stream(self, stream):
        pass

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")

    def __deepcopy__(self, memo):  # torch's own copies a storage, of which there is none
        return self.clone()

    def __dlpack__(self, **_):
        raise BufferError("the stand-in of a GPU hands nothing to other libraries")

    def __format__(self, spec):
        return format(self.item() if self.ndim == 0 else self, spec)

    def __repr__(self, **_):
        return f"{self.held!r} on {GPU}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


class Stream:
    """Busy from a sleep on until somebody waits for it."""

    cuda_stream = 0

    def __init__(self, device=None):
        self.busy = False
        STREAMS.append(self)

    def query(self):
        return not self.busy

    def synchronize(self):
        self.busy = False

    def wait_stream(self, other):
        pass

    def record_event(self):
        return SimpleNamespace(wait=lambda stream: None, record=lambda *_: None)


STREAMS = []
state = SimpleNamespace(stream=Stream(), graph=None, debug="default", forked=False)


class Graph:
    """The calls that are made while it is captured, to be made again, and all their memory."""

    def __init__(self):
        self.calls = []
        self.kept = []

    def replay(self):
        for call in self.calls:
            call()


@contextlib.contextmanager
def capturing(graph, **_):
    state.graph = graph
    try:
        yield
    finally:
        state.graph = None


@contextlib.contextmanager
def on_stream(stream):
    before, state.stream = state.stream, stream
    try:
        yield
    finally:
        state.stream = before


def synchronize(device=None):
    for stream in STREAMS:
        stream.synchronize()


def wait(func):
    """The host waits for the stream, which is not done in vain."""
    if state.graph is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {func}")
    if state.debug == "error":
        raise RuntimeError(f"called a synchronizing CUDA operation: {func}")
    if state.debug == "warn":
        warnings.warn(f"called a synchronizing CUDA operation: {func}", stacklevel=2)
    state.stream.synchronize()


def check_process():
    if state.forked:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")


def launch(call):
    """Makes a call of a kernel, and has a graph make it again."""
    check_process()
    if state.graph is not None:
        state.graph.calls.append(call)
    return call()


def held(value):
    return value.held if isinstance(value, OnGpu) else value


def dispatched(func, args, kwargs):
    """One of torch's operations, by the CPU."""
    packet = func.overloadpacket
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    here = [isinstance(x, OnGpu) for x in flat]
    device = kwargs.get("device")
    to_gpu = any(here) if device is None else torch.device(device).type == "cuda"
    if not (to_gpu or any(here)):
        return func(*args, **kwargs)
    check_process()
    apart = [x for x, on in zip(flat, here, strict=True) if not on and x.ndim]
    if any(here) and apart and packet not in MEETING:
        raise RuntimeError(f"Expected all tensors to be on the same device, cuda:0 and cpu: {func}")

    crossing = packet is aten._to_copy and to_gpu != any(here)
    crossing |= packet is aten.copy_ and here[0] != here[-1]
    crossing |= packet in MEETING - {aten.copy_} and any(x.dtype == torch.long for x in apart)
    crossing = crossing and flat[-1].numel() > 0
    blocking = not (kwargs.get("non_blocking") or (packet is aten.copy_ and args[2:3] == (True,)))
    masks = packet is aten.index and any(x is not None and x.dtype == torch.bool for x in args[1])
    if packet in WAITING or masks or (crossing and (blocking or state.graph is not None)):
        wait(func)

    if device is not None:
        kwargs = kwargs | {"device": CPU}
    kwargs.pop("pin_memory", None)
    own_args, own_kwargs = tree_map_only(OnGpu, held, (args, kwargs))
    made = func(*own_args, **own_kwargs)
    if state.graph is not None:
        state.graph.kept.append(made)

    returns = func._schema.returns
    if len(returns) == 1 and returns[0].alias_info and returns[0].alias_info.is_write:
        if state.graph is not None and here[0]:
            state.graph.calls.append(lambda: func(*own_args, **own_kwargs))
        return args[0] if args else kwargs["self"]
    if (
        state.graph is not None
        and to_gpu
        and not returns[0].alias_info
        and "empty" not in str(func)
    ):
        state.graph.calls.append(lambda: again(made, func(*own_args, **own_kwargs)))
    return tree_map_only(torch.Tensor, OnGpu, made) if to_gpu else made


def again(made, anew):
    for to, source in zip(tree_flatten(made)[0], tree_flatten(anew)[0], strict=True):
        if isinstance(to, torch.Tensor):
            to.copy_(source)


class Dispatch(TorchDispatchMode):
    """Tensors that are made on the GPU, or moved there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


class Names(TorchFunctionMode):
    """ "cuda" is cuda:0, which only a driver could tell; and what does not come by `Dispatch`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        kwargs = {name: named(value) for name, value in (kwargs or {}).items()}
        args = tuple(map(named, args))
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU:
            return func(*args, **kwargs | {"device": CPU}).to(GPU)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            whole = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in whole)
            args = (args[0], index, *args[2:])
        attends = func is torch.nn.functional.scaled_dot_product_attention
        if attends and isinstance(args[0], OnGpu):
            return OnGpu(func(*map(held, args), **{n: held(x) for n, x in kwargs.items()}))
        return func(*args, **kwargs)


def named(value):
    unnumbered = isinstance(value, torch.device) and value == torch.device("cuda")
    return GPU if unnumbered or (isinstance(value, str) and value == "cuda") else value


class Kernels:
    """fastground._cuda, with calls that a graph holds."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        function = getattr(self.module, name)
        if name in ("n_ln_n", "workspace_bytes", "batch_of"):
            return lambda *given: function(*map(held, given))
        return lambda *given: launch(lambda: function(*map(held, given)))


class Launcher:
    """A kernel of Triton's, with launches that a graph holds."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        def start(*given, **named):
            if any(isinstance(x, torch.Tensor) and not isinstance(x, OnGpu) for x in given):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
            run = self.function[grid]
            return launch(lambda: run(*map(held, given), **named))

        return start


def pinned(tensor, device=None):
    copy = tensor.clone()
    copy.pinned = True
    return copy


def install(folder):
    """From now on there is a GPU here; `build` has compiled what is needed into the folder."""
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "stand-in",
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(multi_processor_count=132),
        "is_bf16_supported": lambda *_: True,
        "synchronize": synchronize,
        "current_stream": lambda device=None: state.stream,
        "Stream": Stream,
        "stream": on_stream,
        "CUDAGraph": Graph,
        "graph": capturing,
        "is_current_stream_capturing": lambda: state.graph is not None,
        "set_sync_debug_mode": lambda mode: setattr(state, "debug", mode),
        "_sleep": lambda cycles: setattr(state.stream, "busy", True),
        "device_of": contextlib.nullcontext,
        "utilization": lambda device=None: 50,
        "mem_get_info": lambda device=None: (1 << 30, 1 << 30),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "_lazy_init": lambda: None,
    }
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    os.register_at_fork(after_in_child=lambda: setattr(state, "forked", True))
    ctypes.CDLL(str(folder / "guard.so"))
    for name, value in cuda.items():
        setattr(torch.cuda, name, value)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # by tensors of that class
    torch.Tensor.pin_memory = pinned
    torch.Tensor.is_pinned = lambda self, device=None: getattr(self, "pinned", False)
    Names().__enter__()
    Dispatch().__enter__()

    run = threading.Thread.run

    def in_modes(self):
        with Names(), Dispatch():
            run(self)

    threading.Thread.run = in_modes

    from fastground import dispatch, gpu
    from fastground.kernels import attention_rows as kernel

    (module,) = folder.glob("_cuda*")
    kernels = Kernels(cuda_on_host.load(module))
    dispatch.cuda_core = gpu.cuda_core = kernels
    kernel._logits, kernel._weights = Launcher(kernel._logits), Launcher(kernel._weights)
