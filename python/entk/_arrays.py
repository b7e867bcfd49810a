"""Borrow any array on the host as NumPy memory, or say why that cannot be done exactly.

Libraries are told apart by the module a class comes from, so that nothing heavy is imported here.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from entk._errors import DTypeError, InputError

AnyArray: TypeAlias = np.ndarray[Any, Any]

SUPPORTED = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
# Every value of these types is a float32: the rule for the type of a kernel.
NARROW = frozenset({"float32", "float16", "bfloat16", "int8", "int16", "uint8", "uint16", "bool"})
# https://dmlc.github.io/dlpack/latest/c_api.html: host memory, pinned or not, needs no transfer.
_HOST_DEVICES = {1, 3, 11}
_DEVICES = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda", 14: "oneapi"}


@dataclass(frozen=True)
class Host:
    """An array that the core can read: borrowed memory and the type its bytes stand for.

    Attributes
    ----------
    array : numpy.ndarray
        A view of the caller's memory with any strides and byte order; bfloat16 as ``uint16``.
    dtype : str
        One of `SUPPORTED`.
    """

    array: AnyArray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        shape: tuple[int, ...] = self.array.shape
        return shape

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, whether or not strides make some of them the same."""
        return int(self.array.nbytes)

    def view(self, array: AnyArray) -> Host:
        """Return `array`, cut from or made of this one, with the same meaning."""
        return Host(array, self.dtype)

    def values(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return a float64 copy, exact but for integers beyond 2**53."""
        if self.dtype == "bfloat16":
            wide = (self.array.astype(np.uint32) << np.uint32(16)).view(np.float32)
            # A signalling NaN is as good as any other.
            with np.errstate(invalid="ignore"):
                return wide.astype(np.float64)
        return self.array.astype(np.float64)

    def native(self) -> AnyArray:
        """Return the array under its own NumPy type; bfloat16 needs ``ml_dtypes``."""
        if self.dtype != "bfloat16":
            return self.array
        import ml_dtypes

        return self.array.view(ml_dtypes.bfloat16)


def host(x: object, what: str) -> Host:
    """Borrow `x` as host memory.

    Parameters
    ----------
    x : array-like
        NumPy array of any strides and byte order, memmap, JAX array on the CPU, torch CPU tensor
        (``requires_grad``, non-contiguous and bfloat16 included), anything with ``__array__`` or
        DLPack, or a nested sequence of numbers. Only sequences and arrays that live in files of
        other libraries (h5py, Zarr) are read into memory; everything else is borrowed.
    what : str
        What the array is, to begin messages with: ``"layer 'fc1' activations"``.

    Raises
    ------
    DTypeError
        For a type whose values float64 cannot hold, or an array on another device.
    """
    if isinstance(x, Host):
        return x
    origin = _origin(x)
    if origin == "torch":
        return _from_torch(x, what)
    if origin == "jax":
        _check_jax(x, what)
    elif not isinstance(x, np.ndarray):
        _check_foreign(x, origin, what)
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError(
            f"{what}: {_class(x)} is not supported, since its masked entries have no value; "
            "fill or drop them yourself"
        )
    return _from_numpy(_as_numpy(x, what), x, what)


def common_dtype(dtypes: list[str]) -> np.dtype[Any]:
    """Return float32 if it holds every value of all `dtypes`, else float64."""
    return np.dtype(np.float32 if all(d in NARROW for d in dtypes) else np.float64)


def _origin(x: object) -> str:
    """Return the top package that the class of `x` comes from, "jax" for jaxlib."""
    packages = {c.__module__.partition(".")[0] for c in type(x).__mro__}
    if "torch" in packages:
        return "torch"
    if packages & {"jax", "jaxlib"}:
        return "jax"
    return type(x).__module__.partition(".")[0]


def _class(x: object) -> str:
    cls = type(x)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def _wrong_device(device: object, what: str) -> DTypeError:
    return DTypeError(f"{what}: array lives on {device}; move it to the CPU")


def _from_torch(x: Any, what: str) -> Host:
    torch = sys.modules["torch"]
    if not isinstance(x, torch.Tensor):
        raise DTypeError(f"{what}: {_class(x)} is not an array")
    name = str(x.dtype).removeprefix("torch.")
    if x.device.type != "cpu":
        raise _wrong_device(x.device, what)
    if x.layout != torch.strided:
        raise DTypeError(f"{what}: torch tensor of layout {x.layout}; use x.to_dense()")
    if name.startswith("complex"):
        raise _complex(what)
    if name not in SUPPORTED:
        raise _unsupported(f"torch.{name}", what)
    try:
        # A bit view, because NumPy has no bfloat16 and torch no way to make one.
        bits = x.detach().resolve_neg()
        array = (bits.view(torch.uint16) if name == "bfloat16" else bits).numpy()
    except (RuntimeError, TypeError) as error:
        raise DTypeError(f"{what}: {_class(x)} holds no plain memory ({error})") from error
    return Host(array, name)


def _check_jax(x: Any, what: str) -> None:
    if not hasattr(x, "devices") or "Tracer" in type(x).__name__:
        raise DTypeError(f"{what}: {_class(x)} is not an array with values; call outside of jit")
    for device in x.devices():
        if device.platform != "cpu":
            raise _wrong_device(f"{device.platform}:{device.id}", what)


def _check_foreign(x: Any, origin: str, what: str) -> None:
    """Refuse what NumPy would convert without a word, though not faithfully."""
    if origin == "cupy":
        raise _wrong_device(f"cuda:{x.device.id}", what)
    if hasattr(x, "__dlpack_device__"):
        kind, number = x.__dlpack_device__()
        if int(kind) not in _HOST_DEVICES:
            raise _wrong_device(f"{_DEVICES.get(int(kind), 'device')}:{number}", what)
    if origin == "zarr":
        _check_chunks(x, what)
    if origin == "pandas":
        types = x.dtypes if hasattr(x, "columns") else [x.dtype]
        strange = [t for t in types if not isinstance(t, np.dtype)]
        if strange:
            raise DTypeError(
                f"{what}: {_class(x)} of type {strange[0]} may hold NA, which is no number; "
                "use x.to_numpy(dtype='float64', na_value=...) yourself"
            )


def _check_chunks(x: Any, what: str) -> None:
    """Warn of chunks that are not there: they read as the fill value, whatever that is."""
    there, of = getattr(x, "nchunks_initialized", 0), getattr(x, "nchunks", 0)
    if there < of:
        warnings.warn(
            f"{what}: {of - there:,} of {of:,} chunks of the Zarr array are missing and read as "
            f"its fill value {x.fill_value!r}; if they were lost, write them again",
            UserWarning,
            stacklevel=2,
        )


def _as_numpy(x: Any, what: str) -> AnyArray:
    try:
        array = np.asarray(x)
    except ValueError as error:
        if isinstance(x, list | tuple) and "inhomogeneous" in str(error):
            raise DTypeError(
                f"{what}: ragged nested sequence; rows must have equal length"
            ) from error
        raise InputError(f"{what}: {_class(x)} cannot be read as an array: {error}") from error
    except (TypeError, RuntimeError) as error:
        raise DTypeError(f"{what}: {_class(x)} cannot be read as an array: {error}") from error
    if array.dtype == object and array.ndim == 0 and hasattr(x, "__dlpack__"):
        return np.from_dlpack(x)
    return array


def _from_numpy(array: AnyArray, given: object, what: str) -> Host:
    dtype = array.dtype
    if dtype.name == "bfloat16":
        return Host(array.view(np.uint16), "bfloat16")
    if dtype.kind == "c":
        raise _complex(what)
    if dtype.kind == "V" and dtype.type is np.void and dtype.fields is None:
        if dtype.itemsize == 2:
            raise DTypeError(
                f"{what}: dtype V2 may be bfloat16 that lost its type in .npy; "
                "pass view(ml_dtypes.bfloat16)"
            )
        raise _unsupported(f"dtype {dtype.str}", what)
    if dtype.kind == "f" and dtype.itemsize > 8:
        raise DTypeError(
            f"{what}: {dtype.name} not supported (would lose precision silently); "
            "cast to float64 yourself"
        )
    if dtype.name not in SUPPORTED:
        raise _unsupported(f"{_class(given)} of dtype {dtype}", what)
    return Host(array, dtype.name)


def _complex(what: str) -> DTypeError:
    return DTypeError(
        f"{what}: complex factors are not supported (the kernel would need conjugates); "
        "pass real and imaginary parts as separate leaves if that is what you mean"
    )


def _unsupported(got: str, what: str) -> DTypeError:
    return DTypeError(f"{what}: {got} is not supported; use one of {', '.join(SUPPORTED)}")


def check_axes(array: Host, allowed: tuple[int, ...], shapes: str, what: str) -> None:
    """Raise `InputError` unless `array` has one of the `allowed` numbers of axes."""
    axes = array.array.ndim
    if axes in allowed:
        return
    if axes == 1:
        raise InputError(f"{what} has 1 axis; expected (N, d). Use x[:, None]")
    raise InputError(f"{what} has {axes} axes, shape {array.shape}; expected {shapes}")
