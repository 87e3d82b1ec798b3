/* The operations on rows, one kernel each, over the passes and groups of rows.h.
 *
 * A kernel is a function NAME(op_rows)(t, NV), where NV is the number of vectors of a row of few classes, else 0, and an
 * entry in FS_OPS.  Its operands and parameters stand in t in the order of the table in fastsoftmax/_ops.py, which holds
 * the definition that the tests compare it with. */

#ifndef FS_OPS
#define FS_OPS(X)                                                                                                     \
    X(softmax)                                                                                                        \
    X(log_softmax)                                                                                                    \
    X(logsumexp)                                                                                                      \
    X(logsumexp_weighted)                                                                                             \
    X(softmax_jvp)                                                                                                    \
    X(log_softmax_jvp)                                                                                                \
    X(log_softmax_vjp)                                                                                                \
    X(logsumexp_jvp)                                                                                                  \
    X(logsumexp_vjp)                                                                                                  \
    X(softmax_jacobian)                                                                                               \
    X(log_softmax_jacobian)                                                                                           \
    X(cross_entropy_index)                                                                                            \
    X(cross_entropy_index_grad)                                                                                       \
    X(cross_entropy_probs)                                                                                            \
    X(cross_entropy_probs_grad)                                                                                       \
    X(total)
#endif

#define ROW(operand, r) ((REAL *)(t->data[operand] + (r)*t->step[operand]))
#define ONE(operand, r) (*ROW(operand, r))
#define LABEL(operand, r) (*(const int64_t *)(t->data[operand] + (r)*t->step[operand]))

/* Loop over the groups of a tile: rows i to i + g. */
#define FOR_GROUPS(i, g)                                                                                              \
    for (ptrdiff_t i = 0, g, most_ = NAME(group_rows)(t->c, NV); i < t->n && (g = NAME(group_size)(t->n - i, most_));  \
         i += g)

/* Where the terms of row r of a group are kept between the passes: few classes aside, in whole vectors; longer rows in
 * the result `y`, if `keep`; else nowhere, and they are computed again, with the same bits. */
#define ASIDE REAL aside[NV ? W * NV * W : 1]
#define TERMS(y, r) (NV ? aside + (r) * (NV * W) : keep ? (y) : NULL)

/* The term at j of a pass: as stored, or computed again. */
#define TERM                                                                                                          \
    (p->terms ? V(load)(p->terms + j)                                                                                 \
              : NAME(exp_term)(p->k, V(load)(p->x + j), V(set1)(p->base), V(set1)(p->floor), V(set1)(p->top)))
#define TERM_REST                                                                                                     \
    (NV ? V(load)(p->terms + j)                                                                                       \
        : p->terms ? V(load_head)(p->terms + j, rest, V(set1)(0))                                                     \
                   : NAME(exp_term)(p->k, V(load_head)(p->x + j, rest, V(set1)(-(REAL)INFINITY)), V(set1)(p->base),   \
                                    V(set1)(p->floor), V(set1)(p->top)))

/* The same expression at every vector of a row and at its rest, which AT loads and PUT stores. */
#define EMIT(from, expression)                                                                                        \
    do {                                                                                                              \
        EACH_VECTOR(                                                                                                  \
            NV, c,                                                                                                    \
            {                                                                                                         \
                enum { whole = 1 };                                                                                   \
                const ptrdiff_t rest = W;                                                                             \
                j += from;                                                                                            \
                if (!NV)                                                                                              \
                    __builtin_prefetch((const char *)(p->y + j) + AHEAD, 1);                                          \
                VEC emitted_ = (expression);                                                                                 \
                V(store)(p->y + j, emitted_);                                                                          \
                j -= from;                                                                                            \
                (void)rest;                                                                                           \
                (void)whole;                                                                                          \
            },                                                                                                        \
            {                                                                                                         \
                enum { whole = 0 };                                                                                   \
                j += from;                                                                                            \
                VEC emitted_ = (expression);                                                                                 \
                V(store_head)(p->y + j, rest, emitted_);                                                                     \
                j -= from;                                                                                            \
                (void)whole;                                                                                          \
            });                                                                                                       \
    } while (0)
#define AT(pointer, fill) (whole ? V(load)((pointer) + j) : V(load_head)((pointer) + j, rest, V(set1)((REAL)(fill))))
#define TERM_HERE (whole ? TERM : TERM_REST)

/* Sums and forward terms of a group: maxima, terms, sums. */
#define GROUP_TERMS(X_, y, i, g)                                                                                      \
    do {                                                                                                              \
        SUM sums[W];                                                                                                  \
        NAME(group_max)(&G, t, X_, i, g, NV);                                                                         \
        NAME(group_prepare)(&G, &k);                                                                                  \
        for (ptrdiff_t r = 0; r < g; r++)                                                                             \
            sums[r] = NAME(row_exp_sum)(t, &k, ROW(X_, i + r), t->c, G.base[r], G.floor[r], G.top[r], TERMS(y, r),    \
                                        g * t->step[X_], NV);                                                         \
        for (ptrdiff_t r = g; r < W; r++)                                                                             \
            sums[r] = sums[0];                                                                                        \
        NAME(group_sums)(&G, sums);                                                                                   \
    } while (0)

#define FORWARD_PASS(X_, y_, r)                                                                                       \
    (PASS) {                                                                                                          \
        .t = t, .k = &k, .c = t->c, .x = ROW(X_, i + r), .y = (y_), .terms = TERMS(y_, r), .base = G.base[r],         \
        .floor = G.floor[r], .top = G.top[r], .m = G.m[r]                                                             \
    }

/* --- forward -------------------------------------------------------------------------------------------------------- */

/* flag: one class has more than half; it gets `q`, 1 minus the others: next to 1 ULPs are finest, and none is above. */
FS_INLINE void NAME(emit_scaled)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int NV)
{
    const VEC hi = V(set1)(p->hi), lo = V(set1)(p->lo), top = V(set1)(p->q), half = V(set1)((REAL)0.5);
    if (p->flag)
        EMIT(from, ({
                 VEC y = NAME(mul2)(TERM_HERE, hi, lo);
                 V(select)(V(lt)(half, y), top, y);
             }));
    else
        EMIT(from, NAME(mul2)(TERM_HERE, hi, lo));
}
DEFINE_EMIT(emit_scaled)

FS_INLINE void NAME(softmax_rows)(const fs_tile *t, const int NV)
{
    enum { X, Y };
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const int empty = t->params[1] != 0, keep = t->c <= SAVE_LIMIT;
    ASIDE;
    GROUP G;
    REAL hi[W], lo[W], top[W];
    FOR_GROUPS(i, g) {
        if (NV) {
            NAME(fetch_ahead)(t, X, i, g, 0);
            NAME(fetch_ahead)(t, Y, i, g, 1);
        }
        GROUP_TERMS(X, ROW(Y, i + r), i, g);
        NAME(group_inverse)(&G, NULL, hi, lo);
        for (int r = 0; r < W; r++)
            top[r] = (REAL)(1 - G.rest[r] / (1 + G.rest[r]));
        for (ptrdiff_t r = 0; r < g; r++) {
            PASS p = FORWARD_PASS(X, ROW(Y, i + r), r);
            p.hi = hi[r];
            p.lo = lo[r];
            p.q = top[r];
            p.flag = G.rest[r] < 0.9;
            if (__builtin_expect(G.special >> r & 1, 0))
                NAME(fill)(p.y, t->c, G.kind[r] == IS_EMPTY && empty ? 0 : (REAL)NAN);
            else
                NAME(emit_scaled_row)(&p, NV);
        }
    }
}

/* scale (x - m) - log, where x - m <= 0 and -log <= 0 do not cancel. */
FS_INLINE void NAME(emit_log)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int NV)
{
    const VEC m = V(set1)(p->m), log = V(set1)(p->hi), log_lo = V(set1)(p->lo);
    if (p->flag) { /* scale is 1 */
        EMIT(from, V(sub)(V(sub)(V(sub)(AT(p->x, 0), m), log), log_lo));
    } else {
        const VEC s = V(set1)(p->u), s_lo = V(set1)(p->v), low = V(set1)(-(REAL)INFINITY);
        EMIT(from, ({
                 VEC d = V(sub)(AT(p->x, 0), m);
                 V(select)(V(eq)(d, low), low, V(fma)(d, s, V(fma)(d, s_lo, V(sub)(V(set1)(0), log))));
             }));
    }
}
DEFINE_EMIT(emit_log)

FS_INLINE void NAME(log_softmax_rows)(const fs_tile *t, const int NV)
{
    enum { X, Y };
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const int empty = t->params[1] != 0, keep = 0;
    ASIDE;
    GROUP G;
    FOR_GROUPS(i, g) {
        if (NV) {
            NAME(fetch_ahead)(t, X, i, g, 0);
            NAME(fetch_ahead)(t, Y, i, g, 1);
        }
        GROUP_TERMS(X, NULL, i, g);
        NAME(group_log)(&G, t, &k, X, i, g);
        for (ptrdiff_t r = 0; r < g; r++) {
            PASS p = FORWARD_PASS(X, ROW(Y, i + r), r);
            p.hi = (REAL)G.log[r];
            p.lo = (REAL)((G.log_hi[r] - p.hi) + G.log_lo[r]);
            p.u = (REAL)k.scale;
            p.v = (REAL)(k.scale - p.u);
            p.flag = k.scale == 1;
            if (__builtin_expect(G.special >> r & 1, 0))
                NAME(fill)(p.y, t->c, G.kind[r] == IS_EMPTY && empty ? -(REAL)INFINITY : (REAL)NAN);
            else
                NAME(emit_log_row)(&p, NV);
        }
    }
}

FS_INLINE void NAME(logsumexp_rows)(const fs_tile *t, const int NV)
{
    enum { X, S };
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const int keep = 0;
    GROUP G;
    (void)keep;
    FOR_GROUPS(i, g) {
        REAL *aside = NULL;
        (void)aside;
        if (NV)
            NAME(fetch_ahead)(t, X, i, g, 0);
#undef TERMS
#define TERMS(y, r) NULL
        GROUP_TERMS(X, NULL, i, g);
#undef TERMS
#define TERMS(y, r) (NV ? aside + (r) * (NV * W) : keep ? (y) : NULL)
        NAME(group_log)(&G, t, &k, X, i, g);
        double m[W], s[W];
        for (int r = 0; r < W; r++)
            m[r] = G.m[r];
        for (int r = 0; r < W; r++)
            s[r] = NAME(plus_log)(&G, m[r], k.scale, r);
        for (ptrdiff_t r = 0; r < g; r++) {
            if (__builtin_expect(G.special >> r & 1, 0))
                s[r] = G.kind[r] == IS_NAN ? NAN : m[r];
            ONE(S, i + r) = (REAL)s[r];
        }
    }
}

/* The sum of b exp, both signs; b = 0 excludes a class whatever x is there. */
FS_INLINE void NAME(weighted_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, SUM *s, const int NV)
{
    const VEC zero = V(set1)(0), low = V(set1)(-(REAL)INFINITY);
    const VEC vb = V(set1)(p->base), vl = V(set1)(p->floor), vt = V(set1)(p->top);
    const REAL *x = p->x + from, *b = p->other + from;
    ACC a = NAME(acc_zero)();
#define WEIGHTED(load_x, load_b)                                                                                      \
    do {                                                                                                              \
        VEC f = load_b, e = NAME(exp_term)(p->k, V(select)(V(eq)(f, zero), low, load_x), vb, vl, vt);                 \
        NAME(acc_product)(&a, f, e);                                                                                  \
    } while (0)
    EACH_VECTOR(NV, c, WEIGHTED(V(load)(x + j), V(load)(b + j)),
                WEIGHTED(V(load_head)(x + j, rest, low), V(load_head)(b + j, rest, zero)));
#undef WEIGHTED
    s[0] = NAME(acc_done)(a, 0);
    s[1] = s[0];
}
DEFINE_SUMS(weighted_sums)

FS_INLINE void NAME(logsumexp_weighted_rows)(const fs_tile *t, const int NV)
{
    enum { X, B, S, SIGN };
    const EXPK k = NAME(exp_constants)(t->params[0]);
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const REAL *x = ROW(X, i), *b = ROW(B, i);
        REAL m = -(REAL)INFINITY;
        int broken = 0;
        for (ptrdiff_t j = 0; j < t->c; j++) {
            broken |= b[j] != 0 && (x[j] != x[j] || !(fabs((double)b[j]) < INFINITY));
            m = b[j] != 0 && x[j] > m ? x[j] : m;
        }
        double sum, s;
        if (broken || m == (REAL)INFINITY || m == -(REAL)INFINITY) {
            /* By the definition, in scalars: rows that hold a NaN or an infinity. */
            double shift = m == (REAL)INFINITY || m == -(REAL)INFINITY ? 0 : m;
            sum = 0;
            for (ptrdiff_t j = 0; j < t->c; j++)
                if (b[j] != 0)
                    sum += b[j] * exp(k.scale * (x[j] - shift));
            s = log(fabs(sum)) + k.scale * shift;
        } else {
            GROUP G;
            for (int r = 0; r < W; r++)
                G.m[r] = m;
            NAME(group_prepare)(&G, &k);
            PASS p = {.t = t, .k = &k, .c = t->c, .x = x, .other = b, .base = G.base[0], .floor = G.floor[0], .top = G.top[0]};
            SUM first, second;
            NAME(weighted_sums_row)(&p, &first, &second, NV);
            double hi, lo;
            NAME(sum_one)(first, &hi, &lo);
            sum = hi + lo;
            double u = fabs(sum) / G.top_term[0];
            u -= u * (G.top_lo[0] / G.top_term[0]);
            vd low, high = d_log(d_set1(u), d_set1(0), LOG, &low);
            d_store(G.log, d_add(high, low));
            d_store(G.log_hi, high);
            d_store(G.log_lo, low);
            s = sum == 0 ? -INFINITY : u < 0x1p-1000 ? log(u) + k.scale * m : NAME(plus_log)(&G, m, k.scale, 0);
        }
        ONE(S, i) = (REAL)s;
        ONE(SIGN, i) = sum > 0 ? 1 : sum < 0 ? -1 : sum == 0 ? 0 : (REAL)NAN;
    }
}

/* --- derivatives, from the saved output ---------------------------------------------------------------------------------- */

/* exp(x) of a vector of log-probabilities. */
FS_INLINE VEC NAME(prob)(const EXPK *k, VEC logp)
{
    return NAME(exp_term)(k, logp, V(set1)(0), V(set1)((REAL)-DROP), V(set1)(0));
}

/* Fetch the next group's row while this one is computed, if the pass knows where it is. */
#define FETCH_NEXT(x, j)                                                                                              \
    do {                                                                                                              \
        if (!NV)                                                                                                      \
            __builtin_prefetch((const char *)((x) + (j)) + p->next, 0, 2);                                            \
    } while (0)

/* sum p and sum p (t - u) where p is not 0.  flag: x holds log p. */
FS_INLINE void NAME(centre_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, SUM *s, const int NV)
{
    const VEC zero = V(set1)(0), ref = V(set1)(p->u);
    const REAL *x = p->x + from, *t = p->other + from;
    const REAL fill = p->flag ? -(REAL)INFINITY : 0;
    ACC a = NAME(acc_zero)(), b = NAME(acc_zero)();
#define CENTRE(load_p, load_t)                                                                                        \
    do {                                                                                                              \
        VEC q = load_p;                                                                                               \
        if (p->flag)                                                                                                  \
            q = NAME(prob)(p->k, q);                                                                                  \
        NAME(acc_any)(&a, q);                                                                                         \
        NAME(acc_times_difference)(&b, q, V(select)(V(eq)(q, zero), ref, load_t), ref);                               \
    } while (0)
    EACH_VECTOR(NV, c, CENTRE(V(load)(x + j), V(load)(t + j)); FETCH_NEXT(x, j); FETCH_NEXT(t, j),
                CENTRE(V(load_head)(x + j, rest, V(set1)(fill)), V(load_head)(t + j, rest, ref)));
#undef CENTRE
    s[0] = NAME(acc_done)(a, 0);
    s[1] = NAME(acc_done)(b, 0);
}
DEFINE_SUMS(centre_sums)

/* scale p (t - centre), or scale (t - centre) if flag; 0 for classes of probability 0. */
FS_INLINE void NAME(emit_centred)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int NV)
{
    const VEC zero = V(set1)(0), hi = V(set1)(p->hi), lo = V(set1)(p->lo), s = V(set1)(p->v);
    const VEC dead = V(set1)(p->flag ? -(REAL)INFINITY : 0);
    if (p->flag) {
        EMIT(from, ({
                 VEC h = V(sub)(V(sub)(AT(p->other, 0), hi), lo);
                 V(select)(V(eq)(AT(p->x, 0), dead), zero, V(mul)(h, s));
             }));
    } else {
        EMIT(from, ({
                 /* p times the unrounded difference: rounded first, it would err in the same direction in all classes
                  * of a binade, and the row would not sum to 0. */
                 VEC q = AT(p->x, 0), x = AT(p->other, 0), h = V(sub)(x, hi), back = V(sub)(h, x);
                 VEC rest_ = V(sub)(V(sub)(x, V(sub)(h, back)), V(add)(hi, back));
                 rest_ = V(select)(V(lt)(V(abs)(h), V(set1)((REAL)INFINITY)), rest_, zero);
                 V(select)(V(eq)(q, dead), zero, NAME(mul2)(V(mul)(q, s), h, V(sub)(rest_, lo)));
             }));
    }
}
DEFINE_EMIT(emit_centred)

/* Column of the first largest element, 0 if there is none (NaN). */
FS_INLINE ptrdiff_t NAME(find)(const REAL *x, ptrdiff_t c, REAL m)
{
    const VEC v = V(set1)(m);
    ptrdiff_t j = 0;
    for (; j + W <= c; j += W) {
        unsigned bits = V(bits)(V(eq)(V(load)(x + j), v));
        if (bits)
            return j + __builtin_ctz(bits);
    }
    if (j < c) {
        unsigned bits = V(bits)(V(eq)(V(load_head)(x + j, c - j, V(set1)((REAL)NAN)), v));
        if (bits)
            return j + __builtin_ctz(bits);
    }
    return 0;
}

/* Softmax and log-softmax times a tangent; `logs` tells which. */
FS_INLINE void NAME(centred_rows)(const fs_tile *t, const int NV, const int logs)
{
    enum { P, T, Y };
    const EXPK k = NAME(exp_constants)(1);
    const double scale = t->params[0];
    GROUP G;
    FOR_GROUPS(i, g) {
        if (NV) {
            NAME(fetch_ahead)(t, P, i, g, 0);
            NAME(fetch_ahead)(t, T, i, g, 0);
            NAME(fetch_ahead)(t, Y, i, g, 1);
        }
        SUM total[W], dot[W];
        REAL ref[W];
        double dot_hi[W], dot_lo[W];
        NAME(group_max)(&G, t, P, i, g, NV);
        for (ptrdiff_t r = 0; r < g; r++) {
            const REAL *p = ROW(P, i + r), *x = ROW(T, i + r);
            ptrdiff_t at = NAME(find)(p, t->c, G.m[r]);
            ref[r] = p[at] == (logs ? -(REAL)INFINITY : 0) ? 0 : x[at];
            PASS pass = {.t = t, .k = &k, .c = t->c, .x = p, .other = x, .u = ref[r], .flag = logs, .next = g * t->step[P]};
            NAME(centre_sums_row)(&pass, &total[r], &dot[r], NV);
        }
        for (ptrdiff_t r = g; r < W; r++) {
            total[r] = total[0];
            dot[r] = dot[0];
        }
        NAME(sum_rows)(total, G.s, G.s_lo);
        NAME(sum_rows)(dot, dot_hi, dot_lo);
        for (ptrdiff_t r = 0; r < g; r++) {
            /* The rounding of a p that sums to nearly 1 is divided out; any other p is taken to the letter.  The centre has
             * two parts: every term of the row gets its error, which is relative to the centre, not to the term. */
            double lack = (1 - G.s[r]) - G.s_lo[r], sum = G.s[r], centre, low;
            if (fabs(lack) <= UNIT_SUM_BAND) {
                centre = dot_hi[r] / sum;
                low = (fma(-centre, sum, dot_hi[r]) - centre * G.s_lo[r] + dot_lo[r]) / sum;
            } else {
                centre = dot_hi[r] - ref[r] * lack;
                low = dot_lo[r];
            }
            /* ref + centre + low in two parts; where t is ref, what remains is exactly the centre. */
            PASS pass = {.t = t, .k = &k, .c = t->c, .x = ROW(P, i + r), .other = ROW(T, i + r), .y = ROW(Y, i + r),
                         .v = (REAL)scale, .flag = logs};
            pass.hi = (REAL)(ref[r] + centre);
            double key = ref[r], hi = pass.hi, rest = fabs(key) < fabs(centre) ? (centre - hi) + key : (key - hi) + centre;
            pass.lo = fabs(hi) < INFINITY ? (REAL)(rest + low) : 0;
            NAME(emit_centred_row)(&pass, NV);
        }
    }
}

FS_INLINE void NAME(softmax_jvp_rows)(const fs_tile *t, const int NV) { NAME(centred_rows)(t, NV, 0); }
FS_INLINE void NAME(log_softmax_jvp_rows)(const fs_tile *t, const int NV) { NAME(centred_rows)(t, NV, 1); }

/* sum of t where x is alive: p != 0 (times p), or log p != -inf (flag; without p). */
FS_INLINE void NAME(alive_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, SUM *s, const int NV)
{
    const VEC zero = V(set1)(0), dead = V(set1)(p->flag ? -(REAL)INFINITY : 0);
    const REAL *x = p->x + from, *t = p->other + from;
    ACC a = NAME(acc_zero)();
#define ALIVE(load_x, load_t)                                                                                         \
    do {                                                                                                              \
        VEC q = load_x, h = V(select)(V(eq)(q, dead), zero, load_t);                                                  \
        if (p->flag)                                                                                                  \
            NAME(acc_any)(&a, h);                                                                                     \
        else                                                                                                          \
            NAME(acc_product)(&a, q, h);                                                                              \
    } while (0)
    EACH_VECTOR(NV, c, ALIVE(V(load)(x + j), V(load)(t + j)); FETCH_NEXT(x, j); FETCH_NEXT(t, j),
                ALIVE(V(load_head)(x + j, rest, dead), V(load_head)(t + j, rest, zero)));
#undef ALIVE
    s[0] = NAME(acc_done)(a, 0);
    s[1] = s[0];
}
DEFINE_SUMS(alive_sums)

/* scale (g - p sum g), p = exp(x) */
FS_INLINE void NAME(emit_log_vjp)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int NV)
{
    const VEC zero = V(set1)(0), hi = V(set1)(p->hi), lo = V(set1)(p->lo), s = V(set1)(p->v);
    const VEC dead = V(set1)(-(REAL)INFINITY);
    EMIT(from, ({
             VEC x = AT(p->x, 0), q = NAME(prob)(p->k, x);
             VEC d = V(fnma)(q, lo, V(fnma)(q, hi, AT(p->other, 0)));
             V(select)(V(eq)(x, dead), zero, V(mul)(d, s));
         }));
}
DEFINE_EMIT(emit_log_vjp)

FS_INLINE void NAME(log_softmax_vjp_rows)(const fs_tile *t, const int NV)
{
    enum { P, T, Y };
    const EXPK k = NAME(exp_constants)(1);
    FOR_GROUPS(i, g) {
        if (NV) {
            NAME(fetch_ahead)(t, P, i, g, 0);
            NAME(fetch_ahead)(t, T, i, g, 0);
            NAME(fetch_ahead)(t, Y, i, g, 1);
        }
        SUM total[W], same;
        double hi[W], lo[W];
        for (ptrdiff_t r = 0; r < g; r++) {
            PASS p = {.t = t, .c = t->c, .x = ROW(P, i + r), .other = ROW(T, i + r), .flag = 1, .next = g * t->step[P]};
            NAME(alive_sums_row)(&p, &total[r], &same, NV);
        }
        for (ptrdiff_t r = g; r < W; r++)
            total[r] = total[0];
        NAME(sum_rows)(total, hi, lo);
        for (ptrdiff_t r = 0; r < g; r++) {
            PASS p = {.t = t, .k = &k, .c = t->c, .x = ROW(P, i + r), .other = ROW(T, i + r), .y = ROW(Y, i + r),
                      .hi = (REAL)hi[r], .v = (REAL)t->params[0]};
            p.lo = (REAL)(hi[r] - p.hi + lo[r]);
            NAME(emit_log_vjp_row)(&p, NV);
        }
    }
}

FS_INLINE void NAME(logsumexp_jvp_rows)(const fs_tile *t, const int NV)
{
    enum { P, T, S };
    FOR_GROUPS(i, g) {
        if (NV) {
            NAME(fetch_ahead)(t, P, i, g, 0);
            NAME(fetch_ahead)(t, T, i, g, 0);
        }
        SUM dot[W], same;
        double hi[W], lo[W];
        for (ptrdiff_t r = 0; r < g; r++) {
            PASS p = {.t = t, .c = t->c, .x = ROW(P, i + r), .other = ROW(T, i + r), .next = g * t->step[P]};
            NAME(alive_sums_row)(&p, &dot[r], &same, NV);
        }
        for (ptrdiff_t r = g; r < W; r++)
            dot[r] = dot[0];
        NAME(sum_rows)(dot, hi, lo);
        for (ptrdiff_t r = 0; r < g; r++)
            ONE(S, i + r) = (REAL)((hi[r] + lo[r]) * t->params[0]);
    }
}

FS_INLINE void NAME(emit_times)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int NV)
{
    const VEC zero = V(set1)(0), f = V(set1)(p->u), f_lo = V(set1)(p->v);
    EMIT(from, ({
             VEC q = AT(p->x, 0);
             V(select)(V(eq)(q, zero), zero, NAME(mul2)(q, f, f_lo));
         }));
}
DEFINE_EMIT(emit_times)

FS_INLINE void NAME(logsumexp_vjp_rows)(const fs_tile *t, const int NV)
{
    enum { P, G_, Y };
    for (ptrdiff_t i = 0; i < t->n; i++) {
        double g = ONE(G_, i), f = g * t->params[0];
        PASS p = {.t = t, .c = t->c, .x = ROW(P, i), .y = ROW(Y, i), .u = (REAL)f};
        p.v = (REAL)(FS_FLOAT ? f - p.u : fma(g, t->params[0], -f));
        if (!(fabs(f) < INFINITY))
            p.v = 0;
        NAME(emit_times_row)(&p, NV);
    }
}

FS_INLINE void NAME(softmax_jacobian_rows)(const fs_tile *t, const int NV)
{
    enum { P, J };
    const REAL s = (REAL)t->params[0];
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const REAL *p = ROW(P, i);
        REAL *out = ROW(J, i);
        ptrdiff_t top = 0;
        long double hi = 0, others = 0;
        for (ptrdiff_t j = 0; j < t->c; j++) {
            top = p[j] > p[top] ? j : top;
            hi += p[j];
        }
        for (ptrdiff_t j = 0; j < t->c; j++)
            others += j == top ? 0 : p[j];
        int unit = fabsl(hi - 1) <= UNIT_SUM_BAND;
        for (ptrdiff_t j = 0; j < t->c; j++) {
            PASS pass = {.t = t, .c = t->c, .x = p, .y = out + j * t->c, .u = -p[j] * s};
            NAME(emit_times)(&pass, 0, t->c, NV);
            long double rest = !unit ? 1 - (long double)p[j] : j == top ? others : hi - p[j];
            out[j * t->c + j] = (REAL)(p[j] * rest * t->params[0]);
        }
    }
}

FS_INLINE void NAME(log_softmax_jacobian_rows)(const fs_tile *t, const int NV)
{
    enum { P, J };
    const EXPK k = NAME(exp_constants)(1);
    const double s = t->params[0];
    (void)NV;
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const REAL *logp = ROW(P, i);
        REAL *out = ROW(J, i);
        for (ptrdiff_t j = 0; j < t->c; j += W) {
            ptrdiff_t n = t->c - j < W ? t->c - j : W;
            VEC p = NAME(prob)(&k, V(load_head)(logp + j, n, V(set1)(0)));
            VEC v = V(mul)(p, V(set1)((REAL)-s));
            for (ptrdiff_t r = 0; r < t->c; r++)
                V(store_head)(out + r * t->c + j, n, v);
        }
        for (ptrdiff_t j = 0; j < t->c; j++) {
            if (logp[j] == -(REAL)INFINITY)
                NAME(fill)(out + j * t->c, t->c, 0);
            else
                out[j * t->c + j] = (REAL)(-s * expm1((double)logp[j]));
        }
    }
}

/* --- cross-entropy ------------------------------------------------------------------------------------------------------- */

enum { NAME(SCALE), NAME(EMPTY), NAME(KEEP), NAME(SPREAD), NAME(ZLOSS), NAME(IGNORE) };

/* The first n lanes of a class vector, or of ones if it is NULL; 0 beyond. */
FS_INLINE VEC NAME(head_of)(const REAL *w, ptrdiff_t n)
{
    REAL ones[W];
    V(store)(ones, V(set1)(1));
    return V(load_head)(w ? w : ones, n, V(set1)(0));
}

/* sum w and sum w (m - x): what smoothing adds to a loss. */
FS_INLINE void NAME(spread_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, SUM *s, const int NV)
{
    const VEC zero = V(set1)(0), one = V(set1)(1), m = V(set1)(p->m);
    const REAL *x = p->x + from, *w = p->w ? p->w + from : NULL;
    ACC a = NAME(acc_zero)(), b = NAME(acc_zero)();
#define SPREAD_SUM(load_x, load_w)                                                                                    \
    do {                                                                                                              \
        VEC q = load_w, d = V(select)(V(eq)(q, zero), zero, V(sub)(m, load_x));                                       \
        NAME(acc_any)(&a, q);                                                                                         \
        NAME(acc_product)(&b, q, d);                                                                                  \
    } while (0)
    EACH_VECTOR(NV, c, SPREAD_SUM(V(load)(x + j), w ? V(load)(w + j) : one),
                SPREAD_SUM(V(load_head)(x + j, rest, m), NAME(head_of)(w ? w + j : NULL, rest)));
#undef SPREAD_SUM
    s[0] = NAME(acc_done)(a, 0);
    s[1] = NAME(acc_done)(b, 0);
}
DEFINE_SUMS(spread_sums)

/* Gradient against class indices but for the target's column: term a - u w. */
FS_INLINE void NAME(emit_index)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int NV)
{
    const VEC hi = V(set1)(p->hi), lo = V(set1)(p->lo), u = V(set1)(p->u);
    if (p->u == 0)
        EMIT(from, NAME(mul2)(TERM_HERE, hi, lo));
    else if (p->w)
        EMIT(from, V(fnma)(u, AT(p->w, 0), NAME(mul2)(TERM_HERE, hi, lo)));
    else
        EMIT(from, V(sub)(NAME(mul2)(TERM_HERE, hi, lo), u));
}
DEFINE_EMIT(emit_index)

FS_INLINE void NAME(index_rows)(const fs_tile *t, const int NV, const int gradient)
{
    enum { X, LABELS, WEIGHT, V_, G_GRAD, LOSS = 4, LOSS_GRAD = 5, DX = 6 };
    const double *o = t->params;
    const double scale = o[NAME(SCALE)], one_hot = o[NAME(KEEP)], spread = o[NAME(SPREAD)], zloss = o[NAME(ZLOSS)];
    const EXPK k = NAME(exp_constants)(scale);
    const int empty = o[NAME(EMPTY)] != 0;
    const int64_t ignore = (int64_t)o[NAME(IGNORE)];
    const REAL *w = (const REAL *)t->data[WEIGHT];
    const int keep = gradient && t->c <= SAVE_LIMIT && t->data[DX] != t->data[X];
    ASIDE;
    GROUP G;
    FOR_GROUPS(i, g) {
        if (NV) {
            NAME(fetch_ahead)(t, X, i, g, 0);
            if (gradient)
                NAME(fetch_ahead)(t, DX, i, g, 1);
        }
        GROUP_TERMS(X, gradient ? ROW(DX, i + r) : NULL, i, g);
        NAME(group_log)(&G, t, &k, X, i, g);
        REAL at[W], term[W], hi[W], lo[W];
        double m[W], wy[W], v[W], up[W], weights[W], weights_lo[W], spreads[W], factor[W], target[W];
        unsigned ignored = 0;
        for (ptrdiff_t r = 0; r < W; r++) {
            at[r] = G.m[r];
            m[r] = G.m[r];
            wy[r] = v[r] = up[r] = 1;
            weights[r] = weights_lo[r] = spreads[r] = 0;
        }
        for (ptrdiff_t r = 0; r < g; r++) {
            int64_t y = LABEL(LABELS, i + r);
            if (y == ignore) {
                ignored |= 1u << r;
                y = 0;
            }
            at[r] = ROW(X, i + r)[y];
            wy[r] = w ? w[y] : 1;
            v[r] = ONE(V_, i + r);
            if (gradient)
                up[r] = ONE(G_GRAD, i + r);
        }
        if (spread != 0) {
            SUM a[W], b[W];
            double low[W];
            for (ptrdiff_t r = 0; r < W; r++) {
                PASS p = {.t = t, .c = t->c, .x = ROW(X, i + (r < g ? r : 0)), .w = w, .m = G.m[r < g ? r : 0]};
                if (r < g) {
                    NAME(spread_sums_row)(&p, &a[r], &b[r], NV);
                } else {
                    a[r] = a[0];
                    b[r] = b[0];
                }
            }
            NAME(sum_rows)(a, weights, weights_lo);
            NAME(sum_rows)(b, spreads, low);
        }
        if (gradient)
            V(store)(term, NAME(exp_term)(&k, V(load)(at), V(load)(G.base), V(load)(G.floor), V(load)(G.top)));
        /* Lane by lane, without branches, for the compiler to vectorise: few classes make many rows. */
        double q[W], x_at[W], loss[W], others[W];
        for (int r = 0; r < W; r++)
            x_at[r] = at[r];
        for (int r = 0; r < W; r++) {
            q[r] = one_hot * wy[r];
            double nll = NAME(plus_log)(&G, m[r] - x_at[r], scale, r);
            loss[r] = q[r] == 0 ? 0 * G.log[r] : q[r] * nll;
            others[r] = 0;
        }
        if (spread != 0)
            for (int r = 0; r < W; r++) {
                loss[r] = (double)(loss[r] + spread * ((wide)scale * spreads[r] + (wide)weights[r] * G.log[r]));
                others[r] = spread * ((weights[r] - wy[r]) + weights_lo[r]);
            }
        if (zloss != 0)
            for (int r = 0; r < W; r++) {
                double lse = NAME(plus_log)(&G, m[r], scale, r);
                loss[r] = (double)(loss[r] + (wide)zloss * lse * lse);
                others[r] += 2 * zloss * lse;
            }
        for (int r = 0; r < W; r++)
            loss[r] *= v[r];
        if (gradient) {
            double e[W];
            for (int r = 0; r < W; r++)
                e[r] = term[r];
            for (int r = 0; r < W; r++) {
                /* At the target, (sum of the other q) p - q (1 - p), with 1 - p from the sum over the other classes. */
                double sum = G.s[r] + G.s_lo[r], f = v[r] * up[r] * scale, qy = q[r] + spread * wy[r];
                double left = x_at[r] == m[r] ? G.others[r] : (G.s[r] - e[r]) + G.s_lo[r];
#if FS_FLOAT
                /* Divisions are what takes the time with few classes; in double, a product will do. */
                double inverse = 1 / sum, p = e[r] * inverse, not_p = left * inverse;
#else
                double p = e[r] / sum, not_p = left / sum;
#endif
                target[r] = f * (others[r] * p - qy * not_p);
                factor[r] = f * (others[r] + qy);
            }
        }
        for (ptrdiff_t r = 0; r < g; r++) {
            double value = loss[r];
            if (__builtin_expect(G.special >> r & 1, 0)) {
                int any = one_hot * wy[r] != 0 || spread != 0 || zloss != 0;
                value = G.kind[r] == IS_EMPTY && empty ? (any ? v[r] * INFINITY : 0) : NAN;
            }
            ONE(gradient ? LOSS_GRAD : LOSS, i + r) = ignored >> r & 1 ? 0 : (REAL)value;
        }
        if (!gradient)
            continue;
        NAME(group_inverse)(&G, factor, hi, lo);
        for (ptrdiff_t r = 0; r < g; r++) {
            PASS p = FORWARD_PASS(X, ROW(DX, i + r), r);
            if (ignored >> r & 1) {
                NAME(fill)(p.y, t->c, 0);
            } else if (__builtin_expect(G.special >> r & 1, 0)) {
                NAME(fill)(p.y, t->c, G.kind[r] == IS_EMPTY && empty ? 0 : (REAL)NAN);
            } else {
                p.w = w;
                p.hi = hi[r];
                p.lo = lo[r];
                p.u = (REAL)(v[r] * up[r] * scale * spread);
                NAME(emit_index_row)(&p, NV);
                p.y[LABEL(LABELS, i + r)] = (REAL)target[r];
            }
        }
    }
}

FS_INLINE void NAME(cross_entropy_index_rows)(const fs_tile *t, const int NV) { NAME(index_rows)(t, NV, 0); }
FS_INLINE void NAME(cross_entropy_index_grad_rows)(const fs_tile *t, const int NV) { NAME(index_rows)(t, NV, 1); }

/* q = w (keep t + spread) of a vector of targets; u is keep, v is spread. */
FS_INLINE VEC NAME(smoothed)(const PASS *p, VEC t, VEC w, VEC keep, VEC spread)
{
    if (p->flag)
        t = V(fma)(t, keep, spread);
    return p->w ? V(mul)(t, w) : t;
}

/* sum q and sum q (m - x), where a zero q counts nothing. */
FS_INLINE void NAME(probs_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, SUM *s, const int NV)
{
    const VEC zero = V(set1)(0), m = V(set1)(p->m), u = V(set1)(p->u), v = V(set1)(p->v);
    const REAL *x = p->x + from, *t = p->other + from, *w = p->w ? p->w + from : NULL;
    ACC a = NAME(acc_zero)(), b = NAME(acc_zero)();
#define PROBS_SUM(q_, load_x)                                                                                         \
    do {                                                                                                              \
        VEC q = q_, d = V(select)(V(eq)(q, zero), zero, V(sub)(m, load_x));                                           \
        NAME(acc_any)(&a, q);                                                                                         \
        NAME(acc_product)(&b, q, d);                                                                                  \
    } while (0)
    /* The lanes beyond the rest have x = m, and q counts only if it is cleared there, too. */
    EACH_VECTOR(NV, c, PROBS_SUM(NAME(smoothed)(p, V(load)(t + j), w ? V(load)(w + j) : zero, u, v), V(load)(x + j)),
                {
                    REAL lanes[W];
                    V(store)(lanes, NAME(smoothed)(p, V(load_head)(t + j, rest, zero),
                                                   w ? V(load_head)(w + j, rest, zero) : zero, u, v));
                    PROBS_SUM(V(load_head)(lanes, rest, zero), V(load_head)(x + j, rest, m));
                });
#undef PROBS_SUM
    s[0] = NAME(acc_done)(a, 0);
    s[1] = NAME(acc_done)(b, 0);
}
DEFINE_SUMS(probs_sums)

/* factor ((all - q) p - q (1 - p)); hi, lo: 1 / sum; base of the scalars: m all, top-class complement in `q`. */
FS_INLINE void NAME(emit_probs)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int NV)
{
    const VEC hi = V(set1)(p->hi), lo = V(set1)(p->lo), u = V(set1)(p->u), v = V(set1)(p->v), one = V(set1)(1);
    const VEC all = V(set1)(p->all), factor = V(set1)(p->factor), not_top = V(set1)(p->q), half = V(set1)((REAL)0.5);
    EMIT(from, ({
             VEC q = NAME(smoothed)(p, AT(p->other, 0), p->w ? AT(p->w, 0) : one, u, v);
             VEC e = NAME(mul2)(TERM_HERE, hi, lo);
             VEC not_e = V(select)(V(lt)(half, e), not_top, V(sub)(one, e));
             V(mul)(factor, V(fnma)(q, not_e, V(mul)(V(sub)(all, q), e)));
         }));
}
DEFINE_EMIT(emit_probs)

FS_INLINE void NAME(probs_rows)(const fs_tile *t, const int NV, const int gradient)
{
    enum { X, T, WEIGHT, V_, G_GRAD, LOSS = 4, LOSS_GRAD = 5, DX = 6 };
    const double *o = t->params;
    const double scale = o[NAME(SCALE)], one_hot = o[NAME(KEEP)], spread = o[NAME(SPREAD)], zloss = o[NAME(ZLOSS)];
    const EXPK k = NAME(exp_constants)(scale);
    const int empty = o[NAME(EMPTY)] != 0, smooth = one_hot != 1 || spread != 0;
    const REAL *w = (const REAL *)t->data[WEIGHT];
    const int keep = gradient && t->c <= SAVE_LIMIT && t->data[DX] != t->data[X] && t->data[DX] != t->data[T];
    ASIDE;
    GROUP G;
    FOR_GROUPS(i, g) {
        if (NV) {
            NAME(fetch_ahead)(t, X, i, g, 0);
            NAME(fetch_ahead)(t, T, i, g, 0);
            if (gradient)
                NAME(fetch_ahead)(t, DX, i, g, 1);
        }
        GROUP_TERMS(X, gradient ? ROW(DX, i + r) : NULL, i, g);
        NAME(group_log)(&G, t, &k, X, i, g);
        SUM a[W], b[W];
        double sum_q[W], dot[W], low[W];
        REAL hi[W], lo[W];
        for (ptrdiff_t r = 0; r < g; r++) {
            PASS p = {.t = t, .c = t->c, .x = ROW(X, i + r), .other = ROW(T, i + r), .w = w, .m = G.m[r],
                      .u = (REAL)one_hot, .v = (REAL)spread, .flag = smooth};
            NAME(probs_sums_row)(&p, &a[r], &b[r], NV);
        }
        for (ptrdiff_t r = g; r < W; r++) {
            a[r] = a[0];
            b[r] = b[0];
        }
        NAME(sum_rows)(a, sum_q, low);
        NAME(sum_rows)(b, dot, low);
        if (gradient)
            NAME(group_inverse)(&G, NULL, hi, lo);
        for (ptrdiff_t r = 0; r < g; r++) {
            double lse = NAME(plus_log)(&G, G.m[r], scale, r), v = ONE(V_, i + r);
            wide value = (wide)sum_q[r] * G.log[r] + (wide)scale * dot[r] + (zloss != 0 ? (wide)zloss * lse * lse : 0);
            int special = G.special >> r & 1;
            if (__builtin_expect(special, 0)) {
                int any = zloss != 0;
                for (ptrdiff_t j = 0; j < t->c; j++)
                    any |= (one_hot * ROW(T, i + r)[j] + spread) * (w ? w[j] : 1) != 0;
                value = G.kind[r] == IS_EMPTY && empty ? (any ? INFINITY : 0) : NAN;
            }
            ONE(gradient ? LOSS_GRAD : LOSS, i + r) = (REAL)(special && value == 0 ? 0 : v * value);
            if (!gradient)
                continue;
            PASS p = FORWARD_PASS(X, ROW(DX, i + r), r);
            if (__builtin_expect(special, 0)) {
                NAME(fill)(p.y, t->c, G.kind[r] == IS_EMPTY && empty ? 0 : (REAL)NAN);
                continue;
            }
            p.other = ROW(T, i + r);
            p.w = w;
            p.hi = hi[r];
            p.lo = lo[r];
            p.u = (REAL)one_hot;
            p.v = (REAL)spread;
            p.flag = smooth;
            p.all = (REAL)(sum_q[r] + 2 * zloss * lse);
            p.factor = (REAL)(v * ONE(G_GRAD, i + r) * scale);
            p.q = (REAL)(G.rest[r] / (1 + G.rest[r]));
            NAME(emit_probs_row)(&p, NV);
        }
    }
}

FS_INLINE void NAME(cross_entropy_probs_rows)(const fs_tile *t, const int NV) { NAME(probs_rows)(t, NV, 0); }
FS_INLINE void NAME(cross_entropy_probs_grad_rows)(const fs_tile *t, const int NV) { NAME(probs_rows)(t, NV, 1); }

/* --- internal ----------------------------------------------------------------------------------------------------------- */

FS_INLINE void NAME(plain_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, SUM *s, const int NV)
{
    const REAL *x = p->x + from;
    ACC a = NAME(acc_zero)();
    EACH_VECTOR(NV, c, NAME(acc_any)(&a, V(load)(x + j)), NAME(acc_any)(&a, V(load_head)(x + j, rest, V(set1)(0))));
    s[0] = NAME(acc_done)(a, 0);
    s[1] = s[0];
}
DEFINE_SUMS(plain_sums)

FS_INLINE void NAME(total_rows)(const fs_tile *t, const int NV)
{
    enum { X, S };
    for (ptrdiff_t i = 0; i < t->n; i++) {
        PASS p = {.t = t, .c = t->c, .x = ROW(X, i)};
        SUM first, second;
        double hi, lo;
        NAME(plain_sums_row)(&p, &first, &second, NV);
        NAME(sum_one)(first, &hi, &lo);
        ONE(S, i) = (REAL)(hi + lo);
    }
}

/* --- kernels ------------------------------------------------------------------------------------------------------------- */

#define DEFINE_KERNEL(op)                                                                                             \
    static void NAME(op)(const fs_tile *t)                                                                           \
    {                                                                                                                 \
        if (t->c <= W)                                                                                                \
            NAME(op##_rows)(t, 1);                                                                                   \
        else if (t->c <= 2 * W)                                                                                       \
            NAME(op##_rows)(t, 2);                                                                                   \
        else                                                                                                          \
            NAME(op##_rows)(t, 0);                                                                                   \
    }
FS_OPS(DEFINE_KERNEL)
