// edgeft in WebAssembly, by nothing but WebAssembly.instantiate. Usage: node wasm.mjs MODULE MODEL PROMPT [TOKENS]
import { readFileSync } from "node:fs";

const [module, file, prompt, tokens = "64"] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(readFileSync(module), {}); // it imports nothing
const e = instance.exports;
const view = () => new DataView(e.memory.buffer); // anew each time: the memory moves when it grows
const put = (bytes) => {
  const at = e.edgeft_bytes_new(bytes.length);
  if (at === 0) throw new Error(`no room for ${bytes.length} bytes`);
  new Uint8Array(e.memory.buffer, at, bytes.length).set(bytes);
  return at;
};
const text = (string) => put(new TextEncoder().encode(`${string}\0`));
const string = (at) => {
  const bytes = new Uint8Array(e.memory.buffer, at);
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
};
const out = put(new Uint8Array(4)); // a place for a pointer
const must = (code) => {
  if (code !== 0) throw new Error(string(e.edgeft_last_error()));
  return view().getUint32(out, true);
};

const bytes = readFileSync(file);
const copy = put(bytes);
const model = must(e.edgeft_model_from_bytes(copy, bytes.length, text(file), out));
e.edgeft_bytes_free(copy, bytes.length); // the model has its own
const session = must(e.edgeft_session_new(model, 0, out));
const options = put(new Uint8Array(48)); // EdgeftGenerateOptions on a 32-bit target: size, max_tokens, ...
view().setUint32(options, 48, true);
view().setUint32(options + 4, Number(tokens), true);
const generation = must(e.edgeft_generate(session, text(prompt), options, 0, 0, out));
console.log(string(view().getUint32(generation, true)));
