/* The operations on rows that measure distributions: entropy, Kullback-Leibler divergence, binary cross-entropy.
 *
 * Included by row_ops.h, whose macros and whose list FS_OPS they share. */

/* Stands for any x - m so far that the term is 0, up to infinity: 0 times it is 0. */
#define LOWEST (-(REAL)(FS_FLOAT ? 0x1p100 : 0x1p900))

/* What a term counts is multiplied by its d: what exp(-DROP) lets go is let go this much later. */
#define LATER (FS_FLOAT ? 11 : 14)

/* --- entropy -------------------------------------------------------------------------------------------------------
 *
 * With d = x - m: H = log(sum e^(s d)) - s <p, d>, two terms that are not negative, and -dH/dx = s^2 p (d - <p, d>). */

/* The sum of the terms and that of the terms times d, in one pass; the terms are stored in `save`, if that is given. */
FS_INLINE void NAME(moment_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const VEC base = p->base, floor = p->floor, top = p->top, m = p->m, lowest = V(set1)(LOWEST);
    const REAL *x = p->x + from;
    REAL *save = p->save ? p->save + from : NULL;
    ACC a = NAME(acc_onset)(), b = NAME(acc_onset)(), u = NAME(acc_zero)(), v = NAME(acc_zero)();
    ACC kept = NAME(acc_of)(0, 0);
#define MOMENT(sum, moment, load_x, store)                                                                            \
    do {                                                                                                              \
        VEC x_ = load_x, e = NAME(acc_deep)(&sum, p->k, x_, base, floor, top);                                         \
        if (save)                                                                                                     \
            store;                                                                                                    \
        NAME(acc_product)(&moment, e, V(max)(lowest, V(sub)(x_, m)));                                                 \
    } while (0)
    ptrdiff_t i = 0;
    if (!cols) {
        fs_fetch *const fetch = p->t->fetch;
        const char *ahead = p->next_x + from * (ptrdiff_t)sizeof(REAL);
        for (; i + 2 * W <= c; i += 2 * W) {
            if (i % (2 * W * SETTLE) == 0)
                NAME(acc_settle)(&a, &b, &kept);
            for (ptrdiff_t o = 0; o < 2 * W; o += 64 / (ptrdiff_t)sizeof(REAL), ahead += 64) {
                if (fetch)
                    fs_fetch_line(fetch);
                else
                    __builtin_prefetch(ahead, 0, 2);
                if (save)
                    __builtin_prefetch((const char *)(save + i + o) + AHEAD, 1);
            }
            MOMENT(a, u, V(load)(x + i), V(store)(save + i, e));
            MOMENT(b, v, V(load)(x + i + W), V(store)(save + i + W, e));
        }
    }
    x += i;
    save += save ? i : 0;
    EACH_VECTOR(cols, c - i,
                {
                    if (cols)
                        FETCH(p, j);
                    MOMENT(a, u, V(load)(x + j), V(store)(save + j, e));
                },
                MOMENT(b, v, V(load_head)(x + j, rest, V(set1)(-(REAL)INFINITY)), V(store_head)(save + j, rest, e)));
#undef MOMENT
    if (!cols) {
        NAME(acc_settle)(&a, &b, &kept);
        NAME(acc_merge)(&a, b);
        NAME(acc_merge)(&u, v);
    }
    s[0] = NAME(acc_done)(a, cols ? ONSET : 2 * ONSET);
    s[1] = NAME(acc_done)(u, 0);
#if !FS_FLOAT
    NAME(two_sum)(&s[0].a, &s[0].b, kept.a);
    s[0].b = d_add(s[0].b, kept.b);
#endif
}
DEFINE_SUMS(moment_sums)

/* term (d - mean) factor.  The mean is that of a row that one class may dominate: it comes multiplied by 2^BOOST, and what
 * makes results small is multiplied last, so that only they may be subnormal. */
FS_INLINE void NAME(emit_entropy)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC m = p->m, u = p->u, v = p->v, hi = p->hi, lo = p->lo, lowest = V(set1)(LOWEST);
    const VEC up = V(set1)((REAL)((uint64_t)1 << BOOST));
    EMIT(from, ({
             VEC d = V(mul)(V(max)(lowest, V(sub)(AT(p->x, 0), m)), up);
             VEC e = p->terms ? AT(p->terms, 0)
                              : NAME(deep_term)(p->k, AT(p->x, -(REAL)INFINITY), p->base, p->floor, p->top);
             IF_INCLUDED(NAME(mul2)(V(mul)(e, V(sub)(V(sub)(d, u), v)), hi, lo));
         }));
}
DEFINE_EMIT(emit_entropy)

FS_INLINE void NAME(entropies)(const fs_tile *t, const int cols, const int gradient)
{
    enum { X, V_, G_GRAD, LOSS = 2, LOSS_GRAD = 3, DX = 4 };
    const double scale = t->params[0];
    const EXPK k = NAME(exp_constants)(scale);
    const int empty = t->params[1] != 0, keep = gradient && t->c <= SAVE_LIMIT && t->data[DX] != t->data[X];
    COLUMNS(X);
    COLUMNS(DX);
    GROUP G;
    FOR_GROUPS(i, g) {
        SUMS sums, moments;
        double moment[ROOM], low[ROOM], factor[ROOM] = {0};
        REAL hi[ROOM], lo[ROOM], mean_hi[ROOM] = {0}, mean_lo[ROOM] = {0};
        BRING(X, i, g);
        NAME(group_max)(&G, t, X, i, g, OF(X, i, 0), cols, 0, 0);
        NAME(group_prepare)(&G, &k);
        for (ptrdiff_t r = 0; r < G.n; r++)
            G.floor[r] -= (REAL)(LATER / scale);
        FOR_PASSES(r, g) {
            PASS p = FORWARD_PASS(X, gradient ? OF(DX, i, r) : NULL, i, r);
            p.save = p.y ? TERMS(p.y) : NULL;
            SET_LINES(p, next_x, LINES(X, i + r, g));
            if (gradient)
                SET_LINES(p, rows_y, LINES_TO(DX, i + r));
            NAME(moment_sums_all)(&p, &sums.of[SLOT(r)], &moments.of[SLOT(r)], cols);
        }
        NAME(group_sums)(&G, &sums, g, cols);
        NAME(group_log)(&G, t, &k, X, i, g);
        NAME(sum_rows)(&moments, g, moment, low, cols);
        for (ptrdiff_t r = 0; r < g; r++) {
            const double v = ONE(V_, i + r);
            wide mean = ((wide)moment[r] + low[r]) / ((wide)G.s[r] + G.s_lo[r]);
            wide value = v * ((G.log_hi[r] - scale * mean) + G.log_lo[r]);
            if (__builtin_expect(G.special >> r & 1, 0))
                value = G.kind[r] == IS_EMPTY && empty ? 0 : NAN;
            ONE(gradient ? LOSS_GRAD : LOSS, i + r) = (REAL)value;
            if (gradient) {
                const double up = (double)((uint64_t)1 << BOOST);
                factor[r] = -scale * scale * v * ONE(G_GRAD, i + r) / up;
                mean_hi[r] = (REAL)(mean * up);
                mean_lo[r] = (REAL)(mean * up - mean_hi[r]);
            }
        }
        if (!gradient)
            continue;
        NAME(group_inverse)(&G, factor, hi, lo);
        FOR_PASSES(r, g) {
            PASS p = FORWARD_PASS(X, OF(DX, i, r), i, r);
            p.u = LANES(mean_hi, r);
            p.v = LANES(mean_lo, r);
            p.hi = LANES(hi, r);
            p.lo = LANES(lo, r);
            p.even = INCLUDED_AT(i, r);
            NAME(emit_entropy_all)(&p, cols);
        }
        FILL_DERIVED(DX, i, g);
        SEND(DX, i, g);
    }
}

FS_INLINE void NAME(entropy_rows)(const fs_tile *t, const int cols) { NAME(entropies)(t, cols, 0); }
FS_INLINE void NAME(entropy_grad_rows)(const fs_tile *t, const int cols) { NAME(entropies)(t, cols, 1); }

/* --- Kullback-Leibler divergence --------------------------------------------------------------------------------- */

/* Add t (log t - s (x - m)) in floats, t (log t - s (x - m) + log) in doubles: where p is near t the logarithms cancel.  In
 * double the sums of floats have digits enough to cancel afterwards; doubles have to be added before they are multiplied.
 * So that no target is subnormal, it is taken times 2^RAISED. */
#define RAISED (FS_FLOAT ? 24 : 54)
FS_INLINE void NAME(acc_divergence)(ACC *s, const PASS *p, VEC x, VEC t)
{
    const VEC zero = V(set1)(0);
    MASK none = V(eq)(t, zero);
    VEC a = V(select)(none, V(set1)(1), V(mul)(t, V(set1)((REAL)((uint64_t)1 << RAISED))));
    a = V(select)(V(lt)(t, zero), V(set1)((REAL)NAN), a);
    x = V(select)(none, p->m, x);
#if FS_FLOAT
    vf n = f_exponent(f_mul(a, f_set1(0x1.6a09e6p+0f))); /* sqrt(2) */
    vf f = f_sub(f_scale2(a, f_sub(zero, n)), f_set1(1));
    vf q = f_mul(f_mul(f, f), f_fma(f, f_log1p_quotient(f), f_set1(-0.5f)));
    const vd scale = d_set1(p->k->scale);
#define HALF(sum, widen)                                                                                              \
    do {                                                                                                              \
        vd log = d_fma(widen(n), d_set1(LN2_HI_F64_FMA), d_add(widen(f), widen(q)));                                  \
        sum = d_fma(widen(t), d_fma(d_sub(widen(p->m), widen(x)), scale, log), sum);                                  \
    } while (0)
    HALF(s->a, f_widen_lo);
    HALF(s->b, f_widen_hi);
#undef HALF
#else
    const vd m = p->m, scale = d_set1(p->k->scale), infinite = d_set1(INFINITY);
    vd low, high = d_log(a, zero, LOG, &low);
    high = d_sub(high, d_set1(RAISED * LN2_HI_F64_NOFMA));
    low = d_sub(low, d_set1(RAISED * LN2_LO_F64_NOFMA));
    vd d = d_sub(m, x), back = d_sub(d, m), lost = d_sub(d_sub(m, d_sub(d, back)), d_add(x, back));
    vd z = d_mul(d, scale);
#if FS_FUSED
    vd error = d_fma(d, scale, d_sub(zero, z));
#else
    vd error = d_product_error(d, scale, z);
    error = d_select(d_lt(d_abs(error), infinite), error, zero); /* the halves of huge factors overflow */
#endif
    low = d_add(low, d_add(d_fma(lost, scale, error), p->lo));
    NAME(two_sum)(&high, &low, z);
    NAME(two_sum)(&high, &low, p->hi);
    low = d_select(d_lt(d_abs(high), infinite), low, zero);
    NAME(acc_product)(s, t, high);
    s->b = d_add(s->b, d_mul(t, low));
#endif
}

/* sum t and sum t (log t - log p) */
FS_INLINE void NAME(divergence_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const REAL *x = p->x + from, *t = p->other + from;
    ACC a = NAME(acc_zero)(), b = NAME(acc_zero)();
    EVERYWHERE({
        VEC t_ = AT(t, 0);
        if (whole)
            FETCH(p, from + j);
        NAME(acc_any)(&a, t_);
        NAME(acc_divergence)(&b, p, AT(x, 0), t_);
    });
    s[0] = NAME(acc_done)(a, 0);
    s[1] = NAME(acc_done)(b, 0);
}
DEFINE_SUMS(divergence_sums)

FS_INLINE void NAME(divergences)(const fs_tile *t, const int cols, const int gradient)
{
    enum { X, T, V_, G_GRAD, LOSS = 3, LOSS_GRAD = 4, DX = 5 };
    const double scale = t->params[0];
    const EXPK k = NAME(exp_constants)(scale);
    const int empty = t->params[1] != 0;
    const int keep = gradient && t->c <= SAVE_LIMIT && t->data[DX] != t->data[X] && t->data[DX] != t->data[T];
    COLUMNS(X);
    COLUMNS(T);
    COLUMNS(DX);
    GROUP G;
    FOR_GROUPS(i, g) {
        BRING(X, i, g);
        BRING(T, i, g);
        GROUP_TERMS(X, gradient ? OF(DX, i, r) : NULL, gradient ? LINES_TO(DX, i + r) : NO_LINES, i, g);
        NAME(group_log)(&G, t, &k, X, i, g);
        SUMS a, b;
        double mass[ROOM], mass_lo[ROOM], dot[ROOM], low[ROOM], complement[ROOM];
        REAL log_hi[ROOM], log_lo[ROOM], hi[ROOM], lo[ROOM], all[ROOM] = {0}, all_lo[ROOM] = {0}, factor[ROOM] = {0}, not_top[ROOM];
        for (ptrdiff_t r = 0; r < G.n; r++) {
            log_hi[r] = (REAL)G.log_hi[r];
            log_lo[r] = (REAL)G.log_lo[r];
        }
        FOR_PASSES(r, g) {
            PASS p = PASS_OF(.t = t, .k = &k, .c = t->c, .x = OF(X, i, r), .other = OF(T, i, r),
                             OF_LINES(next_other, LINES(T, i + r, g)));
            p.m = LANES(G.m, r);
            p.hi = LANES(log_hi, r);
            p.lo = LANES(log_lo, r);
            NAME(divergence_sums_all)(&p, &a.of[SLOT(r)], &b.of[SLOT(r)], cols);
        }
        NAME(sum_rows)(&a, g, mass, mass_lo, cols);
        NAME(sum_rows)(&b, g, dot, low, cols);
        for (ptrdiff_t r = 0; r < g; r++) {
            const double v = ONE(V_, i + r);
            const int special = G.special >> r & 1;
            /* A NaN among the logits shows in the log only, if no target is on it. */
            wide value = ((wide)dot[r] + low[r]) + 0 * G.log[r];
#if FS_FLOAT
            value += mass[r] * ((G.log_hi[r] - RAISED * LN2_HI_F64_FMA) + G.log_lo[r]);
#endif
            if (!(mass[r] < (FS_FLOAT ? 0x1p100 : 0x1p900))) { /* too large to be raised; also infinite, or NaN */
                value = 0 * G.log[r];
                for (ptrdiff_t j = 0; j < t->c; j++) {
                    double target = ELEMENT(T, i, r, j), d = (double)G.m[r] - ELEMENT(X, i, r, j);
                    value += target == 0 ? 0 : target * (log(target) + scale * d + G.log[r]);
                }
            }
            if (__builtin_expect(special, 0)) {
                value = G.kind[r] == IS_EMPTY && empty ? 0 : NAN;
                for (ptrdiff_t j = 0; j < t->c; j++)
                    if (ELEMENT(T, i, r, j) != 0)
                        value += ELEMENT(T, i, r, j) < 0 ? NAN : ELEMENT(T, i, r, j) * INFINITY;
            }
            ONE(gradient ? LOSS_GRAD : LOSS, i + r) = (REAL)(special && value == 0 ? 0 : v * value);
            if (gradient) {
                all[r] = (REAL)mass[r];
                all_lo[r] = (REAL)((mass[r] - all[r]) + mass_lo[r]);
                factor[r] = (REAL)(v * ONE(G_GRAD, i + r) * scale);
            }
        }
        if (!gradient)
            continue;
        NAME(group_inverse)(&G, NULL, hi, lo);
        NAME(group_complement)(&G, complement);
        for (ptrdiff_t r = 0; r < G.n; r++)
            not_top[r] = (REAL)complement[r];
        FOR_PASSES(r, g) {
            PASS p = FORWARD_PASS(X, OF(DX, i, r), i, r);
            p.other = OF(T, i, r); /* the gradient is that of the cross-entropy */
            p.hi = LANES(hi, r);
            p.lo = LANES(lo, r);
            p.all = LANES(all, r);
            p.all_lo = LANES(all_lo, r);
            p.factor = LANES(factor, r);
            p.q = LANES(not_top, r);
            p.even = INCLUDED_AT(i, r);
            NAME(emit_probs_all)(&p, cols);
        }
        FILL_DERIVED(DX, i, g);
        SEND(DX, i, g);
    }
}

FS_INLINE void NAME(kl_divergence_rows)(const fs_tile *t, const int cols) { NAME(divergences)(t, cols, 0); }
FS_INLINE void NAME(kl_divergence_grad_rows)(const fs_tile *t, const int cols) { NAME(divergences)(t, cols, 1); }

/* --- binary cross-entropy ------------------------------------------------------------------------------------------
 *
 * With a = |z|, e = exp(-a), and `against` the part of the label that z is wrong about ((1 - y) or u y), `right` the
 * other: loss = against a + (against + right) log1p(e), slope = +-(against - right e) / (1 + e).  Both tails keep their
 * relative precision; e, the logarithm and the slope are kept multiplied by 2^LIFT, so that only results are subnormal.
 * That is more than BOOST, and e is dropped later: scale and weights make a result of what alone would round to 0. */

#if FS_FLOAT
#define LIFT 48
#define LIFTED 0x1p48
#define LIFT_DROP 120.0 /* exp(-120) 2^48 is a normal number; with a factor below 8e6 what is dropped rounds to 0 */
#else
#define LIFT 96
#define LIFTED 0x1p96
#define LIFT_DROP 774.0
#endif

#define BINARY NAME(binary)
typedef struct {
    const fs_tile *t;
    const EXPK *k;
    const REAL *x, *y, *w, *u, *g;
    REAL *loss, *dx;
    REAL floor, positive, v, factor, factor_lo; /* v: multiplies losses that are not summed; factor: slopes, in two parts */
    ptrdiff_t c;
} BINARY;

/* log1p(e) 2^LIFT for 0 <= e <= 1 and e_up = e 2^LIFT; *inverse becomes 1 / (1 + e). */
FS_INLINE VEC NAME(log1p_up)(VEC e, VEC e_up, VEC *inverse)
{
    const VEC one = V(set1)(1), half = V(set1)((REAL)0.5);
    VEC whole = V(add)(one, e);
#if FS_FLOAT
    /* 1 + e = 2^n (1 + f), n = 0 or 1; log1p(f) is short enough for what n log 2 makes of its rounding. */
    const VEC zero = V(set1)(0), up = V(set1)((REAL)LIFTED);
    *inverse = V(div)(one, whole);
    MASK upper = V(lt)(half, e);
    VEC f = V(select)(upper, V(mul)(V(sub)(e, one), half), e), f_up = V(select)(upper, V(mul)(f, up), e_up);
    VEC q = V(fma)(f, f_log1p_quotient(f), V(set1)((REAL)-0.5));
    return V(add)(V(fma)(V(mul)(f_up, f), q, f_up),
                  V(select)(upper, V(set1)((REAL)(LN2_HI_F64_FMA * LIFTED)), zero));
#else
    /* One division for both quotients: 1 / (1 + e), which a Newton step makes exact again, and t = 1 / (2 + e). */
    VEC two = V(add)(V(set1)(2), e), both = V(div)(one, V(mul)(whole, two)), r = V(mul)(both, two);
    *inverse = V(fma)(V(fnma)(r, whole, one), r, r);
    /* With s = e t: log1p(e) = e - (e^2/2 - s (e^2/2 + s^2 P(s^2))), of which e is a factor. */
    VEC t = V(mul)(both, whole), s = V(mul)(e, t), z = V(mul)(s, s), first = V(mul)(half, e);
    VEC less = V(fnma)(t, V(fma)(z, d_log1p_quotient(z), V(mul)(first, e)), first);
    return V(fnma)(e_up, less, e_up);
#endif
}

/* exp(-scale a) 2^LIFT of a >= 0, 0 where -a is below the floor. */
FS_INLINE VEC NAME(exp_up)(const EXPK *k, VEC a, VEC floor)
{
    VEC d = V(sub)(V(set1)(0), a);
#if FS_FLOAT
    return NAME(deep_term)(k, d, V(set1)(0), floor, V(set1)(-LIFT));
#else
    /* As exp_term, but for the last rounding, which spares it five operations for an ULP. */
    MASK alive = V(not_less)(d, floor);
    d = V(bounded)(d, floor);
    VEC n = V(rint_of_product)(d, k->rate), u = V(fnma)(n, k->lo, V(fnma)(n, k->hi, d));
    VEC r = V(mul)(u, k->s), r2 = V(mul)(r, r);
    VEC e = V(add)(V(fma)(r2, d_exp_quotient(r, r2), r), V(set1)(1));
    return V(scale2_if)(alive, e, V(add)(n, V(set1)(LIFT)));
#endif
}

/* What multiplies a vector: its weights times a number in two parts, and what rounding takes from that. */
FS_INLINE VEC NAME(weighted)(const BINARY *p, VEC w, REAL hi, REAL lo, VEC *lost)
{
    VEC factor = V(set1)(hi);
    *lost = V(set1)(lo);
    if (p->w) {
        const VEC zero = V(set1)(0), product = V(mul)(w, factor);
#if FS_FUSED
        VEC error = V(fma)(w, factor, V(sub)(zero, product));
#elif FS_FLOAT
        VEC error = f_narrow(d_sub(d_mul(f_widen_lo(w), f_widen_lo(factor)), f_widen_lo(product)),
                             d_sub(d_mul(f_widen_hi(w), f_widen_hi(factor)), f_widen_hi(product)));
#else
        VEC error = d_product_error(w, factor, product);
#endif
        error = V(fma)(w, *lost, error);
        *lost = V(select)(V(lt)(V(abs)(error), V(set1)((REAL)INFINITY)), error, zero); /* a product may be infinite */
        factor = product;
    }
    return factor;
}

/* a (hi + lo), where an infinite a needs no second part. */
FS_INLINE VEC NAME(mul2_any)(VEC a, VEC hi, VEC lo)
{
    VEC y = NAME(mul2)(a, hi, lo);
    return V(select)(V(lt)(V(abs)(y), V(set1)((REAL)INFINITY)), y, V(mul)(a, hi));
}

/* Losses or what they are the sums of (the linear parts, and the logarithms 2^LIFT), and slopes, of one vector. */
FS_INLINE void NAME(binary_step)(const BINARY *p, ptrdiff_t j, ptrdiff_t rest, const int whole, const int scaled,
                                 VEC *linear_sum, VEC *log_sum, const int summed, const int gradient)
{
    const VEC zero = V(set1)(0), one = V(set1)(1), infinite = V(set1)((REAL)INFINITY);
    const VEC down = V(set1)((REAL)(1 / LIFTED)), up = V(set1)((REAL)LIFTED);
    VEC x = AT(p->x, -(REAL)INFINITY), y = AT(p->y, 0), a = V(abs)(x);
    MASK below = V(lt)(x, zero);
    VEC e_up = NAME(exp_up)(p->k, a, V(set1)(p->floor));
    VEC inverse, log = NAME(log1p_up)(V(mul)(e_up, down), e_up, &inverse);
    const int weighted = p->u || p->positive != 1;
    VEC no = V(sub)(one, y), yes = y;
    if (weighted)
        yes = V(mul)(p->u ? V(mul)(AT(p->u, 0), V(set1)(p->positive)) : V(set1)(p->positive), y);
    /* Both with the sign of x, which so need not be taken from it and given to the slope. */
    VEC against = V(select)(below, V(sub)(zero, yes), no), right = V(select)(below, V(sub)(zero, no), yes), z = x;
    if (scaled) {
        const VEC s = V(set1)((REAL)p->k->scale), s_lo = V(set1)((REAL)(p->k->scale - (REAL)p->k->scale));
        z = V(select)(V(lt)(a, infinite), V(fma)(x, s, V(mul)(x, s_lo)), x);
    }
    if (weighted) /* else (1 - y) + y is 1 */
        log = V(mul)(log, V(add)(no, yes));
    VEC w = p->w ? AT(p->w, 0) : one, g = p->g ? AT(p->g, 0) : one; /* outputs may be inputs: all is read first */
    if (summed) {
        VEC linear = p->w ? V(mul)(against, w) : against;
        *linear_sum = V(select)(V(eq)(linear, zero), zero, V(mul)(linear, z));
        *log_sum = p->w ? V(mul)(log, w) : log;
    } else {
        VEC lost, factor = NAME(weighted)(p, w, p->v, 0, &lost);
        VEC linear = p->w ? NAME(mul2_any)(against, factor, lost) : V(mul)(against, factor);
        linear = V(select)(V(eq)(against, zero), zero, V(mul)(linear, z)); /* what it multiplies may be infinite */
        log = p->w ? NAME(mul2_any)(log, factor, lost) : V(mul)(log, factor);
        VEC loss = V(fma)(log, down, linear);
        if (whole)
            V(store)(p->loss + j, loss);
        else
            V(store_head)(p->loss + j, rest, loss);
    }
    if (gradient) {
        VEC lost, factor = NAME(weighted)(p, w, p->factor, p->factor_lo, &lost);
        VEC size = V(fnma)(right, e_up, V(mul)(against, up)), slope = V(mul)(size, inverse);
        if (scaled || weighted || p->w || p->g) {
            /* Divided with one rounding, since several products follow. */
            VEC e = V(mul)(e_up, down), whole = V(add)(one, e), lo = V(sub)(e, V(sub)(whole, one));
            VEC nearer = V(fma)(V(fnma)(slope, lo, V(fnma)(slope, whole, size)), inverse, slope);
            slope = V(select)(V(lt)(V(abs)(nearer), infinite), nearer, slope); /* but not an infinite one */
        }
        slope = p->w || scaled ? NAME(mul2_any)(slope, factor, lost) : V(mul)(slope, factor);
        if (p->g)
            slope = V(mul)(slope, g);
        slope = V(mul)(slope, down);
        if (whole)
            V(store)(p->dx + j, slope);
        else
            V(store_head)(p->dx + j, rest, slope);
    }
}

FS_INLINE void NAME(binary_flat)(const BINARY *given, ptrdiff_t from, ptrdiff_t c, ACC *s, const int summed,
                                 const int gradient)
{
    const BINARY local = *given, *p = &local; /* which no store can change */
    ACC linear = NAME(acc_zero)(), log = NAME(acc_zero)();
    /* Doubles are added to one another first, in fours: adding to an exact sum takes as long as seven additions. */
    enum { together = FS_FLOAT ? 1 : 4 };
#define STEP(width, whole, scaled, to, to_log)                                                                        \
    do {                                                                                                              \
        if (whole) {                                                                                                  \
            __builtin_prefetch((const char *)(p->x + j) + AHEAD);                                                     \
            __builtin_prefetch((const char *)(p->y + j) + AHEAD);                                                     \
            if (gradient)                                                                                             \
                __builtin_prefetch((const char *)(p->dx + j) + AHEAD, 1);                                             \
        }                                                                                                             \
        NAME(binary_step)(p, j, width, whole, scaled, &to, &to_log, summed, gradient);                                \
    } while (0)
#define LOOP(scaled)                                                                                                  \
    do {                                                                                                              \
        const ptrdiff_t end = from + c;                                                                               \
        ptrdiff_t j = from;                                                                                           \
        VEC a = V(set1)(0), b = a;                                                                                    \
        while (together > 1 && j + together * W <= end) {                                                             \
            VEC all = V(set1)(0), all_logs = all;                                                                     \
            for (int o = 0; o < together; o++, j += W) {                                                              \
                STEP(W, 1, scaled, a, b);                                                                             \
                all = V(add)(all, a);                                                                                 \
                all_logs = V(add)(all_logs, b);                                                                       \
            }                                                                                                         \
            NAME(acc_any)(&linear, all);                                                                              \
            NAME(acc_any)(&log, all_logs);                                                                            \
        }                                                                                                             \
        for (; j + W <= end; j += W) {                                                                                \
            STEP(W, 1, scaled, a, b);                                                                                 \
            NAME(acc_any)(&linear, a);                                                                                \
            NAME(acc_any)(&log, b);                                                                                   \
        }                                                                                                             \
        if (j < end) {                                                                                                \
            STEP(end - j, 0, scaled, a, b);                                                                           \
            NAME(acc_any)(&linear, a);                                                                                \
            NAME(acc_any)(&log, b);                                                                                   \
        }                                                                                                             \
    } while (0)
    if (p->k->scale == 1)
        LOOP(0);
    else
        LOOP(1);
#undef LOOP
#undef STEP
    s[0] = NAME(acc_done)(linear, 0);
    s[1] = NAME(acc_done)(log, 0);
}

/* Few classes are no case of their own: where no operand knows classes, rows are as long as one likes. */
#define DEFINE_BINARY(op, summed, gradient)                                                                           \
    static void NAME(op##_block)(void *context, ptrdiff_t b)                                                         \
    {                                                                                                                 \
        const BINARY *p = context;                                                                                    \
        double *out = p->t->scratch + 4 * b;                                                                          \
        const ptrdiff_t left = p->c - b * BLOCK;                                                                      \
        ACC s[2];                                                                                                     \
        NAME(binary_flat)(p, b *BLOCK, left < BLOCK ? left : BLOCK, s, summed, gradient);                             \
        if (summed) {                                                                                                 \
            NAME(sum_one)(s[0], out, out + 1);                                                                        \
            NAME(sum_one)(s[1], out + 2, out + 3);                                                                    \
        }                                                                                                             \
    }                                                                                                                 \
    static void NAME(op##_all)(const fs_tile *t)                                                                     \
    {                                                                                                                 \
        enum { X, Y, WEIGHT, U, V_, G_, LOSS = gradient ? 6 : 5, DX = 7, cols = 0 };                                   \
        const double scale = t->params[0];                                                                            \
        const EXPK k = NAME(exp_constants)(scale);                                                                    \
        FOR_GROUPS(i, g) {                                                                                            \
            SUMS linear, log;                                                                                         \
            for (ptrdiff_t r = 0; r < g; r++) {                                                                       \
                ACC s[2];                                                                                             \
                double v = ONE(V_, i + r);                                                                            \
                const wide f = (wide)scale * v * (gradient && summed ? ONE(G_, i + r) : 1);                           \
                BINARY p = {.t = t, .k = &k, .x = ROW(X, i + r), .y = ROW(Y, i + r), .c = t->c,                       \
                            .w = (const REAL *)t->data[WEIGHT], .u = (const REAL *)t->data[U],                        \
                            .g = gradient && !summed ? ROW(G_, i + r) : NULL,                                         \
                            .loss = summed ? NULL : ROW(LOSS, i + r), .dx = gradient ? ROW(DX, i + r) : NULL,         \
                            .floor = (REAL)(-LIFT_DROP / scale), .positive = (REAL)t->params[1], .v = (REAL)v,              \
                            .factor = (REAL)f, .factor_lo = isfinite((REAL)f) ? (REAL)(f - (REAL)f) : 0};           \
                if (t->c <= BLOCK) {                                                                                  \
                    NAME(binary_flat)(&p, 0, t->c, s, summed, gradient);                                              \
                } else {                                                                                              \
                    t->for_blocks(t, NAME(blocks)(t->c), NAME(op##_block), &p);                                       \
                    if (summed) {                                                                                     \
                        s[0] = NAME(merge_blocks)(t, t->c, 0);                                                        \
                        s[1] = NAME(merge_blocks)(t, t->c, 2);                                                        \
                    }                                                                                                 \
                }                                                                                                     \
                linear.of[r] = s[0];                                                                                  \
                log.of[r] = s[1];                                                                                     \
            }                                                                                                         \
            if (!summed)                                                                                              \
                continue;                                                                                             \
            double hi[ROOM], lo[ROOM], log_hi[ROOM], log_lo[ROOM];                                                    \
            NAME(sum_rows)(&linear, g, hi, lo, 0);                                                                    \
            NAME(sum_rows)(&log, g, log_hi, log_lo, 0);                                                               \
            for (ptrdiff_t r = 0; r < g; r++) {                                                                       \
                const wide down = 1 / LIFTED;                                                                         \
                wide sum = ((wide)hi[r] + lo[r]) + ((wide)log_hi[r] + log_lo[r]) * down;                              \
                ONE(LOSS, i + r) = (REAL)(sum * ONE(V_, i + r));                                                      \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    FS_INLINE void NAME(op##_rows)(const fs_tile *t, const int cols)                                                 \
    {                                                                                                                 \
        (void)cols;                                                                                                   \
        NAME(op##_all)(t);                                                                                           \
    }
DEFINE_BINARY(binary_cross_entropy, 0, 0)
DEFINE_BINARY(binary_cross_entropy_grad, 0, 1)
DEFINE_BINARY(binary_cross_entropy_sum, 1, 0)
DEFINE_BINARY(binary_cross_entropy_sum_grad, 1, 1)

#undef BINARY
#undef LIFT
#undef LIFTED
#undef LIFT_DROP
#undef DEFINE_BINARY
#undef LATER
#undef LOWEST
#undef RAISED
