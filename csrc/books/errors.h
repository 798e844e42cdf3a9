// The errors that fastpower raises on purpose, the same names as in fastpower/errors.py. bindings/books.cpp
// translates them.
#pragma once

#include <stdexcept>
#include <string>

namespace fastpower {

// Too few free pages. Nothing was changed.
struct CacheFull : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A sequence handle that was never given out or was already freed.
struct UnknownSequence : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A sequence would exceed the model's context. Nothing was changed.
struct PromptTooLong : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// check() found a broken invariant: a bug of ours, never of the caller.
struct InconsistentBooks : std::logic_error {
  using std::logic_error::logic_error;
};

}  // namespace fastpower
