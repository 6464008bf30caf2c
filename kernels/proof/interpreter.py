"""Triton's interpreter with the arithmetic of a GPU: bfloat16 as bfloat16, TF32 as TF32.

    TRITON_INTERPRET=1 python -c "from osim_kernels.proof import interpreter; interpreter.install(); ..."

The stock interpreter (Triton 3.7.1) keeps bfloat16 as the uint16 of its bits and computes on those, without an error.
`install()` widens to float32, computes, and rounds to nearest even, as the hardware does. What it corrects:

    tl.dot of bf16                      multiplied the bit patterns
    + - * / % comparisons min max       computed on the bit patterns
    exp log sqrt rsqrt erf clamp fma    computed on the bit patterns
    sum, min/max with index, cumsum     reduced the bit patterns
    casts to bf16                       truncated instead of rounding to nearest even; from integers: took the bits
    atomic_add of bf16                  added the bit patterns
    tl.dot of fp32 with TF32 allowed    kept 23 bits; the tensor core reads 10, so an accidental TF32 went unseen
    float arguments of a kernel         stayed Python floats, without .to
    bf16 times a Python float           was refused
    x = None inside a kernel            was refused
    libdevice functions                 returned None

Not simulated: the order in which a tensor core adds, approximate exp2 and rsqrt, fp8 scaling.
"""

import importlib

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter as stock

KNOWN_VERSIONS = ("3.7.1",)

Handle = stock.TensorHandle
Builder = stock.InterpreterBuilder

COMPARISONS = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal)
FLOATS = (tl.bfloat16, tl.float16, tl.float32, tl.float64)
LIBDEVICE = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log1p": np.log1p,
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "pow": np.power,
    "abs": np.abs, "floor": np.floor, "ceil": np.ceil, "rint": np.rint, "trunc": np.trunc,
    "isnan": np.isnan, "isinf": np.isinf, "div_rn": np.divide, "rcp_rn": lambda x: 1 / x,
    "fast_expf": np.exp, "fast_logf": np.log, "fast_powf": np.power, "fast_dividef": np.divide,
}  # fmt: skip

_installed = False


def install() -> None:
    """Correct the interpreter of this process; a second call does nothing.

    Raises RuntimeError for a Triton whose interpreter was not read for this module: its defects may differ.
    """
    global _installed
    if _installed:
        return
    if triton.__version__ not in KNOWN_VERSIONS:
        known = ", ".join(KNOWN_VERSIONS)
        raise RuntimeError(f"proof.interpreter knows Triton {known}, not {triton.__version__}: check what it corrects")
    _correct_casts()
    _correct_arithmetic()
    _correct_reductions()
    _correct_atomics()
    _correct_arguments()
    _fill_libdevice()
    _installed = True


def to_bf16_bits(x: np.ndarray) -> np.ndarray:
    """uint16 bits of x rounded to bfloat16, to nearest, ties to even; NaN becomes the quiet NaN 0x7FC0.

    From float64 this rounds twice (through float32), as the GPU's conversion does.
    """
    single = np.ascontiguousarray(x, dtype=np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(single), np.uint32(0x7FC0), rounded).astype(np.uint16).reshape(np.shape(x))


def from_bf16_bits(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits; exact."""
    wide = np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).reshape(np.shape(bits))


def _is_bf16(handle) -> bool:
    return isinstance(handle, Handle) and handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16


def _widened(handle):
    return Handle(from_bf16_bits(handle.data), tl.float32) if _is_bf16(handle) else handle


def _narrowed(handle):
    return Handle(to_bf16_bits(handle.data), tl.bfloat16) if handle.data.dtype == np.float32 else handle


def _through_float32(method):
    """The builder's method, run on float32 whenever an operand is bfloat16, its result rounded back."""

    def wrapped(self, *operands):
        if not any(_is_bf16(operand) for operand in operands):
            return method(self, *operands)
        return _narrowed(method(self, *(_widened(operand) for operand in operands)))

    return wrapped


def _correct_casts() -> None:
    cast, convert = Builder.cast_impl, Builder.create_fp_to_fp

    def cast_impl(self, source, target):
        if target.scalar == tl.bfloat16 and source.dtype.scalar != tl.bfloat16:
            return Handle(to_bf16_bits(source.data.astype(np.float32)), tl.bfloat16)
        if source.dtype.scalar == tl.bfloat16 and target.scalar != tl.bfloat16:
            return cast(self, _widened(source), target) if target.scalar != tl.float32 else _widened(source)
        return cast(self, source, target)

    def create_fp_to_fp(self, source, target, rounding_mode):
        nearest = rounding_mode is None or rounding_mode == stock._ir.ROUNDING_MODE.RTNE
        if nearest and source.dtype.scalar in FLOATS and target.scalar in FLOATS:
            return cast_impl(self, source, target)
        return convert(self, source, target, rounding_mode)

    Builder.cast_impl, Builder.create_fp_to_fp = cast_impl, create_fp_to_fp


def _correct_arithmetic() -> None:
    binary, ternary, dot = Builder.binary_op, Builder.ternary_op, Builder.create_dot
    round_binary = _through_float32(binary)
    round_ternary = _through_float32(ternary)

    def binary_op(self, left, right, op):
        if op in COMPARISONS:
            return binary(self, _widened(left), _widened(right), op)
        return round_binary(self, left, right, op)

    def ternary_op(self, first, second, third, op):
        selects = op is np.where  # picks whole elements, so bits pass through
        return (ternary if selects else round_ternary)(self, first, second, third, op)

    def create_dot(self, a, b, accumulator, input_precision, max_num_imprecise_acc):
        a, b = _widened(a), _widened(b)
        if input_precision == stock._ir.INPUT_PRECISION.TF32 and a.dtype.scalar == tl.float32:
            a, b = _as_tf32(a), _as_tf32(b)
        result = dot(self, a, b, _widened(accumulator), input_precision, max_num_imprecise_acc)
        return _narrowed(result) if _is_bf16(accumulator) else result

    Builder.binary_op, Builder.ternary_op, Builder.create_dot = binary_op, ternary_op, create_dot
    for name in ("unary_op", "create_fma", "create_rsqrt", "create_erf"):
        setattr(Builder, name, _through_float32(getattr(Builder, name)))


def _as_tf32(handle):
    """What the tensor core reads of a float32: sign, exponent and 10 of the 23 mantissa bits (exact for bf16)."""
    bits = np.ascontiguousarray(handle.data).view(np.uint32) & np.uint32(0xFFFFE000)
    return Handle(bits.view(np.float32).reshape(handle.data.shape), tl.float32)


def _correct_reductions() -> None:
    def rounding_back(method):
        def wrapped(self, values, *arguments, **named):
            values = values[0] if isinstance(values, tuple) else values
            if values.dtype.scalar != tl.bfloat16:
                return method(self, values, *arguments, **named)
            data = from_bf16_bits(values.handle.data)
            wide = tl.tensor(Handle(data, tl.float32), tl.block_type(tl.float32, list(data.shape)))
            return _rounded_tensors(method(self, wide, *arguments, **named))

        return wrapped

    for owner, name in (
        (stock.ReduceOps, "sum"), (stock.ReduceOps, "min_max"), (stock.ScanOps, "cumsum"), (stock.ScanOps, "cumprod")
    ):  # fmt: skip
        setattr(owner, name, rounding_back(getattr(owner, name)))


def _rounded_tensors(result):
    if isinstance(result, tuple | list):
        return type(result)(_rounded_tensors(item) for item in result)
    if result.dtype.scalar != tl.float32:
        return result  # the index of a maximum
    kind = tl.block_type(tl.bfloat16, list(result.shape)) if result.type.is_block() else tl.bfloat16
    return tl.tensor(_narrowed(result.handle), kind)


def _correct_atomics() -> None:
    atomic = Builder.create_atomic_rmw

    def create_atomic_rmw(self, op, pointers, values, mask, sem, scope):
        if not (_is_bf16(values) and op == stock._ir.ATOMIC_OP.FADD):
            return atomic(self, op, pointers, values, mask, sem, scope)
        old = np.zeros(values.data.shape, np.uint16)
        addresses = np.broadcast_to(pointers.data, old.shape)
        active = np.broadcast_to(mask.data, old.shape)
        one = np.ones(1, bool)
        for lane in np.ndindex(old.shape):  # one lane after the other: two of them may hit one address
            if active[lane]:
                address = np.array([addresses[lane]])
                before = stock._interpreter.load(address, one, np.zeros(1, np.uint16), np.dtype(np.uint16))
                after = to_bf16_bits(from_bf16_bits(before) + from_bf16_bits(values.data[lane]))
                stock._interpreter.store(address, after, one)
                old[lane] = before[0]
        return Handle(old, tl.bfloat16)

    Builder.create_atomic_rmw = create_atomic_rmw


def _correct_arguments() -> None:
    convert, to_tensor = stock._implicit_cvt, stock.interpreter_semantic.to_tensor

    def implicit_convert(argument):
        if type(argument) is float:  # an fp32 scalar in a compiled kernel
            return tl.tensor(Handle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
        return convert(argument)

    stock._implicit_cvt = implicit_convert
    Builder.get_bf16 = lambda self, value: Handle(to_bf16_bits(np.array([value])), tl.bfloat16)
    stock.interpreter_semantic.to_tensor = lambda x, *rest, **named: x if x is None else to_tensor(x, *rest, **named)


def _fill_libdevice() -> None:
    """numpy bodies for libdevice; kernels that import a name from it must be imported after install()."""

    def body(function):
        def call(*operands, **_):
            handles = [
                x.handle if isinstance(x, tl.tensor) else Handle(np.array([x], np.float32), tl.float32)
                for x in operands
            ]
            result = np.asarray(function(*(_widened(handle).data for handle in handles)))
            like = next(x for x in operands if isinstance(x, tl.tensor))
            dtype = tl.int1 if result.dtype == np.bool_ else like.dtype.scalar
            data = to_bf16_bits(result) if dtype == tl.bfloat16 else result.astype(stock._get_np_dtype(dtype))
            kind = tl.block_type(dtype, list(result.shape)) if like.type.is_block() else dtype
            return tl.tensor(Handle(data, dtype), kind)

        return call

    for name in ("triton.language.extra.libdevice", "triton.language.extra.cuda.libdevice"):
        module = importlib.import_module(name)
        for function_name, function in LIBDEVICE.items():
            if hasattr(module, function_name):
                setattr(module, function_name, body(function))
