// The books of the cache: pages and sequences.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/module.h"
#include "books/errors.h"
#include "books/page_pool.h"
#include "books/sequence_table.h"

namespace py = pybind11;

namespace fastpower {
namespace {

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

// Everything a forward needs to know of its sequences, in one crossing: a reservation, then tables, lengths
// and shared runs as they are with it. Throws PromptTooLong, before anything is reserved, if a sequence would
// have more than max_length tokens.
py::tuple reserve_step(SequenceTable& t, const Ints& sequences, const Ints& n_new, int64_t max_length) {
  const int64_t n = count_pairs(sequences, n_new, "n_new");
  const int64_t* const ids = sequences.data();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t length = t.length(ids[i]), room = max_length - length;
    if (n_new.data()[i] > room)
      throw PromptTooLong("a sequence would have " +
                          std::to_string(static_cast<uint64_t>(length) + n_new.data()[i]) +
                          " tokens; the model's context is " + std::to_string(max_length) +
                          ": shorten the prompt or the horizon");
  }
  const Plan& plan = t.reserve(ids, n_new.data(), n);
  try {
    Table table({n, std::max<int64_t>(1, t.max_pages(ids, n))}), lengths(n);
    t.page_tables(ids, n, table.mutable_data(), table.shape(1), lengths.mutable_data());
    py::object shared = py::none();
    if (n > 1) {
      std::vector<int32_t> starts, pages;
      t.shared_runs(ids, n_new.data(), n, &starts, &pages);
      shared = py::make_tuple(to_numpy(starts), to_numpy(pages));
    }
    return py::make_tuple(plan.id, to_numpy(plan.slots), to_numpy(plan.positions), to_numpy(plan.source),
                          to_numpy(plan.target), to_numpy(plan.tokens), lengths, table, shared);
  } catch (...) {  // no memory for the arrays
    t.rollback(plan.id);
    throw;
  }
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

}  // namespace

void bind_books(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const CacheFull& error) {
      raise_as("CacheFull", error);
    } catch (const UnknownSequence& error) {
      raise_as("UnknownSequence", error);
    } catch (const PromptTooLong& error) {
      raise_as("PromptTooLong", error);
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
                            "Sequences as lists of shared pages; see csrc/books/sequence_table.h.")
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
      .def("reserve_step", &reserve_step, py::arg("sequences"), py::arg("n_new"), py::arg("max_length"),
           "(id, slots, positions, source, target, tokens, lengths, page_table, shared runs or None)")
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
      .def("forget_all", &SequenceTable::forget_all)
      .def_property_readonly("page_size", &SequenceTable::page_size)
      .def_property_readonly("num_pages", &SequenceTable::num_pages)
      .def_property_readonly("free_pages", &SequenceTable::free_pages)
      .def("stats", &stats_dict)
      .def("check", &SequenceTable::check);
}

}  // namespace fastpower
