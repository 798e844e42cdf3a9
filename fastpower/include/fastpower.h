/* fastpower's kernels for other engines: C functions on raw pointers, from C99 and C++.
 *
 * libfastpower_cpu.so, installed beside this header's folder, has the functions fastpower_cpu_*;
 * libfastpower_cuda.so, built with FASTPOWER_CUDA=1, has the others. Both need neither Python nor torch.
 * `python -m fastpower.native` prints what a compiler needs to find them.
 *
 * Every function has the contract of its namesake in fastpower.kernels: natural logarithms, entropy in nats,
 * sums of at least float32, and a row's bits depend on that row alone. Pointers may be null where there is
 * nothing to read or write. Strides count elements unless they are said to count bytes. Tensors are dense in
 * their last dimension. Outputs must not overlap inputs.
 */
#ifndef FASTPOWER_H
#define FASTPOWER_H

#include <stdint.h>

/* Raised by one when a signature or a meaning changes; compare it with fastpower_cpu_abi_version() and
 * fastpower_interface_version() after loading. */
#define FASTPOWER_ABI_VERSION 1

#ifndef FASTPOWER_API
#ifdef __cplusplus
#define FASTPOWER_API extern "C"
#else
#define FASTPOWER_API extern
#endif
#endif

/* dtypes */
#define FASTPOWER_FLOAT32 0
#define FASTPOWER_BFLOAT16 1
#define FASTPOWER_FLOAT16 2

/* What fastpower_cpu_* return: nothing was written unless it is 0. Functions of the CUDA library return a
 * cudaError_t, which is positive. */
#define FASTPOWER_OK 0
#define FASTPOWER_INVALID_ARGUMENT (-1) /* a null pointer, a size, stride, dtype or value that cannot be */
#define FASTPOWER_OUT_OF_RANGE (-2)     /* an index beyond what it points into */
#define FASTPOWER_OUT_OF_MEMORY (-3)
#define FASTPOWER_INTERNAL_ERROR (-4)

/* bits of `status`, one word a row */
#define FASTPOWER_STATUS_NAN 1       /* the row holds a NaN or +inf */
#define FASTPOWER_STATUS_MASKED 2    /* the row has no finite entry */
#define FASTPOWER_STATUS_EXHAUSTED 4 /* a draw of the row had nothing left after `exclude` */

/* ------------------------------------------------------------------------------------------------- the CPU */

FASTPOWER_API int fastpower_cpu_abi_version(void);

/* Why the calling thread's last call failed, "" if it did not: a sentence that names the argument. Valid until
 * the thread's next call. */
FASTPOWER_API const char* fastpower_cpu_last_error(void);

/* Threads of a call: what was set, else FASTPOWER_NUM_THREADS, else the cores of the process. Calls from several
 * threads take turns. No result depends on it. */
FASTPOWER_API int fastpower_cpu_num_threads(void);
FASTPOWER_API int fastpower_cpu_set_num_threads(int threads);

/* Statistics of rows of logits and draws from softmax(alpha * row).
 * logits (rows, vocab); alpha (rows,); exponents (num_exponents,); draw_rows, keys, positions, exclude
 * (num_draws,): the row of each draw, 64 bits of a key, the counter of the draw and a token that is left out
 * (-1 or a null pointer for none). Out: token, logp (num_draws,); logz (rows, num_exponents) =
 * log sum_v p(v)^exponent; entropy, status (rows,). token is -1 where nothing could be drawn. The calling
 * thread keeps what it works in: a later call that is no larger allocates nothing. */
FASTPOWER_API int fastpower_cpu_sample_tokens(const void* logits, int dtype, int64_t rows, int64_t vocab,
                                              int64_t row_stride, const float* alpha, const float* exponents,
                                              int64_t num_exponents, const int64_t* draw_rows,
                                              const int64_t* keys, const int64_t* positions,
                                              const int64_t* exclude, int64_t num_draws, int64_t* token,
                                              float* logp, float* logz, float* entropy, int32_t* status);

/* The same statistics for a given token of every row: tokens (rows,). Out: logp, entropy, status (rows,). */
FASTPOWER_API int fastpower_cpu_score_tokens(const void* logits, int dtype, int64_t rows, int64_t vocab,
                                             int64_t row_stride, const int64_t* tokens, const float* exponents,
                                             int64_t num_exponents, float* logp, float* logz, float* entropy,
                                             int32_t* status);

/* Causal attention over pages. query (queries, query_heads, dim), its strides over tokens and heads;
 * k_cache, v_cache (pages, page_size, kv_heads, dim), each page contiguous; page_table (sequences, max_pages);
 * query_starts (sequences + 1,); lengths (sequences,) with the queries counted. window 0 and softcap 0 for
 * none; scale multiplies q.k. A hint, or null: groups of sequences with their first shared_pages[g] pages in
 * common, shared_starts (groups + 1,), shared_pages (groups,). ancestors (queries,) or null: the queries of a
 * sequence, at most 64, form a tree. Out: out (queries, query_heads, dim), contiguous. */
FASTPOWER_API int fastpower_cpu_paged_attention(
    const void* query, const void* k_cache, const void* v_cache, void* out, int dtype, int64_t queries,
    int64_t query_heads, int64_t kv_heads, int64_t dim, int64_t query_token_stride, int64_t query_head_stride,
    int64_t pages, int64_t page_size, int64_t k_page_stride, int64_t v_page_stride, const int32_t* page_table,
    const int32_t* query_starts, const int32_t* lengths, int64_t sequences, int64_t max_pages,
    const int32_t* shared_starts, const int32_t* shared_pages, int64_t groups, float scale, int64_t window,
    float softcap, const int64_t* ancestors);

/* Writes keys and values (tokens, kv_heads, head_bytes) to slots (tokens,): page * page_size + offset, distinct,
 * -1 drops a token. All strides and head_bytes count bytes, so every dtype will do. */
FASTPOWER_API int fastpower_cpu_append_kv(const void* key, const void* value, void* k_cache, void* v_cache,
                                          const int64_t* slots, int64_t tokens, int64_t kv_heads,
                                          int64_t head_bytes, int64_t key_token_stride,
                                          int64_t key_head_stride, int64_t value_token_stride,
                                          int64_t value_head_stride, int64_t pages, int64_t page_size,
                                          int64_t k_page_stride, int64_t v_page_stride);

/* Copies the first tokens[i] slots of page source[i] to page target[i] in all layers; targets are distinct and
 * none is a source. Strides and token_bytes (of all heads of one token) count bytes. */
FASTPOWER_API int fastpower_cpu_copy_pages(void* k_cache, void* v_cache, const int64_t* source,
                                           const int64_t* target, const int64_t* tokens, int64_t copies,
                                           int64_t layers, int64_t pages, int64_t page_size,
                                           int64_t token_bytes, int64_t k_layer_stride, int64_t k_page_stride,
                                           int64_t v_layer_stride, int64_t v_page_stride);

/* Ancestors of `sets` sets of `count` particles from their log-weights (sets, count). scheme 0 systematic
 * (uniforms (sets, 1)), 1 stratified, 2 multinomial, 3 residual (uniforms (sets, count)), in [0, 1). Out: index
 * (sets, count), -1 in a set without weight; ess and log_mean (the log of the mean weight), (sets,). */
FASTPOWER_API int fastpower_cpu_resample(const double* log_weights, const double* uniforms, int64_t sets,
                                         int64_t count, int scheme, int64_t* index, double* ess,
                                         double* log_mean);

/* ------------------------------------------------------------------------------------------------ CUDA GPUs
 * Pointers are of the device `device`; `stream` is a cudaStream_t, null for the default one. Calls return when
 * their work is queued. Values are not looked at (that would wait): a row outside the batch draws token -1, a
 * page outside the cache gives NaN. */

FASTPOWER_API int fastpower_interface_version(void);
FASTPOWER_API const char* fastpower_error_string(int error);

/* float32 numbers that `scratch` of the two calls below must hold */
FASTPOWER_API int64_t fastpower_sample_scratch(int64_t rows, int64_t vocab, int64_t num_exponents);
FASTPOWER_API int fastpower_sample_tokens(const void* logits, int dtype, int64_t rows, int64_t vocab,
                                          int64_t row_stride, const float* alpha, const float* exponents,
                                          int num_exponents, const int64_t* draw_rows, const int64_t* keys,
                                          const int64_t* positions, const int64_t* exclude, int64_t num_draws,
                                          float* scratch, int64_t* token, float* logp, float* logz,
                                          float* entropy, int* status, int device, void* stream);
FASTPOWER_API int fastpower_score_tokens(const void* logits, int dtype, int64_t rows, int64_t vocab,
                                         int64_t row_stride, const int64_t* tokens, const float* exponents,
                                         int num_exponents, float* scratch, float* logp, float* logz,
                                         float* entropy, int* status, int device, void* stream);
/* query is contiguous; scratch null, or queries * query_heads * ceil(max_pages * page_size / 256) * (dim + 2)
 * float32 numbers, with which the splits of long contexts are spread over the device. */
FASTPOWER_API int fastpower_paged_attention(const void* query, const void* k_cache, const void* v_cache,
                                            void* out, int dtype, int64_t queries, int64_t query_heads,
                                            int64_t kv_heads, int64_t dim, int64_t pages, int64_t page_size,
                                            int64_t k_page_stride, int64_t v_page_stride,
                                            const int32_t* page_table, const int32_t* query_starts,
                                            const int32_t* lengths, int64_t sequences, int64_t max_pages,
                                            float scale, int64_t window, float softcap, float* scratch,
                                            int device, void* stream);
FASTPOWER_API int fastpower_append_kv(const void* key, const void* value, void* k_cache, void* v_cache,
                                      const int64_t* slots, int64_t tokens, int64_t kv_heads,
                                      int64_t head_bytes, int64_t key_token_stride, int64_t key_head_stride,
                                      int64_t value_token_stride, int64_t value_head_stride, int64_t pages,
                                      int64_t page_size, int64_t k_page_stride, int64_t v_page_stride,
                                      int device, void* stream);
FASTPOWER_API int fastpower_copy_pages(void* k_cache, void* v_cache, const int64_t* source,
                                       const int64_t* target, const int64_t* tokens, int64_t copies,
                                       int64_t layers, int64_t pages, int64_t page_size, int64_t token_bytes,
                                       int64_t k_layer_stride, int64_t k_page_stride, int64_t v_layer_stride,
                                       int64_t v_page_stride, int device, void* stream);

#endif
