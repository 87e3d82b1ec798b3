"""Build of the compiled backend; everything else stands in pyproject.toml.

The instruction sets are chosen by attributes in the sources, so no file needs flags of its own, and nothing depends on
the machine that builds.  If the extension cannot be compiled, the package installs without it and says so.
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")

# Sanitizers on kernels that are inlined to the last line: -O3 would take many minutes.  Without them, debug information
# that Python's own flags ask for would make the extension ten times as large.
OPTIMISE = ["-O1"] if "-fsanitize" in os.environ.get("CFLAGS", "") else ["-O3", "-g0"]

native = Extension(
    "fastsoftmax._native",
    sources=[str(CSRC / "_native.pyx"), *sorted(str(path) for path in CSRC.glob("*.c") if path.name != "_native.c")],
    depends=sorted(str(path) for path in CSRC.glob("*.h")),
    include_dirs=[str(CSRC), numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    # Contraction would change results behind the error bounds' back; errno and traps are never looked at.
    # Not -ffast-math: it breaks NaN handling, and its start-up code would flush subnormals in the whole process.
    extra_compile_args=["-std=gnu11", *OPTIMISE, "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
    extra_link_args=["-lm", "-lpthread"],
    optional=True,
)


class BuildExt(build_ext):
    """Leave the extension in the source tree, too, where git ignores it.

    ``python -m fastsoftmax`` and ``python -m pytest`` in a clone find the folder ``fastsoftmax/`` before the installed
    package; without its extension they would run on another backend than the one that has just been installed.
    """

    def run(self) -> None:
        """Build, then copy what has been built (an extension that failed to compile is optional)."""
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()


setup(ext_modules=cythonize([native], build_dir="build"), cmdclass={"build_ext": BuildExt})
