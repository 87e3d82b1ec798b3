/* The vector vocabulary in the compilers' portable vector extensions: 4 floats or 2 doubles.
 *
 * This is the baseline of x86-64 (SSE2) and what every other processor gets, 64-bit Arm among them.  It fuses no
 * multiply-add, so that its results do not depend on what the compiler makes of it; compile with
 * -ffp-contract=off. */
#include <string.h>

#define FS_FUSED 0
#define f_W 4
#define d_W 2
typedef float vf __attribute__((vector_size(16)));
typedef double vd __attribute__((vector_size(16)));
typedef int32_t mf __attribute__((vector_size(16)));
typedef int64_t md __attribute__((vector_size(16)));

#define DEFINE_COMMON(P, V, T, M, N, MAGIC)                                                                           \
    FS_INLINE V P##load(const T *p)                                                                                  \
    {                                                                                                                 \
        V v;                                                                                                          \
        memcpy(&v, p, sizeof v);                                                                                      \
        return v;                                                                                                     \
    }                                                                                                                 \
    FS_INLINE void P##store(T *p, V v) { memcpy(p, &v, sizeof v); }                                                  \
    FS_INLINE V P##load_head(const T *p, ptrdiff_t n, V v)                                                           \
    {                                                                                                                 \
        for (ptrdiff_t j = 0; j < n; j++)                                                                             \
            v[j] = p[j];                                                                                              \
        return v;                                                                                                     \
    }                                                                                                                 \
    FS_INLINE void P##store_head(T *p, ptrdiff_t n, V v)                                                             \
    {                                                                                                                 \
        for (ptrdiff_t j = 0; j < n; j++)                                                                             \
            p[j] = v[j];                                                                                              \
    }                                                                                                                 \
    FS_INLINE V P##set1(T a) { return (V){0} + a; }                                                                  \
    FS_INLINE V P##add(V a, V b) { return a + b; }                                                                   \
    FS_INLINE V P##sub(V a, V b) { return a - b; }                                                                   \
    FS_INLINE V P##mul(V a, V b) { return a * b; }                                                                   \
    FS_INLINE V P##div(V a, V b) { return a / b; }                                                                   \
    FS_INLINE V P##fma(V a, V b, V c) { return a * b + c; }                                                          \
    FS_INLINE V P##fnma(V a, V b, V c) { return c - a * b; }                                                         \
    FS_INLINE M P##lt(V a, V b) { return (M)(a < b); }                                                               \
    FS_INLINE M P##eq(V a, V b) { return (M)(a == b); }                                                              \
    FS_INLINE V P##select(M m, V a, V b) { return (V)(((M)a & m) | ((M)b & ~m)); }                                   \
    FS_INLINE void P##store_unless(M m, T *p, V v) { P##store(p, P##select(m, P##load(p), v)); }                     \
    FS_INLINE M P##truth_head(const uint8_t *p, ptrdiff_t n)                                                         \
    {                                                                                                                 \
        M m = {0};                                                                                                    \
        for (ptrdiff_t j = 0; j < n; j++)                                                                             \
            m[j] = -(p[j] != 0);                                                                                      \
        return m;                                                                                                     \
    }                                                                                                                 \
    FS_INLINE M P##truth(const uint8_t *p) { return P##truth_head(p, N); }                                           \
    FS_INLINE V P##max(V a, V b) { return P##select(P##lt(b, a), a, b); }                                            \
    FS_INLINE V P##bounded(V a, V low) { return P##max(low, a); }                                                    \
    FS_INLINE M P##not_less(V a, V b) { return ~P##lt(a, b); }                                                       \
    FS_INLINE V P##rint_of_product(V a, V b)                                                                                     \
    {                                                                                                                 \
        /* To nearest by the magic number 1.5 * 2^(bits of the mantissa): |a b| is far below it. */                     \
        V magic = P##set1((T)MAGIC);                                                                                 \
        return (a * b + magic) - magic;                                                                                   \
    }                                                                                                                 \
    FS_INLINE unsigned P##bits(M m)                                                                                  \
    {                                                                                                                 \
        unsigned b = 0;                                                                                               \
        for (int j = 0; j < N; j++)                                                                                   \
            b |= (unsigned)(m[j] & 1) << j;                                                                           \
        return b;                                                                                                     \
    }

DEFINE_COMMON(f_, vf, float, mf, 4, 0x1.8p23)
DEFINE_COMMON(d_, vd, double, md, 2, 0x1.8p52)
#undef DEFINE_COMMON

FS_INLINE vf f_abs(vf a) { return (vf)((mf)a & 0x7fffffff); }
FS_INLINE vd d_abs(vd a) { return (vd)((md)a & 0x7fffffffffffffff); }

/* a 2^n in two steps, the first of which is exact: a subnormal result is rounded once.  n is converted by adding
 * the magic number, whose low bits then hold it. */
FS_INLINE vf f_scale2(vf a, vf n)
{
    mf k = (mf)(n + 0x1.8p23f) - 0x4b400000, h = k >> 1;
    return a * (vf)((h + 127) << 23) * (vf)((k - h + 127) << 23);
}
FS_INLINE vd d_scale2(vd a, vd n)
{
    md k = (md)(n + 0x1.8p52) - 0x4338000000000000, h = k >> 1;
    return a * (vd)((h + 1023) << 52) * (vd)((k - h + 1023) << 52);
}

FS_INLINE vf f_scale2_if(mf m, vf a, vf n) { return f_scale2((vf)((mf)a & m), n); }
FS_INLINE vd d_scale2_if(md m, vd a, vd n) { return d_scale2((vd)((md)a & m), n); }

#define f_STEPS 1
#define d_STEPS 1
#define f_ZERO_POWER 0x1.8p23f + 127
#define d_ZERO_POWER 0x1.8p52 + 1023
FS_INLINE vf f_power_if(mf m, vf a, vf n) { return a * (vf)(((mf)n << 23) & m); }
FS_INLINE vd d_power_if(md m, vd a, vd n) { return a * (vd)(((md)n << 52) & m); }

FS_INLINE vd f_widen_lo(vf a) { return (vd){a[0], a[1]}; }
FS_INLINE vd f_widen_hi(vf a) { return (vd){a[2], a[3]}; }
FS_INLINE vf f_narrow(vd lo, vd hi)
{
    vf v = {(float)lo[0], (float)lo[1], (float)hi[0], (float)hi[1]};
    /* gcc 12 takes widen_hi(narrow(lo, hi)) for hi, as if nothing had been rounded: hide where v comes from. */
    __asm__("" : "+m"(v));
    return v;
}

FS_INLINE vf f_lo0(vf a, vf b) { return (vf){a[0], a[1], b[0], b[1]}; }
FS_INLINE vf f_hi0(vf a, vf b) { return (vf){a[2], a[3], b[2], b[3]}; }
FS_INLINE vf f_lo1(vf a, vf b) { return (vf){a[0], a[2], b[0], b[2]}; }
FS_INLINE vf f_hi1(vf a, vf b) { return (vf){a[1], a[3], b[1], b[3]}; }
#define f_TREE(STEP, T, v, out)                                                                                       \
    do {                                                                                                              \
        T a_[2];                                                                                                      \
        STEP(0, v[0], v[1], a_[0]);                                                                                   \
        STEP(0, v[2], v[3], a_[1]);                                                                                   \
        STEP(1, a_[0], a_[1], out);                                                                                   \
    } while (0)

FS_INLINE vd d_lo0(vd a, vd b) { return (vd){a[0], b[0]}; }
FS_INLINE vd d_hi0(vd a, vd b) { return (vd){a[1], b[1]}; }
#define d_TREE(STEP, T, v, out) STEP(0, v[0], v[1], out)

FS_INLINE vf f_exponent(vf a) { return __builtin_convertvector(((mf)a >> 23) - 127, vf); }
FS_INLINE vd d_exponent(vd a)
{
    md e = (md)((md)a >> 52);
    return (vd){(double)(e[0] - 1023), (double)(e[1] - 1023)};
}

FS_INLINE vd d_reciprocal(vd a) { return d_set1(1) / a; }

/* A vector is one quad. */
FS_INLINE vf f_load_quads(const float *p, ptrdiff_t step) { return (void)step, f_load(p); }
FS_INLINE vf f_load_quads_head(const float *p, ptrdiff_t step, ptrdiff_t n) { return (void)step, f_load_head(p, n, f_set1(0)); }
FS_INLINE void f_store_quads(float *p, ptrdiff_t step, vf v) { (void)step, f_store(p, v); }
FS_INLINE void f_store_quads_head(float *p, ptrdiff_t step, ptrdiff_t n, vf v) { (void)step, f_store_head(p, n, v); }
FS_INLINE void f_transpose_quads(vf *v)
{
    vf a = {v[0][0], v[1][0], v[0][1], v[1][1]}, b = {v[0][2], v[1][2], v[0][3], v[1][3]};
    vf c = {v[2][0], v[3][0], v[2][1], v[3][1]}, d = {v[2][2], v[3][2], v[2][3], v[3][3]};
    v[0] = (vf){a[0], a[1], c[0], c[1]};
    v[1] = (vf){a[2], a[3], c[2], c[3]};
    v[2] = (vf){b[0], b[1], d[0], d[1]};
    v[3] = (vf){b[2], b[3], d[2], d[3]};
}
FS_INLINE void f_unzip(vf *v)
{
    vf a = v[0], b = v[1];
    v[0] = (vf){a[0], a[2], b[0], b[2]};
    v[1] = (vf){a[1], a[3], b[1], b[3]};
}
FS_INLINE void f_zip(vf *v)
{
    vf a = v[0], b = v[1];
    v[0] = (vf){a[0], b[0], a[1], b[1]};
    v[1] = (vf){a[2], b[2], a[3], b[3]};
}
FS_INLINE vd d_load_quads(const double *p, ptrdiff_t step) { return (void)step, d_load(p); }
FS_INLINE vd d_load_quads_head(const double *p, ptrdiff_t step, ptrdiff_t n) { return (void)step, d_load_head(p, n, d_set1(0)); }
FS_INLINE void d_store_quads(double *p, ptrdiff_t step, vd v) { (void)step, d_store(p, v); }
FS_INLINE void d_store_quads_head(double *p, ptrdiff_t step, ptrdiff_t n, vd v) { (void)step, d_store_head(p, n, v); }
FS_INLINE void d_transpose_quads(vd *v)
{
    vd a = v[0], b = v[1];
    v[0] = (vd){a[0], b[0]};
    v[1] = (vd){a[1], b[1]};
}
FS_INLINE void d_unzip(vd *v) { d_transpose_quads(v); }
FS_INLINE void d_zip(vd *v) { d_transpose_quads(v); }

/* Element types that are staged. */
typedef uint32_t uf __attribute__((vector_size(16)));

FS_INLINE uf f_choose(mf m, uf a, uf b) { return (a & (uf)m) | (b & ~(uf)m); }
FS_INLINE vf f_from_half(const uint16_t *p)
{
    const uf h = {p[0], p[1], p[2], p[3]}, exponent = h & 0x7c00;
    uf u = ((h & 0x7fff) << 13) + ((127u - 15) << 23);                    /* rebias the exponent */
    u = f_choose((mf)(exponent == 0x7c00), u + ((128u - 16) << 23), u); /* infinity and NaN: the largest one */
    /* A subnormal gets the implicit bit that it lacks, which is then subtracted. */
    uf subnormal = (uf)((vf)(u + (1u << 23)) - 0x1p-14f);
    return (vf)(f_choose((mf)(exponent == 0), subnormal, u) | (h & 0x8000) << 16);
}
FS_INLINE void f_to_half(uint16_t *p, vf v)
{
    uf u = (uf)v, sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    uf normal = (u + ((u >> 13 & 1) + 0xfff) - ((127u - 15) << 23)) >> 13; /* may carry to infinity, as it should */
    uf subnormal = (uf)((vf)u + 0.5f) - 0x3f000000; /* 0.5 has the ULP of the smallest half: the addition rounds */
    uf h = f_choose((mf)(u < 0x38800000), subnormal, normal);
    h = f_choose((mf)(u >= 0x47800000), f_choose((mf)(u > 0x7f800000), (uf){0} + 0x7e00, (uf){0} + 0x7c00), h) | sign;
    for (int j = 0; j < 4; j++)
        p[j] = (uint16_t)h[j];
}
FS_INLINE vf f_from_brain(const uint16_t *p) { return (vf)((uf){p[0], p[1], p[2], p[3]} << 16); }
FS_INLINE void f_to_brain(uint16_t *p, vf v)
{
    /* Half an ULP less one bit, plus the last bit kept, carries to even. */
    uf u = (uf)v, h = u >> 16;
    h = f_choose((mf)((u & 0x7fffffff) > 0x7f800000), h | 0x40, (u + ((h & 1) + 0x7fff)) >> 16);
    for (int j = 0; j < 4; j++)
        p[j] = (uint16_t)h[j];
}
FS_INLINE vd d_from_float(const float *p) { return (vd){p[0], p[1]}; }
FS_INLINE void d_to_float(float *p, vd v)
{
    p[0] = (float)v[0];
    p[1] = (float)v[1];
}
FS_INLINE vd d_from_half(const uint16_t *p) { return f_widen_lo(f_from_half((const uint16_t[4]){p[0], p[1]})); }
FS_INLINE vd d_from_brain(const uint16_t *p) { return f_widen_lo(f_from_brain((const uint16_t[4]){p[0], p[1]})); }
/* As floats, rounded to odd: towards 0, and the last bit set if that lost anything.  To be rounded once more, without harm. */
FS_INLINE vf d_odd(vd v)
{
    vf odd = {0};
    for (int j = 0; j < 2; j++) {
        float f = (float)v[j];
        double back = f;
        uint32_t u;
        memcpy(&u, &f, sizeof u);
        u -= (v[j] < 0 ? -v[j] : v[j]) < (back < 0 ? -back : back);
        u |= back < v[j] || v[j] < back;
        memcpy(&f, &u, sizeof f);
        odd[j] = f;
    }
    return odd;
}
FS_INLINE void d_to_half(uint16_t *p, vd v)
{
    uint16_t four[4];
    f_to_half(four, d_odd(v));
    memcpy(p, four, 4);
}
FS_INLINE void d_to_brain(uint16_t *p, vd v)
{
    uint16_t four[4];
    f_to_brain(four, d_odd(v));
    memcpy(p, four, 4);
}

typedef struct {
    const uint8_t *p;
    ptrdiff_t step;
} f_words, d_words;
FS_INLINE f_words f_load_words(const uint8_t *p, ptrdiff_t step) { return (f_words){p, step}; }
FS_INLINE d_words d_load_words(const uint8_t *p, ptrdiff_t step) { return (d_words){p, step}; }
FS_INLINE mf f_byte(f_words v, int a)
{
    const uint8_t *p = v.p + a;
    return (mf){-(p[0] != 0), -(p[v.step] != 0), -(p[2 * v.step] != 0), -(p[3 * v.step] != 0)};
}
FS_INLINE md d_byte(d_words v, int a) { return (md){-(v.p[a] != 0), -(v.p[a + v.step] != 0)}; }

/* No stores past the caches in the portable vocabulary. */
#define f_stream f_store
#define d_stream d_store
#define f_stream_half f_to_half
#define f_stream_brain f_to_brain
#define d_stream_float d_to_float
#define d_stream_half d_to_half
#define d_stream_brain d_to_brain
#define FS_STREAMED() ((void)0)
