/* edgeft: small language models on this machine's own CPU, for C.

   Made from runtime/src/capi.rs by cbindgen; a test holds the two together. The library:
     cargo rustc --release -p edgeft-runtime --lib --features capi --crate-type cdylib      (or staticlib)
     cc main.c -Itargets/bundle -Ltarget/release -ledgeft_runtime

   - A function that can fail returns a code; edgeft_last_error() has the sentence to it, for each thread its own.
   - Texts that go in are UTF-8 and end with a zero. What comes out is freed by its own function, never by free().
   - Structs that you fill begin with their size, and zero in a field is its default: EdgeftGenerateOptions o = {sizeof o};
     Structs that you get may grow at their end in a later version.
   - Threads: models may be shared. A session takes one call at a time, from whichever thread; a second call gets
     EDGEFT_CODE_BUSY at once. Free what no call is using. */

#ifndef EDGEFT_H
#define EDGEFT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// `EdgeftSessionOptions.backend`: the library's own CPU kernels.
#define EDGEFT_BACKEND_CPU 0

// `EdgeftSessionOptions.backend`: wgpu, where the library was built with it.
#define EDGEFT_BACKEND_GPU 1

// `EdgeftSessionOptions.backend`: ONNX Runtime, where the library was built with it.
#define EDGEFT_BACKEND_ORT 2

// `EdgeftSessionOptions.kv`: keys and values are kept as 16-bit floats.
#define EDGEFT_KV_F16 0

// `EdgeftSessionOptions.kv`: keys and values are kept as 32-bit floats.
#define EDGEFT_KV_F32 1

// How a call ended. `edgeft_last_error` has the sentence to it.
typedef enum EdgeftCode {
  // Done.
  EDGEFT_CODE_OK = 0,
  // A file or an argument cannot be used as it is: a null pointer, text that is not UTF-8, a number out of range.
  EDGEFT_CODE_INPUT = 1,
  // The system refused to read, or to start a thread.
  EDGEFT_CODE_IO = 2,
  // A tensor has another shape than the model needs.
  EDGEFT_CODE_SHAPE = 3,
  // More than fits: a prompt longer than the context.
  EDGEFT_CODE_LIMIT = 4,
  // Something that is needed is not there: a tokenizer, a chat template, an engine that this build lacks.
  EDGEFT_CODE_MISSING = 5,
  // A session is in another call, on this or another thread.
  EDGEFT_CODE_BUSY = 6,
  // A bug of the library. What was called upon can only be freed.
  EDGEFT_CODE_PANIC = 7,
} EdgeftCode;

// What a model is for.
typedef enum EdgeftTask {
  // `edgeft_generate`.
  EDGEFT_TASK_GENERATE = 0,
  // `edgeft_classify`.
  EDGEFT_TASK_CLASSIFY = 1,
  // `edgeft_answer`.
  EDGEFT_TASK_ANSWER = 2,
  // `edgeft_embed`.
  EDGEFT_TASK_EMBED = 3,
} EdgeftTask;

// Why a generation ended.
typedef enum EdgeftFinishReason {
  // The model, or a stop text, ended it.
  EDGEFT_FINISH_REASON_STOP = 0,
  // `max_tokens`, or the context, was full.
  EDGEFT_FINISH_REASON_LENGTH = 1,
  // `on_piece` ended it.
  EDGEFT_FINISH_REASON_CANCELLED = 2,
} EdgeftFinishReason;

// A checked model. Threads may share it.
typedef struct EdgeftModel EdgeftModel;

// One sequence of tokens on one engine. One call at a time: a second one is refused with `EDGEFT_CODE_BUSY`.
typedef struct EdgeftSession EdgeftSession;

// How a session is set up. Zero in a field is its default.
typedef struct EdgeftSessionOptions {
  // `sizeof(EdgeftSessionOptions)`.
  size_t size;
  // Tokens that prompt and answer may hold together; 0 is the model's own context, at most 4096.
  size_t ctx;
  // Threads that compute; 0 is as many as the process may use.
  size_t threads;
  // `EDGEFT_BACKEND_...`.
  uint32_t backend;
  // `EDGEFT_KV_...`.
  uint32_t kv;
} EdgeftSessionOptions;

// What to generate, and when to stop. Zero in a field is its default.
typedef struct EdgeftGenerateOptions {
  // `sizeof(EdgeftGenerateOptions)`.
  size_t size;
  // At most so many tokens; 0 is 256.
  size_t max_tokens;
  // The same seed gives the same text.
  uint64_t seed;
  // 0 takes the likeliest token; 1 draws from the model's own distribution.
  float temperature;
  // Keep the likeliest tokens that together reach this probability; 0 keeps all.
  float top_p;
  // Keep tokens at least this share as likely as the likeliest; 0 keeps all.
  float min_p;
  // Makes recent tokens less likely when above 1; 0 is off.
  float repeat_penalty;
  // Keep so many of the likeliest tokens; 0 keeps all.
  size_t top_k;
  // `n_stop` texts that end the answer and are no part of it.
  const char *const *stop;
  // How many they are.
  size_t n_stop;
  // Not 0: the prompt is a user's message, put into the model's chat template.
  uint32_t chat;
} EdgeftGenerateOptions;

// Hears each piece of a text as it is generated: `len` bytes of UTF-8 (a zero behind them), whole characters, perhaps
// none. False ends the generation. It must return: no longjmp and no exception may leave it.
typedef bool (*EdgeftOnPiece)(const char *text, size_t len, void *user_data);

// A finished generation.
typedef struct EdgeftGeneration {
  // Without the text that ended it.
  const char *text;
  // Bytes of `text`; it may hold zeros.
  size_t text_len;
  // Why it ended.
  enum EdgeftFinishReason finish_reason;
  // Tokens of the prompt.
  size_t prompt_tokens;
  // Tokens of the text.
  size_t tokens;
  // From the call to the first token, in milliseconds; 0 where there is no clock (WebAssembly).
  double ttft_ms;
  // Tokens after the first, a second; 0 with fewer than two, or without a clock.
  double decode_tokens_per_s;
} EdgeftGeneration;

// A label with its probability.
typedef struct EdgeftLabel {
  // As the model names it.
  const char *label;
  // From 0 to 1; all labels sum to 1.
  float score;
} EdgeftLabel;

// Labels, likeliest first.
typedef struct EdgeftLabels {
  // `len` of them.
  const struct EdgeftLabel *labels;
  // How many.
  size_t len;
} EdgeftLabels;

// An answer to a question.
typedef struct EdgeftAnswer {
  // The text.
  const char *answer;
  // First character in the context, counted in Unicode characters; -1 from a decoder, which writes its answer.
  int64_t start;
  // One past the last character; -1 from a decoder.
  int64_t end;
  // Probability of the span; from a decoder, the geometric mean over its tokens.
  double score;
  // The same for "the context does not say"; not a number from a decoder.
  double no_answer_score;
} EdgeftAnswer;

// A vector.
typedef struct EdgeftVector {
  // `len` of them.
  const float *values;
  // How many.
  size_t len;
} EdgeftVector;

// Token ids.
typedef struct EdgeftTokens {
  // `len` of them.
  const uint32_t *ids;
  // How many.
  size_t len;
} EdgeftTokens;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library, as `"0.1.0"`; never freed.
const char *edgeft_version(void);

// The sentence to the last error of this thread; empty before the first. It stays until the thread's next error.
const char *edgeft_last_error(void);

// Maps and checks a GGUF file; `path` is UTF-8. Free the model with `edgeft_model_free`.
// # Safety
// `path` ends with a zero; `model` is a place for a pointer.
enum EdgeftCode edgeft_model_open(const char *path, struct EdgeftModel **model);

// The same from memory, which is copied; `name` stands in messages.
// # Safety
// `bytes` are `len` bytes; `name` ends with a zero; `model` is a place for a pointer.
enum EdgeftCode edgeft_model_from_bytes(const uint8_t *bytes, size_t len, const char *name, struct EdgeftModel **model);

// What the model is for.
// # Safety
// `model` is a model; `task` is a place for a task.
enum EdgeftCode edgeft_model_task(const struct EdgeftModel *model, enum EdgeftTask *task);

// Frees a model; null does nothing. Sessions that were made of it live on.
// # Safety
// `model` is null or a model, which is not used again.
void edgeft_model_free(struct EdgeftModel *model);

// Loads the model into an engine. Null `options` are the defaults. Free the session with `edgeft_session_free`.
// # Safety
// `model` is a model; `options` is null or begins with its own size; `session` is a place for a pointer.
enum EdgeftCode edgeft_session_new(const struct EdgeftModel *model,
                                   const struct EdgeftSessionOptions *options,
                                   struct EdgeftSession **session);

// Forgets the tokens that the session holds. Without it, a prompt that begins like the last one is read only from where
// they part.
// # Safety
// `session` is a session.
enum EdgeftCode edgeft_session_reset(struct EdgeftSession *session);

// Loads a GGUF adapter (`edgeft quantize RUN --adapter-only` writes one) beside the model, at `scale` times its strength, and
// sets `number` to its number, from 0. It is used from `edgeft_session_use_adapter` on, and freed with the session.
// # Safety
// `session` is a session; `path` ends with a zero; `number` is a place for an int32_t.
enum EdgeftCode edgeft_session_add_adapter(struct EdgeftSession *session,
                                           const char *path,
                                           float scale,
                                           int32_t *number);

// What follows is computed with the adapter of a number; -1 is the model alone, as at first.
// # Safety
// `session` is a session.
enum EdgeftCode edgeft_session_use_adapter(struct EdgeftSession *session, int32_t number);

// Frees a session; null does nothing. Not from within its own `on_piece`.
// # Safety
// `session` is null or a session that no call is in, and is not used again.
void edgeft_session_free(struct EdgeftSession *session);

// Continues `prompt`, or answers it where the options say chat. `on_piece` may be null; `user_data` is handed to it.
// Free the generation with `edgeft_generation_free`.
// # Safety
// `session` is a session; `prompt` ends with a zero; `options` is null or begins with its own size; `on_piece` may be
// called with `user_data`; `generation` is a place for a pointer.
enum EdgeftCode edgeft_generate(struct EdgeftSession *session,
                                const char *prompt,
                                const struct EdgeftGenerateOptions *options,
                                EdgeftOnPiece on_piece,
                                void *user_data,
                                struct EdgeftGeneration **generation);

// Labels of `text`, likeliest first. Free them with `edgeft_labels_free`.
// # Safety
// `session` is a session; `text` ends with a zero; `labels` is a place for a pointer.
enum EdgeftCode edgeft_classify(struct EdgeftSession *session, const char *text, struct EdgeftLabels **labels);

// Answers `question` from `context`. Free the answer with `edgeft_answer_free`.
// # Safety
// `session` is a session; `question` and `context` end with a zero; `answer` is a place for a pointer.
enum EdgeftCode edgeft_answer(struct EdgeftSession *session,
                              const char *question,
                              const char *context,
                              struct EdgeftAnswer **answer);

// The vector of `text`, of length 1. Free it with `edgeft_vector_free`.
// # Safety
// `session` is a session; `text` ends with a zero; `vector` is a place for a pointer.
enum EdgeftCode edgeft_embed(struct EdgeftSession *session, const char *text, struct EdgeftVector **vector);

// Ids of `text`; with `special`, the model's own special tokens stand around it. Free them with `edgeft_tokens_free`.
// # Safety
// `model` is a model; `text` ends with a zero; `tokens` is a place for a pointer.
enum EdgeftCode edgeft_tokenize(const struct EdgeftModel *model,
                                const char *text,
                                bool special,
                                struct EdgeftTokens **tokens);

// Frees a generation; null does nothing.
// # Safety
// `generation` is null or a generation, which is not used again.
void edgeft_generation_free(struct EdgeftGeneration *generation);

// Frees labels; null does nothing.
// # Safety
// `labels` are null or labels, which are not used again.
void edgeft_labels_free(struct EdgeftLabels *labels);

// Frees an answer; null does nothing.
// # Safety
// `answer` is null or an answer, which is not used again.
void edgeft_answer_free(struct EdgeftAnswer *answer);

// Frees a vector; null does nothing.
// # Safety
// `vector` is null or a vector, which is not used again.
void edgeft_vector_free(struct EdgeftVector *vector);

// Frees tokens; null does nothing.
// # Safety
// `tokens` are null or tokens, which are not used again.
void edgeft_tokens_free(struct EdgeftTokens *tokens);

// Memory for a caller that has none of its own, as a page with a WebAssembly module: `len` bytes, all zero, or null where
// there are not so many. Free them with `edgeft_bytes_free`.
uint8_t *edgeft_bytes_new(size_t len);

// Frees `len` bytes of `edgeft_bytes_new`; null does nothing.
// # Safety
// `bytes` are null or of `edgeft_bytes_new` with this `len`, and are not used again.
void edgeft_bytes_free(uint8_t *bytes, size_t len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* EDGEFT_H */
