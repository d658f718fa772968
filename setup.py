"""Build the CPU kernels as a library for every version of Python; the rest is in pyproject.toml."""

from glob import glob
from pathlib import PurePath

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# Plain C, opened with ctypes. Optional: without a C compiler the package installs and runs slower.
KERNELS = Extension(
    "recblr.ops._kernels",
    ["src/recblr/ops/kernels.c"],
    depends=glob("src/recblr/ops/*.h"),
    extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math"],
    optional=True,
)


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return str(PurePath(*fullname.split(".")).with_suffix(".so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # not a Python module, so it has no PyInit


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[KERNELS], cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel})
