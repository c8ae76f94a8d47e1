#include "rotary_table/rotary_table.h"

#include "common/op.h"
#include "rotary_table/node.h"

#define ONNXFUSE_KERNELS "rotary_table/rotary_table_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

class RotaryTable : public RotaryTableNode {
 public:
  using RotaryTableNode::RotaryTableNode;

  void compute(const Context& context) const {
    const Arguments a = arguments(context);
    const auto kernel = ONNXFUSE_KERNEL(rotary_table_positions);
    context.parallel_for(a.count, 3.0 * static_cast<double>(a.frequencies), [&](int64_t begin, int64_t end) {
      kernel(a.positions + begin, end - begin, a.inv_freq, scale_, a.cosines + begin * a.frequencies,
             a.sines + begin * a.frequencies, a.frequencies);
    });
  }
};

const Register<RotaryTable> registered("RotaryTable");

}  // namespace
}  // namespace onnxfuse
