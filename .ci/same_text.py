"""llama.cpp and this engine continue the same prompts greedily, f32 cache on both sides: the same 64 tokens.

usage: same_text.py EDGEFT DATA WORK   (with xllamacpp, a wheel that brings llama.cpp along)

The tuned q8_0 file is told, not judged: both sides round activations to eight bits, so a sum in another order can turn a
tie of two tokens, and a model of 260 thousand weights after a few steps has many.
"""

import json
import pathlib
import subprocess
import sys

import xllamacpp

PROMPTS = ("Once upon a time", "The little dog", "Lily and Tom went to the park")


def llama_cpp(file):
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_gpu_layers, p.cpuparams.n_threads = str(file), 256, 0, 1
    p.cache_type_k = p.cache_type_v = type(p.cache_type_k)(0)  # f32
    p.flash_attn_type = type(p.flash_attn_type)(0)  # its flash attention sums in another order
    server = xllamacpp.Server(p)

    def ask(prompt):
        answer = server.handle_completions({"prompt": prompt, "max_tokens": 64, "temperature": 0, "top_k": 1, "repeat_penalty": 1.0})
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        return answer["choices"][0]["text"]

    return ask


def edgeft(*args):
    done = subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    binary, data, work = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    base, tuned = data / "models/stories260K", work / "tuned"
    edgeft(binary, "tune", "--model", base, "--task", "text", "--data", data / "text/tinyshakespeare.txt", "--out", tuned, "--steps", 40,
           "--max-len", 256, "--json")
    files = [(data / "models/stories260K-by-llama.cpp.gguf", True)]
    for model, mix, judged in [(base, "f32", True), (base, "q8_0", True), (tuned, "f32", True), (tuned, "q8_0", False)]:
        out = work / f"{model.name}-{mix}.gguf"
        edgeft(binary, "quantize", model, "--type", mix, "--out", out, "--json")
        files.append((out, judged))
    failed = False
    for file, judged in files:
        ask = llama_cpp(file)
        for prompt in PROMPTS:
            theirs = ask(prompt)
            ours = edgeft(binary, "run", file, "-p", prompt, "-n", 64, "--kv", "f32", "--json")["text"]
            same = ours == theirs
            failed |= judged and not same
            word = "ok    " if same else "FAIL  " if judged else "differs"
            print(f"{word} {file.name}: {prompt!r} -> {ours[:50]!r}", flush=True)
            if not same:
                print(f"       llama.cpp: {theirs[:50]!r}")
    sys.exit(failed)


main()
