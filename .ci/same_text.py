"""llama.cpp and this engine continue the same prompt greedily, f32 cache on both sides: the same 64 tokens.

usage: same_text.py EDGEFT DATA WORK   (with llama-cpp-python)
"""

import json
import pathlib
import subprocess
import sys

import llama_cpp

edgeft, data, work = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
base = data / "models/stories260K"
files = [data / "models/stories260K-by-llama.cpp.gguf"]
for mix in ("f32", "q8_0"):
    out = work / f"ours-{mix}.gguf"
    subprocess.run([edgeft, "quantize", base, "--type", mix, "--out", out], check=True, stdout=subprocess.DEVNULL)
    files.append(out)
run = work / "tuned"
subprocess.run([edgeft, "tune", "--model", base, "--task", "text", "--data", data / "text/tinyshakespeare.txt", "--out", run,
                "--steps", "40", "--max-len", "256"], check=True, stdout=subprocess.DEVNULL)
subprocess.run([edgeft, "quantize", run, "--type", "q8_0", "--out", work / "tuned-q8_0.gguf"], check=True, stdout=subprocess.DEVNULL)
files.append(work / "tuned-q8_0.gguf")

failed = False
for file in files:
    llama = llama_cpp.Llama(str(file), n_ctx=256, n_threads=2, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False)
    for prompt in ("Once upon a time", "The little dog", "Lily and Tom went to the park"):
        theirs = llama(prompt, max_tokens=64, temperature=0.0, repeat_penalty=1.0)["choices"][0]["text"]
        done = subprocess.run([edgeft, "run", file, "-p", prompt, "-n", "64", "--kv", "f32", "--json"], check=True, capture_output=True, text=True)
        ours = json.loads(done.stdout.splitlines()[-1])["text"]
        same = ours == theirs
        failed |= not same
        print(f"{'ok  ' if same else 'FAIL'}  {file.name}: {prompt!r} -> {ours[:50]!r}", flush=True)
        if not same:
            print(f"      llama.cpp: {theirs!r}\n      edgeft:    {ours!r}")
sys.exit(failed)
