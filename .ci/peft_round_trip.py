"""Adapters go from edgeft to PEFT and back, in Python's PEFT itself: the same tensors, the same logits, the same losses.

usage: peft_round_trip.py EDGEFT CASES WORK NAME[,NAME...]
       CASES holds a folder a name: tests/fixtures, or shared/goldens
needs: torch, transformers, peft, safetensors
"""
import json
import pathlib
import shutil
import subprocess
import sys
import warnings

import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(2)
CLASSES = {"CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS", "QuestionAnswering": "QUESTION_ANS"}
STEPS, LR = 8, 1e-2


def edgeft(*args, code=0):
    done = subprocess.run([EDGEFT, *map(str, args)], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"edgeft {' '.join(map(str, args))}\nended with {done.returncode}, expected {code}\n{done.stdout}{done.stderr}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if code in (0, 3) and lines and lines[-1].startswith("{") else done.stderr


def check(holds, line):
    print(("ok    " if holds else "FAIL  ") + line, flush=True)
    if not holds:
        sys.exit(1)


class Case:
    """A tiny model with one batch."""

    def __init__(self, folder):
        self.folder, self.name = folder, folder.name
        config = json.loads((folder / "config.json").read_text())
        self.cls = config["architectures"][0]
        self.task = next(t for end, t in CLASSES.items() if self.cls.endswith(end))
        io = load_file(folder / "io.safetensors")
        self.inputs = {k: io[k] for k in ("input_ids", "attention_mask")}
        self.labels = {k: io[k] for k in ("labels", "start_positions", "end_positions") if k in io}

    def model(self):
        return getattr(transformers, self.cls).from_pretrained(self.folder, attn_implementation="eager", dtype=torch.float32).eval()

    def reference(self, model, path):
        """The model's logits, as `edgeft verify --against` takes them."""
        with torch.no_grad():
            out = model(**self.inputs)
        logits = {k: out[k].contiguous() for k in ("logits", "start_logits", "end_logits") if k in out}
        save_file({**self.inputs, **logits}, path)
        return path

    def train(self, model, optimizer):
        losses = []
        model.train()
        for _ in range(STEPS):
            loss = model(**self.inputs, **self.labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        model.eval()
        return losses

    def tune(self, out, *flags, lr=LR):
        edgeft("tune", "--model", self.folder, "--data", self.folder / "io.safetensors", "--out", out, "--no-val", "--steps", STEPS,
               "--batch", 4096, "--lr", lr, "--schedule", "constant", "--warmup", 0, "--clip", 0, "--force", *flags)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines]


def adamw(model, lr=LR):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)


def apart(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def same_logits(case, subject, reference, what):
    """Within 1e-4 of their root mean square: these random networks are steep, and rounding grows with what they give."""
    logits = torch.cat([v.flatten() for k, v in load_file(reference).items() if k.endswith("logits")])
    rms = float(logits.square().mean().sqrt())
    v = edgeft("verify", subject, "--against", reference, "--max-abs", 1e-4 * rms, "--json")
    check(v["pass"], f"{what}: logits {v['max_abs']:.1e} apart, of a root mean square of {rms:.1f}")


def ours_in_peft(case, work):
    """Every method of ours, tuned, loads in PEFT and answers as here; what PEFT saves of it has our bytes."""
    upper = ["--layers", "1"]
    ways = {"lora": [], "rslora": [], "dora": [], "ia3": [], "dora, upper layer": ["--method", "dora", *upper], "lora, upper layer": upper,
            "pissa": ["--init", "pissa"], "pissa, rslora": ["--init", "pissa", "--method", "rslora"], "lora+": ["--lora-plus-ratio", 16]}
    for way, flags in ways.items():
        run, flags = work / "run", flags or ["--method", way]
        case.tune(run, *flags, *([] if way == "ia3" else ["--rank", 4]))
        model = PeftModel.from_pretrained(case.model(), run).eval()
        reference = case.reference(model, work / "peft.safetensors")
        same_logits(case, run, reference, f"{case.name} {way}, ours in PEFT")
        moved = edgeft("verify", case.folder, "--against", reference, "--max-abs", "1e-3", "--json", code=3)["max_abs"]
        check(moved > 1e-2, f"{case.name} {way}: the adapter moved the logits by {moved:.2f}")
        edgeft("merge", run, "--out", work / "merged", "--force")
        same_logits(case, work / "merged", reference, f"{case.name} {way}, merged here")
        model.save_pretrained(work / "again")
        ours, theirs = (load_file(d / "adapter_model.safetensors") for d in (run, work / "again"))
        equal = ours.keys() == theirs.keys() and all(ours[k].numpy().tobytes() == theirs[k].numpy().tobytes() for k in ours)
        check(equal, f"{case.name} {way}: PEFT saves our {len(ours)} tensors again, byte for byte")


def configs(case, layers):
    """Configurations of PEFT's that edgeft does not write itself, and those it does."""
    bert = "bert" in case.name
    q, v, ff = ("query", "value", "output.dense") if bert else ("q_proj", "v_proj", "down_proj")
    if case.name.startswith("gpt2"):
        q, v, ff = "c_attn", "c_fc", "mlp.c_proj"
    elif case.name.startswith("distilbert"):
        q, v, ff = "q_lin", "v_lin", "lin2"
    elif case.name.startswith("phi3"):
        q, v, ff = "qkv_proj", "o_proj", "down_proj"
    common = dict(r=4, lora_alpha=8, task_type=case.task)
    yield "lora", LoraConfig(**common, target_modules=[q, v])
    yield "dora", LoraConfig(**common, target_modules=[q, v], use_dora=True, use_rslora=True)
    yield "ranks and alphas of their own", LoraConfig(
        **common, target_modules=[q, v, ff], rank_pattern={q: 2, rf"0\..*{v}": 6}, alpha_pattern={v: 3, ff: 32})
    yield "a pattern of paths", LoraConfig(**common, target_modules=rf".*\.[{layers - 1}]\..*{v}")
    yield "one layer", LoraConfig(**common, target_modules=[q, v], layers_to_transform=layers - 1)
    if case.name in ("llama", "phi3", "mistral_sliding"):
        yield "embedding and head whole", LoraConfig(**common, target_modules=[q], modules_to_save=["embed_tokens", "lm_head"])
    yield "ia3", IA3Config(target_modules=[v, ff], feedforward_modules=[ff], task_type=case.task)


def peft_in_ours(case, work):
    """What PEFT saves loads here, folded in and for tuning, and loses what PEFT loses from there on."""
    layers = case.model().config.num_hidden_layers
    for what, config in configs(case, layers):
        torch.manual_seed(1)
        model = get_peft_model(case.model(), config)
        with torch.no_grad():  # away from where they start, where they do nothing
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.1)
                elif "ia3_l" in name or "magnitude" in name:
                    p.mul_(1 + 0.2 * torch.randn_like(p))
        adapter = work / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        model.save_pretrained(adapter)
        reference = case.reference(model, work / "peft.safetensors")
        edgeft("merge", "--model", case.folder, "--adapter", adapter, "--out", work / "merged", "--force")
        same_logits(case, work / "merged", reference, f"{case.name} {what}, PEFT's in ours")
        theirs = case.train(model, adamw(model))
        ours = case.tune(work / "run", "--init-adapter", adapter)
        check(apart(ours, theirs) < 1e-3, f"{case.name} {what}: {STEPS} losses, {apart(ours, theirs):.1e} apart")
        model.save_pretrained(adapter)
        edgeft("merge", "--model", case.folder, "--adapter", adapter, "--out", work / "merged", "--force")
        same_logits(case, work / "merged", case.reference(model, work / "peft.safetensors"), f"{case.name} {what}, tuned by PEFT")


def same_losses(case, work):
    """Starts and optimizers that no adapter file tells of: PiSSA's and LoRA+'s losses, beside PEFT's."""
    targets = ["query", "value"] if "bert" in case.name else ["q_proj", "v_proj", "down_proj"]
    common = dict(r=4, lora_alpha=8, target_modules=targets, task_type=case.task)
    flags = ["--rank", 4, "--alpha", 8, "--targets", ",".join(targets)]
    torch.manual_seed(1)
    model = get_peft_model(case.model(), LoraConfig(**common, init_lora_weights="pissa"))
    theirs, ours = case.train(model, adamw(model)), case.tune(work / "run", *flags, "--init", "pissa")
    check(apart(ours, theirs) < 1e-3, f"{case.name} pissa: {STEPS} losses, {apart(ours, theirs):.1e} apart")
    # LoRA+ from one adapter: PEFT's LoRA+ has no decay unless told
    model = get_peft_model(case.model(), LoraConfig(**common))
    model.save_pretrained(work / "adapter")
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=LR / 4, loraplus_lr_ratio=8, loraplus_weight_decay=0.01)
    theirs = case.train(model, optimizer)
    ours = case.tune(work / "run", "--init-adapter", work / "adapter", "--lora-plus-ratio", 8, lr=LR / 4)
    check(apart(ours, theirs) < 1e-3, f"{case.name} lora+: {STEPS} losses, {apart(ours, theirs):.1e} apart")


def refusals(case, other, work):
    """A wrong base, a wrong shape, a key too many or too few: refused, with the tensor's name."""
    torch.manual_seed(1)
    target = "query" if "bert" in case.name else "q_proj"
    get_peft_model(case.model(), LoraConfig(r=4, target_modules=[target], task_type=case.task)).save_pretrained(work / "adapter")
    file = work / "adapter/adapter_model.safetensors"
    whole = load_file(file)
    name = next(k for k in whole if k.endswith("lora_A.weight"))
    module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")

    def refused(what, by, base=case.folder):
        for verb in (["merge", "--out", work / "no", "--adapter", work / "adapter"],
                     ["tune", "--out", work / "no", "--init-adapter", work / "adapter", "--data", case.folder / "io.safetensors", "--steps", 1, "--no-val"]):
            said = edgeft(verb[0], "--model", base, *verb[1:], code=2)
            check(by in said, f"{case.name} {what}, {verb[0]}: {said.strip().splitlines()[-1][:140]}")

    refused("a wrong base", module, base=other)
    save_file({**whole, name: whole[name][:, :-1].contiguous()}, file)
    refused("a wrong shape", module)
    save_file({k: v for k, v in whole.items() if k != name}, file)
    refused("a key too few", module)
    save_file({**whole, name.replace(target, "x_proj"): whole[name].clone()}, file)
    refused("a key too many", "x_proj")


def main():
    cases, work = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    names = sys.argv[4].split(",")
    for name in names:
        case = Case(cases / name)
        ours_in_peft(case, work)
        peft_in_ours(case, work)
        if name in ("llama", "qwen2", "bert_classify"):
            same_losses(case, work)
    other = work / "other"
    config = transformers.LlamaConfig(vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(other)
    refusals(Case(cases / "llama"), other, work)


EDGEFT = sys.argv[1]
main()
