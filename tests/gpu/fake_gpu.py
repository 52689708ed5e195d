"""Runs scripts as if there were an NVIDIA GPU, to find what would fail there alone.

A tensor on the GPU is one of PyTorch's fake tensors: it has a shape, a dtype and a
device, and no numbers. What is on the CPU is real. So every operation's shapes, dtypes
and devices are checked as on a GPU, and it can be counted what is launched, how much
memory is held, and which line waits.

    python fake_gpu.py LIBRARY      LIBRARY is fake_gpu.cpp, compiled by test_gpu.py

reads a job (a line of JSON, see run_job) at a time and answers each with a line of
JSON. Every job is run by a copy of this process, which has imported what takes seconds.
"""

import collections
import contextlib
import ctypes
import io
import json
import os
import runpy
import sys
import traceback
import types
import weakref

if __name__ == "__main__":
    library = ctypes.CDLL(os.path.abspath(sys.argv[1]))  # before torch looks for GPUs

import tiktoken  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

aten = torch.ops.aten
FILLS = (aten.normal_.default, aten.uniform_.default, aten.zero_.default)
SIZES = (aten.nonzero.default, aten.masked_select.default, aten.equal.default)
INDICES = (aten.index.Tensor, aten.index_put_.default)


def fake(value):
    return isinstance(value, FakeTensor)


def writes_nothing(func):
    """Whether an operation only makes a view, or takes memory: without a kernel."""
    return func.is_view or any(word in func.__name__ for word in ("empty", "view"))


class FakeGPU(TorchDispatchMode):
    """While it is entered, tensors on "cuda" are fake, and counted."""

    def __init__(self, script):
        super().__init__()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.script = script
        self.sizes = {}  # of the storages that are alive, in bytes
        self.known = {}  # the numbers in small ones that were copied from the CPU
        self.now = self.peak = self.largest = 0  # bytes; the last in elements
        self.launched = 0  # kernels
        self.waited = 0  # the value of launched at the last wait
        self.waits = (
            collections.Counter()
        )  # of each line: how often it waited for kernels
        self.attention = set()  # what scaled_dot_product_attention was called with

    def line(self):
        """The line of the script that is being run, and the one inside of a function,
        if any.
        """
        frame, lines = sys._getframe(), []
        while frame is not None:
            if frame.f_code.co_filename == self.script:
                lines.append(frame.f_lineno)
            frame = frame.f_back
        with open(self.script, encoding="utf-8") as file:
            text = file.read().split("\n")
        return "\n".join(
            dict.fromkeys(text[n - 1].strip() for n in (lines[-1:] + lines[:1]))
        )

    def wait(self, kind):
        """Note that the CPU waits here until the GPU is done, if that has something to
        do.
        """
        if self.launched > self.waited:
            self.waits[f"{kind}: {self.line()}"] += 1
        self.waited = self.launched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        to = kwargs.get("device")
        to = None if to is None else torch.device(to).type
        if not any(issubclass(t, FakeTensor) for t in types):
            if to == "cuda":
                return self.make(func, args, kwargs)
            return self.on_cpu(func, args, kwargs)
        if to == "cpu":  # a copy that is read
            self.wait("read")
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if (
            func is aten._local_scalar_dense.default
        ):  # item(), float(), if, format() ...
            self.wait("read")
            known = self.known.get(args[0].untyped_storage()._cdata)
            ones = torch.ones((), dtype=args[0].dtype)
            return (ones if known is None else known[args[0].storage_offset()]).item()
        if func is aten.copy_.default and fake(args[0]) != fake(args[1]):
            self.wait("copy")
            if not fake(args[0]):
                return args[0]
            args = (args[0], self.upload(args[1]), *args[2:])
        if func in SIZES:  # the size of the result is read, or the result itself
            self.launched += 1
        if func is aten.nonzero.default:
            self.wait("size")
            return self.new(args[0].numel(), args[0].dim(), dtype=torch.int64)
        if func is aten.masked_select.default:
            self.wait("size")
            return self.new(args[0].numel(), dtype=args[0].dtype)
        if func is aten.equal.default:
            self.wait("read")
            return True
        if func in INDICES and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            if func is aten.index_put_.default and args[2].numel() == 1:
                self.launched += 1  # is a masked_fill_
                return args[0]
            self.launched += 1
            self.wait("size")  # taken as if nothing was masked out
            indices = []
            for i in args[1]:
                some = i is not None and i.dtype == torch.bool
                indices += (
                    [self.new(i.numel(), dtype=torch.int64)] * i.dim() if some else [i]
                )
            args = (args[0], indices, *args[2:])
        if func is aten.lift_fresh.default:
            return args[0]
        return self.launch(func, args, kwargs)

    def on_cpu(self, func, args, kwargs):
        if func is aten._pin_memory.default:
            copy = args[0].clone()
            copy.in_pinned_memory = True
            return copy
        if func is aten.is_pinned.default:
            return hasattr(args[0], "in_pinned_memory")
        if func in FILLS and args[0].numel() > 2**16:
            return args[0]  # takes long, and matters not
        return func(*args, **kwargs)

    def make(self, func, args, kwargs):
        """A tensor that comes onto the GPU: a copy, or a new one."""
        if func is not aten._to_copy.default:
            return self.launch(func, args, kwargs)
        if not (kwargs.get("non_blocking") and hasattr(args[0], "in_pinned_memory")):
            self.wait("copy")
        return self.upload(args[0], kwargs.get("dtype"))

    def upload(self, tensor, dtype=None):
        copy = self.new(*tensor.shape, dtype=dtype or tensor.dtype)
        if tensor.numel() < 100:
            self.known[copy.untyped_storage()._cdata] = tensor.flatten().to(copy.dtype)
        return copy

    def new(self, *shape, dtype):
        with self.mode:
            return self.hold(torch.empty(shape, dtype=dtype, device="cuda"))

    def launch(self, func, args, kwargs):
        if func._schema.is_mutable and fake(args[0]):
            self.known.pop(args[0].untyped_storage()._cdata, None)
        with self.mode:
            out = func(*args, **kwargs)
        for tensor in filter(fake, tree_leaves(out)):
            if tensor.fake_device.type != "cuda":
                raise RuntimeError(
                    f"{func} leaves its result on the cpu, its tensors are on cuda"
                )
            self.hold(tensor)
        self.launched += not writes_nothing(func)
        return out

    def hold(self, tensor):
        """Add the memory of a tensor, another's or its own, to what is held."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            size = self.sizes[storage._cdata] = -(-storage.nbytes() // 512) * 512
            weakref.finalize(storage, self.drop, storage._cdata)
            self.now += size
            self.peak = max(self.peak, self.now)
            self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
        return tensor

    def drop(self, key):
        self.now -= self.sizes.pop(key)
        self.known.pop(key, None)


def fast_kernel(q, k, v, mask, causal, gpu):
    """The kernel that PyTorch takes on a GPU: "flash", "efficient", or "" if both
    refuse.

    After can_use_flash_attention and can_use_mem_efficient_attention in aten's
    sdp_utils.cpp.
    """
    half, hs = q.dtype != torch.float32, q.shape[-1]
    multiple = 16 // q.element_size() if gpu["major"] >= 8 or half else 1
    same = k.shape == v.shape and q.shape[:2] == k.shape[:2] and k.shape[3] == hs
    whole = all(
        x.dim() == 4 and x.stride(-1) == 1 and x.shape[2] > 0 for x in (q, k, v)
    )
    if not same or not whole or q.dtype == torch.float64:
        return ""
    if gpu["major"] < 8 and q.dtype == torch.bfloat16:
        return ""
    square = not causal or q.shape[2] == k.shape[2]
    if mask is None and half and gpu["major"] >= 8 and hs <= 256 and square:
        return "flash"
    if any(
        n % multiple
        for n in (hs, *(x.storage_offset() for x in (q, k, v) if x.numel()))
    ):
        return ""
    return "efficient" if mask is None or mask.stride(-1) == 1 else ""


def attention(
    machine, gpu, real, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False
):
    """F.scaled_dot_product_attention, whose own choice of a kernel needs a real GPU."""
    mask = attn_mask
    if not any(map(fake, (q, k, v, mask))):
        return real(q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=is_causal)
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        small = (torch.float16, torch.bfloat16, torch.float32)  # what autocast changes
        given = (q, k, v, mask)
        q, k, v, mask = (
            x.to(half) if x is not None and x.dtype in small else x for x in given
        )
    given = [x for x in (q, k, v, mask) if x is not None]
    if not all(map(fake, given)):
        raise RuntimeError(
            f"attention on different devices: {[str(x.device) for x in given]}"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise RuntimeError(f"attention of different dtypes: {[x.dtype for x in given]}")
    if mask is not None and mask.dtype not in (torch.bool, q.dtype):
        raise RuntimeError(
            f"attention's mask is of {mask.dtype}, not bool or {q.dtype}"
        )
    kernel = fast_kernel(q, k, v, mask, is_causal, gpu)
    about = (
        list(q.shape),
        list(k.shape),
        str(q.dtype),
        mask is not None and list(mask.shape),
    )
    if not kernel:
        raise RuntimeError(f"attention without a fast kernel: {about}")
    machine.attention.add(json.dumps([kernel, *about]))
    if kernel == "flash":
        return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[
            0
        ]
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        if (
            mask.shape[-1] % 16
        ):  # the kernel's own copy has rows that start at such a multiple
            mask = F.pad(mask, (0, -mask.shape[-1] % 16))[..., : mask.shape[-1]]
        mask = mask.expand(*q.shape[:3], k.shape[2])
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, mask, q.requires_grad, dropout_p, is_causal)[0]


def pretend(gpu):
    """Have torch.cuda speak of a GPU: its name, its memory (GiB) and its compute
    capability.
    """
    half = gpu["major"] >= 8
    about = {"name": gpu["name"], "major": gpu["major"], "minor": 0}
    about = types.SimpleNamespace(total_memory=int(gpu["memory"] * 2**30), **about)
    for name, value in {
        "_lazy_init": None,
        "set_device": None,
        "current_device": 0,
        "device_count": 1,
        "is_available": True,
        "is_initialized": True,
        "get_device_name": gpu["name"],
        "get_device_properties": about,
        "manual_seed_all": None,
    }.items():
        setattr(torch.cuda, name, lambda *args, value=value: value)
    torch.cuda.is_bf16_supported = lambda including_emulation=True: (
        half or including_emulation
    )


def move(self, device):
    """Module.to: parameters can't be changed in place to be fake, but shared ones stay
    shared.
    """
    moved = {}
    for module in self.modules():
        for held in (module._parameters, module._buffers):
            for name, x in held.items():
                if x is not None and id(x) not in moved:
                    moved[id(x)] = x.detach().to(device)
                    if held is module._parameters:
                        moved[id(x)] = torch.nn.Parameter(moved[id(x)], x.requires_grad)
                held[name] = x if x is None else moved[id(x)]
    return self


def run_job(script, args, folder, gpu, then=""):
    """Run a script with its arguments in a folder, then some code among its names."""
    os.chdir(folder)
    pretend(gpu)
    torch.nn.Module.to = move
    FakeTensor.__format__ = lambda self, spec: format(self.item(), spec)
    torch._C._set_only_lift_cpu_tensors(
        True
    )  # torch.tensor(..., device="cuda") is made on the CPU
    toy = types.SimpleNamespace(encode_ordinary=lambda s: [*map(ord, s)], eot_token=0)
    toy.decode = lambda ids: "".join(map(chr, ids))
    tiktoken.get_encoding = lambda name: toy  # the real one is a download
    really = torch.save, F.scaled_dot_product_attention, torch.tensor

    def tensor(data, **kwargs):
        if isinstance(
            data, (list, tuple)
        ):  # reads its elements out of the sight of modes
            data = [x.item() if fake(x) else x for x in data]
        return really[2](data, **kwargs)

    torch.tensor = tensor

    def save(value, file):  # a single number stands for all
        def real(x):
            return torch.ones((), dtype=x.dtype).expand(x.shape) if fake(x) else x

        really[0](tree_map(real, value), file)

    torch.save = save
    machine = FakeGPU(script)
    F.scaled_dot_product_attention = lambda *args, **kwargs: attention(
        machine, gpu, really[1], *args, **kwargs
    )
    out, err, code, names = io.StringIO(), io.StringIO(), 0, {}
    sys.argv = [script, *args]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with machine:
                names = runpy.run_path(script, run_name="__main__")
                names["machine"] = machine
                exec(then, names)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            print(end.code, file=err)
        except BaseException:
            code = 1
            traceback.print_exc()
    result = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    result |= {
        name: getattr(machine, name)
        for name in ("peak", "largest", "launched", "waits")
    }
    return result | {
        "attention": sorted(machine.attention),
        "answer": names.get("answer"),
    }


def serve():
    library.install_guard()
    pretend({"name": "", "memory": 1, "major": 9})
    with (
        FakeGPU(""),
        torch.no_grad(),
    ):  # imports what PyTorch does not before it is needed
        x = torch.zeros(4, 4, device="cuda")
        F.cross_entropy(
            F.gelu(F.layer_norm(x, (4,)) @ x), torch.arange(4, device="cuda")
        )
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                answer = json.dumps(run_job(**json.loads(line)))
                with open(write, "w") as file:
                    file.write(answer)
            finally:
                os._exit(0)
        os.close(write)
        with open(read) as file:
            answer = file.read()
        os.waitpid(child, 0)
        print(
            answer or json.dumps({"code": -1, "err": "the process ended early"}),
            flush=True,
        )


if __name__ == "__main__":
    serve()
