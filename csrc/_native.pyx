# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The binding: every kernel of every instruction set behind one function.  It knows no operation by name."""

cimport cython
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t
from libc.string cimport strcmp
cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef extern from "fs.h":
    enum: FS_MAX_OPERANDS, FS_MAX_PARAMS
    ctypedef void fs_kernel_fn(const void *) nogil
    ctypedef struct fs_kernel:
        const char *op
        fs_kernel_fn *f32
        fs_kernel_fn *f64
    const fs_kernel fs_kernels_baseline[]

cdef extern from "isa.h":
    int fs_isa_count()
    const char *fs_isa_name(int isa)
    int fs_isa_runs(int isa)
    const fs_kernel *fs_isa_kernels(int isa)

cdef extern from "engine.h":
    ctypedef enum fs_kind: FS_ROW, FS_ONE, FS_LABEL, FS_CLASS, FS_SQUARE
    ctypedef struct fs_operand:
        char *data
        ptrdiff_t s1, s2, sc
        fs_kind kind
        int output
    ctypedef struct fs_call:
        fs_kernel_fn *kernel
        fs_operand operand[8]
        int operands
        ptrdiff_t n1, n2, c
        ptrdiff_t itemsize
        double params[8]
    int fs_run(const fs_call *call, int threads) nogil
    int fs_pool_size()

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


def pool_size():
    """Return the number of worker threads that exist now."""
    return fs_pool_size()


@cython.final
cdef class Kernel:
    """One kernel of one instruction set and dtype: ``kernel(ins, outs, params, threads)``."""

    cdef fs_kernel_fn *function
    cdef ptrdiff_t itemsize
    cdef int inputs, outputs
    cdef int kinds[8]

    def __init__(self, str isa, str op, dtype, in_kinds, out_kinds):
        cdef int i, k = 0
        cdef const fs_kernel *table = NULL
        for i in range(fs_isa_count()):
            if fs_isa_name(i).decode() == isa and fs_isa_runs(i):
                table = fs_isa_kernels(i)
        if table is NULL:
            raise ValueError(f"instruction set {isa!r} is not available here")
        name = op.encode()
        while table[k].op is not NULL and strcmp(table[k].op, name) != 0:
            k += 1
        if table[k].op is NULL:
            raise ValueError(f"no kernel for {op!r}: csrc/row_ops.h does not list it in FS_OPS")
        self.itemsize = dtype.itemsize
        self.function = table[k].f32 if self.itemsize == 4 else table[k].f64
        self.inputs = len(in_kinds)
        self.outputs = len(out_kinds)
        for i, kind in enumerate((*in_kinds, *out_kinds)):
            self.kinds[i] = KINDS[kind]

    def __call__(self, ins, outs, params, int threads):
        cdef fs_call call
        cdef double constants[8]
        cdef float constants32[8]
        cdef int o, status
        cdef cnp.ndarray a
        cdef fs_operand *x
        a = ins[0]
        call.kernel = self.function
        call.operands = self.inputs + self.outputs
        call.itemsize = self.itemsize
        call.n1, call.n2, call.c = cnp.PyArray_DIM(a, 0), cnp.PyArray_DIM(a, 1), cnp.PyArray_DIM(a, 2)
        for o in range(call.operands):
            operand = ins[o] if o < self.inputs else outs[o - self.inputs]
            x = &call.operand[o]
            x.kind = <fs_kind>self.kinds[o]
            x.output = o >= self.inputs
            x.s1 = x.s2 = x.sc = 0
            if not isinstance(operand, np.ndarray):
                # The same number for every row, or a vector of classes that is all 1.
                constants[o] = operand
                constants32[o] = <float>constants[o]
                x.data = <char *>&constants[o] if self.itemsize == 8 else <char *>&constants32[o]
                if x.kind == FS_CLASS:
                    x.data = NULL
                continue
            a = operand
            x.data = cnp.PyArray_BYTES(a)
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
