"""What Optimum exports, on the engine `ort`: the logits that transformers recorded, and the texts of the cpu engine.

usage: optimum_in.py EDGEFT GOLDENS DATA WORK   (with optimum-onnx, torch, onnx and onnxruntime)

Decoders are exported with `past_key_values`, so that texts go through the cache that the graph grows.
"""

import json
import pathlib
import subprocess
import sys

BOUND = "5e-4"
DECODERS = ("llama", "llama3_rope", "llama_tied_bias_mha", "mistral_sliding", "qwen2")
CASES = {name: "text-generation-with-past" for name in DECODERS} | {
    "bert_classify": "text-classification",
    "bert_qa": "question-answering",
}
PROMPTS = ("Once upon a time", "The little dog", "One day, Lily")


def edgeft(binary, *args, codes=(0,)):
    done = subprocess.run([str(binary), *map(str, args), "--json"], capture_output=True, text=True)
    if done.returncode not in codes:
        sys.exit(f"edgeft {' '.join(map(str, args))}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def older(case, folder):
    """The case for transformers 4, which Optimum brings: it has `rope_parameters` under two other keys."""
    folder.mkdir(parents=True)
    config = json.loads((case / "config.json").read_text())
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(case / "model.safetensors")
    return folder


def main():
    binary, goldens, data, work = (pathlib.Path(a).resolve() for a in sys.argv[1:5])
    from optimum.exporters.onnx import main_export  # seconds; after the arguments were looked at

    failed = False

    def say(holds, line):
        nonlocal failed
        failed |= not holds
        print(("ok    " if holds else "FAIL  ") + line, flush=True)

    for name, task in CASES.items():
        folder = work / name
        main_export(str(older(goldens / name, work / "from" / name)), str(folder), task=task, do_validation=False)
        v = edgeft(binary, "verify", folder, "--against", goldens / name / "io.safetensors", "--engine", "ort", "--max-abs", BOUND, codes=(0, 3))
        say(v["pass"], f"{name} by Optimum: {v['positions']} positions, largest difference {v['max_abs']:.1e}")
    source, folder = data / "models/stories260K", work / "stories260K"
    main_export(str(source), str(folder), task="text-generation-with-past", do_validation=False)
    v = edgeft(binary, "verify", folder, "--against", source, "--engine", "ort", "--max-kl", "1e-6", codes=(0, 3))
    say(v["mean_kl"] < 1e-6 and v["tokens_identical"], f"stories260K by Optimum: mean KL {v['mean_kl']:.1e}, tokens alike")
    for prompt in PROMPTS:
        texts = {engine: edgeft(binary, "run", model, "-p", prompt, "-n", 64, "--temperature", 0, "--engine", engine) for engine, model in (("ort", folder), ("cpu", source))}
        same = texts["ort"]["token_ids"] == texts["cpu"]["token_ids"] and texts["ort"]["text"] == texts["cpu"]["text"]
        say(same, f"stories260K by Optimum on ort and cpu: {prompt}{texts['ort']['text'][:40]!r}")
    if failed:
        sys.exit(1)


main()
