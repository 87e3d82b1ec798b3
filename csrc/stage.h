/* Staging: rows of any strides and element type into a tile of rows of REAL, and back.
 *
 * Included by instantiate.h after row_ops.h, for floats and for doubles.  A tile is memory of the engine: its rows of c
 * elements are `step` bytes apart.  Operands come in three cases: classes lie side by side (vectors are converted), rows do
 * (squares of W by W elements are transposed in registers), or neither does (elements are gathered one by one). */

/* Column e of the W by W matrix whose rows are v: what the reducing tree leaves if every step picks one of the halves instead
 * of combining both. */
#define STEP(k, a, b, out) out = (e & (W >> 1 >> (k))) ? V(hi##k)(a, b) : V(lo##k)(a, b)
FS_INLINE VEC NAME(column)(const VEC *v, const int e)
{
    VEC out;
    V(TREE)(STEP, VEC, v, out);
    return out;
}
#undef STEP

/* All columns; the compiler computes the halves that they share once. */
FS_INLINE void NAME(transpose)(const VEC *v, VEC *u)
{
#define PICK(e) u[e] = NAME(column)(v, e), u[e + 1] = NAME(column)(v, e + 1)
    PICK(0);
#if W >= 4
    PICK(2);
#endif
#if W >= 8
    PICK(4), PICK(6);
#endif
#if W >= 16
    PICK(8), PICK(10), PICK(12), PICK(14);
#endif
#undef PICK
}

/* Loads of the element type T, of which the word FROM converts W elements. */
#define DEFINE_LOAD(name, T, FROM)                                                                                    \
    FS_INLINE VEC NAME(name##_head)(const char *p, ptrdiff_t stride, ptrdiff_t n)                                    \
    {                                                                                                                 \
        T raw[W] = {0};                                                                                               \
        for (ptrdiff_t j = 0; j < n; j++)                                                                             \
            raw[j] = *(const T *)(p + j * stride);                                                                    \
        return FROM(raw);                                                                                             \
    }                                                                                                                 \
    static void NAME(load_##name)(char *tile, ptrdiff_t step, const char *from, ptrdiff_t s2, ptrdiff_t sc,          \
                                  ptrdiff_t rows, ptrdiff_t c)                                                       \
    {                                                                                                                 \
        if (sc != sizeof(T) && s2 == sizeof(T)) {                                                                     \
            for (ptrdiff_t k = 0; k < c; k += W) {                                                                    \
                ptrdiff_t m = c - k < W ? c - k : W;                                                                  \
                for (ptrdiff_t r = 0; r < rows; r += W) {                                                             \
                    ptrdiff_t n = rows - r < W ? rows - r : W;                                                        \
                    const char *p = from + r * s2 + k * sc;                                                           \
                    REAL *y = (REAL *)(tile + r * step) + k;                                                          \
                    VEC v[W], u[W];                                                                                   \
                    if (n == W && m == W) {                                                                           \
                        for (int j = 0; j < W; j++)                                                                   \
                            v[j] = FROM((const T *)(p + j * sc));                                                     \
                        NAME(transpose)(v, u);                                                                       \
                        for (int i = 0; i < W; i++)                                                                   \
                            V(store)((REAL *)((char *)y + i * step), u[i]);                                           \
                    } else {                                                                                          \
                        for (int j = 0; j < W; j++)                                                                   \
                            v[j] = j >= m   ? V(set1)(0)                                                              \
                                   : n == W ? FROM((const T *)(p + j * sc))                                           \
                                            : NAME(name##_head)(p + j * sc, sizeof(T), n);                            \
                        NAME(transpose)(v, u);                                                                       \
                        for (int i = 0; i < n; i++)                                                                   \
                            V(store_head)((REAL *)((char *)y + i * step), m, u[i]);                                   \
                    }                                                                                                 \
                }                                                                                                     \
            }                                                                                                         \
            return;                                                                                                   \
        }                                                                                                             \
        for (ptrdiff_t r = 0; r < rows; r++) {                                                                        \
            const char *p = from + r * s2;                                                                            \
            REAL *y = (REAL *)(tile + r * step);                                                                      \
            ptrdiff_t k = 0;                                                                                          \
            if (sc == sizeof(T))                                                                                      \
                for (; k + W <= c; k += W)                                                                            \
                    V(store)(y + k, FROM((const T *)p + k));                                                          \
            for (; k < c; k += W) {                                                                                   \
                ptrdiff_t n = c - k < W ? c - k : W;                                                                  \
                V(store_head)(y + k, n, NAME(name##_head)(p + k * sc, sc, n));                                        \
            }                                                                                                         \
        }                                                                                                             \
    }

/* Stores of the element type T, of which the words TO and STREAM convert W elements; the second is for whole cache lines that
 * are not to be read before they are written, nor kept. */
#define DEFINE_STORE(name, T, TO, STREAM)                                                                             \
    FS_INLINE void NAME(name##_put_head)(char *p, ptrdiff_t stride, ptrdiff_t n, VEC v)                              \
    {                                                                                                                 \
        T raw[W];                                                                                                     \
        if (sizeof(T) == sizeof(REAL) && stride == sizeof(T)) {                                                       \
            V(store_head)((REAL *)p, n, v);                                                                           \
            return;                                                                                                   \
        }                                                                                                             \
        TO(raw, v);                                                                                                   \
        for (ptrdiff_t j = 0; j < n; j++)                                                                             \
            *(T *)(p + j * stride) = raw[j];                                                                          \
    }                                                                                                                 \
    static void NAME(store_##name)(char *to, ptrdiff_t s2, ptrdiff_t sc, const char *tile, ptrdiff_t step,           \
                                   ptrdiff_t rows, ptrdiff_t c, int stream)                                          \
    {                                                                                                                 \
        const VEC zero = V(set1)(0);                                                                                  \
        if (sc != sizeof(T) && s2 == sizeof(T)) {                                                                     \
            stream = stream && ((uintptr_t)to | (uintptr_t)sc) % 64 == 0;                                             \
            for (ptrdiff_t k = 0; k < c; k += W) {                                                                    \
                ptrdiff_t m = c - k < W ? c - k : W;                                                                  \
                for (ptrdiff_t r = 0; r < rows; r += W) {                                                             \
                    ptrdiff_t n = rows - r < W ? rows - r : W;                                                        \
                    char *p = to + r * s2 + k * sc;                                                                   \
                    for (int j = 0; !stream && j < W; j++)                                                            \
                        __builtin_prefetch(p + (j + W) * sc, 1);                                                      \
                    const REAL *y = (const REAL *)(tile + r * step) + k;                                              \
                    VEC v[W], u[W];                                                                                   \
                    if (n == W && m == W) {                                                                           \
                        for (int i = 0; i < W; i++)                                                                   \
                            v[i] = V(load)((const REAL *)((const char *)y + i * step));                               \
                        NAME(transpose)(v, u);                                                                       \
                        for (int j = 0; j < W; j++) {                                                                 \
                            if (stream)                                                                               \
                                STREAM((T *)(p + j * sc), u[j]);                                                      \
                            else                                                                                      \
                                TO((T *)(p + j * sc), u[j]);                                                          \
                        }                                                                                             \
                    } else {                                                                                          \
                        for (int i = 0; i < W; i++)                                                                   \
                            v[i] = i >= n ? zero : V(load_head)((const REAL *)((const char *)y + i * step), m, zero); \
                        NAME(transpose)(v, u);                                                                       \
                        for (int j = 0; j < m; j++)                                                                   \
                            NAME(name##_put_head)(p + j * sc, sizeof(T), n, u[j]);                                    \
                    }                                                                                                 \
                }                                                                                                     \
            }                                                                                                         \
            if (stream)                                                                                               \
                FS_STREAMED();                                                                                        \
            return;                                                                                                   \
        }                                                                                                             \
        for (ptrdiff_t r = 0; r < rows; r++) {                                                                        \
            char *p = to + r * s2;                                                                                    \
            const REAL *y = (const REAL *)(tile + r * step);                                                          \
            ptrdiff_t k = 0;                                                                                          \
            if (sc == sizeof(T) && stream) {                                                                          \
                /* The lines that are written in part have to be read. */                                             \
                __builtin_prefetch(p + 8 * s2, 1);                                                                    \
                __builtin_prefetch(p + 8 * s2 + (c - 1) * sc, 1);                                                     \
                k = (ptrdiff_t)(-(uintptr_t)p % 64 / sizeof(T));                                                      \
                k = k < c ? k : c;                                                                                    \
                for (ptrdiff_t j = 0; j < k; j += W) {                                                                \
                    ptrdiff_t n = k - j < W ? k - j : W;                                                              \
                    NAME(name##_put_head)(p + j * sc, sc, n, V(load_head)(y + j, n, zero));                          \
                }                                                                                                     \
                for (; k + W <= c; k += W)                                                                            \
                    STREAM((T *)p + k, V(load)(y + k));                                                               \
            } else if (sc == sizeof(T)) {                                                                             \
                for (; k + W <= c; k += W)                                                                            \
                    TO((T *)p + k, V(load)(y + k));                                                                   \
            }                                                                                                         \
            for (; k < c; k += W) {                                                                                   \
                ptrdiff_t n = c - k < W ? c - k : W;                                                                  \
                NAME(name##_put_head)(p + k * sc, sc, n, V(load_head)(y + k, n, zero));                               \
            }                                                                                                         \
        }                                                                                                             \
        if (stream)                                                                                                   \
            FS_STREAMED();                                                                                            \
    }

DEFINE_LOAD(own, REAL, V(load))
DEFINE_STORE(own, REAL, V(store), V(stream))
#if FS_FLOAT
DEFINE_LOAD(half, uint16_t, f_from_half)
DEFINE_STORE(half, uint16_t, f_to_half, f_stream_half)
DEFINE_LOAD(brain, uint16_t, f_from_brain)
DEFINE_STORE(brain, uint16_t, f_to_brain, f_stream_brain)
#else
DEFINE_LOAD(float, float, d_from_float)
DEFINE_STORE(float, float, d_to_float, d_stream_float)
DEFINE_LOAD(half, uint16_t, d_from_half)
DEFINE_STORE(half, uint16_t, d_to_half, d_stream_half)
DEFINE_LOAD(brain, uint16_t, d_from_brain)
DEFINE_STORE(brain, uint16_t, d_to_brain, d_stream_brain)
#endif
#undef DEFINE_LOAD
#undef DEFINE_STORE

/* --- options on logits -------------------------------------------------------------------------------------------------- */

/* Rows without a gap are one row. */
FS_INLINE fs_part NAME(joined)(const fs_part *part)
{
    fs_part p = *part;
    const ptrdiff_t bytes = p.c * (ptrdiff_t)sizeof(REAL);
    if (p.step == bytes && (!p.from || p.from_step == bytes) && (!p.mask || p.mask_step == p.c) &&
        (!p.slope || p.slope_step == bytes)) {
        p.c *= p.rows;
        p.rows = 1;
    }
    return p;
}

/* Run `...` at every vector of the rows of p, from k on, n elements of it; `whole` if these are all. */
#define EACH_PART(...)                                                                                                \
    for (ptrdiff_t r = 0; r < p.rows; r++) {                                                                          \
        REAL *y = (REAL *)(p.tile + r * p.step);                                                                      \
        const REAL *x = p.from ? (const REAL *)(p.from + r * p.from_step) : NULL;                                     \
        const uint8_t *included = p.mask ? (const uint8_t *)p.mask + r * p.mask_step : NULL;                          \
        REAL *slope = p.slope ? (REAL *)(p.slope + r * p.slope_step) : NULL;                                          \
        (void)x, (void)included, (void)slope;                                                                         \
        ptrdiff_t k = 0;                                                                                              \
        for (; k + W <= p.c; k += W) {                                                                                \
            enum { n = W, whole = 1 };                                                                                \
            if (p.from)                                                                                               \
                __builtin_prefetch((const char *)(x + k) + AHEAD);                                                    \
            __VA_ARGS__;                                                                                              \
        }                                                                                                             \
        if (k < p.c) {                                                                                                \
            enum { whole = 0 };                                                                                       \
            const ptrdiff_t n = p.c - k;                                                                              \
            __VA_ARGS__;                                                                                              \
        }                                                                                                             \
    }
#define GET(from) (whole ? V(load)((from) + k) : V(load_head)((from) + k, n, V(set1)(0)))
#define PUT(to, v) (whole ? V(store)((to) + k, v) : V(store_head)((to) + k, n, v))
#define INCLUDED (whole ? V(truth)(included + k) : V(truth_head)(included + k, n))

static void NAME(admit)(const fs_part *part, const fs_option *option)
{
    const fs_part p = NAME(joined)(part);
    const VEC low = V(set1)(-(REAL)INFINITY), factor = V(set1)((REAL)option->factor);
#if !FS_FLOAT
    if (option->softcap != 0) {
        const vd cap = d_set1(option->softcap), steepness = d_set1(option->slope);
        EACH_PART({
            vd e, v = d_mul(cap, d_tanh(d_mul(GET(x), factor), &e));
            if (p.slope)
                PUT(slope, d_mul(steepness, e));
            PUT(y, p.mask ? d_select(INCLUDED, v, low) : v);
        })
        return;
    }
#endif
    if (p.mask)
        EACH_PART(PUT(y, V(select)(INCLUDED, V(mul)(GET(x), factor), low)))
    else
        EACH_PART(PUT(y, V(mul)(GET(x), factor)))
}

static void NAME(poison)(const fs_part *p)
{
    const VEC low = V(set1)(-(REAL)INFINITY);
    for (ptrdiff_t r = 0; r < p->rows; r++) {
        REAL *y = (REAL *)(p->tile + r * p->step);
        const uint8_t *included = (const uint8_t *)p->mask + r * p->mask_step;
        ptrdiff_t k = 0; /* hardly ever beyond the first vector */
        while (k < p->c && V(bits)(V(eq)(V(load_head)(y + k, p->c - k < W ? p->c - k : W, low), low)) == (1u << W) - 1)
            k += W;
        for (ptrdiff_t j = 0; k >= p->c && j < p->c; j++)
            if (included[j])
                y[j] = (REAL)NAN;
    }
}

static void NAME(finish)(const fs_part *part, double by)
{
    const fs_part p = NAME(joined)(part);
    const VEC zero = V(set1)(0), factor = V(set1)((REAL)by);
    if (p.slope || by != 1)
        EACH_PART({
            VEC v = GET(y), f = p.slope ? GET(slope) : factor;
            v = V(select)(V(eq)(v, zero), v, V(mul)(v, f));
            PUT(y, p.mask ? V(select)(INCLUDED, v, zero) : v);
        })
    else if (p.mask)
        EACH_PART({
            if (whole)
                V(store_unless)(INCLUDED, y + k, zero);
            else
                PUT(y, V(select)(INCLUDED, GET(y), zero));
        })
}

#undef EACH_PART
#undef GET
#undef PUT
#undef INCLUDED
