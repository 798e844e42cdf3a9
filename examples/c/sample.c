/* Draws from rows of logits and the attention of one token over pages, by fastpower's CPU kernels, in plain C:
 *
 *     cc sample.c $(python -m fastpower.native) -o sample && ./sample
 *
 * Prints a line a draw: token, log p(token), logz for alpha = 4 and entropy of its row, as exact hexadecimal
 * numbers; then a line with the sum of the attention's output. The tests hold them against fastpower.kernels. */
#include <fastpower.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 3, VOCAB = 10000, DRAWS = 4, HEADS = 4, DIM = 64, PAGES = 8, PAGE_SIZE = 16, LENGTH = 40 };

/* numbers in [-4, 4) that any language makes the same */
static float number(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(*state >> 8) / 16777216.0f * 8.0f - 4.0f;
}

static void check(int code) {
  if (code == FASTPOWER_OK) return;
  fprintf(stderr, "error %d: %s\n", code, fastpower_cpu_last_error());
  exit(1);
}

int main(void) {
  static float logits[ROWS * VOCAB], k[PAGES * PAGE_SIZE * DIM], v[PAGES * PAGE_SIZE * DIM];
  const float alpha[ROWS] = {4.0f, 1.0f, 4.0f}, exponents[1] = {4.0f};
  const int64_t rows[DRAWS] = {0, 0, 1, 2}, keys[DRAWS] = {11, 12, 13, 14}, positions[DRAWS] = {7, 7, 7, 9};
  int64_t token[DRAWS];
  float logp[DRAWS], logz[ROWS], entropy[ROWS], query[HEADS * DIM], out[HEADS * DIM], sum = 0.0f;
  int32_t status[ROWS];
  const int32_t page_table[3] = {5, 0, 3}, query_starts[2] = {0, 1}, lengths[1] = {LENGTH};
  uint32_t state = 1;
  int i;

  if (fastpower_cpu_abi_version() != FASTPOWER_ABI_VERSION) {
    fprintf(stderr, "header and library belong to different versions\n");
    return 1;
  }
  for (i = 0; i < ROWS * VOCAB; ++i) logits[i] = number(&state);
  check(fastpower_cpu_sample_tokens(logits, FASTPOWER_FLOAT32, ROWS, VOCAB, VOCAB, alpha, exponents, 1, rows,
                                    keys, positions, NULL, DRAWS, token, logp, logz, entropy, status));
  for (i = 0; i < DRAWS; ++i)
    printf("%" PRId64 " %a %a %a\n", token[i], logp[i], logz[rows[i]], entropy[rows[i]]);

  /* one K/V head whose pages lie scattered; a query is the last of its LENGTH tokens */
  for (i = 0; i < PAGES * PAGE_SIZE * DIM; ++i) k[i] = number(&state);
  for (i = 0; i < PAGES * PAGE_SIZE * DIM; ++i) v[i] = number(&state);
  for (i = 0; i < HEADS * DIM; ++i) query[i] = number(&state);
  check(fastpower_cpu_paged_attention(query, k, v, out, FASTPOWER_FLOAT32, 1, HEADS, 1, DIM, HEADS * DIM, DIM,
                                      PAGES, PAGE_SIZE, PAGE_SIZE * DIM, PAGE_SIZE * DIM, page_table,
                                      query_starts, lengths, 1, 3, NULL, NULL, 0, 0.125f, 0, 0.0f, NULL));
  for (i = 0; i < HEADS * DIM; ++i) sum += out[i];
  printf("%a\n", sum);
  return 0;
}
