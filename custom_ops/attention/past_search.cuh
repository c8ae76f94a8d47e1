// Finds P of a shared cache: the last key that the mask [batch, length] shows in any batch is the last of the new ones.
//
// The blocks of a cluster share the entries, and send each other what they have found. A block may be alone, too.
#pragma once

#include "attention/arguments.cuh"
#include "common/cluster.cuh"

namespace onnxfuse::attention::cuda {

// kDeep: entries of a thread on their way at once; kBlocks: at most, of a cluster. All threads call everything.
template <int kWarps, int kDeep, int kBlocks = onnxfuse::cuda::kMostClusterBlocks>
class PastSearch {
 public:
  // In shared memory.
  struct Mailbox {
    int lasts[kBlocks * kWarps];
    uint64_t has_lasts;
  };

  __device__ explicit PastSearch(Mailbox* mailbox) : lasts_(mailbox->lasts), mail_(&mailbox->has_lasts) {}

  // Before enter_cluster().
  __device__ void expect() const {
    const int blocks = onnxfuse::cuda::cluster_size();
    if (threadIdx.x == 0) mail_.expect(blocks * kWarps * sizeof(int));
  }

  // The first entries are on their way then.
  __device__ void begin(const Mask& mask, int batch) {
    mask_ = mask;
    entries_ = batch * static_cast<int>(mask.length);
    at_ = onnxfuse::cuda::cluster_rank() * kWarps * kWarp + static_cast<int>(threadIdx.x);
    step_ = onnxfuse::cuda::cluster_size() * kWarps * kWarp;
    load();
  }

  // Once all blocks of the cluster run.
  __device__ void send() {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int last = __reduce_max_sync(0xffffffff, last_shown());
    if (lane >= onnxfuse::cuda::cluster_size()) return;
    mail_.send(lane, &lasts_[onnxfuse::cuda::cluster_rank() * kWarps + warp], last);
  }

  // Waits for all blocks. -1 if the mask does not fit the buffer, the new keys or the bias.
  template <typename T>
  __device__ int past(const Arguments<T>& a) const {
    mail_.wait();
    int keys = 0;
    for (int i = threadIdx.x % kWarp; i < onnxfuse::cuda::cluster_size() * kWarps; i += kWarp) {
      keys = max(keys, lasts_[i] + 1);
    }
    keys = __reduce_max_sync(0xffffffff, keys);
    const int fresh = static_cast<int>(a.problem.fresh);
    return keys >= fresh && keys <= a.room && (a.bias_keys == 0 || a.bias_keys == keys) ? keys - fresh : -1;
  }

  // All of this, for a block without a cluster.
  template <typename T>
  __device__ int find_alone(const Arguments<T>& a) {
    begin(a.mask, static_cast<int>(a.problem.batch));
    send();
    return past(a);
  }

 private:
  __device__ void load() {
#pragma unroll
    for (int u = 0; u < kDeep; ++u) {
      values_[u] = at_ + u * step_ < entries_ ? mask_.raw_first(at_ + u * step_) : uint2{0, 0};
    }
  }

  // The last column among the entries that the thread looks at; -1 if all are zero.
  __device__ int last_shown() {
    const int length = static_cast<int>(mask_.length), columns = step_ % length;
    int column = at_ % length, found = -1;
    while (true) {
#pragma unroll
      for (int u = 0; u < kDeep; ++u) {
        if ((values_[u].x | values_[u].y) != 0) found = max(found, column);
        column += columns;
        if (column >= length) column -= length;
      }
      at_ += kDeep * step_;
      if (at_ >= entries_) return found;
      load();
    }
  }

  int* lasts_;
  onnxfuse::cuda::Mail mail_;
  Mask mask_;
  int entries_, at_, step_;
  uint2 values_[kDeep];
};

}  // namespace onnxfuse::attention::cuda
