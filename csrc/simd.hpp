// One register of lanes, for the instruction set that this file is compiled for.
//
// The compilers' own vector types carry +, -, &, |, ^, ~, <<, >> and comparisons, so that the
// kernels are written once and read like scalar code. Here is the dozen of operations that these
// types lack, each with a portable form. Google Highway offers the same and more; but it is not on
// PyPI, so that a source build of a Python package cannot ask for it.
//
// Everything is in an anonymous namespace: were an inline function shared between the objects of
// two instruction sets, the linker might keep the one that an older processor cannot run.
#pragma once

#include <cstdint>

#include "anywhere.hpp"
#include "map_view.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastground {
namespace {

#if defined(__AVX512BW__)
#define FASTGROUND_AVX512
constexpr int register_bytes = 64;
#elif defined(__AVX2__)
#define FASTGROUND_AVX2
constexpr int register_bytes = 32;
#else
constexpr int register_bytes = 16;
#endif

template <class T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};
template <class T>
using Vec = typename VectorOf<T, register_bytes>::type;
template <class T>
constexpr int lanes = register_bytes / static_cast<int>(sizeof(T));

template <class V, class T>
V load_as(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
Vec<T> load(const T* from) {
  return load_as<Vec<T>>(from);
}
template <class T>
void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}
template <class T>
Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}
// A bit for each lane of a comparison's result, the first lane lowest.
template <class T>
std::uint64_t lane_bits(Vec<T> truth) {
  std::uint64_t bits = 0;
#if defined(FASTGROUND_AVX512)
  if constexpr (sizeof(T) == 4) bits = _mm512_movepi32_mask(bit_cast<__m512i>(truth));
  if constexpr (sizeof(T) == 8) bits = _mm512_movepi64_mask(bit_cast<__m512i>(truth));
#elif defined(FASTGROUND_AVX2)
  if constexpr (sizeof(T) == 4) bits = _mm256_movemask_ps(bit_cast<__m256>(truth));
  if constexpr (sizeof(T) == 8) bits = _mm256_movemask_pd(bit_cast<__m256d>(truth));
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) bits = _mm_movemask_ps(bit_cast<__m128>(truth));
  if constexpr (sizeof(T) == 8) bits = _mm_movemask_pd(bit_cast<__m128d>(truth));
#else
  for (int lane = 0; lane < lanes<T>; ++lane) bits |= std::uint64_t{truth[lane] != 0} << lane;
#endif
  return bits;
}

// A bit for each lane that is 0.
template <class T>
std::uint64_t zero_bits(Vec<T> x) {
#if defined(FASTGROUND_AVX512)
  const auto all = bit_cast<__m512i>(x);
  if constexpr (sizeof(T) == 4) return _mm512_testn_epi32_mask(all, all);
  if constexpr (sizeof(T) == 8) return _mm512_testn_epi64_mask(all, all);
#endif
  return lane_bits<T>(Vec<T>(x == 0));
}

// All bits of a lane set where its bit is.
template <class T>
Vec<T> lanes_of(std::uint64_t bits) {
#if defined(FASTGROUND_AVX512)
  if constexpr (sizeof(T) == 4) return bit_cast<Vec<T>>(_mm512_movm_epi32(bits));
  if constexpr (sizeof(T) == 8) return bit_cast<Vec<T>>(_mm512_movm_epi64(bits));
#endif
  Vec<T> own{};
  for (int lane = 0; lane < lanes<T>; ++lane) own[lane] = T{1} << lane;
  return Vec<T>((broadcast(static_cast<T>(bits)) & own) != 0);
}

// Numbers the lanes whose bit is set: 0, 1, ... ; any number elsewhere.
template <class T>
Vec<T> numbered(std::uint64_t bits) {
  Vec<T> number{};
#if defined(FASTGROUND_AVX512)
  for (int lane = 1; lane < lanes<T>; ++lane) number[lane] = lane;
  const auto all = bit_cast<__m512i>(number);
  if constexpr (sizeof(T) == 4) return bit_cast<Vec<T>>(_mm512_maskz_expand_epi32(bits, all));
  if constexpr (sizeof(T) == 8) return bit_cast<Vec<T>>(_mm512_maskz_expand_epi64(bits, all));
#endif
  for (int lane = 1; lane < lanes<T>; ++lane) {
    number[lane] = static_cast<T>(__builtin_popcountll(bits << (64 - lane)));
  }
  return number;
}

// A bit for each lane in which a > b; none where either is NaN.
inline std::uint64_t bits_above(Vec<float> a, Vec<float> b) {
#if defined(FASTGROUND_AVX512)
  return _mm512_cmp_ps_mask(bit_cast<__m512>(a), bit_cast<__m512>(b), _CMP_GT_OQ);
#else
  return lane_bits<std::int32_t>(a > b);
#endif
}
inline std::uint64_t bits_above(Vec<double> a, Vec<double> b) {
#if defined(FASTGROUND_AVX512)
  return _mm512_cmp_pd_mask(bit_cast<__m512d>(a), bit_cast<__m512d>(b), _CMP_GT_OQ);
#else
  return lane_bits<std::int64_t>(a > b);
#endif
}

// a * b + c; rounded once where the processor does that in one go.
inline Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(FASTGROUND_AVX512)
  return bit_cast<Vec<float>>(
      _mm512_fmadd_ps(bit_cast<__m512>(a), bit_cast<__m512>(b), bit_cast<__m512>(c)));
#elif defined(FASTGROUND_AVX2)
  return bit_cast<Vec<float>>(
      _mm256_fmadd_ps(bit_cast<__m256>(a), bit_cast<__m256>(b), bit_cast<__m256>(c)));
#elif defined(__FP_FAST_FMAF)
  for (int lane = 0; lane < lanes<float>; ++lane) {
    c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  }
  return c;
#else
  return a * b + c;
#endif
}

// Lanes of a where the truth's bits are set, else of b.
inline Vec<float> where(Vec<std::int32_t> truth, Vec<float> a, Vec<float> b) {
  using Bits = Vec<std::int32_t>;
  return bit_cast<Vec<float>>((truth & bit_cast<Bits>(a)) | (~truth & bit_cast<Bits>(b)));
}

// The larger of each two lanes; b where one is NaN.
inline Vec<float> larger(Vec<float> a, Vec<float> b) {
#if defined(FASTGROUND_AVX512)
  return bit_cast<Vec<float>>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(FASTGROUND_AVX2)
  return bit_cast<Vec<float>>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#else
  return where(Vec<std::int32_t>(a > b), a, b);
#endif
}

// 2^x of x <= 0, within 2e-7 of itself; 0 where that is below the least normal number, and NaN of
// NaN. With n the nearest integer, 2^(x - n) is a polynomial, fitted to the relative error, and n
// is added to its exponent.
inline Vec<float> power_of_two(Vec<float> x) {
  constexpr float terms[] = {1.5353362e-4f, 1.3398874e-3f, 9.6184369e-3f, 5.5503324e-2f,
                             2.4022648e-1f, 6.9314718e-1f, 1.0f};
#if defined(FASTGROUND_AVX512)
  const auto whole = bit_cast<Vec<float>>(
      _mm512_roundscale_ps(bit_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const Vec<float> shifted = x + 12582912.0f;  // 1.5 * 2^23: the last bits are the integer
  const Vec<float> whole = shifted - 12582912.0f;
#endif
  const Vec<float> rest = x - whole;
  Vec<float> power = broadcast(terms[0]);
  for (int i = 1; i < 7; ++i) power = fused(power, rest, broadcast(terms[i]));
#if defined(FASTGROUND_AVX512)
  const __mmask16 normal =
      _mm512_cmp_ps_mask(bit_cast<__m512>(x), _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return bit_cast<Vec<float>>(
      _mm512_maskz_scalef_ps(normal, bit_cast<__m512>(power), bit_cast<__m512>(whole)));
#else
  using Bits = Vec<std::uint32_t>;
  const Bits scaled = bit_cast<Bits>(power) + (bit_cast<Bits>(shifted) << 23);
  return bit_cast<Vec<float>>((scaled & ~Bits(x < -126.0f)) | Bits(x != x));
#endif
}

// As many numbers as `V` has lanes, exactly, as float: any float vector type.
template <class V>
V floats(const float* from) {
  return load_as<V>(from);
}

template <class V>
V floats(const Bfloat16* from) {
#if defined(FASTGROUND_AVX512)
  if constexpr (sizeof(V) == 64) {
    return bit_cast<V>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_as<__m256i>(from)), 16));
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    return bit_cast<V>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_as<__m128i>(from)), 16));
  }
#endif
  using Half = typename VectorOf<std::uint16_t, sizeof(V) / 2>::type;
  using Whole = typename VectorOf<std::uint32_t, sizeof(V)>::type;
  return bit_cast<V>(__builtin_convertvector(load_as<Half>(from), Whole) << 16);
}

// The exponent is rebiased by 112; a subnormal is read as 2^-14 * (1 + fraction), less 2^-14.
template <class V>
V floats(const Float16* from) {
#if defined(FASTGROUND_AVX512)
  if constexpr (sizeof(V) == 64) {
    return bit_cast<V>(_mm512_cvtph_ps(load_as<__m256i>(from)));
  }
#endif
#if defined(__F16C__)
  if constexpr (sizeof(V) == 32) {
    return bit_cast<V>(_mm256_cvtph_ps(load_as<__m128i>(from)));
  }
  if constexpr (sizeof(V) == 16) {
    return bit_cast<V>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
#endif
  using Half = typename VectorOf<std::uint16_t, sizeof(V) / 2>::type;
  using Whole = typename VectorOf<std::uint32_t, sizeof(V)>::type;
  const Whole bits = __builtin_convertvector(load_as<Half>(from), Whole);
  const Whole exponent = bits & 0x7c00u;
  const Whole subnormal = Whole(exponent == 0);
  const Whole special = Whole(exponent == 0x7c00u);
  const Whole rebias = (112u << 23) + (subnormal & (1u << 23)) + (special & (112u << 23));
  V value = bit_cast<V>(((bits & 0x7fffu) << 13) + rebias);
  value -= bit_cast<V>(subnormal & (113u << 23));  // 2^-14
  return bit_cast<V>(bit_cast<Whole>(value) | (bits & 0x8000u) << 16);
}

// Sums are taken in registers of at most 256 bits: on Zen 4 conversions to double are then faster.
using Doubles = typename VectorOf < double, register_bytes<32 ? register_bytes : 32>::type;
constexpr int doubles_width = sizeof(Doubles) / sizeof(double);

// The numbers from[0] to from[7], exactly, in order.
template <class T>
void eight_doubles(const T* from, Doubles* to) {
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 2) {  // the conversion to float is cheapest for eight
    const auto all = bit_cast<__m256>(floats<VectorOf<float, 32>::type>(from));
    to[0] = bit_cast<Doubles>(_mm256_cvtps_pd(_mm256_castps256_ps128(all)));
    to[1] = bit_cast<Doubles>(_mm256_cvtps_pd(_mm256_extractf128_ps(all, 1)));
  } else {
    to[0] = bit_cast<Doubles>(_mm256_cvtps_pd(_mm_loadu_ps(from)));
    to[1] = bit_cast<Doubles>(_mm256_cvtps_pd(_mm_loadu_ps(from + 4)));
  }
#else
  for (int i = 0; i < 8; i += 4) {
    const Vec<float> four = floats<Vec<float>>(from + i);
#if defined(__SSE2__)
    const auto all = bit_cast<__m128>(four);
    *to++ = bit_cast<Doubles>(_mm_cvtps_pd(all));
    *to++ = bit_cast<Doubles>(_mm_cvtps_pd(_mm_movehl_ps(all, all)));
#else
    *to++ = Doubles{four[0], four[1]};
    *to++ = Doubles{four[2], four[3]};
#endif
  }
#endif
}
inline void eight_doubles(const double* from, Doubles* to) {
  for (int i = 0; i < 8; i += doubles_width) *to++ = load_as<Doubles>(from + i);
}

// a + b, to the bit, as b * 1 + a: beside conversions, that keeps more of a Zen processor busy.
inline Doubles added(Doubles a, Doubles b) {
#if defined(__AVX2__)
  return bit_cast<Doubles>(
      _mm256_fmadd_pd(bit_cast<__m256d>(b), _mm256_set1_pd(1), bit_cast<__m256d>(a)));
#else
  return a + b;
#endif
}

// One number, exactly.
template <class T>
double to_double(T value) {
  using Floats = typename VectorOf<float, 16>::type;
  const T four[4] = {value};
  return floats<Floats>(four)[0];
}
inline double to_double(double value) { return value; }
inline double to_double(float value) { return value; }
inline double to_double(bool value) { return value ? 1.0 : 0.0; }

// Reverses the bits of each lane.
template <class Word>
Vec<Word> reversed(Vec<Word> x) {
#if defined(FASTGROUND_AVX512)
  const __m512i bytes =
      _mm512_gf2p8affine_epi64_epi8(bit_cast<__m512i>(x), _mm512_set1_epi64(0x8040201008040201), 0);
  const __m128i order = sizeof(Word) == 4 ? _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203)
                                          : _mm_set_epi64x(0x08090a0b0c0d0e0f, 0x0001020304050607);
  return bit_cast<Vec<Word>>(_mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order)));
#elif defined(FASTGROUND_AVX2)
  const __m256i order = _mm256_broadcastsi128_si256(
      sizeof(Word) == 4 ? _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203)
                        : _mm_set_epi64x(0x08090a0b0c0d0e0f, 0x0001020304050607));
  const __m256i nibble = _mm256_broadcastsi128_si256(
      _mm_set_epi64x(0x0f070b030d050901, 0x0e060a020c040800));  // each nibble reversed
  const __m256i low = _mm256_set1_epi8(0x0f);
  const __m256i v = _mm256_shuffle_epi8(bit_cast<__m256i>(x), order);
  const __m256i lower = _mm256_shuffle_epi8(nibble, _mm256_and_si256(v, low));
  const __m256i upper = _mm256_shuffle_epi8(nibble, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
  return bit_cast<Vec<Word>>(_mm256_or_si256(_mm256_slli_epi16(lower, 4), upper));
#else
  constexpr int width = 8 * sizeof(Word);
  Word mask = ~Word{0};
  for (int shift = width / 2; shift > 0; shift /= 2) {
    mask ^= mask << shift;
    x = ((x >> shift) & mask) | ((x & mask) << shift);
  }
  return x;
#endif
}

// The number of bits set in each lane.
template <class Word>
Vec<Word> popcount(Vec<Word> x) {
#if defined(FASTGROUND_AVX512)
  if constexpr (sizeof(Word) == 4) {
    return bit_cast<Vec<Word>>(_mm512_popcnt_epi32(bit_cast<__m512i>(x)));
  } else {
    return bit_cast<Vec<Word>>(_mm512_popcnt_epi64(bit_cast<__m512i>(x)));
  }
#elif defined(FASTGROUND_AVX2)
  const __m256i of_nibble =
      _mm256_broadcastsi128_si256(_mm_set_epi64x(0x0403030203020201, 0x0302020102010100));
  const __m256i low = _mm256_set1_epi8(0x0f);
  const __m256i v = bit_cast<__m256i>(x);
  const __m256i lower = _mm256_shuffle_epi8(of_nibble, _mm256_and_si256(v, low));
  const __m256i upper =
      _mm256_shuffle_epi8(of_nibble, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
  const __m256i bytes = _mm256_add_epi8(lower, upper);
  if constexpr (sizeof(Word) == 8) {
    return bit_cast<Vec<Word>>(_mm256_sad_epu8(bytes, _mm256_setzero_si256()));
  } else {
    const __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
    return bit_cast<Vec<Word>>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
#else
  constexpr Word ones = ~Word{0} / 255;
  x = x - (x >> 1 & ones * 0x55);
  x = (x & ones * 0x33) + (x >> 2 & ones * 0x33);
  x = (x + (x >> 4)) & ones * 0x0f;
  for (int shift = 8; shift < 8 * static_cast<int>(sizeof(Word)); shift *= 2) x += x >> shift;
  return x & 0xff;
#endif
}

// Lane i becomes lane `from[i]` of x.
template <class Word>
Vec<Word> permuted(Vec<Word> x, Vec<Word> from) {
#if defined(__clang__)
  Vec<Word> y;
  for (int lane = 0; lane < lanes<Word>; ++lane) y[lane] = x[from[lane]];
  return y;
#else
  return __builtin_shuffle(x, from);
#endif
}

// Writes the lanes of x whose bit is set, one after another; returns where the next would go. A
// whole register may be written.
template <class Word>
Word* append(Word* to, std::uint64_t bits, Vec<Word> x) {
#if defined(FASTGROUND_AVX512)
  if constexpr (sizeof(Word) == 4) {
    const auto mask = static_cast<__mmask16>(bits);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask, bit_cast<__m512i>(x)));
  } else {
    const auto mask = static_cast<__mmask8>(bits);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(mask, bit_cast<__m512i>(x)));
  }
  return to + __builtin_popcountll(bits);
#elif defined(FASTGROUND_AVX2)
  constexpr std::uint64_t first = sizeof(Word) == 4 ? 0x0101010101010101 : 0x0001000100010001;
  const std::uint64_t mask = _pdep_u64(bits, first) * (sizeof(Word) == 4 ? 0xff : 0xffff);
  const std::uint64_t from = _pext_u64(0x0706050403020100, mask);  // the set lanes' places
  const __m256i places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(from)));
  const __m256i packed = _mm256_permutevar8x32_epi32(bit_cast<__m256i>(x), places);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
  return to + __builtin_popcountll(bits);
#else
  Word all[lanes<Word>];
  store(all, x);
  for (; bits != 0; bits &= bits - 1) *to++ = all[__builtin_ctzll(bits)];
  return to;
#endif
}

}  // namespace
}  // namespace fastground
