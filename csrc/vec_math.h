/* Functions over any vocabulary: the logarithm and the exponential of a reduced argument, of vectors of doubles, and the
 * logarithm's polynomial for vectors of floats. */

#if !FS_FUSED
/* a b - p for p = fl(a b), by Dekker's product: the halves of a and b multiply exactly. */
FS_INLINE vd d_product_error(vd a, vd b, vd p)
{
    const vd split = d_set1(0x1p27 + 1);
    vd t = d_mul(a, split), ah = d_sub(t, d_sub(t, a)), al = d_sub(a, ah);
    vd u = d_mul(b, split), bh = d_sub(u, d_sub(u, b)), bl = d_sub(b, bh);
    return d_add(d_add(d_add(d_sub(d_mul(ah, bh), p), d_mul(ah, bl)), d_mul(al, bh)), d_mul(al, bl));
}
#endif

/* (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2 (1 + 2^-10); r2 is r^2. */
FS_INLINE vd d_exp_quotient(vd r, vd r2)
{
    vd r4 = d_mul(r2, r2);
    vd a = d_fma(r, d_set1(EXP_F64_C3), d_set1(EXP_F64_C2));
    vd b = d_fma(r, d_set1(EXP_F64_C5), d_set1(EXP_F64_C4));
    vd c = d_fma(r, d_set1(EXP_F64_C7), d_set1(EXP_F64_C6));
    vd d = d_fma(r, d_set1(EXP_F64_C9), d_set1(EXP_F64_C8));
    vd e = d_fma(r, d_set1(EXP_F64_C11), d_set1(EXP_F64_C10));
    return d_fma(r4, d_fma(r4, e, d_fma(r2, d, c)), d_fma(r2, b, a));
}

#if d_STEPS == 16
static const double d_exp2_hi[] __attribute__((aligned(64))) = {EXP2_F64_BY_16_HI};
static const double d_exp2_lo[] __attribute__((aligned(64))) = {EXP2_F64_BY_16_LO};
#define d_SHORT_TERMS 6
static const double d_short_exp[] = {EXP_F64_BY_16_C2, EXP_F64_BY_16_C3, EXP_F64_BY_16_C4,
                                     EXP_F64_BY_16_C5, EXP_F64_BY_16_C6, EXP_F64_BY_16_C7};

/* (exp(s u) - 1 - s u) / u^2 for |s u| <= ln(2)/(2 STEPS) (1 + 2^-10), where c are the coefficients times powers of s. */
FS_INLINE vd d_short_exp_quotient(vd u, const vd *c)
{
    vd u2 = d_mul(u, u);
    return d_fma(u2, d_fma(u2, d_fma(u, c[5], c[4]), d_fma(u, c[3], c[2])), d_fma(u, c[1], c[0]));
}
#endif
#if f_STEPS == 16
#define F_MIDDLE EXP2_MIDDLE_16
static const float f_exp2_hi[] __attribute__((aligned(64))) = {EXP2_F32_BY_16_HI};
static const float f_exp2_lo[] __attribute__((aligned(64))) = {EXP2_F32_BY_16_LO};
#define f_SHORT_TERMS 2
static const double f_short_exp[] = {EXP_F32_BY_16_C2, EXP_F32_BY_16_C3};
FS_INLINE vf f_short_exp_quotient(vf u, const vf *c) { return f_fma(u, c[1], c[0]); }
#elif f_STEPS == 8
#define F_MIDDLE EXP2_MIDDLE_8
static const float f_exp2_hi[] __attribute__((aligned(64))) = {EXP2_F32_BY_8_HI};
static const float f_exp2_lo[] __attribute__((aligned(64))) = {EXP2_F32_BY_8_LO};
#define f_SHORT_TERMS 3
static const double f_short_exp[] = {EXP_F32_BY_8_C2, EXP_F32_BY_8_C3, EXP_F32_BY_8_C4};
FS_INLINE vf f_short_exp_quotient(vf u, const vf *c) { return f_fma(u, f_fma(u, c[2], c[1]), c[0]); }
#else
#define F_MIDDLE 1.0
#endif

/* The same to 2^-34, which is exact for floats. */
FS_INLINE vd d_exp_quotient_of_float(vd r, vd r2)
{
    vd a = d_fma(r, d_set1(EXP_F32_TOP_C3), d_set1(EXP_F32_TOP_C2));
    vd b = d_fma(r, d_set1(EXP_F32_TOP_C5), d_set1(EXP_F32_TOP_C4));
    vd c = d_fma(r, d_set1(EXP_F32_TOP_C7), d_set1(EXP_F32_TOP_C6));
    return d_fma(r2, d_fma(r2, c, b), a);
}

/* P(z) with log((1 + s) / (1 - s)) = 2 s + s z P(z), z = s^2. */
FS_INLINE vd d_log_quotient(vd z)
{
    vd z2 = d_mul(z, z);
    return d_fma(z2, d_fma(z2, d_fma(z2, d_set1(LOG_F64_P6), d_fma(z, d_set1(LOG_F64_P5), d_set1(LOG_F64_P4))),
                          d_fma(z, d_set1(LOG_F64_P3), d_set1(LOG_F64_P2))),
                d_fma(z, d_set1(LOG_F64_P1), d_set1(LOG_F64_P0)));
}

/* The same for z up to 1/9, which is 0.2 ULP of the logarithm off. */
FS_INLINE vd d_log1p_quotient(vd z)
{
    vd z2 = d_mul(z, z), z4 = d_mul(z2, z2);
    vd a = d_fma(z, d_set1(LOG1P_F64_P1), d_set1(LOG1P_F64_P0));
    vd b = d_fma(z, d_set1(LOG1P_F64_P3), d_set1(LOG1P_F64_P2));
    vd c = d_fma(z, d_set1(LOG1P_F64_P5), d_set1(LOG1P_F64_P4));
    vd d = d_fma(z, d_set1(LOG1P_F64_P7), d_set1(LOG1P_F64_P6));
    return d_fma(z4, d_fma(z4, d_set1(LOG1P_F64_P8), d_fma(z2, d, c)), d_fma(z2, b, a));
}

/* P(f) with log(1 + f) = f - f^2/2 + f^3 P(f), for 1 + f from sqrt(1/2) to 3/2. */
FS_INLINE vf f_log1p_quotient(vf f)
{
    vf f2 = f_mul(f, f), f4 = f_mul(f2, f2);
    vf a = f_fma(f, f_set1(LOG1P_F32_P1), f_set1(LOG1P_F32_P0));
    vf b = f_fma(f, f_set1(LOG1P_F32_P3), f_set1(LOG1P_F32_P2));
    vf c = f_fma(f, f_set1(LOG1P_F32_P5), f_set1(LOG1P_F32_P4));
    vf d = f_fma(f, f_set1(LOG1P_F32_P7), f_set1(LOG1P_F32_P6));
    vf e = f_fma(f4, f_set1(LOG1P_F32_P8), f_fma(f2, d, c));
    return f_fma(f4, e, f_fma(f2, b, a));
}

/* tanh(u), and its slope 1 - tanh(u)^2.  With e = exp(-2 |u|) = 1 + P they are -P / (2 + P) and 4 e / (1 + e)^2, in which
 * nothing cancels: for small u P is the exponential's own polynomial. */
FS_INLINE vd d_tanh(vd u, vd *slope)
{
    const vd zero = d_set1(0), one = d_set1(1), two = d_set1(2), floor = d_set1(-746);
    vd t = d_mul(d_set1(-2), d_abs(u));
    md alive = d_not_less(t, floor);
    t = d_max(floor, t);
    vd n = d_rint_of_product(t, d_set1(LOG2E_F64));
#if FS_FUSED
    vd r = d_fnma(n, d_set1(LN2_LO_F64_FMA), d_fnma(n, d_set1(LN2_HI_F64_FMA), t));
#else
    vd r = d_fnma(n, d_set1(LN2_LO_F64_NOFMA), d_fnma(n, d_set1(LN2_HI_F64_NOFMA), t));
#endif
    vd r2 = d_mul(r, r), p = d_fma(r2, d_exp_quotient(r, r2), r);
    vd e = d_scale2_if(alive, d_add(one, p), n);
    vd power = d_scale2(one, d_max(d_set1(-60), n)); /* below it 1 - e is 1 */
    p = d_fma(power, p, d_sub(power, one));
    vd sum = d_add(two, p), lost = d_sub(p, d_sub(sum, two)), inverse = d_div(one, sum), y = d_mul(p, inverse);
#if FS_FUSED
    y = d_fma(d_fnma(y, lost, d_fnma(y, sum, p)), inverse, y);
#else
    y = d_sub(d_div(p, sum), d_mul(d_mul(y, lost), inverse));
#endif
    *slope = d_mul(d_mul(d_set1(4), e), d_mul(inverse, inverse));
    return d_select(d_lt(u, zero), y, d_sub(zero, y));
}

enum { LOG, LOG1P };

/* log(1 + t + t_lo) for t >= 0 (LOG1P), or log(t) for normal t > 0 (LOG), as the returned part, which is a multiple of
 * ln 2 and exact, plus *low, which is below 0.7 and within an ULP.  t_lo is below an ULP of t. */
FS_INLINE vd d_log(vd t, vd t_lo, const int what, vd *low)
{
    /* u = 1 + t = 2^n f with f in [sqrt(1/2), sqrt(2)); what u's rounding lost is put back, relative to u. */
    const vd one = d_set1(1), zero = d_set1(0);
    vd u = what == LOG ? t : d_add(one, t), lost = what == LOG ? t_lo : zero;
    if (what == LOG1P)
        lost = d_select(d_lt(t, d_set1(0x1p53)), d_mul(d_add(d_sub(t, d_sub(u, one)), t_lo), d_reciprocal(u)), zero);
    vd n = d_exponent(d_mul(u, d_set1(0x1.6a09e667f3bcdp+0))); /* sqrt(2) */
    vd f = d_sub(d_scale2(u, d_sub(zero, n)), one);
    vd sum = d_add(d_set1(2), f), s = d_mul(f, d_reciprocal(sum));
    vd z = d_mul(s, s), p = d_log_quotient(z);
    /* log(1 + f) = f - (f^2/2 - s (f^2/2 + z p)): the correction is small against f. */
    vd half = d_mul(d_mul(d_set1(0.5), f), f);
    vd small = d_fma(s, d_fma(z, p, half), d_fma(n, d_set1(LN2_LO_F64_NOFMA), lost));
    vd most = d_sub(f, half);
    *low = d_add(most, d_add(d_sub(d_sub(f, most), half), small));
    return d_mul(n, d_set1(LN2_HI_F64_NOFMA));
}

/* log(1 + t) for f_W numbers t >= 0, in place, to 2^-26.5 of it: what is to be rounded to a float.  1 + t = 2^n (1 + f), where f is
 * rounded once and for n = 0 is t; only the terms from f^3 on, a 20th of the logarithm, are floats. */
FS_INLINE void log1p_of_floats(vd *t)
{
    const vd one = d_set1(1), root = d_set1(0x1.6a09e667f3bcdp+0);
    vd n[2], f[2];
    for (int h = 0; h < 2; h++) {
        n[h] = d_exponent(d_fma(t[h], root, root));
        vd power = d_scale2(one, d_sub(d_set1(0), n[h]));
        f[h] = d_fma(t[h], power, d_sub(power, one));
    }
    vf x = f_narrow(f[0], f[1]), rest = f_mul(f_mul(f_mul(x, x), x), f_log1p_quotient(x));
    for (int h = 0; h < 2; h++) {
        vd most = d_fnma(d_mul(d_set1(0.5), f[h]), f[h], f[h]);
        t[h] = d_fma(n[h], d_set1(LN2_HI_F64_FMA), d_add(most, h ? f_widen_hi(rest) : f_widen_lo(rest)));
    }
}
