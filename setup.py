"""Build of the compiled backend; everything else stands in pyproject.toml.

The instruction sets are chosen by attributes in the sources, so no file needs flags of its own, and nothing depends on
the machine that builds.  If the extension cannot be compiled, the package installs without it and says so.
"""

from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

CSRC = Path("csrc")

native = Extension(
    "fastsoftmax._native",
    sources=[str(CSRC / "_native.pyx"), *sorted(str(path) for path in CSRC.glob("*.c") if path.name != "_native.c")],
    depends=sorted(str(path) for path in CSRC.glob("*.h")),
    include_dirs=[str(CSRC), numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    # Contraction would change results behind the error bounds' back; errno and traps are never looked at.
    # Not -ffast-math: it breaks NaN handling, and its start-up code would flush subnormals in the whole process.
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
    extra_link_args=["-lm", "-lpthread"],
    optional=True,
)

setup(ext_modules=cythonize([native], build_dir="build"))
