/* The row algorithms, written once: a template over the element type and the instruction set.
 *
 * Included by instantiate.h, once for floats and once for doubles, after a vocabulary (vec.h) and with
 *
 *     REAL          float or double
 *     FS_FLOAT      1 or 0: which of the two
 *     NAME(x)       x, made unique to the type
 *     V(x)          the vocabulary's word x for this type
 *
 * Rows are taken in groups of up to W, in one of two layouts, which the length of the rows alone decides:
 *
 *     rows       lanes are classes.  A pass works on one row; a group's maxima and sums are then reduced together by a
 *                transposing tree, after which lane r belongs to row r, so that divisions and logarithms cost a W-th.
 *     columns    lanes are rows (few classes, where whole vectors would be mostly empty).  The group is transposed into
 *                one vector a class; a pass works on the whole group, and nothing needs to be reduced.
 *
 * Few classes, where a group's rows cost more than their elements, are in columns worked on panel by panel if nothing but the
 * operation itself is wanted (panel_ops.h).  Longer rows that lie side by side in memory have a third layout, in which they need
 * not be transposed:
 *
 *     strands    lanes are rows, but what is added up is what lanes of a row would: class k is part of strand k % W.  A
 *                strand is worked on like a row; the strands' sums are then added like lanes.  All bits are those of rows.
 *
 * Lanes never mix, and the order of additions within a row depends on its length alone: the bits of a row do not depend
 * on its neighbours.
 *
 * exp is evaluated on the element itself, not on x - max, which would be rounded (see EXPK), or on that in two parts (panels).
 * Sums of terms are carried in double (floats; in panels in two floats) or in two doubles (doubles); nothing that is
 * 1 - (nearly 1) is ever formed (rest_of_row). */

#define VEC NAME(vec)
#define EXPK NAME(expk)
#define GROUP NAME(group)
#define W V(W)
#if FS_FLOAT
#define MASK mf
#else
#define MASK md
#endif

/* For the handful of sums and products that make a row's loss. */
#define wide NAME(wide)

#if FS_FLOAT
typedef double wide;
typedef vf VEC;
#define HALVES 2
#define DOMINATED 0x1p-24 /* below this part of the sum, the sum minus the maximum is rounding error */
#define FAR 216.0         /* |max| from which x - max is exact for all x that matter (>= 2 * 105) */
#define DROP 104.1        /* exp(-DROP) rounds to 0: below 2^-150; and exp(-DROP) 2^(BOOST - 1/2) is not below 2^-126 */
#define BOOST 25          /* terms are kept multiplied by 2^BOOST: only the result may be subnormal, and is rounded once */
#else
typedef long double wide;
typedef vd VEC;
#define HALVES 1
#define DOMINATED 0x1p-32
#define FAR 1500.0
#define DROP 745.3
#define BOOST 54
#endif

/* Elements of a block; and of a row that stay in cache from the first pass to the last: beyond it exp is computed again rather
 * than stored and fetched.  1 MB: the row and its terms share a 2 MiB second-level cache. */
#define BLOCK (FS_BLOCK / (ptrdiff_t)sizeof(REAL))
#define SAVE_LIMIT ((ptrdiff_t)(FS_KEPT / sizeof(REAL)))

/* Bytes ahead that reads and writes are prefetched: 512, 1024, 2048 and 4096 differed by 5 % at most. */
#define AHEAD 1024

/* Rows of this many vectors or more are worked on as rows, shorter ones in columns, where the fixed steps and the loads of
 * what is not a whole vector cost less: softmax of 240 MB of float32, in memcpys, in rows and in columns: 60 classes 1.28,
 * 1.03; 64 0.97, 1.06; 72 1.09, 1.08; 100 1.08, 1.08; 150 1.07, 1.08.  So rows of whole vectors of floats change at half.
 * The more operands of rows share the cache and the less is computed, the fewer: softmax_vjp 50 1.64, 1.58; 72 (float64) 1.40,
 * 1.57; log_softmax_vjp 28 1.55, 1.51; 32 1.19, 1.66. */
enum { NAME(LONG) = 8, NAME(MEDIUM) = 4, NAME(SHORT) = 2, NAME(NEVER) = 0 };
#define LONG NAME(LONG)
#define MEDIUM NAME(MEDIUM)
#define SHORT NAME(SHORT)
#define NEVER NAME(NEVER)
#define COLUMNS_MAX (LONG * W)

/* Up to so many classes the plain operations take rows in columns panel by panel (panel_ops.h): loss and gradient of 4, 16, 24,
 * 32 floats 3.43 to 2.10 memcpys, 1.64 to 1.48, 1.51 to 1.43, 1.38 to 1.43; of 8, 16 doubles 1.87 to 1.78, 1.57 to 1.67; with
 * AVX2's fewer registers logsumexp of 4, 16, 24 floats 3.19 to 1.87, 1.59 to 1.44, 1.44 to 1.53. */
#define FEW ((W * sizeof(REAL) == 64 ? 96 : 64) / (ptrdiff_t)sizeof(REAL))

enum { NAME(IN_ROWS), NAME(IN_COLUMNS), NAME(IN_STRANDS) };
#define IN_COLUMNS NAME(IN_COLUMNS)
#define IN_STRANDS NAME(IN_STRANDS)

FS_INLINE int NAME(in_columns)(ptrdiff_t c, int vectors)
{
    return c < (FS_FLOAT && vectors > SHORT && c % W == 0 ? vectors / 2 : vectors) * W;
}

/* Rows from whose length on the processor follows several streams by itself, and fetching the next rows in advance only pushes
 * this one's from the cache (log_softmax_vjp of 20000 classes 1.73, 1.42 without; 3000 1.30, 1.33). */
#define FETCH_MAX ((64 << 10) / (ptrdiff_t)sizeof(REAL))

/* Panels of W rows that a group in columns has at most: its steps wait for each other, several panels' need not. */
#define PANELS 4
#define ROOM (PANELS * W)

/* Elements of one operand that a group takes at a time, if it may: a 48 KB first-level cache has room for them and their
 * results, which in columns there are twice, and for the next group's.  8 KB in columns instead of 4: cross-entropy and its
 * gradient of 20 to 50 classes of float32 1.57 to 1.79 memcpys, not 1.43 to 1.57. */
#define ROWS_GROUP (FS_GROUP / (ptrdiff_t)sizeof(REAL))
#define COLUMNS_GROUP ((4 << 10) / (ptrdiff_t)sizeof(REAL))
#define COLUMNS_ROOM (COLUMNS_MAX * W > 2 * COLUMNS_GROUP ? COLUMNS_MAX * W : 2 * COLUMNS_GROUP)

/* --- exp ------------------------------------------------------------------------------------------------------ */

/* exp(s x) = 2^n exp(s (x - n L)), n = x s log2 e rounded to 1 / STEPS, L = ln 2 / s in two parts.  The reduction is exact, but for the
 * rounding of a double's reduced argument, whatever the scale s > 0 is.  With |s x| <= FAR it is applied to x itself; a row whose
 * maximum is larger is shifted by it first, which is exact then (Sterbenz).  So no difference is ever rounded. */
typedef struct {
    double scale;
    VEC rate, hi, lo, s;
    VEC s_lo, tail; /* of floats: what s lacks of the scale, and -lo s */
    VEC far, drop; /* FAR and DROP, of x */
#if V(STEPS) > 1
    VEC c[V(SHORT_TERMS)]; /* the polynomial's coefficients, for x */
#endif
} EXPK;

static EXPK NAME(exp_constants)(double scale)
{
    EXPK k;
    k.scale = scale;
    double hi, lo;
#if FS_FUSED
    double h = LN2_HI_F64_FMA, l = LN2_LO_F64_FMA;
#else
    double h = LN2_HI_F64_NOFMA, l = LN2_LO_F64_NOFMA;
#endif
#if FS_FLOAT
    double whole = (h + l) / scale;
    float head = (float)whole;
#if !FS_FUSED
    uint32_t bits;
    memcpy(&bits, &head, sizeof bits);
    bits &= 0xfffffe00u; /* 15 bits: n head is exact */
    memcpy(&head, &bits, sizeof head);
#endif
    hi = head;
    lo = whole - head;
#else
    if (scale == 1) {
        hi = h;
        lo = l;
    } else {
        hi = h / scale;
#if !FS_FUSED
        uint64_t bits;
        memcpy(&bits, &hi, sizeof bits);
        bits &= ~(uint64_t)0xfff; /* 41 bits */
        memcpy(&hi, &bits, sizeof hi);
#endif
        lo = (fma(-hi, scale, h) + l) / scale;
    }
#endif
    k.rate = V(set1)((REAL)(LOG2E_F64 * scale));
    k.hi = V(set1)((REAL)hi);
    k.lo = V(set1)((REAL)lo);
    k.s = V(set1)((REAL)scale);
    k.s_lo = V(set1)((REAL)(scale - (REAL)scale));
    k.tail = V(set1)((REAL)(-lo * scale));
    k.far = V(set1)((REAL)(FAR / scale));
    k.drop = V(set1)((REAL)(DROP / scale));
#if V(STEPS) > 1
    double power = scale;
    for (int i = 0; i < V(SHORT_TERMS); i++)
        k.c[i] = V(set1)((REAL)(V(short_exp)[i] * (power *= scale)));
#endif
    return k;
}

/* exp(s d) without n's power of two, for the n of d, or of d + low, if that is given, which is what `sum` exceeds ZERO_POWER by, but
 * for whole numbers; for doubles also what its last rounding lost. */
FS_INLINE VEC NAME(exp_reduced)(const EXPK *k, VEC d, const VEC *low, VEC n, VEC sum, VEC *lost)
{
    VEC head = V(fnma)(n, k->hi, d);
#if V(STEPS) > 1
    VEC u = low ? V(add)(head, V(fnma)(n, k->lo, *low)) : V(fnma)(n, k->lo, head);
    const VEC hi = V(pick)(V(exp2_hi), sum), lo = V(pick)(V(exp2_lo), sum);
    VEC rest = V(fma)(hi, V(mul)(u, V(fma)(u, V(short_exp_quotient)(u, k->c), k->s)), lo), e = V(add)(hi, rest);
    *lost = V(add)(V(sub)(hi, e), rest);
    return e;
#elif FS_FLOAT
    /* 1 + r + r^2 q, where r = head s + tail is not rounded: head is exact.  With head - n lo rounded, and s, five to twenty times
     * as many results of softmax were more than 2 ULP off. */
    (void)lost;
    VEC tail = V(fma)(head, k->s_lo, V(mul)(n, k->tail));
    tail = low ? V(fma)(*low, k->s, tail) : tail;
    VEC r = V(fma)(head, k->s, tail), r2 = V(mul)(r, r);
    VEC q = V(fma)(r2, V(set1)(EXP_F32_C6), V(fma)(r, V(set1)(EXP_F32_C5), V(set1)(EXP_F32_C4)));
    q = V(fma)(r2, q, V(fma)(r, V(set1)(EXP_F32_C3), V(set1)(EXP_F32_C2)));
    return V(add)(V(fma)(head, k->s, V(fma)(r2, q, tail)), V(set1)(1));
#else
    VEC u = low ? V(add)(head, V(fnma)(n, k->lo, *low)) : V(fnma)(n, k->lo, head), r = V(mul)(u, k->s), r2 = V(mul)(r, r);
    /* 1 + r is rounded exactly in two parts, and everything is added to the smaller one. */
#if FS_FUSED
    VEC rest = d_fma(r2, d_exp_quotient(r, r2), d_fma(u, k->s, -r));
#else
    VEC rest = d_mul(r2, d_exp_quotient(r, r2));
    if (k->scale != 1)
        rest = d_add(rest, d_product_error(u, k->s, r));
#endif
    const vd one = d_set1(1);
    VEC most = d_add(one, r);
    rest = d_add(rest, d_sub(r, d_sub(most, one)));
    VEC e = d_add(most, rest);
    *lost = d_add(d_sub(most, e), rest);
    return e;
#endif
}

/* exp(s d) without its power of two, which is returned in n; for doubles also what its last rounding lost. */
FS_INLINE VEC NAME(exp_parts)(const EXPK *k, VEC d, VEC *n, VEC *lost)
{
    const VEC zero = V(set1)(V(ZERO_POWER)), sum = V(fma)(d, k->rate, zero);
    *n = V(sub)(sum, zero);
    return NAME(exp_reduced)(k, d, NULL, *n, sum, lost);
}

/* The power of two in what exp_parts returns. */
FS_INLINE VEC NAME(whole)(VEC n)
{
#if V(STEPS) > 1
    return V(floor)(n);
#else
    return n;
#endif
}

/* The term exp(s x - s base) 2^-top of a row: what the sums add up.  Below the floor it is 0 without being computed: on
 * Intel's processors an underflow costs 150 cycles, and masked classes and the lanes beyond a row's end all underflow.
 * No term above the floor is subnormal (BOOST), so that its power of two is a number, which the sum that rounds the
 * exponent ends in (power_if).  By two exact factors, as for a result that may be subnormal, softmax of 1000 classes took AVX2
 * 1.28 memcpys (float) and 1.62 (double), not 1.08 and 1.24. */
FS_INLINE VEC NAME(exp_term_and_lost)(const EXPK *k, VEC x, VEC base, VEC floor, VEC top, VEC *lost)
{
    VEC low, d = V(sub)(x, base), zero = V(sub)(V(set1)(V(ZERO_POWER)), top);
    MASK alive = V(not_less)(d, floor);
    d = V(bounded)(d, floor);
    VEC n = V(fma)(d, k->rate, zero), e = NAME(exp_reduced)(k, d, NULL, V(sub)(n, zero), n, &low);
    if (lost)
        *lost = V(power_if)(alive, low, n);
    return V(power_if)(alive, e, n);
}

FS_INLINE VEC NAME(exp_term)(const EXPK *k, VEC x, VEC base, VEC floor, VEC top)
{
    return NAME(exp_term_and_lost)(k, x, base, floor, top, NULL);
}

/* The same where a term may be subnormal. */
FS_INLINE VEC NAME(deep_term_and_lost)(const EXPK *k, VEC x, VEC base, VEC floor, VEC top, VEC *lost)
{
    VEC n, low, d = V(sub)(x, base);
    MASK alive = V(not_less)(d, floor);
    VEC e = NAME(exp_parts)(k, V(bounded)(d, floor), &n, &low);
    n = V(sub)(n, top);
    if (lost)
        *lost = V(scale2_if)(alive, low, n);
    return V(scale2_if)(alive, e, n);
}

FS_INLINE VEC NAME(deep_term)(const EXPK *k, VEC x, VEC base, VEC floor, VEC top)
{
    return NAME(deep_term_and_lost)(k, x, base, floor, top, NULL);
}

/* In a loop that also stores zeros: else gcc takes those out and makes `rep stos` of them, which takes 30 cycles and more (a
 * tenth of softmax over two classes).  Its option for that, -fno-tree-loop-distribute-patterns, breaks gcc 12 elsewhere. */
#define KEEP_LOOP __asm__ volatile("" ::: "memory")

/* --- sums ----------------------------------------------------------------------------------------------------- */

/* Sums of floats: their exact values in double.  Sums of doubles: in two doubles, by error-free additions. */
typedef struct {
    vd a, b;
} NAME(acc);
#define ACC NAME(acc)
#define SUMS NAME(sums)

/* A running sum of doubles starts at ONSET, far above every term (2^(BOOST + 1) at most) of an exp-sum, so that Fast2Sum is
 * error-free. */
#define ONSET (FS_FLOAT ? 0 : 0x1p63)

FS_INLINE ACC NAME(acc_zero)(void) { return (ACC){d_set1(0), d_set1(0)}; }

FS_INLINE ACC NAME(acc_onset)(void)
{
#if FS_FLOAT
    return NAME(acc_zero)();
#else
    return (ACC){d_set1(ONSET), d_set1(0)};
#endif
}

/* Add the term of x to an exp-sum, and return it: it is not negative and below ONSET.  In double, the rounding of the
 * terms is the largest error of a logarithm of their sum, and is carried along. */
FS_INLINE void NAME(acc_term)(ACC *s, VEC e, VEC lost)
{
#if FS_FLOAT
    (void)lost;
    s->a = d_add(s->a, f_widen_lo(e));
    s->b = d_add(s->b, f_widen_hi(e));
#else
    vd t = d_add(s->a, e);
    s->b = d_add(s->b, d_add(d_sub(e, d_sub(t, s->a)), lost));
    s->a = t;
#endif
}

FS_INLINE VEC NAME(acc_exp)(ACC *s, const EXPK *k, VEC x, VEC base, VEC floor, VEC top)
{
    VEC lost = V(set1)(0), e = NAME(exp_term_and_lost)(k, x, base, floor, top, FS_FLOAT ? NULL : &lost);
    NAME(acc_term)(s, e, lost);
    return e;
}

FS_INLINE VEC NAME(acc_deep)(ACC *s, const EXPK *k, VEC x, VEC base, VEC floor, VEC top)
{
    VEC lost = V(set1)(0), e = NAME(deep_term_and_lost)(k, x, base, floor, top, FS_FLOAT ? NULL : &lost);
    NAME(acc_term)(s, e, lost);
    return e;
}

/* a - b, and what rounding took from it: none of a difference of floats. */
FS_INLINE vd NAME(difference)(vd a, vd b, vd *lost)
{
    vd d = d_sub(a, b), back = d_sub(d, a);
    *lost = FS_FLOAT ? d_set1(0) : d_sub(d_sub(a, d_sub(d, back)), d_add(b, back));
    return d;
}

FS_INLINE void NAME(two_sum)(vd *hi, vd *lo, vd x)
{
    vd t = d_add(*hi, x), back = d_sub(t, *hi);
    *lo = d_add(*lo, d_add(d_sub(*hi, d_sub(t, back)), d_sub(x, back)));
    *hi = t;
}

/* Add x to hi + lo, as two_sum. */
FS_INLINE void NAME(add_exactly)(VEC *hi, VEC *lo, VEC x)
{
    const VEC t = V(add)(*hi, x), back = V(sub)(t, *hi);
    *lo = V(add)(*lo, V(add)(V(sub)(*hi, V(sub)(t, back)), V(sub)(x, back)));
    *hi = t;
}

/* Add any numbers. */
FS_INLINE void NAME(acc_any)(ACC *s, VEC x)
{
#if FS_FLOAT
    s->a = d_add(s->a, f_widen_lo(x));
    s->b = d_add(s->b, f_widen_hi(x));
#else
    NAME(two_sum)(&s->a, &s->b, x);
#endif
}

/* Add products, exactly. */
FS_INLINE void NAME(acc_product)(ACC *s, VEC x, VEC y)
{
#if FS_FLOAT
    s->a = d_fma(f_widen_lo(x), f_widen_lo(y), s->a); /* a product of floats is exact in double */
    s->b = d_fma(f_widen_hi(x), f_widen_hi(y), s->b);
#else
    vd p = d_mul(x, y);
    NAME(two_sum)(&s->a, &s->b, p);
#if FS_FUSED
    s->b = d_add(s->b, d_fma(x, y, -p));
#else
    vd e = d_product_error(x, y, p);
    s->b = d_add(s->b, d_select(d_lt(d_abs(e), d_set1(INFINITY)), e, d_set1(0))); /* the halves of huge factors overflow */
#endif
#endif
}

/* Add x (y - z), exactly. */
FS_INLINE void NAME(acc_times_difference)(ACC *s, VEC x, VEC y, VEC z)
{
#if FS_FLOAT
    s->a = d_add(s->a, d_mul(f_widen_lo(x), d_sub(f_widen_lo(y), f_widen_lo(z))));
    s->b = d_add(s->b, d_mul(f_widen_hi(x), d_sub(f_widen_hi(y), f_widen_hi(z))));
#else
    vd lost, d = NAME(difference)(y, z, &lost);
    NAME(acc_product)(s, x, d);
    s->b = d_add(s->b, d_mul(x, lost));
#endif
}

FS_INLINE void NAME(acc_merge)(ACC *s, ACC t)
{
#if FS_FLOAT
    s->a = d_add(s->a, t.a);
    s->b = d_add(s->b, t.b);
#else
    NAME(two_sum)(&s->a, &s->b, t.a);
    s->b = d_add(s->b, t.b);
#endif
}

/* Where one term dominates, all others are in the low parts, whose own rounding errors would grow with the length of the
 * row: move them away every SETTLE rounds. */
#define SETTLE 8
FS_INLINE void NAME(acc_settle)(ACC *s, ACC *t, ACC *kept)
{
#if FS_FLOAT
    (void)s, (void)t, (void)kept;
#else
    NAME(two_sum)(&kept->a, &kept->b, d_add(s->b, t->b));
    s->b = t->b = d_set1(0);
#endif
}

/* Finish a sum that started at `onset`: taking that away is exact. */
FS_INLINE ACC NAME(acc_done)(ACC s, double onset)
{
#if FS_FLOAT
    (void)onset;
    return s;
#else
    return (ACC){d_sub(s.a, d_set1(onset)), s.b};
#endif
}

/* A sum that is hi + lo in lane 0 and 0 in the others. */
FS_INLINE ACC NAME(acc_of)(double hi, double lo)
{
    double high[d_W] = {FS_FLOAT ? hi + lo : hi}, low[d_W] = {FS_FLOAT ? 0 : lo};
    return (ACC){d_load(high), d_load(low)};
}

/* What a pass has added up for each row of a group. */
typedef struct {
    ACC of[ROOM];
} SUMS;

/* The sums of d_W rows: number r, in two parts, is row r's. */
FS_INLINE ACC NAME(sum_lanes)(const ACC *of)
{
#if FS_FLOAT
    vd s, rows[d_W];
    for (int r = 0; r < d_W; r++)
        rows[r] = d_add(of[r].a, of[r].b);
#define STEP(k, x, y, out) out = d_add(d_lo##k(x, y), d_hi##k(x, y))
    d_TREE(STEP, vd, rows, s);
#undef STEP
    return (ACC){s, d_set1(0)};
#else
    ACC s;
#define STEP(k, x, y, out)                                                                                            \
    do {                                                                                                              \
        vd h_ = d_lo##k((x).a, (y).a), l_ = d_add(d_lo##k((x).b, (y).b), d_hi##k((x).b, (y).b));                      \
        NAME(two_sum)(&h_, &l_, d_hi##k((x).a, (y).a));                                                              \
        out = (ACC){h_, l_};                                                                                          \
    } while (0)
    d_TREE(STEP, ACC, of, s);
#undef STEP
    return s;
#endif
}

/* Reduce a group's sums: hi[r] + lo[r] is the sum of row r. */
FS_INLINE void NAME(sum_rows)(SUMS *sums, ptrdiff_t g, double *hi, double *lo, const int cols)
{
    if (!cols)
        for (ptrdiff_t r = g; r < W; r++)
            sums->of[r] = sums->of[0];
    for (ptrdiff_t o = 0, n = cols ? (g + W - 1) / W * W : W; o < n; o += d_W) {
#if FS_FLOAT
        d_store(hi + o, !cols ? NAME(sum_lanes)(sums->of + o).a : o % W ? sums->of[o / W].b : sums->of[o / W].a);
        d_store(lo + o, d_set1(0));
        KEEP_LOOP;
#else
        ACC s = cols ? sums->of[o / W] : NAME(sum_lanes)(sums->of);
        /* Of an infinite sum the low part is inf - inf. */
        vd low = d_set1(0), finite = d_select(d_lt(d_abs(s.a), d_set1(INFINITY)), s.b, low);
        NAME(two_sum)(&s.a, &low, finite);
        low = d_select(d_lt(d_abs(s.a), d_set1(INFINITY)), low, d_set1(0));
        d_store(hi + o, s.a);
        d_store(lo + o, low);
#endif
    }
}

/* One row's sum as two numbers. */
static void NAME(sum_one)(ACC s, double *hi, double *lo)
{
    SUMS sums;
    double h[ROOM], l[ROOM];
    sums.of[0] = s;
    NAME(sum_rows)(&sums, 1, h, l, 0);
    *hi = h[0];
    *lo = l[0];
}

/* --- passes -------------------------------------------------------------------------------------------------------
 *
 * A pass runs over one row, or over the c vectors of a group in columns (cols).  EACH_VECTOR(cols, c, step, tail) runs
 * `step` with j at every whole vector and `tail` with j at the rest, of `rest` elements. */

#define EACH_VECTOR(cols, c, step, tail)                                                                              \
    do {                                                                                                              \
        ptrdiff_t j = 0;                                                                                              \
        if (cols) {                                                                                                   \
            for (ptrdiff_t end_ = (c)*W; j < end_; j += W) {                                                          \
                step;                                                                                                 \
            }                                                                                                         \
        } else {                                                                                                      \
            for (; j + W <= (c); j += W) {                                                                            \
                step;                                                                                                 \
            }                                                                                                         \
            if (j < (c)) {                                                                                            \
                ptrdiff_t rest = (c)-j;                                                                               \
                tail;                                                                                                 \
            }                                                                                                         \
        }                                                                                                             \
    } while (0)

/* Lines of an operand for a pass to fetch, one a vector; none if `at` is NULL. */
typedef struct {
    const char *at;
    ptrdiff_t apart;
} NAME(lines);

/* One pass: where it reads and writes (its places), and its scalars, the same in all lanes (rows) or one for each row
 * (columns). */
#define PLACES(X)                                                                                                     \
    X(const fs_tile *, t)                                                                                             \
    X(const EXPK *, k)                                                                                                \
    X(const REAL *, x)                                                                                                \
    X(const REAL *, other)                                                                                            \
    X(const REAL *, along)                                                                                            \
    X(const REAL *, w)                                                                                                \
    X(const char *, even)                                                                                             \
    X(const REAL *, terms)                                                                                            \
    X(REAL *, y)                                                                                                      \
    X(REAL *, save)                                                                                                   \
    X(ptrdiff_t, c)                                                                                                   \
    X(const double *, shifts) /* of the terms' blocks (sum_of_blocks), or NULL */                                      \
    /* What a pass that computes has fetched meanwhile, since copying into columns and maxima only wait for memory: the \
     * next group's rows of x and other, and this group's rows of y. */                                               \
    X(const char *, next_x)                                                                                           \
    X(ptrdiff_t, next_x_apart)                                                                                        \
    X(const char *, next_other)                                                                                       \
    X(ptrdiff_t, next_other_apart)                                                                                    \
    X(const char *, rows_y)                                                                                           \
    X(ptrdiff_t, rows_y_apart)                                                                                        \
    X(const struct NAME(pass) *, late) /* what waits of the row before, or NULL (exp_sum_late) */                       \
    X(int, stream) /* whether y is written past the caches */                                                          \
    X(int, flag)
#define FIELD(type, name) type name;
typedef struct {
    PLACES(FIELD)
} NAME(places);
typedef struct NAME(pass) {
    PLACES(FIELD)
    VEC base, floor, top;
    VEC hi, lo, m, u, v, q, all, all_lo, factor;
    VEC inverse, curve, square, apex, excess; /* of second derivatives */
} NAME(pass);
#undef FIELD
#define PASS NAME(pass)

/* A pass with these places.  Its scalars are set as they are needed: clearing them, as an initialiser would, took a quarter
 * of the time of softmax over two classes. */
#define SET(type, name) pass_.name = places_.name;
#define PASS_OF(...)                                                                                                  \
    ({                                                                                                                \
        const NAME(places) places_ = {__VA_ARGS__};                                                                   \
        PASS pass_;                                                                                                   \
        PLACES(SET)                                                                                                   \
        pass_;                                                                                                        \
    })

#define LINE(p, lines, j) ((p)->lines + (cols ? (j) / W * (p)->lines##_apart : (j) * (ptrdiff_t)sizeof(REAL)))
#define FETCH_ROWS(p, j)                                                                                              \
    do {                                                                                                              \
        if ((p)->next_x && (cols || (p)->c <= FETCH_MAX))                                                          \
            __builtin_prefetch(LINE(p, next_x, j), 0, cols ? 3 : 2);                                                  \
        if ((p)->next_other && (cols || (p)->c <= FETCH_MAX))                                                      \
            __builtin_prefetch(LINE(p, next_other, j), 0, cols ? 3 : 2);                                              \
        if (cols && (p)->rows_y)                                                                                   \
            __builtin_prefetch(LINE(p, rows_y, j), 1);                                                                \
    } while (0)
#define FETCH(p, j)                                                                                                   \
    do {                                                                                                              \
        FETCH_ROWS(p, j);                                                                                             \
        NAME(fetch_lines)((p)->t);                                                                                    \
    } while (0)

/* Those of the next tile. */
FS_INLINE void NAME(fetch_lines)(const fs_tile *t)
{
    if (__builtin_expect(t->fetch != NULL, 0))
        for (int o = 0; o < FS_FETCHED; o++)
            fs_fetch_line(&t->fetch[o]);
}

/* What the pass at r takes of a group's numbers: number r in all lanes, or those of its panel. */
#define LANES(numbers, r) (cols ? V(load)((numbers) + (r)) : V(set1)((numbers)[r]))

/* Rows longer than BLOCK are passed over block by block, possibly by several threads. */
FS_INLINE ptrdiff_t NAME(blocks)(ptrdiff_t c) { return (c + BLOCK - 1) / BLOCK; }

FS_INLINE ptrdiff_t NAME(block_length)(const PASS *p, ptrdiff_t b)
{
    ptrdiff_t left = p->c - b * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

FS_INLINE VEC NAME(max_flat)(const REAL *x, ptrdiff_t c, const int cols)
{
    const VEC low = V(set1)(-(REAL)INFINITY);
    VEC m0 = low, m1 = low, m2 = low, m3 = low;
    const ptrdiff_t n = cols ? c * W : c;
    ptrdiff_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        for (ptrdiff_t o = 0; !cols && o < 4 * W * (ptrdiff_t)sizeof(REAL); o += 64)
            __builtin_prefetch((const char *)(x + i) + AHEAD + o);
        m0 = V(max)(V(load)(x + i), m0);
        m1 = V(max)(V(load)(x + i + W), m1);
        m2 = V(max)(V(load)(x + i + 2 * W), m2);
        m3 = V(max)(V(load)(x + i + 3 * W), m3);
    }
    m0 = V(max)(V(max)(m2, m3), V(max)(m0, m1));
    for (; i + W <= n; i += W)
        m0 = V(max)(V(load)(x + i), m0);
    return i < n ? V(max)(V(load_head)(x + i, n - i, low), m0) : m0;
}

static void NAME(max_block)(void *context, ptrdiff_t b)
{
    const PASS *p = context;
    REAL lane[W], m = -(REAL)INFINITY;
    V(store)(lane, NAME(max_flat)(p->x + b * BLOCK, NAME(block_length)(p, b), 0));
    for (int i = 0; i < W; i++)
        m = lane[i] > m ? lane[i] : m;
    p->t->scratch[4 * b + 2] = m;
}

FS_INLINE VEC NAME(max_of_blocks)(const fs_tile *t, ptrdiff_t c)
{
    REAL m = -(REAL)INFINITY;
    for (ptrdiff_t b = 0; b < NAME(blocks)(c); b++)
        m = t->scratch[4 * b + 2] > m ? (REAL)t->scratch[4 * b + 2] : m;
    return V(set1)(m);
}

/* The maximum of a row, spread over the lanes; NaNs may be dropped, since the sum will show them. */
FS_INLINE VEC NAME(row_max)(const fs_tile *t, const REAL *x, ptrdiff_t c)
{
    if (c <= BLOCK)
        return NAME(max_flat)(x, c, 0);
    PASS p = PASS_OF(.t = t, .x = x, .c = c);
    t->for_blocks(t, NAME(blocks)(c), NAME(max_block), &p);
    return NAME(max_of_blocks)(t, c);
}

/* A sum on its way. */
typedef struct {
    ACC s0, s1, kept;
} NAME(partial);
#define PARTIAL NAME(partial)

FS_INLINE PARTIAL NAME(partial_onset)(void)
{
    return (PARTIAL){NAME(acc_onset)(), NAME(acc_onset)(), NAME(acc_of)(0, 0)};
}

/* Elements of c before the first line of the cache. */
FS_INLINE ptrdiff_t NAME(before_line)(const REAL *y, ptrdiff_t c)
{
    ptrdiff_t n = -(uintptr_t)y % 64 / sizeof(REAL);
    return n < c ? n : c;
}

FS_INLINE VEC NAME(mul2)(VEC, VEC, VEC);
FS_INLINE void NAME(to_block)(PASS *, ptrdiff_t);

/* A row's results in a block, that wait: where its terms are, where they go, and the factor. */
typedef struct {
    const REAL *terms;
    REAL *y;
    ptrdiff_t n; /* of them, whole rounds of four vectors, and lines */
    VEC hi, lo;
} NAME(waiting);
#define WAITING NAME(waiting)

/* The sum of the terms of [from, from + c), which are stored in p->save, if that is given.  Of a strand, what is not a multiple
 * of W says that one more vector is what in rows would be the last, which is not whole; and if it goes on, `more` keeps the
 * sum until then.  What is `waiting` is stored past the caches meanwhile. */
FS_INLINE ACC NAME(exp_sum_flat)(const PASS *p, ptrdiff_t from, ptrdiff_t c, PARTIAL *more, const int last,
                                 const WAITING *waiting, const int cols)
{
    const VEC base = p->base, floor = p->floor, top = p->top;
    const EXPK *k = p->k;
    const REAL *x = p->x + from;
    REAL *save = p->save ? p->save + from : NULL;
    const PARTIAL begun = more ? *more : NAME(partial_onset)();
    ACC s0 = begun.s0, s1 = begun.s1, kept = begun.kept;
    fs_fetch *const fetch = p->t->fetch;
    const int next_tile = cols == IN_STRANDS || fetch;
    fs_fetch lines = cols != IN_COLUMNS && fetch ? *fetch : (fs_fetch){0}; /* in registers */
    const char *ahead = p->next_x + from * (ptrdiff_t)sizeof(REAL);
    ptrdiff_t i = 0;
#define FETCH_AHEAD                                                                                                   \
    do {                                                                                                              \
        if (next_tile) {                                                                                              \
            fs_fetch_line(&lines);                                                                                    \
        } else {                                                                                                      \
            __builtin_prefetch(ahead, 0, 2);                                                                          \
            ahead += 64;                                                                                              \
        }                                                                                                             \
    } while (0)
    if (cols != IN_COLUMNS) {
        for (; i + 4 * W <= c; i += 4 * W) {
            if (i % (4 * W * SETTLE) == 0)
                NAME(acc_settle)(&s0, &s1, &kept);
            for (ptrdiff_t o = 0; o < 4 * W; o += 64 / (ptrdiff_t)sizeof(REAL))
                FETCH_AHEAD;
            VEC e0 = NAME(acc_exp)(&s0, k, V(load)(x + i), base, floor, top);
            VEC e1 = NAME(acc_exp)(&s1, k, V(load)(x + i + W), base, floor, top);
            VEC e2 = NAME(acc_exp)(&s0, k, V(load)(x + i + 2 * W), base, floor, top);
            VEC e3 = NAME(acc_exp)(&s1, k, V(load)(x + i + 3 * W), base, floor, top);
            if (waiting && i < waiting->n)
                for (ptrdiff_t o = i; o < i + 4 * W; o += W)
                    V(stream)(waiting->y + o, NAME(mul2)(V(load)(waiting->terms + o), waiting->hi, waiting->lo));
            if (save) {
                for (ptrdiff_t o = 0; !cols && o < 4 * W * (ptrdiff_t)sizeof(REAL); o += 64)
                    __builtin_prefetch((const char *)(save + i) + AHEAD + o, 1);
                V(store)(save + i, e0);
                V(store)(save + i + W, e1);
                V(store)(save + i + 2 * W, e2);
                V(store)(save + i + 3 * W, e3);
            }
        }
    }
    const REAL *y = x + i;
    REAL *z = save + (save ? i : 0);
    const char *next = p->next_x, *to = p->rows_y;
    EACH_VECTOR(
        cols == IN_COLUMNS, c - i,
        {
            if (cols == IN_COLUMNS) { /* FETCH, but in columns there are always next rows */
                __builtin_prefetch(next);
                next += p->next_x_apart;
                if (to) {
                    __builtin_prefetch(to, 1);
                    to += p->rows_y_apart;
                }
                NAME(fetch_lines)(p->t);
            } else if (j % (64 / (ptrdiff_t)sizeof(REAL)) == 0)
                FETCH_AHEAD;
            VEC e = NAME(acc_exp)(&s0, k, V(load)(y + j), base, floor, top);
            if (save)
                V(store)(z + j, e);
        },
        {
            FETCH_AHEAD;
            if (cols == IN_STRANDS)
                rest = W;
            VEC e = NAME(acc_exp)(&s1, k, V(load_head)(y + j, rest, V(set1)(-(REAL)INFINITY)), base, floor, top);
            if (save)
                V(store_head)(z + j, rest, e);
        });
#undef FETCH_AHEAD
    if (cols == IN_COLUMNS)
        return NAME(acc_done)(s0, ONSET);
    if (fetch)
        *fetch = lines;
    if (more && !last) {
        *more = (PARTIAL){s0, s1, kept};
        return s0;
    }
    NAME(acc_settle)(&s0, &s1, &kept);
    NAME(acc_merge)(&s0, s1);
    ACC s = NAME(acc_done)(s0, 2 * ONSET);
#if !FS_FLOAT
    NAME(two_sum)(&s.a, &s.b, kept.a);
    s.b = d_add(s.b, kept.b);
#endif
    return s;
}

/* Results that wait, in [from, from + c). */
FS_INLINE void NAME(emit_late)(const PASS *p, ptrdiff_t from, ptrdiff_t c)
{
    for (ptrdiff_t j = from, rest; (rest = from + c - j) > 0; j += W) {
        rest = rest < W ? rest : W;
        VEC e = p->terms ? V(load_head)(p->terms + j, rest, V(set1)(0))
                         : NAME(exp_term)(p->k, V(load_head)(p->x + j, rest, V(set1)(-(REAL)INFINITY)), p->base, p->floor, p->top);
        V(store_head)(p->y + j, rest, NAME(mul2)(e, p->hi, p->lo));
    }
}

/* The sum of the terms of block b.  What waits of the row before is emitted meanwhile: storing past the caches keeps no core busy,
 * and computing no memory (softmax of 8192 and 32000 doubles 1.37 and 1.35 memcpys, 1.06 and 1.09 so). */
FS_INLINE ACC NAME(exp_sum_late)(const PASS *p, ptrdiff_t b)
{
    const ptrdiff_t from = b * BLOCK, c = NAME(block_length)(p, b);
    if (!p->late)
        return NAME(exp_sum_flat)(p, from, c, NULL, 1, NULL, 0);
    PASS e = *p->late;
    NAME(to_block)(&e, b);
    const ptrdiff_t lead = NAME(before_line)(e.y + from, c);
    const WAITING waiting = {.terms = e.terms + (e.terms ? from + lead : 0), .y = e.y + from + lead, .hi = e.hi, .lo = e.lo,
                             .n = e.terms ? (c - lead) / (4 * W) * (4 * W) : 0};
    const ACC s = NAME(exp_sum_flat)(p, from, c, NULL, 1, &waiting, 0);
    NAME(emit_late)(&e, from, lead);
    NAME(emit_late)(&e, from + lead + waiting.n, c - lead - waiting.n);
    return s;
}

/* The sum of the terms of block b; what is fetched meanwhile is what this thread works on next, of this row or the next. */
static void NAME(exp_sum_block)(void *context, ptrdiff_t b)
{
    PASS p = *(const PASS *)context;
    double *out = p.t->scratch + 4 * b;
    const ptrdiff_t from = b * BLOCK, ahead = p.t->sharing * BLOCK;
    if (from + ahead < p.c)
        p.next_x = (const char *)(p.x + ahead);
    else if (p.t->sharing == 1)
        p.next_x -= from * (ptrdiff_t)sizeof(REAL);
    NAME(sum_one)(NAME(exp_sum_late)(&p, b), out, out + 1);
}

/* hi + lo plus a block's sum. */
FS_INLINE void NAME(merge_block)(double *hi, double *lo, const double *s, const double *s_lo)
{
    double u = *hi + *s, back = u - *hi;
    *lo += ((*hi - (u - back)) + (*s - back)) + *s_lo;
    *hi = u;
}

/* Merge the blocks' sums, which stand `offset` doubles into their four, in the blocks' order. */
static ACC NAME(merge_blocks)(const fs_tile *t, ptrdiff_t c, int offset)
{
    double hi = 0, lo = 0;
    for (ptrdiff_t b = 0; b < NAME(blocks)(c); b++) {
        const double *s = t->scratch + 4 * b + offset;
        NAME(merge_block)(&hi, &lo, s, s + 1);
    }
    if (!(fabs(hi) < INFINITY))
        lo = 0;
    return NAME(acc_of)(hi, lo);
}

/* The same of a panel of W rows: merge a block's sums; and what they are in the end. */
static void NAME(merge_panel)(ACC sum, double *hi, double *lo)
{
    SUMS sums;
    double h[ROOM], l[ROOM];
    sums.of[0] = sum;
    NAME(sum_rows)(&sums, W, h, l, 1);
    for (ptrdiff_t r = 0; r < W; r++)
        NAME(merge_block)(&hi[r], &lo[r], &h[r], &l[r]);
}

static ACC NAME(merged_panel)(const double *hi, double *lo)
{
    for (ptrdiff_t r = 0; r < W; r++)
        lo[r] = fabs(hi[r]) < INFINITY ? lo[r] : 0;
#if FS_FLOAT
    return (ACC){d_add(d_load(hi), d_load(lo)), d_add(d_load(hi + d_W), d_load(lo + d_W))};
#else
    return (ACC){d_load(hi), d_load(lo)};
#endif
}

/* Where class k stands in columns, or strand after strand: those of the first c % W strands are one vector longer. */
FS_INLINE ptrdiff_t NAME(place)(ptrdiff_t c, ptrdiff_t k, const int cols)
{
    const ptrdiff_t s = k % W, longer = c % W;
    return cols == IN_STRANDS ? k / W + c / W * s + (s < longer ? s : longer) : k;
}

/* The sums of the terms of classes [from, from + c) over all strands, in the order of sum_rows; `from` is a multiple of W. */
FS_INLINE ACC NAME(exp_sum_part)(const PASS *p, ptrdiff_t from, ptrdiff_t c, PARTIAL *more, const int last)
{
    ACC sum[W];
    for (ptrdiff_t s = 0; s < W; s++)
        sum[s] = NAME(exp_sum_flat)(p, NAME(place)(p->c, from + s, IN_STRANDS) * W, c / W * W + (s < c % W),
                                    more ? more + s : NULL, last, NULL, IN_STRANDS);
    for (ptrdiff_t half = W / 2; last && half > 0; half /= 2)
        for (ptrdiff_t s = 0; s < half; s++) {
            const ACC lo = sum[s], hi = sum[s + half];
#if FS_FLOAT
            sum[s] = (ACC){d_add(lo.a, hi.a), d_add(lo.b, hi.b)};
#else
            sum[s] = (ACC){lo.a, d_add(lo.b, hi.b)};
            NAME(two_sum)(&sum[s].a, &sum[s].b, hi.a);
#endif
        }
    return sum[0];
}

/* The sums of the terms of a panel in strands, block by block as those of rows. */
FS_INLINE ACC NAME(exp_sum_strands)(const PASS *p)
{
    double hi[W] = {0}, lo[W] = {0};
    for (ptrdiff_t b = 0; b < NAME(blocks)(p->c); b++) {
        const ACC sum = NAME(exp_sum_part)(p, b * BLOCK, NAME(block_length)(p, b), NULL, 1);
        if (p->c <= BLOCK)
            return sum;
        NAME(merge_panel)(sum, hi, lo);
    }
    return NAME(merged_panel)(hi, lo);
}

/* The sum of the terms of a row, or of each row in columns. */
FS_INLINE ACC NAME(exp_sum)(const PASS *p, const int cols)
{
    if (cols == IN_STRANDS)
        return NAME(exp_sum_strands)(p);
    if (cols)
        return NAME(exp_sum_flat)(p, 0, p->c, NULL, 1, NULL, cols);
    if (p->c <= BLOCK)
        return NAME(exp_sum_late)(p, 0);
    p->t->for_blocks(p->t, NAME(blocks)(p->c), NAME(exp_sum_block), (void *)p);
    return NAME(merge_blocks)(p->t, p->c, 0);
}

/* a (hi + lo), rounded once. */
FS_INLINE VEC NAME(mul2)(VEC a, VEC hi, VEC lo)
{
#if FS_FUSED
    return V(fma)(a, hi, V(mul)(a, lo));
#elif FS_FLOAT
    vd first = d_add(f_widen_lo(hi), f_widen_lo(lo)), second = d_add(f_widen_hi(hi), f_widen_hi(lo));
    return f_narrow(d_mul(f_widen_lo(a), first), d_mul(f_widen_hi(a), second));
#else
    VEC p = d_mul(a, hi), e = d_product_error(a, hi, p);
    e = d_select(d_lt(d_abs(e), d_set1(INFINITY)), e, d_set1(0)); /* of an infinite product it is NaN */
    return d_add(p, d_add(e, d_mul(a, lo)));
#endif
}

/* --- groups ------------------------------------------------------------------------------------------------------- */

/* What is known of a group of rows after its passes; number r is row r's. */
typedef struct {
    ptrdiff_t n;                                     /* numbers in use: whole vectors */
    REAL m[ROOM];                                    /* maximum of x */
    REAL base[ROOM], floor[ROOM], top[ROOM];         /* for exp_term */
    double em[ROOM];                                 /* the maximum's own term, as it was computed */
    double top_term[ROOM], top_lo[ROOM];             /* and what it is, in two parts */
    double others[ROOM], others_lo[ROOM];            /* sum of the other terms */
    double s[ROOM], s_lo[ROOM], inverse[ROOM];       /* sum of all terms, and 1 / s */
    double rest[ROOM], rest_lo[ROOM];                /* others / top_term, in two parts */
    double log[ROOM], log_hi[ROOM], log_lo[ROOM];    /* log1p(rest) = logsumexp - scale m, whole and in two parts */
    const double *shifts;                            /* of a row in blocks (sum_of_blocks), or NULL */
    uint64_t special;                                /* bit r: the maximum is not finite */
    unsigned char kind[ROOM];                        /* of a special row */
} GROUP;

enum { NAME(IS_NAN) = 1, NAME(IS_PLUS_INF) = 2, NAME(IS_EMPTY) = 3 };
#define IS_NAN NAME(IS_NAN)
#define IS_PLUS_INF NAME(IS_PLUS_INF)
#define IS_EMPTY NAME(IS_EMPTY)

static unsigned char NAME(classify)(const REAL *x, ptrdiff_t apart, ptrdiff_t c)
{
    unsigned char kind = IS_EMPTY;
    for (ptrdiff_t j = 0; j < c; j++, x += apart) {
        if (*x != *x)
            return IS_NAN;
        if (*x == (REAL)INFINITY)
            kind = IS_PLUS_INF;
    }
    return kind;
}

/* Rows a group takes; in columns whole panels; side by side as many as there is room for, since every class is elsewhere in
 * memory. */
FS_INLINE ptrdiff_t NAME(group_rows)(const fs_tile *t, const int cols)
{
    const ptrdiff_t c = t->c;
    if (cols && t->room)
        return ROOM;
    ptrdiff_t g = (cols ? COLUMNS_GROUP : ROWS_GROUP) / c, most = cols ? ROOM : W;
    if (cols)
        /* Two panels wait less: logsumexp of 33 classes 0.82 memcpys, not 1.10. */
        g = g >= 2 * W ? g / W * W : g >= W ? 2 * W : W;
    return g < 1 ? 1 : g > most ? most : g;
}

FS_INLINE ptrdiff_t NAME(group_size)(ptrdiff_t left, ptrdiff_t most)
{
    if (left < 1 || most < 1)
        __builtin_unreachable(); /* never empty, which the compiler cannot see */
    return left < most ? left : most;
}

FS_INLINE const REAL *NAME(row)(const fs_tile *t, int operand, ptrdiff_t r)
{
    return (const REAL *)(t->data[operand] + r * t->step[operand]);
}

/* Whether the rows, in strands, are worked on slab by slab. */
#define IN_SLABS(t) (cols == IN_STRANDS && (t)->c > FS_TALL)

/* Whether an operand's rows lie side by side, class after class, instead of its classes row after row. */
FS_INLINE int NAME(by_class)(const fs_tile *t, int operand) { return t->apart[operand] != sizeof(REAL); }

/* The lines of an operand for a pass over rows from r on to fetch: the next group's as they lie; or the next tile's, of few
 * classes side by side, the last line that a vector of them reaches into, since those before hold the last vector.  Where that
 * is `fetch`'s matter, nothing new. */
FS_INLINE NAME(lines) NAME(lines_of)(const fs_tile *t, int operand, ptrdiff_t r, ptrdiff_t g, const int cols)
{
    if (cols && NAME(by_class)(t, operand))
        return (NAME(lines)){(const char *)NAME(row)(t, operand, r) + t->ahead[operand] + W * sizeof(REAL) - 1,
                             t->apart[operand]};
    return (NAME(lines)){(const char *)NAME(row)(t, operand, r + g), W * sizeof(REAL)};
}

/* The lines of an operand that a pass over rows from r on will lead to; nothing new of what will be stored past the caches. */
FS_INLINE NAME(lines) NAME(lines_to)(const fs_tile *t, int operand, ptrdiff_t r, const int cols)
{
    const char *at = (const char *)NAME(row)(t, operand, r);
    if (cols && NAME(by_class)(t, operand))
        return t->stream >> operand & 1 ? (NAME(lines)){(const char *)t, 0}
                                        : (NAME(lines)){at + W * sizeof(REAL) - 1, t->apart[operand]};
    return (NAME(lines)){at, W * sizeof(REAL)};
}

#define Q (16 / (ptrdiff_t)sizeof(REAL)) /* elements of a quad: 128 bits */
/* Rows one short of a quad, without gaps: all but every Q-th may be moved as whole quads, since the element too many is the
 * next row's, which is moved later (softmax of 50 million floats in rows of 3 1.71 memcpys, 1.58 so). */
#define FILLED_QUADS(c, step) ((c) == Q - 1 && (step) == (c) * (ptrdiff_t)sizeof(REAL) ? Q - 1 : 0)

/* Classes that are read ahead of where the next tile's are not fetched. */
enum { NAME(CLASSES_AHEAD) = 16 };
#define CLASSES_AHEAD NAME(CLASSES_AHEAD)

/* `whole` + `left` rows side by side into columns, and their maxima; if wanted. */
FS_INLINE void NAME(bring_classes)(const fs_tile *t, int operand, const char *row, const ptrdiff_t whole,
                                   const ptrdiff_t left, REAL *col, REAL *most, const int cols)
{
    const ptrdiff_t c = t->c;
    VEC m[PANELS];
    for (ptrdiff_t r = 0; r < PANELS; r++)
        m[r] = V(set1)(-(REAL)INFINITY);
    const ptrdiff_t apart = t->apart[operand];
    for (ptrdiff_t k = 0; k < c; k++, row += apart) {
        const REAL *x = (const REAL *)row;
        REAL *at = col + NAME(place)(c, k, cols) * W;
        for (ptrdiff_t r = 0; r < whole + left; r += W) {
            if (cols == IN_STRANDS && c >= FS_SLAB && !t->fetch)
                __builtin_prefetch((const char *)(x + r) + CLASSES_AHEAD * apart);
            VEC v = r < whole ? V(load)(x + r) : V(load_head)(x + r, left, V(set1)(x[r]));
            if (col)
                V(store)(at + r * c, v);
            m[r / W] = V(max)(v, m[r / W]);
        }
    }
    for (ptrdiff_t r = 0; most && r < PANELS; r++)
        V(store)(most + r * W, m[r]);
}

/* Rows i to i + g of an operand into columns, a panel of W rows after the other: class k of row r to col[k W + r].  Lanes
 * without a row repeat one.  Of rows side by side also the maxima, if wanted. */
FS_INLINE void NAME(bring)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, REAL *col, REAL *most,
                           const int cols)
{
    const ptrdiff_t step = t->step[operand], c = t->c;
    const int pairs = c == 2 && step == 2 * (ptrdiff_t)sizeof(REAL), filled = FILLED_QUADS(c, step);
    const char *row = t->data[operand] + i * step;
    VEC v[Q];
    if (NAME(by_class)(t, operand)) {
        const ptrdiff_t whole = g / W * W, left = g - whole;
        if (whole == ROOM) /* is unrolled */
            NAME(bring_classes)(t, operand, row, ROOM, 0, col, most, cols);
        else
            NAME(bring_classes)(t, operand, row, whole, left, col, most, cols);
        return;
    }
    for (ptrdiff_t left = g; left > 0; left -= W, row += W * step, col += W * c) {
        if (left < W) {
            for (ptrdiff_t r = 0; r < W; r++)
                for (ptrdiff_t k = 0; k < c; k++)
                    col[k * W + r] = ((const REAL *)(row + (r < left ? r : 0) * step))[k];
            return;
        }
        if (pairs) {
            v[0] = V(load)((const REAL *)row);
            v[1] = V(load)((const REAL *)row + W);
            V(unzip)(v);
            V(store)(col, v[0]);
            V(store)(col + W, v[1]);
            continue;
        }
        for (ptrdiff_t k = 0; c >= Q && k < c; k += Q) {
            k = k > c - Q ? c - Q : k; /* the last quad may begin in the one before */
            const char *p = row + k * (ptrdiff_t)sizeof(REAL);
            for (int a = 0; a < Q; a++)
                v[a] = V(load_quads)((const REAL *)(p + a * step), Q * step);
            V(transpose_quads)(v);
            for (int a = 0; a < Q; a++)
                V(store)(col + (k + a) * W, v[a]);
        }
        if (c < Q) {
            for (int a = 0; a < Q; a++)
                v[a] = a < filled ? V(load_quads)((const REAL *)(row + a * step), Q * step)
                                  : V(load_quads_head)((const REAL *)(row + a * step), Q * step, c);
            V(transpose_quads)(v);
            for (int a = 0; a < Q - 1 && a < c; a++)
                V(store)(col + a * W, v[a]);
        }
    }
}

/* Numbers into rows at their labels, but for the rows of `besides`. */
FS_INLINE void NAME(put)(char *row, ptrdiff_t step, ptrdiff_t apart, ptrdiff_t g, const int64_t *label, const double *from,
                         uint64_t besides)
{
    for (ptrdiff_t r = 0; r < g; r++, row += step)
        if (__builtin_expect(!(besides >> r & 1), 1))
            *(REAL *)(row + label[r] * apart) = (REAL)from[r];
}

/* And back: columns to rows side by side. */
FS_INLINE void NAME(send_classes)(const fs_tile *t, int operand, char *row, const ptrdiff_t whole, const ptrdiff_t left,
                                  const REAL *col, const int stream, const int cols)
{
    const ptrdiff_t c = t->c, apart = t->apart[operand];
    for (ptrdiff_t k = 0; k < c; k++, row += apart) {
        REAL *y = (REAL *)row;
        const REAL *at = col + NAME(place)(c, k, cols) * W;
        for (ptrdiff_t r = 0; r < whole; r += W, at += W * c) {
            if (stream) {
                V(stream)(y + r, V(load)(at));
                continue;
            }
            if (cols == IN_STRANDS && c >= FS_SLAB)
                __builtin_prefetch((char *)(y + r) + CLASSES_AHEAD * apart, 1);
            else if (cols == IN_STRANDS)
                FS_FETCH_TO_WRITE((char *)(y + r) + CLASSES_AHEAD * apart);
            V(store)(y + r, V(load)(at));
        }
        if (left)
            V(store_head)(y + whole, left, V(load)(at));
    }
}

/* Columns to rows, and numbers at their labels in place of theirs, if `label` is given (put; not in strands). */
FS_INLINE void NAME(send)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, REAL *col, const int64_t *label,
                          const double *numbers, uint64_t besides, const int cols)
{
    const ptrdiff_t step = t->step[operand], c = t->c, size = sizeof(REAL);
    const int pairs = c == 2 && step == 2 * size, filled = FILLED_QUADS(c, step);
    char *const rows = t->data[operand] + i * step;
    char *row = rows;
    VEC v[Q];
    if (NAME(by_class)(t, operand)) {
        const ptrdiff_t whole = g / W * W, left = g - whole;
        const uintptr_t ends = (uintptr_t)row | (uintptr_t)t->apart[operand] | (uintptr_t)g * sizeof(REAL);
        const int stream = t->stream >> operand & 1 && ends % 64 == 0;
        for (ptrdiff_t r = 0; label && r < g; r += W)
            NAME(put)((char *)(col + r * c), size, W * size, g - r < W ? g - r : W, label + r, numbers + r, besides >> r);
        if (whole == ROOM) /* is unrolled */
            NAME(send_classes)(t, operand, row, ROOM, 0, col, stream, cols);
        else
            NAME(send_classes)(t, operand, row, whole, left, col, stream, cols);
        return;
    }
    for (ptrdiff_t left = g; left > 0; left -= W, row += W * step, col += W * c) {
        if (left < W) {
            for (ptrdiff_t r = 0; r < left; r++)
                for (ptrdiff_t k = 0; k < c; k++)
                    ((REAL *)(row + r * step))[k] = col[k * W + r];
            break;
        }
        if (pairs) {
            v[0] = V(load)(col);
            v[1] = V(load)(col + W);
            V(zip)(v);
            V(store)((REAL *)row, v[0]);
            V(store)((REAL *)row + W, v[1]);
            continue;
        }
        for (ptrdiff_t k = 0; c >= Q && k < c; k += Q) {
            k = k > c - Q ? c - Q : k;
            char *p = row + k * size;
            for (int a = 0; a < Q; a++)
                v[a] = V(load)(col + (k + a) * W);
            V(transpose_quads)(v);
            for (int a = 0; a < Q; a++)
                V(store_quads)((REAL *)(p + a * step), Q * step, v[a]);
        }
        if (c < Q) {
            for (int a = 0; a < Q; a++)
                v[a] = V(load)(col + (a < c ? a : 0) * W);
            V(transpose_quads)(v);
            for (int a = 0; a < Q; a++)
                if (a < filled)
                    V(store_quads)((REAL *)(row + a * step), Q * step, v[a]);
                else
                    V(store_quads_head)((REAL *)(row + a * step), Q * step, c, v[a]);
        }
    }
    if (label) /* in rows: what was just written to a column cannot be read as a vector for a while */
        NAME(put)(rows, step, size, g, label, numbers, besides);
}

/* Put a value where the mask excludes a class into the columns of rows i to i + g. */
static void NAME(exclude)(const fs_tile *t, ptrdiff_t i, ptrdiff_t g, REAL *col, REAL value)
{
    const ptrdiff_t c = t->c, step = t->mask_step;
    const uint8_t *row = t->mask + i * step;
    const VEC v = V(set1)(value);
    for (ptrdiff_t left = g; left > 0; left -= W, row += W * step, col += W * c) {
        if (left < W || c < 4) {
            for (ptrdiff_t r = 0; r < W; r++)
                for (ptrdiff_t k = 0; k < c; k++)
                    if (!row[(r < left ? r : 0) * step + k])
                        col[k * W + r] = value;
            continue;
        }
        for (ptrdiff_t k = 0; k < c; k += 4) {
            const ptrdiff_t at = k + 4 <= c ? k : c - 4; /* some twice */
            const V(words) words = V(load_words)(row + at, step);
#define ONE_CLASS(a) V(store_unless)(V(byte)(words, a), col + (at + a) * W, v)
            ONE_CLASS(0), ONE_CLASS(1), ONE_CLASS(2), ONE_CLASS(3);
#undef ONE_CLASS
        }
    }
}

/* An operand of a group into columns (bring), its logits -inf where that is still to be done. */
FS_INLINE void NAME(bring_included)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, REAL *col, REAL *most,
                                    const int cols)
{
    NAME(bring)(t, operand, i, g, col, most, cols);
    if (operand == 0 && t->bare)
        NAME(exclude)(t, i, g, col, -(REAL)INFINITY);
}

/* How many classes the mask of a tile includes in a row. */
static ptrdiff_t NAME(included)(const fs_tile *t, ptrdiff_t r)
{
    const uint8_t *mask = t->mask + r * t->mask_step;
    ptrdiff_t count = 0;
    for (ptrdiff_t j = 0; j < t->c;) {
        uint8_t part = 0; /* so that bytes are added, not words */
        for (ptrdiff_t end = t->c - j < 192 ? t->c : j + 192; j < end; j++)
            part += mask[j] != 0;
        count += part;
    }
    return count;
}

/* Where row r of a group begins in its columns; its classes follow W elements apart. */
FS_INLINE ptrdiff_t NAME(in_panels)(ptrdiff_t c, ptrdiff_t r) { return r / W * W * c + r % W; }

/* What row r of an operand is, which stands at x. */
static unsigned char NAME(kind_of)(const fs_tile *t, int operand, ptrdiff_t r, const REAL *x, ptrdiff_t apart)
{
    const unsigned char kind = NAME(classify)(x, apart, t->c);
    const int poisoned = operand == 0 && t->bare && t->poison && kind == IS_EMPTY && NAME(included)(t, r);
    return poisoned ? IS_NAN : kind;
}

/* Maxima of a group of rows of operand `x`, which stands, or, if `bring`, is brought, into `col` if in columns.  known: they are
 * those of its blocks. */
FS_INLINE void NAME(group_max)(GROUP *G, const fs_tile *t, int x, ptrdiff_t first, ptrdiff_t g, REAL *col, const int cols,
                               const int bring, const int known)
{
    if (cols && bring)
        NAME(bring_included)(t, x, first, g, IN_SLABS(t) ? NULL : col, G->m, cols);
    G->n = cols ? (g + W - 1) / W * W : W;
    G->special = 0;
    G->shifts = NULL;
    for (ptrdiff_t o = 0; o < G->n; o += W) {
        VEC all;
        if (cols && bring && NAME(by_class)(t, x)) {
            all = V(load)(G->m + o);
        } else if (cols) {
            const REAL *at = col + o * t->c, *end = at + t->c * W;
            VEC m[4];
            for (int a = 0; a < 4; a++)
                m[a] = V(set1)(-(REAL)INFINITY);
            for (; at + 3 * W < end; at += 4 * W)
                for (int a = 0; a < 4; a++)
                    m[a] = V(max)(V(load)(at + a * W), m[a]);
            all = V(max)(V(max)(m[0], m[1]), V(max)(m[2], m[3]));
            for (; at < end; at += W)
                all = V(max)(V(load)(at), all);
        } else {
            VEC m[W];
            for (ptrdiff_t r = 0; r < g; r++)
                m[r] = known ? NAME(max_of_blocks)(t, t->c) : NAME(row_max)(t, NAME(row)(t, x, first + r), t->c);
            for (ptrdiff_t r = g; r < W; r++)
                m[r] = m[0];
#define STEP(k, a, b, out) out = V(max)(V(lo##k)(a, b), V(hi##k)(a, b))
            V(TREE)(STEP, VEC, m, all);
#undef STEP
        }
        V(store)(G->m + o, all);
        uint64_t finite = V(bits)(V(lt)(V(abs)(all), V(set1)((REAL)INFINITY)));
        G->special |= (~finite & ((1ull << W) - 1)) << o;
    }
    G->special &= ~0ull >> (64 - g);
    if (__builtin_expect(G->special != 0, 0))
        for (ptrdiff_t r = 0; r < g; r++)
            if (G->special >> r & 1) {
                const REAL *in_memory = NAME(row)(t, x, first + r);
                G->kind[r] = cols == IN_COLUMNS
                                 ? NAME(kind_of)(t, x, first + r, col + NAME(in_panels)(t->c, r), W)
                                 : NAME(kind_of)(t, x, first + r, in_memory, t->apart[x] / (ptrdiff_t)sizeof(REAL));
            }
}

/* From the maxima, what exp_term needs, and the maximum's own term. */
FS_INLINE void NAME(group_prepare)(GROUP *G, const EXPK *k)
{
    for (ptrdiff_t o = 0; o < G->n; o += W) {
        VEC m = V(load)(G->m + o), n;
        VEC base = V(select)(V(lt)(k->far, V(abs)(m)), m, V(set1)(0));
        VEC d = V(sub)(m, base);
        VEC lost, e = NAME(exp_parts)(k, d, &n, &lost);
        n = NAME(whole)(n);
        V(store)(G->base + o, base);
        V(store)(G->floor + o, V(sub)(d, k->drop));
        V(store)(G->top + o, V(sub)(n, V(set1)(BOOST)));
        const VEC boost = V(set1)(BOOST);
        e = V(scale2)(e, boost);
        /* The maximum's term weighs most: where it dominates, its rounding would be the whole row's. */
#if FS_FLOAT
        for (int h = 0; h < HALVES; h++) {
            vd q = h ? f_widen_hi(n) : f_widen_lo(n), z = d_mul(h ? f_widen_hi(d) : f_widen_lo(d), d_set1(k->scale));
            q = d_add(q, d_set1((f_STEPS - 1) / (2. * f_STEPS))); /* what is left is not more than ln(2)/2 */
            vd r = d_fnma(q, d_set1(LN2_HI_F64_FMA), z), r2 = d_mul(r, r);
            d_store(G->em + o + h * d_W, h ? f_widen_hi(e) : f_widen_lo(e));
            vd exact = d_fma(r2, d_exp_quotient_of_float(r, r2), d_add(d_set1(1), r));
            d_store(G->top_term + o + h * d_W, d_mul(exact, d_set1(F_MIDDLE * (1 << BOOST))));
            d_store(G->top_lo + o + h * d_W, d_set1(0));
            KEEP_LOOP;
        }
#else
        d_store(G->em + o, e);
        d_store(G->top_term + o, e);
        d_store(G->top_lo + o, d_scale2(lost, boost));
#endif
    }
}

/* --- rows in blocks ----------------------------------------------------------------------------------------------------
 *
 * A block's terms are first taken relative to the block's own maximum, so that a row is read from memory once, for its
 * maximum and its sum, and not twice (logsumexp of 131072 classes: 0.94 memcpys for floats, 1.19 for doubles; 0.68, 0.88 so).
 * The base being 0, that changes them by powers of two, which are exact: no bit of a result depends on it. */

static void NAME(terms_of_block)(void *context, ptrdiff_t b)
{
    PASS p = *(const PASS *)context;
    GROUP G = {.n = W};
    const REAL far = (REAL)(FAR / p.k->scale);
    double *out = p.t->scratch + 4 * b;
    NAME(max_block)(&p, b);
    for (int r = 0; r < W; r++)
        G.m[r] = out[2] > far ? far : out[2] < -far ? -far : (REAL)out[2];
    NAME(group_prepare)(&G, p.k);
    p.base = V(set1)(G.base[0]);
    p.floor = V(set1)(G.floor[0]);
    p.top = V(set1)(G.top[0]);
    out[3] = G.top[0];
    NAME(exp_sum_block)(&p, b);
}

/* The sum of a row's terms from those of its blocks, and what makes them the row's: powers of two.  A row that has to be
 * shifted is summed again. */
static ACC NAME(sum_of_blocks)(const PASS *p, GROUP *G)
{
    const ptrdiff_t blocks = NAME(blocks)(p->c);
    double *scratch = p->t->scratch, *shifts = scratch + 4 * blocks;
    int far = 0;
    if (G->special & 1) /* nothing of it counts */
        return NAME(acc_of)(NAN, 0);
    for (ptrdiff_t b = 0; b < blocks; b++) {
        const double m = scratch[4 * b + 2], shift = scratch[4 * b + 3] - G->top[0];
        far |= fabs(m) > FAR / p->k->scale && !(m < (double)G->base[0] + G->floor[0]);
        scratch[4 * b] = ldexp(scratch[4 * b], (int)shift);
        scratch[4 * b + 1] = ldexp(scratch[4 * b + 1], (int)shift);
        shifts[b] = shift;
        shifts[blocks + b] = (REAL)fmax(fmin(m, (REAL)(FAR / p->k->scale)), -(REAL)(FAR / p->k->scale));
    }
    G->shifts = far ? NULL : shifts;
    return far ? NAME(exp_sum)(p, 0) : NAME(merge_blocks)(p->t, p->c, 0);
}

/* Make a pass with the terms of a row one with those of a block, kept or not: their factor takes their power of two.  Where that
 * is so low that the factor would be subnormal, the terms are computed again as the row's. */
FS_INLINE void NAME(to_block)(PASS *p, ptrdiff_t b)
{
    if (p->shifts && p->shifts[b] < -32) {
        p->terms = NULL;
    } else if (p->shifts) {
        const double shift = p->shifts[b];
        const VEC power = V(set1)((REAL)ldexp(1, (int)shift)), m = V(set1)((REAL)p->shifts[NAME(blocks)(p->c) + b]);
        p->floor = V(sub)(m, V(set1)((REAL)(DROP / p->k->scale)));
        p->top = V(add)(p->top, V(set1)((REAL)shift));
        p->hi = V(mul)(p->hi, power);
        p->lo = V(mul)(p->lo, power);
    }
}

/* Make the terms of a row's blocks, if they are kept, the row's where they stand. */
static void NAME(level_blocks)(GROUP *G, REAL *terms, ptrdiff_t c)
{
    for (ptrdiff_t b = 0; G->shifts && terms && b < NAME(blocks)(c); b++) {
        const REAL power = (REAL)ldexp(1, (int)G->shifts[b]);
        for (ptrdiff_t j = b * BLOCK; j < c && j < (b + 1) * BLOCK; j++)
            terms[j] *= power;
    }
    G->shifts = NULL;
}

/* a - q b for q near a / b, rounded once. */
FS_INLINE vd NAME(remainder)(vd a, vd q, vd b)
{
#if FS_FUSED
    return d_fnma(q, b, a);
#else
    vd r = a;
    for (int i = 0; i < d_W; i++)
        r[i] = fma(-q[i], b[i], a[i]);
    return r;
#endif
}

/* Reduce the rows' sums, split off the maximum's term, and put its true value in its place. */
FS_INLINE void NAME(group_sums)(GROUP *G, SUMS *sums, ptrdiff_t g, const int cols)
{
    NAME(sum_rows)(sums, g, G->s, G->s_lo, cols);
    for (ptrdiff_t o = 0; o < G->n; o += d_W) {
        vd s = d_load(G->s + o), s_lo = d_load(G->s_lo + o);
        vd lost, most = NAME(difference)(s, d_load(G->em + o), &lost), rest = d_sub(s_lo, d_load(G->top_lo + o));
        vd others = d_add(most, rest);
        d_store(G->others + o, others);
        KEEP_LOOP;
        d_store(G->others_lo + o, FS_FLOAT ? d_set1(0) : d_add(d_add(d_sub(most, others), rest), lost));
#if FS_FLOAT
        s = d_add(others, d_load(G->top_term + o));
        d_store(G->s + o, s);
#endif
        d_store(G->inverse + o, d_reciprocal(s));
    }
}

/* The sum over the elements of a row other than its maximum, relative to the maximum's term, where the sum minus the
 * maximum's term is rounding error: their own maximum, their own terms, in long double.  Rare, and it need not be fast. */
static double NAME(rest_of_row)(const fs_tile *t, const EXPK *k, const REAL *x, ptrdiff_t c, REAL m)
{
    ptrdiff_t at = 0;
    while (at < c - 1 && x[at] != m)
        at++;
    REAL next = -(REAL)INFINITY;
    VEC part[2] = {NAME(row_max)(t, x, at), NAME(row_max)(t, x + at + 1, c - at - 1)};
    REAL lane[W];
    V(store)(lane, V(max)(part[0], part[1]));
    for (int i = 0; i < W; i++)
        next = lane[i] > next ? lane[i] : next;
    if (!(next > -(REAL)INFINITY))
        return 0;
    GROUP G = {.n = W};
    for (int r = 0; r < W; r++)
        G.m[r] = next;
    NAME(group_prepare)(&G, k);
    double h, l;
    long double sum = (long double)G.top_term[0] - G.em[0];
    for (int side = 0; side < 2; side++) {
        PASS p = PASS_OF(.t = t, .k = k, .x = side ? x + at + 1 : x, .next_x = (const char *)x,
                         .c = side ? c - at - 1 : at);
        p.base = V(set1)(G.base[0]);
        p.floor = V(set1)(G.floor[0]);
        p.top = V(set1)(G.top[0]);
        NAME(sum_one)(NAME(exp_sum)(&p, 0), &h, &l);
        sum += (long double)h + l;
    }
    sum /= (long double)G.top_term[0] + G.top_lo[0];
    return (double)(sum * expl(((long double)next - m) * k->scale));
}

/* A row of logits as it stands, or copied to where there is room for it. */
static const REAL *NAME(contiguous)(const fs_tile *t, int operand, ptrdiff_t r)
{
    const char *x = (const char *)NAME(row)(t, operand, r);
    const int bare = operand == 0 && t->bare;
    if (!NAME(by_class)(t, operand) && !bare)
        return (const REAL *)x;
    REAL *room = (REAL *)t->row;
    for (ptrdiff_t k = 0; k < t->c; k++, x += t->apart[operand])
        room[k] = !bare || t->mask[r * t->mask_step + k] ? *(const REAL *)x : -(REAL)INFINITY;
    return room;
}

/* Slab `b` of a tile. */
FS_INLINE fs_tile NAME(slab)(const fs_tile *t, ptrdiff_t b)
{
    fs_tile s = *t;
    s.c = t->c - b * FS_SLAB < FS_SLAB ? t->c - b * FS_SLAB : FS_SLAB;
    for (int o = 0; o < FS_MAX_OPERANDS; o++)
        if (s.data[o] && NAME(by_class)(t, o))
            s.data[o] += b * FS_SLAB * s.apart[o];
    return s;
}

_Static_assert(FS_TALL >= BLOCK && BLOCK % FS_SLAB == 0 && FS_SLAB % (4 * W * SETTLE) == 0,
               "rows in slabs are rows in blocks, blocks end with slabs, and where slabs do sums settle anyway");

/* The sums of terms of a group in strands, slab by slab and, like those of rows, block by block. */
static void NAME(exp_sum_slabs)(const GROUP *G, const fs_tile *t, const EXPK *k, int x, ptrdiff_t first, ptrdiff_t g, REAL *col,
                                SUMS *sums)
{
    PARTIAL partial[PANELS][W];
    double hi[ROOM] = {0}, lo[ROOM] = {0};
    for (ptrdiff_t b = 0; b * FS_SLAB < t->c; b++) {
        fs_tile s = NAME(slab)(t, b);
        const ptrdiff_t end = b * FS_SLAB + s.c;
        const int last = end == t->c || end % BLOCK == 0;
        fs_fetch fetch[FS_FETCHED] = {{.at = s.data[x] + first * (ptrdiff_t)sizeof(REAL) + FS_SLAB * s.apart[x],
                                       .lines = 4, .line = 4, .pieces = FS_SLAB, .piece = FS_SLAB, .apart = s.apart[x],
                                       .rounds = end < t->c}};
        NAME(bring)(&s, x, first, g, col, NULL, IN_STRANDS);
        s.fetch = fetch;
        for (ptrdiff_t r = 0; r < g; r += W) {
            PARTIAL *more = partial[r / W];
            for (ptrdiff_t i = 0; b * FS_SLAB % BLOCK == 0 && i < W; i++)
                more[i] = NAME(partial_onset)();
            PASS p = PASS_OF(.t = &s, .k = k, .c = s.c, .x = col + r * s.c);
            p.base = V(load)(G->base + r);
            p.floor = V(load)(G->floor + r);
            p.top = V(load)(G->top + r);
            if (last)
                NAME(merge_panel)(NAME(exp_sum_part)(&p, 0, s.c, more, 1), hi + r, lo + r);
            else
                NAME(exp_sum_part)(&p, 0, s.c, more, 0);
        }
    }
    for (ptrdiff_t r = 0; r < g; r += W)
        sums->of[r / W] = NAME(merged_panel)(hi + r, lo + r);
}

/* From the sums, the logarithm of sum / maximum's term, by the sum over the others. */
FS_INLINE void NAME(group_log)(GROUP *G, const fs_tile *t, const EXPK *k, int x, ptrdiff_t first, ptrdiff_t g)
{
    uint64_t weak = 0;
    for (ptrdiff_t o = 0; o < G->n; o += d_W) {
        vd others = d_load(G->others + o), top = d_load(G->top_term + o);
        vd y = d_reciprocal(top), q = d_mul(others, y);
#if FS_FLOAT
        d_store(G->rest_lo + o, d_set1(0));
#else
        vd left = d_add(NAME(remainder)(others, q, top), d_load(G->others_lo + o));
        d_store(G->rest_lo + o, d_mul(d_fnma(q, d_load(G->top_lo + o), left), y));
#endif
        d_store(G->rest + o, q);
        weak |= (uint64_t)d_bits(d_lt(q, d_set1(DOMINATED))) << o;
    }
    weak &= ~0ull >> (64 - g) & ~G->special;
    if (weak) {
        for (ptrdiff_t r = 0; r < g; r++) {
            if (weak >> r & 1) {
                const REAL *row = NAME(contiguous)(t, x, first + r);
                G->rest[r] = t->c > 1 ? NAME(rest_of_row)(t, k, row, t->c, G->m[r]) : 0;
                G->rest_lo[r] = 0;
                G->others[r] = G->rest[r] * (G->top_term[r] + G->top_lo[r]);
            }
        }
    }
#if FS_FLOAT
    for (ptrdiff_t o = 0; o < G->n; o += W) {
        vd log[HALVES] = {d_load(G->rest + o), d_load(G->rest + o + d_W)};
        log1p_of_floats(log);
        for (int h = 0; h < HALVES; h++) {
            d_store(G->log + o + h * d_W, log[h]);
            d_store(G->log_hi + o + h * d_W, log[h]);
            d_store(G->log_lo + o + h * d_W, d_set1(0));
            KEEP_LOOP;
        }
    }
#else
    for (ptrdiff_t o = 0; o < G->n; o += d_W) {
        vd low, high = d_log(d_load(G->rest + o), d_load(G->rest_lo + o), LOG1P, &low);
        d_store(G->log + o, d_add(high, low));
        d_store(G->log_hi + o, high);
        d_store(G->log_lo + o, low);
    }
#endif
}

/* scale (a + a_lo) + log of the rows from o on, rounded nearly once: the parts of the log are added one by one, since they can
 * cancel scale a. */
FS_INLINE vd NAME(plus_log)(const GROUP *G, ptrdiff_t o, vd a, vd a_lo, double scale)
{
    const vd high = d_load(G->log_hi + o), s = d_set1(scale);
#if FS_FLOAT
    (void)a_lo, (void)high;
    return d_fma(a, s, d_load(G->log + o));
#endif
    vd p = d_mul(a, s), t = d_add(p, high), back = d_sub(t, p);
    vd rest = d_add(d_sub(p, d_sub(t, back)), d_sub(high, back));
#if FS_FUSED
    vd lost = d_fma(a, s, -p);
#else
    vd lost = scale == 1 ? d_set1(0) : d_product_error(a, s, p);
#endif
    vd sum = d_add(t, d_add(rest, d_add(d_fma(a_lo, s, lost), d_load(G->log_lo + o))));
    return d_select(d_lt(d_abs(p), d_set1(INFINITY)), sum, d_add(p, d_load(G->log + o)));
}

/* factor / sum of each row, in two parts. */
FS_INLINE void NAME(group_inverse)(const GROUP *G, const double *factor, REAL *hi, REAL *lo)
{
    for (ptrdiff_t o = 0; o < G->n; o += W) {
#if FS_FLOAT
        vd y[HALVES];
        for (int h = 0; h < HALVES; h++) {
            y[h] = d_load(G->inverse + o + h * d_W);
            if (factor)
                y[h] = d_mul(y[h], d_load(factor + o + h * d_W));
        }
        vf head = f_narrow(y[0], y[1]);
        f_store(hi + o, head);
        f_store(lo + o, f_narrow(d_sub(y[0], f_widen_lo(head)), d_sub(y[1], f_widen_hi(head))));
#else
        const vd s = d_load(G->s + o), inverse = d_load(G->inverse + o), f = factor ? d_load(factor + o) : d_set1(1);
        vd y = factor ? d_mul(f, inverse) : inverse;
        d_store(hi + o, y);
        d_store(lo + o, d_mul(d_fnma(y, d_load(G->s_lo + o), NAME(remainder)(f, y, s)), inverse));
#endif
    }
}

/* The other classes' part of the sum: 1 - p of the maximum. */
FS_INLINE void NAME(group_complement)(const GROUP *G, double *part)
{
    for (ptrdiff_t o = 0; o < G->n; o += d_W)
        d_store(part + o, d_mul(d_load(G->others + o), d_load(G->inverse + o)));
}

static void NAME(fill)(REAL *y, ptrdiff_t apart, ptrdiff_t c, REAL value)
{
    for (ptrdiff_t j = 0; j < c; j++, y += apart)
        *y = value;
}

/* Give a pass over the flat part [from, from + c) of a row its other forms: one block, and a whole row or group. */
#define DEFINE_EMIT(pass)                                                                                             \
    /* What is streamed begins with a cache line, and before that is what is not. */                                  \
    FS_INLINE void NAME(pass##_part)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)                      \
    {                                                                                                                 \
        ptrdiff_t n = !cols && p->stream ? NAME(before_line)(p->y + from, c) : c;                                     \
        for (n = n ? n : c; c > 0; from += n, c -= n, n = c)                                                          \
            NAME(pass)(p, from, n, cols);                                                                            \
    }                                                                                                                 \
    static void NAME(pass##_block)(void *context, ptrdiff_t b)                                                       \
    {                                                                                                                 \
        PASS p = *(const PASS *)context;                                                                              \
        b = NAME(blocks)(p.c) - 1 - b; /* the last ones are in cache */                                               \
        NAME(to_block)(&p, b);                                                                                        \
        NAME(pass##_part)(&p, b *BLOCK, NAME(block_length)(&p, b), 0);                                                \
        if (p.stream)                                                                                                 \
            FS_STREAMED();                                                                                            \
    }                                                                                                                 \
    FS_INLINE void NAME(pass##_all)(const PASS *p, const int cols)                                                   \
    {                                                                                                                 \
        if (cols || p->c <= BLOCK)                                                                                    \
            NAME(pass##_part)(p, 0, p->c, cols);                                                                     \
        else                                                                                                          \
            p->t->for_blocks(p->t, NAME(blocks)(p->c), NAME(pass##_block), (void *)p);                               \
    }

/* The same for a pass that returns two sums. */
#define DEFINE_SUMS(pass)                                                                                             \
    static void NAME(pass##_block)(void *context, ptrdiff_t b)                                                       \
    {                                                                                                                 \
        const PASS *p = context;                                                                                      \
        double *out = p->t->scratch + 4 * b;                                                                          \
        ACC s[2];                                                                                                     \
        NAME(pass)(p, b *BLOCK, NAME(block_length)(p, b), s, 0);                                                      \
        NAME(sum_one)(s[0], out, out + 1);                                                                            \
        NAME(sum_one)(s[1], out + 2, out + 3);                                                                        \
    }                                                                                                                 \
    FS_INLINE void NAME(pass##_all)(const PASS *p, ACC *first, ACC *second, const int cols)                          \
    {                                                                                                                 \
        ACC s[2];                                                                                                     \
        if (cols || p->c <= BLOCK) {                                                                                  \
            NAME(pass)(p, 0, p->c, s, cols);                                                                         \
        } else {                                                                                                      \
            p->t->for_blocks(p->t, NAME(blocks)(p->c), NAME(pass##_block), (void *)p);                               \
            s[0] = NAME(merge_blocks)(p->t, p->c, 0);                                                                \
            s[1] = NAME(merge_blocks)(p->t, p->c, 2);                                                                \
        }                                                                                                             \
        *first = s[0];                                                                                                \
        *second = s[1];                                                                                               \
    }
