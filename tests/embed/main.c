/* The C page of edgeft from a C program: generate (streamed, broken off), chat, classify, answer, embed, tokenize, and
   what happens to wrong arguments. Usage: main FOLDER ADAPTER, with generate.gguf, classify.gguf, answer.gguf and embed.gguf. */
#include "edgeft.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *folder;

#define MUST(condition)                                                                       \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, edgeft_last_error()); \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)
#define OK(call) MUST((call) == EDGEFT_CODE_OK)

/* A session keeps its model, so the handle can go at once. */
static EdgeftSession *open_session(const char *name, EdgeftTask task) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.gguf", folder, name);
    EdgeftModel *model;
    OK(edgeft_model_open(path, &model));
    EdgeftTask found;
    OK(edgeft_model_task(model, &found));
    MUST(found == task);
    EdgeftSessionOptions options = {sizeof options, .ctx = 64, .threads = 2, .kv = EDGEFT_KV_F32};
    EdgeftSession *session;
    OK(edgeft_session_new(model, &options, &session));
    edgeft_model_free(model);
    return session;
}

struct Heard {
    char text[256];
    int pieces, most;
    EdgeftSession *session;
};

static bool on_piece(const char *text, size_t len, void *user_data) {
    struct Heard *heard = user_data;
    MUST(strlen(text) == len && strlen(heard->text) + len < sizeof heard->text);
    strcat(heard->text, text);
    if (heard->session) { /* a session that is at work takes no second call */
        EdgeftGeneration *none;
        MUST(edgeft_generate(heard->session, "a", NULL, NULL, NULL, &none) == EDGEFT_CODE_BUSY && !none);
    }
    return ++heard->pieces < heard->most;
}

static void generate(void) {
    EdgeftSession *session = open_session("generate", EDGEFT_TASK_GENERATE);
    struct Heard heard = {.most = 1000, .session = session};
    EdgeftGeneration *g;
    OK(edgeft_generate(session, "the apple is", NULL, on_piece, &heard, &g));
    printf("generate: the apple is%s\n", g->text);
    MUST(strcmp(g->text, heard.text) == 0 && strlen(g->text) == g->text_len);
    MUST(g->finish_reason == EDGEFT_FINISH_REASON_STOP && g->tokens > 0 && g->prompt_tokens > 3 && g->ttft_ms > 0);
    edgeft_generation_free(g);

    EdgeftGenerateOptions chat = {sizeof chat, .chat = 1};
    OK(edgeft_generate(session, "what colour is the river", &chat, NULL, NULL, &g));
    printf("chat: %s\n", g->text);
    edgeft_generation_free(g);

    const char *stop[] = {"never said", "ed"};
    EdgeftGenerateOptions until = {sizeof until, .stop = stop, .n_stop = 2};
    OK(edgeft_generate(session, "the apple is", &until, NULL, NULL, &g));
    MUST(strcmp(g->text, " r") == 0 && g->finish_reason == EDGEFT_FINISH_REASON_STOP);
    edgeft_generation_free(g);

    EdgeftGenerateOptions one = {sizeof one, .max_tokens = 1};
    OK(edgeft_generate(session, "the", &one, NULL, NULL, &g));
    MUST(g->finish_reason == EDGEFT_FINISH_REASON_LENGTH && g->tokens == 1);
    edgeft_generation_free(g);

    struct Heard little = {.most = 1};
    OK(edgeft_generate(session, "the", NULL, on_piece, &little, &g));
    MUST(g->finish_reason == EDGEFT_FINISH_REASON_CANCELLED && little.pieces == 1);
    edgeft_generation_free(g);
    OK(edgeft_session_reset(session));
    edgeft_session_free(session);
}

static void classify(void) {
    EdgeftSession *session = open_session("classify", EDGEFT_TASK_CLASSIFY);
    EdgeftLabels *labels;
    OK(edgeft_classify(session, "the bread was very good in the garden", &labels));
    MUST(labels->len == 2 && fabs(labels->labels[0].score + labels->labels[1].score - 1) < 1e-5);
    printf("classify: %s, not %s\n", labels->labels[0].label, labels->labels[1].label);
    edgeft_labels_free(labels);
    edgeft_session_free(session);
}

static void answer(void) {
    EdgeftSession *session = open_session("answer", EDGEFT_TASK_ANSWER);
    EdgeftAnswer *a;
    OK(edgeft_answer(session, "what colour is the lamp", "the lamp is blue and it was on the table", &a));
    printf("answer: %s, characters %d to %d\n", a->answer, (int)a->start, (int)a->end);
    MUST(a->score > 0.5 && a->score <= 1 && a->no_answer_score < 0.5);
    edgeft_answer_free(a);
    edgeft_session_free(session);
}

static void embed(void) {
    EdgeftSession *session = open_session("embed", EDGEFT_TASK_EMBED);
    EdgeftVector *vector;
    OK(edgeft_embed(session, "the red apple", &vector));
    double square = 0;
    for (size_t i = 0; i < vector->len; i++) square += vector->values[i] * vector->values[i];
    printf("embed: %zu numbers, length %.3f\n", vector->len, sqrt(square));
    edgeft_vector_free(vector);
    edgeft_session_free(session);
}

static void bytes_and_tokens(void) {
    char path[1024];
    snprintf(path, sizeof path, "%s/generate.gguf", folder);
    FILE *file = fopen(path, "rb");
    MUST(file);
    uint8_t *bytes = edgeft_bytes_new(1 << 20);
    MUST(bytes);
    size_t len = fread(bytes, 1, 1 << 20, file);
    fclose(file);
    EdgeftModel *model;
    OK(edgeft_model_from_bytes(bytes, len, "from memory", &model));
    EdgeftTokens *with, *without;
    OK(edgeft_tokenize(model, "the apple", true, &with));
    OK(edgeft_tokenize(model, "the apple", false, &without));
    MUST(without->len > 0 && with->len == without->len + 1 && with->ids[1] == without->ids[0]);
    edgeft_tokens_free(with);
    edgeft_tokens_free(without);
    edgeft_model_free(model);
    MUST(edgeft_model_from_bytes(bytes, len / 2, "half a file", &model) == EDGEFT_CODE_INPUT && !model);
    MUST(strncmp(edgeft_last_error(), "half a file: ", 13) == 0);
    edgeft_bytes_free(bytes, 1 << 20);
}

/* An adapter changes what is said, and the model alone says again what it said at first. */
static void adapter(const char *path) {
    EdgeftSession *session = open_session("generate", EDGEFT_TASK_GENERATE);
    EdgeftGeneration *base, *adapted, *again;
    OK(edgeft_generate(session, "the apple is", NULL, NULL, NULL, &base));
    int32_t number = 7;
    MUST(edgeft_session_use_adapter(session, 0) == EDGEFT_CODE_INPUT);
    MUST(edgeft_session_add_adapter(session, "no/such.gguf", 1, &number) == EDGEFT_CODE_INPUT && number == 7);
    OK(edgeft_session_add_adapter(session, path, 1, &number));
    MUST(number == 0);
    OK(edgeft_session_use_adapter(session, number));
    OK(edgeft_generate(session, "the apple is", NULL, NULL, NULL, &adapted));
    MUST(strcmp(base->text, adapted->text) != 0);
    OK(edgeft_session_use_adapter(session, -1));
    OK(edgeft_generate(session, "the apple is", NULL, NULL, NULL, &again));
    MUST(strcmp(base->text, again->text) == 0);
    MUST(edgeft_session_use_adapter(session, -2) == EDGEFT_CODE_INPUT);
    edgeft_generation_free(base), edgeft_generation_free(adapted), edgeft_generation_free(again);
    edgeft_session_free(session);
}

static void errors(void) {
    EdgeftModel *model = (EdgeftModel *)&model; /* a failing call leaves null */
    MUST(edgeft_model_open("no/such.gguf", &model) == EDGEFT_CODE_INPUT && !model);
    MUST(strcmp(edgeft_last_error(), "no/such.gguf: no such file") == 0);
    MUST(edgeft_model_open(NULL, &model) == EDGEFT_CODE_INPUT && strcmp(edgeft_last_error(), "path: is null") == 0);
    MUST(edgeft_model_open("x", NULL) == EDGEFT_CODE_INPUT);
    MUST(edgeft_model_open("\xff", &model) == EDGEFT_CODE_INPUT);
    MUST(strcmp(edgeft_last_error(), "path: is not UTF-8 from byte 0 on") == 0);

    EdgeftSession *session = open_session("generate", EDGEFT_TASK_GENERATE);
    EdgeftLabels *labels;
    MUST(edgeft_classify(session, "a", &labels) == EDGEFT_CODE_INPUT && !labels);
    MUST(strcmp(edgeft_last_error(), "model: its task is generate, so it cannot classify") == 0);
    EdgeftGeneration *g;
    char words[2048] = "";
    for (int i = 0; i < 200; i++) strcat(words, "the river ");
    MUST(edgeft_generate(session, words, NULL, NULL, NULL, &g) == EDGEFT_CODE_LIMIT);
    EdgeftGenerateOptions options = {0};
    MUST(edgeft_generate(session, "a", &options, NULL, NULL, &g) == EDGEFT_CODE_INPUT);
    MUST(strncmp(edgeft_last_error(), "options.size: is 0", 18) == 0);
    options.size = sizeof options, options.top_p = 2;
    MUST(edgeft_generate(session, "a", &options, NULL, NULL, &g) == EDGEFT_CODE_INPUT);

    /* A program with an older header fills less; one with a newer header may not use what is not known here. */
    struct {
        EdgeftGenerateOptions known;
        uint64_t later;
    } newer = {{sizeof newer, .max_tokens = 1}, 0};
    OK(edgeft_generate(session, "the", &newer.known, NULL, NULL, &g));
    MUST(g->tokens == 1);
    edgeft_generation_free(g);
    newer.later = 1;
    MUST(edgeft_generate(session, "the", &newer.known, NULL, NULL, &g) == EDGEFT_CODE_INPUT);
    EdgeftGenerateOptions older = {offsetof(EdgeftGenerateOptions, seed), .max_tokens = 1, .temperature = -1};
    OK(edgeft_generate(session, "the", &older, NULL, NULL, &g));
    MUST(g->tokens == 1);
    edgeft_generation_free(g);
    edgeft_session_free(session);

    edgeft_model_free(NULL), edgeft_session_free(NULL), edgeft_generation_free(NULL), edgeft_labels_free(NULL);
    edgeft_answer_free(NULL), edgeft_vector_free(NULL), edgeft_tokens_free(NULL), edgeft_bytes_free(NULL, 0);
}

int main(int argc, char **argv) {
    MUST(argc == 3);
    folder = argv[1];
    MUST(edgeft_last_error()[0] == 0);
    printf("edgeft %s\n", edgeft_version());
    generate();
    classify();
    answer();
    embed();
    bytes_and_tokens();
    adapter(argv[2]);
    errors();
    return 0;
}
