/* The vector vocabulary: what an instruction set has to supply, for vf (floats, prefix f_) and vd (doubles, d_).
 *
 *   load store load_head store_head   whole vectors, unaligned; the first n lanes only (0 <= n <= W), the rest `fill`
 *   set1 add sub mul div abs          lane by lane
 *   rint_of_product                   a b, rounded to an integer, if |a b| < 2^20
 *   fma fnma                          a b + c and c - a b; rounded once if FS_FUSED
 *   max min                           the larger one, the smaller one; b if either is NaN, so that max(x, NaN) keeps the NaN
 *                                     (min if FS_FUSED)
 *   scale2                            a 2^n for integral n down to -1100; subnormal results are rounded once
 *   bounded scale2_if                 max(low, a), if scale2 needs bounded exponents; a 2^floor(n), or 0 where the mask is not
 *   power_if                          a 2^floor(k), exactly, or 0 where the mask is not; k, a multiple of 1 / STEPS, is what the
 *                                     last bits of n, a sum with ZERO_POWER, exceed that by
 *   STEPS pick floor                  1; or how many numbers a table has, of which the last bits of such an n pick those that
 *                                     belong to k's fraction; n rounded down (the last two only if STEPS is not 1)
 *   lt not_less eq select bits        comparisons (only not_less is true for NaN), choice, the mask as an integer
 *   widen_lo widen_hi narrow          (f_ only) a vector of floats as two of doubles
 *   from_half to_half                 (f_ only) W IEEE halves in memory as floats; rounded to nearest even
 *   from_brain to_brain               (f_ only) the same for bfloat16, the upper half of a float
 *   from_float to_float               (d_ only) W floats in memory as doubles
 *   stream stream_half ...            store, to_half ... past the caches, to addresses that are multiples of the size stored;
 *                                     FS_STREAMED() orders them before what other threads do next
 *   from_half to_half ...             (d_ only) the same as doubles, which are rounded once
 *   truth truth_head                  the mask of those of W bytes in memory that are not 0; the first n only, the rest are 0
 *   load_words byte                   4 bytes in memory for each lane, those of lane l at p + l step; the mask of the lanes whose
 *                                     byte a of these is not 0
 *   store_unless                      store where the mask is not
 *   exponent                          floor(log2 a) of a positive normal number
 *   TREE                              reduce W vectors to one whose lane r is the reduction of vector r, by
 *                                     STEP(k, a, b, out), which combines lo<k>(a, b) with hi<k>(a, b)
 *
 *   reciprocal                        1 / a to 2^-50 (f_: to 2^-21, if FS_FUSED), for a normal a and result
 *   load_quads store_quads            a vector whose lane l of 128 bits is at p + l step bytes; ..._head: the first n
 *                                     elements of each quad only
 *   transpose_quads                   element b of the quads of vector a for element a of those of vector b, as many
 *                                     vectors as a quad has elements
 *   unzip zip                         v[0] and v[1], which hold pairs one after the other, to the pairs' first and second
 *                                     elements; and back
 *
 * Everything is inlined into kernels compiled for that instruction set. */
