#include "common/registry.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "common/simd_target.h"

namespace onnxfuse {

ort::Api ort::api;

Op*& Op::first() {
  static Op* first = nullptr;
  return first;
}

size_t Op::required_outputs() const {
  return static_cast<size_t>(std::count_if(outputs, outputs + output_count,
                                           [](const Port& port) { return port.characteristic == ort::kRequired; }));
}

void set_description(Op& op) {
  op.GetName = [](const ort::CustomOp* self) { return static_cast<const Op*>(self)->name; };
  op.GetExecutionProviderType = [](const ort::CustomOp* self) { return static_cast<const Op*>(self)->provider; };
  op.GetInputTypeCount = [](const ort::CustomOp* self) { return static_cast<const Op*>(self)->input_count; };
  op.GetOutputTypeCount = [](const ort::CustomOp* self) { return static_cast<const Op*>(self)->output_count; };
  op.GetInputType = [](const ort::CustomOp* self, size_t i) {
    return static_cast<int>(static_cast<const Op*>(self)->inputs[i].dtype);
  };
  op.GetOutputType = [](const ort::CustomOp* self, size_t i) {
    return static_cast<int>(static_cast<const Op*>(self)->outputs[i].dtype);
  };
  op.GetInputCharacteristic = [](const ort::CustomOp* self, size_t i) {
    return static_cast<const Op*>(self)->inputs[i].characteristic;
  };
  op.GetOutputCharacteristic = [](const ort::CustomOp* self, size_t i) {
    return static_cast<const Op*>(self)->outputs[i].characteristic;
  };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kMemoryDefault; };
  op.GetVariadicInputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 1; };
}

std::string error_text(const Op& op, const std::string& node, const char* message, const Context* context) {
  std::ostringstream text;
  text << "onnxfuse." << op.name;
  if (!node.empty()) text << " (node " << node << ")";
  text << ": " << message;
  if (context == nullptr) return text.str();
  text << "; inputs:";
  for (size_t i = 0; i < op.input_count; ++i) {
    const AnyTensor input = context->input(i);
    if (input.present) text << ' ' << op.inputs[i].name << ' ' << dtype_name(input.dtype) << input.shape;
  }
  return text.str();
}

OrtStatus* error_status(const std::string& text) {
  return ort::api.CreateStatus(ort::kErrorInvalidArgument, text.c_str());
}

namespace {

// Session config entries: what to register, as names separated by commas; everything where an entry is absent.
constexpr const char* kOpsKey = "onnxfuse.ops";              // operators
constexpr const char* kProvidersKey = "onnxfuse.providers";  // the execution providers whose kernels to take
constexpr const char* kTritonKey = "onnxfuse.triton";        // "0" leaves out the kernels written in Triton

// Asking the runtime for an API that it lacks would print an error, so the version is read from its name.
uint32_t api_version(const ort::ApiBase& base) {
  unsigned major = 0, minor = 0;
  std::sscanf(base.GetVersionString(), "%u.%u", &major, &minor);
  return major > 1 ? std::numeric_limits<uint32_t>::max() : minor;
}

ort::Api read_table(const ort::ApiBase& base) {
  ort::Api api;
  api.version = api_version(base);
  void* const* table = base.GetApi(ort::kApiVersion);
#define ONNXFUSE_READ_SLOT(position, name, ...) api.name = reinterpret_cast<decltype(api.name)>(table[position]);
  ONNXFUSE_ORT_SLOTS(ONNXFUSE_READ_SLOT)
  if (api.version >= ort::kApiVersionWithShapeData) {
    ONNXFUSE_ORT_SLOTS_API_24(ONNXFUSE_READ_SLOT)
  }
#undef ONNXFUSE_READ_SLOT
  return api;
}

// The text of a session config entry, if the session has it.
std::optional<std::string> entry_of(const OrtSessionOptions* options, const char* key) {
  int has_entry = 0;
  check(ort::api.HasSessionConfigEntry(options, key, &has_entry));
  if (!has_entry) return std::nullopt;

  size_t size = 0;
  check(ort::api.GetSessionConfigEntry(options, key, nullptr, &size));
  std::string entry(size, '\0');
  check(ort::api.GetSessionConfigEntry(options, key, entry.data(), &size));
  entry.resize(size - 1);  // the terminating zero
  return entry;
}

// The names of a session config entry; `known`, which are all that the library has, where the session has no such
// entry.
std::set<std::string> names_of(const OrtSessionOptions* options, const char* key, const char* what,
                               const std::set<std::string>& known) {
  const std::optional<std::string> entry = entry_of(options, key);
  if (!entry) return known;
  std::set<std::string> wanted;
  std::istringstream names(*entry);
  for (std::string name; std::getline(names, name, ',');) {
    if (known.count(name) == 0) {
      std::string all;
      for (const std::string& other : known) all += (all.empty() ? "" : ", ") + other;
      fail("session config entry ", key, " names the ", what, " '", name, "'; this library has ", all);
    }
    wanted.insert(name);
  }
  return wanted;
}

// What the session asks for.
std::set<Op*> wanted_ops(const OrtSessionOptions* options) {
  std::set<std::string> names, providers;
  std::set<std::pair<std::string, std::string>> in_triton;
  const bool wants_triton = entry_of(options, kTritonKey) != "0";
  for (const Op* op = Op::first(); op != nullptr; op = op->next) {
    names.insert(op->name);
    providers.insert(op->provider);
    if (wants_triton && op->language == Language::kTriton) in_triton.emplace(op->name, op->provider);
  }
  names = names_of(options, kOpsKey, "operator", names);
  providers = names_of(options, kProvidersKey, "execution provider", providers);
  std::set<Op*> wanted;
  for (Op* op = Op::first(); op != nullptr; op = op->next) {
    const bool is_chosen = in_triton.count({op->name, op->provider}) == (op->language == Language::kTriton ? 1 : 0);
    if (is_chosen && names.count(op->name) != 0 && providers.count(op->provider) != 0) wanted.insert(op);
  }
  return wanted;
}

// The domain holding the `wanted` operators. The runtime keeps pointers to it, so it lives as long as the library.
OrtCustomOpDomain* domain_of(const std::set<Op*>& wanted) {
  static std::mutex mutex;
  static std::map<std::set<Op*>, OrtCustomOpDomain*> domains;
  const std::lock_guard<std::mutex> lock(mutex);
  OrtCustomOpDomain*& domain = domains[wanted];
  if (domain != nullptr) return domain;
  OrtCustomOpDomain* made = nullptr;
  check(ort::api.CreateCustomOpDomain("onnxfuse", &made));
  for (Op* op : wanted) {
    const bool all_required = std::all_of(op->inputs, op->inputs + op->input_count,
                                          [](const Port& port) { return port.characteristic == ort::kRequired; });
    if (!all_required && ort::api.version < ort::kApiVersionInferringWithoutOptionalInputs) {
      op->InferOutputShapeFn = nullptr;  // the runtime then takes the shapes from the model's value_info
    }
    check(ort::api.CustomOpDomain_Add(made, op));
  }
  return domain = made;
}

}  // namespace
}  // namespace onnxfuse

// The entry point that ONNX Runtime calls when a session registers the library.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const onnxfuse::ort::ApiBase* base) {
  using namespace onnxfuse;
  const auto refuse = [base](const std::string& text) {
    using CreateStatus = OrtStatus* (*)(int, const char*);
    return reinterpret_cast<CreateStatus>(base->GetApi(1)[0])(ort::kErrorFail, text.c_str());
  };
  if (api_version(*base) < ort::kApiVersion) {
    return refuse(std::string("onnxfuse needs ONNX Runtime 1.18 or newer, this is ") + base->GetVersionString() +
                  "; upgrade it");
  }
  static const ort::ApiBase* const runtime = [base] {
    ort::api = read_table(*base);
    return base;
  }();
  if (base != runtime) {  // its objects would be handed to the functions of the first one
    return refuse(std::string("onnxfuse serves one ONNX Runtime in a process: version ") + runtime->GetVersionString() +
                  " has loaded it already, this is another copy, version " + base->GetVersionString());
  }
  try {
    simd_target();  // a bad ONNXFUSE_SIMD is reported here, not at the first run
    const std::set<Op*> wanted = wanted_ops(options);
    if (!wanted.empty()) check(ort::api.AddCustomOpDomain(options, domain_of(wanted)));
    return nullptr;
  } catch (const std::exception& error) {
    return error_status(error.what());
  }
}

// The kernels of this library, for whoever prepares sessions: a line "<execution provider> <operator> <language>" each.
extern "C" __attribute__((visibility("default"))) const char* onnxfuse_kernels() {
  using namespace onnxfuse;
  static const std::string text = [] {
    std::set<std::string> lines;
    for (const Op* op = Op::first(); op != nullptr; op = op->next) {
      const char* language = op->language == Language::kTriton ? "Triton" : "C++";
      lines.insert(std::string(op->provider) + ' ' + op->name + ' ' + language + '\n');
    }
    std::string all;
    for (const std::string& line : lines) all += line;
    return all;
  }();
  return text.c_str();
}
