#!/usr/bin/env python3
"""Compiles the kernels to PTX, and assembles it for the cards that it is meant for.

    build.py compile    writes ptx/*.ptx and the table in README.md
    build.py check      compiles and compares with what is committed; assembles; writes nothing

Needs Linux on x86-64 and the packages of requirements.txt, and no GPU. NVRTC 12.6 is what JetPack 6 can load: its driver
refuses PTX of a newer compiler, while newer drivers take this.
"""

import ctypes
import hashlib
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = ["distance", "frame", "heatmap", "judge"]
HEADERS = ["common.cuh"]
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "--fmad=false"]
# Card, assembler.
TARGETS = [("sm_87", "cuda_nvcc"), ("sm_90", "cu13"), ("sm_110", "cu13")]
BEGIN, END = "<!-- begin: build.py -->\n", "<!-- end: build.py -->\n"


def package(name):
    """The folder of one of NVIDIA's packages."""
    for folder in importlib.util.find_spec("nvidia").submodule_search_locations:
        if (path := pathlib.Path(folder) / name).is_dir():
            return path
    sys.exit(f"nvidia/{name} is not installed: pip install --no-deps -r kernels/requirements.txt")


def source_hash(name):
    """SHA-256 over everything that decides what the PTX is; tests/kernels_host.rs computes it too."""
    digest = hashlib.sha256()
    for part in [f"{name}.cu", *HEADERS]:
        digest.update((HERE / part).read_bytes())
    digest.update(" ".join(OPTIONS).encode())
    return digest.hexdigest()


def compile_ptx(name):
    """Compiles NAME.cu by NVRTC; gives the PTX behind a line with the source's hash."""
    folder = package("cuda_nvrtc") / "lib"
    ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so.*"))), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    source = (HERE / f"{name}.cu").read_bytes()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, f"{name}.cu".encode(), 0, None, None):
        sys.exit(f"{name}.cu: NVRTC cannot be started")
    options = [*OPTIONS, f"--include-path={HERE}", f"--include-path={package('cuda_runtime') / 'include'}"]
    status = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    )
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if message := log.value.decode().strip():
        print(message, file=sys.stderr)
    if status:
        sys.exit(f"{name}.cu: NVRTC refuses it (error {status})")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return f"// cellgate source {source_hash(name)}\n" + ptx.value.decode().strip() + "\n"


def assemble(ptx, card, assembler):
    """Assembles for one card; a spill is an error. Gives registers, static shared memory and stack of each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernels.ptx"
        path.write_text(ptx)
        command = [package(assembler) / "bin/ptxas", f"-arch={card}", "-v", "--warn-on-spills", "-Werror"]
        done = subprocess.run([*command, path, "-o", path.with_suffix(".cubin")], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ptxas for {card}: {done.stderr}")
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)",
        done.stderr,
        re.S,
    )
    kernels = {}
    for kernel, stack, stores, loads, registers, rest in found:
        shared = re.search(r"(\d+) bytes smem", rest)
        kernels[kernel] = (int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads))
    if set(kernels) != set(re.findall(r"\.entry (\w+)", ptx)):
        sys.exit(f"ptxas for {card}: its report does not name every kernel:\n{done.stderr}")
    return kernels


def table(compiled):
    """What the assemblers say of each kernel, as Markdown."""
    lines = [
        "| kernel | " + " | ".join(f"{card}: registers" for card, _ in TARGETS) + " | static shared, B | stack, B | spilled, B |\n",
        "|---|" + "--:|" * (len(TARGETS) + 3) + "\n",
    ]
    for name, ptx in compiled.items():
        cards = [assemble(ptx, card, assembler) for card, assembler in TARGETS]
        for kernel in cards[0]:
            registers = " | ".join(str(card[kernel][0]) for card in cards)
            most = " | ".join(str(max(card[kernel][i] for card in cards)) for i in (1, 2, 3))
            lines.append(f"| `{kernel}` ({name}.cu) | {registers} | {most} |\n")
    return "".join(lines)


def main():
    if sys.argv[1:] not in (["compile"], ["check"]):
        sys.exit(__doc__)
    compiled = {name: compile_ptx(name) for name in SOURCES}
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    files = {HERE / "ptx" / f"{name}.ptx": ptx for name, ptx in compiled.items()}
    files[readme] = before + BEGIN + table(compiled) + END + after
    if sys.argv[1] == "compile":
        (HERE / "ptx").mkdir(exist_ok=True)
        for path, text in files.items():
            path.write_text(text, newline="\n")
    elif stale := [str(p.relative_to(HERE)) for p, text in files.items() if not p.exists() or p.read_text() != text]:
        sys.exit(f"not what the source gives: {', '.join(stale)}; run kernels/build.py compile")
    print(files[readme].partition(BEGIN)[2].partition(END)[0], end="")


if __name__ == "__main__":
    main()
