/* The first n = 1, 2 or 3 floats of a quad.
 *
 * Not by masks: gcc 12 joins a masked store with the extraction of a lane into vextractf32x4 with a mask, which does not
 * suppress faults beyond the mask (exception class E6NF). */
FS_INLINE __m128 load_head128(const void *p, ptrdiff_t n)
{
    const float *x = p;
    if (n == 1)
        return _mm_load_ss(x);
    __m128 v = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(const void *)x));
    return n == 2 ? v : _mm_insert_ps(v, _mm_load_ss(x + 2), 0x20);
}
FS_INLINE void store_head128(void *p, ptrdiff_t n, __m128 v)
{
    float *y = p;
    if (n == 1) {
        _mm_store_ss(y, v);
        return;
    }
    _mm_storel_pi((__m64 *)(void *)y, v);
    if (n == 3)
        _mm_store_ss(y + 2, _mm_movehl_ps(v, v));
}
