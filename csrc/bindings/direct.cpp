// Operators on torch's tensors themselves. In Python a call costs some 30 µs for the checks, addresses and
// outputs, twice that when a pass over gigabytes has emptied the caches; here a few. Anything that is not the
// plain good case gives None, and nothing is done: the façade then looks at the arguments one by one, and
// raises.
#include <cmath>
#include <initializer_list>

#include "bindings/module.h"
#include "bindings/tensors.h"
#include "cpu/attention/paged_attention.h"
#include "cpu/paged_copy.h"
#include "cpu/sampling/sample_tokens.h"

namespace py = pybind11;

namespace fastpower {
namespace {

// Whether all are tensors on the CPU.
bool see(std::initializer_list<std::pair<View*, py::handle>> all) {
  for (const auto& [view, object] : all)
    if (!view->of(object.ptr())) return false;
  return true;
}

py::object owned(PyObject* tensor) {
  if (tensor == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(tensor);
}

template <class T>
py::object output(std::initializer_list<int64_t> shape, T** data) {
  return owned(empty<T>(shape, data));
}

// Ends before the result is touched again: reference counts need the interpreter's lock.
template <class Work>
void without_gil(const Work& work) {
  const py::gil_scoped_release release;
  work();
}

// Outputs that the caller brings: whether none shares memory with an input or with another output.
bool apart(std::initializer_list<const View*> outputs, std::initializer_list<const View*> inputs) {
  for (const View* const* out = outputs.begin(); out != outputs.end(); ++out) {
    for (const View* const* other = outputs.begin(); other != out; ++other)
      if ((*out)->overlaps(**other)) return false;
    for (const View* in : inputs)
      if ((*out)->overlaps(*in)) return false;
  }
  return true;
}

bool is_logits(const View& z) { return z.ndim() == 2 && z.floats() && z.size(1) > 0 && z.rows_are_dense(); }

Logits logits_of(const View& z) { return {z.data<void>(), z.dtype(), z.size(0), z.size(1), z.stride(0)}; }

// Writes to `out`, a tuple, if that is not None, and returns it.
py::object direct_sample_tokens_into(py::handle logits, py::handle alpha, py::handle exponents,
                                     py::handle rows, py::handle keys, py::handle positions,
                                     py::handle exclude, py::handle out) {
  View z, a, e, r, k, p, x;
  if (!see({{&z, logits}, {&a, alpha}, {&e, exponents}, {&r, rows}, {&k, keys}, {&p, positions}}))
    return py::none();
  const bool excluding = !exclude.is_none();
  if (!is_logits(z) || !a.vector<float>(z.size(0)) || !e.vector<float>() || !r.vector<int64_t>())
    return py::none();
  const int64_t batch = z.size(0), count = e.size(0), draws = r.size(0);
  if (!k.vector<int64_t>(draws) || !p.vector<int64_t>(draws)) return py::none();
  if (excluding && !(x.of(exclude.ptr()) && x.vector<int64_t>(draws))) return py::none();
  int64_t* token;
  float *logp, *logz, *entropy;
  int32_t* status;
  py::tuple result;
  if (out.is_none()) {
    result = py::make_tuple(output({draws}, &token), output({draws}, &logp), output({batch, count}, &logz),
                            output({batch}, &entropy), output({batch}, &status));
  } else {
    View t, l, g, h, s;
    if (!PyTuple_Check(out.ptr()) || PyTuple_GET_SIZE(out.ptr()) != 5) return py::none();
    const auto item = [&](int i) { return py::handle(PyTuple_GET_ITEM(out.ptr(), i)); };
    if (!see({{&t, item(0)}, {&l, item(1)}, {&g, item(2)}, {&h, item(3)}, {&s, item(4)}})) return py::none();
    if (!t.vector<int64_t>(draws) || !l.vector<float>(draws) || !g.matrix<float>(batch, count) ||
        !h.vector<float>(batch) || !s.vector<int32_t>(batch))
      return py::none();
    if (!apart({&t, &l, &g, &h, &s}, {&z, &a, &e, &r, &k, &p}) ||
        (excluding && !apart({&t, &l, &g, &h, &s}, {&x})))
      return py::none();
    token = t.data<int64_t>();
    logp = l.data<float>();
    logz = g.data<float>();
    entropy = h.data<float>();
    status = s.data<int32_t>();
    result = py::reinterpret_borrow<py::tuple>(out);
  }
  without_gil([&] {
    sample_tokens(logits_of(z), a.data<float>(), e.data<float>(), count, draws, r.data<int64_t>(),
                  k.data<int64_t>(), p.data<int64_t>(), excluding ? x.data<int64_t>() : nullptr, token, logp,
                  logz, entropy, status);
  });
  return result;
}

py::object direct_sample_tokens(py::handle logits, py::handle alpha, py::handle exponents, py::handle rows,
                                py::handle keys, py::handle positions, py::handle exclude) {
  return direct_sample_tokens_into(logits, alpha, exponents, rows, keys, positions, exclude, py::none());
}

py::object direct_score_tokens(py::handle logits, py::handle tokens, py::handle exponents) {
  View z, t, e;
  if (!see({{&z, logits}, {&t, tokens}, {&e, exponents}}) || !is_logits(z) || !t.vector<int64_t>(z.size(0)) ||
      !e.vector<float>())
    return py::none();
  const int64_t batch = z.size(0), count = e.size(0);
  float *logp, *logz, *entropy;
  int32_t* status;
  py::tuple result = py::make_tuple(output({batch}, &logp), output({batch, count}, &logz),
                                    output({batch}, &entropy), output({batch}, &status));
  without_gil([&] {
    score_tokens(logits_of(z), t.data<int64_t>(), e.data<float>(), count, logp, logz, entropy, status);
  });
  return result;
}

// Two caches (pages, page_size, heads, dim) of the rows' dtype, pages contiguous.
bool are_caches(const View& k, const View& v, const View& rows) {
  if (k.ndim() != 4 || v.ndim() != 4 || !k.same_dtype(rows) || !v.same_dtype(rows) || k.size(1) == 0)
    return false;
  for (int i = 0; i < 4; ++i)
    if (k.size(i) != v.size(i)) return false;
  for (const View* cache : {&k, &v})
    if (cache->stride(3) != 1 || cache->stride(2) != k.size(3) || cache->stride(1) != k.size(2) * k.size(3))
      return false;
  return true;
}

// Whether no byte of two caches is the same. Pages that lie between the other's pages are seen where both
// have the same stride; of anything else that may overlap the long way thinks.
bool are_apart(const View& k, const View& v) {
  if (!k.overlaps(v)) return true;
  const int64_t size = k.entry_bytes(), page = k.size(1) * k.size(2) * k.size(3) * size;
  const int64_t stride = k.stride(0) * size;
  if (k.size(0) < 2 || stride != v.stride(0) * size || stride < 2 * page) return false;
  const int64_t shift = std::abs(k.data<char>() - v.data<char>()) % stride;
  return shift >= page && stride - shift >= page;
}

bool direct_append_kv(py::handle key, py::handle value, py::handle k_cache, py::handle v_cache,
                      py::handle slots) {
  View k, v, kc, vc, s;
  if (!see({{&k, key}, {&v, value}, {&kc, k_cache}, {&vc, v_cache}, {&s, slots}})) return false;
  if (k.ndim() != 3 || v.ndim() != 3 || !k.floats() || !v.same_dtype(k) || !k.rows_are_dense() ||
      !v.rows_are_dense() || !are_caches(kc, vc, k) || !s.vector<int64_t>(k.size(0)))
    return false;
  for (int i = 0; i < 3; ++i)
    if (v.size(i) != k.size(i) || (i > 0 && kc.size(i + 1) != k.size(i))) return false;
  for (const View* cache : {&kc, &vc})  // pages that share memory would overwrite each other
    if (cache->size(0) > 1 && std::abs(cache->stride(0)) < cache->size(1) * cache->size(2) * cache->size(3))
      return false;
  if (!are_apart(kc, vc)) return false;
  for (const View* read : {&k, &v, &s})
    if (read->overlaps(kc) || read->overlaps(vc)) return false;
  const int64_t size = size_of(k.dtype());
  const py::gil_scoped_release release;
  append_kv({k.data<char>(), v.data<char>(), k.stride(0) * size, k.stride(1) * size, v.stride(0) * size,
             v.stride(1) * size, kc.data<char>(), vc.data<char>(), kc.stride(0) * size, vc.stride(0) * size,
             kc.size(0), kc.size(1), kc.size(2), kc.size(3) * size, s.data<int64_t>(), s.size(0)});
  return true;
}

// Scores are float32: beyond these a scale or a soft cap would make them infinite or nothing at all.
constexpr double kLargest = 18446744073709551616.0;  // 2^64

// Writes to `given` if that is not None, and returns it.
py::object direct_paged_attention_into(py::handle query, py::handle k_cache, py::handle v_cache,
                                       py::handle page_table, py::handle query_starts, py::handle lengths,
                                       double scale, py::handle window, double softcap,
                                       py::handle shared_starts, py::handle shared_pages, py::handle given) {
  View q, k, v, t, s, n, starts, pages, o;
  if (!PyLong_CheckExact(window.ptr()) ||
      !see({{&q, query}, {&k, k_cache}, {&v, v_cache}, {&t, page_table}, {&s, query_starts}, {&n, lengths}}))
    return py::none();
  const bool sharing = !shared_starts.is_none() || !shared_pages.is_none();
  if (sharing && !(starts.of(shared_starts.ptr()) && pages.of(shared_pages.ptr()) &&
                   pages.vector<int32_t>() && starts.vector<int32_t>(pages.size(0) + 1)))
    return py::none();
  if (q.ndim() != 3 || !q.floats() || !q.rows_are_dense() || !are_caches(k, v, q)) return py::none();
  const int64_t q_heads = q.size(1), dim = q.size(2), kv_heads = k.size(2), sequences = n.size(0);
  if (dim <= 0 || dim > 256 || dim % 8 || k.size(3) != dim || kv_heads <= 0 || q_heads < kv_heads ||
      q_heads % kv_heads)
    return py::none();
  if (t.ndim() != 2 || !t.holds<int32_t>() || !t.rows_are_dense() || t.size(0) != sequences ||
      !n.vector<int32_t>() || !s.vector<int32_t>(sequences + 1))
    return py::none();
  const int64_t reach = PyLong_AsLongLong(window.ptr());
  if (reach < 0 || !(std::abs(scale) <= kLargest) ||
      !(softcap == 0 || (softcap >= 1 / kLargest && softcap <= kLargest))) {
    PyErr_Clear();
    return py::none();
  }
  void* out;
  py::object result;
  if (given.is_none()) {
    result = owned(empty_of(q.dtype(), {q.size(0), q_heads, dim}, &out));
  } else {
    if (!o.of(given.ptr()) || !o.same_dtype(q) || o.ndim() != 3 || !o.contiguous() ||
        o.size(0) != q.size(0) || o.size(1) != q_heads || o.size(2) != dim)
      return py::none();
    if (!apart({&o}, {&q, &k, &v, &t, &s, &n}) || (sharing && !apart({&o}, {&starts, &pages})))
      return py::none();
    out = o.data<void>();
    result = py::reinterpret_borrow<py::object>(given);
  }
  const PagedAttention a{q.data<void>(),
                         k.data<void>(),
                         v.data<void>(),
                         out,
                         q.dtype(),
                         q.stride(0),
                         q.stride(1),
                         k.stride(0),
                         v.stride(0),
                         q.size(0),
                         q_heads,
                         kv_heads,
                         dim,
                         k.size(0),
                         k.size(1),
                         t.data<int32_t>(),
                         sequences,
                         t.size(1),
                         t.stride(0),
                         s.data<int32_t>(),
                         n.data<int32_t>(),
                         sharing ? starts.data<int32_t>() : nullptr,
                         sharing ? pages.data<int32_t>() : nullptr,
                         sharing ? pages.size(0) : 0,
                         static_cast<float>(scale),
                         static_cast<float>(softcap),
                         reach};
  without_gil([&] { paged_attention(a); });
  return result;
}

py::object direct_paged_attention(py::handle query, py::handle k_cache, py::handle v_cache,
                                  py::handle page_table, py::handle query_starts, py::handle lengths,
                                  double scale, py::handle window, double softcap, py::handle shared_starts,
                                  py::handle shared_pages) {
  return direct_paged_attention_into(query, k_cache, v_cache, page_table, query_starts, lengths, scale,
                                     window, softcap, shared_starts, shared_pages, py::none());
}

}  // namespace

void bind_direct(py::module_& m) {
  m.def("use_tensors_of", [](py::handle type) { return use_tensors_of(type.ptr()); });
  m.def("direct_sample_tokens", &direct_sample_tokens);
  m.def("direct_sample_tokens_into", &direct_sample_tokens_into);
  m.def("direct_paged_attention_into", &direct_paged_attention_into);
  m.def("direct_score_tokens", &direct_score_tokens);
  m.def("direct_append_kv", &direct_append_kv);
  m.def("direct_paged_attention", &direct_paged_attention);
}

}  // namespace fastpower
