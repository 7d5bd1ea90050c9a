"""Writes a C++ header of stubs for the test doubles of TensorRT.

stubs.py INCLUDE_DIR OUTPUT

TensorRT's objects are pairs: a class that callers see, and a table of pure virtual functions behind it, `nvinfer1::apiv::V…`. For
each table that the doubles implement, OUTPUT gets a class `Stub…` in which every function ends the program with its name, so
that the doubles write only those that are used, and compile against any version of the headers.
"""

import re
import sys
from pathlib import Path

TABLES = [
    "VRuntime",
    "VCudaEngine",
    "VExecutionContext",
    "VEngineInspector",
    "VHostMemory",
    "VBuilder",
    "VBuilderConfig",
    "VTimingCache",
    "VNetworkDefinition",
]
PARSER = ["IParser", "IParserError"]


def uncommented(path):
    text = path.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def stubs(text, names):
    found = {}
    for name, body in re.findall(r"\nclass (\w+)\s*(?::[^{;]*)?\{(.*?)\n\};", text, flags=re.S):
        if name not in names or name in found:
            continue
        lines = [f"struct Stub{name} : {name} {{"]
        for condition, declaration in re.findall(r"(#[^\n]*)|virtual\s+([^;{]*?)\s*=\s*0\s*;", body, flags=re.S):
            if condition:
                lines.append(condition)  # some functions are there in some builds only
                continue
            declaration = re.sub(r"\s+", " ", declaration)
            # Neither attributes nor default arguments belong on the function that overrides.
            declaration = re.sub(r"\b(TRT_NODISCARD|TRT_DEPRECATED) ", "", declaration)
            declaration = re.sub(r"\s*=\s*[\w:]+(?=\s*[,)])", "", declaration)
            what = re.search(r"(\w+)\s*\(", declaration).group(1)
            lines.append(f'    {declaration} override {{ missing("{name}::{what}"); }}')
        lines.append("};")
        found[name] = "\n".join(lines)
    lacking = [name for name in names if name not in found]
    if lacking:
        sys.exit(f"the headers have no {', '.join(lacking)}")
    return "\n".join(found[name] for name in names)


def main():
    include, output = Path(sys.argv[1]), Path(sys.argv[2])
    tables = stubs(uncommented(include / "NvInferImpl.h"), TABLES)
    parser = stubs(uncommented(include / "NvOnnxParser.h"), PARSER)
    output.write_text(
        f"""#pragma once
#pragma GCC system_header // no warnings: it uses what TensorRT's headers mark as deprecated, and no argument
#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cstdio>
#include <cstdlib>
[[noreturn]] inline void missing(char const* what) {{
    std::fprintf(stderr, "the test double of TensorRT has no %s\\n", what);
    std::abort();
}}
namespace nvinfer1::apiv {{
{tables}
}}
namespace nvonnxparser {{
{parser}
}}
"""
    )


if __name__ == "__main__":
    main()
