// The books of the cache: pages and sequences.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
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

[[noreturn]] void refuse(const std::string& what, py::handle got) {
  throw py::type_error(what + ", got " + std::string(py::str(py::repr(got)).cast<std::string>(), 0, 80) +
                       " (" + Py_TYPE(got.ptr())->tp_name + ")");
}

// A whole number as Python's ints and NumPy's integers hold it. pybind11's own conversion takes True for 1
// and a tensor of one entry for its value, and its message names no argument.
class Whole {
 public:
  Whole(const char* name, py::handle value) : value_(0) {
    static PyObject* integer = nullptr;  // kept for the process's life; the interpreter's lock guards it
    if (!integer) integer = py::object(py::module_::import("numpy").attr("integer")).release().ptr();
    if (PyBool_Check(value.ptr()) ||
        !(PyLong_Check(value.ptr()) || PyObject_IsInstance(value.ptr(), integer) == 1))
      refuse(std::string(name) + " must be a whole number", value);
    const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!number) throw py::error_already_set();
    int overflow;
    value_ = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (overflow) refuse(std::string(name) + " must fit 64 bits", value);
  }
  operator int64_t() const { return value_; }

 private:
  int64_t value_;
};

// An array or a sequence of whole numbers, none of them changed: NumPy's conversion makes 2.9 a 2.
Ints whole_numbers(const char* name, py::handle values) {
  if (py::isinstance<Ints>(values)) return py::reinterpret_borrow<Ints>(values);
  const std::string what = std::string(name) + " must hold whole numbers of 64 bits";
  if (py::isinstance<py::list>(values) || py::isinstance<py::tuple>(values)) {
    Ints result(static_cast<py::ssize_t>(py::len(values)));
    int64_t* next = result.mutable_data();
    for (const py::handle& value : values) {
      if (PySequence_Check(value.ptr()) && !PyUnicode_Check(value.ptr()))
        throw std::invalid_argument(std::string(name) +
                                    " must have one dimension, got a sequence in a sequence");
      *next++ = Whole(name, value);
    }
    return result;
  }
  if (!py::isinstance<py::array>(values)) refuse(what, values);
  const auto array = py::reinterpret_borrow<py::array>(values);
  const char kind = array.dtype().kind();
  if (array.size() > 0 && kind != 'i' && kind != 'u') refuse(what, values);
  if (kind == 'u' && array.size() > 0 && array.attr("max")().cast<uint64_t>() >> 63) refuse(what, values);
  return py::cast<Ints>(array.attr("astype")("int64"));
}

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

int32_t page_of(const PagePool& pool, const py::object& value) {
  const int64_t page = Whole("page", value);
  if (page < 0 || page >= pool.num_pages())
    throw std::invalid_argument("page must be in [0, " + std::to_string(pool.num_pages()) + "), got " +
                                std::to_string(page));
  return static_cast<int32_t>(page);
}

// Everything a forward needs to know of its sequences, in one crossing: a reservation, then tables, lengths
// and shared runs as they are with it. Throws PromptTooLong, before anything is reserved, if a sequence would
// have more than max_length tokens.
py::tuple reserve_step(SequenceTable& t, const py::object& sequences_given, const py::object& n_new_given,
                       const py::object& max_length_given) {
  const Ints sequences = whole_numbers("sequences", sequences_given),
             n_new = whole_numbers("n_new", n_new_given);
  const int64_t max_length = Whole("max_length", max_length_given);
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
      .def(py::init(
               [](const py::object& pages) { return std::make_unique<PagePool>(Whole("num_pages", pages)); }),
           py::arg("num_pages"))
      .def("allocate", &PagePool::allocate, "A free page, now held once; raises CacheFull.")
      .def(
          "retain", [](PagePool& pool, const py::object& page) { pool.retain(page_of(pool, page)); },
          py::arg("page"), "One more holder.")
      .def(
          "release", [](PagePool& pool, const py::object& page) { pool.release(page_of(pool, page)); },
          py::arg("page"), "One holder less; at 0 the page is free.")
      .def(
          "count",
          [](const PagePool& pool, const py::object& page) { return pool.count(page_of(pool, page)); },
          py::arg("page"), "Holders of a page.")
      .def(
          "check",
          [](const PagePool& pool, const py::object& counts) {
            const Ints numbers = whole_numbers("expected", counts);
            const std::vector<int32_t> expected(numbers.data(), numbers.data() + count(numbers, "expected"));
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
      .def(py::init([](const py::object& pages, const py::object& size) {
             return std::make_unique<SequenceTable>(Whole("num_pages", pages), Whole("page_size", size));
           }),
           py::arg("num_pages"), py::arg("page_size"))
      .def("add", &SequenceTable::add)
      .def(
          "fork",
          [](SequenceTable& t, const py::object& sequence, const py::object& length) {
            const int64_t s = Whole("sequence", sequence), n = Whole("length", length);
            int64_t fork;
            t.fork(&s, &n, 1, &fork);
            return fork;
          },
          py::arg("sequence"), py::arg("length"))
      .def(
          "fork_many",
          [](SequenceTable& t, const py::object& sequences_given, const py::object& lengths_given) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
            const Ints lengths = whole_numbers("lengths", lengths_given);
            const int64_t n = count_pairs(sequences, lengths, "lengths");
            Ints forks(n);
            t.fork(sequences.data(), lengths.data(), n, forks.mutable_data());
            return forks;
          },
          py::arg("sequences"), py::arg("lengths"))
      .def(
          "truncate",
          [](SequenceTable& t, const py::object& sequence, const py::object& length) {
            const int64_t s = Whole("sequence", sequence), n = Whole("length", length);
            t.truncate(&s, &n, 1);
          },
          py::arg("sequence"), py::arg("length"))
      .def(
          "truncate_many",
          [](SequenceTable& t, const py::object& sequences_given, const py::object& lengths_given) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
            const Ints lengths = whole_numbers("lengths", lengths_given);
            t.truncate(sequences.data(), lengths.data(), count_pairs(sequences, lengths, "lengths"));
          },
          py::arg("sequences"), py::arg("lengths"))
      .def(
          "free",
          [](SequenceTable& t, const py::object& sequence) {
            const int64_t s = Whole("sequence", sequence);
            t.free(&s, 1);
          },
          py::arg("sequence"))
      .def(
          "free_many",
          [](SequenceTable& t, const py::object& sequences_given) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
            t.free(sequences.data(), count(sequences, "sequences"));
          },
          py::arg("sequences"))
      .def(
          "length",
          [](const SequenceTable& t, const py::object& sequence) {
            return t.length(Whole("sequence", sequence));
          },
          py::arg("sequence"))
      .def(
          "lengths",
          [](const SequenceTable& t, const py::object& sequences_given) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
            Ints lengths(count(sequences, "sequences"));
            for (py::ssize_t i = 0; i < sequences.size(); ++i)
              lengths.mutable_data()[i] = t.length(sequences.data()[i]);
            return lengths;
          },
          py::arg("sequences"))
      .def(
          "reserve",
          [](SequenceTable& t, const py::object& sequences_given, const py::object& n_new_given) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
            const Ints n_new = whole_numbers("n_new", n_new_given);
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
      .def(
          "commit", [](SequenceTable& t, const py::object& plan) { t.commit(Whole("plan", plan)); },
          py::arg("plan"))
      .def(
          "rollback", [](SequenceTable& t, const py::object& plan) { t.rollback(Whole("plan", plan)); },
          py::arg("plan"))
      .def(
          "pages_needed",
          [](SequenceTable& t, const py::object& sequences_given, const py::object& n_new_given) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
            const Ints n_new = whole_numbers("n_new", n_new_given);
            return t.pages_needed(sequences.data(), n_new.data(), count_pairs(sequences, n_new, "n_new"));
          },
          py::arg("sequences"), py::arg("n_new"))
      .def(
          "max_pages",
          [](const SequenceTable& t, const py::object& sequences_given) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
            return t.max_pages(sequences.data(), count(sequences, "sequences"));
          },
          py::arg("sequences"))
      .def(
          "page_tables",
          [](const SequenceTable& t, const py::object& sequences_given, Table table, Table lengths) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
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
          [](const SequenceTable& t, const py::object& sequences_given, const py::object& n_query_given) {
            const Ints sequences = whole_numbers("sequences", sequences_given);
            const Ints n_query = whole_numbers("n_query", n_query_given);
            const int64_t n = count_pairs(sequences, n_query, "n_query");
            std::vector<int32_t> starts, pages;
            t.shared_runs(sequences.data(), n_query.data(), n, &starts, &pages);
            return py::make_tuple(to_numpy(starts), to_numpy(pages));
          },
          py::arg("sequences"), py::arg("n_query"))
      .def(
          "remember",
          [](SequenceTable& t, const py::object& sequence_given, const py::object& tokens_given) {
            const Ints tokens = whole_numbers("tokens", tokens_given);
            const int64_t sequence = Whole("sequence", sequence_given);
            const std::vector<int32_t> ids = token_ids(tokens);
            t.remember(sequence, ids.data(), static_cast<int64_t>(ids.size()));
          },
          py::arg("sequence"), py::arg("tokens"))
      .def(
          "match",
          [](SequenceTable& t, const py::object& tokens_given) {
            const Ints tokens = whole_numbers("tokens", tokens_given);
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
