// Causal attention of ragged queries over paged K/V, reduced over fixed splits of positions.
//
// Positions are cut in splits of 256, aligned to position 0. For one query and one query head, with
// s_j = scale · log2 e · q·k_j (or its soft-cap), split c keeps
//
//     m_c = max s_j     l_c = Σ 2^(s_j − m_c)     o_c = Σ 2^(s_j − m_c) v_j
//
// over the keys that the query sees, and splits are folded together in order, starting from (−inf, 0, 0):
//
//     m' = max(m, m_c)   l' = l 2^(m − m') + l_c 2^(m_c − m')   o' = o 2^(m − m') + o_c 2^(m_c − m')   output
//     = o / l
//
// A thread block has one query and up to kHeads query heads that read the same K/V head. With many queries it
// walks through its splits and folds as it goes; with few, each split gets a thread block of its own and
// `fold` does the rest. Both do the same operations in the same order (the folds are written with explicit
// roundings, so that the compiler cannot fuse them differently), so a row's bits do not depend on its batch.
//
// Made for decoding, where K/V is read once and memory decides; prefill works, a query at a time.
#include <cmath>

#include "dtype.cuh"

namespace fastpower {
namespace {

constexpr int kSplit = 256;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxDim = 256;
constexpr int kVector = 8;  // entries of a K/V row that a lane holds
constexpr float kLog2E = 1.44269504088896340736f;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

struct Attention {
  const int32_t *page_table, *query_starts, *lengths;
  int64_t sequences, max_pages, pages, page_size;
  int64_t query_heads, kv_heads, dim;
  int64_t k_page, v_page;  // strides in entries
  int64_t splits;          // most splits that the page table has room for
  float scale, softcap;
  int64_t window;
  bool spread;   // splits over the grid
  bool aligned;  // rows of K/V begin at multiples of 16 bytes
};

// Partial results of `attend` when splits are spread: (query, query head, split).
struct Scratch {
  float *m, *l, *o;
};

// The sequence of a query and what it sees: positions first … own.
struct Span {
  int64_t sequence, first, own;
};

__device__ inline Span span_of(const Attention& a, int64_t query) {
  int64_t low = 0, high = a.sequences;  // the last sequence that starts at or before the query
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.query_starts[middle] <= query ? low : high) = middle;
  }
  const int64_t own = a.lengths[low] - a.query_starts[low + 1] + query;
  return {low, a.window > 0 && own >= a.window ? own - a.window + 1 : 0, own};
}

// A running (m, l) of one head and entry of o; folds a split in.
struct Running {
  float m = -INFINITY, l = 0.0f;
};

__device__ inline float fold(Running* running, float m_c, float l_c, float o, float o_c) {
  const float m = fmaxf(running->m, m_c);
  const float old = exp2_approx(running->m - m), now = exp2_approx(m_c - m);
  running->m = m_c == m_c ? m : m_c;  // NaN stays
  running->l = __fmaf_rn(running->l, old, __fmul_rn(l_c, now));
  return __fmaf_rn(o, old, __fmul_rn(o_c, now));
}

template <typename T>
__device__ void load_vector(const T* row, bool aligned, float (&x)[kVector]) {
  constexpr int width = Packet<T>::kWidth;
#pragma unroll
  for (int i = 0; i < kVector; i += width) {
    if (aligned) {
      const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(row + i);
#pragma unroll
      for (int j = 0; j < width; ++j) x[i + j] = to_float(packet.at[j]);
    } else {
#pragma unroll
      for (int j = 0; j < width; ++j) x[i + j] = to_float(row[i + j]);
    }
  }
}

template <typename T, int kHeads>
__global__ void __launch_bounds__(kThreads, 2)
    attend(const T* query, const T* k_cache, const T* v_cache, T* out, Attention a, Scratch scratch) {
  __shared__ float score[kHeads][kSplit];            // s_j, then 2^(s_j − m_c)
  __shared__ float summed[kWarps][kHeads][kMaxDim];  // o_c of each warp's keys
  __shared__ float m_split[kHeads], l_split[kHeads];

  const int64_t group = a.query_heads / a.kv_heads, chunks = (group + kHeads - 1) / kHeads;
  int64_t index = blockIdx.x;
  const int64_t spread_split = a.spread ? index % a.splits : 0;
  if (a.spread) index /= a.splits;
  const int64_t chunk = index % chunks;
  index /= chunks;
  const int64_t kv_head = index % a.kv_heads;
  const int64_t i_query = index / a.kv_heads;
  const int64_t first_head = kv_head * group + chunk * kHeads;
  const int heads = static_cast<int>(group - chunk * kHeads < kHeads ? group - chunk * kHeads : kHeads);

  const Span span = span_of(a, i_query);
  const int64_t first_split = span.first / kSplit, last_split = span.own / kSplit;
  if (a.spread && (spread_split < first_split || spread_split > last_split)) return;

  // A row of K/V is read by `lanes` lanes, 8 entries each; the warps' lane groups deal the keys among
  // themselves.
  const int dim = static_cast<int>(a.dim);
  int lanes = 1;
  while (lanes * kVector < dim) lanes *= 2;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int place = lane % lanes * kVector;
  const int readers = kThreads / lanes, reader = static_cast<int>(threadIdx.x) / lanes;
  const bool reads = place < dim;

  // Entry e of the output chunk, (head, dim) flattened, belongs to thread e % kThreads.
  constexpr int kOwn = kHeads * kMaxDim / kThreads;
  float o[kOwn];
  Running running[kOwn];
  for (int i = 0; i < kOwn; ++i) o[i] = 0.0f;

  const int32_t* table = a.page_table + span.sequence * a.max_pages;
  const auto row_of = [&](const T* cache, int64_t stride, int64_t position) -> const T* {
    const int64_t page = table[position / a.page_size];
    if (page < 0 || page >= a.pages) return nullptr;
    return cache + page * stride + (position % a.page_size * a.kv_heads + kv_head) * a.dim + place;
  };

  const int64_t begin = a.spread ? spread_split : first_split, end = a.spread ? spread_split : last_split;
  for (int64_t split = begin; split <= end; ++split) {
    // Keys of this split: entries low … high − 1 of it.
    const int64_t base = split * kSplit;
    const int low = static_cast<int>(span.first > base ? span.first - base : 0);
    const int high = static_cast<int>(span.own - base < kSplit - 1 ? span.own - base + 1 : kSplit);
    float q[kHeads][kVector];  // again for every split: kept, it would take registers from the values' sums
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kVector; ++i) q[h][i] = 0.0f;
      if (reads && h < heads)
        load_vector(query + (i_query * a.query_heads + first_head + h) * a.dim + place, a.aligned, q[h]);
    }
#pragma unroll 2
    for (int start = 0; start < high; start += readers) {
      const int j = start + reader;
      float dot[kHeads] = {};
      const T* row = j >= low && j < high ? row_of(k_cache, a.k_page, base + j) : nullptr;
      if (row != nullptr && reads) {
        float k[kVector];
        load_vector(row, a.aligned, k);
#pragma unroll
        for (int h = 0; h < kHeads; ++h)
#pragma unroll
          for (int i = 0; i < kVector; ++i) dot[h] += q[h][i] * k[i];
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        for (int offset = lanes / 2; offset > 0; offset /= 2)
          dot[h] += __shfl_xor_sync(kFullWarp, dot[h], offset);
        if (place == 0 && j < high) {
          float s = dot[h] * a.scale;
          if (a.softcap > 0.0f) s = a.softcap * tanhf(s / a.softcap);
          score[h][j] = j < low ? -INFINITY : row == nullptr ? NAN : s * kLog2E;
        }
      }
    }
    __syncthreads();

    if (warp < kHeads) {  // one warp per head
      float m = -INFINITY, l = 0.0f;
      for (int j = low + lane; j < high; j += 32) m = fmaxf(m, score[warp][j]);
      for (int offset = 16; offset > 0; offset /= 2) m = fmaxf(m, __shfl_xor_sync(kFullWarp, m, offset));
      for (int j = lane; j < high; j += 32) {
        const float p = j < low ? 0.0f : exp2_approx(score[warp][j] - m);
        score[warp][j] = p;
        l += p;
      }
      for (int offset = 16; offset > 0; offset /= 2) l += __shfl_xor_sync(kFullWarp, l, offset);
      if (lane == 0) {
        m_split[warp] = m;
        l_split[warp] = l;
      }
    }
    __syncthreads();

    float sum[kHeads][kVector] = {};
#pragma unroll 2
    for (int j = reader; j < high; j += readers) {
      const T* row = j >= low ? row_of(v_cache, a.v_page, base + j) : nullptr;
      if (row == nullptr || !reads) continue;
      float v[kVector];
      load_vector(row, a.aligned, v);
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[h][i] += score[h][j] * v[i];
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        for (int offset = lanes; offset < 32; offset *= 2)
          sum[h][i] += __shfl_xor_sync(kFullWarp, sum[h][i], offset);
        if (lane < lanes && reads) summed[warp][h][place + i] = sum[h][i];
      }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int entry = i * kThreads + static_cast<int>(threadIdx.x);
      const int h = entry / dim, d = entry % dim;
      if (h >= heads) continue;
      float o_c = 0.0f;
      for (int w = 0; w < kWarps; ++w) o_c += summed[w][h][d];
      if (a.spread) {
        const int64_t cell = (i_query * a.query_heads + first_head + h) * a.splits + split;
        scratch.o[cell * a.dim + d] = o_c;
        if (d == 0) {
          scratch.m[cell] = m_split[h];
          scratch.l[cell] = l_split[h];
        }
      } else {
        o[i] = fold(&running[i], m_split[h], l_split[h], o[i], o_c);
      }
    }
    __syncthreads();  // the next split overwrites score, summed and m_split
  }
  if (a.spread) return;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int entry = i * kThreads + static_cast<int>(threadIdx.x);
    const int h = entry / dim, d = entry % dim;
    if (h < heads) store(o[i] / running[i].l, out + (i_query * a.query_heads + first_head + h) * a.dim + d);
  }
}

// One thread block per (query, query head), a thread per entry of the head.
template <typename T>
__global__ void __launch_bounds__(kMaxDim) fold_splits(T* out, Attention a, Scratch scratch) {
  const int64_t row = blockIdx.x;
  const int d = threadIdx.x;
  if (d >= a.dim) return;
  const Span span = span_of(a, row / a.query_heads);
  float o = 0.0f;
  Running running;
  for (int64_t split = span.first / kSplit; split <= span.own / kSplit; ++split) {
    const int64_t cell = row * a.splits + split;
    o = fold(&running, scratch.m[cell], scratch.l[cell], o, scratch.o[cell * a.dim + d]);
  }
  store(o / running.l, out + row * a.dim + d);
}

int64_t heads_per_block(int64_t group) { return group == 1 ? 1 : 4; }

template <typename T>
cudaError_t run(const void* query, const void* k_cache, const void* v_cache, void* out, int64_t queries,
                const Attention& a, float* room, void* stream) {
  const int64_t cells = queries * a.query_heads * a.splits;
  const Scratch scratch{room, room + cells, room + 2 * cells};
  const int64_t group = a.query_heads / a.kv_heads, heads = heads_per_block(group);
  const int64_t blocks = queries * a.kv_heads * ((group + heads - 1) / heads);
  const int64_t grid = a.spread ? blocks * a.splits : blocks;
  if (grid > kMaxGrid || queries > kMaxGrid / a.query_heads) return cudaErrorInvalidValue;
  const auto kernel = heads == 1 ? attend<T, 1> : attend<T, 4>;
  const cudaError_t error =
      launch(kernel, grid, kThreads, stream, static_cast<const T*>(query), static_cast<const T*>(k_cache),
             static_cast<const T*>(v_cache), static_cast<T*>(out), a, scratch);
  if (error != cudaSuccess || !a.spread) return error;
  return launch(fold_splits<T>, queries * a.query_heads, kMaxDim, stream, static_cast<T*>(out), a, scratch);
}

}  // namespace
}  // namespace fastpower

// query and out (queries, query_heads, dim) contiguous; page strides in entries; dim a multiple of 8, at most
// 256.
FASTPOWER_API int fastpower_paged_attention(const void* query, const void* k_cache, const void* v_cache,
                                            void* out, int dtype, int64_t queries, int64_t query_heads,
                                            int64_t kv_heads, int64_t dim, int64_t pages, int64_t page_size,
                                            int64_t k_page_stride, int64_t v_page_stride,
                                            const int32_t* page_table, const int32_t* query_starts,
                                            const int32_t* lengths, int64_t sequences, int64_t max_pages,
                                            float scale, int64_t window, float softcap, float* scratch,
                                            int device, void* stream) {
  using namespace fastpower;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  if (queries == 0 || sequences == 0) return cudaSuccess;
  const int64_t splits = (max_pages * page_size + kSplit - 1) / kSplit;
  const int64_t size = dtype == kFloat32 ? 4 : 2;
  int64_t bits = k_page_stride * size | v_page_stride * size;
  for (const void* pointer : {query, k_cache, v_cache}) bits |= reinterpret_cast<int64_t>(pointer);
  const Attention a{page_table, query_starts, lengths,  sequences, max_pages,          pages,
                    page_size,  query_heads,  kv_heads, dim,       k_page_stride,      v_page_stride,
                    splits,     scale,        softcap,  window,    scratch != nullptr, bits % 16 == 0};
  return with_dtype(dtype, [&](auto type) {
    return run<decltype(type)>(query, k_cache, v_cache, out, queries, a, scratch, stream);
  });
}
