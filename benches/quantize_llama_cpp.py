#!/usr/bin/env python3
"""The peer of quantize.rs: llama.cpp's own quantizer, through its C API.

usage: quantize_llama_cpp.py IN.gguf OUT.gguf TYPE [--threads N]     (IN in f32, f16 or bf16)
Prints one JSON line: seconds, peak resident memory in MiB.
needs: pip install llama-cpp-python
"""
import argparse
import ctypes
import json
import resource
import time

import llama_cpp as lc

# general.file_type
TYPES = {
    "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32,
}

a = argparse.ArgumentParser()
a.add_argument("source")
a.add_argument("out")
a.add_argument("type", choices=TYPES)
a.add_argument("--threads", type=int, default=1)
a = a.parse_args()

quiet = lc.llama_log_callback(lambda *_: None)  # kept: C holds the pointer
lc.llama_log_set(quiet, None)
lc.llama_backend_init()
params = lc.llama_model_quantize_default_params()
params.ftype = TYPES[a.type]
params.nthread = a.threads
start = time.perf_counter()
if lc.llama_model_quantize(a.source.encode(), a.out.encode(), ctypes.byref(params)) != 0:
    raise SystemExit("llama_model_quantize failed")
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "peak_mib": peak}))
