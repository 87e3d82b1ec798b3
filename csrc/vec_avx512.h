/* The vector vocabulary on AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles.  See vec.h for what each word means. */
#include <immintrin.h>

#define FS_FUSED 1
#define f_W 16
#define d_W 8
typedef __m512 vf;
typedef __m512d vd;
typedef __mmask16 mf;
typedef __mmask8 md;

#define DEFINE_COMMON(P, V, T, M, S, BITS)                                                                            \
    FS_INLINE V P##load(const T *p) { return _mm512_loadu_##S(p); }                                                  \
    FS_INLINE void P##store(T *p, V v) { _mm512_storeu_##S(p, v); }                                                  \
    FS_INLINE V P##load_head(const T *p, ptrdiff_t n, V fill)                                                        \
    {                                                                                                                 \
        return _mm512_mask_loadu_##S(fill, (M)((1u << n) - 1u), p);                                                  \
    }                                                                                                                 \
    FS_INLINE void P##store_head(T *p, ptrdiff_t n, V v) { _mm512_mask_storeu_##S(p, (M)((1u << n) - 1u), v); }      \
    FS_INLINE V P##set1(T a) { return _mm512_set1_##S(a); }                                                          \
    FS_INLINE V P##add(V a, V b) { return _mm512_add_##S(a, b); }                                                    \
    FS_INLINE V P##sub(V a, V b) { return _mm512_sub_##S(a, b); }                                                    \
    FS_INLINE V P##mul(V a, V b) { return _mm512_mul_##S(a, b); }                                                    \
    FS_INLINE V P##div(V a, V b) { return _mm512_div_##S(a, b); }                                                    \
    FS_INLINE V P##fma(V a, V b, V c) { return _mm512_fmadd_##S(a, b, c); }                                          \
    FS_INLINE V P##fnma(V a, V b, V c) { return _mm512_fnmadd_##S(a, b, c); }                                        \
    FS_INLINE V P##max(V a, V b) { return _mm512_max_##S(a, b); }                                                    \
    FS_INLINE V P##min(V a, V b) { return _mm512_min_##S(a, b); }                                                    \
    FS_INLINE V P##scale2(V a, V n) { return _mm512_scalef_##S(a, n); }                                              \
    FS_INLINE V P##scale2_if(M m, V a, V n) { return _mm512_maskz_scalef_##S(m, a, n); }                             \
    FS_INLINE V P##bounded(V a, V low) { return (void)low, a; }                                                      \
    FS_INLINE M P##not_less(V a, V b) { return _mm512_cmp_##S##_mask(a, b, _CMP_NLT_UQ); }                           \
    FS_INLINE M P##lt(V a, V b) { return _mm512_cmp_##S##_mask(a, b, _CMP_LT_OQ); }                                  \
    FS_INLINE M P##eq(V a, V b) { return _mm512_cmp_##S##_mask(a, b, _CMP_EQ_OQ); }                                  \
    FS_INLINE void P##store_unless(M m, T *p, V v) { _mm512_mask_storeu_##S(p, (M)~m, v); }                          \
    FS_INLINE M P##truth_head(const uint8_t *p, ptrdiff_t n)                                                         \
    {                                                                                                                 \
        __m128i v = _mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1u), p);                                             \
        return (M)_mm_test_epi8_mask(v, v);                                                                           \
    }                                                                                                                 \
    FS_INLINE V P##select(M m, V a, V b) { return _mm512_mask_blend_##S(m, b, a); }                                  \
    FS_INLINE unsigned P##bits(M m) { return m; }                                                                    \
    FS_INLINE V P##abs(V a) { return _mm512_abs_##S(a); }

DEFINE_COMMON(f_, vf, float, mf, ps, 32)
DEFINE_COMMON(d_, vd, double, md, pd, 64)
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

#define f_STEPS 16
#define d_STEPS 16
#define f_ZERO_POWER 0x1.8p19f
#define d_ZERO_POWER 0x1.8p48
FS_INLINE vf f_power_if(mf m, vf a, vf n) { return _mm512_maskz_scalef_ps(m, a, f_sub(n, f_set1(f_ZERO_POWER))); }
FS_INLINE vd d_power_if(md m, vd a, vd n) { return _mm512_maskz_scalef_pd(m, a, d_sub(n, d_set1(d_ZERO_POWER))); }
FS_INLINE vf f_floor(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
FS_INLINE vd d_floor(vd a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
FS_INLINE vf f_pick(const float *table, vf n) { return _mm512_permutexvar_ps(_mm512_castps_si512(n), f_load(table)); }
FS_INLINE vd d_pick(const double *table, vd n)
{
    return _mm512_permutex2var_pd(d_load(table), _mm512_castpd_si512(n), d_load(table + 8));
}

FS_INLINE vd f_widen_lo(vf a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
FS_INLINE vd f_widen_hi(vf a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
FS_INLINE vf f_narrow(vd lo, vd hi)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(lo)), _mm512_cvtpd_ps(hi), 1);
}

/* One step of the transposing reduction: what is to be combined when the rows a and b share one vector. */
FS_INLINE vf f_lo0(vf a, vf b) { return _mm512_shuffle_f32x4(a, b, 0x44); }
FS_INLINE vf f_hi0(vf a, vf b) { return _mm512_shuffle_f32x4(a, b, 0xee); }
FS_INLINE vf f_lo1(vf a, vf b) { return _mm512_shuffle_f32x4(a, b, 0x88); }
FS_INLINE vf f_hi1(vf a, vf b) { return _mm512_shuffle_f32x4(a, b, 0xdd); }
FS_INLINE vf f_lo2(vf a, vf b) { return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); }
FS_INLINE vf f_hi2(vf a, vf b) { return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); }
FS_INLINE vf f_lo3(vf a, vf b) { return _mm512_shuffle_ps(a, b, 0x88); }
FS_INLINE vf f_hi3(vf a, vf b) { return _mm512_shuffle_ps(a, b, 0xdd); }
#define f_TREE(STEP, T, v, out)                                                                                       \
    do {                                                                                                              \
        T a_[8], b_[4];                                                                                               \
        for (int g_ = 0; g_ < 4; g_++) {                                                                              \
            STEP(0, v[g_], v[g_ + 4], a_[2 * g_]);                                                                    \
            STEP(0, v[g_ + 8], v[g_ + 12], a_[2 * g_ + 1]);                                                           \
            STEP(1, a_[2 * g_], a_[2 * g_ + 1], b_[g_]);                                                              \
        }                                                                                                             \
        STEP(2, b_[0], b_[1], a_[0]);                                                                                 \
        STEP(2, b_[2], b_[3], a_[1]);                                                                                 \
        STEP(3, a_[0], a_[1], out);                                                                                   \
    } while (0)

FS_INLINE vd d_lo0(vd a, vd b) { return _mm512_shuffle_f64x2(a, b, 0x44); }
FS_INLINE vd d_hi0(vd a, vd b) { return _mm512_shuffle_f64x2(a, b, 0xee); }
FS_INLINE vd d_lo1(vd a, vd b) { return _mm512_shuffle_f64x2(a, b, 0x88); }
FS_INLINE vd d_hi1(vd a, vd b) { return _mm512_shuffle_f64x2(a, b, 0xdd); }
FS_INLINE vd d_lo2(vd a, vd b) { return _mm512_unpacklo_pd(a, b); }
FS_INLINE vd d_hi2(vd a, vd b) { return _mm512_unpackhi_pd(a, b); }
#define d_TREE(STEP, T, v, out)                                                                                       \
    do {                                                                                                              \
        T a_[4], b_[2];                                                                                               \
        for (int g_ = 0; g_ < 2; g_++) {                                                                              \
            STEP(0, v[g_], v[g_ + 2], a_[2 * g_]);                                                                    \
            STEP(0, v[g_ + 4], v[g_ + 6], a_[2 * g_ + 1]);                                                            \
            STEP(1, a_[2 * g_], a_[2 * g_ + 1], b_[g_]);                                                              \
        }                                                                                                             \
        STEP(2, b_[0], b_[1], out);                                                                                   \
    } while (0)

/* Exponent of |a|. */
FS_INLINE vf f_exponent(vf a) { return _mm512_getexp_ps(a); }
FS_INLINE vd d_exponent(vd a) { return _mm512_getexp_pd(a); }

FS_INLINE vf f_reciprocal(vf a)
{
    const vf y = _mm512_rcp14_ps(a);
    return _mm512_fmadd_ps(y, _mm512_fnmadd_ps(a, y, _mm512_set1_ps(1)), y);
}

/* Two steps of Newton's: a division of 8 doubles keeps the divider busy for 16 cycles. */
FS_INLINE vd d_reciprocal(vd a)
{
    const vd one = _mm512_set1_pd(1);
    vd y = _mm512_rcp14_pd(a);
    y = _mm512_fmadd_pd(y, _mm512_fnmadd_pd(a, y, one), y);
    return _mm512_fmadd_pd(y, _mm512_fnmadd_pd(a, y, one), y);
}

/* Quads: lane l of 128 bits is at p + l step bytes. */
#include "vec_x86_quads.h"
FS_INLINE vf f_load_quads(const float *p, ptrdiff_t step)
{
    const char *q = (const char *)p;
    vf v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_insertf32x4(v, _mm_loadu_ps((const float *)(q + step)), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps((const float *)(q + 2 * step)), 2);
    return _mm512_insertf32x4(v, _mm_loadu_ps((const float *)(q + 3 * step)), 3);
}
FS_INLINE vf f_load_quads_head(const float *p, ptrdiff_t step, ptrdiff_t n)
{
    const char *q = (const char *)p;
    vf v = _mm512_castps128_ps512(load_head128(p, n));
    v = _mm512_insertf32x4(v, load_head128(q + step, n), 1);
    v = _mm512_insertf32x4(v, load_head128(q + 2 * step, n), 2);
    return _mm512_insertf32x4(v, load_head128(q + 3 * step, n), 3);
}
FS_INLINE void f_store_quads(float *p, ptrdiff_t step, vf v)
{
    char *q = (char *)p;
    _mm_storeu_ps(p, _mm512_castps512_ps128(v));
    _mm_storeu_ps((float *)(q + step), _mm512_extractf32x4_ps(v, 1));
    _mm_storeu_ps((float *)(q + 2 * step), _mm512_extractf32x4_ps(v, 2));
    _mm_storeu_ps((float *)(q + 3 * step), _mm512_extractf32x4_ps(v, 3));
}
FS_INLINE void f_store_quads_head(float *p, ptrdiff_t step, ptrdiff_t n, vf v)
{
    char *q = (char *)p;
    store_head128(p, n, _mm512_castps512_ps128(v));
    store_head128(q + step, n, _mm512_extractf32x4_ps(v, 1));
    store_head128(q + 2 * step, n, _mm512_extractf32x4_ps(v, 2));
    store_head128(q + 3 * step, n, _mm512_extractf32x4_ps(v, 3));
}
FS_INLINE void f_transpose_quads(vf *v)
{
    __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1])), b = _mm512_castps_pd(_mm512_unpackhi_ps(v[0], v[1]));
    __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3])), d = _mm512_castps_pd(_mm512_unpackhi_ps(v[2], v[3]));
    v[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    v[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    v[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    v[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
}
FS_INLINE void f_unzip(vf *v)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vf a = v[0], b = v[1];
    v[0] = _mm512_permutex2var_ps(a, even, b);
    v[1] = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}
FS_INLINE void f_zip(vf *v)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    vf a = v[0], b = v[1];
    v[0] = _mm512_permutex2var_ps(a, low, b);
    v[1] = _mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b);
}
FS_INLINE vd d_load_quads(const double *p, ptrdiff_t step)
{
    const char *q = (const char *)p;
    vd v = _mm512_castpd128_pd512(_mm_loadu_pd(p));
    v = _mm512_insertf64x2(v, _mm_loadu_pd((const double *)(q + step)), 1);
    v = _mm512_insertf64x2(v, _mm_loadu_pd((const double *)(q + 2 * step)), 2);
    return _mm512_insertf64x2(v, _mm_loadu_pd((const double *)(q + 3 * step)), 3);
}
FS_INLINE vd d_load_quads_head(const double *p, ptrdiff_t step, ptrdiff_t n)
{
    const char *q = (const char *)p;
    (void)n; /* it is 1 */
    vd v = _mm512_castpd128_pd512(_mm_load_sd(p));
    v = _mm512_insertf64x2(v, _mm_load_sd((const double *)(q + step)), 1);
    v = _mm512_insertf64x2(v, _mm_load_sd((const double *)(q + 2 * step)), 2);
    return _mm512_insertf64x2(v, _mm_load_sd((const double *)(q + 3 * step)), 3);
}
FS_INLINE void d_store_quads(double *p, ptrdiff_t step, vd v)
{
    char *q = (char *)p;
    _mm_storeu_pd(p, _mm512_castpd512_pd128(v));
    _mm_storeu_pd((double *)(q + step), _mm512_extractf64x2_pd(v, 1));
    _mm_storeu_pd((double *)(q + 2 * step), _mm512_extractf64x2_pd(v, 2));
    _mm_storeu_pd((double *)(q + 3 * step), _mm512_extractf64x2_pd(v, 3));
}
FS_INLINE void d_store_quads_head(double *p, ptrdiff_t step, ptrdiff_t n, vd v)
{
    char *q = (char *)p;
    (void)n;
    _mm_store_sd(p, _mm512_castpd512_pd128(v));
    _mm_store_sd((double *)(q + step), _mm512_extractf64x2_pd(v, 1));
    _mm_store_sd((double *)(q + 2 * step), _mm512_extractf64x2_pd(v, 2));
    _mm_store_sd((double *)(q + 3 * step), _mm512_extractf64x2_pd(v, 3));
}
FS_INLINE void d_transpose_quads(vd *v)
{
    vd a = v[0], b = v[1];
    v[0] = _mm512_unpacklo_pd(a, b);
    v[1] = _mm512_unpackhi_pd(a, b);
}
FS_INLINE void d_unzip(vd *v)
{
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    vd a = v[0], b = v[1];
    v[0] = _mm512_permutex2var_pd(a, even, b);
    v[1] = _mm512_permutex2var_pd(a, _mm512_add_epi64(even, _mm512_set1_epi64(1)), b);
}
FS_INLINE void d_zip(vd *v)
{
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    vd a = v[0], b = v[1];
    v[0] = _mm512_permutex2var_pd(a, low, b);
    v[1] = _mm512_permutex2var_pd(a, _mm512_add_epi64(low, _mm512_set1_epi64(4)), b);
}

/* Element types that are staged. */
FS_INLINE vf f_from_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
FS_INLINE __m256i f_half(vf v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FS_INLINE vf f_from_brain(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
FS_INLINE __m256i f_brain(vf v)
{
    /* Not vcvtneps2bf16, which flushes subnormals.  Half an ULP less one bit, plus the last bit kept, carries to even; the upper
     * halves are picked by one shuffle. */
    const __m512i upper = _mm512_castsi256_si512(
        _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
    __m512i u = _mm512_castps_si512(v), even = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), even);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, rounded));
}
FS_INLINE mf f_truth(const uint8_t *p)
{
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    return _mm_test_epi8_mask(v, v);
}
FS_INLINE md d_truth(const uint8_t *p)
{
    __m128i v = _mm_loadl_epi64((const __m128i *)p);
    return (md)_mm_test_epi8_mask(v, v);
}
typedef __m512i f_words;
typedef __m256i d_words;
FS_INLINE f_words f_load_words(const uint8_t *p, ptrdiff_t step)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_i32gather_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32((int)step)), p, 1);
}
FS_INLINE d_words d_load_words(const uint8_t *p, ptrdiff_t step)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_i32gather_epi32((const int *)p, _mm256_mullo_epi32(lane, _mm256_set1_epi32((int)step)), 1);
}
FS_INLINE mf f_byte(f_words v, int a) { return _mm512_test_epi32_mask(v, _mm512_set1_epi32((int)(0xffu << 8 * a))); }
FS_INLINE md d_byte(d_words v, int a) { return _mm256_test_epi32_mask(v, _mm256_set1_epi32((int)(0xffu << 8 * a))); }
FS_INLINE vd d_from_float(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
FS_INLINE void d_to_float(float *p, vd v) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
FS_INLINE vd d_from_half(const uint16_t *p)
{
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)));
}
FS_INLINE vd d_from_brain(const uint16_t *p)
{
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(u, 16)));
}
/* As floats, rounded to odd: towards 0, and the last bit set if that lost anything.  To be rounded once more, without harm. */
FS_INLINE __m256i d_odd(vd v)
{
    __m256 f = _mm512_cvt_roundpd_ps(v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    __mmask8 lost = _mm512_cmp_pd_mask(_mm512_cvtps_pd(f), v, _CMP_NEQ_OQ);
    __m256i u = _mm256_castps_si256(f);
    return _mm256_mask_or_epi32(u, lost, u, _mm256_set1_epi32(1));
}
FS_INLINE __m128i d_half(vd v)
{
    return _mm256_cvtps_ph(_mm256_castsi256_ps(d_odd(v)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
FS_INLINE __m128i d_brain(vd v)
{
    return _mm256_castsi256_si128(f_brain(_mm512_castps256_ps512(_mm256_castsi256_ps(d_odd(v)))));
}
FS_INLINE void f_stream(float *p, vf v) { _mm512_stream_ps(p, v); }
FS_INLINE void d_stream(double *p, vd v) { _mm512_stream_pd(p, v); }
FS_INLINE void f_to_half(uint16_t *p, vf v) { _mm256_storeu_si256((__m256i *)p, f_half(v)); }
FS_INLINE void f_stream_half(uint16_t *p, vf v) { _mm256_stream_si256((__m256i *)p, f_half(v)); }
FS_INLINE void f_to_brain(uint16_t *p, vf v) { _mm256_storeu_si256((__m256i *)p, f_brain(v)); }
FS_INLINE void f_stream_brain(uint16_t *p, vf v) { _mm256_stream_si256((__m256i *)p, f_brain(v)); }
FS_INLINE void d_stream_float(float *p, vd v) { _mm256_stream_ps(p, _mm512_cvtpd_ps(v)); }
FS_INLINE void d_to_half(uint16_t *p, vd v) { _mm_storeu_si128((__m128i *)p, d_half(v)); }
FS_INLINE void d_stream_half(uint16_t *p, vd v) { _mm_stream_si128((__m128i *)p, d_half(v)); }
FS_INLINE void d_to_brain(uint16_t *p, vd v) { _mm_storeu_si128((__m128i *)p, d_brain(v)); }
FS_INLINE void d_stream_brain(uint16_t *p, vd v) { _mm_stream_si128((__m128i *)p, d_brain(v)); }
#define FS_STREAMED() _mm_sfence()
