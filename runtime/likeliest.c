/* The next token by a row of logits, in one call: the likeliest one, or what llama.cpp's samplers choose of the
 * likeliest ones.
 *
 * A decode leaves nothing of Python and NumPy in the caches, where each of their calls then costs 15 to 30
 * microseconds; this is one. It is optional: where it was not compiled, sampler.py comes to the same token.
 */

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

enum { MOST = 256, COLUMNS = 1024, BLOCK = 32 };

typedef struct { /* llama_token_data */
    int32_t id;
    float logit;
    float p;
} candidate;

typedef struct { /* llama_token_data_array */
    candidate *data;
    size_t size;
    int64_t selected;
    bool sorted;
} candidates;

/* How to choose; likeliest.py lays it out likewise. Without samplers the likeliest token is taken. */
typedef struct {
    const float *logits;
    int32_t size;
    int32_t count; /* top-k */
    void *samplers;
    void (*apply)(void *samplers, candidates *found); /* llama_sampler_apply */
    candidate *room;
    int32_t capacity;
} choice;

/* The count-th largest of `size` values that lie `stride` bytes apart; `heap` has room for `count`. */
static float nth_largest(const void *values, size_t stride, int32_t size, float *heap, int32_t count)
{
    const char *at = values;
    for (int32_t i = 0; i < count; i++)
        heap[i] = -INFINITY;
    for (int32_t i = 0; i < size; i++, at += stride) {
        float value = *(const float *)at;
        if (!(value > heap[0]))
            continue;
        int32_t hole = 0; /* the smallest leaves, and the value sinks to where it belongs */
        for (int32_t child; (child = 2 * hole + 1) < count; hole = child) {
            child += child + 1 < count && heap[child + 1] < heap[child];
            if (heap[child] >= value)
                break;
            heap[hole] = heap[child];
        }
        heap[hole] = value;
    }
    return heap[0];
}

/* The largest value of each of some disjoint columns, without the tail of the row that fills none. A NaN is none. */
static void fold(const float *logits, int32_t size, float *folded, int32_t columns)
{
    for (int32_t i = 0; i < columns; i++)
        folded[i] = -INFINITY;
    for (; size >= columns; size -= columns, logits += columns)
        for (int32_t i = 0; i < columns; i++)
            folded[i] = logits[i] > folded[i] ? logits[i] : folded[i];
}

/* Whether one of a block's logits reaches a bound: a loop without an end in the middle becomes vectors. */
static int any_reaches(const float *logits, float bound)
{
    int found = 0;
    for (int32_t i = 0; i < BLOCK; i++)
        found |= logits[i] >= bound;
    return found;
}

/* Writes the tokens that reach a bound, by id; returns how many, or -1 where there is no room for them. */
static int32_t collect(const float *logits, int32_t size, float bound, candidate *found, int32_t capacity)
{
    int32_t total = 0;
    for (int32_t at = 0; at < size; at += BLOCK) {
        int32_t end = at + BLOCK <= size ? at + BLOCK : size;
        if (end - at == BLOCK && !any_reaches(logits + at, bound))
            continue;
        for (int32_t i = at; i < end; i++) {
            if (!(logits[i] >= bound))
                continue;
            if (total == capacity)
                return -1;
            found[total++] = (candidate){i, logits[i], 0.0f};
        }
    }
    return total;
}

/* Writes the `count` likeliest of `size` tokens, and all that tie with the last of them, by id.
 *
 * Returns how many they are, or -1 where this is not the way to find them: a count above MOST, more than `capacity`,
 * or too few logits above -inf (a NaN is none).
 */
static int32_t likeliest(const float *logits, int32_t size, int32_t count, candidate *found, int32_t capacity)
{
    float folded[COLUMNS], heap[MOST];
    int32_t columns = size < COLUMNS ? size : COLUMNS, total, kept = 0;
    if (count < 1 || count > MOST || count > columns)
        return -1;
    fold(logits, size, folded, columns);
    /* the count-th largest of disjoint columns is a bound below the count-th largest of all, and a close one */
    float bound = nth_largest(folded, sizeof *folded, columns, heap, count);
    if (bound == -INFINITY)
        return -1;
    total = collect(logits, size, bound, found, capacity);
    if (total <= count)
        return total;
    bound = nth_largest(&found->logit, sizeof *found, total, heap, count);
    for (int32_t i = 0; i < total; i++)
        if (found[i].logit >= bound)
            found[kept++] = found[i];
    return kept;
}

/* The likeliest token, the first one of several; -1 if not all logits are finite, which their sums tell. */
static int32_t largest(const float *logits, int32_t size)
{
    float folded[BLOCK], sums[BLOCK], most, sum = 0;
    const float *at = logits, *end = logits + size, *whole = end - size % BLOCK;
    for (int32_t i = 0; i < BLOCK; i++) {
        folded[i] = -INFINITY;
        sums[i] = 0;
    }
    for (; at < whole; at += BLOCK)
        for (int32_t i = 0; i < BLOCK; i++) {
            folded[i] = at[i] > folded[i] ? at[i] : folded[i];
            sums[i] += at[i];
        }
    for (; at < end; at++) {
        folded[0] = *at > folded[0] ? *at : folded[0];
        sum += *at;
    }
    most = folded[0];
    for (int32_t i = 0; i < BLOCK; i++) {
        most = folded[i] > most ? folded[i] : most;
        sum += sums[i];
    }
    if (!isfinite(sum))
        return -1;
    for (at = logits; at < whole && !any_reaches(at, most);)
        at += BLOCK;
    while (*at < most)
        at++;
    return (int32_t)(at - logits);
}

/* The next token, or -1 where it has to be found in another way, or said what is wrong with the logits. */
EXPORTED int32_t choose(const choice *by)
{
    if (!by->samplers)
        return largest(by->logits, by->size);
    int32_t total = likeliest(by->logits, by->size, by->count, by->room, by->capacity);
    if (total <= 0)
        return -1;
    candidates found = {by->room, (size_t)total, -1, false};
    by->apply(by->samplers, &found);
    if (found.selected < 0 || !(found.data[found.selected].p >= 0)) /* a NaN, of an infinite logit */
        return -1;
    return found.data[found.selected].id;
}

/* Never called: some linkers want what makes a module of Python, and this needs nothing of it. */
EXPORTED void *PyInit__likeliest(void)
{
    return NULL;
}
