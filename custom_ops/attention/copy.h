// Copies of cache rows. Included by attention_kernel.h.

// Copies bytes past the caches.
inline void stream_bytes(const char* from, char* to, int64_t count) {
  constexpr int64_t kStep = kLanes * sizeof(float);
  const int64_t ahead = std::min<int64_t>(-reinterpret_cast<uintptr_t>(to) & (kStep - 1), count);
  std::copy_n(from, ahead, to);
  int64_t i = ahead;
  for (; i + kStep <= count; i += kStep)
    stream(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  std::copy_n(from + i, count - i, to + i);
}
