"""Checks that .ci/run and .ci/full make through the binary: each prints a line, and the first that does not hold ends it."""

import argparse
import array
import json
import math
import pathlib
import shutil
import subprocess
import sys

# Families that the engine gpu has kernels for; the others are refused by name there.
GPU = ("llama", "mistral", "qwen2", "bert_", "roberta_")


def run(*args, codes=(0,)):
    """Runs a command; returns the JSON object on the last line of its output."""
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    if done.returncode not in codes:
        sys.exit(f"{' '.join(map(str, args))}\nended with {done.returncode}, expected {codes}\n{done.stdout}{done.stderr}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def check(holds, line):
    print(("ok    " if holds else "FAIL  ") + line, flush=True)
    if not holds:
        sys.exit(1)


def aim(holds, line):
    """A figure that is known to fall short (see README): said in every run, so that nobody takes it for met."""
    print(("ok    " if holds else "SHORT ") + line, flush=True)


def demo(task, file):
    d = json.loads(pathlib.Path(file).read_text().strip().splitlines()[-1])
    base, tuned = d["base"]["value"], d["tuned"]["value"]
    better = {"sentiment": base < 0.6 and tuned >= 0.9, "story": tuned < base / 4, "answer": tuned >= max(0.8, base + 0.5)}[task]
    check(better, f"{task}: {d['tuned']['metric']} {base:.3f} -> {tuned:.3f}")
    if task == "answer":
        aim(base < 0.1, f"answer: the base alone reaches {base:.3f}, the aim is under 0.1")
    for mix, verdict in d["verify"].items():
        check(verdict["pass"], f"{task}: {mix} passes, mean KL {verdict['mean_kl']:.1e}")
    check(d["seconds"] < 180, f"{task}: {d['seconds']:.0f} s")


def goldens(edgeft, folder, work):
    work = pathlib.Path(work)
    for case in sorted(p for p in pathlib.Path(folder).iterdir() if (p / "io.safetensors").is_file()):
        io = case / "io.safetensors"
        v = run(edgeft, "verify", case, "--against", io, "--max-abs", "5e-4", "--json")
        check(v["pass"], f"{case.name} on candle: largest difference {v['max_abs']:.1e}")
        gguf = work / f"{case.name}.gguf"
        run(edgeft, "quantize", case, "--type", "f32", "--out", gguf, "--json")
        v = run(edgeft, "verify", gguf, "--against", io, "--max-abs", "5e-4", "--json")
        check(v["pass"], f"{case.name} on cpu: largest difference {v['max_abs']:.1e}")
        for lora in sorted(p for p in (case / "lora").iterdir() if p.is_dir()):
            trace(edgeft, case, lora, work / f"{case.name}-{lora.name}")
            merged(edgeft, case, lora, work / f"{case.name}-{lora.name}-merged")


def trace(edgeft, case, lora, out):
    """What peft recorded, step by step: losses, then the adapter and what the tuned model answers."""
    t = json.loads((lora / "trace.json").read_text())
    (b1, b2), n = t["betas"], len(t["losses"])
    run(edgeft, "tune", "--model", case, "--data", case / "io.safetensors", "--init-adapter", lora / "adapter_init", "--out", out,
        "--no-val", "--steps", n, "--batch", 4096, "--lr", t["lr"], "--beta1", b1, "--beta2", b2, "--eps", t["eps"],
        "--weight-decay", t["weight_decay"], "--schedule", "constant", "--warmup", 0, "--clip", 0, "--dropout", 0, "--json")
    ours = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    off = max(abs(a - b) / abs(b) for a, b in zip(ours, t["losses"]))
    check(len(ours) == n and off < 1e-3, f"{case.name} {lora.name}: {n} losses, {off:.1e} off at most")
    ours, theirs = (floats(f / "adapter_model.safetensors") for f in (out, lora / "adapter_final"))
    # The true gradient of this bias is zero (a softmax over positions does not feel a shift of them all), and AdamW makes
    # steps of the learning rate out of what rounding leaves of it.
    idle = "base_model.model.qa_outputs.bias"
    off = max(math.dist(ours[k], theirs[k]) / math.hypot(*theirs[k]) for k in theirs if k != idle)
    check(ours.keys() == theirs.keys() and off < 2e-3, f"{case.name} {lora.name}: {len(ours)} tensors, {off:.1e} off at most")
    tuned = out
    if idle in ours:
        # Their shift, so that the answers can be compared as they are.
        tuned = out.with_name(f"{out.name}-shifted")
        shutil.copytree(out, tuned)
        put(tuned / "adapter_model.safetensors", idle, theirs[idle])
    reference = out.with_suffix(".reference.safetensors")
    recorded = header(lora / "merged.safetensors")[0]
    join(case / "io.safetensors", ("input_ids", "attention_mask"), lora / "merged.safetensors", tuple(recorded), reference)
    answers = [x for k in recorded if k.endswith("logits") for x in floats(lora / "merged.safetensors")[k]]
    rms = math.hypot(*answers) / math.sqrt(len(answers))
    v = run(edgeft, "verify", tuned, "--against", reference, "--max-abs", 2e-3 * rms, "--json", codes=(0, 3))
    off = v["max_abs"] / rms
    check(v["pass"], f"{case.name} {lora.name}: its answers, {off:.1e} off at most, of their root mean square")


def merged(edgeft, case, lora, out):
    """peft's final adapter, folded in here, against what peft's merged model answers."""
    run(edgeft, "merge", "--model", case, "--adapter", lora / "adapter_final", "--out", out, "--json")
    reference = out.with_suffix(".reference.safetensors")
    join(case / "io.safetensors", ("input_ids", "attention_mask"), lora / "merged.safetensors", tuple(header(lora / "merged.safetensors")[0]), reference)
    v = run(edgeft, "verify", out, "--against", reference, "--max-abs", "5e-4", "--json")
    check(v["pass"], f"{case.name} {lora.name} merged: largest difference {v['max_abs']:.1e}")


def header(path):
    """Names with their places in a safetensors file, and where its data begin."""
    raw = pathlib.Path(path).read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    return {k: v for k, v in json.loads(raw[8:begin]).items() if k != "__metadata__"}, begin, raw


def floats(path):
    places, begin, raw = header(path)
    of = lambda v: array.array("f", raw[begin + v["data_offsets"][0] : begin + v["data_offsets"][1]]).tolist()
    return {k: of(v) for k, v in places.items() if v["dtype"] == "F32"}


def put(path, name, values):
    places, begin, raw = header(path)
    at, end = (begin + o for o in places[name]["data_offsets"])
    pathlib.Path(path).write_bytes(raw[:at] + array.array("f", values).tobytes() + raw[end:])


def join(one, names, other, others, out):
    """A safetensors file of some tensors of two."""
    head, data = {}, b""
    for path, wanted in ((one, names), (other, others)):
        places, begin, raw = header(path)
        for name in wanted:
            at, end = places[name]["data_offsets"]
            head[name] = {**places[name], "data_offsets": [len(data), len(data) + end - at]}
            data += raw[begin + at : begin + end]
    head = json.dumps(head).encode()
    head += b" " * (-len(head) % 8)
    out.write_bytes(len(head).to_bytes(8, "little") + head + data)


def tokenizers(edgeft, data):
    data = pathlib.Path(data)
    for inp in sorted((data / "llama.cpp-vocab").glob("*.inp")):
        vocab = inp.with_suffix("")
        # a .inp file ends each case with "\n__ggml_vocab_test__\n"; a .out file has a line of ids a case
        cases = inp.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
        ids = [[int(i) for i in line.split()] for line in (inp.with_suffix(".out")).read_text().splitlines()]
        wrong = 0
        for text, want in zip(cases, ids):
            got = run(edgeft, "tokenize", vocab, "--text", text, "--no-special", "--json")["ids"]
            wrong += got != want
        check(wrong == 0, f"{vocab.name}: {len(ids)} texts")
    tests = data / "tokenizers" / "reftests"
    for file in sorted(tests.glob("*.json")):
        t = json.loads(file.read_text())
        got = run(edgeft, "tokenize", data / "tokenizers" / t["model_name"], "--file", tests / pathlib.Path(t["input_file"]).name, "--json")["ids"]
        check(got == t["token_ids"], f"{file.name}: {len(got)} ids")


def stories(edgeft, data, work):
    data, work = pathlib.Path(data), pathlib.Path(work)
    base, out = data / "models/stories260K", work / "shakespeare"
    run(edgeft, "tune", "--model", base, "--task", "text", "--data", data / "text/tinyshakespeare.txt", "--out", out, "--epochs", "0.3",
        "--max-len", 256, "--json")
    v = run(edgeft, "verify", out, "--against", base, "--max-kl", 100, "--json")["perplexity"]
    check(v["subject"] < v["reference"] / 3, f"stories260K on TinyShakespeare: perplexity {v['reference']:.1f} -> {v['subject']:.1f}")
    run(edgeft, "quantize", out, "--type", "q8_0", "--out", work / "shakespeare.gguf", "--json")
    v = run(edgeft, "verify", work / "shakespeare.gguf", "--against", out, "--json", codes=(0, 3))
    check(v["mean_kl"] <= v["bounds"]["max_kl"], f"its q8_0 file: mean KL {v['mean_kl']:.1e}")
    aim(v["pass"], f"its q8_0 file through the gate: top 1 {v['top1']:.4f}, at least {v['bounds']['min_top1']}")
    foreign = data / "models/stories260K-by-llama.cpp.gguf"
    text = run(edgeft, "run", foreign, "-p", "Once upon a time", "-n", 64, "--json")["text"]
    check(text.startswith(", there was a little"), f"llama.cpp's file: Once upon a time{text[:60]!r}")
    v = run(edgeft, "verify", foreign, "--against", base, "--max-kl", "1e-6", "--json")
    check(v["mean_kl"] < 1e-6, f"llama.cpp's file against the folder: mean KL {v['mean_kl']:.1e}")


def quantized(edgeft, data, work):
    """Tuning on a GGUF file: llama.cpp's own gives the losses of the folder, and NF4 costs what four bits cost."""
    data, work = pathlib.Path(data), pathlib.Path(work)
    folder, file = data / "models/stories260K", data / "models/stories260K-by-llama.cpp.gguf"
    losses = {}
    for name, model, method in (("folder", folder, "lora"), ("gguf", file, "qlora"), ("nf4", folder, "qlora")):
        out = work / f"stories-{name}"
        run(edgeft, "tune", "--model", model, "--method", method, "--task", "text", "--data", data / "text/tinyshakespeare.txt",
            "--max-len", 128, "--batch", 8, "--steps", 12, "--no-val", "--out", out, "--json")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    off = max(abs(a / b - 1) for a, b in zip(losses["gguf"], losses["folder"], strict=True))
    check(off < 1e-5, f"LoRA on llama.cpp's own file: losses {off:.1e} off those on the folder, {losses['gguf'][0]:.3f} -> {losses['gguf'][-1]:.3f}")
    gap = losses["nf4"][-1] - losses["folder"][-1]
    check(0 < gap < 0.2 and losses["nf4"][-1] < losses["nf4"][0], f"NF4: last loss {losses['nf4'][-1]:.3f}, {gap:.3f} above f32")
    merged = work / "stories-gguf-q8_0.gguf"
    run(edgeft, "quantize", work / "stories-gguf", "--type", "q8_0", "--out", merged, "--json")
    v = run(edgeft, "verify", merged, "--against", work / "stories-gguf", "--json", codes=(0, 3))
    check(v["tokens_identical"] and v["mean_kl"] < 5e-3, f"merged onto llama.cpp's file, q8_0: same tokens, mean KL {v['mean_kl']:.1e}")


def engines(edgeft, folder, data, work):
    """What leaves as f32 through each exit: the golden logits, and the same texts on real models."""
    data, work = pathlib.Path(data), pathlib.Path(work)
    work.mkdir(parents=True)
    exits = {"cpu": ("gguf", ".gguf"), "gpu": ("gguf", ".gguf"), "ort": ("onnx", "-onnx")}

    def leave(model, name, engines=tuple(exits)):
        files = {}
        for engine, (to, end) in ((e, exits[e]) for e in engines):
            files[engine] = work / f"{name}{end}"
            if not files[engine].exists():
                run(edgeft, "quantize", model, "--to", to, "--type", "f32", "--out", files[engine], "--json")
        return files

    for case in sorted(p for p in pathlib.Path(folder).iterdir() if (p / "io.safetensors").is_file()):
        there = ["cpu", "ort"] + ["gpu"] * case.name.startswith(GPU)
        for engine, file in leave(case, case.name, there).items():
            bound = "2e-3" if engine == "gpu" else "1e-3"
            v = run(edgeft, "verify", file, "--against", case / "io.safetensors", "--engine", engine, "--max-abs", bound, "--json")
            check(v["pass"], f"{case.name} on {engine}: largest difference {v['max_abs']:.1e}")
    for name, model in (("stories260K", data / "models/stories260K"), ("nano", "nano")):
        files = leave(model, name)
        for prompt in ("Once upon a time", "The little dog"):
            texts = {e: run(edgeft, "run", f, "-p", prompt, "-n", 48, "--engine", e, "--json")["text"] for e, f in files.items()}
            check(len(set(texts.values())) == 1, f"{name} on {', '.join(texts)}: {prompt}{texts['cpu'][:40]!r}")


def sst2(edgeft, data, work, least, most_seconds, length):
    data, out = pathlib.Path(data), pathlib.Path(work) / "sst2"
    t = run(edgeft, "tune", "--model", data / "models/all-MiniLM-L6-v2", "--task", "classify", "--data", data / "classify/sst2.train.jsonl",
            "--val", data / "classify/sst2.dev.jsonl", "--out", out, "--batch", 32, *length, "--json")
    e = run(edgeft, "eval", out, "--data", data / "classify/sst2.dev.jsonl", "--json")
    check(e["accuracy"] >= least, f"MiniLM on SST-2: accuracy {e['accuracy']:.4f} of {e['examples']} after {t['steps']} steps")
    check(t["seconds"] <= most_seconds, f"in {t['seconds']:.0f} s, {t['tokens_per_s']:.0f} tokens/s, {t['peak_mib']:.0f} MiB")
    gguf, folder = out.with_suffix(".gguf"), out.with_name("sst2-onnx")
    run(edgeft, "quantize", out, "--type", "f32", "--out", gguf, "--json")
    run(edgeft, "quantize", out, "--to", "onnx", "--type", "f32", "--out", folder, "--json")
    for text in ("a gorgeous, witty, seductive movie .", "the plot is nothing but boilerplate clichés from start to finish ."):
        labels = [run(edgeft, "run", f, "-p", text, "--engine", e, "--json")["labels"] for e, f in (("cpu", gguf), ("gpu", gguf), ("ort", folder))]
        scores = [{x["label"]: x["score"] for x in one} for one in labels]
        off = max(abs(s[label] - scores[0][label]) for s in scores for label in s)
        check(off < 1e-3, f"{labels[0][0]['label']} {labels[0][0]['score']:.4f} on cpu, gpu and ort, {off:.1e} apart: {text}")


def main():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, names in {"demo": ["task", "file"], "goldens": ["edgeft", "folder", "work"], "tokenizers": ["edgeft", "data"],
                        "stories": ["edgeft", "data", "work"], "quantized": ["edgeft", "data", "work"], "engines": ["edgeft", "folder", "data", "work"], "sst2": ["edgeft", "data", "work"]}.items():
        p = verbs.add_parser(verb)
        for name in names:
            p.add_argument(name)
    p.add_argument("--least", type=float, required=True)
    p.add_argument("--most-seconds", type=float, default=3600)
    p.add_argument("--steps")
    p.add_argument("--epochs")
    a = vars(parser.parse_args())
    verb = a.pop("verb")
    if verb == "sst2":
        steps, epochs = a.pop("steps"), a.pop("epochs")
        a["length"] = ["--steps", steps] if steps else ["--epochs", epochs or "1"]
    globals()[verb](**a)


main()
