// Weights on their way to the form that AMX wants: a panel's rows in pairs, each number as parts, see gemm_amx.cc,
// where this is included.

// 16 numbers of each of two rows for AMX, which wants the numbers of a column side by side: a register of pairs for
// each part. Parts are cut off towards zero, which takes the fewest instructions; the last one has few enough bits.
template <int kParts>
ONNXFUSE_INLINE void store_parts(__m512 even, __m512 odd, char* to) {
  const __m512i upper = _mm512_set1_epi32(-0x10000);
  for (int part = 0; part < kParts; ++part, to += 2 * kRegisterBytes) {
    const __m512i e = _mm512_castps_si512(even), o = _mm512_castps_si512(odd);
    _mm512_storeu_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(e, 16), o));
    even = _mm512_sub_ps(even, _mm512_castsi512_ps(_mm512_and_si512(e, upper)));
    odd = _mm512_sub_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(o, upper)));
  }
}

// Two rows of a panel: [parts][2] times 16 pairs, a register apart. The masks tell which columns there are; the others
// become zeros.
template <typename W>
ONNXFUSE_INLINE void convert_pair(const W* even, __mmask32 even_mask, const W* odd, __mmask32 odd_mask, char* to) {
  for (int half = 0; half < 2; ++half, to += kRegisterBytes) {
    store_parts<kPartsOf<W>>(load(even + 16 * half, static_cast<__mmask16>(even_mask >> 16 * half)),
                             load(odd + 16 * half, static_cast<__mmask16>(odd_mask >> 16 * half)), to);
  }
}

// Of int8, where four rows lie together: the first two of them, or the others, times their scales, next bfloat16.
ONNXFUSE_INLINE void convert_pair(const int8_t* four, int first, const BFloat16* scales, char* to) {
  for (int half = 0; half < 2; ++half, to += kRegisterBytes) {
    const __m512i numbers = _mm512_loadu_si512(four + 64 * half);
    const __m512 scale = load(scales + 16 * half);
    const auto row = [&](int i) {
      const __m512i number = _mm512_srai_epi32(_mm512_slli_epi32(numbers, static_cast<unsigned>(24 - 8 * i)), 24);
      const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(number), scale));
      return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)));  // then cutting off rounds
    };
    store_parts<kPartsOf<int8_t>>(row(first), row(first + 1), to);
  }
}

ONNXFUSE_INLINE void convert_pair(const BFloat16* even, __mmask32 even_mask, const BFloat16* odd, __mmask32 odd_mask,
                                  char* to) {
  const __m512i e = _mm512_maskz_loadu_epi16(even_mask, even), o = _mm512_maskz_loadu_epi16(odd_mask, odd);
  const Pairs pairs = pairs_of(e, o);
  _mm512_storeu_si512(to, pairs.left);
  _mm512_storeu_si512(to + kRegisterBytes, pairs.right);
}

template <typename W>
void put_in_order(float* sums, int64_t stride, int64_t rows) {
  if constexpr (std::is_same_v<W, BFloat16>) {
    for (int64_t row = 0; row < rows; ++row, sums += stride) {
      __m512 left = _mm512_loadu_ps(sums), right = _mm512_loadu_ps(sums + 16);
      put_in_order(left, right);
      _mm512_storeu_ps(sums, left);
      _mm512_storeu_ps(sums + 16, right);
    }
  }
}

// Rows of a panel on their way to the form that AMX wants, a pair of them at a time: for each step of K
// [parts][2][16][16][2]. Rows from `depth` and columns from `columns` on become zeros. If kAhead, weights
// are prefetched where they are in order in memory.
template <bool kAhead, typename W>
class Conversion {
 public:
  static constexpr int64_t kStepBytes = 2 * kPartsOf<W> * kRegisterBytes;

  Conversion(const W* from, const Weight& weight, int64_t depth, int64_t columns, char* to)
      : from_(from),
        stride_(weight.packed ? kPanel : weight.columns),
        depth_(depth),
        mask_(columns >= kPanel ? ~0u : (1u << columns) - 1),
        packed_(weight.packed),
        to_(to),
        ahead_(from) {
    static_assert(kStep == kScaledRows);
    if constexpr (kScaled)
      scales_ = weight.scales + (from - static_cast<const int8_t*>(weight.data)) / (kStep * kPanel) * kPanel;
  }

  // Pairs kBegin .. kEnd - 1 of the first step.
  template <int kBegin, int kEnd>
  ONNXFUSE_INLINE void pairs() const {
    if (packed_ && depth_ >= kStep) {
      ONNXFUSE_UNROLL
      for (int i = kBegin; i < kEnd; ++i) {
        if constexpr (kAhead) {
          ONNXFUSE_UNROLL
          for (int line = i * kLines; line < (i + 1) * kLines; ++line) ahead_.fetch(line);
        }
        whole_pair(i, to_ + i * 64);
      }
    } else {
      for (int64_t i = kBegin; i < kEnd; ++i) pair(i);
    }
  }

  // Any pair.
  ONNXFUSE_INLINE void pair(int64_t i) const {
    const int64_t k = 2 * i;
    char* to = to_ + i / kPairs * kStepBytes + i % kPairs * 64;
    if (packed_ && k + 1 < depth_) {
      whole_pair(i, to);
    } else if constexpr (!kScaled) {
      const W* even = from_ + k * stride_;
      convert_pair(even, k < depth_ ? mask_ : 0, even + stride_, k + 1 < depth_ ? mask_ : 0, to);
    }
  }

 private:
  static constexpr bool kScaled = std::is_same_v<W, int8_t>;  // packed and of whole steps
  static constexpr int kLines = 2 * kPanel * sizeof(W) / 64;  // of a pair

  ONNXFUSE_INLINE void whole_pair(int64_t i, char* to) const {
    if constexpr (kScaled) {
      convert_pair(from_ + i / 2 * 4 * kPanel, i % 2 * 2, scales_ + i / kPairs * kPanel, to);
    } else {
      const W* even = from_ + 2 * i * kPanel;
      convert_pair(even, ~0u, even + kPanel, ~0u, to);
    }
  }

  const W* from_;
  int64_t stride_, depth_;
  __mmask32 mask_;
  bool packed_;
  char* to_;
  WeightsAhead ahead_;
  const BFloat16* scales_ = nullptr;
};

// The conversion of `steps` steps in so many turns.
template <typename W>
class Background {
 public:
  Background(const Conversion<false, W>& conversion, int64_t steps, int64_t turns)
      : conversion_(conversion), left_(steps * kPairs), each_((left_ + turns - 1) / turns) {}

  // Of a turn, kBegin .. kEnd - 1 of kPairs parts.
  template <int kBegin, int kEnd>
  ONNXFUSE_INLINE void pairs() {
    convert(each_ * kEnd / kPairs - each_ * kBegin / kPairs);
  }

  void finish() { convert(left_); }

 private:
  ONNXFUSE_INLINE void convert(int64_t count) {
    count = std::min(count, left_);
    for (const int64_t end = done_ + count; done_ < end; ++done_) conversion_.pair(done_);
    left_ -= count;
  }

  Conversion<false, W> conversion_;
  int64_t done_ = 0, left_, each_;
};

// Prefetches a slice in pieces: several streams, 4 KB apart, because one stream leaves memory bandwidth unused.
class Prefetcher {
 public:
  Prefetcher(const void* data, int64_t bytes, int64_t pieces)
      : next_(static_cast<const char*>(data)), bytes_(bytes), lines_((kPage / 64 + pieces - 1) / pieces) {}

  void piece() {
    for (int64_t line = 0; line < lines_ && done_ < kPage; ++line, done_ += 64) {
      for (int64_t page = 0; page < bytes_; page += kPage) __builtin_prefetch(next_ + page + done_, 0, 2);
    }
  }

 private:
  static constexpr int64_t kPage = 4096;
  const char* next_;
  int64_t bytes_, lines_, done_ = 0;
};
