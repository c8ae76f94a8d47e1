// Failures inside the library are exceptions; the adapter in registry.h turns them into statuses at the C boundary.
#pragma once

#include <sstream>
#include <stdexcept>

#include "common/ort_abi.h"

namespace onnxfuse {

// Throws a std::runtime_error whose text is `parts` written one after the other.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// Fails with `parts` unless `holds`. The text is not built when it does.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) fail(parts...);
}

// Releases `status` and returns the text of the error, empty if there is none.
inline std::string take_error(OrtStatus* status) {
  if (status == nullptr) return {};
  std::string text = ort::api.GetErrorMessage(status);
  ort::api.ReleaseStatus(status);
  return text.empty() ? "unknown error of ONNX Runtime" : text;
}

// Fails if a call into the runtime did.
inline void check(OrtStatus* status) {
  if (status != nullptr) fail(take_error(status));
}

}  // namespace onnxfuse
