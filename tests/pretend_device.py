"""A pretend accelerator: tensors that say that they are elsewhere while their data lies on the CPU.

Inside `Rehearsal`, every operation on such tensors runs on the CPU. One that mixes the devices fails, as it would on a
GPU, and every time the host waits for the device is noted, with the line of code that made it wait: a value is read
(`item`, `tolist`, `bool`), the shape of a result depends on values (`nonzero`, boolean indices), or memory is copied
without `non_blocking`, or from memory that is not pinned. (`torch.tensor` and `new_tensor`, which do that too, fail.)
"""

import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).parents[1]
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
# Results of a shape, or of Python numbers, that the host has to be told.
QUESTIONS = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default),
    *(aten.repeat_interleave.Tensor, aten.is_nonzero.default, aten.bincount.default),
}
PINNED = "pretend_pinned"
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class MixedDevices(RuntimeError):
    """An operation met tensors of both devices."""


class PretendTensor(torch.Tensor):
    """`data` on the CPU behind a tensor that says it is elsewhere."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=DEVICE,
        )

    def __init__(self, data):
        self.data_on_cpu = data

    def __repr__(self):
        return f"Pretend{tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of the rehearsal")


# A name that torch reserves and no backend of this build has taken; its gradients run on the calling thread.
DEVICE = torch.device("lazy", 0)


class Rehearsal(TorchDispatchMode):
    """`waits`: of the host for the device, as (operation, file:line of this project) -> times."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __enter__(self):
        # Two methods that torch does not dispatch.
        self._methods = torch.Tensor.pin_memory, torch.Tensor.tolist
        torch.Tensor.pin_memory = self._pin
        torch.Tensor.tolist = lambda tensor: self._tolist(tensor)
        return super().__enter__()

    def __exit__(self, *exception):
        torch.Tensor.pin_memory, torch.Tensor.tolist = self._methods
        return super().__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = any(isinstance(x, PretendTensor) for x in tensors)
        to = kwargs.get("device")
        to_there = to is not None and torch.device(to).type == DEVICE.type
        if not there and not to_there:
            return function(*args, **kwargs)
        if function in COPIES:
            return self._copy(function, args, kwargs)
        alien = [x for x in tensors if not isinstance(x, PretendTensor) and x.dim()]
        if alien:
            raise MixedDevices(f"{function} takes {[tuple(x.shape) for x in alien]} from the CPU at {place()}")
        by_values = function in INDEXED and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        if function in QUESTIONS or by_values:
            self._note(str(function))
        return self._run(function, args, kwargs, tensors)

    def _run(self, function, args, kwargs, tensors):
        """On the CPU; what is written in place, or is a view of an input, keeps being so."""
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        here = tree_map(on_cpu, (args, kwargs))
        owners = {id(x.data_on_cpu): x for x in tensors if isinstance(x, PretendTensor)}
        result = CUDA_ONLY.get(function, function)(*here[0], **here[1])

        def wrapped(x):
            if not isinstance(x, torch.Tensor):
                return x
            return owners[id(x)] if id(x) in owners else PretendTensor(x)

        return tree_map(wrapped, result)

    def _copy(self, function, args, kwargs):
        source = args[1] if function is aten.copy_.default else args[0]
        to = kwargs.pop("device", None)
        if function is aten.copy_.default:
            to = args[0].device
        to_there = isinstance(source, PretendTensor) if to is None else torch.device(to).type == DEVICE.type
        asynchronous = kwargs.pop("non_blocking", False) or (len(args) > 2 and args[2])
        if to_there != isinstance(source, PretendTensor) and not (source.dim() == 0 and to_there):
            pinned = asynchronous and (not to_there or hasattr(source, PINNED))
            if not pinned:
                self._note(f"copy to the {'device' if to_there else 'host'}")
        kwargs.pop("pin_memory", None)
        here = tree_map(on_cpu, (args, kwargs))
        result = function(*here[0], **here[1])
        if function is aten.copy_.default:
            return args[0]
        if result is here[0][0]:
            result = result.clone()
        return PretendTensor(result) if to_there else result

    @staticmethod
    def _pin(tensor):
        if not tensor.is_cpu:
            raise RuntimeError("only dense CPU tensors can be pinned")
        pinned = tensor.clone()
        setattr(pinned, PINNED, True)
        return pinned

    def _tolist(self, tensor):
        if isinstance(tensor, PretendTensor):
            self._note("tolist")
        return self._methods[1](on_cpu(tensor))

    def _note(self, what):
        self.waits[what, place()] += 1


def on_cpu(x):
    return x.data_on_cpu if isinstance(x, PretendTensor) else x


def place():
    """The innermost line of this project's code, or of a library where none is on the stack."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(str(ROOT / "code")):
            return f"{Path(frame.filename).relative_to(ROOT / 'code')}:{frame.name}"
    return "elsewhere"


def _addmm_in_fp32(result, first, second, out_dtype, *, out):
    return out.copy_(result.to(out_dtype) + first.to(out_dtype) @ second.to(out_dtype))


CUDA_ONLY = {aten.addmm.dtype_out: _addmm_in_fp32}
