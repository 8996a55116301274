"""The networks once more, in numpy from the papers: what onnx_out.py holds graphs against."""

import json
import math

import numpy as np
from safetensors.numpy import load_file


def bare(name):
    for prefix in ("model.", "bert."):
        name = name.removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


class Numpy:
    """A model folder: one row without padding in, its outputs by name."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {bare(n): x.astype(np.float64) for n, x in load_file(folder / "model.safetensors").items()}
        self.heads = self.config["num_attention_heads"]
        self.kv_heads = self.config.get("num_key_value_heads", self.heads)
        self.width = self.config.get("head_dim") or self.config["hidden_size"] // self.heads

    def run(self, ids):
        return self.bert(ids) if self.config["model_type"] == "bert" else self.llama(ids)

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def attend(self, q, k, v, seen):
        q, k, v = (x.reshape(len(x), -1, self.width).swapaxes(0, 1) for x in (q, k, v))
        k, v = (np.repeat(x, self.heads // self.kv_heads, 0) for x in (k, v))
        scores = np.where(seen, q @ k.swapaxes(1, 2) / math.sqrt(self.width), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        return (shares / shares.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(seen), -1)

    def frequencies(self):
        rope = self.config.get("rope_parameters") or {"rope_theta": self.config.get("rope_theta", 10000.0), "rope_type": "default"}
        base = rope["rope_theta"] ** (-np.arange(0, self.width, 2) / self.width)
        if rope["rope_type"] == "llama3":
            factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
            turns = rope["original_max_position_embeddings"] * base / (2 * math.pi)
            share = np.clip((turns - low) / (high - low), 0, 1)
            base = base * (share + (1 - share) / factor)
        return base

    def llama(self, ids):
        at, n = np.arange(len(ids)), self.config["num_hidden_layers"]
        seen = at[None] <= at[:, None]
        if self.config.get("sliding_window"):
            seen &= at[:, None] - at[None] < self.config["sliding_window"]
        turn = np.exp(1j * at[:, None] * self.frequencies())[:, None]

        def rotate(x):
            x = x.reshape(len(ids), -1, 2, self.width // 2)
            x = (x[:, :, 0] + 1j * x[:, :, 1]) * turn
            return np.concatenate([x.real, x.imag], -1)

        def norm(x, name):
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]

        x = self.weights["embed_tokens.weight"][ids]
        for i in range(n):
            h = norm(x, f"layers.{i}.input_layernorm")
            q, k, v = (self.linear(h, f"layers.{i}.self_attn.{p}_proj") for p in "qkv")
            x = x + self.linear(self.attend(rotate(q), rotate(k), v, seen), f"layers.{i}.self_attn.o_proj")
            h = norm(x, f"layers.{i}.post_attention_layernorm")
            gate, up = (self.linear(h, f"layers.{i}.mlp.{p}_proj") for p in ("gate", "up"))
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, f"layers.{i}.mlp.down_proj")
        x = norm(x, "norm")
        if "score.weight" in self.weights:
            return {"logits": self.linear(x[-1], "score")}
        head = self.weights.get("lm_head.weight", self.weights["embed_tokens.weight"])
        return {"logits": x @ head.T}

    def bert(self, ids):
        def norm(x, name):
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.config["layer_norm_eps"])
            return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

        w, erf = self.weights, np.vectorize(math.erf)
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{i}"
            q, k, v = (self.linear(x, f"{at}.attention.self.{p}") for p in ("query", "key", "value"))
            y = self.linear(self.attend(q, k, v, np.ones((len(ids), len(ids)), bool)), f"{at}.attention.output.dense")
            x = norm(x + y, f"{at}.attention.output.LayerNorm")
            h = self.linear(x, f"{at}.intermediate.dense")
            x = norm(x + self.linear(h * (1 + erf(h / math.sqrt(2))) / 2, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        if "classifier.weight" in w:
            return {"logits": self.linear(np.tanh(self.linear(x[0], "pooler.dense")), "classifier")}
        if "qa_outputs.weight" in w:
            return dict(zip(("start_logits", "end_logits"), self.linear(x, "qa_outputs").T))
        return {"last_hidden_state": x}
