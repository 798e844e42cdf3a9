// The only file that knows Python. Kernels take raw pointers (as integers) and sizes; the Python façade
// checks them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/bandwidth.h"
#include "cpu/decoder_forward.h"
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/paged_attention.h"
#include "cpu/paged_copy.h"
#include "cpu/parallel.h"
#include "cpu/resample.h"
#include "cpu/sample_tokens.h"
#include "errors.h"
#include "page_pool.h"
#include "sequence_table.h"

namespace py = pybind11;

namespace fastpower {
namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_machine(py::module_& m) {
  m.def("num_threads", &num_threads, "Threads used by the CPU kernels.");
  m.def("set_num_threads", &set_num_threads, py::arg("n"), "Set the threads used by the CPU kernels.");
  m.def("isa", [] { return isa_name(active_isa()); }, "Instruction set the CPU kernels use.");
  m.def("set_isa", [](const char* name) { set_isa(isa_from_name(name)); }, py::arg("name"));
  m.def(
      "read_memory",
      [](uintptr_t data, int64_t bytes) {
        const py::gil_scoped_release release;
        return read_memory(pointer<const void>(data), bytes);
      },
      py::arg("data"), py::arg("bytes"), "Read memory once on all threads, for measuring bandwidth.");
  m.def(
      "copy_memory",
      [](uintptr_t target, uintptr_t source, int64_t bytes) {
        const py::gil_scoped_release release;
        copy_memory(pointer<void>(target), pointer<const void>(source), bytes);
      },
      py::arg("target"), py::arg("source"), py::arg("bytes"), "memcpy on all threads.");
}

Linear linear_of(bool bfloat16, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias) {
  return {bfloat16 ? Dtype::bfloat16 : Dtype::float32, in, out, pointer<const void>(panels),
          pointer<const float>(bias)};
}

void bind_linear(py::module_& m) {
  m.def("packed_linear_bytes", [](bool bfloat16, int64_t in, int64_t out) {
    return linear_of(bfloat16, in, out, 0, 0).packed_bytes();
  });
  m.def("pack_linear",
        [](bool bfloat16, int64_t in, int64_t out, uintptr_t weight, int64_t row_stride, uintptr_t panels) {
          py::gil_scoped_release release;
          pack_linear(linear_of(bfloat16, in, out, panels, 0), pointer<const void>(weight), row_stride,
                      pointer<void>(panels));
        });
  m.def("unpack_linear", [](bool bfloat16, int64_t in, int64_t out, uintptr_t panels, uintptr_t weight) {
    unpack_linear(linear_of(bfloat16, in, out, panels, 0), pointer<void>(weight));
  });
  m.def("linear", [](bool bfloat16, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias, uintptr_t x,
                     int64_t rows, int64_t x_stride, uintptr_t y, int64_t y_stride, bool bfloat16_out) {
    py::gil_scoped_release release;
    linear(linear_of(bfloat16, in, out, panels, bias), pointer<const void>(x), rows, x_stride,
           pointer<void>(y), y_stride, bfloat16_out ? Dtype::bfloat16 : Dtype::float32);
  });
}

// Logits travel as (address, dtype 0 = float32 | 1 = bfloat16 | 2 = float16, rows, vocab, row stride in
// elements).
void bind_sampling(py::module_& m) {
  m.def(
      "sample_tokens",
      [](uintptr_t logits, int dtype, int64_t rows, int64_t vocab, int64_t stride, uintptr_t alpha,
         uintptr_t exponents, int64_t exponent_count, int64_t draws, uintptr_t row_of, uintptr_t keys,
         uintptr_t positions, uintptr_t exclude, uintptr_t token, uintptr_t logp, uintptr_t logz,
         uintptr_t entropy, uintptr_t status) {
        const Logits z{pointer<const void>(logits), static_cast<Dtype>(dtype), rows, vocab, stride};
        const py::gil_scoped_release release;
        sample_tokens(z, pointer<const float>(alpha), pointer<const float>(exponents), exponent_count, draws,
                      pointer<const int64_t>(row_of), pointer<const int64_t>(keys),
                      pointer<const int64_t>(positions), pointer<const int64_t>(exclude),
                      pointer<int64_t>(token), pointer<float>(logp), pointer<float>(logz),
                      pointer<float>(entropy), pointer<int32_t>(status));
      },
      "Addresses of arrays as in fastpower.kernels.sample_tokens; exclude may be 0.");
  m.def(
      "score_tokens",
      [](uintptr_t logits, int dtype, int64_t rows, int64_t vocab, int64_t stride, uintptr_t tokens,
         uintptr_t exponents, int64_t exponent_count, uintptr_t logp, uintptr_t logz, uintptr_t entropy,
         uintptr_t status) {
        const Logits z{pointer<const void>(logits), static_cast<Dtype>(dtype), rows, vocab, stride};
        const py::gil_scoped_release release;
        score_tokens(z, pointer<const int64_t>(tokens), pointer<const float>(exponents), exponent_count,
                     pointer<float>(logp), pointer<float>(logz), pointer<float>(entropy),
                     pointer<int32_t>(status));
      },
      "Addresses of arrays as in fastpower.kernels.score_tokens.");
  m.def(
      "resample",
      [](uintptr_t log_weights, uintptr_t uniforms, int64_t sets, int64_t count, int scheme, uintptr_t index,
         uintptr_t ess, uintptr_t log_mean) {
        const py::gil_scoped_release release;
        resample(pointer<const double>(log_weights), pointer<const double>(uniforms), sets, count,
                 static_cast<Scheme>(scheme), pointer<int64_t>(index), pointer<double>(ess),
                 pointer<double>(log_mean));
      },
      "Addresses of arrays as in fastpower.kernels.resample; scheme 0 systematic, 1 stratified, 2 "
      "multinomial, 3 residual.");
}

// ---------------------------------------------------------------------------- books of the cache

// Lists and arrays of integers; never a silent conversion from floats.
using Ints = py::array_t<int64_t, py::array::c_style>;
using Table = py::array_t<int32_t, py::array::c_style>;

int64_t count(const Ints& values, const char* name) {
  if (values.ndim() != 1)
    throw std::invalid_argument(std::string(name) + " must have one dimension, got " +
                                std::to_string(values.ndim()));
  return values.size();
}

int64_t count_pairs(const Ints& sequences, const Ints& values, const char* name) {
  const int64_t n = count(sequences, "sequences");
  if (count(values, name) != n)
    throw std::invalid_argument(std::string(name) + " must have one entry per sequence (" +
                                std::to_string(n) + "), got " + std::to_string(values.size()));
  return n;
}

std::vector<int32_t> token_ids(const Ints& tokens) {
  std::vector<int32_t> ids(count(tokens, "tokens"));
  for (size_t i = 0; i < ids.size(); ++i) {
    const int64_t id = tokens.data()[i];
    if (id < 0 || id > std::numeric_limits<int32_t>::max())
      throw std::invalid_argument("tokens must be in [0, 2^31), got " + std::to_string(id));
    ids[i] = static_cast<int32_t>(id);
  }
  return ids;
}

template <typename T>
py::array_t<T> to_numpy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Imported when first raised: the extension itself must load without the rest of the package.
void raise_as(const char* name, const std::exception& error) {
  PyErr_SetString(py::module_::import("fastpower.errors").attr(name).ptr(), error.what());
}

py::dict stats_dict(const SequenceTable& table) {
  const CacheStats s = table.stats();
  py::dict d;
  d["pages"] = s.pages;
  d["free_pages"] = s.free_pages;
  d["cached_pages"] = s.cached_pages;
  d["live_pages"] = s.live_pages;
  d["shared_pages"] = s.shared_pages;
  d["sequences"] = s.sequences;
  d["open_plans"] = s.open_plans;
  d["tokens"] = s.tokens;
  d["distinct_tokens"] = s.distinct_tokens;
  return d;
}

void bind_books(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const CacheFull& error) {
      raise_as("CacheFull", error);
    } catch (const UnknownSequence& error) {
      raise_as("UnknownSequence", error);
    }
  });

  py::class_<PagePool>(m, "PagePool", "Fixed-size pages with reference counts.")
      .def(py::init<int64_t>(), py::arg("num_pages"))
      .def("allocate", &PagePool::allocate, "A free page, now held once; raises CacheFull.")
      .def("retain", &PagePool::retain, py::arg("page"), "One more holder.")
      .def("release", &PagePool::release, py::arg("page"), "One holder less; at 0 the page is free.")
      .def(
          "count",
          [](const PagePool& pool, int64_t page) {
            if (page < 0 || page >= pool.num_pages())
              throw std::invalid_argument("page must be in [0, " + std::to_string(pool.num_pages()) +
                                          "), got " + std::to_string(page));
            return pool.count(static_cast<int32_t>(page));
          },
          py::arg("page"), "Holders of a page.")
      .def(
          "check",
          [](const PagePool& pool, const std::vector<int32_t>& expected) {
            if (static_cast<int64_t>(expected.size()) != pool.num_pages())
              throw std::invalid_argument("expected must have one count per page (" +
                                          std::to_string(pool.num_pages()) + "), got " +
                                          std::to_string(expected.size()));
            pool.check(expected);
          },
          py::arg("expected"), "Raises RuntimeError unless the books match these counts.")
      .def_property_readonly("num_pages", &PagePool::num_pages)
      .def_property_readonly("num_free", &PagePool::num_free);

  py::class_<SequenceTable>(m, "SequenceTable",
                            "Sequences as lists of shared pages; see csrc/sequence_table.h.")
      .def(py::init<int64_t, int64_t>(), py::arg("num_pages"), py::arg("page_size"))
      .def("add", &SequenceTable::add)
      .def(
          "fork",
          [](SequenceTable& t, int64_t sequence, int64_t length) {
            int64_t fork;
            t.fork(&sequence, &length, 1, &fork);
            return fork;
          },
          py::arg("sequence"), py::arg("length"))
      .def(
          "fork_many",
          [](SequenceTable& t, const Ints& sequences, const Ints& lengths) {
            const int64_t n = count_pairs(sequences, lengths, "lengths");
            Ints forks(n);
            t.fork(sequences.data(), lengths.data(), n, forks.mutable_data());
            return forks;
          },
          py::arg("sequences"), py::arg("lengths"))
      .def(
          "truncate", [](SequenceTable& t, int64_t s, int64_t length) { t.truncate(&s, &length, 1); },
          py::arg("sequence"), py::arg("length"))
      .def(
          "truncate_many",
          [](SequenceTable& t, const Ints& sequences, const Ints& lengths) {
            t.truncate(sequences.data(), lengths.data(), count_pairs(sequences, lengths, "lengths"));
          },
          py::arg("sequences"), py::arg("lengths"))
      .def(
          "free", [](SequenceTable& t, int64_t s) { t.free(&s, 1); }, py::arg("sequence"))
      .def(
          "free_many",
          [](SequenceTable& t, const Ints& sequences) {
            t.free(sequences.data(), count(sequences, "sequences"));
          },
          py::arg("sequences"))
      .def("length", &SequenceTable::length, py::arg("sequence"))
      .def(
          "lengths",
          [](const SequenceTable& t, const Ints& sequences) {
            Ints lengths(count(sequences, "sequences"));
            for (py::ssize_t i = 0; i < sequences.size(); ++i)
              lengths.mutable_data()[i] = t.length(sequences.data()[i]);
            return lengths;
          },
          py::arg("sequences"))
      .def(
          "reserve",
          [](SequenceTable& t, const Ints& sequences, const Ints& n_new) {
            const int64_t n = count_pairs(sequences, n_new, "n_new");
            const Plan& plan = t.reserve(sequences.data(), n_new.data(), n);
            try {
              return py::make_tuple(plan.id, to_numpy(plan.slots), to_numpy(plan.positions),
                                    to_numpy(plan.source), to_numpy(plan.target), to_numpy(plan.tokens));
            } catch (...) {  // no memory for the arrays
              t.rollback(plan.id);
              throw;
            }
          },
          py::arg("sequences"), py::arg("n_new"), "(id, slots, positions, source, target, tokens)")
      .def("commit", &SequenceTable::commit, py::arg("plan"))
      .def("rollback", &SequenceTable::rollback, py::arg("plan"))
      .def(
          "pages_needed",
          [](SequenceTable& t, const Ints& sequences, const Ints& n_new) {
            return t.pages_needed(sequences.data(), n_new.data(), count_pairs(sequences, n_new, "n_new"));
          },
          py::arg("sequences"), py::arg("n_new"))
      .def(
          "max_pages",
          [](const SequenceTable& t, const Ints& sequences) {
            return t.max_pages(sequences.data(), count(sequences, "sequences"));
          },
          py::arg("sequences"))
      .def(
          "page_tables",
          [](const SequenceTable& t, const Ints& sequences, Table table, Table lengths) {
            const int64_t n = count(sequences, "sequences");
            if (table.ndim() != 2 || table.shape(0) != n || lengths.ndim() != 1 || lengths.shape(0) != n)
              throw std::invalid_argument("page_table must be (" + std::to_string(n) +
                                          ", max_pages) and lengths (" + std::to_string(n) + ",) for " +
                                          std::to_string(n) + " sequences");
            t.page_tables(sequences.data(), n, table.mutable_data(), table.shape(1), lengths.mutable_data());
          },
          // noconvert: a converted copy would be filled and thrown away
          py::arg("sequences"), py::arg("page_table").noconvert(), py::arg("lengths").noconvert())
      .def(
          "shared_runs",
          [](const SequenceTable& t, const Ints& sequences, const Ints& n_query) {
            const int64_t n = count_pairs(sequences, n_query, "n_query");
            std::vector<int32_t> starts, pages;
            t.shared_runs(sequences.data(), n_query.data(), n, &starts, &pages);
            return py::make_tuple(to_numpy(starts), to_numpy(pages));
          },
          py::arg("sequences"), py::arg("n_query"))
      .def(
          "remember",
          [](SequenceTable& t, int64_t sequence, const Ints& tokens) {
            const std::vector<int32_t> ids = token_ids(tokens);
            t.remember(sequence, ids.data(), static_cast<int64_t>(ids.size()));
          },
          py::arg("sequence"), py::arg("tokens"))
      .def(
          "match",
          [](SequenceTable& t, const Ints& tokens) {
            const std::vector<int32_t> ids = token_ids(tokens);
            int64_t length;
            const int64_t sequence = t.match(ids.data(), static_cast<int64_t>(ids.size()), &length);
            return py::make_tuple(sequence, length);
          },
          py::arg("tokens"), "(sequence, length)")
      .def("forget", &SequenceTable::forget)
      .def_property_readonly("page_size", &SequenceTable::page_size)
      .def_property_readonly("num_pages", &SequenceTable::num_pages)
      .def_property_readonly("free_pages", &SequenceTable::free_pages)
      .def("stats", &stats_dict)
      .def("check", &SequenceTable::check);
}

// Strides and sizes in bytes.
void bind_paged_copy(py::module_& m) {
  m.def(
      "check_slots",
      [](uintptr_t slots, int64_t tokens, int64_t num_pages, int64_t page_size) {
        check_slots(pointer<const int64_t>(slots), tokens, num_pages, page_size);
      },
      py::arg("slots"), py::arg("tokens"), py::arg("num_pages"), py::arg("page_size"));
  m.def(
      "append_kv",
      [](uintptr_t key, uintptr_t value, int64_t key_token_stride, int64_t key_head_stride,
         int64_t value_token_stride, int64_t value_head_stride, uintptr_t k_cache, uintptr_t v_cache,
         int64_t k_page_stride, int64_t v_page_stride, int64_t num_pages, int64_t page_size, int64_t heads,
         int64_t head_bytes, uintptr_t slots, int64_t tokens) {
        py::gil_scoped_release release;
        append_kv({pointer<const char>(key), pointer<const char>(value), key_token_stride, key_head_stride,
                   value_token_stride, value_head_stride, pointer<char>(k_cache), pointer<char>(v_cache),
                   k_page_stride, v_page_stride, num_pages, page_size, heads, head_bytes,
                   pointer<const int64_t>(slots), tokens});
      },
      py::arg("key"), py::arg("value"), py::arg("key_token_stride"), py::arg("key_head_stride"),
      py::arg("value_token_stride"), py::arg("value_head_stride"), py::arg("k_cache"), py::arg("v_cache"),
      py::arg("k_page_stride"), py::arg("v_page_stride"), py::arg("num_pages"), py::arg("page_size"),
      py::arg("heads"), py::arg("head_bytes"), py::arg("slots"), py::arg("tokens"));
  m.def(
      "check_copies",
      [](uintptr_t source, uintptr_t target, uintptr_t tokens, int64_t copies, int64_t num_pages,
         int64_t page_size) {
        check_copies(pointer<const int64_t>(source), pointer<const int64_t>(target),
                     pointer<const int64_t>(tokens), copies, num_pages, page_size);
      },
      py::arg("source"), py::arg("target"), py::arg("tokens"), py::arg("copies"), py::arg("num_pages"),
      py::arg("page_size"));
  m.def(
      "copy_pages",
      [](uintptr_t k_cache, uintptr_t v_cache, int64_t k_layer_stride, int64_t k_page_stride,
         int64_t v_layer_stride, int64_t v_page_stride, int64_t layers, int64_t num_pages, int64_t page_size,
         int64_t token_bytes, uintptr_t source, uintptr_t target, uintptr_t tokens, int64_t copies) {
        py::gil_scoped_release release;
        copy_pages({pointer<char>(k_cache), pointer<char>(v_cache), k_layer_stride, k_page_stride,
                    v_layer_stride, v_page_stride, layers, num_pages, page_size, token_bytes,
                    pointer<const int64_t>(source), pointer<const int64_t>(target),
                    pointer<const int64_t>(tokens), copies});
      },
      py::arg("k_cache"), py::arg("v_cache"), py::arg("k_layer_stride"), py::arg("k_page_stride"),
      py::arg("v_layer_stride"), py::arg("v_page_stride"), py::arg("layers"), py::arg("num_pages"),
      py::arg("page_size"), py::arg("token_bytes"), py::arg("source"), py::arg("target"), py::arg("tokens"),
      py::arg("copies"));
}

// Strides in elements. `check_only` validates the integer tensors and reads nothing else.
void bind_paged_attention(py::module_& m) {
  m.def(
      "paged_attention",
      [](uintptr_t query, uintptr_t k_cache, uintptr_t v_cache, uintptr_t out, const std::string& dtype,
         int64_t query_token_stride, int64_t query_head_stride, int64_t k_page_stride, int64_t v_page_stride,
         int64_t tokens, int64_t q_heads, int64_t kv_heads, int64_t head_dim, int64_t num_pages,
         int64_t page_size, uintptr_t page_table, int64_t sequences, int64_t max_pages, int64_t table_stride,
         uintptr_t query_starts, uintptr_t lengths, uintptr_t shared_starts, uintptr_t shared_pages,
         int64_t groups, double scale, int64_t window, double softcap, uintptr_t ancestors, bool check_only) {
        const PagedAttention a{pointer<const void>(query),
                               pointer<const void>(k_cache),
                               pointer<const void>(v_cache),
                               pointer<void>(out),
                               dtype_from_name(dtype),
                               query_token_stride,
                               query_head_stride,
                               k_page_stride,
                               v_page_stride,
                               tokens,
                               q_heads,
                               kv_heads,
                               head_dim,
                               num_pages,
                               page_size,
                               pointer<const int32_t>(page_table),
                               sequences,
                               max_pages,
                               table_stride,
                               pointer<const int32_t>(query_starts),
                               pointer<const int32_t>(lengths),
                               pointer<const int32_t>(shared_starts),
                               pointer<const int32_t>(shared_pages),
                               groups,
                               static_cast<float>(scale),
                               static_cast<float>(softcap),
                               window,
                               pointer<const int64_t>(ancestors)};
        py::gil_scoped_release release;
        check_only ? check_attention(a) : paged_attention(a);
      },
      py::arg("query"), py::arg("k_cache"), py::arg("v_cache"), py::arg("out"), py::arg("dtype"),
      py::arg("query_token_stride"), py::arg("query_head_stride"), py::arg("k_page_stride"),
      py::arg("v_page_stride"), py::arg("tokens"), py::arg("q_heads"), py::arg("kv_heads"),
      py::arg("head_dim"), py::arg("num_pages"), py::arg("page_size"), py::arg("page_table"),
      py::arg("sequences"), py::arg("max_pages"), py::arg("table_stride"), py::arg("query_starts"),
      py::arg("lengths"), py::arg("shared_starts"), py::arg("shared_pages"), py::arg("groups"),
      py::arg("scale"), py::arg("window"), py::arg("softcap"), py::arg("ancestors") = 0,
      py::arg("check_only") = false);
}

float* floats(const py::object& address) {
  return address.is_none() ? nullptr : pointer<float>(address.cast<uintptr_t>());
}

void bind_decoder_forward(py::module_& m) {
  // (bfloat16, in, out, panels, bias) as fastpower.kernels.linear packed it
  using LinearArguments = std::tuple<bool, int64_t, int64_t, uintptr_t, uintptr_t>;
  const auto packed = [](const py::handle& object) {
    const auto [bfloat16, in, out, panels, bias] = object.cast<LinearArguments>();
    return linear_of(bfloat16, in, out, panels, bias);
  };
  py::class_<DecoderForward>(m, "DecoderForward",
                             "The forward of a Llama-shaped decoder; pointers are not owned.")
      .def(py::init([packed](const py::dict& d, const py::list& layers) {
             DecoderModel model{};
             model.dtype = d["bfloat16"].cast<bool>() ? Dtype::bfloat16 : Dtype::float32;
             model.hidden = d["hidden"].cast<int64_t>();
             model.q_heads = d["q_heads"].cast<int64_t>();
             model.kv_heads = d["kv_heads"].cast<int64_t>();
             model.head_dim = d["head_dim"].cast<int64_t>();
             model.intermediate = d["intermediate"].cast<int64_t>();
             model.vocab = d["vocab"].cast<int64_t>();
             model.eps = d["eps"].cast<float>();
             model.scale = d["scale"].cast<float>();
             model.softcap = d["softcap"].cast<float>();
             model.embedding_scale = d["embedding_scale"].cast<float>();
             model.activation = d["gelu"].cast<bool>() ? Activation::gelu_tanh : Activation::silu;
             model.embedding = pointer<const void>(d["embedding"].cast<uintptr_t>());
             model.final_norm = floats(d["final_norm"]);
             model.head = packed(d["head"]);
             model.ropes.resize(d["ropes"].cast<size_t>());
             for (const py::handle& item : layers) {
               const py::dict l = py::cast<py::dict>(item);
               model.layers.push_back({packed(l["qkv"]), packed(l["out"]), packed(l["gate"]), packed(l["up"]),
                                       packed(l["down"]), floats(l["input_norm"]),
                                       floats(l["attention_norm"]), floats(l["mlp_norm"]),
                                       floats(l["output_norm"]), floats(l["q_norm"]), floats(l["k_norm"]),
                                       l["rope"].cast<int64_t>(), l["window"].cast<int64_t>()});
             }
             return std::make_unique<DecoderForward>(std::move(model));
           }),
           py::arg("model"), py::arg("layers"))
      .def("set_rope",
           [](DecoderForward& self, int64_t index, uintptr_t cos, uintptr_t sin, int64_t positions) {
             self.set_rope(index, {pointer<const float>(cos), pointer<const float>(sin), positions});
           })
      .def(
          "run",
          [](DecoderForward& self, uintptr_t ids, uintptr_t positions, uintptr_t slots, int64_t tokens,
             uintptr_t keep, int64_t kept, uintptr_t page_table, int64_t sequences, int64_t max_pages,
             uintptr_t query_starts, uintptr_t lengths, uintptr_t shared_starts, uintptr_t shared_pages,
             int64_t groups, uintptr_t k_cache, uintptr_t v_cache, int64_t layer_stride, int64_t page_stride,
             int64_t num_pages, int64_t page_size, uintptr_t logits) {
            DecoderBatch batch{};
            batch.tokens = tokens;
            batch.sequences = sequences;
            batch.max_pages = max_pages;
            batch.kept = kept;
            batch.ids = pointer<const int64_t>(ids);
            batch.positions = pointer<const int64_t>(positions);
            batch.slots = pointer<const int64_t>(slots);
            batch.keep = pointer<const int64_t>(keep);
            batch.page_table = pointer<const int32_t>(page_table);
            batch.query_starts = pointer<const int32_t>(query_starts);
            batch.lengths = pointer<const int32_t>(lengths);
            batch.shared_starts = pointer<const int32_t>(shared_starts);
            batch.shared_pages = pointer<const int32_t>(shared_pages);
            batch.groups = groups;
            batch.k_cache = pointer<void>(k_cache);
            batch.v_cache = pointer<void>(v_cache);
            batch.layer_stride = layer_stride;
            batch.page_stride = page_stride;
            batch.num_pages = num_pages;
            batch.page_size = page_size;
            batch.logits = pointer<float>(logits);
            py::gil_scoped_release release;
            self.run(batch);
          },
          py::kw_only(), py::arg("ids"), py::arg("positions"), py::arg("slots"), py::arg("tokens"),
          py::arg("keep"), py::arg("kept"), py::arg("page_table"), py::arg("sequences"), py::arg("max_pages"),
          py::arg("query_starts"), py::arg("lengths"), py::arg("shared_starts"), py::arg("shared_pages"),
          py::arg("groups"), py::arg("k_cache"), py::arg("v_cache"), py::arg("layer_stride"),
          py::arg("page_stride"), py::arg("num_pages"), py::arg("page_size"), py::arg("logits"))
      .def("times", [](const DecoderForward& self) {
        const DecoderTimes t = self.times();
        return std::map<std::string, double>{{"qkv", t.qkv}, {"append", t.append}, {"attention", t.attention},
                                             {"out", t.out}, {"mlp", t.mlp},       {"head", t.head}};
      });
}

}  // namespace
}  // namespace fastpower

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastpower's C++ extension: CPU kernels and the books of pages and sequences.";
  fastpower::bind_machine(m);
  fastpower::bind_linear(m);
  fastpower::bind_sampling(m);
  fastpower::bind_books(m);
  fastpower::bind_paged_copy(m);
  fastpower::bind_paged_attention(m);
  fastpower::bind_decoder_forward(m);
}
