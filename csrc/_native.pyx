# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The binding: every kernel of every instruction set behind one function.  It knows no operation by name."""

cimport cython
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t
from libc.string cimport strcmp
cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    # np.float32(value) takes 220 ns, a tenth of a small loss's call.
    object PyArray_Scalar(void *data, cnp.dtype dtype, object base)

cdef cnp.dtype FLOAT32 = np.dtype(np.float32), FLOAT64 = np.dtype(np.float64)

cdef extern from "fs.h":
    enum: FS_MAX_OPERANDS, FS_MAX_PARAMS
    ctypedef void fs_kernel_fn(const void *) nogil
    ctypedef struct fs_kernel:
        const char *op
        fs_kernel_fn *f32
        fs_kernel_fn *f64
        int vectors, strands
    const fs_kernel fs_kernels_baseline[]
    ctypedef enum fs_type: FS_F32, FS_F64, FS_F16, FS_BF16, FS_BOOL, FS_I64
    ctypedef struct fs_staging:
        pass
    ctypedef struct fs_option:
        double factor
        double softcap
        double slope

cdef extern from *:
    const char *COMPILER "__VERSION__"
    const char *FLAGS "FS_FLAGS"

cdef extern from "isa.h":
    int fs_isa_count()
    const char *fs_isa_name(int isa)
    int fs_isa_runs(int isa)
    const fs_kernel *fs_isa_kernels(int isa)
    const fs_staging *fs_isa_staging(int isa)

cdef extern from "engine.h":
    ctypedef enum fs_kind: FS_ROW, FS_ONE, FS_LABEL, FS_CLASS, FS_SQUARE
    ctypedef struct fs_operand:
        char *data
        ptrdiff_t s1, s2, sc
        fs_kind kind
        fs_type type
        int output
    ctypedef struct fs_call:
        fs_kernel_fn *kernel
        const fs_staging *staging
        fs_operand operand[FS_MAX_OPERANDS]
        int operands
        ptrdiff_t n1, n2, c
        ptrdiff_t itemsize
        int vectors, strands
        double params[FS_MAX_PARAMS]
        int options
        fs_option option
        fs_operand mask
        int poison
        int cleared
        int derived[FS_MAX_OPERANDS]
        double chain[FS_MAX_OPERANDS]
        int summed
        double *sum
        int checked
        int64_t ignore
        ptrdiff_t *ignored
    ctypedef struct fs_sizes:
        ptrdiff_t worth_a_thread, run_bytes, tile_bytes, flat_bytes, by_class, stream_bytes
    fs_sizes fs_tuned
    int fs_run(const fs_call *call, int threads) nogil
    ptrdiff_t fs_count_ignored(const fs_staging *staging, const int64_t *labels, ptrdiff_t n, int64_t classes,
                               int64_t ignore, int threads) nogil
    ctypedef struct fs_weights:
        ptrdiff_t n
        const int64_t *labels
        int64_t ignore
        const void *of_row
        const void *of_class
        ptrdiff_t row_size, class_size
    int fs_weigh_rows(const fs_weights *w, int threads, double *sum) nogil
    int fs_pool_size()

cdef extern from "pool.h":
    int fs_spins

KINDS = {"(c)": FS_ROW, "()": FS_ONE, "()i": FS_LABEL, "c": FS_CLASS, "(c,c)": FS_SQUARE}


def instruction_sets():
    """Return the names of the instruction sets compiled in that this CPU can run, weakest first."""
    return tuple(fs_isa_name(i).decode() for i in range(fs_isa_count()) if fs_isa_runs(i))


def operations():
    """Return the names of the operations in the kernel tables."""
    cdef int i = 0
    names = []
    while fs_kernels_baseline[i].op is not NULL:
        names.append(fs_kernels_baseline[i].op.decode())
        i += 1
    return tuple(names)


def build():
    """Return the compiler and the flags that built this module."""
    return COMPILER.decode(), FLAGS.decode()


def pool_size():
    """Return the number of worker threads that exist now."""
    return fs_pool_size()


def tuned(**sizes):
    """Set some of the engine's sizes, and return all of them: for tools/tune_engine.py and the tests."""
    global fs_spins
    fs_tuned.worth_a_thread = sizes.get("worth_a_thread", fs_tuned.worth_a_thread)
    fs_tuned.run_bytes = sizes.get("run_bytes", fs_tuned.run_bytes)
    fs_tuned.tile_bytes = sizes.get("tile_bytes", fs_tuned.tile_bytes)
    fs_tuned.flat_bytes = sizes.get("flat_bytes", fs_tuned.flat_bytes)
    fs_tuned.by_class = sizes.get("by_class", fs_tuned.by_class)
    fs_tuned.stream_bytes = sizes.get("stream_bytes", fs_tuned.stream_bytes)
    fs_spins = sizes.get("spins", fs_spins)
    return {
        "worth_a_thread": fs_tuned.worth_a_thread, "run_bytes": fs_tuned.run_bytes, "tile_bytes": fs_tuned.tile_bytes,
        "flat_bytes": fs_tuned.flat_bytes, "by_class": fs_tuned.by_class, "stream_bytes": fs_tuned.stream_bytes,
        "spins": fs_spins,
    }


cdef fs_type type_of(cnp.ndarray a) noexcept:
    """Return the type of an array's elements; the plan has seen to it that it is one of these."""
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_FLOAT:
        return FS_F32
    if number == cnp.NPY_DOUBLE:
        return FS_F64
    if number == cnp.NPY_FLOAT16:
        return FS_F16
    if number == cnp.NPY_BOOL:
        return FS_BOOL
    return FS_I64 if cnp.PyArray_ITEMSIZE(a) == 8 else FS_BF16


cdef bint overlaps(cnp.ndarray a, cnp.ndarray b):
    """Tell whether two contiguous arrays share memory without being the same memory."""
    cdef char *p = cnp.PyArray_BYTES(a)
    cdef char *q = cnp.PyArray_BYTES(b)
    if p == q and cnp.PyArray_NBYTES(a) == cnp.PyArray_NBYTES(b):
        return False
    return p < q + cnp.PyArray_NBYTES(b) and q < p + cnp.PyArray_NBYTES(a)


@cython.final
cdef class Kernel:
    """One kernel of one instruction set and dtype: ``kernel(ins, outs, params, threads)``."""

    cdef fs_kernel_fn *function
    cdef const fs_staging *staging
    cdef ptrdiff_t itemsize
    cdef int inputs, vectors, strands
    cdef int kinds[FS_MAX_OPERANDS]

    def __init__(self, str isa, str op, dtype, in_kinds, out_kinds):
        cdef int i, k = 0
        cdef const fs_kernel *table = NULL
        for i in range(fs_isa_count()):
            if fs_isa_name(i).decode() == isa and fs_isa_runs(i):
                table = fs_isa_kernels(i)
                self.staging = fs_isa_staging(i)
        if table is NULL:
            raise ValueError(f"instruction set {isa!r} is not available here")
        name = op.encode()
        while table[k].op is not NULL and strcmp(table[k].op, name) != 0:
            k += 1
        if table[k].op is NULL:
            raise ValueError(f"no kernel for {op!r}: csrc/row_ops.h does not list it in FS_OPS")
        self.itemsize = dtype.itemsize
        self.function = table[k].f32 if self.itemsize == 4 else table[k].f64
        self.vectors = table[k].vectors
        self.strands = table[k].strands
        self.inputs = len(in_kinds)
        for i, kind in enumerate((*in_kinds, *out_kinds)):
            self.kinds[i] = KINDS[kind]

    def quick(self, tuple ins, tuple outs, tuple params, int threads, int axis=-1):
        """Compute if all operands are plain arrays, with their classes along one axis; else return None.

        This is the plan's straight case without its Python: C-contiguous arrays of the kernel's dtype and one shape,
        class indices of the shape without the classes, plain floats for the rest.  An output that is None is
        allocated.  Returns the outputs.
        """
        return self.run_quick(ins, outs, params, threads, axis, -1, NULL, -1, NULL, False)

    cdef list run_quick(self, tuple ins, tuple outs, tuple params, int threads, int axis, int summed, double *sum,
                        int64_t ignore, ptrdiff_t *ignored, bint narrow):
        """``quick``, or the same with only the sum of one output's numbers: none of that output is kept.

        If ``ignored`` is not NULL, operand 1 are labels to be checked: see ``fs_call``.  With ``narrow`` rows may be 16-bit
        floats, which are staged.
        """
        cdef fs_call call
        cdef double constants[FS_MAX_OPERANDS]
        cdef float constants32[FS_MAX_OPERANDS]
        cdef int o, k, nd, status, rownum, typenum = cnp.NPY_FLOAT if self.itemsize == 4 else cnp.NPY_DOUBLE
        cdef cnp.npy_intp kept[64]  # the shape without the classes; NumPy has 64 axes at most
        cdef cnp.ndarray x, a
        cdef fs_operand *p
        if type(ins[0]) is not np.ndarray:
            return None
        x = ins[0]
        nd = cnp.PyArray_NDIM(x)
        if nd < 1 or cnp.PyArray_SIZE(x) == 0 or not -nd <= axis < nd:
            return None
        axis = axis % nd
        rownum = cnp.PyArray_TYPE(x) if narrow else typenum
        call.kernel = self.function
        call.staging = self.staging
        call.options = 0
        call.mask.data = NULL
        call.summed = summed
        call.sum = sum
        call.checked = -1 if ignored is NULL else 1
        call.ignore = ignore
        call.ignored = ignored
        call.operands = self.inputs + <int>len(outs)  # what is not wanted is NULL to the kernel
        call.itemsize = self.itemsize
        call.vectors = self.vectors
        call.strands = self.strands
        call.c = cnp.PyArray_DIM(x, axis)
        call.n1 = call.n2 = 1
        for k in range(nd):
            if k != axis:
                kept[k - (k > axis)] = cnp.PyArray_DIM(x, k)
                if k < axis < nd - 1:
                    call.n1 *= cnp.PyArray_DIM(x, k)
                else:
                    call.n2 *= cnp.PyArray_DIM(x, k)
        results = [None] * len(outs)
        for o in range(call.operands):
            operand = ins[o] if o < self.inputs else outs[o - self.inputs]
            p = &call.operand[o]
            p.kind = <fs_kind>self.kinds[o]
            p.output = o >= self.inputs
            p.type = FS_F32 if self.itemsize == 4 else FS_F64
            p.s1 = p.s2 = p.sc = 0
            if p.kind == FS_SQUARE:
                return None
            if type(operand) is float and not p.output and (p.kind == FS_ONE or p.kind == FS_CLASS and operand == 1.0):
                constants[o] = operand
                constants32[o] = <float>constants[o]
                p.data = <char *>&constants[o] if self.itemsize == 8 else <char *>&constants32[o]
                if p.kind == FS_CLASS:
                    p.data = NULL
                continue
            if p.kind == FS_CLASS:
                return None
            if o == summed:
                p.data = NULL
                continue
            if operand is None and p.output:
                if p.kind == FS_ROW:
                    a = cnp.PyArray_EMPTY(nd, cnp.PyArray_DIMS(x), rownum, 0)
                else:
                    a = cnp.PyArray_EMPTY(nd - 1, kept, typenum, 0)
            else:
                if type(operand) is not np.ndarray:
                    return None
                a = operand
                if (cnp.PyArray_TYPE(a) != (cnp.NPY_INT64 if p.kind == FS_LABEL else rownum if p.kind == FS_ROW else typenum)
                        or cnp.PyArray_NDIM(a) != (nd if p.kind == FS_ROW else nd - 1)
                        or not cnp.PyArray_ISCARRAY_RO(a)):
                    return None
                for k in range(cnp.PyArray_NDIM(a)):
                    if cnp.PyArray_DIM(a, k) != (cnp.PyArray_DIM(x, k) if p.kind == FS_ROW else kept[k]):
                        return None
                if p.output:
                    if not cnp.PyArray_ISWRITEABLE(a):
                        return None
                    for k in range(o):
                        other = ins[k] if k < self.inputs else results[k - self.inputs]
                        if type(other) is np.ndarray and overlaps(a, other):
                            return None
            p.data = cnp.PyArray_BYTES(a)
            if p.kind == FS_ROW:
                p.type = type_of(a)
            p.s2 = p.sc = cnp.PyArray_ITEMSIZE(a)
            p.s1 = call.n2 * p.s2
            if p.kind == FS_ROW and axis == nd - 1:
                p.s2 *= call.c
            elif p.kind == FS_ROW:
                p.sc *= call.n2
                p.s1 *= call.c
            if p.output:
                results[o - self.inputs] = a
        o = 0
        for value in params:
            call.params[o] = value
            o += 1
        with nogil:
            status = fs_run(&call, threads)
        if status != 0:
            return None
        return results

    def __call__(self, ins, outs, params, int threads, where=None, double factor=1.0, double softcap=0.0, bint poison=False,
                 dict chain=None, int cleared=-1):
        """Compute, with the options on logits that the head of ``_backends.py`` describes."""
        cdef fs_call call
        cdef double constants[FS_MAX_OPERANDS]
        cdef float constants32[FS_MAX_OPERANDS]
        cdef int o, status
        cdef cnp.ndarray a
        cdef fs_operand *x
        a = ins[0]
        call.kernel = self.function
        call.staging = self.staging
        call.operands = self.inputs + <int>len(outs)
        call.itemsize = self.itemsize
        call.vectors = self.vectors
        call.strands = self.strands
        call.n1, call.n2, call.c = cnp.PyArray_DIM(a, 0), cnp.PyArray_DIM(a, 1), cnp.PyArray_DIM(a, 2)
        call.summed = -1
        call.checked = -1
        call.options = where is not None or factor != 1 or softcap != 0
        call.option.factor = factor / softcap if softcap != 0 else factor
        call.option.softcap = softcap
        call.option.slope = factor
        call.poison = poison
        call.cleared = cleared
        for o in range(call.operands):
            call.derived[o] = 0
        if chain is not None:
            for number, power in chain.items():
                o = self.inputs + <int>number
                call.derived[o] = 1
                call.chain[o] = power
        for o in range(call.operands + 1):
            if o == call.operands:
                operand = where
                x = &call.mask
                x.kind = FS_ROW
                x.output = False
            else:
                operand = ins[o] if o < self.inputs else outs[o - self.inputs]
                x = &call.operand[o]
                x.kind = <fs_kind>self.kinds[o]
                x.output = o >= self.inputs
            x.s1 = x.s2 = x.sc = 0
            x.data = NULL
            if operand is None:
                continue
            if not isinstance(operand, np.ndarray):
                # The same number for every row, or a vector of classes that is all 1.
                constants[o] = operand
                constants32[o] = <float>constants[o]
                x.type = FS_F64 if self.itemsize == 8 else FS_F32
                if x.kind != FS_CLASS:
                    x.data = <char *>&constants[o] if self.itemsize == 8 else <char *>&constants32[o]
                continue
            a = operand
            x.data = cnp.PyArray_BYTES(a)
            x.type = type_of(a)
            if x.kind == FS_CLASS:
                continue
            x.s1, x.s2 = cnp.PyArray_STRIDE(a, 0), cnp.PyArray_STRIDE(a, 1)
            if x.kind == FS_ROW:
                x.sc = cnp.PyArray_STRIDE(a, 2)
        o = 0
        for value in params:
            call.params[o] = value
            o += 1
        with nogil:
            status = fs_run(&call, threads)
        if status != 0:
            raise MemoryError("no memory for the tiles in which strided operands are computed")


def count_ignored(Kernel kernel, cnp.ndarray labels, int64_t classes, int64_t ignore, int threads):
    """Return how many of the labels, a contiguous array of int64, are ``ignore``; -1 if another is not in [0, classes)."""
    return fs_count_ignored(kernel.staging, <const int64_t *>cnp.PyArray_DATA(labels), cnp.PyArray_SIZE(labels), classes,
                            ignore, threads)


def weigh_rows(ptrdiff_t n, labels, int64_t ignore, weight, rows, int threads):
    """Return the sum of the factors of n rows, of which each of the arrays may be None: see ``fs_weights``."""
    cdef fs_weights w
    cdef double sum = 0
    cdef int status
    w.n = n
    w.labels = NULL if labels is None else <const int64_t *>cnp.PyArray_DATA(labels)
    w.ignore = ignore
    w.of_class = NULL if weight is None else cnp.PyArray_DATA(weight)
    w.class_size = 8 if weight is None else cnp.PyArray_ITEMSIZE(weight)
    w.of_row = NULL if rows is None else cnp.PyArray_DATA(rows)
    w.row_size = 8 if rows is None else cnp.PyArray_ITEMSIZE(rows)
    with nogil:
        status = fs_weigh_rows(&w, threads, &sum)
    if status != 0:
        raise MemoryError("no memory for sums of the rows' weights")
    return sum


def quick_loss(Kernel kernel, logits, target, grad_out, str reduction, double scale, double empty,
               int64_t ignore, bint gradient, int threads, bint narrow):
    """The straight case of a plain loss against class indices, reduced: a pair (value, gradient), or None.

    The logits are of the kernel's dtype or, if they are ``narrow``, 16-bit floats.  ``kernel`` has the operands logits,
    labels, class weights, row weights, with ``gradient`` upstream gradients, and the outputs loss and gradient.  Classes
    are the last axis.
    """
    cdef cnp.ndarray x, y
    cdef double upstream = 1, value = 0
    cdef float single
    cdef ptrdiff_t ignored = 0, count
    if type(logits) is not np.ndarray or type(target) is not np.ndarray:
        return None
    x, y = logits, target
    if (cnp.PyArray_NDIM(x) < 1 or cnp.PyArray_SIZE(x) == 0 or cnp.PyArray_TYPE(y) != cnp.NPY_INT64
            or not cnp.PyArray_ISCARRAY_RO(y)):
        return None
    count = cnp.PyArray_SIZE(y)
    if gradient:
        # What is wrong with labels has to be known before anything is written, and a mean before a gradient.
        ignored = fs_count_ignored(kernel.staging, <const int64_t *>cnp.PyArray_DATA(y), count,
                                   cnp.PyArray_DIM(x, cnp.PyArray_NDIM(x) - 1), ignore, threads)
        if ignored < 0 or ignored == count:
            return None
        if reduction == "mean":
            upstream = 1.0 / (count - ignored)
    params = (scale, empty, 1.0, 0.0, 0.0, <double>ignore)
    ins = (x, y, 1.0, 1.0, upstream) if gradient else (x, y, 1.0, 1.0)
    outs = (None, grad_out) if gradient else (None,)
    done = kernel.run_quick(ins, outs, params, threads, -1, -1 if reduction == "none" else kernel.inputs, &value, ignore,
                            NULL if gradient else &ignored, narrow)
    if done is None or ignored < 0 or ignored == count:
        return None
    if reduction == "none":
        return (done[0] if done[0].ndim else done[0][()]), done[1] if gradient else None
    if kernel.itemsize == 4:
        value = <float>value
    if reduction == "mean":
        value /= count - ignored
    single = <float>value
    loss = PyArray_Scalar(&single, FLOAT32, None) if kernel.itemsize == 4 else PyArray_Scalar(&value, FLOAT64, None)
    return loss, done[1] if gradient else None
