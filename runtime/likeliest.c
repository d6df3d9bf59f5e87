/* The likeliest tokens of a row of logits, for llama.cpp's samplers: what candidates.py does, in one call.
 *
 * A decode leaves nothing of Python and NumPy in the caches, where each of their calls then costs 15 to 30
 * microseconds; this is one. It is optional: where it was not compiled, candidates.py finds the same tokens.
 */

#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

enum { MOST = 256, BLOCK = 32 };

typedef struct { /* llama_token_data */
    int32_t id;
    float logit;
    float p;
} candidate;

/* Puts a value in place of the smallest of a heap. */
static void replace_least(float *heap, int32_t size, float value)
{
    int32_t at = 0;
    for (int32_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[at] = heap[child];
    }
    heap[at] = value;
}

/* Whether one of a block's logits reaches a bound: a loop without an end in the middle becomes vectors. */
static int any_reaches(const float *logits, float bound)
{
    int found = 0;
    for (int32_t i = 0; i < BLOCK; i++)
        found |= logits[i] >= bound;
    return found;
}

/* Writes the `count` likeliest of `size` tokens, and all that tie with the last of them, by id.
 *
 * Returns how many they are, or -1 where this is not the way to find them: a count above MOST, more than `capacity`,
 * or fewer than `count` logits above -inf (a NaN is none).
 */
EXPORTED int32_t likeliest(const float *logits, int32_t size, int32_t count, candidate *found, int32_t capacity)
{
    float heap[MOST];
    int32_t at, total = 0;
    if (count < 1 || count > MOST)
        return -1;
    for (at = 0; at < count; at++)
        heap[at] = -INFINITY;
    for (at = 0; at < size; at += BLOCK) {
        int32_t end = at + BLOCK <= size ? at + BLOCK : size;
        if (end - at == BLOCK && !any_reaches(logits + at, heap[0]))
            continue;
        for (int32_t i = at; i < end; i++)
            if (logits[i] > heap[0])
                replace_least(heap, count, logits[i]);
    }
    if (heap[0] == -INFINITY)
        return -1;
    for (at = 0; at < size; at += BLOCK) {
        int32_t end = at + BLOCK <= size ? at + BLOCK : size;
        if (end - at == BLOCK && !any_reaches(logits + at, heap[0]))
            continue;
        for (int32_t i = at; i < end; i++)
            if (logits[i] >= heap[0]) {
                if (total == capacity)
                    return -1;
                found[total++] = (candidate){i, logits[i], 0.0f};
            }
    }
    return total;
}

static PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_likeliest", .m_size = 0};

PyMODINIT_FUNC PyInit__likeliest(void)
{
    return PyModuleDef_Init(&module);
}
