/* The operations on rows, one kernel each, over the passes and groups of rows.h.
 *
 * A kernel is a function NAME(op_rows)(t, cols), where cols tells the layout (rows.h), and an entry in FS_OPS: its name,
 * and how long a row must be for it to work in rows (rows.h).  Its operands and parameters stand in t in the order of the
 * table in fastsoftmax/_ops.py, which holds the definition that the tests compare it with. */

#ifndef FS_OPS
#define FS_OPS(X)                                                                                                     \
    X(softmax, LONG, 1)                                                                                               \
    X(log_softmax, LONG, 1)                                                                                           \
    X(logsumexp, LONG, 1)                                                                                             \
    X(logsumexp_weighted, NEVER, 0)                                                                                   \
    X(softmax_jvp, MEDIUM, 0)                                                                                         \
    X(log_softmax_jvp, MEDIUM, 0)                                                                                     \
    X(log_softmax_vjp, SHORT, 0)                                                                                      \
    X(logsumexp_jvp, LONG, 0)                                                                                         \
    X(logsumexp_vjp, LONG, 0)                                                                                         \
    X(softmax_jacobian, NEVER, 0)                                                                                     \
    X(log_softmax_jacobian, NEVER, 0)                                                                                 \
    X(cross_entropy_index, LONG, 0)                                                                                   \
    X(cross_entropy_index_grad, LONG, 0)                                                                              \
    X(cross_entropy_probs, LONG, 0)                                                                                   \
    X(cross_entropy_probs_grad, LONG, 0)                                                                              \
    X(cross_entropy_index_jvp, LONG, 0)                                                                               \
    X(cross_entropy_probs_jvp, LONG, 0)                                                                               \
    X(cross_entropy_index_hess, LONG, 0)                                                                              \
    X(cross_entropy_probs_hess, LONG, 0)                                                                              \
    X(cross_entropy_hvp, LONG, 0)                                                                                     \
    X(cross_entropy_hessian, NEVER, 0)                                                                                \
    X(entropy, LONG, 0)                                                                                               \
    X(entropy_grad, LONG, 0)                                                                                          \
    X(kl_divergence, LONG, 0)                                                                                         \
    X(kl_divergence_grad, LONG, 0)                                                                                    \
    X(binary_cross_entropy, NEVER, 0)                                                                                 \
    X(binary_cross_entropy_grad, NEVER, 0)                                                                            \
    X(binary_cross_entropy_sum, NEVER, 0)                                                                             \
    X(binary_cross_entropy_sum_grad, NEVER, 0)                                                                        \
    X(total, NEVER, 0)

/* What a kernel of a loss computes: the value; with the gradient; with that and the Hessian's diagonal; with the derivative
 * along a direction. */
enum { FS_VALUE, FS_GRAD, FS_HESS, FS_SLOPE };
#endif

#define ROW(operand, r) ((REAL *)(t->data[operand] + (r)*t->step[operand]))
#define ONE(operand, r) (*ROW(operand, r))
#define LABEL(operand, r) (*(const int64_t *)(t->data[operand] + (r)*t->step[operand]))

/* Loop over the groups of a tile: rows i to i + g; and over what a pass takes of a group: a row, or a panel. */
#define FOR_GROUPS(i, g)                                                                                              \
    for (ptrdiff_t i = 0, g, most_ = NAME(group_rows)(t, cols);                                                       \
         i < t->n && (g = NAME(group_size)(t->n - i, most_)); i += g)
#define FOR_PASSES(r, g) for (ptrdiff_t r = 0; r < (g); r += cols ? W : 1)

#define SLOT(r) (cols ? (r) / W : (r)) /* a pass's number */

/* An operand's columns: memory for them, filled from (or written to) its rows; and where a pass finds the operand. */
#define COLUMNS(operand)                                                                                              \
    REAL operand##_few[cols == IN_COLUMNS ? COLUMNS_ROOM : 1] __attribute__((aligned(64)));                           \
    REAL *const operand##_columns =                                                                                   \
        cols && t->room ? (REAL *)(t->room + operand * FS_ROOM * (IN_SLABS(t) ? FS_SLAB : t->c)) : operand##_few
/* In the memory of an operand that is read no later than this one is written; but of few classes with constant addresses of its
 * own (softmax of 30 million rows of 2 floats 49.2 ms, 48.5 so). */
#define COLUMNS_OF(other, operand)                                                                                    \
    REAL operand##_few[cols == IN_COLUMNS ? COLUMNS_ROOM : 1] __attribute__((aligned(64)));                           \
    REAL *const operand##_columns = cols == IN_COLUMNS && !t->room ? operand##_few : other##_columns
#define BRING(operand, i, g)                                                                                          \
    do {                                                                                                              \
        if (cols)                                                                                                     \
            NAME(bring_included)(t, operand, i, g, operand##_columns, NULL, cols);                                    \
    } while (0)
#define SEND(operand, i, g)                                                                                           \
    do {                                                                                                              \
        if (cols) {                                                                                                   \
            if (t->derived >> operand & 1)                                                                            \
                NAME(exclude)(t, i, g, operand##_columns, 0);                                                         \
            NAME(send)(t, operand, i, g, operand##_columns, NULL, NULL, 0, cols);                                     \
        }                                                                                                             \
    } while (0)
/* Element k of row r of a group: in its columns, or in memory; and all of them. */
#define ELEMENT(operand, i, r, k)                                                                                     \
    (*(cols ? operand##_columns + NAME(in_panels)(t->c, r) + NAME(place)(t->c, k, cols) * W : ROW(operand, (i) + (r)) + (k)))
#define FILL(operand, i, r, value) NAME(fill)(&ELEMENT(operand, i, r, 0), cols ? W : 1, t->c, value)
#define IS_INCLUDED(i, r, k) (!t->mask || t->mask[((i) + (r)) * t->mask_step + (k)])

/* For a pass to fetch: the lines of rows from r on. */
#define LINES(operand, r, g) NAME(lines_of)(t, operand, r, g, cols)
#define LINES_TO(operand, r) NAME(lines_to)(t, operand, r, cols)
#define NO_LINES ((NAME(lines)){0})
#define OF_LINES(place, of) .place = (of).at, .place##_apart = (of).apart
#define SET_LINES(pass, place, of)                                                                                    \
    do {                                                                                                              \
        const NAME(lines) lines_ = (of);                                                                              \
        pass.place = lines_.at;                                                                                       \
        pass.place##_apart = lines_.apart;                                                                            \
    } while (0)

#define OF(operand, i, r) (cols ? operand##_columns + (r)*t->c : ROW(operand, (i) + (r)))

/* Do what follows with t a whole group's tile, or slab by slab, of which operands are brought AGAIN. */
#define FOR_SLABS                                                                                                     \
    for (ptrdiff_t slab_ = 0; slab_ == 0 || (IN_SLABS(t) && slab_ * FS_SLAB < t->c); slab_++)                         \
        for (fs_tile part_, *now_ = IN_SLABS(t) ? (part_ = NAME(slab)(t, slab_), &part_) : (fs_tile *)t; now_;)       \
            for (const fs_tile *t = now_; now_; now_ = NULL)
#define AGAIN (cols == IN_STRANDS && now_ == &part_)

/* Where the terms of a row or group are kept between the passes: in the result or, if that is to pass by the caches, aside, if
 * `keep`; else nowhere, and they are computed again, with the same bits. */
#define TERMS(y) (cols || keep ? (y) : NULL)
#define STREAMED(operand) (!cols && (t->stream >> (operand) & 1))
/* Doubles in short vectors keep their terms in the result: its lines come while they are computed, which takes longer (softmax
 * of 8192 classes on AVX2 1.46 memcpys; 1.68 past the caches). */
#define STREAMED_AFTER_TERMS(operand) (STREAMED(operand) && (FS_FLOAT || W >= 8 || !keep))
#define KEPT(operand, i, r)                                                                                           \
    (STREAMED_AFTER_TERMS(operand) ? (REAL *)(t->aside + ((i) % 2) * t->spare) : OF(operand, i, r)) /* streamed: one row */
/* Whether a row's results may wait for the next row's terms (exp_sum_late): if that has other room for them. */
#define WAITS(operand) (STREAMED_AFTER_TERMS(operand) && keep && t->spare && t->sharing <= 1 && !t->mask)
#define TO(pass, operand, i, r, streamed)                                                                             \
    do {                                                                                                              \
        pass.y = OF(operand, i, r);                                                                                   \
        pass.stream = streamed;                                                                                       \
    } while (0)

/* The term at j of a pass: as stored, or computed again. */
#define TERM                                                                                                          \
    (p->terms ? V(load)(p->terms + j) : NAME(exp_term)(p->k, V(load)(p->x + j), p->base, p->floor, p->top))
#define TERM_REST                                                                                                     \
    (p->terms ? V(load_head)(p->terms + j, rest, V(set1)(0))                                                          \
              : NAME(exp_term)(p->k, V(load_head)(p->x + j, rest, V(set1)(-(REAL)INFINITY)), p->base, p->floor, p->top))

/* Run a step at every vector of a row and at its rest, `whole` telling which. */
#define EVERYWHERE(...)                                                                                               \
    EACH_VECTOR(                                                                                                      \
        cols, c,                                                                                                      \
        {                                                                                                             \
            enum { whole = 1 };                                                                                       \
            const ptrdiff_t rest = W;                                                                                 \
            ({ __VA_ARGS__; });                                                                                       \
            (void)rest;                                                                                               \
            (void)whole;                                                                                              \
        },                                                                                                            \
        {                                                                                                             \
            enum { whole = 0 };                                                                                       \
            ({ __VA_ARGS__; });                                                                                       \
            (void)whole;                                                                                              \
        })

/* Store the same expression there; AT loads an operand's vector. */
#define EMIT(from, expression)                                                                                        \
    do {                                                                                                              \
        const int stream_ = !cols && p->stream && (uintptr_t)(p->y + from) % 64 == 0;                                 \
        EVERYWHERE({                                                                                                  \
            j += from;                                                                                                \
            if (!cols && whole && !stream_)                                                                           \
                __builtin_prefetch((const char *)(p->y + j) + AHEAD, 1);                                              \
            VEC emitted_ = (expression);                                                                              \
            if (!whole)                                                                                               \
                V(store_head)(p->y + j, rest, emitted_);                                                              \
            else if (stream_)                                                                                         \
                V(stream)(p->y + j, emitted_);                                                                        \
            else                                                                                                      \
                V(store)(p->y + j, emitted_);                                                                         \
            j -= from;                                                                                                \
        });                                                                                                           \
    } while (0)
/* In an expression of x and other: of a row in blocks, what comes is fetched, since it may have left the cache again, and the
 * more is computed the less the processor runs ahead (log_softmax_vjp of 131072 doubles 1.82 memcpys, 1.57 so). */
#define FETCH_AGAIN                                                                                                   \
    do {                                                                                                              \
        if (!cols && whole && p->c > BLOCK) {                                                                         \
            __builtin_prefetch((const char *)(p->x + j) + 2 * AHEAD);                                                 \
            __builtin_prefetch((const char *)(p->other + j) + 2 * AHEAD);                                             \
        }                                                                                                             \
    } while (0)
#define AT(pointer, fill) (whole ? V(load)((pointer) + j) : V(load_head)((pointer) + j, rest, V(set1)((REAL)(fill))))
#define TERM_HERE (whole ? TERM : TERM_REST)
/* At a vector of classes: as it stands in memory, or one class in all lanes. */
#define CLASS_AT(pointer, fill) (cols ? V(set1)((pointer)[j / W]) : AT(pointer, fill))

/* Sums and forward terms of a group: maxima, terms, sums. */
#define GROUP_TERMS(X_, y_, rows_y_, i, g) TERMS_OF_GROUP(X_, y_, rows_y_, i, g, 0, NULL)
/* The same for an operand that has not been brought. */
#define BRING_TERMS(X_, y_, rows_y_, i, g) TERMS_OF_GROUP(X_, y_, rows_y_, i, g, 1, NULL)
#define TERMS_OF_GROUP(X_, y_, rows_y_, i, g, bring, late_)                                                           \
    do {                                                                                                              \
        SUMS sums;                                                                                                    \
        const int in_blocks_ = !cols && t->c > BLOCK;                                                                 \
        if (in_blocks_) { /* one row */                                                                               \
            enum { r = 0 };                                                                                           \
            PASS p = PASS_OF(.t = t, .k = &k, .c = t->c, .x = OF(X_, i, r), .y = (y_), .late = late_);                \
            p.save = p.y ? TERMS(p.y) : NULL;                                                                         \
            SET_LINES(p, next_x, LINES(X_, i + r, g));                                                                \
            t->for_blocks(t, NAME(blocks)(t->c), NAME(terms_of_block), &p);                                           \
        }                                                                                                             \
        NAME(group_max)(&G, t, X_, i, g, OF(X_, i, 0), cols, bring, in_blocks_);                                      \
        NAME(group_prepare)(&G, &k);                                                                                  \
        if (IN_SLABS(t)) {                                                                                            \
            NAME(exp_sum_slabs)(&G, t, &k, X_, i, g, OF(X_, i, 0), &sums);                                            \
        } else {                                                                                                      \
            FOR_PASSES(r, g) {                                                                                        \
                PASS p = FORWARD_PASS(X_, y_, i, r);                                                                  \
                p.save = p.y ? TERMS(p.y) : NULL;                                                                     \
                SET_LINES(p, next_x, LINES(X_, i + r, g));                                                            \
                SET_LINES(p, rows_y, rows_y_);                                                                        \
                p.late = in_blocks_ ? NULL : late_;                                                                   \
                sums.of[SLOT(r)] = in_blocks_ ? NAME(sum_of_blocks)(&p, &G) : NAME(exp_sum)(&p, cols);                \
            }                                                                                                         \
        }                                                                                                             \
        NAME(group_sums)(&G, &sums, g, cols);                                                                         \
    } while (0)

#define FORWARD_PASS(X_, y_, i, r)                                                                                    \
    ({                                                                                                                \
        PASS forward_ = PASS_OF(.t = t, .k = &k, .c = t->c, .x = OF(X_, i, r), .y = (y_), .terms = TERMS(y_));        \
        forward_.base = LANES(G.base, r);                                                                             \
        forward_.floor = LANES(G.floor, r);                                                                           \
        forward_.top = LANES(G.top, r);                                                                               \
        forward_.m = LANES(G.m, r);                                                                                   \
        forward_.shifts = G.shifts;                                                                                   \
        forward_;                                                                                                     \
    })

/* Give the group's special rows their values. */
#define FILL_SPECIAL(Y_, i, g, if_empty)                                                                              \
    do {                                                                                                              \
        if (__builtin_expect(G.special != 0, 0))                                                                      \
            for (ptrdiff_t r = 0; r < g; r++)                                                                         \
                if (G.special >> r & 1)                                                                               \
                    FILL(Y_, i, r, G.kind[r] == IS_EMPTY && empty ? (if_empty) : (REAL)NAN);                          \
    } while (0)

/* The same, and `none` for what the mask excludes, also in rows that have become NaN, which `factors` tell. */
#define FILL_FORWARD(Y_, i, g, none, factors)                                                                         \
    do {                                                                                                              \
        FILL_SPECIAL(Y_, i, g, none);                                                                                 \
        for (ptrdiff_t r = 0; t->mask && r < g; r++)                                                                  \
            if (__builtin_expect((G.special >> r & 1) || factors[r] != factors[r], 0))                                \
                for (ptrdiff_t j = 0; j < t->c; j++)                                                                  \
                    if (!IS_INCLUDED(i, r, j))                                                                        \
                        ELEMENT(Y_, i, r, j) = (none);                                                                \
    } while (0)

/* The same of derivatives, which rows then have where the mask excludes no class only. */
#define FILL_DERIVED(Y_, i, g)                                                                                        \
    do {                                                                                                              \
        FILL_SPECIAL(Y_, i, g, 0);                                                                                    \
        if (__builtin_expect(!cols && t->mask && G.special != 0, 0))                                                  \
            for (ptrdiff_t r = 0; r < g; r++)                                                                         \
                for (ptrdiff_t j = 0; G.special >> r & 1 && j < t->c; j++)                                            \
                    if (!IS_INCLUDED(i, r, j))                                                                           \
                        ROW(Y_, (i) + r)[j] = 0;                                                                      \
        if (!cols && t->cleared)                                                                                      \
            *t->cleared |= 1u << Y_;                                                                                  \
    } while (0)

/* A group's numbers in double. */
FS_INLINE void NAME(widen)(const GROUP *G, const REAL *from, double *to)
{
    for (ptrdiff_t o = 0; o < G->n; o += W) {
#if FS_FLOAT
        d_store(to + o, f_widen_lo(f_load(from + o)));
        d_store(to + o + d_W, f_widen_hi(f_load(from + o)));
#else
        d_store(to + o, d_load(from + o));
#endif
    }
}

/* A group's numbers into an operand that has one a row. */
FS_INLINE void NAME(give)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, const double *from)
{
    if (t->step[operand] != sizeof(REAL)) {
        for (ptrdiff_t r = 0; r < g; r++)
            ONE(operand, i + r) = (REAL)from[r];
        return;
    }
    for (ptrdiff_t o = 0; o < g; o += W) {
#if FS_FLOAT
        VEC v = f_narrow(d_load(from + o), d_load(from + o + d_W));
#else
        VEC v = d_load(from + o);
#endif
        if (o + W <= g)
            V(store)(ROW(operand, i) + o, v);
        else
            V(store_head)(ROW(operand, i) + o, g - o, v);
    }
}

/* Rows in columns, if nothing but the operation itself is wanted: done, panel by panel (panel_ops.h). */
#if FS_FUSED
static void NAME(softmax_panels)(const fs_tile *);
static void NAME(log_softmax_panels)(const fs_tile *);
static void NAME(logsumexp_panels)(const fs_tile *);
static int NAME(index_panels)(const fs_tile *, int what); /* whether the options are such */
#define IN_PANELS(...)                                                                                                \
    if (cols == IN_COLUMNS && t->c <= FEW && (__VA_ARGS__))                                                           \
    return
#else
#define IN_PANELS(...) (void)0
#endif

/* --- forward -------------------------------------------------------------------------------------------------------- */

/* flag: one class may have more than half; it gets `q`, 1 minus the others: next to 1 ULPs are finest, and none is above. */
FS_INLINE void NAME(emit_scaled)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC hi = p->hi, lo = p->lo, top = p->q, half = V(set1)((REAL)0.5);
    if (cols || p->flag)
        EMIT(from, ({
                 VEC y = NAME(mul2)(TERM_HERE, hi, lo);
                 V(select)(V(lt)(half, y), top, y);
             }));
    else
        EMIT(from, NAME(mul2)(TERM_HERE, hi, lo));
}
DEFINE_EMIT(emit_scaled)

FS_INLINE void NAME(softmax_rows)(const fs_tile *t, const int cols)
{
    enum { X, Y };
    IN_PANELS(NAME(softmax_panels)(t), 1);
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const int empty = t->params[1] != 0;
    const int keep = t->c <= (t->data[Y] == t->data[X] ? BLOCK : SAVE_LIMIT); /* blocks may need x again (to_block) */
    COLUMNS(X);
    COLUMNS_OF(X, Y);
    GROUP G;
    REAL hi[ROOM], lo[ROOM], top[ROOM];
    double rest[ROOM];
    PASS waiting;
    const PASS *late = NULL;
    FOR_GROUPS(i, g) {
        TERMS_OF_GROUP(X, KEPT(Y, i, r), LINES_TO(Y, i + r), i, g, 1, late);
        late = NULL;
        NAME(group_inverse)(&G, NULL, hi, lo);
        NAME(group_complement)(&G, rest);
        for (ptrdiff_t r = 0; r < G.n; r++)
            top[r] = (REAL)(1 - rest[r]);
        FOR_SLABS {
            if (AGAIN)
                BRING(X, i, g);
            FOR_PASSES(r, g) {
                PASS p = FORWARD_PASS(X, KEPT(Y, i, r), i, r);
                TO(p, Y, i, r, STREAMED_AFTER_TERMS(Y));
                if (AGAIN)
                    p.terms = NULL;
                p.hi = LANES(hi, r);
                p.lo = LANES(lo, r);
                p.q = LANES(top, r);
                p.flag = rest[r] < 0.5;
                if (WAITS(Y) && !p.flag && !G.special && i + g < t->n) {
                    waiting = p;
                    late = &waiting;
                } else {
                    NAME(emit_scaled_all)(&p, cols);
                }
            }
            FILL_FORWARD(Y, i, g, 0, hi);
            SEND(Y, i, g);
        }
    }
}

/* Whether log_prob takes scale m + log in two parts for the logarithm: of doubles, if scale m is exact.  Makes it that. */
FS_INLINE int NAME(join_max)(const REAL *m, double scale, REAL *log, REAL *log_lo, ptrdiff_t n)
{
    int exponent;
    if (FS_FLOAT)
        return scale == 1;
    if (frexp(scale, &exponent) != 0.5)
        return 0;
    for (ptrdiff_t o = 0; o < n; o += W) {
        VEC hi = V(mul)(V(load)(m + o), V(set1)((REAL)scale)), lo = V(load)(log_lo + o);
        NAME(add_exactly)(&hi, &lo, V(load)(log + o));
        V(store)(log + o, hi);
        V(store)(log_lo + o, lo);
    }
    return 1;
}

/* scale (x - m) - log, where x - m <= 0 and -log <= 0 do not cancel.  Doubles, whose log is itself rounded, have no room for a
 * third rounding.  flag: floats' scale is 1; doubles' is a power of two, and what is subtracted is scale m + log: scale x minus
 * the first part of that is exact where it cancels, which leaves two roundings (at most 1.6 ULP; floats, whose log is not as
 * exact, 2.07). */
FS_INLINE VEC NAME(log_prob)(const PASS *p, VEC x)
{
#if FS_FLOAT
    const VEC low = f_set1(-INFINITY);
    VEC d = f_sub(x, p->m);
    if (p->flag) /* scale is 1 */
        return f_sub(f_sub(d, p->hi), p->lo);
    return f_select(f_eq(d, low), f_sub(d, p->hi), f_fma(d, p->u, f_fma(d, p->v, f_sub(f_set1(0), p->hi))));
#else
    if (p->flag)
        return d_sub(d_fma(x, p->u, d_sub(d_set1(0), p->hi)), p->lo);
    vd lost, lost_log, d = NAME(difference)(x, p->m, &lost), z = d_mul(d, p->u), y = NAME(difference)(z, p->hi, &lost_log);
#if FS_FUSED
    lost = d_fma(lost, p->u, d_fma(d, p->u, d_sub(d_set1(0), z)));
#else
    lost = d_add(d_mul(lost, p->u), d_product_error(d, p->u, z));
#endif
    return d_select(d_lt(d_abs(z), d_set1(INFINITY)), d_add(y, d_sub(d_add(lost, lost_log), p->lo)), y);
#endif
}

FS_INLINE void NAME(emit_log)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    EMIT(from, NAME(log_prob)(p, AT(p->x, 0)));
}
DEFINE_EMIT(emit_log)

FS_INLINE void NAME(log_softmax_rows)(const fs_tile *t, const int cols)
{
    enum { X, Y };
    IN_PANELS(NAME(log_softmax_panels)(t), 1);
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const REAL scale = (REAL)k.scale, scale_lo = (REAL)(k.scale - scale);
    const int empty = t->params[1] != 0, keep = 0;
    COLUMNS(X);
    COLUMNS_OF(X, Y);
    GROUP G;
    REAL log[ROOM], log_lo[ROOM];
    FOR_GROUPS(i, g) {
        BRING_TERMS(X, NULL, LINES_TO(Y, i + r), i, g);
        NAME(group_log)(&G, t, &k, X, i, g);
        G.shifts = NULL; /* there are no terms to shift */
        for (ptrdiff_t r = 0; r < G.n; r++) {
            log[r] = (REAL)G.log[r];
            log_lo[r] = (REAL)((G.log_hi[r] - log[r]) + G.log_lo[r]);
        }
        const int joined = NAME(join_max)(G.m, k.scale, log, log_lo, G.n);
        FOR_SLABS {
            if (AGAIN)
                BRING(X, i, g);
            FOR_PASSES(r, g) {
                PASS p = FORWARD_PASS(X, NULL, i, r);
                TO(p, Y, i, r, STREAMED(Y));
                p.hi = LANES(log, r);
                p.lo = LANES(log_lo, r);
                p.u = V(set1)(scale);
                p.v = V(set1)(scale_lo);
                p.flag = joined;
                NAME(emit_log_all)(&p, cols);
            }
            FILL_FORWARD(Y, i, g, -(REAL)INFINITY, log);
            SEND(Y, i, g);
        }
    }
}

/* log sum exp(scale x) of a group's rows into the operand S. */
static void NAME(give_lse)(const fs_tile *t, int S, ptrdiff_t i, ptrdiff_t g, const GROUP *G, double scale)
{
    double m[ROOM], s[ROOM];
    NAME(widen)(G, G->m, m);
    for (ptrdiff_t o = 0; o < G->n; o += d_W)
        d_store(s + o, NAME(plus_log)(G, o, d_load(m + o), d_set1(0), scale));
    if (__builtin_expect(G->special != 0, 0))
        for (ptrdiff_t r = 0; r < g; r++)
            if (G->special >> r & 1)
                s[r] = G->kind[r] == IS_NAN ? NAN : m[r];
    NAME(give)(t, S, i, g, s);
}

FS_INLINE void NAME(logsumexp_rows)(const fs_tile *t, const int cols)
{
    enum { X, S };
    IN_PANELS(NAME(logsumexp_panels)(t), 1);
    const EXPK k = NAME(exp_constants)(t->params[0]);
    const int keep = 0;
    COLUMNS(X);
    GROUP G;
    FOR_GROUPS(i, g) {
        BRING_TERMS(X, NULL, NO_LINES, i, g);
        NAME(group_log)(&G, t, &k, X, i, g);
        NAME(give_lse)(t, S, i, g, &G, k.scale);
    }
}

static double NAME(one_plus_log)(const GROUP *G, double a, double scale)
{
    double lane[d_W];
    d_store(lane, NAME(plus_log)(G, 0, d_set1(a), d_set1(0), scale));
    return lane[0];
}

/* The sum of b exp, both signs; b = 0 excludes a class whatever x is there. */
FS_INLINE void NAME(weighted_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const VEC zero = V(set1)(0), low = V(set1)(-(REAL)INFINITY);
    const VEC vb = p->base, vl = p->floor, vt = p->top;
    const REAL *x = p->x + from, *b = p->other + from;
    ACC a = NAME(acc_zero)();
#define WEIGHTED(load_x, load_b)                                                                                      \
    do {                                                                                                              \
        VEC f = load_b, e = NAME(exp_term)(p->k, V(select)(V(eq)(f, zero), low, load_x), vb, vl, vt);                 \
        NAME(acc_product)(&a, f, e);                                                                                  \
    } while (0)
    EACH_VECTOR(cols, c, WEIGHTED(V(load)(x + j), V(load)(b + j)),
                WEIGHTED(V(load_head)(x + j, rest, low), V(load_head)(b + j, rest, zero)));
#undef WEIGHTED
    s[0] = NAME(acc_done)(a, 0);
    s[1] = s[0];
}
DEFINE_SUMS(weighted_sums)

FS_INLINE void NAME(logsumexp_weighted_rows)(const fs_tile *t, const int cols)
{
    enum { X, B, S, SIGN };
    (void)cols;
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
            GROUP G = {.n = W};
            for (int r = 0; r < W; r++)
                G.m[r] = m;
            NAME(group_prepare)(&G, &k);
            PASS p = PASS_OF(.t = t, .k = &k, .c = t->c, .x = x, .other = b);
            p.base = V(set1)(G.base[0]);
            p.floor = V(set1)(G.floor[0]);
            p.top = V(set1)(G.top[0]);
            ACC first, second;
            NAME(weighted_sums_all)(&p, &first, &second, 0);
            double hi, lo;
            NAME(sum_one)(first, &hi, &lo);
            sum = hi + lo;
            double u = fabs(sum) / G.top_term[0];
            u -= u * (G.top_lo[0] / G.top_term[0]);
            vd low, high = d_log(d_set1(u), d_set1(0), LOG, &low);
            d_store(G.log, d_add(high, low));
            d_store(G.log_hi, high);
            d_store(G.log_lo, low);
            s = sum == 0 ? -INFINITY : u < 0x1p-1000 ? log(u) + k.scale * m : NAME(one_plus_log)(&G, m, k.scale);
        }
        ONE(S, i) = (REAL)s;
        ONE(SIGN, i) = sum > 0 ? 1 : sum < 0 ? -1 : sum == 0 ? 0 : (REAL)NAN;
    }
}

/* --- derivatives, from the saved output ---------------------------------------------------------------------------------- */

/* exp(x) of a vector of log-probabilities. */
FS_INLINE VEC NAME(prob)(const EXPK *k, VEC logp)
{
    return NAME(deep_term)(k, logp, V(set1)(0), V(set1)((REAL)-DROP), V(set1)(0));
}

/* sum p and sum p (t - u) where p is not 0.  flag: x holds log p. */
FS_INLINE void NAME(centre_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const VEC zero = V(set1)(0), ref = p->u;
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
    EACH_VECTOR(cols, c, CENTRE(V(load)(x + j), V(load)(t + j)); FETCH(p, from + j),
                CENTRE(V(load_head)(x + j, rest, V(set1)(fill)), V(load_head)(t + j, rest, ref)); FETCH(p, from + j));
#undef CENTRE
    s[0] = NAME(acc_done)(a, 0);
    s[1] = NAME(acc_done)(b, 0);
}
DEFINE_SUMS(centre_sums)

/* scale p (t - centre), or scale (t - centre) if flag; 0 for classes of probability 0. */
FS_INLINE void NAME(emit_centred)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC zero = V(set1)(0), hi = p->hi, lo = p->lo, s = p->v;
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

/* t at each row's first largest p, where that class can occur, else 0. */
FS_INLINE void NAME(tangents_at_top)(const fs_tile *t, int P, int T, ptrdiff_t i, ptrdiff_t g, const GROUP *G,
                                     const REAL *p, const REAL *x, REAL dead, REAL *ref, const int cols)
{
    if (cols) {
        for (ptrdiff_t o = 0; o < g; o += W, p += t->c * W, x += t->c * W) {
            VEC m = V(load)(G->m + o), at = V(load)(x);
            for (ptrdiff_t j = (t->c - 1) * W; j >= 0; j -= W)
                at = V(select)(V(eq)(V(load)(p + j), m), V(load)(x + j), at);
            V(store)(ref + o, V(select)(V(eq)(m, V(set1)(dead)), V(set1)(0), at));
        }
    } else {
        for (ptrdiff_t r = 0; r < g; r++) {
            ptrdiff_t at = NAME(find)(ROW(P, i + r), t->c, G->m[r]);
            ref[r] = ROW(P, i + r)[at] == dead ? 0 : ROW(T, i + r)[at];
        }
    }
}

/* The largest |x| of a row; a NaN may be dropped. */
FS_INLINE double NAME(largest)(const REAL *x, ptrdiff_t c)
{
    VEC m = V(set1)(0), n = m;
    ptrdiff_t j = 0;
    for (; j + 2 * W <= c; j += 2 * W) {
        m = V(max)(V(abs)(V(load)(x + j)), m);
        n = V(max)(V(abs)(V(load)(x + j + W)), n);
    }
    for (; j < c; j += W)
        m = V(max)(V(abs)(V(load_head)(x + j, c - j < W ? c - j : W, V(set1)(0))), m);
    REAL lane[W], most = 0;
    V(store)(lane, V(max)(m, n));
    for (int k = 0; k < W; k++)
        most = lane[k] > most ? lane[k] : most;
    return most;
}

/* Times the largest |t| that is expected, where a sum of p t begins; and where one of p does. */
#define PLAIN_ONSET 4.0
/* Elements of a row, and times the largest |t| among them, that no |t| of the row is expected to exceed. */
#define PLAIN_SAMPLE (8 * W)
#define PLAIN_MARGIN 16

/* sum p and sum p t of a row, lane by lane.  Those of doubles begin at an onset that dwarfs what is added: so what an addition
 * loses is known exactly, as in Fast2Sum, and with it what the product lost.  Returns the largest |t| of doubles: if it is more
 * than was `expected`, the sum is not exact.
 *
 * One of two lines is fetched, shortly before it is needed: the processor brings the other, and its own fetching ahead goes on.
 * Reading both operands of rows of 65536 doubles took 0.63 memcpys so; 0.77 without; fetching 4 KB ahead 0.79, all lines, and
 * 0.88, one of two. */
FS_INLINE double NAME(plain_dot_within)(const REAL *x, const REAL *t, ptrdiff_t c, double expected, ACC *total, ACC *dot)
{
    const double far = FS_FLOAT ? 0 : PLAIN_ONSET * expected, near = FS_FLOAT ? 0 : PLAIN_ONSET;
    ACC a0 = {d_set1(near), d_set1(0)}, b0 = {d_set1(far), d_set1(0)}, a1 = a0, b1 = b0;
    vd m = d_set1(0);
#if FS_FLOAT
#define ADD(a_, b_, x0, x1, t0, t1)                                                                                   \
    do {                                                                                                              \
        const vd u_ = x0, v_ = x1;                                                                                    \
        a_.a = d_add(a_.a, u_);                                                                                       \
        a_.b = d_add(a_.b, v_);                                                                                       \
        b_.a = d_fma(u_, t0, b_.a);                                                                                   \
        b_.b = d_fma(v_, t1, b_.b);                                                                                   \
    } while (0)
#define ADD_AT(a_, b_, o)                                                                                             \
    ADD(a_, b_, d_from_float(x + (o)), d_from_float(x + (o) + d_W), d_from_float(t + (o)), d_from_float(t + (o) + d_W))
#define ADD_REST(a_, b_, v, w) ADD(a_, b_, f_widen_lo(v), f_widen_hi(v), f_widen_lo(w), f_widen_hi(w))
#else
#define ADD_REST(a_, b_, v, w)                                                                                        \
    do {                                                                                                              \
        const vd x_ = v, t_ = w, u_ = d_add(a_.a, x_), v_ = d_fma(x_, t_, b_.a);                                      \
        m = d_max(d_abs(t_), m);                                                                                      \
        a_.b = d_add(a_.b, d_sub(x_, d_sub(u_, a_.a)));                                                               \
        b_.b = d_add(b_.b, d_fma(x_, t_, d_sub(b_.a, v_)));                                                           \
        a_.a = u_;                                                                                                    \
        b_.a = v_;                                                                                                    \
    } while (0)
#define ADD_AT(a_, b_, o) ADD_REST(a_, b_, d_load(x + (o)), d_load(t + (o)))
#endif
    ptrdiff_t j = 0;
    for (; j + 2 * W <= c; j += 2 * W) {
        for (ptrdiff_t o = 0; o < 2 * W * (ptrdiff_t)sizeof(REAL); o += 128) {
            __builtin_prefetch((const char *)(x + j) + AHEAD + o, 0, 2);
            __builtin_prefetch((const char *)(t + j) + AHEAD + o, 0, 2);
        }
        ADD_AT(a0, b0, j);
        ADD_AT(a1, b1, j + W);
    }
    for (; j < c; j += W) {
        const ptrdiff_t rest = c - j < W ? c - j : W;
        const VEC v = V(load_head)(x + j, rest, V(set1)(0)), w = V(load_head)(t + j, rest, V(set1)(0));
        ADD_REST(a0, b0, v, w);
    }
#undef ADD
#undef ADD_AT
#undef ADD_REST
    *total = NAME(acc_done)(a0, near);
    *dot = NAME(acc_done)(b0, far);
    NAME(acc_merge)(total, NAME(acc_done)(a1, near));
    NAME(acc_merge)(dot, NAME(acc_done)(b1, far));
    double lane[d_W], most = 0;
    d_store(lane, m);
    for (int k = 0; !FS_FLOAT && k < d_W; k++)
        most = lane[k] > most ? lane[k] : most;
    return most;
}

/* The same, exact.  The largest |t| is read off on the way: a pass of its own would wait for memory alone (softmax_vjp of 4096
 * doubles 1.30 memcpys, 1.19 so). */
FS_INLINE double NAME(plain_dot)(const REAL *x, const REAL *t, ptrdiff_t c, ACC *total, ACC *dot)
{
    const double expected = FS_FLOAT ? 0 : PLAIN_MARGIN * NAME(largest)(t, c < PLAIN_SAMPLE ? c : PLAIN_SAMPLE);
    const double most = NAME(plain_dot_within)(x, t, c, expected, total, dot);
    if (most > expected)
        NAME(plain_dot_within)(x, t, c, most, total, dot);
    return most;
}

/* scale p (t - centre) of a row without zeros and infinities to mind; see emit_centred. */
FS_INLINE void NAME(emit_plain)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC hi = p->hi, lo = p->lo, s = p->v;
    EMIT(from, ({
             FETCH_AGAIN;
             NAME(fetch_lines)(p->t);
             const VEC q = V(mul)(AT(p->x, 0), s), x = AT(p->other, 0), h = V(sub)(x, hi), back = V(sub)(h, x);
             const VEC rest_ = V(sub)(V(sub)(x, V(sub)(h, back)), V(add)(hi, back));
             NAME(mul2)(q, h, V(sub)(rest_, lo));
         }));
}

DEFINE_EMIT(emit_plain)

/* Write a row of scale p (t - centre), if that needs no care: centre + rest = <p, t> / s, s = sum p; most is the largest |t|;
 * in each lane of `part` is something less than <p, |t - centre|>.
 *
 * Taking t relative to the most probable class costs two passes to find it (softmax_vjp of 128 rows of 1000 floats 33 us
 * instead of 22).  A centre of t as it is, in two parts, is wrong by some 2^-48 (doubles: 2^-86) of itself and of the terms'
 * size <p, |t - centre|>.
 * That is nothing, unless the size is tiny against the centre, as it is where one class dominates or all t are nearly the
 * same.  Rows that are not finite, or not of a softmax, need care too. */
FS_INLINE int NAME(emit_if_plain)(const fs_tile *t, int P, int T, int Y, ptrdiff_t row, double scale, double s, double centre,
                                  double rest, double most, vd part)
{
    const REAL widest = (REAL)fmax(2, 2 * fabs(scale)); /* nothing must overflow */
    const REAL high = (REAL)centre, low = (REAL)(centre - high + rest);
    const vd tiny = d_set1(0x1p-16 * fabs(centre) + 0x1p-24 * most);
    if (!d_bits(d_lt(tiny, part)) || !(fabs(1 - s) <= UNIT_SUM_BAND) || !(fabs(widest * high) < INFINITY))
        return 0;
    PASS pass = PASS_OF(.t = t, .c = t->c, .x = ROW(P, row), .other = ROW(T, row), .y = ROW(Y, row),
                        .stream = t->stream >> Y & 1);
    pass.v = V(set1)((REAL)scale);
    pass.hi = V(set1)(high);
    pass.lo = V(set1)(low);
    NAME(emit_plain_all)(&pass, 0);
    return 1;
}

/* d / s, in two parts. */
FS_INLINE double NAME(plain_centre)(double s, double s_lo, double d, double d_lo, double *rest)
{
    const double centre = d / s;
    *rest = (fma(-centre, s, d) - centre * s_lo + d_lo) / s;
    return centre;
}

/* Plain rows of a group are written; bit r of what is returned: row r needs care, and is not.
 *
 * Each lane's part of the sum of p (t - centre) is less than the size: if any is large enough, so is that.
 *
 * Few rows at a time, so that they and their result stay in the first-level cache, and their sums make one vector. */
FS_INLINE uint64_t NAME(plain_rows)(const fs_tile *t, int P, int T, int Y, ptrdiff_t i, ptrdiff_t g, double scale)
{
    enum { MOST = d_W / 2 };
    ptrdiff_t step = ROWS_GROUP / 2 / t->c;
    step = step < 1 ? 1 : step > MOST ? MOST : step;
    uint64_t careful = 0;
    for (ptrdiff_t from = 0; from < g; from += step) {
        const ptrdiff_t n = g - from < step ? g - from : step;
        ACC of[d_W]; /* row by row the sum of p, and that of p t */
        double most[MOST], hi[d_W], lo[d_W];
        for (ptrdiff_t r = 0; r < n; r++) {
            const ptrdiff_t row = i + from + r;
            most[r] = NAME(plain_dot)(ROW(P, row), ROW(T, row), t->c, &of[2 * r], &of[2 * r + 1]);
        }
        for (ptrdiff_t r = 2 * n; r < d_W; r++)
            of[r] = of[0];
        const ACC sums = NAME(sum_lanes)(of);
        d_store(hi, sums.a);
        d_store(lo, sums.b);
        for (ptrdiff_t r = 0; r < n; r++) {
            const ACC a = of[2 * r], b = of[2 * r + 1];
            double rest;
            const double centre = NAME(plain_centre)(hi[2 * r], lo[2 * r], hi[2 * r + 1], lo[2 * r + 1], &rest);
            const vd v = d_set1(centre);
#if FS_FLOAT
            const vd part = d_max(d_abs(d_fnma(v, a.a, b.a)), d_abs(d_fnma(v, a.b, b.b)));
#else
            const vd part = d_abs(d_fnma(v, d_add(a.a, a.b), d_add(b.a, b.b)));
#endif
            if (!NAME(emit_if_plain)(t, P, T, Y, i + from + r, scale, hi[2 * r], centre, rest, most[r], part))
                careful |= 1ull << (from + r);
        }
    }
    return careful;
}

/* The plain sums of a block, and its largest |t|. */
static void NAME(plain_block)(void *context, ptrdiff_t b)
{
    const PASS *p = context;
    const REAL *x = p->x + b * BLOCK, *t = p->other + b * BLOCK;
    const ptrdiff_t c = NAME(block_length)(p, b);
    double *out = p->t->scratch + 4 * b, *most = p->t->scratch + 4 * NAME(blocks)(p->c) + b;
    ACC total, dot;
    *most = NAME(plain_dot)(x, t, c, &total, &dot);
    NAME(sum_one)(total, out, out + 1);
    NAME(sum_one)(dot, out + 2, out + 3);
}

/* The same for one row in blocks.  The parts of sum p (t - centre) are those of the blocks, and their absolute values together
 * are less than the size. */
static uint64_t NAME(plain_blocks)(const fs_tile *t, int P, int T, int Y, ptrdiff_t row, double scale)
{
    const ptrdiff_t blocks = NAME(blocks)(t->c);
    const double *of = t->scratch, *largest = of + 4 * blocks;
    double s, s_lo, d, d_lo, rest, part = 0, most = 0;
    PASS pass = PASS_OF(.t = t, .c = t->c, .x = ROW(P, row), .other = ROW(T, row));
    t->for_blocks(t, blocks, NAME(plain_block), &pass);
    NAME(sum_one)(NAME(merge_blocks)(t, t->c, 0), &s, &s_lo);
    NAME(sum_one)(NAME(merge_blocks)(t, t->c, 2), &d, &d_lo);
    const double centre = NAME(plain_centre)(s, s_lo, d, d_lo, &rest);
    for (ptrdiff_t b = 0; b < blocks; b++, of += 4) {
        part += fabs(of[2] - centre * of[0]);
        most = fmax(most, largest[b]);
    }
    return !NAME(emit_if_plain)(t, P, T, Y, row, scale, s, centre, rest, most, d_set1(part));
}

/* The centres of rows, in two parts, with t taken relative to its value at the most probable class.  logs: P holds
 * logarithms. */
FS_INLINE void NAME(careful_centres)(const fs_tile *t, int P, int T, int Y, ptrdiff_t i, ptrdiff_t g, REAL *p,
                                     const REAL *x, REAL *hi, REAL *lo, const int cols, const int logs)
{
    const EXPK k = NAME(exp_constants)(1);
    GROUP G;
    SUMS total, dot;
    REAL ref[ROOM] = {0};
    double dot_hi[ROOM], dot_lo[ROOM];
    NAME(group_max)(&G, t, P, i, g, p, cols, 0, 0);
    NAME(tangents_at_top)(t, P, T, i, g, &G, p, x, logs ? -(REAL)INFINITY : 0, ref, cols);
    FOR_PASSES(r, g) {
        PASS pass = PASS_OF(.t = t, .k = &k, .c = t->c, .x = cols ? p + r * t->c : ROW(P, i + r),
                            .other = cols ? x + r * t->c : ROW(T, i + r), .flag = logs, OF_LINES(next_x, LINES(P, i + r, g)),
                            OF_LINES(next_other, LINES(T, i + r, g)), OF_LINES(rows_y, LINES_TO(Y, i + r)));
        pass.u = LANES(ref, r);
        NAME(centre_sums_all)(&pass, &total.of[SLOT(r)], &dot.of[SLOT(r)], cols);
    }
    NAME(sum_rows)(&total, g, G.s, G.s_lo, cols);
    NAME(sum_rows)(&dot, g, dot_hi, dot_lo, cols);
    for (ptrdiff_t r = 0; r < G.n; r++) {
        /* The rounding of a p that sums to nearly 1 is divided out; any other p is taken to the letter.  The centre has
         * two parts: every term of the row gets its error, which is relative to the centre, not to the term. */
        double lack = (1 - G.s[r]) - G.s_lo[r], sum = G.s[r], key = ref[r];
        int unit = fabs(lack) <= UNIT_SUM_BAND;
        double quotient = dot_hi[r] / sum;
        double low = unit ? (fma(-quotient, sum, dot_hi[r]) - quotient * G.s_lo[r] + dot_lo[r]) / sum : dot_lo[r];
        double centre = unit ? quotient : dot_hi[r] - key * lack;
        /* ref + centre + low in two parts; where t is ref, what remains is exactly the centre. */
        hi[r] = (REAL)(key + centre);
        double top = hi[r], rest = fabs(key) < fabs(centre) ? (centre - top) + key : (key - top) + centre;
        lo[r] = fabs(top) < INFINITY ? (REAL)(rest + low) : 0;
    }
}

/* Softmax and log-softmax times a tangent; `logs` tells which. */
FS_INLINE void NAME(centred_rows)(const fs_tile *t, const int cols, const int logs)
{
    enum { P, T, Y };
    const double scale = t->params[0];
    const int plain = FS_FUSED && !cols && !logs;
    COLUMNS(P);
    COLUMNS(T);
    COLUMNS(Y);
    FOR_GROUPS(i, g) {
        REAL hi[ROOM], lo[ROOM];
        BRING(P, i, g);
        BRING(T, i, g);
        const uint64_t careful = !plain          ? ~0ull
                                 : t->c <= BLOCK ? NAME(plain_rows)(t, P, T, Y, i, g, scale)
                                                 : NAME(plain_blocks)(t, P, T, Y, i, scale);
        if (!careful)
            continue;
        NAME(careful_centres)(t, P, T, Y, i, g, OF(P, i, 0), OF(T, i, 0), hi, lo, cols, logs);
        FOR_PASSES(r, g) {
            if (!cols && !(careful >> r & 1))
                continue;
            PASS pass = PASS_OF(.t = t, .c = t->c, .x = OF(P, i, r), .other = OF(T, i, r), .flag = logs);
            TO(pass, Y, i, r, STREAMED(Y));
            pass.v = V(set1)((REAL)scale);
            pass.hi = LANES(hi, r);
            pass.lo = LANES(lo, r);
            NAME(emit_centred_all)(&pass, cols);
        }
        SEND(Y, i, g);
    }
}

FS_INLINE void NAME(softmax_jvp_rows)(const fs_tile *t, const int cols) { NAME(centred_rows)(t, cols, 0); }
FS_INLINE void NAME(log_softmax_jvp_rows)(const fs_tile *t, const int cols) { NAME(centred_rows)(t, cols, 1); }

/* sum of t where x is alive: p != 0 (times p), or log p != -inf (flag; without p). */
FS_INLINE void NAME(alive_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
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
    EACH_VECTOR(cols, c, ALIVE(V(load)(x + j), V(load)(t + j)); FETCH(p, from + j),
                ALIVE(V(load_head)(x + j, rest, dead), V(load_head)(t + j, rest, zero)); FETCH(p, from + j));
#undef ALIVE
    s[0] = NAME(acc_done)(a, 0);
    s[1] = s[0];
}
DEFINE_SUMS(alive_sums)

/* scale (g - p sum g), p = exp(x) */
FS_INLINE void NAME(emit_log_vjp)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC zero = V(set1)(0), hi = p->hi, lo = p->lo, s = p->v;
    const VEC dead = V(set1)(-(REAL)INFINITY);
    EMIT(from, ({
             FETCH_AGAIN;
             VEC x = AT(p->x, 0), q = NAME(prob)(p->k, x);
             VEC d = V(fnma)(q, lo, V(fnma)(q, hi, AT(p->other, 0)));
             V(select)(V(eq)(x, dead), zero, V(mul)(d, s));
         }));
}
DEFINE_EMIT(emit_log_vjp)

FS_INLINE void NAME(log_softmax_vjp_rows)(const fs_tile *t, const int cols)
{
    enum { P, T, Y };
    const EXPK k = NAME(exp_constants)(1);
    COLUMNS(P);
    COLUMNS(T);
    COLUMNS(Y);
    FOR_GROUPS(i, g) {
        SUMS total;
        ACC same;
        double hi[ROOM], lo[ROOM];
        REAL head[ROOM], rest[ROOM];
        BRING(P, i, g);
        BRING(T, i, g);
        FOR_PASSES(r, g) {
            PASS p = PASS_OF(.t = t, .c = t->c, .x = OF(P, i, r), .other = OF(T, i, r), .flag = 1,
                             OF_LINES(next_x, LINES(P, i + r, g)), OF_LINES(next_other, LINES(T, i + r, g)),
                             OF_LINES(rows_y, LINES_TO(Y, i + r)));
            NAME(alive_sums_all)(&p, &total.of[SLOT(r)], &same, cols);
        }
        NAME(sum_rows)(&total, g, hi, lo, cols);
        for (ptrdiff_t r = 0; r < (cols ? g : W); r++) {
            head[r] = (REAL)hi[r];
            rest[r] = (REAL)(hi[r] - head[r] + lo[r]);
        }
        FOR_PASSES(r, g) {
            PASS p = PASS_OF(.t = t, .k = &k, .c = t->c, .x = OF(P, i, r), .other = OF(T, i, r));
            TO(p, Y, i, r, STREAMED(Y));
            p.hi = LANES(head, r);
            p.lo = LANES(rest, r);
            p.v = V(set1)((REAL)t->params[0]);
            NAME(emit_log_vjp_all)(&p, cols);
        }
        SEND(Y, i, g);
    }
}

FS_INLINE void NAME(logsumexp_jvp_rows)(const fs_tile *t, const int cols)
{
    enum { P, T, S };
    COLUMNS(P);
    COLUMNS(T);
    FOR_GROUPS(i, g) {
        SUMS dot;
        ACC same;
        double hi[ROOM], lo[ROOM];
        BRING(P, i, g);
        BRING(T, i, g);
        FOR_PASSES(r, g) {
            PASS p = PASS_OF(.t = t, .c = t->c, .x = OF(P, i, r), .other = OF(T, i, r), OF_LINES(next_x, LINES(P, i + r, g)),
                             OF_LINES(next_other, LINES(T, i + r, g)));
            NAME(alive_sums_all)(&p, &dot.of[SLOT(r)], &same, cols);
        }
        NAME(sum_rows)(&dot, g, hi, lo, cols);
        for (ptrdiff_t r = 0; r < g; r++)
            ONE(S, i + r) = (REAL)((hi[r] + lo[r]) * t->params[0]);
    }
}

FS_INLINE void NAME(emit_times)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC zero = V(set1)(0), f = p->u, f_lo = p->v;
    EMIT(from, ({
             VEC q = AT(p->x, 0);
             NAME(fetch_lines)(p->t);
             V(select)(V(eq)(q, zero), zero, NAME(mul2)(q, f, f_lo));
         }));
}
DEFINE_EMIT(emit_times)

FS_INLINE void NAME(logsumexp_vjp_rows)(const fs_tile *t, const int cols)
{
    enum { P, G_, Y };
    COLUMNS(P);
    COLUMNS(Y);
    FOR_GROUPS(i, g) {
        REAL hi[ROOM] = {0}, lo[ROOM] = {0};
        BRING(P, i, g);
        for (ptrdiff_t r = 0; r < g; r++) {
            double up = ONE(G_, i + r), f = up * t->params[0];
            hi[r] = (REAL)f;
            lo[r] = (REAL)(FS_FLOAT ? f - hi[r] : fma(up, t->params[0], -f));
            if (!(fabs(f) < INFINITY))
                lo[r] = 0;
        }
        FOR_PASSES(r, g) {
            PASS p = PASS_OF(.t = t, .c = t->c, .x = OF(P, i, r), .y = OF(Y, i, r));
            p.u = LANES(hi, r);
            p.v = LANES(lo, r);
            NAME(emit_times_all)(&p, cols);
        }
        SEND(Y, i, g);
    }
}

FS_INLINE void NAME(softmax_jacobian_rows)(const fs_tile *t, const int cols)
{
    enum { P, J };
    const REAL s = (REAL)t->params[0];
    (void)cols;
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
            PASS pass = PASS_OF(.t = t, .c = t->c, .x = p, .y = out + j * t->c);
            pass.u = V(set1)(-p[j] * s);
            pass.v = V(set1)(0);
            NAME(emit_times)(&pass, 0, t->c, 0);
            long double rest = !unit ? 1 - (long double)p[j] : j == top ? others : hi - p[j];
            out[j * t->c + j] = (REAL)(p[j] * rest * t->params[0]);
        }
    }
}

FS_INLINE void NAME(log_softmax_jacobian_rows)(const fs_tile *t, const int cols)
{
    enum { P, J };
    const EXPK k = NAME(exp_constants)(1);
    const double s = t->params[0];
    (void)cols;
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
                NAME(fill)(out + j * t->c, 1, t->c, 0);
            else
                out[j * t->c + j] = (REAL)(-s * expm1((double)logp[j]));
        }
    }
}

/* --- cross-entropy ------------------------------------------------------------------------------------------------------- */

enum { NAME(SCALE), NAME(EMPTY), NAME(KEEP), NAME(SPREAD), NAME(ZLOSS), NAME(IGNORE) };

FS_INLINE void NAME(plain_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const REAL *x = p->x + from;
    ACC a = NAME(acc_zero)();
    EACH_VECTOR(cols, c, NAME(acc_any)(&a, V(load)(x + j)), NAME(acc_any)(&a, V(load_head)(x + j, rest, V(set1)(0))));
    s[0] = NAME(acc_done)(a, 0);
    s[1] = s[0];
}
DEFINE_SUMS(plain_sums)

/* How many classes the mask includes in each row of a group, of which `col` holds 1 or 0 in columns. */
FS_INLINE void NAME(count_included)(const fs_tile *t, ptrdiff_t i, ptrdiff_t g, const REAL *col, double *counts,
                                    const int cols)
{
    for (ptrdiff_t r = 0; r < g; r += cols ? W : 1) {
        REAL lane[W];
        VEC count = V(set1)(0);
        for (ptrdiff_t j = 0; cols && j < t->c * W; j += W)
            count = V(add)(count, V(load)(col + r * t->c + j));
        V(store)(lane, count);
        for (ptrdiff_t q = 0; cols && q < W; q++)
            counts[r + q] = lane[q];
        if (!cols)
            counts[r] = r && t->mask_step == 0 ? counts[0] : (double)NAME(included)(t, i + r);
    }
}

/* What of a vector of classes the mask includes, if smoothing has to know. */
FS_INLINE VEC NAME(of_included)(const PASS *p, ptrdiff_t j, ptrdiff_t rest, const int whole, VEC v, const int cols)
{
    const VEC zero = V(set1)(0);
    if (!p->even)
        return v;
    if (cols)
        return V(select)(V(eq)(V(load)((const REAL *)p->even + j), zero), zero, v);
    const uint8_t *mask = (const uint8_t *)p->even + j;
    return V(select)(whole ? V(truth)(mask) : V(truth_head)(mask, rest), v, zero);
}

/* What a pass at row r of a group takes as `even`: bytes of the mask, or in columns numbers that are 0 likewise.  What emits
 * derivatives in rows takes it, too, to make them 0 there. */
#define EVEN_ROOM REAL even_columns[cols ? COLUMNS_MAX * ROOM : 1] __attribute__((aligned(64)))
#define BRING_EVEN(wanted, i, g)                                                                                      \
    do {                                                                                                              \
        if (cols && (wanted)) {                                                                                       \
            for (ptrdiff_t j_ = 0; j_ < t->c * (((g) + W - 1) / W * W); j_++)                                          \
                even_columns[j_] = 1;                                                                                 \
            NAME(exclude)(t, i, g, even_columns, 0);                                                                  \
        }                                                                                                             \
    } while (0)
#define COUNT_EVEN(i, g, counts) NAME(count_included)(t, i, g, even_columns, counts, cols)
#define MASK_OF(i, r) ((const char *)t->mask + ((i) + (r)) * t->mask_step)
#define INCLUDED_AT(i, r) (cols || !t->mask ? NULL : MASK_OF(i, r))
#define IF_INCLUDED(v) NAME(of_included)(p, j, rest, whole, v, 0)
#define EVEN_AT(i, r) (cols ? (const char *)(even_columns + (r)*t->c) : MASK_OF(i, r))

/* sum w (m - x), what smoothing adds to a loss, and sum w, over the classes that are included.  flag: no weight is 0, and none
 * is excluded. */
FS_INLINE void NAME(spread_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const VEC zero = V(set1)(0), m = p->m;
    const REAL *x = p->x + from, *w = p->w ? p->w + from : NULL;
    ACC a = NAME(acc_zero)(), all = NAME(acc_zero)();
#define WEIGHTED                                                                                                      \
    ({                                                                                                                \
        VEC q = NAME(of_included)(p, from + j, rest, whole, CLASS_AT(w, 0), cols);                                    \
        NAME(acc_product)(&a, q, V(select)(V(eq)(q, zero), zero, V(sub)(m, AT(x, 0))));                              \
        if (p->even)                                                                                                  \
            NAME(acc_any)(&all, q);                                                                                   \
    })
#if FS_FLOAT
    if (w && p->flag && !cols) {
        /* Widened on their way from memory, which spares shuffles, and in two sums, which need not wait for each other. */
        const vd top = f_widen_lo(m);
        ACC b = NAME(acc_zero)();
#define GAPS(o) d_sub(top, d_from_float(x + (o)))
        for (; c >= 2 * W; c -= 2 * W, x += 2 * W, w += 2 * W) {
            a.a = d_fma(d_from_float(w), GAPS(0), a.a);
            a.b = d_fma(d_from_float(w + d_W), GAPS(d_W), a.b);
            b.a = d_fma(d_from_float(w + W), GAPS(W), b.a);
            b.b = d_fma(d_from_float(w + W + d_W), GAPS(W + d_W), b.b);
        }
#undef GAPS
        NAME(acc_merge)(&a, b);
    }
#endif
    if (w)
        EVERYWHERE(WEIGHTED);
    else
        EVERYWHERE({
            VEC gap = V(sub)(m, whole ? V(load)(x + j) : V(load_head)(x + j, rest, m));
            NAME(acc_any)(&a, NAME(of_included)(p, from + j, rest, whole, gap, cols));
        });
#undef WEIGHTED
    s[0] = NAME(acc_done)(a, 0);
    s[1] = NAME(acc_done)(all, 0);
}
DEFINE_SUMS(spread_sums)

#include "second_order_ops.h"

/* Gradient against class indices but for the target's column: term a - u w; flag: there is no u. */
FS_INLINE void NAME(emit_index)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC hi = p->hi, lo = p->lo, u = p->u;
    if (p->flag && !p->even)
        EMIT(from, NAME(mul2)(TERM_HERE, hi, lo));
    else if (p->flag)
        EMIT(from, IF_INCLUDED(NAME(mul2)(TERM_HERE, hi, lo)));
    else if (p->w)
        EMIT(from, IF_INCLUDED(V(fnma)(u, CLASS_AT(p->w, 0), NAME(mul2)(TERM_HERE, hi, lo))));
    else
        EMIT(from, IF_INCLUDED(V(sub)(NAME(mul2)(TERM_HERE, hi, lo), u)));
}
DEFINE_EMIT(emit_index)

/* The same, and the diagonal of the Hessian. */
FS_INLINE void NAME(emit_index_hess)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC hi = p->hi, lo = p->lo, u = p->u;
    EMIT(from, ({
             VEC e = TERM_HERE, y = NAME(mul2)(e, hi, lo);
             y = p->flag ? y : p->w ? V(fnma)(u, CLASS_AT(p->w, 0), y) : V(sub)(y, u);
             EMIT_DIAGONAL(e);
             IF_INCLUDED(y);
         }));
}
DEFINE_EMIT(emit_index_hess)

/* A group's numbers of an operand that has one a row. */
FS_INLINE void NAME(ones)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, double *to)
{
    if (i == 0 || t->step[operand] != 0)
        for (ptrdiff_t r = 0; r < (t->step[operand] ? g : ROOM); r++)
            to[r] = ONE(operand, i + r);
}

/* The class of the first largest element of a group's rows of operand X, which stand in `col`, or of their first NaN, or -1 if
 * all are -inf, into the operand TOP.  m holds the rows' maxima, `special` the rows where they are not finite; s is NaN for a
 * row that holds one. */
static void NAME(give_top)(const fs_tile *t, int X, int TOP, ptrdiff_t i, ptrdiff_t g, const REAL *most, uint64_t special,
                           const REAL *s, const REAL *col, const int cols)
{
    const VEC one = V(set1)(1);
    const ptrdiff_t apart = cols ? W : 1;
    REAL at[ROOM];
    for (ptrdiff_t o = 0; cols && o < g; o += W) {
        const REAL *panel = col + o * t->c;
        VEC m = V(load)(most + o), first = V(set1)(0), class = V(set1)((REAL)(t->c - 1));
        for (ptrdiff_t j = (t->c - 1) * W; j >= 0; j -= W, class = V(sub)(class, one))
            first = V(select)(V(eq)(V(load)(panel + j), m), class, first);
        V(store)(at + o, first);
    }
    for (ptrdiff_t r = 0; r < g; r++) {
        const REAL *x = cols ? col + NAME(in_panels)(t->c, r) : ROW(X, i + r);
        ptrdiff_t top = 0;
        if (__builtin_expect(special >> r & 1 || s[r] != s[r], 0)) {
            REAL largest = *x;
            for (ptrdiff_t j = 0; j < t->c && largest == largest; j++) {
                REAL here = x[j * apart];
                if (here > largest || here != here) {
                    largest = here;
                    top = j;
                }
            }
            top = largest == -(REAL)INFINITY ? -1 : top;
        } else {
            top = cols ? (ptrdiff_t)at[r] : NAME(find)(x, t->c, most[r]);
        }
        *(int64_t *)(t->data[TOP] + (i + r) * t->step[TOP]) = top;
    }
}

/* What a loss gives beside itself, if it is wanted, from a group's sums; operand LSE + 1 is TOP. */
FS_INLINE void NAME(give_extras)(const fs_tile *t, int LSE, ptrdiff_t i, ptrdiff_t g, const GROUP *G, double scale,
                                 const REAL *col, const int cols)
{
    if (t->data[LSE])
        NAME(give_lse)(t, LSE, i, g, G, scale);
    if (t->data[LSE + 1]) {
        REAL s[ROOM];
        for (ptrdiff_t r = 0; r < g; r++)
            s[r] = (REAL)G->log[r];
        NAME(give_top)(t, 0, LSE + 1, i, g, G->m, G->special, s, col, cols);
    }
}

/* The labels of a group's rows, 0 for those to ignore, whose bits are returned. */
FS_INLINE uint64_t NAME(labels_of)(const fs_tile *t, int operand, ptrdiff_t i, ptrdiff_t g, int64_t ignore, int64_t *to)
{
    const int64_t *from = &LABEL(operand, i);
    if (t->step[operand] != sizeof *from) {
        for (ptrdiff_t r = 0; r < g; r++)
            to[r] = LABEL(operand, i + r);
        from = to;
    }
    int64_t any = 0;
    uint64_t ignored = 0;
    for (ptrdiff_t r = 0; r < g; r++) { /* without branches, for the compiler to vectorise */
        int64_t skip = from[r] == ignore;
        any |= skip;
        to[r] = skip ? 0 : from[r];
    }
    for (ptrdiff_t r = 0; any && r < g; r++)
        ignored |= (uint64_t)(LABEL(operand, i + r) == ignore) << r;
    return ignored;
}

FS_INLINE void NAME(index_rows)(const fs_tile *t, const int cols, const int what)
{
    enum { X, LABELS, U, G_GRAD = 4, LOSS = 4, LOSS_GRAD = 5, DX = 6, SLOPE = 6, HESS = 7, EXCESS = 6, LSE = 5, LSE_GRAD = 7 };
    const int gradient = what == FS_GRAD || what == FS_HESS, hess = what == FS_HESS, slope = what == FS_SLOPE;
    const int WEIGHT = slope ? 3 : 2, V_ = WEIGHT + 1;
    IN_PANELS(!slope && NAME(index_panels)(t, what));
    const double *o = t->params;
    const double scale = o[NAME(SCALE)], one_hot = o[NAME(KEEP)], spread = o[NAME(SPREAD)], zloss = o[NAME(ZLOSS)];
    const EXPK k = NAME(exp_constants)(scale);
    const int empty = o[NAME(EMPTY)] != 0, options = spread != 0 || zloss != 0;
    const int evened = spread != 0 && t->mask; /* then `spread` is shared among the included classes of each row */
    const int64_t ignore = (int64_t)o[NAME(IGNORE)];
    const REAL *w = (const REAL *)t->data[WEIGHT];
    const int keep = slope ? t->c <= ROWS_GROUP : gradient && t->c <= (hess ? BLOCK : SAVE_LIMIT) && t->data[DX] != t->data[X];
    COLUMNS(X);
    COLUMNS(DX);
    COLUMNS(HESS);
    COLUMNS(U);
    TERMS_ASIDE(slope);
    EVEN_ROOM;
    GROUP G;
    REAL at[ROOM] = {0}, term[ROOM];
    int64_t y[ROOM] = {0};
    double m[ROOM], x_at[ROOM], e[ROOM], wy[ROOM], v[ROOM], up[ROOM];
    /* The part of the targets that is spread evenly: a class's share, times its weight; the sum of the weights; its target's. */
    double share[ROOM], weights[ROOM], weights_lo[ROOM], wy_even[ROOM];
    for (int r = 0; r < ROOM; r++) {
        wy[r] = v[r] = up[r] = wy_even[r] = 1;
        share[r] = spread;
        weights[r] = (double)t->c;
        weights_lo[r] = 0;
    }
    int weighty = !evened; /* no weight is 0 */
    if (spread != 0 && w && !evened) {
        PASS p = PASS_OF(.t = t, .c = t->c, .x = w);
        ACC sum, same;
        NAME(plain_sums_all)(&p, &sum, &same, 0);
        NAME(sum_one)(sum, weights, weights_lo);
        for (int r = 1; r < ROOM; r++) {
            weights[r] = weights[0];
            weights_lo[r] = weights_lo[0];
        }
        for (ptrdiff_t j = 0; j < t->c; j++)
            weighty &= w[j] != 0;
    }
    PASS waiting;
    const PASS *late = NULL;
    int64_t late_label = 0;
    REAL late_target = 0;
    FOR_GROUPS(i, g) {
        BRING(X, i, g);
        if (slope)
            BRING(U, i, g);
        if (hess)
            NAME(fetch_to)(t, HESS, i, g, cols);
        TERMS_OF_GROUP(X, slope ? ASIDE(r) : gradient ? KEPT(DX, i, r) : NULL, gradient ? LINES_TO(DX, i + r) : NO_LINES, i,
                       g, 0, late);
        if (late) /* now that its row is written */
            ROW(DX, i - 1)[late_label] = late_target;
        late = NULL;
        if (hess)
            G.shifts = NULL; /* the terms are not only multiplied */
        NAME(group_log)(&G, t, &k, X, i, g);
        if (!hess && !slope)
            NAME(give_extras)(t, gradient ? LSE_GRAD : LSE, i, g, &G, scale, OF(X, i, 0), cols);
        REAL hi[ROOM], lo[ROOM], u[ROOM];
        double spreads[ROOM], factor[ROOM], target[ROOM], loss[ROOM];
        const uint64_t ignored = NAME(labels_of)(t, LABELS, i, g, ignore, y);
        for (ptrdiff_t o = 0; o < g; o += W)
            for (ptrdiff_t r = o; r < o + W && (cols || r < g); r++) /* of panels whole ones, which is unrolled */
                at[r] = cols ? X_columns[o * t->c + y[r] * W + (r - o)] : ROW(X, i + r)[y[r]];
        for (ptrdiff_t r = 0; w && r < g; r++)
            wy[r] = wy_even[r] = w[y[r]];
        uint64_t besides = ignored; /* rows whose target's gradient is not for `put` */
        if (t->mask)
            for (ptrdiff_t r = 0; r < g; r++)
                besides |= (uint64_t)!IS_INCLUDED(i, r, y[r]) << r;
        BRING_EVEN(evened, i, g);
        if (evened) {
            double counts[ROOM];
            COUNT_EVEN(i, g, counts);
            for (ptrdiff_t r = 0; r < g; r++) {
                weights[r] = counts[r];
                share[r] = spread / (counts[r] > 1 ? counts[r] : 1);
                wy_even[r] = IS_INCLUDED(i, r, y[r]) ? wy[r] : 0;
            }
        }
        NAME(ones)(t, V_, i, g, v);
        if (gradient)
            NAME(ones)(t, G_GRAD, i, g, up);
        if (spread != 0) {
            SUMS a, same;
            double low[ROOM];
            FOR_PASSES(r, g) {
                PASS p = PASS_OF(.t = t, .c = t->c, .x = OF(X, i, r), .w = w, .flag = weighty,
                                 .even = evened ? EVEN_AT(i, r) : NULL);
                p.m = LANES(G.m, r);
                NAME(spread_sums_all)(&p, &a.of[SLOT(r)], &same.of[SLOT(r)], cols);
            }
            NAME(sum_rows)(&a, g, spreads, low, cols);
            if (evened && w)
                NAME(sum_rows)(&same, g, weights, weights_lo, cols);
        }
        NAME(widen)(&G, G.m, m);
        NAME(widen)(&G, at, x_at);
        if (gradient) {
            for (ptrdiff_t o = 0; o < G.n; o += W)
                V(store)(term + o, NAME(exp_term)(&k, V(load)(at + o), V(load)(G.base + o), V(load)(G.floor + o),
                                                  V(load)(G.top + o)));
            NAME(widen)(&G, term, e);
        }
        for (ptrdiff_t o = 0; o < G.n; o += d_W) {
            const vd zero = d_set1(0), log = d_load(G.log + o), f_w = d_load(wy + o);
            vd f = d_load(v + o);
            vd top = d_load(m + o), x = d_load(x_at + o), q = d_mul(d_set1(one_hot), f_w), other = zero;
            vd lost, gap = NAME(difference)(top, x, &lost), nll = NAME(plus_log)(&G, o, gap, lost, scale);
            vd value = d_mul(q, d_select(d_eq(q, zero), log, nll));
            if (spread != 0) {
                const vd even = d_load(share + o), f_even = d_load(wy_even + o);
                other = d_mul(even, d_add(d_sub(d_load(weights + o), f_even), d_load(weights_lo + o)));
                q = d_add(q, d_mul(even, f_even));
            }
            if (zloss != 0) {
                vd lse = NAME(plus_log)(&G, o, top, zero, scale);
                other = d_add(other, d_mul(d_set1(2 * zloss), lse));
            }
            d_store(loss + o, d_mul(value, f));
            if (gradient) {
                /* At the target, (sum of the other q) p - q (1 - p), with 1 - p from the sum over the other classes. */
                vd s = d_load(G.s + o), s_lo = d_load(G.s_lo + o), part = d_load(e + o);
                vd left = d_select(d_eq(x, top), d_load(G.others + o), d_add(d_sub(s, part), s_lo));
                f = d_mul(d_mul(f, d_load(up + o)), d_set1(scale));
#if FS_FLOAT
                vd inverse = d_load(G.inverse + o), prob = d_mul(part, inverse), not_prob = d_mul(left, inverse);
#else
                vd sum = d_add(s, s_lo), prob = d_div(part, sum), not_prob = d_div(left, sum);
#endif
                d_store(target + o, d_mul(f, d_sub(d_mul(other, prob), d_mul(q, not_prob))));
                d_store(factor + o, d_mul(f, d_add(other, q)));
            }
        }
        for (ptrdiff_t r = 0; options && r < g; r++) { /* several roundings would add up */
            wide log = (wide)G.log_hi[r] + G.log_lo[r], top = (wide)m[r] * scale, lse = top + log, q = one_hot * wy[r];
            wide value = q == 0 ? 0 * log : q * (((wide)m[r] - x_at[r]) * scale + log);
            if (spread != 0)
                value += share[r] * ((wide)scale * spreads[r] + (wide)weights[r] * log);
            if (zloss != 0)
                value += zloss * lse * lse;
            loss[r] = (double)(value * v[r]);
        }
        if (__builtin_expect((G.special | ignored) != 0, 0))
            for (ptrdiff_t r = 0; r < g; r++) {
                int any = one_hot * wy[r] != 0 || zloss != 0 || (spread != 0 && !(evened && weights[r] == 0));
                if (G.special >> r & 1)
                    loss[r] = G.kind[r] == IS_EMPTY && empty ? (any ? v[r] * INFINITY : 0) : NAN;
                if (ignored >> r & 1)
                    loss[r] = 0;
            }
        NAME(give)(t, gradient || slope ? LOSS_GRAD : LOSS, i, g, loss);
        if (slope) {
            /* sum of g_c u_c, where the g sum to 2 zloss lse: the direction may be taken relative to the target's. */
            SUMS a, b;
            double dot[ROOM], dot_lo[ROOM], even[ROOM], even_lo[ROOM];
            REAL ref[ROOM] = {0};
            for (ptrdiff_t r = 0; r < g; r++)
                if (at[r] != -(REAL)INFINITY && !(ignored >> r & 1))
                    ref[r] = ELEMENT(U, i, r, y[r]);
            FOR_PASSES(r, g) {
                PASS p = FORWARD_PASS(X, ASIDE(r), i, r);
                p.other = p.x;
                p.along = OF(U, i, r);
                p.w = w;
                p.u = LANES(ref, r);
                p.flag = spread != 0;
                p.even = evened ? EVEN_AT(i, r) : NULL;
                SET_LINES(p, next_other, LINES(U, i + r, g));
                NAME(along_sums_all)(&p, &a.of[SLOT(r)], &b.of[SLOT(r)], cols);
            }
            NAME(sum_rows)(&a, g, dot, dot_lo, cols);
            NAME(sum_rows)(&b, g, even, even_lo, cols);
            for (ptrdiff_t r = 0; r < g; r++) {
                wide mean = ((wide)dot[r] + dot_lo[r]) / ((wide)G.s[r] + G.s_lo[r]), value = one_hot * wy[r] * mean;
                if (spread != 0)
                    value += share[r] * (((wide)weights[r] + weights_lo[r]) * mean - ((wide)even[r] + even_lo[r]));
                if (zloss != 0)
                    value += 2 * zloss * NAME(lse_of)(&G, scale, r) * (ref[r] + mean);
                if (__builtin_expect(G.special >> r & 1, 0))
                    value = G.kind[r] == IS_EMPTY && empty ? 0 : NAN;
                ONE(SLOPE, i + r) = ignored >> r & 1 ? 0 : (REAL)(value * v[r] * scale);
            }
        }
        if (!gradient)
            continue;
        NAME(group_inverse)(&G, factor, hi, lo);
        for (ptrdiff_t r = 0; spread != 0 && r < G.n; r++)
            u[r] = (REAL)(v[r] * up[r] * scale * share[r]);
        NAME(diagonal) D;
        D.excess = hess ? (REAL)fmax(o[EXCESS], LEAST_EXCESS) : 0;
        for (ptrdiff_t r = 0; hess && r < G.n; r++)
            NAME(set_diagonal)(&D, &G, r, (wide)v[r] * up[r] * scale * scale,
                               (wide)one_hot * wy[r] + (spread != 0 ? share[r] * ((wide)weights[r] + weights_lo[r]) : 0),
                               zloss, scale);
        FOR_PASSES(r, g) {
            PASS p = FORWARD_PASS(X, KEPT(DX, i, r), i, r);
            TO(p, DX, i, r, STREAMED_AFTER_TERMS(DX));
            p.w = w;
            p.hi = LANES(hi, r);
            p.lo = LANES(lo, r);
            p.u = LANES(u, r);
            p.flag = spread == 0;
            p.even = INCLUDED_AT(i, r);
            if (hess) {
                DIAGONAL_PASS(p, OF(HESS, i, r), r);
                NAME(emit_index_hess_all)(&p, cols);
            } else if (WAITS(DX) && p.flag && !(G.special | ignored | besides) && i + g < t->n) {
                waiting = p;
                late = &waiting;
                late_label = y[r];
                late_target = (REAL)target[r];
            } else {
                NAME(emit_index_all)(&p, cols);
            }
        }
        if (late) /* nothing of what follows is needed but the target */
            continue;
        FILL_DERIVED(DX, i, g);
        for (ptrdiff_t r = 0; ignored && r < g; r++)
            if (ignored >> r & 1)
                FILL(DX, i, r, 0);
        if (cols && t->derived >> DX & 1)
            NAME(exclude)(t, i, g, DX_columns, 0);
        if (cols)
            NAME(send)(t, DX, i, g, DX_columns, y, target, G.special | besides, cols);
        else
            NAME(put)((char *)ROW(DX, i), t->step[DX], sizeof(REAL), g, y, target, G.special | besides);
        if (hess) {
            FILL_DERIVED(HESS, i, g);
            for (ptrdiff_t r = 0; r < g; r++)
                if (ignored >> r & 1)
                    FILL(HESS, i, r, 0);
            SEND(HESS, i, g);
        }
    }
}

FS_INLINE void NAME(cross_entropy_index_rows)(const fs_tile *t, const int cols) { NAME(index_rows)(t, cols, FS_VALUE); }
FS_INLINE void NAME(cross_entropy_index_grad_rows)(const fs_tile *t, const int cols) { NAME(index_rows)(t, cols, FS_GRAD); }
FS_INLINE void NAME(cross_entropy_index_hess_rows)(const fs_tile *t, const int cols) { NAME(index_rows)(t, cols, FS_HESS); }
FS_INLINE void NAME(cross_entropy_index_jvp_rows)(const fs_tile *t, const int cols) { NAME(index_rows)(t, cols, FS_SLOPE); }

/* q = w (keep t + spread) of a vector of targets. */
FS_INLINE VEC NAME(smoothed)(const PASS *p, VEC t, VEC w, VEC keep, VEC spread)
{
    if (p->flag)
        t = V(fma)(t, keep, spread);
    return p->w ? V(mul)(t, w) : t;
}

/* sum q and sum q (m - x), where a zero q counts nothing. */
FS_INLINE void NAME(probs_sums)(const PASS *p, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const VEC zero = V(set1)(0), one = V(set1)(1), m = p->m, u = p->u, v = p->v;
    const REAL *x = p->x + from, *t = p->other + from, *w = p->w ? p->w + from : NULL;
    ACC a = NAME(acc_zero)(), b = NAME(acc_zero)();
    EVERYWHERE({
        FETCH(p, from + j);
        VEC even = NAME(of_included)(p, from + j, rest, whole, v, cols);
        VEC q = NAME(smoothed)(p, AT(t, 0), w ? CLASS_AT(w, 0) : one, u, even);
        if (!whole) { /* beyond the rest, smoothing has made q of nothing */
            REAL lanes[W];
            V(store)(lanes, q);
            q = V(load_head)(lanes, rest, zero);
        }
        VEC d = V(select)(V(eq)(q, zero), zero, V(sub)(m, whole ? V(load)(x + j) : V(load_head)(x + j, rest, m)));
        NAME(acc_any)(&a, q);
        NAME(acc_product)(&b, q, d);
    });
    s[0] = NAME(acc_done)(a, 0);
    s[1] = NAME(acc_done)(b, 0);
}
DEFINE_SUMS(probs_sums)

/* (all - q) p - q (1 - p) at one vector, with its term, its targets and its weights; hi, lo: 1 / sum; all, all_lo: the sum of
 * the targets, of which a dominating target leaves little;
 * q: the dominating class's 1 - p. */
FS_INLINE VEC NAME(probs_gradient)(const PASS *p, VEC term, VEC target, VEC w)
{
    VEC q = NAME(smoothed)(p, target, w, p->u, p->v);
    VEC e = NAME(mul2)(term, p->hi, p->lo);
    VEC not_e = V(select)(V(lt)(V(set1)((REAL)0.5), e), p->q, V(sub)(V(set1)(1), e));
    return V(fnma)(q, not_e, V(mul)(V(add)(V(sub)(p->all, q), p->all_lo), e));
}

/* That times factor. */
FS_INLINE void NAME(emit_probs)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC factor = p->factor, one = V(set1)(1);
    EMIT(from, IF_INCLUDED(V(mul)(factor, NAME(probs_gradient)(p, TERM_HERE, AT(p->other, 0), p->w ? CLASS_AT(p->w, 0) : one))));
}
DEFINE_EMIT(emit_probs)

/* The same, and the diagonal of the Hessian. */
FS_INLINE void NAME(emit_probs_hess)(const PASS *p, ptrdiff_t from, ptrdiff_t c, const int cols)
{
    const VEC factor = p->factor, one = V(set1)(1);
    EMIT(from, ({
             VEC e = TERM_HERE, y = NAME(probs_gradient)(p, e, AT(p->other, 0), p->w ? CLASS_AT(p->w, 0) : one);
             EMIT_DIAGONAL(e);
             IF_INCLUDED(V(mul)(factor, y));
         }));
}
DEFINE_EMIT(emit_probs_hess)

/* sum of the gradient's elements times a direction. */
FS_INLINE void NAME(probs_slope)(const PASS *row, ptrdiff_t from, ptrdiff_t c, ACC *s, const int cols)
{
    const PASS here = NAME(part)(row, from), *p = &here;
    const VEC one = V(set1)(1);
    ACC a = NAME(acc_zero)();
    EVERYWHERE({
        VEC d = ALONG_HERE(AT(p->x, 0), AT(p->along, 0));
        NAME(acc_product)(&a, NAME(probs_gradient)(p, TERM_HERE, AT(p->other, 0), p->w ? CLASS_AT(p->w, 0) : one), d);
    });
    s[0] = NAME(acc_done)(a, 0);
    s[1] = s[0];
}
DEFINE_SUMS(probs_slope)

FS_INLINE void NAME(probs_rows)(const fs_tile *t, const int cols, const int what)
{
    enum { X, T, U, G_GRAD = 4, LOSS = 4, LOSS_GRAD = 5, DX = 6, SLOPE = 6, HESS = 7, EXCESS = 5, LSE = 5, LSE_GRAD = 7 };
    const int gradient = what == FS_GRAD || what == FS_HESS, hess = what == FS_HESS, slope = what == FS_SLOPE;
    const int WEIGHT = slope ? 3 : 2, V_ = WEIGHT + 1, AIM = (gradient ? LSE_GRAD : LSE) + 2;
    const double *o = t->params;
    const double scale = o[NAME(SCALE)], one_hot = o[NAME(KEEP)], spread = o[NAME(SPREAD)], zloss = o[NAME(ZLOSS)];
    const EXPK k = NAME(exp_constants)(scale);
    const int empty = o[NAME(EMPTY)] != 0, smooth = one_hot != 1 || spread != 0;
    const int evened = spread != 0 && t->mask; /* as for class indices */
    const REAL *w = (const REAL *)t->data[WEIGHT];
    const int keep = slope ? t->c <= ROWS_GROUP
                           : gradient && t->c <= (hess ? BLOCK : SAVE_LIMIT) && t->data[DX] != t->data[X] && t->data[DX] != t->data[T];
    COLUMNS(X);
    COLUMNS(T);
    COLUMNS(DX);
    COLUMNS(HESS);
    COLUMNS(U);
    TERMS_ASIDE(slope);
    EVEN_ROOM;
    GROUP G;
    REAL share[ROOM];
    for (ptrdiff_t r = 0; r < ROOM; r++)
        share[r] = (REAL)spread;
    FOR_GROUPS(i, g) {
        BRING_EVEN(evened, i, g);
        if (evened) {
            double counts[ROOM];
            COUNT_EVEN(i, g, counts);
            for (ptrdiff_t r = 0; r < g; r++)
                share[r] = (REAL)(spread / (counts[r] > 1 ? counts[r] : 1));
        }
        BRING(X, i, g);
        BRING(T, i, g);
        if (slope)
            BRING(U, i, g);
        if (hess)
            NAME(fetch_to)(t, HESS, i, g, cols);
        GROUP_TERMS(X, slope ? ASIDE(r) : gradient ? KEPT(DX, i, r) : NULL, gradient ? LINES_TO(DX, i + r) : NO_LINES, i,
                    g);
        if (hess)
            G.shifts = NULL; /* the terms are not only multiplied */
        NAME(group_log)(&G, t, &k, X, i, g);
        SUMS a, b;
        double sum_q[ROOM], q_lo[ROOM], dot[ROOM], low[ROOM], lses[ROOM], m[ROOM], complement[ROOM];
        REAL hi[ROOM], lo[ROOM], all[ROOM] = {0}, all_lo[ROOM] = {0}, factor[ROOM] = {0}, not_top[ROOM];
        NAME(diagonal) D;
        D.excess = hess ? (REAL)fmax(o[EXCESS], LEAST_EXCESS) : 0;
        FOR_PASSES(r, g) {
            PASS p = PASS_OF(.t = t, .c = t->c, .x = OF(X, i, r), .other = OF(T, i, r), .w = w, .flag = smooth,
                             .even = evened ? EVEN_AT(i, r) : NULL, OF_LINES(next_other, LINES(T, i + r, g)));
            p.m = LANES(G.m, r);
            p.u = V(set1)((REAL)one_hot);
            p.v = LANES(share, r);
            NAME(probs_sums_all)(&p, &a.of[SLOT(r)], &b.of[SLOT(r)], cols);
        }
        NAME(sum_rows)(&a, g, sum_q, q_lo, cols);
        NAME(sum_rows)(&b, g, dot, low, cols);
        if (!hess && !slope) {
            NAME(give_extras)(t, AIM - 2, i, g, &G, scale, OF(X, i, 0), cols);
            if (t->data[AIM]) {
                GROUP targets;
                NAME(group_max)(&targets, t, T, i, g, OF(T, i, 0), cols, 0, 0);
                REAL mass[ROOM];
                for (ptrdiff_t r = 0; r < g; r++)
                    mass[r] = (REAL)sum_q[r];
                NAME(give_top)(t, T, AIM, i, g, targets.m, targets.special, mass, OF(T, i, 0), cols);
            }
        }
        NAME(widen)(&G, G.m, m);
        for (ptrdiff_t o = 0; zloss != 0 && o < G.n; o += d_W)
            d_store(lses + o, NAME(plus_log)(&G, o, d_load(m + o), d_set1(0), scale));
        for (ptrdiff_t r = 0; r < g; r++) {
            double lse = zloss != 0 ? lses[r] : 0, v = ONE(V_, i + r);
            wide value = (wide)sum_q[r] * G.log[r] + (wide)scale * dot[r] + (zloss != 0 ? (wide)zloss * lse * lse : 0);
            int special = G.special >> r & 1;
            if (__builtin_expect(special, 0)) {
                int any = zloss != 0;
                for (ptrdiff_t j = 0; j < t->c; j++) {
                    const int even = !evened || t->mask[(i + r) * t->mask_step + j];
                    any |= (one_hot * ELEMENT(T, i, r, j) + even * spread) * (w ? w[j] : 1) != 0;
                }
                value = G.kind[r] == IS_EMPTY && empty ? (any ? INFINITY : 0) : NAN;
            }
            ONE(gradient || slope ? LOSS_GRAD : LOSS, i + r) = (REAL)(special && value == 0 ? 0 : v * value);
            if (gradient || slope) {
                double sum = sum_q[r] + 2 * zloss * lse;
                all[r] = (REAL)sum;
                all_lo[r] = (REAL)((FS_FLOAT ? sum - all[r] : 0) + (zloss == 0 ? q_lo[r] : 0));
            }
            if (gradient)
                factor[r] = (REAL)(v * ONE(G_GRAD, i + r) * scale);
            if (hess)
                NAME(set_diagonal)(&D, &G, r, (wide)v * ONE(G_GRAD, i + r) * scale * scale, sum_q[r], zloss, scale);
        }
        if (!gradient && !slope)
            continue;
        SUMS along;
        NAME(group_inverse)(&G, NULL, hi, lo);
        NAME(group_complement)(&G, complement);
        for (ptrdiff_t r = 0; r < G.n; r++)
            not_top[r] = (REAL)complement[r];
        FOR_PASSES(r, g) {
            PASS p = FORWARD_PASS(X, slope ? ASIDE(r) : KEPT(DX, i, r), i, r);
            if (gradient)
                TO(p, DX, i, r, STREAMED_AFTER_TERMS(DX));
            p.other = OF(T, i, r);
            p.w = w;
            p.hi = LANES(hi, r);
            p.lo = LANES(lo, r);
            p.u = V(set1)((REAL)one_hot);
            p.v = LANES(share, r);
            p.even = INCLUDED_AT(i, r);
            p.flag = smooth;
            p.all = LANES(all, r);
            p.all_lo = LANES(all_lo, r);
            p.factor = LANES(factor, r);
            p.q = LANES(not_top, r);
            if (slope) {
                ACC same;
                p.along = OF(U, i, r);
                NAME(probs_slope_all)(&p, &along.of[SLOT(r)], &same, cols);
            } else if (hess) {
                DIAGONAL_PASS(p, OF(HESS, i, r), r);
                NAME(emit_probs_hess_all)(&p, cols);
            } else {
                NAME(emit_probs_all)(&p, cols);
            }
        }
        if (slope) {
            NAME(sum_rows)(&along, g, dot, low, cols);
            for (ptrdiff_t r = 0; r < g; r++) {
                ONE(SLOPE, i + r) = (REAL)(((wide)dot[r] + low[r]) * ONE(V_, i + r) * scale);
                if (__builtin_expect(G.special >> r & 1, 0))
                    ONE(SLOPE, i + r) = G.kind[r] == IS_EMPTY && empty ? 0 : (REAL)NAN;
            }
            continue;
        }
        FILL_DERIVED(DX, i, g);
        SEND(DX, i, g);
        if (hess) {
            FILL_DERIVED(HESS, i, g);
            SEND(HESS, i, g);
        }
    }
}

FS_INLINE void NAME(cross_entropy_probs_rows)(const fs_tile *t, const int cols) { NAME(probs_rows)(t, cols, FS_VALUE); }
FS_INLINE void NAME(cross_entropy_probs_grad_rows)(const fs_tile *t, const int cols) { NAME(probs_rows)(t, cols, FS_GRAD); }
FS_INLINE void NAME(cross_entropy_probs_hess_rows)(const fs_tile *t, const int cols) { NAME(probs_rows)(t, cols, FS_HESS); }
FS_INLINE void NAME(cross_entropy_probs_jvp_rows)(const fs_tile *t, const int cols) { NAME(probs_rows)(t, cols, FS_SLOPE); }

/* --- internal ----------------------------------------------------------------------------------------------------------- */

FS_INLINE void NAME(total_rows)(const fs_tile *t, const int cols)
{
    enum { X, S };
    (void)cols;
    for (ptrdiff_t i = 0; i < t->n; i++) {
        PASS p = PASS_OF(.t = t, .c = t->c, .x = ROW(X, i));
        ACC first, second;
        double hi, lo;
        NAME(plain_sums_all)(&p, &first, &second, 0);
        NAME(sum_one)(first, &hi, &lo);
        ONE(S, i) = (REAL)(hi + lo);
    }
}

#include "divergence_ops.h"

#include "panel_ops.h"

/* --- kernels ------------------------------------------------------------------------------------------------------------- */

#define DEFINE_KERNEL(op, vectors, strands)                                                                           \
    static void NAME(op)(const fs_tile *t)                                                                            \
    {                                                                                                                 \
        const fs_tile own = *t; /* which no store can change, as the compiler sees */                                 \
        if (NAME(in_columns)(t->c, vectors))                                                                          \
            NAME(op##_rows)(&own, IN_COLUMNS);                                                                        \
        else if (strands && NAME(by_class)(t, 0))                                                                     \
            NAME(op##_rows)(&own, IN_STRANDS);                                                                        \
        else                                                                                                          \
            NAME(op##_rows)(t, 0);                                                                                    \
        if (t->stream)                                                                                                \
            FS_STREAMED();                                                                                            \
    }
FS_OPS(DEFINE_KERNEL)
