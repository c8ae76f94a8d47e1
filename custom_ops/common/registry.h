// Registration of operators. An operator is a class per mix of dtypes, registered by a static object in its own file:
//
//   template <typename T>
//   struct Double {
//     static constexpr Port kInputs[] = {required<T>("x")};
//     static constexpr Port kOutputs[] = {required<T>("y")};
//     static void infer(const ShapeInference& shapes) { ... }   // when the model is loaded
//     explicit Double(const NodeInfo& node) { ... }             // once a node: read the attributes
//     void compute(const Context& context) const { ... }        // once a run, perhaps in several threads at a time
//   };
//   const Register<Double<float>, Double<Half>> registered("Double");
//
// Kernels of the same operator for another execution provider are registered with its name, in a file of their own:
//
//   const Register<DoubleOnCuda<float>, DoubleOnCuda<Half>> registered("Double", kCudaProvider);
//
// Kernels written in Triton replace those in C++ for the same provider, unless the session's config entry
// "onnxfuse.triton" is "0"; they are registered with Language::kTriton, for all dtypes that the operator has.
//
// Whatever these functions throw becomes an error that names the operator, the node and the inputs' shapes.
#pragma once

#include <array>
#include <iterator>
#include <string>

#include "common/context.h"
#include "common/shape_inference.h"

namespace onnxfuse {

inline constexpr const char* kCpuProvider = "CPUExecutionProvider";
inline constexpr const char* kCudaProvider = "CUDAExecutionProvider";

enum class Language { kCpp, kTriton };

// An input or output of an operator.
struct Port {
  const char* name;
  DType dtype;
  int characteristic;
};

template <typename T>
constexpr Port required(const char* name) {
  return {name, kDTypeOf<T>, ort::kRequired};
}
template <typename T>
constexpr Port optional(const char* name) {
  return {name, kDTypeOf<T>, ort::kOptional};
}
// An input of any dtype; compute() looks at the dtype.
constexpr Port any(const char* name) { return {name, DType::kAny, ort::kRequired}; }
constexpr Port optional_any(const char* name) { return {name, DType::kAny, ort::kOptional}; }

// One operator for one mix of dtypes and one execution provider, as a link of the list that RegisterCustomOps walks.
struct Op : ort::CustomOp {
  const char* name = nullptr;
  const char* provider = nullptr;
  Language language = Language::kCpp;
  const Port* inputs = nullptr;
  const Port* outputs = nullptr;
  size_t input_count = 0, output_count = 0;
  Op* next = nullptr;

  size_t required_outputs() const;  // the optional ones come last

  static Op*& first();
};

// The text of an error in `op` at `node`; `context` adds what the inputs are.
std::string error_text(const Op& op, const std::string& node, const char* message, const Context* context);

OrtStatus* error_status(const std::string& text);

// Sets the callbacks that do not depend on the kernel's class.
void set_description(Op& op);

template <class Kernel>
struct Instance {
  const Op& op;
  std::string node;
  Kernel kernel;
};

template <class Kernel>
void describe(Op& op, const char* name, const char* provider) {
  op.name = name;
  op.provider = provider;
  op.inputs = Kernel::kInputs;
  op.input_count = std::size(Kernel::kInputs);
  op.outputs = Kernel::kOutputs;
  op.output_count = std::size(Kernel::kOutputs);
  set_description(op);

  op.CreateKernelV2 = [](const ort::CustomOp* self, void* const*, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatus* {
    const Op& op = *static_cast<const Op*>(self);
    std::string node;
    try {
      const NodeInfo node_info(info);
      node = node_info.name();
      *kernel = new Instance<Kernel>{op, node, Kernel(node_info)};
      return nullptr;
    } catch (const std::exception& error) {
      return error_status(error_text(op, node, error.what(), nullptr));
    }
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Instance<Kernel>*>(kernel); };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* raw) -> OrtStatus* {
    const auto& instance = *static_cast<const Instance<Kernel>*>(kernel);
    try {
      const Context context(raw);
      try {
        instance.kernel.compute(context);
        return nullptr;
      } catch (const std::exception& error) {
        return error_status(error_text(instance.op, instance.node, error.what(), &context));
      }
    } catch (const std::exception& error) {
      return error_status(error_text(instance.op, instance.node, error.what(), nullptr));
    }
  };
  op.InferOutputShapeFn = [](const ort::CustomOp* self, OrtShapeInferContext* context) -> OrtStatus* {
    try {
      Kernel::infer(ShapeInference(context, static_cast<const Op*>(self)->required_outputs()));
      return nullptr;
    } catch (const std::exception& error) {
      return error_status(error_text(*static_cast<const Op*>(self), "", error.what(), nullptr));
    }
  };
}

template <class... Kernels>
class Register {
 public:
  explicit Register(const char* name, const char* provider = kCpuProvider, Language language = Language::kCpp) {
    size_t i = 0;
    (describe<Kernels>(ops_[i++], name, provider), ...);
    for (Op& op : ops_) {
      op.language = language;
      op.next = Op::first();
      Op::first() = &op;
    }
  }
  Register(const Register&) = delete;

 private:
  std::array<Op, sizeof...(Kernels)> ops_;
};

}  // namespace onnxfuse
