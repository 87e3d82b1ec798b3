/* The vector vocabulary on AVX2 and FMA: 8 floats or 4 doubles.  See vec.h for what each word means. */
#include <immintrin.h>
#include <string.h>

#define FS_FUSED 1
#define f_W 8
#define d_W 4
typedef __m256 vf;
typedef __m256d vd;
typedef __m256 mf;
typedef __m256d md;

FS_INLINE __m256i f_head(ptrdiff_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FS_INLINE __m256i d_head(ptrdiff_t n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

#define DEFINE_COMMON(P, V, T, S)                                                                                     \
    FS_INLINE V P##load(const T *p) { return _mm256_loadu_##S(p); }                                                  \
    FS_INLINE void P##store(T *p, V v) { _mm256_storeu_##S(p, v); }                                                  \
    FS_INLINE V P##load_head(const T *p, ptrdiff_t n, V fill)                                                        \
    {                                                                                                                 \
        __m256i k = P##head(n);                                                                                      \
        return _mm256_blendv_##S(fill, _mm256_maskload_##S(p, k), P##as_mask(k));                                    \
    }                                                                                                                 \
    FS_INLINE void P##store_head(T *p, ptrdiff_t n, V v) { _mm256_maskstore_##S(p, P##head(n), v); }                 \
    FS_INLINE V P##set1(T a) { return _mm256_set1_##S(a); }                                                          \
    FS_INLINE V P##add(V a, V b) { return _mm256_add_##S(a, b); }                                                    \
    FS_INLINE V P##sub(V a, V b) { return _mm256_sub_##S(a, b); }                                                    \
    FS_INLINE V P##mul(V a, V b) { return _mm256_mul_##S(a, b); }                                                    \
    FS_INLINE V P##div(V a, V b) { return _mm256_div_##S(a, b); }                                                    \
    FS_INLINE V P##fma(V a, V b, V c) { return _mm256_fmadd_##S(a, b, c); }                                          \
    FS_INLINE V P##fnma(V a, V b, V c) { return _mm256_fnmadd_##S(a, b, c); }                                        \
    FS_INLINE V P##max(V a, V b) { return _mm256_max_##S(a, b); }                                                    \
    FS_INLINE V P##min(V a, V b) { return _mm256_min_##S(a, b); }                                                    \
    FS_INLINE V P##bounded(V a, V low) { return _mm256_max_##S(low, a); }                                            \
    FS_INLINE V P##not_less(V a, V b) { return _mm256_cmp_##S(a, b, _CMP_NLT_UQ); }                                  \
    FS_INLINE V P##lt(V a, V b) { return _mm256_cmp_##S(a, b, _CMP_LT_OQ); }                                         \
    FS_INLINE V P##eq(V a, V b) { return _mm256_cmp_##S(a, b, _CMP_EQ_OQ); }                                         \
    FS_INLINE void P##store_unless(V m, T *p, V v)                                                                   \
    {                                                                                                                 \
        _mm256_storeu_##S(p, _mm256_blendv_##S(v, _mm256_loadu_##S(p), m));                                           \
    }                                                                                                                 \
    FS_INLINE V P##select(V m, V a, V b) { return _mm256_blendv_##S(b, a, m); }                                      \
    FS_INLINE unsigned P##bits(V m) { return (unsigned)_mm256_movemask_##S(m); }                                     \
    FS_INLINE V P##abs(V a) { return _mm256_andnot_##S(_mm256_set1_##S((T)-0.0), a); }

FS_INLINE vf f_as_mask(__m256i k) { return _mm256_castsi256_ps(k); }
FS_INLINE vd d_as_mask(__m256i k) { return _mm256_castsi256_pd(k); }
DEFINE_COMMON(f_, vf, float, ps)
DEFINE_COMMON(d_, vd, double, pd)
#undef DEFINE_COMMON

/* Rounded by the magic number 1.5 2^(bits of the mantissa), which |a b| is far below: a rounding instruction takes twice
 * as long, and the product would be rounded first. */
FS_INLINE vf f_rint_of_product(vf a, vf b)
{
    const vf magic = f_set1(0x1.8p23f);
    return f_sub(f_fma(a, b, magic), magic);
}
FS_INLINE vd d_rint_of_product(vd a, vd b)
{
    const vd magic = d_set1(0x1.8p52);
    return d_sub(d_fma(a, b, magic), magic);
}

/* a 2^n in two steps, the first of which is exact: a subnormal result is rounded once. */
FS_INLINE vf f_scale2(vf a, vf n)
{
    __m256i k = _mm256_cvtps_epi32(n), h = _mm256_srai_epi32(k, 1), one = _mm256_set1_epi32(127);
    __m256i p = _mm256_slli_epi32(_mm256_add_epi32(h, one), 23);
    __m256i q = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(k, h), one), 23);
    return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(p)), _mm256_castsi256_ps(q));
}
FS_INLINE vd d_scale2(vd a, vd n)
{
    __m128i k = _mm256_cvtpd_epi32(n), h = _mm_srai_epi32(k, 1);
    __m256i one = _mm256_set1_epi64x(1023);
    __m256i p = _mm256_slli_epi64(_mm256_add_epi64(_mm256_cvtepi32_epi64(h), one), 52);
    __m256i q = _mm256_slli_epi64(_mm256_add_epi64(_mm256_cvtepi32_epi64(_mm_sub_epi32(k, h)), one), 52);
    return _mm256_mul_pd(_mm256_mul_pd(a, _mm256_castsi256_pd(p)), _mm256_castsi256_pd(q));
}

FS_INLINE vf f_scale2_if(vf m, vf a, vf n) { return f_scale2(_mm256_and_ps(m, a), _mm256_floor_ps(n)); }
FS_INLINE vd d_scale2_if(vd m, vd a, vd n) { return d_scale2(_mm256_and_pd(m, a), n); }

#define f_STEPS 8
#define d_STEPS 1
#define f_ZERO_POWER 0x1.8p20f + 127
#define d_ZERO_POWER 0x1.8p52 + 1023
FS_INLINE vf f_power_if(mf m, vf a, vf n)
{
    __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n), 20));
    return f_mul(a, _mm256_and_ps(_mm256_and_ps(m, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xff800000))), power));
}
FS_INLINE vf f_floor(vf a) { return _mm256_floor_ps(a); }
FS_INLINE vf f_pick(const float *table, vf n) { return _mm256_permutevar8x32_ps(f_load(table), _mm256_castps_si256(n)); }
FS_INLINE vd d_power_if(md m, vd a, vd n) { return d_mul(a, _mm256_and_pd(m, _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(n), 52)))); }

FS_INLINE vd f_widen_lo(vf a) { return _mm256_cvtps_pd(_mm256_castps256_ps128(a)); }
FS_INLINE vd f_widen_hi(vf a) { return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)); }
FS_INLINE vf f_narrow(vd lo, vd hi)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(lo)), _mm256_cvtpd_ps(hi), 1);
}

FS_INLINE vf f_lo0(vf a, vf b) { return _mm256_permute2f128_ps(a, b, 0x20); }
FS_INLINE vf f_hi0(vf a, vf b) { return _mm256_permute2f128_ps(a, b, 0x31); }
FS_INLINE vf f_lo1(vf a, vf b) { return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b))); }
FS_INLINE vf f_hi1(vf a, vf b) { return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b))); }
FS_INLINE vf f_lo2(vf a, vf b) { return _mm256_shuffle_ps(a, b, 0x88); }
FS_INLINE vf f_hi2(vf a, vf b) { return _mm256_shuffle_ps(a, b, 0xdd); }
#define f_TREE(STEP, T, v, out)                                                                                       \
    do {                                                                                                              \
        T a_[4], b_[2];                                                                                               \
        for (int g_ = 0; g_ < 4; g_++)                                                                                \
            STEP(0, v[g_], v[g_ + 4], a_[g_]);                                                                        \
        STEP(1, a_[0], a_[1], b_[0]);                                                                                 \
        STEP(1, a_[2], a_[3], b_[1]);                                                                                 \
        STEP(2, b_[0], b_[1], out);                                                                                   \
    } while (0)

FS_INLINE vd d_lo0(vd a, vd b) { return _mm256_permute2f128_pd(a, b, 0x20); }
FS_INLINE vd d_hi0(vd a, vd b) { return _mm256_permute2f128_pd(a, b, 0x31); }
FS_INLINE vd d_lo1(vd a, vd b) { return _mm256_unpacklo_pd(a, b); }
FS_INLINE vd d_hi1(vd a, vd b) { return _mm256_unpackhi_pd(a, b); }
#define d_TREE(STEP, T, v, out)                                                                                       \
    do {                                                                                                              \
        T a_[2];                                                                                                      \
        STEP(0, v[0], v[2], a_[0]);                                                                                   \
        STEP(0, v[1], v[3], a_[1]);                                                                                   \
        STEP(1, a_[0], a_[1], out);                                                                                   \
    } while (0)

FS_INLINE vf f_exponent(vf a)
{
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(a), 23), _mm256_set1_epi32(127)));
}
FS_INLINE vd d_exponent(vd a)
{
    /* The biased exponent, moved into the mantissa of 2^52, minus 2^52 + 1023. */
    __m256i e = _mm256_srli_epi64(_mm256_castpd_si256(a), 52);
    __m256d magic = _mm256_set1_pd(0x1p52);
    return _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(e), magic), _mm256_set1_pd(0x1p52 + 1023));
}

FS_INLINE vf f_reciprocal(vf a)
{
    const vf y = _mm256_rcp_ps(a);
    return _mm256_fmadd_ps(y, _mm256_fnmadd_ps(a, y, _mm256_set1_ps(1)), y);
}
FS_INLINE vd d_reciprocal(vd a) { return _mm256_div_pd(_mm256_set1_pd(1), a); }

#include "vec_x86_quads.h"
FS_INLINE vf f_load_quads(const float *p, ptrdiff_t step)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps((const float *)((const char *)p + step)), 1);
}
FS_INLINE vf f_load_quads_head(const float *p, ptrdiff_t step, ptrdiff_t n)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(load_head128(p, n)), load_head128((const char *)p + step, n), 1);
}
FS_INLINE void f_store_quads(float *p, ptrdiff_t step, vf v)
{
    _mm_storeu_ps(p, _mm256_castps256_ps128(v));
    _mm_storeu_ps((float *)((char *)p + step), _mm256_extractf128_ps(v, 1));
}
FS_INLINE void f_store_quads_head(float *p, ptrdiff_t step, ptrdiff_t n, vf v)
{
    store_head128(p, n, _mm256_castps256_ps128(v));
    store_head128((char *)p + step, n, _mm256_extractf128_ps(v, 1));
}
FS_INLINE void f_transpose_quads(vf *v)
{
    __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(v[0], v[1])), b = _mm256_castps_pd(_mm256_unpackhi_ps(v[0], v[1]));
    __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(v[2], v[3])), d = _mm256_castps_pd(_mm256_unpackhi_ps(v[2], v[3]));
    v[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    v[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    v[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    v[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
}
FS_INLINE void f_unzip(vf *v)
{
    vf even = _mm256_shuffle_ps(v[0], v[1], 0x88), odd = _mm256_shuffle_ps(v[0], v[1], 0xdd);
    v[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8));
    v[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8));
}
FS_INLINE void f_zip(vf *v)
{
    vf low = _mm256_unpacklo_ps(v[0], v[1]), high = _mm256_unpackhi_ps(v[0], v[1]);
    v[0] = _mm256_permute2f128_ps(low, high, 0x20);
    v[1] = _mm256_permute2f128_ps(low, high, 0x31);
}
FS_INLINE vd d_load_quads(const double *p, ptrdiff_t step)
{
    return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd((const double *)((const char *)p + step)), 1);
}
FS_INLINE vd d_load_quads_head(const double *p, ptrdiff_t step, ptrdiff_t n)
{
    (void)n; /* it is 1 */
    return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_load_sd(p)), _mm_load_sd((const double *)((const char *)p + step)), 1);
}
FS_INLINE void d_store_quads(double *p, ptrdiff_t step, vd v)
{
    _mm_storeu_pd(p, _mm256_castpd256_pd128(v));
    _mm_storeu_pd((double *)((char *)p + step), _mm256_extractf128_pd(v, 1));
}
FS_INLINE void d_store_quads_head(double *p, ptrdiff_t step, ptrdiff_t n, vd v)
{
    (void)n;
    _mm_store_sd(p, _mm256_castpd256_pd128(v));
    _mm_store_sd((double *)((char *)p + step), _mm256_extractf128_pd(v, 1));
}
FS_INLINE void d_transpose_quads(vd *v)
{
    vd a = v[0], b = v[1];
    v[0] = _mm256_unpacklo_pd(a, b);
    v[1] = _mm256_unpackhi_pd(a, b);
}
FS_INLINE void d_unzip(vd *v)
{
    vd even = _mm256_unpacklo_pd(v[0], v[1]), odd = _mm256_unpackhi_pd(v[0], v[1]);
    v[0] = _mm256_permute4x64_pd(even, 0xd8);
    v[1] = _mm256_permute4x64_pd(odd, 0xd8);
}
FS_INLINE void d_zip(vd *v)
{
    vd low = _mm256_unpacklo_pd(v[0], v[1]), high = _mm256_unpackhi_pd(v[0], v[1]);
    v[0] = _mm256_permute2f128_pd(low, high, 0x20);
    v[1] = _mm256_permute2f128_pd(low, high, 0x31);
}

/* Element types that are staged. */
FS_INLINE vf f_from_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
FS_INLINE __m128i f_half(vf v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FS_INLINE vf f_from_brain(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
FS_INLINE __m128i f_brain(vf v)
{
    /* Half an ULP less one bit, plus the last bit kept, carries to even. */
    __m256i u = _mm256_castps_si256(v), h = _mm256_srli_epi32(u, 16);
    __m256i even = _mm256_add_epi32(_mm256_and_si256(h, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, even), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(h, _mm256_set1_epi32(0x40)), nan);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    return _mm256_castsi256_si128(packed);
}
FS_INLINE __m256i f_bytes(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
FS_INLINE __m256i d_bytes(const uint8_t *p)
{
    int four;
    memcpy(&four, p, sizeof four);
    return _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
}
FS_INLINE vf f_truth(const uint8_t *p) { return f_as_mask(_mm256_cmpgt_epi32(f_bytes(p), _mm256_setzero_si256())); }
FS_INLINE vd d_truth(const uint8_t *p) { return d_as_mask(_mm256_cmpgt_epi64(d_bytes(p), _mm256_setzero_si256())); }
typedef __m256i f_words;
typedef __m128i d_words;
FS_INLINE f_words f_load_words(const uint8_t *p, ptrdiff_t step)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_i32gather_epi32((const int *)p, _mm256_mullo_epi32(lane, _mm256_set1_epi32((int)step)), 1);
}
FS_INLINE d_words d_load_words(const uint8_t *p, ptrdiff_t step)
{
    const __m128i lane = _mm_setr_epi32(0, 1, 2, 3);
    return _mm_i32gather_epi32((const int *)p, _mm_mullo_epi32(lane, _mm_set1_epi32((int)step)), 1);
}
FS_INLINE vf f_byte(f_words v, int a)
{
    __m256i byte = _mm256_set1_epi32((int)(0xffu << 8 * a));
    return f_as_mask(_mm256_xor_si256(_mm256_cmpeq_epi32(_mm256_and_si256(v, byte), _mm256_setzero_si256()), _mm256_set1_epi32(-1)));
}
FS_INLINE vd d_byte(d_words v, int a)
{
    __m128i byte = _mm_set1_epi32((int)(0xffu << 8 * a));
    __m128i none = _mm_cmpeq_epi32(_mm_and_si128(v, byte), _mm_setzero_si128());
    return d_as_mask(_mm256_xor_si256(_mm256_cvtepi32_epi64(none), _mm256_set1_epi32(-1)));
}
FS_INLINE vf f_truth_head(const uint8_t *p, ptrdiff_t n)
{
    uint8_t raw[f_W] = {0};
    for (ptrdiff_t j = 0; j < n; j++)
        raw[j] = p[j];
    return f_truth(raw);
}
FS_INLINE vd d_truth_head(const uint8_t *p, ptrdiff_t n)
{
    uint8_t raw[d_W] = {0};
    for (ptrdiff_t j = 0; j < n; j++)
        raw[j] = p[j];
    return d_truth(raw);
}
FS_INLINE vd d_from_float(const float *p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
FS_INLINE void d_to_float(float *p, vd v) { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }
FS_INLINE vd d_from_half(const uint16_t *p) { return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)p))); }
FS_INLINE vd d_from_brain(const uint16_t *p)
{
    __m128i u = _mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(u, 16)));
}
/* As floats, rounded to odd: towards 0, and the last bit set if that lost anything.  To be rounded once more, without harm. */
FS_INLINE __m128 d_odd(vd v)
{
    __m128 f = _mm256_cvtpd_ps(v);
    __m256d back = _mm256_cvtps_pd(f);
    __m256i lost = _mm256_castpd_si256(_mm256_cmp_pd(back, v, _CMP_NEQ_OQ));
    __m256i above = _mm256_castpd_si256(_mm256_cmp_pd(d_abs(v), d_abs(back), _CMP_LT_OQ));
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    __m128i odd = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(lost, even));
    __m128i down = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(above, even));
    __m128i u = _mm_add_epi32(_mm_castps_si128(f), down);
    return _mm_castsi128_ps(_mm_or_si128(u, _mm_srli_epi32(odd, 31)));
}
FS_INLINE void d_to_half(uint16_t *p, vd v)
{
    _mm_storel_epi64((__m128i *)p, _mm_cvtps_ph(d_odd(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FS_INLINE void d_to_brain(uint16_t *p, vd v) { _mm_storel_epi64((__m128i *)p, f_brain(_mm256_castps128_ps256(d_odd(v)))); }
#define d_stream_half d_to_half
#define d_stream_brain d_to_brain
FS_INLINE void f_stream(float *p, vf v) { _mm256_stream_ps(p, v); }
FS_INLINE void d_stream(double *p, vd v) { _mm256_stream_pd(p, v); }
FS_INLINE void f_to_half(uint16_t *p, vf v) { _mm_storeu_si128((__m128i *)p, f_half(v)); }
FS_INLINE void f_stream_half(uint16_t *p, vf v) { _mm_stream_si128((__m128i *)p, f_half(v)); }
FS_INLINE void f_to_brain(uint16_t *p, vf v) { _mm_storeu_si128((__m128i *)p, f_brain(v)); }
FS_INLINE void f_stream_brain(uint16_t *p, vf v) { _mm_stream_si128((__m128i *)p, f_brain(v)); }
FS_INLINE void d_stream_float(float *p, vd v) { _mm_stream_ps(p, _mm256_cvtpd_ps(v)); }
#define FS_STREAMED() _mm_sfence()
