/* Second derivatives of cross-entropy: passes that the losses' kernels share (row_ops.h), Hessian-vector products, Hessians.
 *
 * By z = scale x the Hessian of a row's loss is v (a (diag p - p p^T) + 2 zloss p p^T) with a = sum of the targets +
 * 2 zloss lse.  A class at -inf does not move: the direction u is 0 there, whatever it holds. */

/* A pass whose row, or part of a row, begins at `from`. */
FS_INLINE PASS NAME(part)(const PASS *p, ptrdiff_t from)
{
    PASS q = *p;
    q.x += from;
    q.other += from;
    q.along += from;
    q.w += q.w ? from : 0;
    q.even += q.even ? from : 0; /* only rows have parts */
    q.terms += q.terms ? from : 0;
    return q;
}

/* Where an operation without a row of results keeps the terms of a group, if there is room. */
#define TERMS_ASIDE(wanted) REAL aside[!(wanted) ? 1 : cols ? COLUMNS_MAX * ROOM : ROWS_GROUP] __attribute__((aligned(64)))
#define ASIDE(r) (aside + (r)*t->c)

/* The direction at a vector of classes. */
#define ALONG_HERE(load_x, load_u) V(select)(V(eq)(load_x, V(set1)(-(REAL)INFINITY)), V(set1)(0), load_u)

/* sum of terms times (direction - u), and, if flag, sum of class weights times that. */
FS_INLINE void NAME(along_sums)(const PASS *row, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const PASS here = NAME(part)(row, from), *p = &here;
    const VEC ref = p->u, one = V(set1)(1);
    ACC a = NAME(acc_zero)(), b = NAME(acc_zero)();
    EVERYWHERE({
        /* Beyond the row the direction is u: no difference. */
        VEC d = ALONG_HERE(AT(p->x, 0), whole ? V(load)(p->along + j) : V(load_head)(p->along + j, rest, ref));
        NAME(acc_times_difference)(&a, TERM_HERE, d, ref);
        if (p->flag) {
            VEC w = NAME(of_included)(p, j, rest, whole, p->w ? CLASS_AT(p->w, 0) : one, cols);
            NAME(acc_times_difference)(&b, w, d, ref);
        }
        FETCH(p, from + j);
    });
    s[0] = NAME(acc_done)(a, 0);
    s[1] = NAME(acc_done)(b, 0);
}
DEFINE_SUMS(along_sums)

/* logsumexp of row r of a group whose logarithms are known. */
FS_INLINE wide NAME(lse_of)(const GROUP *G, double scale, ptrdiff_t r)
{
    return (wide)G->m[r] * scale + ((wide)G->log_hi[r] + G->log_lo[r]);
}

/* --- the diagonal ------------------------------------------------------------------------------------------------------- */

/* What makes the diagonal, rate (a p (1 - p) + 2 zloss p^2) (1 + excess) with a = mass + 2 zloss lse, of a term: see curved. */
typedef struct {
    REAL inverse[ROOM], curve[ROOM], square[ROOM], apex[ROOM], excess;
} NAME(diagonal);

FS_INLINE void NAME(set_diagonal)(NAME(diagonal) *D, const GROUP *G, ptrdiff_t r, wide rate, wide mass, double zloss,
                                  double scale)
{
    wide inverse = 1 / ((wide)G->s[r] + G->s_lo[r]), top = 1 / (1 + (wide)G->rest[r]);
    if (zloss != 0)
        mass += 2 * zloss * NAME(lse_of)(G, scale, r);
    D->inverse[r] = (REAL)inverse;
    D->curve[r] = (REAL)(rate * mass * inverse);
    D->square[r] = (REAL)(rate * 2 * zloss * inverse);
    D->apex[r] = (REAL)(rate * top * (mass * (G->rest[r] * top) + 2 * zloss * top));
}

/* Not 0, which would make NaN of an infinite result; a finite one is not changed. */
#define LEAST_EXCESS 0x1p-60

#define DIAGONAL_PASS(p, to, r)                                                                                       \
    do {                                                                                                              \
        p.save = to;                                                                                                  \
        p.inverse = LANES(D.inverse, r);                                                                              \
        p.curve = LANES(D.curve, r);                                                                                  \
        p.square = LANES(D.square, r);                                                                                \
        p.apex = LANES(D.apex, r);                                                                                    \
        p.excess = V(set1)(D.excess);                                                                                 \
    } while (0)

/* The diagonal at a class whose term is e; a class with more than half has the apex, from the sum over the others. */
FS_INLINE VEC NAME(curved)(const PASS *p, VEC e)
{
    VEC y = V(mul)(e, p->inverse), not_y = V(sub)(V(set1)(1), y);
    VEC h = V(fma)(V(mul)(e, p->square), y, V(mul)(V(mul)(e, p->curve), not_y));
    h = V(select)(V(lt)(V(set1)((REAL)0.5), y), p->apex, h);
    return V(fma)(h, p->excess, h);
}

/* Fetch a group's rows that will be written; in rows the pass that writes them does. */
FS_INLINE void NAME(fetch_to)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, const int cols)
{
    const char *row = (const char *)NAME(row)(t, operand, i), *end = (const char *)NAME(row)(t, operand, i + g);
    if (cols && !NAME(by_class)(t, operand))
        for (; row < end; row += 64)
            __builtin_prefetch(row, 1);
}

/* Beside what a pass emits, store the diagonal. */
#define EMIT_DIAGONAL(e)                                                                                              \
    do {                                                                                                              \
        VEC diagonal_ = IF_INCLUDED(NAME(curved)(p, e));                                                                     \
        if (!cols && whole)                                                                                           \
            __builtin_prefetch((const char *)(p->save + j) + AHEAD, 1);                                               \
        if (whole)                                                                                                    \
            V(store)(p->save + j, diagonal_);                                                                         \
        else                                                                                                          \
            V(store_head)(p->save + j, rest, diagonal_);                                                              \
    } while (0)

/* --- Hessian times a direction ---------------------------------------------------------------------------------------- */

/* e (hi + lo) (u - centre), the centre in two parts, and if flag e times a constant; apex where that is known better. */
FS_INLINE void NAME(emit_hvp)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC zero = V(set1)(0), hi = p->hi, lo = p->lo, centre = p->u, low = p->v, all = p->all;
    const VEC m = p->m, ref = p->q, apex = p->apex;
    EMIT(from, ({
             VEC e = TERM_HERE, u = AT(p->along, 0), d = V(sub)(V(sub)(u, centre), low);
             VEC y = NAME(mul2)(V(mul)(e, d), hi, lo);
             if (p->flag)
                 y = V(fma)(e, all, y);
             y = V(select)(V(eq)(AT(p->x, 0), m), V(select)(V(eq)(u, ref), apex, y), y);
             V(select)(V(eq)(e, zero), zero, y);
         }));
}
DEFINE_EMIT(emit_hvp)

FS_INLINE void NAME(cross_entropy_hvp_rows)(const fs_tile *t, const int cols)
{
    enum { X, LABELS, U, MASS, V_, HV };
    const double scale = t->params[0], zloss = t->params[2];
    const int empty = t->params[1] != 0;
    const int64_t ignore = (int64_t)t->params[3];
    const EXPK k = NAME(exp_constants)(scale);
    const int keep = t->c <= BLOCK && t->data[HV] != t->data[X] && t->data[HV] != t->data[U];
    COLUMNS(X);
    COLUMNS(U);
    COLUMNS(HV);
    GROUP G;
    FOR_GROUPS(i, g) {
        SUMS dot;
        ACC same;
        double dot_hi[ROOM], dot_lo[ROOM], factor[ROOM];
        REAL ref[ROOM] = {0}, hi[ROOM], lo[ROOM], near[ROOM], low[ROOM], all[ROOM], apex[ROOM];
        BRING(X, i, g);
        BRING(U, i, g);
        GROUP_TERMS(X, OF(HV, i, r), LINES_TO(HV, i + r), i, g);
        G.shifts = NULL; /* the terms are not only multiplied */
        if (zloss != 0)
            NAME(group_log)(&G, t, &k, X, i, g);
        NAME(tangents_at_top)(t, X, U, i, g, &G, OF(X, i, 0), OF(U, i, 0), -(REAL)INFINITY, ref, cols);
        FOR_PASSES(r, g) {
            PASS p = FORWARD_PASS(X, OF(HV, i, r), i, r);
            p.other = p.x;
            p.along = OF(U, i, r);
            p.u = LANES(ref, r);
            SET_LINES(p, next_other, LINES(U, i + r, g));
            NAME(along_sums_all)(&p, &dot.of[SLOT(r)], &same, cols);
        }
        NAME(sum_rows)(&dot, g, dot_hi, dot_lo, cols);
        for (ptrdiff_t r = 0; r < G.n; r++) {
            ptrdiff_t row = i + (r < g ? r : 0);
            double sum = G.s[r], key = ref[r], mean = dot_hi[r] / sum;
            double mean_lo = (fma(-mean, sum, dot_hi[r]) - mean * G.s_lo[r] + dot_lo[r]) / sum;
            wide f = (wide)ONE(V_, row) * scale * scale, top = G.top_term[r] / ((wide)sum + G.s_lo[r]);
            wide a = ONE(MASS, row) + (zloss != 0 ? 2 * zloss * NAME(lse_of)(&G, scale, r) : 0);
            wide level = f * 2 * zloss * (key + mean);
            factor[r] = (double)(f * a);
            /* ref + mean in two parts; at the most probable class what remains is exactly the mean, but with a dominating
             * class that is too small for a REAL before it is multiplied. */
            near[r] = (REAL)(key + mean);
            double head = near[r], rest = fabs(key) < fabs(mean) ? (mean - head) + key : (key - head) + mean;
            low[r] = fabs(head) < INFINITY ? (REAL)(rest + mean_lo) : 0;
            apex[r] = (REAL)(top * (level - f * a * ((wide)mean + mean_lo)));
            all[r] = (REAL)(level / sum);
        }
        NAME(group_inverse)(&G, factor, hi, lo);
        FOR_PASSES(r, g) {
            PASS p = FORWARD_PASS(X, OF(HV, i, r), i, r);
            p.along = OF(U, i, r);
            p.hi = LANES(hi, r);
            p.lo = LANES(lo, r);
            p.u = LANES(near, r);
            p.v = LANES(low, r);
            p.q = LANES(ref, r);
            p.apex = LANES(apex, r);
            p.all = LANES(all, r);
            p.flag = zloss != 0;
            NAME(emit_hvp_all)(&p, cols);
        }
        FILL_SPECIAL(HV, i, g, 0);
        for (ptrdiff_t r = 0; r < g; r++)
            if (LABEL(LABELS, i + r) == ignore)
                FILL(HV, i, r, 0);
        SEND(HV, i, g);
    }
}

/* --- Hessians ----------------------------------------------------------------------------------------------------------- */

/* Terms times u, without their power of two, which keeps them and u away from 0 till the last. */
FS_INLINE void NAME(emit_multiple)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC u = p->u, unit = V(set1)((REAL)(1.0 / ((int64_t)1 << BOOST)));
    EMIT(from, V(mul)(V(mul)(TERM_HERE, u), unit));
}
DEFINE_EMIT(emit_multiple)

/* In rows, however few the classes: the results are c times as many as the logits. */
FS_INLINE void NAME(cross_entropy_hessian_rows)(const fs_tile *t, const int few)
{
    enum { X, LABELS, MASS, V_, H };
    const double scale = t->params[0], zloss = t->params[2];
    const int cols = 0, keep = 1, empty = t->params[1] != 0;
    const int64_t ignore = (int64_t)t->params[3];
    const EXPK k = NAME(exp_constants)(scale);
    const ptrdiff_t last = t->c - 1;
    COLUMNS(X);
    GROUP G;
    (void)few;
    (void)X_columns;
    FOR_GROUPS(i, g) {
        /* The terms are kept in the last row of the matrix, which is computed last. */
        GROUP_TERMS(X, ROW(H, i + r) + last * t->c, NO_LINES, i, g);
        NAME(level_blocks)(&G, ROW(H, i) + last * t->c, t->c);
        NAME(group_log)(&G, t, &k, X, i, g);
        for (ptrdiff_t r = 0; r < g; r++) {
            const REAL *x = ROW(X, i + r);
            REAL *h = ROW(H, i + r);
            int ignored = LABEL(LABELS, i + r) == ignore;
            if (__builtin_expect(ignored || G.special >> r & 1, 0)) {
                int zero = ignored || (G.kind[r] == IS_EMPTY && empty);
                NAME(fill)(h, 1, t->c * t->c, zero ? 0 : (REAL)NAN);
                continue;
            }
            wide f = (wide)ONE(V_, i + r) * scale * scale, sum = (wide)G.s[r] + G.s_lo[r], square = 2 * (wide)zloss;
            wide a = ONE(MASS, i + r) + (zloss != 0 ? square * NAME(lse_of)(&G, scale, r) : 0);
            wide inverse = 1 / sum, outer = f * (square - a) * inverse * inverse * ((int64_t)1 << BOOST);
            for (ptrdiff_t j = 0; j <= last; j++) {
                PASS p = FORWARD_PASS(X, h + last * t->c, i, r);
                wide e = p.terms[j], y = e * inverse, not_y = (x[j] == G.m[r] ? G.others[r] : sum - e) * inverse;
                p.y = h + j * t->c;
                p.u = V(set1)((REAL)(outer * e));
                NAME(emit_multiple_all)(&p, 0);
                p.y[j] = (REAL)(f * y * (a * not_y + square * y));
            }
        }
    }
}
