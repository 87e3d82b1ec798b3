/* Plain operations on rows of few classes, in columns: a panel of W rows at a time, whose numbers stay in registers.
 *
 * Terms are taken relative to the row's maximum, whose term is 1, with the difference in two parts: so nothing has to be known
 * of the maximum's own term, and floats need no double.  That costs five operations a class, and spares more than a hundred a
 * panel.  What groups do between their passes took more than half of the time of few classes: softmax of 50 million floats in
 * rows of 2, 4, 10 2.96, 1.95, 1.47 memcpys, 1.33, 1.22, 1.16 so; logsumexp 3.16, 1.96, 1.29, and 1.65, 1.11, 1.04. */

#if FS_FUSED

#define TOP_TERM ((REAL)((int64_t)1 << BOOST)) /* of a row's maximum */

/* As numbers, to compare labels with: a load costs less than counting. */
static const REAL NAME(classes)[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23};
#define CLASSES NAME(classes)
_Static_assert(sizeof CLASSES / sizeof(REAL) >= FEW, "one for each of few classes");

/* x - m, for m >= x, in two parts; *alive: its exponential is not 0. */
FS_INLINE VEC NAME(panel_gap)(const EXPK *k, VEC x, VEC m, MASK *alive, VEC *low)
{
    const VEC floor = V(sub)(V(set1)(0), k->drop), d = V(sub)(x, m), back = V(sub)(d, x);
    *alive = V(not_less)(d, floor);
    *low = V(select)(*alive, V(sub)(V(sub)(x, V(sub)(d, back)), V(add)(m, back)), V(set1)(0));
    return V(bounded)(d, floor);
}

/* exp(scale (x - m)) 2^BOOST; for doubles also what its last rounding lost. */
FS_INLINE VEC NAME(panel_term)(const EXPK *k, VEC x, VEC m, VEC *lost)
{
    const VEC zero = V(set1)((REAL)(V(ZERO_POWER) + BOOST));
    MASK alive;
    VEC low, d = NAME(panel_gap)(k, x, m, &alive, &low), n = V(fma)(d, k->rate, zero);
    VEC e = NAME(exp_reduced)(k, d, &low, V(sub)(n, zero), n, lost);
    if (!FS_FLOAT)
        *lost = V(power_if)(alive, *lost, n);
    return V(power_if)(alive, e, n);
}

FS_INLINE VEC NAME(panel_max)(const REAL *x, ptrdiff_t c)
{
    VEC m = V(load)(x);
    for (ptrdiff_t j = 1; j < c; j++)
        m = V(max)(V(load)(x + j * W), m);
    return m;
}

/* What rows need one by one is computed for two panels side by side: its steps wait for each other, and the processor does not
 * look far enough ahead to begin the next panel's meanwhile. */
#define PAIR(statement)                                                                                               \
    for (int u = 0; u < 2; u++) {                                                                                     \
        statement;                                                                                                    \
    }
#define FOR_PAIRS(o, g) for (ptrdiff_t o = 0; o < (g); o += 2 * W)
#define PAIR_OF(numbers) {V(load)((numbers) + o), V(load)((numbers) + o + W)}

FS_INLINE void NAME(add_pairs_exactly)(VEC *hi, VEC *lo, const VEC *x)
{
    VEC t[2], back[2];
    PAIR(t[u] = V(add)(hi[u], x[u]))
    PAIR(back[u] = V(sub)(t[u], hi[u]))
    PAIR(hi[u] = V(sub)(hi[u], V(sub)(t[u], back[u])))
    PAIR(lo[u] = V(add)(lo[u], V(add)(hi[u], V(sub)(x[u], back[u]))))
    PAIR(hi[u] = t[u])
}

/* 1 / (s + s_lo) in two parts. */
FS_INLINE void NAME(pair_inverse)(const VEC *s, const VEC *s_lo, VEC *hi, VEC *lo)
{
    PAIR(hi[u] = V(reciprocal)(s[u]))
    PAIR(lo[u] = V(fnma)(s[u], hi[u], V(set1)(1)))
    PAIR(lo[u] = V(mul)(hi[u], V(fnma)(s_lo[u], hi[u], lo[u])))
}

/* log(1 + t + t_lo) for t >= 0, in two parts, of which the first is the whole rounded. */
FS_INLINE void NAME(pair_log1p)(const VEC *t, const VEC *t_lo, VEC *hi, VEC *lo)
{
#if FS_FLOAT
    /* 1 + t = 2^n (1 + f), where f is exact but for t_lo. */
    const vf one = f_set1(1), root = f_set1(0x1.6a09e6p+0f), zero = f_set1(0);
    vf n[2], power[2], f[2], half[2], most[2], low[2], rest[2];
    PAIR(n[u] = f_exponent(f_fma(t[u], root, root)))
    PAIR(power[u] = f_scale2(one, f_sub(zero, n[u])))
    PAIR(f[u] = f_fma(t[u], power[u], f_sub(power[u], one)))
    PAIR(half[u] = f_mul(f_set1(-0.5f), f[u]))
    PAIR(most[u] = f_fma(half[u], f[u], f[u]))
    PAIR(low[u] = f_fma(half[u], f[u], f_sub(f[u], most[u])))
    PAIR(rest[u] = f_reciprocal(f_add(one, f[u])))
    PAIR(low[u] = f_fma(f_mul(t_lo[u], power[u]), rest[u], low[u]))
    vf f2[2], f4[2], a[2], b[2];
    PAIR(f2[u] = f_mul(f[u], f[u]))
    PAIR(a[u] = f_fma(f[u], f_set1(LOG1P_F32_P1), f_set1(LOG1P_F32_P0)))
    PAIR(b[u] = f_fma(f[u], f_set1(LOG1P_F32_P3), f_set1(LOG1P_F32_P2)))
    PAIR(f4[u] = f_mul(f2[u], f2[u]))
    PAIR(a[u] = f_fma(f2[u], b[u], a[u]))
    PAIR(b[u] = f_fma(f[u], f_set1(LOG1P_F32_P5), f_set1(LOG1P_F32_P4)))
    PAIR(rest[u] = f_fma(f[u], f_set1(LOG1P_F32_P7), f_set1(LOG1P_F32_P6)))
    PAIR(b[u] = f_fma(f4[u], f_set1(LOG1P_F32_P8), f_fma(f2[u], rest[u], b[u])))
    PAIR(a[u] = f_fma(f4[u], b[u], a[u]))
    PAIR(low[u] = f_fma(f_mul(f2[u], f[u]), a[u], low[u]))
    PAIR(low[u] = f_fma(n[u], f_set1(LN2_LO_F32_NOFMA), low[u]))
    PAIR(n[u] = f_mul(n[u], f_set1(LN2_HI_F32_NOFMA)))
    PAIR(hi[u] = f_add(n[u], most[u]))
    PAIR(low[u] = f_add(low[u], f_sub(most[u], f_sub(hi[u], n[u]))))
    PAIR(most[u] = hi[u])
    PAIR(hi[u] = f_add(most[u], low[u]))
    PAIR(lo[u] = f_sub(low[u], f_sub(hi[u], most[u])))
#else
    vd low[2], most[2];
    PAIR(most[u] = d_log(t[u], t_lo[u], LOG1P, &low[u]))
    PAIR(hi[u] = d_add(most[u], low[u]))
    PAIR(lo[u] = d_sub(low[u], d_sub(hi[u], most[u])))
#endif
}

/* scale a + log of finite a and log in two parts each, rounded nearly once; of an infinite a that. */
FS_INLINE void NAME(pair_plus)(const EXPK *k, const VEC *a, const VEC *a_lo, const VEC *log, const VEC *log_lo, VEC *sum)
{
    VEC p[2], lost[2], hi[2];
    PAIR(p[u] = hi[u] = V(mul)(a[u], k->s))
    PAIR(lost[u] = V(add)(V(fma)(a[u], k->s, V(sub)(V(set1)(0), p[u])), log_lo[u]))
    PAIR(lost[u] = V(fma)(a_lo[u], k->s, V(fma)(a[u], k->s_lo, lost[u])))
    NAME(add_pairs_exactly)(hi, lost, log);
    PAIR(sum[u] = V(select)(V(lt)(V(abs)(p[u]), V(set1)((REAL)INFINITY)), V(add)(hi[u], lost[u]), V(add)(p[u], log[u])))
}

/* What is known of a group's rows: maxima; the sum of all terms but the largest, in two parts; x and the term at the label. */
typedef struct {
    REAL m[ROOM], others[ROOM], others_lo[ROOM], x_at[ROOM], e_at[ROOM];
    uint64_t special; /* bit r: the maximum of row r is not finite */
    unsigned char kind[ROOM];
} NAME(numbers);
#define NUMBERS NAME(numbers)

/* The lines that a panel fetches: of x the next group's, of y its own. */
typedef struct {
    NAME(lines) x, y;
    fs_fetch *fetch;
} NAME(panel_lines);

FS_INLINE void NAME(fetch_panel)(NAME(panel_lines) *l)
{
    __builtin_prefetch(l->x.at);
    l->x.at += l->x.apart;
    if (l->y.at) {
        __builtin_prefetch(l->y.at, 1);
        l->y.at += l->y.apart;
    }
    if (l->fetch)
        for (int o = 0; o < FS_FETCHED; o++)
            fs_fetch_line(&l->fetch[o]);
}

/* The sum of the terms of c classes but the largest, of which those as large as that count all but one.  The terms are stored in
 * `save`; x and the term at `label` are found. */
FS_INLINE void NAME(panel_others)(NUMBERS *p, ptrdiff_t o, const EXPK *k, const REAL *x, ptrdiff_t c, REAL *save,
                                  const REAL *label, NAME(panel_lines) lines)
{
    const VEC zero = V(set1)(0), one = V(set1)(1), m = V(load)(p->m + o), at = V(load)(label);
    VEC hi = zero, lo = zero, ties = V(set1)(-1), x_at = zero, e_at = zero;
    for (ptrdiff_t j = 0; j < c; j++) {
        NAME(fetch_panel)(&lines);
        VEC lost, v = V(load)(x + j * W), e = NAME(panel_term)(k, v, m, &lost);
        const MASK top = V(eq)(v, m), here = V(eq)(at, V(set1)(CLASSES[j]));
        ties = V(add)(ties, V(select)(top, one, zero));
        NAME(add_exactly)(&hi, &lo, V(select)(top, zero, e));
        if (!FS_FLOAT)
            lo = V(add)(lo, lost); /* of the largest it is 0 */
        V(store)(save + j * W, e);
        x_at = V(select)(here, v, x_at);
        e_at = V(select)(here, e, e_at);
    }
    NAME(add_exactly)(&hi, &lo, V(mul)(ties, V(set1)(TOP_TERM)));
    V(store)(p->others + o, hi);
    V(store)(p->others_lo + o, lo);
    V(store)(p->x_at + o, x_at);
    V(store)(p->e_at + o, e_at);
}

/* The same of two classes, of which only one term has to be computed; it is the sum of the others. */
FS_INLINE void NAME(panel_of_two)(NUMBERS *p, ptrdiff_t o, const EXPK *k, const REAL *x, REAL *save, const REAL *label,
                                  NAME(panel_lines) lines)
{
    const VEC a = V(load)(x), b = V(load)(x + W), m = V(load)(p->m + o), top = V(set1)(TOP_TERM);
    VEC lost, e = NAME(panel_term)(k, V(min)(a, b), m, &lost);
    V(store)(save, V(select)(V(eq)(a, m), top, e));
    V(store)(save + W, V(select)(V(eq)(b, m), top, e));
    V(store)(p->others + o, e);
    V(store)(p->others_lo + o, FS_FLOAT ? V(set1)(0) : lost);
    if (label) {
        const VEC x_at = V(select)(V(eq)(V(load)(label), V(set1)(1)), b, a);
        V(store)(p->x_at + o, x_at);
        V(store)(p->e_at + o, V(select)(V(eq)(x_at, m), top, e));
    }
    NAME(fetch_panel)(&lines);
    NAME(fetch_panel)(&lines);
}

/* The maximum of c classes, and the others to `rest`, in any order: one term less where their places do not matter. */
FS_INLINE VEC NAME(panel_rest)(const REAL *x, ptrdiff_t c, REAL *rest, const REAL *label, REAL *to)
{
    VEC m = V(load)(x), x_at = m;
    for (ptrdiff_t j = 1; j < c; j++) {
        const VEC v = V(load)(x + j * W), low = V(min)(v, m);
        m = V(max)(m, v);
        V(store)(rest + (j - 1) * W, low);
        if (label)
            x_at = V(select)(V(eq)(V(load)(label), V(set1)(CLASSES[j])), v, x_at);
    }
    if (label)
        V(store)(to, x_at);
    return m;
}

/* The sum of the others' terms. */
FS_INLINE void NAME(panel_sum)(NUMBERS *p, ptrdiff_t o, const EXPK *k, const REAL *x, ptrdiff_t c, NAME(panel_lines) lines)
{
    const VEC m = V(load)(p->m + o);
    VEC hi = V(set1)(0), lo = hi;
    NAME(fetch_panel)(&lines);
    for (ptrdiff_t j = 0; j < c - 1; j++) {
        NAME(fetch_panel)(&lines);
        VEC lost, e = NAME(panel_term)(k, V(load)(x + j * W), m, &lost);
        NAME(add_exactly)(&hi, &lo, e);
        if (!FS_FLOAT)
            lo = V(add)(lo, lost);
    }
    V(store)(p->others + o, hi);
    V(store)(p->others_lo + o, lo);
}

/* Parts of the largest term below which the sum of the others shows what the terms' floor drops, and would be rounded twice. */
#define LEAST_OTHERS (TOP_TERM * (REAL)(FS_FLOAT ? 0x1p-100 : 0x1p-960))

/* Where the others are less, their sum with care. */
FS_INLINE void NAME(settle_others)(NUMBERS *p, const fs_tile *t, const EXPK *k, ptrdiff_t i, ptrdiff_t g)
{
    uint64_t tiny = 0;
    for (ptrdiff_t o = 0; o < g; o += W)
        tiny |= (uint64_t)V(bits)(V(lt)(V(load)(p->others + o), V(set1)(LEAST_OTHERS))) << o;
    tiny &= ~0ull >> (64 - g) & ~p->special;
    for (ptrdiff_t r = 0; __builtin_expect(tiny != 0 && t->c > 1, 0) && r < g; r++)
        if (tiny >> r & 1) {
            const wide sum = (wide)NAME(rest_of_row)(t, k, NAME(contiguous)(t, 0, i + r), t->c, p->m[r]) * TOP_TERM;
            p->others[r] = (REAL)sum;
            p->others_lo[r] = (REAL)(sum - p->others[r]);
        }
}

/* log(sum / largest term) in two parts (pair_log1p). */
FS_INLINE void NAME(pair_log)(const NUMBERS *p, ptrdiff_t o, VEC *hi, VEC *lo)
{
    const VEC unit = V(set1)(1 / TOP_TERM);
    VEC t[2] = PAIR_OF(p->others), t_lo[2] = PAIR_OF(p->others_lo);
    PAIR(t[u] = V(mul)(t[u], unit))
    PAIR(t_lo[u] = V(mul)(t_lo[u], unit))
    NAME(pair_log1p)(t, t_lo, hi, lo);
}

/* Keep the maxima of a panel of the group of g rows from i on, and what rows are that have no finite one. */
FS_INLINE VEC NAME(keep_max)(NUMBERS *p, const fs_tile *t, ptrdiff_t i, VEC m, const REAL *x, ptrdiff_t o, ptrdiff_t g)
{
    const unsigned finite = V(bits)(V(lt)(V(abs)(m), V(set1)((REAL)INFINITY)));
    V(store)(p->m + o, m);
    if (__builtin_expect(finite != (1u << W) - 1, 0))
        for (ptrdiff_t r = 0; r < W && o + r < g; r++)
            if (!(finite >> r & 1)) {
                p->special |= 1ull << (o + r);
                p->kind[o + r] = NAME(kind_of)(t, 0, i + o + r, x + r, W);
            }
    return m;
}

/* Give these rows their values in an operand with classes. */
static void NAME(fill_specials)(const fs_tile *t, int operand, ptrdiff_t i, const NUMBERS *p, int empty, REAL if_empty)
{
    const ptrdiff_t apart = t->apart[operand] / (ptrdiff_t)sizeof(REAL);
    for (ptrdiff_t r = 0; r < ROOM; r++)
        if (p->special >> r & 1)
            NAME(fill)(ROW(operand, i + r), apart, t->c, p->kind[r] == IS_EMPTY && empty ? if_empty : (REAL)NAN);
}

/* `value` where the mask excludes a class, of rows that have become NaN, as `factors` and p tell. */
static void NAME(fill_excluded)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, const NUMBERS *p, const REAL *factors,
                                REAL value)
{
    const ptrdiff_t apart = t->apart[operand] / (ptrdiff_t)sizeof(REAL);
    for (ptrdiff_t r = 0; r < g; r++)
        if (__builtin_expect((p->special >> r & 1) || factors[r] != factors[r], 0))
            for (ptrdiff_t j = 0; j < t->c; j++)
                if (!IS_INCLUDED(i, r, j))
                    ROW(operand, i + r)[j * apart] = value;
}

#define FOR_PANELS(o, g) for (ptrdiff_t o = 0; o < (g); o += W)
#define PANEL_LINES(X_, y_lines, o)                                                                                   \
    ((NAME(panel_lines)){NAME(lines_of)(t, X_, i + (o), g, IN_COLUMNS), y_lines, t->fetch})

/* As softmax_rows. */
static void NAME(softmax_panels)(const fs_tile *t)
{
    enum { X, Y };
    const int cols = IN_COLUMNS;
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const ptrdiff_t c = t->c;
    NUMBERS p = {.m = {0}};
    REAL factor[ROOM];
    COLUMNS(X);
    COLUMNS_OF(X, Y);
    FOR_GROUPS(i, g) {
        p.special = 0;
        BRING(X, i, g);
        FOR_PANELS(o, g) {
            const REAL *x = X_columns + o * c;
            REAL *y = Y_columns + o * c;
            const VEC m = NAME(keep_max)(&p, t, i, NAME(panel_max)(x, c), x, o, g), onset = V(set1)(16 * TOP_TERM);
            NAME(panel_lines) lines = PANEL_LINES(X, LINES_TO(Y, i + o), o);
            VEC s = onset, s_lo = V(set1)(0);
            if (c == 2) {
                NAME(panel_of_two)(&p, o, &k, x, y, NULL, lines);
                s = V(add)(onset, V(set1)(TOP_TERM));
                s_lo = V(add)(V(load)(p.others + o), V(load)(p.others_lo + o));
            }
            for (ptrdiff_t j = 0; c != 2 && j < c; j++) {
                NAME(fetch_panel)(&lines);
                VEC lost, e = NAME(panel_term)(&k, V(load)(x + j * W), m, &lost), sum = V(add)(s, e);
                V(store)(y + j * W, e);
                VEC low = V(sub)(e, V(sub)(sum, s)); /* exact: s >= 16 e */
                s_lo = V(add)(s_lo, FS_FLOAT ? low : V(add)(low, lost));
                s = sum;
            }
            s = V(sub)(s, onset);
            VEC whole = V(add)(s, s_lo), lo = V(sub)(s_lo, V(sub)(whole, s)), hi = V(reciprocal)(whole);
            lo = V(mul)(hi, V(fnma)(lo, hi, V(fnma)(whole, hi, V(set1)(1))));
            V(store)(factor + o, hi);
            for (ptrdiff_t j = 0; j < c; j++)
                V(store)(y + j * W, NAME(mul2)(V(load)(y + j * W), hi, lo));
        }
        SEND(Y, i, g);
        if (__builtin_expect(p.special != 0, 0))
            NAME(fill_specials)(t, Y, i, &p, t->params[1] != 0, 0);
        if (t->mask)
            NAME(fill_excluded)(t, Y, i, g, &p, factor, 0);
    }
}

/* As log_softmax_rows. */
static void NAME(log_softmax_panels)(const fs_tile *t)
{
    enum { X, Y };
    const int cols = IN_COLUMNS;
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const ptrdiff_t c = t->c;
    NUMBERS p = {.m = {0}};
    REAL log[ROOM], log_lo[ROOM], rest[FEW * W];
    COLUMNS(X);
    COLUMNS_OF(X, Y);
    FOR_GROUPS(i, g) {
        p.special = 0;
        BRING(X, i, g);
        FOR_PANELS(o, g) {
            const REAL *x = X_columns + o * c;
            NAME(keep_max)(&p, t, i, NAME(panel_rest)(x, c, rest, NULL, NULL), x, o, g);
            NAME(panel_sum)(&p, o, &k, rest, c, PANEL_LINES(X, LINES_TO(Y, i + o), o));
        }
        NAME(settle_others)(&p, t, &k, i, g);
        FOR_PAIRS(o, g) {
            VEC hi[2], lo[2];
            NAME(pair_log)(&p, o, hi, lo);
            PAIR(V(store)(log + o + u * W, hi[u]))
            PAIR(V(store)(log_lo + o + u * W, lo[u]))
        }
        const int joined = NAME(join_max)(p.m, k.scale, log, log_lo, g);
        FOR_PANELS(o, g) {
            PASS row = PASS_OF(.t = t, .flag = joined);
            row.m = V(load)(p.m + o);
            row.u = k.s;
            row.v = k.s_lo;
            row.hi = V(load)(log + o);
            row.lo = V(load)(log_lo + o);
            for (ptrdiff_t j = o * c; j < (o + W) * c; j += W)
                V(store)(Y_columns + j, NAME(log_prob)(&row, V(load)(X_columns + j)));
        }
        SEND(Y, i, g);
        if (__builtin_expect(p.special != 0, 0))
            NAME(fill_specials)(t, Y, i, &p, t->params[1] != 0, -(REAL)INFINITY);
        if (t->mask)
            NAME(fill_excluded)(t, Y, i, g, &p, log, -(REAL)INFINITY);
    }
}

/* A group's numbers into an operand that has one a row. */
FS_INLINE void NAME(give_ones)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, const REAL *from)
{
    if (t->step[operand] != sizeof(REAL)) {
        for (ptrdiff_t r = 0; r < g; r++)
            ONE(operand, i + r) = from[r];
        return;
    }
    for (ptrdiff_t o = 0; o < g; o += W)
        if (o + W <= g)
            V(store)(ROW(operand, i) + o, V(load)(from + o));
        else
            V(store_head)(ROW(operand, i) + o, g - o, V(load)(from + o));
}

FS_INLINE void NAME(give_lses)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, const NUMBERS *p, REAL *lse)
{
    for (ptrdiff_t r = 0; p->special && r < g; r++)
        if (p->special >> r & 1)
            lse[r] = p->kind[r] == IS_NAN ? (REAL)NAN : p->m[r];
    NAME(give_ones)(t, operand, i, g, lse);
}

/* As logsumexp_rows. */
static void NAME(logsumexp_panels)(const fs_tile *t)
{
    enum { X, S };
    const int cols = IN_COLUMNS;
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const ptrdiff_t c = t->c;
    NUMBERS p = {.m = {0}};
    REAL lse[ROOM], rest[FEW * W];
    COLUMNS(X);
    FOR_GROUPS(i, g) {
        p.special = 0;
        BRING(X, i, g);
        FOR_PANELS(o, g) {
            const REAL *x = X_columns + o * c;
            NAME(keep_max)(&p, t, i, NAME(panel_rest)(x, c, rest, NULL, NULL), x, o, g);
            NAME(panel_sum)(&p, o, &k, rest, c, PANEL_LINES(X, NO_LINES, o));
        }
        FOR_PAIRS(o, g) {
            const VEC m[2] = PAIR_OF(p.m), zero[2] = {V(set1)(0), V(set1)(0)};
            VEC hi[2], lo[2], sum[2];
            NAME(pair_log)(&p, o, hi, lo);
            NAME(pair_plus)(&k, m, zero, hi, lo, sum);
            PAIR(V(store)(lse + o + u * W, sum[u]))
        }
        NAME(give_lses)(t, S, i, g, &p, lse);
    }
}

/* A group's numbers of an operand that has one a row, if they are not those of the last. */
FS_INLINE int NAME(take_ones)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, REAL *to)
{
    const int new = i == 0 || t->step[operand] != 0;
    for (ptrdiff_t r = 0; new && r < (t->step[operand] ? g : ROOM); r++)
        to[r] = ONE(operand, i + r);
    return new;
}

/* As index_rows, of losses without class weights, smoothing, z-loss and masks. */
FS_INLINE int NAME(index_in_panels)(const fs_tile *t, const int gradient, const int hess)
{
    enum { X, LABELS, WEIGHT, V_, G_GRAD, LOSS = 4, LOSS_GRAD, DX, HESS, LSE = 5, LSE_GRAD = 7, EXCESS = 6 };
    const int cols = IN_COLUMNS;
    const double *options = t->params;
    const int extra = gradient ? LSE_GRAD : LSE, empty = options[NAME(EMPTY)] != 0;
    if (t->mask || t->data[WEIGHT] || options[NAME(KEEP)] != 1 || options[NAME(SPREAD)] != 0 || options[NAME(ZLOSS)] != 0)
        return 0;
    const EXPK k = NAME(exp_constants)(options[NAME(SCALE)]);
    const ptrdiff_t c = t->c;
    const int64_t ignore = (int64_t)options[NAME(IGNORE)];
    NUMBERS p = {.m = {0}};
    COLUMNS(X);
    COLUMNS(DX);
    COLUMNS(HESS);
    GROUP G; /* of it what the Hessian's diagonal needs */
    NAME(diagonal) D;
    D.excess = hess ? (REAL)fmax(options[EXCESS], LEAST_EXCESS) : 0;
    int64_t y[ROOM] = {0};
    REAL inverse[ROOM], inverse_lo[ROOM], at_label[ROOM], lse[ROOM];
    REAL label[ROOM], loss[ROOM], v[ROOM], up[ROOM], factor[ROOM] = {0}, factor_lo[ROOM] = {0}, rest[FEW * W];
    for (ptrdiff_t r = 0; r < ROOM; r++)
        v[r] = up[r] = 1;
    FOR_GROUPS(i, g) {
        const uint64_t ignored = NAME(labels_of)(t, LABELS, i, g, ignore, y);
        for (ptrdiff_t r = 0; t->ahead[LABELS] && r < g; r += 64 / (ptrdiff_t)sizeof *y)
            __builtin_prefetch((const char *)NAME(row)(t, LABELS, i + r) + t->ahead[LABELS], 0, 2);
        for (ptrdiff_t r = 0; r < ROOM; r++)
            label[r] = (REAL)(int32_t)y[r];
        const int new_v = NAME(take_ones)(t, V_, i, g, v), new_up = gradient && NAME(take_ones)(t, G_GRAD, i, g, up);
        for (ptrdiff_t r = 0; (new_v || new_up) && r < ROOM; r++) {
            const wide f = (wide)v[r] * up[r] * k.scale;
            factor[r] = (REAL)f;
            factor_lo[r] = (REAL)(f - factor[r]);
        }
        p.special = 0;
        BRING(X, i, g);
        if (hess)
            NAME(fetch_to)(t, HESS, i, g, cols);
        FOR_PANELS(o, g) {
            const REAL *x = X_columns + o * c;
            if (gradient) {
                NAME(keep_max)(&p, t, i, NAME(panel_max)(x, c), x, o, g);
                const NAME(panel_lines) lines = PANEL_LINES(X, LINES_TO(DX, i + o), o);
                if (c == 2)
                    NAME(panel_of_two)(&p, o, &k, x, DX_columns + o * c, label + o, lines);
                else
                    NAME(panel_others)(&p, o, &k, x, c, DX_columns + o * c, label + o, lines);
            } else {
                NAME(keep_max)(&p, t, i, NAME(panel_rest)(x, c, rest, label + o, p.x_at + o), x, o, g);
                NAME(panel_sum)(&p, o, &k, rest, c, PANEL_LINES(X, NO_LINES, o));
            }
        }
        NAME(settle_others)(&p, t, &k, i, g);
        FOR_PAIRS(o, g) {
            const VEC zero = V(set1)(0), m[2] = PAIR_OF(p.m), x_at[2] = PAIR_OF(p.x_at), weight[2] = PAIR_OF(v);
            VEC log[2], log_lo[2], d[2], low[2], back[2], value[2];
            NAME(pair_log)(&p, o, log, log_lo);
            PAIR(d[u] = V(sub)(m[u], x_at[u]))
            PAIR(back[u] = V(sub)(d[u], m[u]))
            PAIR(low[u] = V(sub)(V(sub)(m[u], V(sub)(d[u], back[u])), V(add)(x_at[u], back[u])))
            NAME(pair_plus)(&k, d, low, log, log_lo, value);
            PAIR(V(store)(loss + o + u * W, V(mul)(weight[u], value[u])))
            if (!hess && t->data[extra]) {
                const VEC none[2] = {zero, zero};
                NAME(pair_plus)(&k, m, none, log, log_lo, value);
                PAIR(V(store)(lse + o + u * W, value[u]))
            }
            if (!gradient)
                continue;
            /* factor / sum in two parts; at the label -(sum of the other terms) factor / sum. */
            const VEC largest[2] = {V(set1)(TOP_TERM), V(set1)(TOP_TERM)}, f[2] = PAIR_OF(factor), f_lo[2] = PAIR_OF(factor_lo);
            VEC s[2] = PAIR_OF(p.others), s_lo[2] = PAIR_OF(p.others_lo), e_at[2] = PAIR_OF(p.e_at), left[2], left_lo[2];
            VEC head[2], tail[2], hi[2], lo[2], target[2];
            PAIR(left[u] = s[u])
            PAIR(left_lo[u] = s_lo[u])
            NAME(add_pairs_exactly)(s, s_lo, largest);
            NAME(pair_inverse)(s, s_lo, head, tail);
            PAIR(d[u] = V(sub)(s[u], e_at[u]))
            PAIR(s_lo[u] = V(add)(s_lo[u], V(sub)(V(sub)(s[u], d[u]), e_at[u])))
            PAIR(left[u] = V(select)(V(eq)(x_at[u], m[u]), left[u], d[u]))
            PAIR(left_lo[u] = V(select)(V(eq)(x_at[u], m[u]), left_lo[u], s_lo[u]))
            PAIR(hi[u] = V(mul)(head[u], f[u]))
            PAIR(lo[u] = V(fma)(head[u], f[u], V(sub)(zero, hi[u])))
            PAIR(lo[u] = V(fma)(tail[u], f[u], V(fma)(head[u], f_lo[u], lo[u])))
            PAIR(target[u] = V(fma)(left[u], lo[u], V(mul)(left_lo[u], hi[u])))
            PAIR(target[u] = V(sub)(zero, V(fma)(left[u], hi[u], target[u])))
            PAIR(V(store)(inverse + o + u * W, hi[u]))
            PAIR(V(store)(inverse_lo + o + u * W, lo[u]))
            PAIR(V(store)(at_label + o + u * W, target[u]))
        }
        if (__builtin_expect((p.special | ignored) != 0, 0))
            for (ptrdiff_t r = 0; r < g; r++) {
                if (p.special >> r & 1)
                    loss[r] = p.kind[r] == IS_EMPTY && empty ? v[r] * (REAL)INFINITY : (REAL)NAN;
                if (ignored >> r & 1)
                    loss[r] = 0;
            }
        NAME(give_ones)(t, gradient ? LOSS_GRAD : LOSS, i, g, loss);
        if (!hess && t->data[extra])
            NAME(give_lses)(t, extra, i, g, &p, lse);
        if (!hess && t->data[extra + 1])
            NAME(give_top)(t, X, extra + 1, i, g, p.m, p.special, p.others, X_columns, cols);
        if (!gradient)
            continue;
        FOR_PANELS(o, g) {
            REAL *dx = DX_columns + o * c;
            const VEC hi = V(load)(inverse + o), lo = V(load)(inverse_lo + o), at = V(load)(label + o);
            const VEC target = V(load)(at_label + o);
            PASS row = PASS_OF(.t = t);
            if (hess) {
                for (ptrdiff_t r = o; r < o + W; r++) {
                    G.rest[r] = (double)p.others[r] / (double)TOP_TERM + (double)p.others_lo[r] / (double)TOP_TERM;
                    G.s[r] = (double)TOP_TERM + p.others[r];
                    G.s_lo[r] = ((double)TOP_TERM - G.s[r]) + p.others[r] + p.others_lo[r];
                    NAME(set_diagonal)(&D, &G, r, (wide)v[r] * up[r] * k.scale * k.scale, 1, 0, k.scale);
                }
                DIAGONAL_PASS(row, HESS_columns + o * c, o);
            }
            for (ptrdiff_t j = 0; j < c; j++) {
                const VEC e = V(load)(dx + j * W), d = NAME(mul2)(e, hi, lo);
                if (hess)
                    V(store)(row.save + j * W, NAME(curved)(&row, e));
                V(store)(dx + j * W, V(select)(V(eq)(at, V(set1)(CLASSES[j])), target, d));
            }
        }
        SEND(DX, i, g);
        if (__builtin_expect(p.special != 0, 0))
            NAME(fill_specials)(t, DX, i, &p, empty, 0);
        for (ptrdiff_t r = 0; ignored && r < g; r++)
            if (ignored >> r & 1)
                NAME(fill)(ROW(DX, i + r), t->apart[DX] / (ptrdiff_t)sizeof(REAL), c, 0);
        if (!hess)
            continue;
        SEND(HESS, i, g);
        if (__builtin_expect(p.special != 0, 0))
            NAME(fill_specials)(t, HESS, i, &p, empty, 0);
        for (ptrdiff_t r = 0; ignored && r < g; r++)
            if (ignored >> r & 1)
                NAME(fill)(ROW(HESS, i + r), t->apart[HESS] / (ptrdiff_t)sizeof(REAL), c, 0);
    }
    return 1;
}

static int NAME(index_panels)(const fs_tile *t, int what)
{
    return what == FS_HESS   ? NAME(index_in_panels)(t, 1, 1)
           : what == FS_GRAD ? NAME(index_in_panels)(t, 1, 0)
                             : NAME(index_in_panels)(t, 0, 0);
}

#endif
