"""What `edgeft quantize --to onnx` writes, in the hands of others: onnx's checker takes it and ONNX Runtime runs it.

usage: onnx_out.py EDGEFT GOLDENS DATA WORK [--only NAME]   (with onnx, onnxruntime, onnxruntime-genai, safetensors and gguf, wheels
                                                            that need no network later)

- f32: the logits that transformers recorded and those of the few lines of numpy in networks.py, to 1e-3; token by token with the
  cache the same as in one pass; padding before a text changes nothing; the same greedy text as the cpu engine
- q8_0, q4_0: every weight is bit for bit what gguf-py decodes from the GGUF file of that type, and the logits are those of
  the f32 graph with these weights in it, to 1e-3
- `--onnx ort`: the logits of the portable graph, to 1e-3, and in f32 all of the above; the codes are those of the GGUF file's
  blocks; ONNX Runtime GenAI loads the folder and writes the text of the engine ort
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_genai as genai
from networks import Numpy, bare
from safetensors.numpy import load_file, save_file

BOUND = 1e-3
CASES = ("llama", "llama3_rope", "llama_tied_bias_mha", "mistral_sliding", "qwen2", "bert_classify", "bert_qa")
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q6_k")

# GGUF name -> Hugging Face name, inside a block and outside.
DECODER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head",
}
ENCODER = {
    "attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value", "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm", "ffn_up": "intermediate.dense", "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm", "token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm", "cls": "pooler.dense",
    "cls.output": "classifier",
}


def edgeft(binary, *args):
    done = subprocess.run([str(binary), *map(str, args), "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"edgeft {' '.join(map(str, args))}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Model:
    """An ONNX folder in a session."""

    def __init__(self, folder, file="model.onnx"):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 3
        # Activations stay f32: by default ONNX Runtime rounds them to eight bits where weights have codes.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = ort.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.caches = {i.name: i.shape for i in self.session.get_inputs() if i.name.startswith("past_key_values.")}

    def run(self, ids, mask, cache=None):
        """All outputs by name. `mask` covers the cache and `ids`."""
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.inputs:
            feeds["token_type_ids"] = np.zeros_like(ids)
        if "position_ids" in self.inputs:
            before = mask.shape[1] - ids.shape[1]
            feeds["position_ids"] = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, before:]
        for name, (_, heads, _, width) in self.caches.items():
            feeds[name] = np.zeros((len(ids), heads, 0, width), np.float32) if cache is None else cache[name]
        return dict(zip(self.outputs, self.session.run(None, feeds)))

    def cache_of(self, outputs):
        return {name: outputs[name.replace("past_key_values", "present")] for name in self.caches}


def largest(a, b, mask=None):
    if a.shape != b.shape:
        sys.exit(f"shapes {a.shape} and {b.shape}")
    difference = np.abs(a.astype(np.float64) - b)
    if mask is not None and difference.ndim > 1 and difference.shape[:2] == mask.shape:
        difference = difference[mask == 1]
    return float(difference.max())


def by_numpy(model, folder, ids, mask):
    """A padded batch against its rows one by one."""
    outputs, numpy, worst = model.run(ids, mask), Numpy(folder), 0.0
    for row in range(len(ids)):
        n = int(mask[row].sum())
        for name, want in numpy.run(ids[row, :n]).items():
            got = outputs[name][row] if len(outputs[name][row]) == len(want) else outputs[name][row, :n]
            worst = max(worst, largest(got, want))
    return worst


def recorded(model, io):
    """Against what transformers gave, where there is no padding."""
    ids, mask = io["input_ids"], io["attention_mask"]
    outputs = model.run(ids, mask)
    return max(largest(outputs[name], io[name], mask) for name in ("logits", "start_logits", "end_logits") if name in io)


def stepwise(model, ids):
    """A prompt in pieces of 5, 1, 1, 3, then one by one, each on the cache of the last, against one pass."""
    whole = model.run(ids, np.ones_like(ids))
    at, cache, worst = 0, None, 0.0
    for n in [5, 1, 1, 3] + [1] * ids.shape[1]:
        n = min(n, ids.shape[1] - at)
        if n == 0:
            break
        outputs = model.run(ids[:, at : at + n], np.ones((len(ids), at + n), np.int64), cache)
        cache = model.cache_of(outputs)
        worst = max(worst, largest(outputs["logits"], whole["logits"][:, at : at + n]))
        at += n
    return max(worst, max(largest(cache[name], model.cache_of(whole)[name]) for name in model.caches))


def padded_left(model, ids):
    """Padding before a text changes nothing of what follows it."""
    ids, pad = ids[:1, :9], 4
    alone = model.run(ids, np.ones_like(ids))["logits"]
    both = np.concatenate([np.full((1, pad), 3, np.int64), ids], 1)
    mask = np.concatenate([np.zeros((1, pad), np.int64), np.ones_like(ids)], 1)
    outputs = model.run(both, mask)["logits"]
    if not np.isfinite(outputs).all():
        sys.exit("padding before the text gives values that are not finite")
    return largest(outputs if outputs.ndim == 2 else outputs[:, pad:], alone)


def same_text(binary, folder, model, n=50):
    """Tokens that differ from a greedy run of the cpu engine on the same prompt."""
    ids = edgeft(binary, "tokenize", folder, "--text", "Once upon a time")["ids"]
    want = edgeft(binary, "run", folder, "-p", "Once upon a time", "-n", n, "--temperature", 0)["token_ids"]
    text, new, cache = list(ids), ids, None
    for _ in want:
        outputs = model.run(np.array([new]), np.ones((1, len(text)), np.int64), cache)
        new, cache = [int(outputs["logits"][0, -1].argmax())], model.cache_of(outputs)
        text += new
    return float(sum(a != b for a, b in zip(text[len(ids) :], want)))


def name_of(tensor, bert):
    """Hugging Face's name of a GGUF tensor, without `model.` or `bert.`."""
    parts, table = tensor.split("."), ENCODER if bert else DECODER
    end = parts.pop()
    if parts[0] == "blk":
        return f"{'encoder.layer' if bert else 'layers'}.{parts[1]}.{table['.'.join(parts[2:])]}.{end}"
    return f"{table['.'.join(parts)]}.{end}"


def apart(x, heads):
    """Rows of each head from adjacent pairs, as GGUF Llama files have them, to pairs half a head apart."""
    return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def decoded(file):
    """Weights of a GGUF file by their Hugging Face names, in f32, rows in Hugging Face's order."""
    reader = gguf.GGUFReader(file)
    field = lambda key: reader.fields[key].contents() if key in reader.fields else None  # noqa: E731
    arch, out = field("general.architecture"), {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(tensor.shape[::-1])
        for part, heads in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
            if arch == "llama" and f".{part}." in tensor.name:
                x = apart(x, field(f"llama.attention.{heads}"))
        out[name_of(tensor.name, arch == "bert")] = x
    return out


def stored(folder):
    """Weights of an ONNX folder in f32, turned back to the source's shapes."""
    model = onnx.load(folder / "model.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    gathered = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    out = {}
    for name, x in arrays.items():
        if name.startswith(("const.", "rotary.")) or name.endswith(".scale"):
            continue
        turned = x.ndim == 2 and name not in gathered
        scale = arrays.get(f"{name}.scale")
        x = x.astype(np.float32)
        if scale is not None:
            axis = 0 if turned else 1
            x = x * np.repeat(scale, x.shape[axis] // scale.shape[axis], axis)
        out[bare(name)] = x.T if turned else x
    return out


def blocks(tensor):
    """Unsigned codes of a tensor of q4_0 or q8_0 blocks, (rows, columns), read off its bytes."""
    rows = tensor.data.reshape(tensor.shape[1], -1)
    if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
        return (rows.reshape(len(rows), -1, 34)[:, :, 2:] ^ 0x80).reshape(len(rows), -1)
    halves = rows.reshape(len(rows), -1, 18)[:, :, 2:]
    return np.concatenate([halves & 15, halves >> 4], 2).reshape(len(rows), -1)


def same_codes(folder, file, name):
    """The codes of `--onnx ort` are those of the GGUF file's blocks, the scales theirs; how many tensors have some."""
    model = onnx.load(folder / "model.onnx")
    arrays = {bare(t.name): onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    reader, compared = gguf.GGUFReader(file), 0
    arch = reader.fields["general.architecture"].contents()
    for tensor in reader.tensors:
        if tensor.tensor_type not in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0):
            continue
        want, weights = blocks(tensor), gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for part, heads in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
            if arch == "llama" and f".{part}." in tensor.name:
                heads = reader.fields[f"llama.attention.{heads}"].contents()
                want, weights = apart(want, heads), apart(weights, heads)
        weight = bare(name_of(tensor.name, arch == "bert"))
        if weight not in arrays and weight.startswith("pooler."):
            continue  # vectors of texts need none
        stored, scale = arrays[weight], arrays[f"{weight}.scale"]
        if stored.dtype != np.uint8 or scale.dtype != np.float32:
            sys.exit(f"{name}: `{weight}` is {stored.dtype} with scales of {scale.dtype}")
        got, bits = stored.reshape(len(want), -1), 8 * stored.size // want.size
        if bits == 4:
            got = np.stack([got & 15, got >> 4], 2).reshape(len(want), -1)
        values = (got.astype(np.float32) - (1 << bits - 1)) * np.repeat(scale, 32, 1)
        if not np.array_equal(got, want) or not np.array_equal(values.view(np.uint32), np.ascontiguousarray(weights, np.float32).view(np.uint32)):
            sys.exit(f"{name}: the codes or scales of `{weight}` are not those of the GGUF file")
        compared += 1
    return compared


def precise(folder):
    """The graph with activations in f32: `MatMulNBits` is told to round them to eight bits."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 1
    onnx.save(model, folder / "precise.onnx")
    return Model(folder, "precise.onnx")


def checked(folder):
    """onnx's checker, which takes `SimplifiedLayerNormalization` for an unknown standard operator."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    onnx.save(model, folder / "checked.onnx")
    onnx.checker.check_model(folder / "checked.onnx", full_check=True)
    (folder / "checked.onnx").unlink()


def genai_text(binary, folder, prompt="Once upon a time", n=48):
    """Tokens and characters in which ONNX Runtime GenAI's greedy text differs from the engine ort's."""
    ours = edgeft(binary, "run", folder, "-p", prompt, "-n", n, "--temperature", 0)
    ids = edgeft(binary, "tokenize", folder, "--text", prompt)["ids"]
    model = genai.Model(str(folder))
    tokenizer, parameters = genai.Tokenizer(model), genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(ids) + len(ours["token_ids"]))
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(ids, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    theirs = [int(t) for t in generator.get_sequence(0)][len(ids) :]
    text = tokenizer.decode(np.array(theirs, np.int32))
    if text.strip() != ours["text"].strip():
        print(f"     genai {text!r}\n     ours  {ours['text']!r}")
    return float(sum(a != b for a, b in zip(theirs, ours["token_ids"])) + (text.strip() != ours["text"].strip()))


def fused(binary, name, folder, ty, io, work, line):
    """`--onnx ort` beside the portable folder of the type."""
    ids, mask = io["input_ids"], io["attention_mask"]
    place, portable = work / name / f"{ty}-ort", work / name / ty
    window = json.loads((folder / "config.json").read_text()).get("sliding_window")
    command = ["quantize", folder, "--to", "onnx", "--onnx", "ort", "--type", ty, "--out", place]
    if window:
        done = subprocess.run([str(binary), *map(str, command)], capture_output=True, text=True)
        if done.returncode != 2 or "portable" not in done.stderr:
            sys.exit(f"{name} {ty}: a window was not refused: {done.returncode} {done.stderr}")
        return
    report = edgeft(binary, *command)
    size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
    if report["bytes"] != size:
        sys.exit(f"{name} {ty} for ort: {report['bytes']} bytes reported, {size} written")
    checked(place)
    model, ones = precise(place), np.ones_like(ids)
    outputs, want = model.run(ids, ones), Model(portable).run(ids, ones)
    line[f"ort {ty}"] = max(largest(outputs[o], want[o]) for o in want)
    if ty == "f32":
        if set(io) & {"logits", "start_logits"}:
            line["ort recorded"] = recorded(model, io)
        line["ort numpy"] = by_numpy(model, folder, ids, mask)
        if model.caches:
            line["ort stepwise"] = stepwise(model, ids[:1])  # several tokens behind a past: one row at a time
    if ty in ("q8_0", "q4_0"):
        if not same_codes(place, work / name / f"{ty}.gguf", f"{name} {ty} for ort"):
            sys.exit(f"{name} {ty} for ort: no tensor has codes")
    if model.caches and (folder / "tokenizer.json").exists():
        for at in (place, portable) if ty == "f32" else (place,):
            line[f"genai {ty}" + ("" if at == place else " portable")] = genai_text(binary, at)


def with_weights(folder, weights, out):
    """The f32 graph with other weights."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    data = bytearray((folder / "model.onnx.data").read_bytes())
    gathered = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    for tensor in model.graph.initializer:
        x = weights.get(bare(tensor.name))
        if x is not None:
            x = x.T if x.ndim == 2 and tensor.name not in gathered else x
            place = {e.key: e.value for e in tensor.external_data}
            at, n = int(place["offset"]), int(place["length"])
            data[at : at + n] = np.ascontiguousarray(x, np.float32).tobytes()
    (out / "model.onnx.data").write_bytes(data)


def case(binary, name, folder, io, work):
    """One model in every type; returns the largest differences."""
    ids, mask = io["input_ids"], io["attention_mask"]
    line, plain = {}, work / name / "f32"
    shutil.rmtree(work / name, ignore_errors=True)
    (work / name).mkdir(parents=True)
    for ty in TYPES:
        place = work / name / ty
        report = edgeft(binary, "quantize", folder, "--to", "onnx", "--type", ty, "--out", place)
        size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
        if report["bytes"] != size:
            sys.exit(f"{name} {ty}: {report['bytes']} bytes reported, {size} written")
        onnx.checker.check_model(place / "model.onnx", full_check=True)
        model = Model(place)
        if ty == "f32":
            if set(io) & {"logits", "start_logits"}:
                line["recorded"] = recorded(model, io)
            line["numpy"] = by_numpy(model, folder, ids, mask)
            if model.caches:
                line["stepwise"] = stepwise(model, ids)
            if "position_ids" in model.inputs:
                line["padded"] = padded_left(model, ids)
            if model.caches and (folder / "tokenizer.json").exists():
                line["text"] = same_text(binary, folder, model)
            fused(binary, name, folder, ty, io, work, line)
            continue
        file = work / name / f"{ty}.gguf"
        edgeft(binary, "quantize", folder, "--type", ty, "--out", file)
        want, got = decoded(file), stored(place)
        for tensor in got.keys() & want.keys():
            if not np.array_equal(got[tensor].view(np.uint32), np.ascontiguousarray(want[tensor]).view(np.uint32)):
                worst = np.abs(got[tensor] - want[tensor]).max()
                sys.exit(f"{name} {ty}: `{tensor}` is not what the GGUF file decodes to, by {worst}")
        missing = {t for t in want.keys() - got.keys() if not t.startswith("pooler.")}
        if missing:
            sys.exit(f"{name} {ty}: {missing} not in the ONNX file")
        with_weights(plain, want, work / name / "twin")
        twin, outputs = Model(work / name / "twin").run(ids, np.ones_like(ids)), model.run(ids, np.ones_like(ids))
        line[ty] = max(largest(outputs[o], twin[o]) for o in model.outputs)
        fused(binary, name, folder, ty, io, work, line)
    return line


def classifier(llama, folder):
    """A Llama that tells three labels apart, made of one that generates."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = json.loads((llama / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {str(i): f"label {i}" for i in range(3)}}
    weights = load_file(llama / "model.safetensors")
    del weights["lm_head.weight"]
    weights["score.weight"] = np.random.default_rng(1).normal(size=(3, config["hidden_size"])).astype(np.float32)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("edgeft", type=pathlib.Path)
    parser.add_argument("goldens", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--only", help="one case by its name")
    args = parser.parse_args()
    cases = [(name, args.goldens / name, load_file(args.goldens / name / "io.safetensors")) for name in CASES]
    rng = np.random.default_rng(0)
    mask = (np.arange(24) < np.array([[24], [17], [1]])).astype(np.int64)
    made = [("llama_classify", classifier(args.goldens / "llama", args.work / "classifier"), 384)]
    made += [(name, args.data / "models" / name, vocab) for name, vocab in (("stories260K", 512), ("all-MiniLM-L6-v2", 30522))]
    made += [("nano", pathlib.Path(__file__).parent.parent / "src/demo/nano", 2048)]
    cases += [(name, folder, {"input_ids": rng.integers(3, vocab, (3, 24)), "attention_mask": mask}) for name, folder, vocab in made]
    failed = False
    for name, folder, io in cases:
        if args.only in (None, name):
            line = case(args.edgeft.resolve(), name, folder, io, args.work)
            bad = [what for what, worst in line.items() if not worst <= BOUND]
            failed |= bool(bad)
            print(f"{'FAIL' if bad else 'ok':4} {name:20} " + "  ".join(f"{what} {worst:.1e}" for what, worst in line.items()), flush=True)
    if failed:
        sys.exit(f"differences over {BOUND}")


if __name__ == "__main__":
    main()
