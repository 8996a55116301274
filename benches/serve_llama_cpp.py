#!/usr/bin/env python3
"""The peer of serve.rs: llama.cpp's own server, in this process.

usage: serve_llama_cpp.py MODEL.gguf --threads N --parallel N --ctx N     (CTX tokens for each sequence)
Prints its address as one line, and serves until its input ends.
needs: pip install xllamacpp
"""
import argparse
import sys

import xllamacpp

a = argparse.ArgumentParser()
a.add_argument("model")
a.add_argument("--threads", type=int, default=1)
a.add_argument("--parallel", type=int, default=1)
a.add_argument("--ctx", type=int, default=2048)
a = a.parse_args()

p = xllamacpp.CommonParams()
p.model.path = a.model
p.n_gpu_layers = 0
p.n_parallel = a.parallel
p.n_ctx = a.ctx * a.parallel  # shared out evenly
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = a.threads
p.port = 0
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
