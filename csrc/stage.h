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
DEFINE_LOAD(bool, uint8_t, V(from_bool))
#if FS_FLOAT
DEFINE_LOAD(half, uint16_t, f_from_half)
DEFINE_STORE(half, uint16_t, f_to_half, f_stream_half)
DEFINE_LOAD(brain, uint16_t, f_from_brain)
DEFINE_STORE(brain, uint16_t, f_to_brain, f_stream_brain)
#else
DEFINE_LOAD(float, float, d_from_float)
DEFINE_STORE(float, float, d_to_float, d_stream_float)
#endif
#undef DEFINE_LOAD
#undef DEFINE_STORE

static void NAME(prepare)(char *tile, const char *mask, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t c,
                          const fs_option *option)
{
    const VEC low = V(set1)(-(REAL)INFINITY), zero = V(set1)(0), factor = V(set1)((REAL)option->factor);
    for (ptrdiff_t r = 0; r < rows; r++) {
        REAL *x = (REAL *)(tile + r * step);
        const REAL *included = mask ? (const REAL *)(mask + r * step) : NULL;
        if (option->factor != 1)
            for (ptrdiff_t k = 0; k < c; k += W) {
                ptrdiff_t n = c - k < W ? c - k : W;
                V(store_head)(x + k, n, V(mul)(V(load_head)(x + k, n, zero), factor));
            }
        if (!mask)
            continue;
        VEC most = low; /* NaNs may be dropped: a row that seems lost is looked at again */
        ptrdiff_t k = 0;
        for (; k + W <= c; k += W) {
            VEC v = V(select)(V(eq)(V(load)(included + k), zero), low, V(load)(x + k));
            most = V(max)(v, most);
            V(store)(x + k, v);
        }
        if (k < c) {
            VEC v = V(select)(V(eq)(V(load_head)(included + k, c - k, zero), zero), low, V(load_head)(x + k, c - k, zero));
            most = V(max)(v, most);
            V(store_head)(x + k, c - k, v);
        }
        if (option->poison && V(bits)(V(lt)(low, most)) == 0) {
            int any = 0, lost = 1;
            for (k = 0; k < c; k++) {
                any |= included[k] != 0;
                lost &= x[k] == -(REAL)INFINITY;
            }
            for (k = 0; any && lost && k < c; k++)
                x[k] = included[k] != 0 ? (REAL)NAN : x[k];
        }
    }
}

static void NAME(finish)(char *tile, ptrdiff_t step, const char *mask, ptrdiff_t mask_step, ptrdiff_t rows, ptrdiff_t c,
                         const fs_option *option)
{
    const VEC zero = V(set1)(0), one = V(set1)(1), factor = V(set1)((REAL)option->factor);
    for (ptrdiff_t r = 0; r < rows; r++) {
        REAL *y = (REAL *)(tile + r * step);
        const REAL *included = mask ? (const REAL *)(mask + r * mask_step) : NULL;
        for (ptrdiff_t k = 0; k < c; k += W) {
            ptrdiff_t n = c - k < W ? c - k : W;
            VEC v = V(load_head)(y + k, n, zero), m = mask ? V(load_head)(included + k, n, zero) : one;
            V(store_head)(y + k, n, V(select)(V(eq)(m, zero), zero, option->factor != 1 ? V(select)(V(eq)(v, zero), v, V(mul)(v, factor)) : v));
        }
    }
}
