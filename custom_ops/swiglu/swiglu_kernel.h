// SwiGLU on raw pointers, see swiglu.h. A thread owns a range of elements; 3 * sizeof(T) bytes of memory traffic each.

template <typename T>
void swiglu(const T* gate, const T* up, T* y, int64_t count) {
  for_lanes(count,
            [&](int64_t i, auto lanes) { store(y + i, silu(load(gate + i, lanes)) * load(up + i, lanes), lanes); });
}
